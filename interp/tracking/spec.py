"""What is measured along a series, on what, and what its reference checkpoint fixes.

A `Probe` says which measures, prompts and corpora. A `Reference` holds what later checkpoints are compared with:
refusal tokens, centres, directions with their control directions, and its own values. `interp.tracking.references`
fits it, `interp.tracking.measures` compares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from interp.data.corpora import Corpus, default_corpora
from interp.data.prompts import Kind, Prompts, PromptSet, Split, load_prompts
from interp.directions import difference_in_means, orthogonalised
from interp.representations.beliefs import Centres

Group = Literal["refusal", "beliefs", "directions", "shift", "guard", "compression", "kl", "weights"]
GROUPS: tuple[Group, ...] = get_args(Group)
LEAST = 4
"""Prompts on each side, below which centres are not fitted."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Probe:
    """Which measures, on what."""

    prompts: PromptSet = field(default_factory=lambda: load_prompts("builtin"))
    """Directions and centres are fitted on train, places chosen on val, everything is reported on test."""
    corpora: Mapping[str, Corpus] | None = None
    """By name; None is `corpora.default_corpora`."""
    measures: tuple[Group, ...] = GROUPS
    """Groups of measures, see the module."""
    n: int = 32
    """Test prompts of each kind."""
    n_fit: int = 64
    """Train prompts of each kind."""
    n_documents: int = 16
    """Documents of each corpus."""
    n_samples: int = 8
    """Prompts of each kind that KL is sampled on."""
    max_new_tokens: int = 20
    """Length of a reply, greedy or sampled."""
    seed: int = 0
    """Of sampling."""

    def __post_init__(self) -> None:
        for name in ("n", "n_fit", "n_documents", "n_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        unknown = [name for name in self.measures if name not in GROUPS]
        if unknown or not self.measures:
            raise ValueError(
                f"measures must be some of {', '.join(GROUPS)}; got {', '.join(unknown) or 'none'}"
            )

    @cached_property
    def measured_prompts(self) -> PromptSet:
        """The prompts, with the builtin borderline ones where the set has none."""
        if ("borderline", "test") in self.prompts:
            return self.prompts
        borderline = load_prompts("builtin")["borderline", "test"]
        return replace(self.prompts, parts={**self.prompts.parts, ("borderline", "test"): borderline})

    @cached_property
    def measured_corpora(self) -> Mapping[str, Corpus]:
        """The corpora, by name."""
        return default_corpora(self.prompts) if self.corpora is None else self.corpora

    @property
    def provenance(self) -> dict[str, Any]:
        """Settings, prompts and corpora, as results store them."""
        sizes = ("n", "n_fit", "n_documents", "n_samples", "max_new_tokens", "seed")
        return {
            "measures": list(self.measures),
            **{name: getattr(self, name) for name in sizes},
            "prompts": self.measured_prompts.provenance,
            "corpora": {name: corpus.provenance for name, corpus in self.measured_corpora.items()},
        }

    def part(self, kind: Kind, split: Split) -> Prompts:
        """The prompts used of a kind and split."""
        return self.measured_prompts[kind, split].first(self.n if split == "test" else self.n_fit)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A direction by its recipe: two groups of training prompts at one place."""

    name: str
    """harmfulness, refusal, or `control (...)` of one of them."""
    layer: int
    """As `beliefs` counts: 0..L."""
    role: int
    """0 is `t_inst`, 1 is `t_post_inst`."""
    positive: tuple[int, ...]
    """Rows of the training prompts, harmful ones first, then harmless."""
    negative: tuple[int, ...]
    """Rows of the other group."""
    orthogonal_to: str | None = None
    """Axis whose component is taken out."""
    about: str = ""
    """What the two groups are."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """What the reference checkpoint fixes for all others, and their values there."""

    facts: dict[str, Any]
    """Model, refusal tokens, chosen layers, controls and their AUROC."""
    refusal_ids: tuple[int, ...]
    """Tokens of the refusal metric."""
    axes: tuple[Axis, ...]
    """Directions to follow."""
    tensors: dict[str, Tensor]
    """`train/{axis}` [prompt, d_model], `test/{axis}/{kind}` [prompt], `harm/positive` and such [layer, d_model],
    `bits/{corpus}`, `log_probs/{kind}` [token, d_vocab]."""
    samples: dict[str, list[list[int]]]
    """Kind → the reference's own sampled replies, as token ids."""

    def axis(self, name: str) -> Axis:
        """The axis of this name."""
        return next(axis for axis in self.axes if axis.name == name)

    def direction(self, axis: Axis, train: Mapping[str, Tensor] | None = None) -> Float[Tensor, " d_model"]:
        """The direction of an axis, fitted on these activations of the training prompts, or on the reference's own."""
        found = self.tensors if train is None else train
        acts = found[f"train/{axis.name}"]
        vector = difference_in_means(acts[list(axis.positive)], acts[list(axis.negative)])
        if axis.orthogonal_to is not None:
            vector = orthogonalised(vector, self.direction(self.axis(axis.orthogonal_to), train))
        return vector

    def centres(self, belief: Literal["harm", "refusal"]) -> Centres | None:
        """The reference's centres; None where it had too few refused or answered prompts."""
        if f"{belief}/positive" not in self.tensors:
            return None
        return Centres(
            positive=self.tensors[f"{belief}/positive"], negative=self.tensors[f"{belief}/negative"]
        )
