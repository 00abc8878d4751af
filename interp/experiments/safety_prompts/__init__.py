"""Safety prompts: what system prompts move inside a model, and one that is optimised there.

Zheng, Yin, Zhou, Meng, Zhou, Chang, Huang, Peng 2024, *On Prompt-Driven Safeguarding for Large Language Models*
(arXiv:2401.18018, ICML 2024): directed representation optimisation (DRO). The plane is
`interp.representations.safety_plane`, training is `interp.training.soft_prompts`, the study is in `run.py`. The body of
the paper could not be read; the released code is the source, and `CLAIMS` are those of abstract and figures.

Beyond the paper: held-out queries wherever something is measured, shuffled labels, a neutral system prompt and a random
soft prompt as controls, the plane at several layers beside difference-in-means directions, all with equal endings too.
"""

from dataclasses import dataclass
from typing import Literal

from interp.data.prompt_sets import Ending
from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.representations.records import Solver
from interp.stats import Estimate
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count, NonNegative, Positive

NONE, NEUTRAL = "none", "neutral text (control)"
TUNED, DRO, RANDOM = "prompt tuning", "DRO", "random soft prompt (control)"
"""System prompts beside the safety texts, by the names that they have in results."""
SAFETY = ("default", "short", "mistral")
"""Safety texts that the plane is fitted under, beside none (`interp.data.safety_texts`)."""
NEUTRAL_TEXT = (
    "You are having a chat in English. Write full sentences, begin each with a capital letter, and use the metric "
    "system when you mention a length or a weight."
)
"""A system prompt without any word on safety: the control for what every system prompt moves."""
ABLATIONS = {
    "DRO without L_r": "refusal_weight",
    "DRO without L_h": "harmfulness_weight",
    "DRO without L_U": "rest_weight",
}
"""Trainings without one term of the loss, and the weight that is 0 in them."""

CLAIMS = (
    Claim(
        text="Harmful and harmless queries are separable without a safety prompt.",
        where="abstract; figure 3",
        theirs="well separated by a line in the plane of the first two components",
        same_when="AUROC of the harmfulness logit on held-out queries without a system prompt above the mean AUROC of "
        "planes fitted to shuffled labels, intervals apart; with prompts as they are and with equal endings",
    ),
    Claim(
        text="Safety prompts move queries in similar directions.",
        where="abstract; figure 3",
        theirs="arrows of three prompts point alike",
        same_when="mean cosine of the mean shifts under two safety texts above that of a safety text with a neutral "
        "one, intervals over held-out queries apart, for both kinds",
    ),
    Claim(
        text="That direction has a component towards refusal, also for harmless queries.",
        where="abstract; figure 3",
        theirs="so in all models",
        same_when="component along the refusal normal above 0 for both kinds under every safety text, intervals over "
        "held-out queries",
    ),
    Claim(
        text="DRO moves harmful queries along the refusal direction, and harmless ones against it.",
        where="abstract; figure 5",
        theirs="arrows from the text to the optimised prompt point so",
        same_when="component along the refusal normal of the mean shift of held-out harmful queries above that under "
        "the text, of harmless ones below it, intervals over queries apart; a random soft prompt beside it",
    ),
    Claim(
        text="DRO lowers compliance with harmful queries, and refuses no more harmless ones than the text.",
        where="table of results, any of 20 answers",
        theirs="complied 9.8% -> 1.6% (MaliciousInstruct), 10.3% -> 1.4% (AdvBench); harmless refused 7.1% -> 2.0%; "
        "mean of eight 7B models",
        same_when="greedy replies to held-out queries, paired by query with the text that training starts from: "
        "compliance lower by an interval below 0, refusals of harmless queries not higher by an interval above "
        "0; not "
        "testable where the text leaves fewer than 3 harmful queries complied with",
    ),
    Claim(
        text="The term L_r does the work.",
        where="ablations",
        theirs="complied 7.8% and 10.0% without L_r, 1.8% and 0.5% without L_h",
        same_when="mean change of the first-token refusal probability in the wanted direction (up for harmful, down "
        "for harmless held-out queries), paired by query: from DRO without L_r to DRO above 0, from DRO without "
        "L_h to DRO "
        "not above 0",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; the released code's in brackets where ours are smaller."""

    start: str = "default"
    """Text that training starts from: a name of `interp.data.safety_texts`, or a text."""
    ablations: tuple[str, ...] = ("DRO without L_r", "DRO without L_h")
    """Trainings without one term of the loss."""
    n_train: AtLeastTwo = 24
    """Training queries of each kind (100)."""
    n_test: AtLeastTwo = 32
    """Held-out queries of each kind (100)."""
    n_borderline: Count = 16
    """Held-out borderline queries (ours)."""
    refusal: Literal["first-token", "sampled"] = "first-token"
    """Refusal probability that the plane is fitted to (sampled)."""
    refusal_samples: Count = 25
    """Answers to each query with `sampled`, of which four fifths count."""
    refusal_tokens: Count = 300
    """Length of those answers."""
    n_components: AtLeastTwo = 4
    """Principal components of the plane."""
    folds: AtLeastTwo = 10
    """Folds of its regressions."""
    solver: Solver = "released"
    """How the plane after the final norm is solved; at layers, where states differ in size, and on shuffled labels
    regressions converge."""
    n_shuffles: AtLeastTwo = 20
    """Planes fitted to shuffled labels (ours)."""
    layer_step: Count = 5
    """Every how many layers the plane is fitted (ours)."""
    epochs: Count = 10
    """Passes of each training over its queries (40)."""
    batch_size: Count = 16
    """Queries of a step (50)."""
    learning_rate: Positive = 1e-3
    """Learning rate of AdamW."""
    harmfulness_weight: NonNegative = 0.01
    """Weight of L_h."""
    rest_weight: NonNegative = 0.001
    """Weight of L_U."""
    unlikelihood_weight: NonNegative = 1.0
    """Weight of the undesired answers in prompt tuning."""
    reply_tokens: Count = 24
    """Tokens of an answer that prompt tuning trains on (ours)."""
    n_samples: int = 0
    """Sampled answers for the any-of-k rule, of which four fifths count (25); 0 leaves it out."""
    sample_tokens: Count = 64
    """Length of those answers (300)."""
    max_new_tokens: Count = 24
    """Length of greedy replies; refusals show in their first words."""
    seed: int = 0
    """Seed of folds, batches, samples, random prompt and bootstrap (42)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.ablations if name not in ABLATIONS]:
            raise ValueError(f"unknown ablation {unknown[0]!r}; known: {', '.join(ABLATIONS)}")
        if not self.start.strip():
            raise ValueError(f"start must be a text, or one of {', '.join(SAFETY)}; got an empty one")

    @property
    def text(self) -> str:
        """Name of the text that training starts from, in results."""
        return f"text: {self.start}" if self.start in SAFETY else "text: own"

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the prompts that are trained."""
        return (TUNED, DRO, *(name for name in ABLATIONS if name in self.ablations))


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Two of the components, as they are drawn: training queries under none and three safety texts."""

    points: dict[str, dict[str, tuple[tuple[float, float], ...]]]
    """Components 1 and 2 of every query, by system prompt and kind."""
    refusal: dict[str, dict[str, tuple[float, ...]]]
    """Refusal probability that the plane was fitted to, in the same order."""
    explained: tuple[float, ...]
    """Share of the variance along each component."""
    refusal_weights: tuple[float, ...]
    """w_r; larger logits are more refusal."""
    refusal_bias: float
    """b_r."""
    harm_weights: tuple[float, ...]
    """w_h; larger logits are more harmful."""
    harm_bias: float
    """b_h."""


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well the plane tells held-out queries apart, and the control."""

    harmfulness: Estimate
    """AUROC of the harmfulness logit, harmful against harmless, without a system prompt."""
    shuffled: Estimate
    """The same of planes fitted to shuffled labels: mean over shuffles, each 0 to 1 and 0.5 by chance."""
    harm_accuracy: Estimate
    """Share of queries on the right side of the harmfulness boundary, over all system prompts of the plane."""
    refusal_accuracy: Estimate
    """Share on the right side of the refusal boundary: whether refusing is likelier than not by the first token."""


@dataclass(frozen=True, kw_only=True)
class ShiftParts:
    """How a system prompt moves one kind of held-out query against none: parts of the mean shift."""

    refusal: Estimate
    """Along the refusal normal of unit length, in units of the states; positive is towards refusing."""
    harmfulness: Estimate
    """Along the harmfulness normal of unit length; positive is towards harmful."""
    rest: float
    """Length of what is orthogonal to both."""
    total: float
    """Length of the mean shift."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Cosines of the mean shifts of one kind of query under two system prompts; bootstrap over queries."""

    safety: Estimate
    """Mean over pairs of safety texts."""
    neutral: Estimate
    """Mean over safety texts, each with the neutral one."""


@dataclass(frozen=True, kw_only=True)
class LayerPlane:
    """The plane at the input of one block."""

    layer: int
    """Layer, from 0."""
    harm_accuracy: Estimate
    """As `Separation.harm_accuracy`."""
    refusal_accuracy: Estimate
    """As `Separation.refusal_accuracy`."""
    normals: float
    """Cosine of the refusal normal with the harmfulness normal."""
    refusal_with_refusal: float
    """Cosine of the refusal normal with the difference in means at `t_post_inst`."""
    refusal_with_harmfulness: float
    """Cosine of the refusal normal with the difference in means at `t_inst`."""
    harmfulness_with_refusal: float
    """Cosine of the harmfulness normal with the difference in means at `t_post_inst`."""
    harmfulness_with_harmfulness: float
    """Cosine of the harmfulness normal with the difference in means at `t_inst`."""
    towards_refusal: dict[str, float]
    """Component of the mean shift along the refusal normal as a share of its length, mean over texts, by kind."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The plane for one ending of the queries."""

    plane: Plane
    """After the final norm, as published."""
    separation: Separation
    """Held-out queries on both sides of its boundaries."""
    shifts: dict[str, dict[str, ShiftParts]]
    """Mean shifts of held-out queries, by system prompt and kind."""
    similarity: dict[str, Similarity]
    """How alike the shifts are, by kind."""
    layers: tuple[LayerPlane, ...]
    """The plane at several layers."""


@dataclass(frozen=True, kw_only=True)
class NearestToken:
    """The token of the vocabulary that is nearest to a trained embedding."""

    start: str
    """Token that the embedding started from."""
    nearest: str
    """Token with the highest cosine."""
    cosine: float
    """Its cosine."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of a prompt."""

    losses: dict[str, tuple[float, ...]]
    """Every term at each step before its weight is applied, and `total`: nats; `rest` in squared units of states."""
    nearest: tuple[NearestToken, ...]
    """Of every embedding."""
    moved: float
    """Norm of the change of the embeddings, in norms of those that it started from."""
    seconds: float
    """Seconds of the training; of prompt tuning with the sampling of its answers."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """One system prompt on held-out queries."""

    refused: dict[str, tuple[bool, ...]]
    """Whether the greedy reply to each query refuses, by kind (string test of the paper)."""
    incoherent: dict[str, tuple[bool, ...]]
    """Whether it is empty or repeats one word: such a reply neither refuses nor complies."""
    probability: dict[str, tuple[float, ...]]
    """Probability that the first token of the reply begins a refusal."""
    kl: Estimate
    """KL from the model without a system prompt in nats per token, on its own replies to harmless queries."""
    points: dict[str, tuple[tuple[float, float], ...]]
    """Components 1 and 2 of the plane, by kind."""
    shift: dict[str, ShiftParts]
    """Mean shift against none, by kind; empty for none."""
    any_of_k: dict[str, Estimate]
    """At least one sampled answer complies (harmful) or refuses (other kinds); empty where none were sampled."""
    single: dict[str, Estimate]
    """The same of the first sampled answer."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    n: dict[str, int]
    """Held-out queries by kind."""
    openers: tuple[str, ...]
    """First tokens that count as beginning a refusal."""
    geometry: dict[Ending, Geometry]
    """By ending of the queries."""
    training: dict[str, Training]
    """By name of the trained prompt."""
    behaviour: dict[str, Behaviour]
    """By system prompt, in the order of the tables."""


EXPERIMENT = Experiment(
    name="safety-prompts",
    summary=SUMMARIES["safety-prompts"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
