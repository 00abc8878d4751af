"""Harm categories: does each have its own harmfulness direction and its own refusal direction?

Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately* (arXiv:2507.11878), category analysis. For category
a, at layer l:

    v_a = mean of its harmful prompts - mean of harmless prompts     harmfulness at t_inst, refusal at t_post_inst
    M^l[a, b] = cos(v_a, v_b)                                        off-diagonal mean: how alike categories are

The refusal direction takes prompts that the model refuses and harmless ones that it answers, where enough categories
have them (`groups.py`). Layers count as in `interp.representations.beliefs`: 0..L-1 is `resid_pre`, L the last block's
output. At layer 0 a template token is a constant and has no direction.

Controls (`comparisons.py`), each in the figures: category labels shuffled; harmless prompts dealt into sham categories
(all directions subtract one harmless mean, which alone makes them alike); each category against itself on other
prompts, with another harmless mean (split halves), which is as alike as this many prompts can show. Everything with
prompts as they are and with all of them ended by a full stop. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from interp.data.prompts import Ending
from interp.evaluation.records import BehavingCount
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.representations.records import HarmAndRefusal, LeakCheck
from interp.stats import Estimate, Measured
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count

CLAIMS = (
    Claim(
        text="harmfulness directions vary by category",
        where="the authors' post",
        theirs="no number",
        same_when="shuffled categories are more alike",
    ),
    Claim(
        text="refusal directions are more alike across categories",
        where="the authors' post",
        theirs="no number",
        same_when="95% interval of the difference above 0",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; the paper's unless a reason is given."""

    n_per_category: AtLeastTwo = 50
    """Harmful prompts of each category (CatQA has 50)."""
    n_harmless: Annotated[int, Field(ge=4)] = 400
    """Harmless prompts, of which the mean is subtracted."""
    min_per_category: AtLeastTwo = 8
    """Prompts that a category needs; for the refusal direction, refused ones."""
    n_shuffles: Count = 200
    """Shuffles of the category labels."""
    n_halvings: Count = 20
    """Random halvings of every category."""
    max_new_tokens: Count = 24
    """Length of the replies that say what is refused."""
    seed: int = 0
    """Seed of shuffles, random halves and the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class LayerMean:
    """How alike the directions of categories are: mean cosines over all layers that have a direction."""

    off_diagonal: Estimate
    """Between different categories; interval over categories drawn with replacement."""
    shuffled: Estimate
    """Mean cosine with shuffled category labels, and the range of 95% of the shuffles."""
    p: float
    """Share of shuffles whose directions differ as much; the observed labels count as one."""
    sham: Measured
    """Mean cosine between sham categories of harmless prompts, which share nothing but the harmless mean."""
    within: Measured
    """Mean cosine between the two halves of a category, with two harmless means."""
    between: Measured
    """Mean cosine between halves of different categories, with two harmless means."""


@dataclass(frozen=True, kw_only=True)
class CategoryDirections:
    """One kind of direction, one a category, and how alike they are at each layer."""

    categories: tuple[str, ...]
    """Names of the categories, in the order of the matrices."""
    cosines: tuple[tuple[tuple[Measured, ...], ...], ...]
    """[layer][category][category]; NaN where a layer has no direction."""
    off_diagonal: tuple[Estimate, ...]
    """Values by layer, defined as in `LayerMean`."""
    shuffled: tuple[Estimate, ...]
    """Values by layer, defined as in `LayerMean`."""
    sham: tuple[Measured, ...]
    """Values by layer, defined as in `LayerMean`."""
    within: tuple[Measured, ...]
    """Values by layer, defined as in `LayerMean`."""
    between: tuple[Measured, ...]
    """Values by layer, defined as in `LayerMean`."""
    mean: LayerMean
    """Means over the layers."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both kinds of directions, with prompts that end in one way."""

    directions: HarmAndRefusal[CategoryDirections]
    """Harmfulness directions at `t_inst`, refusal directions at `t_post_inst`."""
    refusal_minus_harmfulness: Estimate
    """Difference of the off-diagonal means over layers, on the categories that both have; n counts those."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run, with tensors `harmfulness/{ending}` and `refusal/{ending}` [category, layer, d_model]."""

    config: Config
    """Settings of the run."""
    categories: tuple[str, ...]
    """Categories with enough prompts, sorted."""
    counts: dict[str, BehavingCount]
    """Number of prompts, and of those that the model refuses, by category."""
    harmless: BehavingCount
    """Harmless prompts, and those that the model answers."""
    filtered: bool
    """Whether refusal directions are fitted on prompts that behave alone."""
    by_ending: dict[Ending, Comparison]
    """Comparisons by ending: prompts as they are, and all ended by a full stop."""
    leak_check: dict[Ending, LeakCheck]
    """Leak check of the contrast, by ending."""


EXPERIMENT = Experiment(
    name="categories",
    summary=SUMMARIES["categories"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
