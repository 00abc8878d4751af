"""What is stored of a series of checkpoints: frozen records without tensors, read without torch.

A `TrackRecord` holds every checkpoint with its measurements, what the reference checkpoint fixed for all of them, and
provenance. `interp.tracking.tracker` and `interp.tracking.callback` make it, `interp.tracking.trajectory` is its tidy
table, `interp.tracking.figures` and `interp.tracking.report` draw it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from interp.evaluation.records import RefusalTokens
from interp.representations.records import LeakCheck
from interp.stats import Estimate
from interp.storage.provenance import Provenance

Group = Literal["refusal", "beliefs", "directions", "shift", "guard", "compression", "kl", "weights"]
"""A group of measures (`interp.tracking.measures`)."""
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Which measures, and on how much."""

    measures: tuple[Group, ...] = GROUPS
    """Groups of measures, see `interp.tracking.measures`."""
    n: int = 32
    """Test prompts of each kind."""
    n_fit: int = 64
    """Training prompts of each kind that directions and centres are fitted on."""
    n_documents: int = 16
    """Documents of each corpus."""
    n_samples: int = 8
    """Prompts of each kind that KL is sampled on."""
    max_new_tokens: int = 20
    """Length of a reply, greedy or sampled."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        for name in ("n", "n_fit", "n_documents", "n_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        unknown = [name for name in self.measures if name not in GROUPS]
        if unknown or not self.measures:
            raise ValueError(
                f"measures must be some of {', '.join(GROUPS)}; got {', '.join(unknown) or 'none'}"
            )


@dataclass(frozen=True, kw_only=True)
class CorpusProvenance:
    """What identifies a corpus."""

    n: int
    """Documents in it."""
    kind: Literal["plain", "responses"]
    """Plain text, or responses scored given their prompts."""
    hash: str
    """SHA-256 of prompts and texts, in order."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number at one checkpoint, with its interval."""

    measure: str
    """Such as `refusal_rate` or `cosine_refusal`."""
    prompts: str | None
    """A kind of prompts, or a corpus; None where there are none."""
    layer: int | None
    """Where a direction is read, or a block; None where a measure has no layer."""
    estimate: Estimate
    """The number; not measurable where `note` says why."""
    note: str = ""
    """Why it could not be measured; empty where it was."""

    @property
    def status(self) -> str:
        """`ok`, or why there is no number."""
        return "ok" if self.estimate.measurable else f"not measured: {self.note}"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """One checkpoint of a series and what was measured there."""

    label: str
    """Unique in its series."""
    step: int | None
    """Training steps, or examples (see `TrackRecord.step_unit`); None where its name has none."""
    fingerprint: str
    """Changes with the checkpoint's content; empty for a live model."""
    status: str = "ok"
    """`ok`, or why it was skipped."""
    seconds: float = 0.0
    """Time that loading and measuring it took."""
    rows: tuple[Measurement, ...] = ()
    """Its measurements; empty when it was skipped."""

    @property
    def measured(self) -> bool:
        """Whether it could be measured."""
        return self.status == "ok"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What all checkpoints of a series share."""

    n_layers: int
    """Decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    vocabulary: int
    """Rows of the input embedding."""
    template_hash: str | None
    """SHA-256 of the chat template."""


@dataclass(frozen=True, kw_only=True)
class ControlFacts:
    """The control of a direction of safety: a direction fitted on a contrast that is not about safety."""

    about: str
    """The contrast it was fitted on."""
    auroc: Estimate
    """How well it tells its own two classes apart, on validation prompts."""
    cosine: float
    """With the safety direction, before that component was taken out, -1 to 1."""
    tried: dict[str, float]
    """Contrast → its AUROC; the one nearest to the safety direction's was taken."""


@dataclass(frozen=True, kw_only=True)
class DirectionFacts:
    """Where a direction of safety is read at the reference."""

    layer: int
    """0..L, as `interp.representations.beliefs` counts: L is after the last block."""
    role: Literal["t_inst", "t_post_inst"]
    """Position of the prompt that it is read at."""
    auroc: Estimate
    """How well it tells harmful from harmless validation prompts apart."""
    control: ControlFacts | None
    """None where no contrast was large enough."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """What the reference checkpoint fixes for all others, apart from tensors."""

    shape: ModelShape
    """Checkpoints of another shape are skipped."""
    refusal_tokens: RefusalTokens
    """Tokens of the refusal metric."""
    refused: int
    """Harmful training prompts that it refuses."""
    answered: int
    """Harmless training prompts that it answers."""
    filtered: bool
    """Whether those are enough to fit the refusal direction and centres on them alone."""
    leak: LeakCheck
    """How well the ends of prompts tell harmful from harmless."""
    directions: dict[str, DirectionFacts]
    """`harmfulness` and `refusal`."""


@dataclass(frozen=True, kw_only=True)
class ReferenceRecord:
    """The reference checkpoint of a series."""

    label: str
    """Its label in the series, or its own."""
    fingerprint: str
    """Changes with its content; empty for a live model."""
    facts: ReferenceFacts
    """What it fixed."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What measuring a live model costs its training."""

    seconds_per_measurement: float
    """Time of the last measurement."""
    seconds_per_step: float
    """Median time of a training step."""
    steps_per_measurement: float
    """Training steps that a measurement takes as long as."""
    share_of_training: float
    """Share of the whole time that is spent measuring, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class TrackRecord:
    """The same measurements along a series of checkpoints, as `result.json` holds them."""

    provenance: Provenance
    """Model of the reference, prompts, seed, versions."""
    seconds: dict[str, float]
    """`total`, over checkpoints; an experiment that trained them adds its stages."""
    settings: TrackingSettings
    """Which measures, on how much."""
    corpora: dict[str, CorpusProvenance]
    """By name."""
    step_unit: str
    """What `step` counts: `step`, or `training examples`."""
    checkpoints: tuple[CheckpointRecord, ...]
    """In the order of the series."""
    reference: ReferenceRecord
    """What all are compared with."""
    cost: Cost | None = None
    """What measuring cost a live run; None for saved checkpoints."""
