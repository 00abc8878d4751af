"""Stored results of a series of checkpoints: frozen records without tensors, readable without torch.

A `TrackRecord` holds every checkpoint with its measurements, what the reference checkpoint fixed for all of them, and
provenance. `interp.tracking.tracker` and `interp.tracking.callback` make it, `interp.tracking.trajectory` is its tidy
table, `interp.tracking.figures` and `interp.tracking.report` draw it.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from interp.evaluation.judges.records import ReplyVerdicts, RunJudgements
from interp.evaluation.records import RefusalTokens
from interp.representations.records import LeakCheck
from interp.stats import Estimate
from interp.storage.provenance import Provenance
from interp.storage.settings import CheckedSettings, Count

NAME = "track"
SUMMARY = "behaviour, beliefs, directions, compression and KL along a series of checkpoints"

Group = Literal[
    "refusal",
    "beliefs",
    "directions",
    "shift",
    "guard",
    "compression",
    "kl",
    "weights",
    "knowledge",
    "detectability",
]
"""A group of measures (`interp.tracking.measures`)."""
GROUPS: tuple[Group, ...] = get_args(Group)
DEFAULT_GROUPS: tuple[Group, ...] = tuple(
    group for group in GROUPS if group not in ("knowledge", "detectability")
)
"""Groups that are measured where none are named; the other two read a benchmark, or write and read long texts."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(CheckedSettings):
    """Groups of measures to take, and sample sizes."""

    measures: tuple[Group, ...] = DEFAULT_GROUPS
    """Groups of measures to take, see `interp.tracking.measures`."""
    n: Count = 32
    """Number of test prompts of each kind."""
    n_fit: Count = 64
    """Number of training prompts of each kind for fitting directions and centres."""
    n_documents: Count = 16
    """Number of documents of each corpus."""
    n_samples: Count = 8
    """Number of prompts of each kind for sampled KL."""
    max_new_tokens: Count = 20
    """Maximum length of a reply, greedy or sampled."""
    questions: str = "builtin"
    """Multiple-choice questions of the group `knowledge`, as interp.data.load_questions takes them."""
    n_questions: Count = 48
    """Number of those questions, from their groups in turn."""
    n_texts: Count = 24
    """Number of human passages that the model continues, for detectability."""
    text_tokens: Annotated[int, Field(ge=8)] = 90
    """Tokens of each of those texts, of which the first third is the passage's."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.measures if name not in GROUPS]
        if unknown or not self.measures:
            raise ValueError(
                f"measures must be some of {', '.join(GROUPS)}; got {', '.join(unknown) or 'none'}"
            )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class CorpusProvenance:
    """Size, kind and hash of a corpus."""

    n: int
    """Number of documents."""
    kind: Literal["plain", "responses"]
    """Plain text, or responses scored given their prompts."""
    hash: str
    """SHA-256 of prompts and texts, in order."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number at one checkpoint, with its interval."""

    measure: str
    """Name of the measure, such as `refusal_rate` or `cosine_refusal`."""
    prompts: str | None
    """Kind of prompts, or name of a corpus; None where the measure uses neither."""
    layer: int | None
    """Layer that a direction is read at, or index of a block; None where the measure has no layer."""
    estimate: Estimate
    """The value; not measurable where `note` gives a reason."""
    note: str = ""
    """Why it could not be measured; empty where it was."""

    @property
    def status(self) -> str:
        """`ok`, or why there is no value."""
        return "ok" if self.estimate.measurable else f"not measured: {self.note}"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """One checkpoint of a series with its measurements."""

    label: str
    """Name of the checkpoint, unique in its series."""
    step: int | None
    """Number of training steps or examples (see `TrackRecord.step_unit`); None where its name contains none."""
    fingerprint: str
    """Identifies the checkpoint's content; empty for a live model."""
    status: str = "ok"
    """`ok`, or why it was skipped."""
    seconds: float = 0.0
    """Seconds that loading and measuring it took."""
    rows: tuple[Measurement, ...] = ()
    """Its measurements; empty when it was skipped."""
    verdicts: ReplyVerdicts | None = None
    """What judges say about its greedy replies to test prompts; None where none was asked."""

    @property
    def all_rows(self) -> tuple[Measurement, ...]:
        """Its measurements, and each judge's rates as measurements: `refused_by_NAME`, `harmful_by_NAME`."""
        if self.verdicts is None:
            return self.rows
        groups: dict[str, list[int]] = {}
        for row, group in enumerate(self.verdicts.groups):
            groups.setdefault(group, []).append(row)
        judged = (
            Measurement(
                measure=f"{question}_by_{judge}",
                prompts=group,
                layer=None,
                estimate=estimate,
                note="" if estimate.measurable else "the judge could judge no reply",
            )
            for group, rows in groups.items()
            for question, rates in self.verdicts.rates(rows).items()
            for judge, estimate in rates.items()
        )
        return (*self.rows, *judged)

    @property
    def measured(self) -> bool:
        """Whether it could be measured."""
        return self.status == "ok"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The shape of a model, which all checkpoints of a series share."""

    n_layers: int
    """Number of decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    vocabulary: int
    """Number of rows of the input embedding."""
    template_hash: str | None
    """SHA-256 of the chat template."""


@dataclass(frozen=True, kw_only=True)
class ControlFacts:
    """The control of a safety direction: a direction fitted on a contrast unrelated to safety."""

    about: str
    """The contrast it was fitted on."""
    auroc: Estimate
    """Separation of its own two classes on validation prompts; higher is better."""
    cosine: float
    """Cosine with the safety direction before that component was removed, -1 to 1."""
    tried: dict[str, float]
    """AUROC of every contrast by name; the one nearest to the safety direction's was selected."""


@dataclass(frozen=True, kw_only=True)
class DirectionFacts:
    """Layer and role of a safety direction at the reference, with its control."""

    layer: int
    """Layer it is read at, 0..L as `interp.representations.beliefs` counts: L is after the last block."""
    role: Literal["t_inst", "t_post_inst"]
    """Token role it is read at."""
    auroc: Estimate
    """Separation of harmful from harmless validation prompts; higher is better."""
    control: ControlFacts | None
    """Its control direction; None where no contrast was large enough."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """What the reference checkpoint fixes for all others, without tensors."""

    shape: ModelShape
    """Shape of the reference; checkpoints of another shape are skipped."""
    refusal_tokens: RefusalTokens
    """Refusal tokens of the refusal metric."""
    refused: int
    """Number of harmful training prompts that it refuses."""
    answered: int
    """Number of harmless training prompts that it answers."""
    filtered: bool
    """Whether the refusal direction and centres are fitted on those prompts alone, because there are enough."""
    leak: LeakCheck
    """How well the endings of prompts separate harmful from harmless."""
    directions: dict[str, DirectionFacts]
    """Facts by name of the direction, `harmfulness` and `refusal`."""


@dataclass(frozen=True, kw_only=True)
class ReferenceRecord:
    """The reference checkpoint of a series."""

    label: str
    """Label of the checkpoint, in the series or of its own."""
    fingerprint: str
    """Identifies the checkpoint's content; empty for a live model."""
    facts: ReferenceFacts
    """What it fixes for all other checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of measuring a live model, relative to its training."""

    seconds_per_measurement: float
    """Seconds of the last measurement."""
    seconds_per_step: float
    """Median seconds of a training step."""
    steps_per_measurement: float
    """Duration of a measurement in training steps."""
    share_of_training: float
    """Share of the total time spent measuring, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class TrackRecord:
    """The same measurements along a series of checkpoints, as `result.json` holds them."""

    provenance: Provenance
    """Model of the reference, prompts, seed and library versions."""
    seconds: dict[str, float]
    """Seconds by stage: `total` over checkpoints, and the stages of an experiment that trained them."""
    settings: TrackingSettings
    """Groups of measures, and sample sizes."""
    corpora: dict[str, CorpusProvenance]
    """Size, kind and hash of each corpus, by name."""
    step_unit: str
    """Unit of `step`: `step` (training steps) or `training examples`."""
    checkpoints: tuple[CheckpointRecord, ...]
    """Every checkpoint, in the order of the series."""
    reference: ReferenceRecord
    """The checkpoint that all others are compared with."""
    cost: Cost | None = None
    """Cost of measuring a live run; None for saved checkpoints."""
    judgements: RunJudgements | None = None
    """What the judges that were asked for say about the replies of all checkpoints; None where none was."""
