"""Judges along a series: what each says about the greedy replies of every checkpoint to the test prompts.

A checkpoint's verdicts are stored, its replies are not: a longer series judges only what is new, and agreement is over
all checkpoints. Rates of the whole series are made of them (`series_judgements`), and rows of the tidy table
(`judged_rows`): `refused_by_NAME` and `harmful_by_NAME` by kind of prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from interp.evaluation.judges.agreement import run_judgements
from interp.evaluation.judges.judgements import Judge
from interp.evaluation.judges.loading import LATENT, check_names
from interp.evaluation.judges.records import ReplyVerdicts, RunJudgements
from interp.models.chat_model import ChatModel
from interp.representations.judging import all_judges, reply_verdicts
from interp.storage.reply_records import RecordedReply
from interp.tracking.records import CheckpointRecord
from interp.tracking.spec import TrackingSpec


@dataclass(frozen=True, eq=False, kw_only=True)
class SeriesJudges:
    """The judges of a series."""

    asked: tuple[str, ...]
    """Their names as they were asked for."""
    judges: Sequence[Judge]
    """The judges of these names."""

    def verdicts(self, replies: Sequence[RecordedReply], spec: TrackingSpec) -> ReplyVerdicts:
        """Every judge's verdict on the replies of one checkpoint."""
        return reply_verdicts(replies, self.asked, self.judges, spec.measured_prompts)


def check_judges(judges: Sequence[str], spec: TrackingSpec) -> None:
    """Raise a ValueError unless these are judges, and there are replies for them; nothing is loaded."""
    check_names(judges)
    if judges and "refusal" not in spec.measures:
        raise ValueError("judges read the replies of the measure 'refusal'; add it to measures")


def load_series_judges(
    judges: Sequence[str], spec: TrackingSpec, base: str | ChatModel | None
) -> SeriesJudges | None:
    """The judges of these names; None for no names.

    Args:
        base: model that `latent` reads with, where no other is named.

    Raises:
        ValueError: as `check_judges`, or a judge that cannot be loaded.
    """
    check_judges(judges, spec)
    if not judges:
        return None
    named = [f"{LATENT}={base}" if each == LATENT and isinstance(base, str) else each for each in judges]
    model = base if isinstance(base, ChatModel) else None
    return SeriesJudges(
        asked=tuple(judges), judges=all_judges(named, model=model, prompts=spec.measured_prompts)
    )


def series_judgements(checkpoints: Sequence[CheckpointRecord]) -> RunJudgements | None:
    """What judges say about the replies of a series, each checkpoint an arm; None where none was asked."""
    parts = {c.label: c.verdicts for c in checkpoints if c.verdicts is not None}
    if not parts:
        return None
    every = list(parts.values())
    return run_judgements(
        replace(
            every[0],
            ids=tuple(f"{label}/{name}" for label, each in parts.items() for name in each.ids),
            arms=tuple(label for label, each in parts.items() for _ in each.ids),
            groups=tuple(group for each in every for group in each.groups),
            refused=_joined([each.refused for each in every]),
            harmful=_joined([each.harmful for each in every]),
            left_out=sum(each.left_out for each in every),
        )
    )


def _joined(
    parts: Sequence[Mapping[str, tuple[bool | None, ...]]],
) -> dict[str, tuple[bool | None, ...]]:
    return {name: tuple(said for part in parts for said in part[name]) for name in parts[0]}
