"""The specification of a tracked series: measures, prompts and corpora, and what its reference checkpoint fixes.

A `TrackingSpec` names measures, prompts and corpora. A `Reference` holds what checkpoints are compared with: refusal
tokens, centres, directions with their control directions, and its own values. `interp.tracking.references` fits it,
`interp.tracking.measures` makes the comparisons.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from interp.data.corpora import Corpus, default_corpora
from interp.data.prompt_sets import Kind, Prompts, PromptSet, Split
from interp.data.prompts import load_prompts
from interp.directions import difference_in_means, orthogonalised
from interp.representations.beliefs import Centres
from interp.storage.provenance import ModelProvenance, PromptsProvenance, prompts_key
from interp.storage.typed_json import to_plain
from interp.tracking.records import CorpusProvenance, ReferenceFacts, TrackingSettings, TrackRecord

MIN_PROMPTS = 4
"""Minimum prompts of each class for fitting centres."""


@dataclass(frozen=True, kw_only=True)
class TrackingSpec(TrackingSettings):
    """Measures to take, with their prompts and corpora."""

    prompts: PromptSet = field(default_factory=lambda: load_prompts("builtin"))
    """Prompts: directions and centres are fitted on train, layers are selected on val, results are reported on test."""
    corpora: Mapping[str, Corpus] | None = None
    """Corpora by name; None is `corpora.default_corpora`."""

    @cached_property
    def measured_prompts(self) -> PromptSet:
        """The prompts, with the builtin borderline test prompts where the set has none."""
        if ("borderline", "test") in self.prompts:
            return self.prompts
        borderline = load_prompts("builtin")["borderline", "test"]
        return replace(self.prompts, parts={**self.prompts.parts, ("borderline", "test"): borderline})

    @cached_property
    def measured_corpora(self) -> Mapping[str, Corpus]:
        """The corpora by name, or the default ones."""
        return default_corpora(self.measured_prompts) if self.corpora is None else self.corpora

    @property
    def settings(self) -> TrackingSettings:
        """The settings alone, as results store them."""
        return TrackingSettings(**{f.name: getattr(self, f.name) for f in fields(TrackingSettings)})

    @property
    def corpora_provenance(self) -> dict[str, CorpusProvenance]:
        """Size, kind and hash of each corpus."""
        return {name: CorpusProvenance(**corpus.provenance) for name, corpus in self.measured_corpora.items()}

    @property
    def key(self) -> dict[str, Any]:
        """Everything but the checkpoint that measurements depend on: settings, prompts and corpora."""
        return {
            "settings": to_plain(self.settings, TrackingSettings),
            "prompts": prompts_key(self.measured_prompts.provenance),
            "corpora": to_plain(self.corpora_provenance, dict[str, CorpusProvenance]),
        }

    def measured_as(self, record: TrackRecord) -> bool:
        """Whether a stored record has these settings, prompts and corpora."""
        prompts = to_plain(record.provenance.prompts, PromptsProvenance | None)
        return (
            record.settings == self.settings
            and record.corpora == self.corpora_provenance
            and prompts is not None
            and prompts_key(prompts) == prompts_key(self.measured_prompts.provenance)
        )

    def part(self, kind: Kind, split: Split) -> Prompts:
        """The prompts of a kind and split that are used."""
        return self.measured_prompts[kind, split].first(self.n if split == "test" else self.n_fit)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A direction as a difference in means of two groups of training prompts, at one layer and role."""

    name: str
    """Name of the direction: harmfulness, refusal, or `control_` and one of them."""
    layer: int
    """Layer it is read at, 0..L as `interp.representations.beliefs` counts: L is after the last block."""
    role: int
    """Token role it is read at: 0 is `t_inst`, 1 is `t_post_inst`."""
    positive: tuple[int, ...]
    """Rows of the positive group; training prompts are counted harmful first, then harmless."""
    negative: tuple[int, ...]
    """Rows of the negative group."""
    orthogonal_to: str | None = None
    """Name of the axis whose component is removed; None where none is."""
    about: str = ""
    """Description of the two groups."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """What the reference checkpoint fixes for all others, and its own values."""

    model: ModelProvenance
    """Provenance of the reference checkpoint's model."""
    facts: ReferenceFacts
    """Refusal tokens, layers, controls and their AUROC."""
    axes: tuple[Axis, ...]
    """Directions to track."""
    tensors: dict[str, Tensor]
    """`train/{axis}` [prompt, d_model], `test/{axis}/{kind}` [prompt], `harm/positive` and such [layer, d_model],
    `bits/{corpus}`, `log_probs/{kind}` [token, d_vocab]."""
    samples: dict[str, list[list[int]]]
    """The reference's own sampled replies as token ids, by kind of prompt."""

    @property
    def refusal_ids(self) -> tuple[int, ...]:
        """Tokens of the refusal metric."""
        return self.facts.refusal_tokens.ids

    def axis(self, name: str) -> Axis:
        """The axis of this name."""
        return next(axis for axis in self.axes if axis.name == name)

    def direction(self, axis: Axis, train: Mapping[str, Tensor] | None = None) -> Float[Tensor, " d_model"]:
        """The direction of an axis, fitted on the given activations of training prompts, or on the reference's own."""
        acts = (self.tensors if train is None else train)[f"train/{axis.name}"]
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
