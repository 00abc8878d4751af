"""The same measurements along a series of checkpoints.

    trajectory = track("runs/sft", base="smollm2", out="runs/track")      # checkpoint-* inside, by step
    trajectory.of("refusal_rate", "harmful")

Steps (`measure_series`):

1. fit the reference, the first checkpoint of the series unless one is named (`interp.tracking.references`);
2. open one checkpoint at a time and measure it (`interp.tracking.measures`), its weights against the reference's, block
   by block;
3. open the reference once more for KL(checkpoint || reference) on the checkpoints' stored samples;
4. assemble the record (`interp.tracking.trajectory`).

Every finished checkpoint is stored in `<out>.parts` immediately, and reused from a finished `<out>`, so that a run that
is killed, or started again with further checkpoints, measures none of them twice. With `workers` several checkpoints
are measured at a time (`interp.engine.ray`). `ElasticityCallback` tracks a live model.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from interp.engine.ray import Pool, open_workers
from interp.engine.ray_cluster import Workers
from interp.evaluation.judges.records import ReplyVerdicts
from interp.models.chat_model import ChatModel
from interp.storage.provenance import ModelProvenance
from interp.storage.reply_records import RecordedReply, recorder, recording
from interp.storage.run_folders import read_header, result_file
from interp.storage.stages import StageCache, Stages, open_stages
from interp.tracking.callback import ElasticityCallback
from interp.tracking.checkpoint_parts import (
    Comparison,
    Measured,
    Samples,
    SeriesModels,
    fitted,
    kl_to_reference,
    measured,
)
from interp.tracking.checkpoints import Checkpoint, Named, Series, find_series, step_unit
from interp.tracking.judged_replies import SeriesJudges, check_judges, load_series_judges
from interp.tracking.records import CheckpointRecord, Measurement, ReferenceRecord, TrackRecord
from interp.tracking.references import keep_reference
from interp.tracking.report import NAME
from interp.tracking.spec import TrackingSpec
from interp.tracking.trajectory import Trajectory, assemble

logger = logging.getLogger(__name__)
_REPLIES = tuple[RecordedReply, ...]

__all__ = ["ElasticityCallback", "TrackingSpec", "Trajectory", "measure_series", "track"]


def track(
    checkpoints: "Sequence[Named] | Named",
    spec: TrackingSpec | None = None,
    *,
    base: str | ChatModel | None = None,
    reference: "Named | None" = None,
    out: str | Path | None = None,
    judges: Sequence[str] = (),
    workers: Workers | None = None,
    show_progress: bool = False,
) -> Trajectory:
    """Measure every checkpoint of a series; one that cannot be measured is skipped and recorded with the reason.

    Args:
        checkpoints: see `interp.tracking.checkpoints`.
        spec: measures, prompts and corpora; None is the default `TrackingSpec()`.
        base: model that adapters belong to, by name or loaded; None takes the one that each names.
        reference: a label of the series, or another checkpoint; None is the first of the series that loads.
        out: run folder; finished checkpoints are stored beside it until the run is complete.
        judges: names of judges (`interp.evaluation.judges.loading`) that also judge the greedy replies of every
            checkpoint; `latent` reads with `base` where no model is named.
        workers: processes that measure a checkpoint each; None measures one after the other in this process.
        show_progress: draw a progress bar.

    Raises:
        ValueError: no such checkpoint, no reference that can be measured, an unknown judge or one without replies,
            or workers that cannot be had or for which a checkpoint is in memory alone.
    """
    spec = spec or TrackingSpec()
    check_judges(judges, spec)
    series = find_series(checkpoints, reference=reference, base=base)
    finished = _finished(out, spec)
    chosen = load_series_judges(judges, spec, base)
    with open_stages(out, key={"experiment": NAME, **spec.key}, show_progress=show_progress) as stages:
        record = measure_series(
            series, spec, stages, base=base, finished=finished, judges=chosen, workers=workers
        )
        trajectory = Trajectory(record)
        if out is not None:
            trajectory.save(out)
    return trajectory


def _finished(out: str | Path | None, spec: TrackingSpec) -> TrackRecord | None:
    """The record stored in `out`, if it was measured by the same spec.

    Raises:
        ValueError: `out` holds the run of another experiment, or a damaged one.
    """
    if out is None or result_file(out) is None:
        return None
    if read_header(out).experiment != NAME:
        raise ValueError(f"{out} holds the run of another experiment; give a new folder")
    record = Trajectory.load(out).record
    if not spec.measured_as(record):
        logger.warning("%s holds a run with another spec; measuring all checkpoints again", out)
        return None
    return record


def measure_series(
    series: Series,
    spec: TrackingSpec,
    stages: Stages,
    *,
    base: str | ChatModel | None = None,
    finished: TrackRecord | None = None,
    judges: SeriesJudges | None = None,
    workers: Workers | None = None,
) -> TrackRecord:
    """The measurements of `track`, inside a run whose stages are open.

    Args:
        base: base of the adapters; a loaded model is reused.
        finished: an earlier run by the same spec, whose checkpoints are reused if its reference is one of this
            series' candidates, and the same judges judged them where any are given.
        judges: judges of the greedy replies; None asks none.
        workers: as for `track`.

    Raises:
        ValueError: as for `track`.
    """
    if workers is not None:
        _check_sendable(series, base)
        workers.check()
    if finished is not None and finished.reference.fingerprint not in series.reference_fingerprints:
        logger.warning("the stored run has another reference; measuring all checkpoints again")
        finished = None
    known = {} if finished is None else _known(finished, judges)
    if finished is not None and all(c.fingerprint in known for c in series.checkpoints):
        return _assembled(series, known, finished.reference, finished.provenance.model, spec)

    cache = StageCache(stages.workspace("series") / "parts", spec.key)
    here = partial(SeriesModels, base if isinstance(base, ChatModel) else None, cache)
    outer = recorder()  # gets the greedy replies of checkpoints, measured now or read, and no others
    with recording(), open_workers(here if workers is None else SeriesModels, workers) as pool:
        # 1. The reference.
        against = _choose_reference(series.references, spec, pool, cache)
        if finished is not None and finished.reference.fingerprint != against.chosen.fingerprint:
            known = {}

        # 2. Every checkpoint by itself. 3. The reference on the checkpoints' samples.
        run = _Run(against, pool, cache, stages, judges)
        todo = [checkpoint for checkpoint in series.checkpoints if checkpoint.fingerprint not in known]
        records = run.measured(todo)
        if outer is not None:
            outer.replies += run.replies([c for c in todo if records[c.fingerprint].measured])
        records = run.with_kl_to_reference(todo, records)
    if not known and not any(record.measured for record in records.values()):
        raise ValueError(
            f"no checkpoint could be measured; the first: {records[series.checkpoints[0].fingerprint].status}"
        )

    # 4. The series.
    record = ReferenceRecord(
        label=against.chosen.label,
        fingerprint=against.chosen.fingerprint,
        facts=against.reference.facts,
    )
    return _assembled(series, known | records, record, against.reference.model, spec)


def _known(finished: TrackRecord, judges: SeriesJudges | None) -> dict[str, CheckpointRecord]:
    """The checkpoints of an earlier run that need not be measured again, by fingerprint."""
    measured = {c.fingerprint: c for c in finished.checkpoints if c.measured}
    if judges is None:
        return {fingerprint: replace(c, verdicts=None) for fingerprint, c in measured.items()}
    known = {
        fingerprint: c
        for fingerprint, c in measured.items()
        if c.verdicts is not None and c.verdicts.asked == judges.asked
    }
    if len(known) < len(measured):
        logger.warning(
            "the stored run was not judged by %s; measuring %d checkpoints again",
            ", ".join(judges.asked),
            len(measured) - len(known),
        )
    return known


def _check_sendable(series: Series, base: str | ChatModel | None) -> None:
    """Raise a ValueError where a worker could not load a model by its name."""
    live = [c.label for c in (*series.checkpoints, *series.references) if c.live is not None]
    if isinstance(base, ChatModel):
        live.append(f"the base {base.name}")
    if live:
        raise ValueError(
            f"{live[0]} is a model in this process's memory, which workers cannot load; give its name or folder, or "
            "leave workers out"
        )


def _choose_reference(
    candidates: Sequence[Checkpoint], spec: TrackingSpec, pool: Pool[SeriesModels], cache: StageCache
) -> Comparison:
    """Fit the reference on the first candidate for which that is possible.

    Raises:
        ValueError: no candidate can be the reference.
    """
    reasons = []
    for checkpoint in candidates:
        try:
            reference = keep_reference(
                cache,
                f"reference-{checkpoint.fingerprint[:16]}",
                lambda c=checkpoint: next(pool.in_order(partial(fitted, spec=spec), [c])),
            )
            return Comparison(spec=spec, chosen=checkpoint, reference=reference)
        except ValueError as error:
            reasons.append(f"{checkpoint.label}: {error}")
            logger.warning("%s cannot be the reference: %s", checkpoint.label, error)
    raise ValueError(f"no checkpoint can be the reference; {reasons[0]}")


class _Run:
    """Computes and stores the parts of a series: measurements, and samples to be scored by the reference."""

    def __init__(
        self,
        against: Comparison,
        pool: Pool[SeriesModels],
        cache: StageCache,
        stages: Stages,
        judges: SeriesJudges | None,
    ) -> None:
        self._against, self._pool, self._cache, self._stages = against, pool, cache, stages
        self._judges = judges

    def _name(self, part: str, checkpoint: Checkpoint) -> str:
        """Cache key of a part of a checkpoint measured against this reference."""
        return "-".join([part, *(c.fingerprint[:16] for c in (self._against.chosen, checkpoint))])

    def measured(self, todo: Sequence[Checkpoint]) -> dict[str, CheckpointRecord]:
        """All measurements of the checkpoints but KL on their own samples, from the cache where they are finished."""
        stored = {
            c.fingerprint: record
            for c in todo
            if self._name("replies", c) in self._cache
            and (record := self._cache.whole(self._name("rows", c), CheckpointRecord)) is not None
        }
        missing = list({c.fingerprint: c for c in todo if c.fingerprint not in stored}.values())
        parts = self._pool.map(partial(measured, against=self._against), missing)
        for number, part in self._stages.progress(parts, "checkpoints", total=len(missing)):
            stored[missing[number].fingerprint] = self._stored(missing[number], part)
        return {c.fingerprint: self._judged(c, stored[c.fingerprint]) for c in todo}

    def replies(self, checkpoints: Sequence[Checkpoint]) -> list[RecordedReply]:
        """The greedy replies of measured checkpoints to test prompts, each named after its checkpoint."""
        return [
            replace(reply, stage=checkpoint.label)
            for checkpoint in checkpoints
            for reply in self._cache.get(self._name("replies", checkpoint), _REPLIES)
        ]

    def _judged(self, checkpoint: Checkpoint, record: CheckpointRecord) -> CheckpointRecord:
        """The record with what judges say about the checkpoint's replies, from the cache where they judged them."""
        if self._judges is None or not record.measured:
            return record
        asked = hashlib.sha256("\n".join(self._judges.asked).encode()).hexdigest()[:16]
        name, kind = self._name(f"verdicts-{asked}", checkpoint), ReplyVerdicts
        verdicts = self._cache.whole(name, kind)
        if verdicts is None:
            replies = [replace(reply, stage="") for reply in self.replies([checkpoint])]
            self._cache.put(name, self._judges.verdicts(replies, self._against.spec), kind)
            verdicts = self._cache.get(name, kind)
        return replace(record, verdicts=verdicts)

    def _stored(self, checkpoint: Checkpoint, part: Measured | str) -> CheckpointRecord:
        """The record of a checkpoint; one that was measured is stored, its rows last."""
        record = CheckpointRecord(
            label=checkpoint.label, step=checkpoint.step, fingerprint=checkpoint.fingerprint
        )
        if isinstance(part, str):
            logger.warning("%s was skipped: %s", checkpoint.label, part)
            return replace(record, status=part)
        if part.samples is not None:
            self._cache.put(self._name("samples", checkpoint), part.samples.replies)
            self._cache.put(self._name("distributions", checkpoint), part.samples.log_probs)
        self._cache.put(self._name("replies", checkpoint), part.replies, _REPLIES)
        name = self._name("rows", checkpoint)
        self._cache.put(name, replace(record, rows=part.rows, seconds=part.seconds), CheckpointRecord)
        return self._cache.get(name, CheckpointRecord)

    def with_kl_to_reference(
        self, todo: Sequence[Checkpoint], records: dict[str, CheckpointRecord]
    ) -> dict[str, CheckpointRecord]:
        """The records with KL(checkpoint || reference) on the checkpoints' own samples."""
        if "kl" not in self._against.spec.measures:
            return records
        waiting = {c.fingerprint: c for c in todo if records[c.fingerprint].measured}
        kind = tuple[Measurement, ...]
        missing = [c for c in waiting.values() if self._cache.whole(self._name("kl", c), kind) is None]
        for number, rows in self._pool.map(
            partial(kl_to_reference, against=self._against), map(self._samples, missing)
        ):
            self._cache.put(self._name("kl", missing[number]), rows, kind)
            self._cache.drop(self._name("distributions", missing[number]))  # large and no longer needed
        finished = dict(records)
        for fingerprint, checkpoint in waiting.items():
            rows = self._cache.get(self._name("kl", checkpoint), kind)
            finished[fingerprint] = replace(records[fingerprint], rows=(*records[fingerprint].rows, *rows))
        return finished

    def _samples(self, checkpoint: Checkpoint) -> Samples:
        return Samples(
            replies=self._cache.get(self._name("samples", checkpoint), dict[str, list[list[int]]]),
            log_probs=self._cache.get(self._name("distributions", checkpoint)),
        )


def _assembled(
    series: Series,
    records: dict[str, CheckpointRecord],
    reference: ReferenceRecord,
    model: ModelProvenance | None,
    spec: TrackingSpec,
) -> TrackRecord:
    """The record of the series, with each checkpoint's label and step in this series."""
    named = [replace(records[c.fingerprint], label=c.label, step=c.step) for c in series.checkpoints]
    return assemble(named, reference, model, spec, step_unit=step_unit(series.checkpoints))
