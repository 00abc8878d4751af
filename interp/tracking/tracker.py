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
is killed, or started again with further checkpoints, measures none of them twice. `ElasticityCallback` tracks a live
model.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.data.prompt_sets import PAIRED_KINDS
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.provenance import ModelProvenance
from interp.storage.run_folders import read_header, result_file
from interp.storage.stages import StageCache, Stages, open_stages
from interp.tracking.callback import ElasticityCallback
from interp.tracking.checkpoints import Checkpoint, Named, Series, find_series, step_unit
from interp.tracking.measures import (
    distributions,
    kl_per_token,
    measure,
    measurement,
    sample,
)
from interp.tracking.records import CheckpointRecord, Measurement, ReferenceRecord, TrackRecord
from interp.tracking.references import fit_reference, keep_reference
from interp.tracking.report import NAME
from interp.tracking.series import CheckpointLoader
from interp.tracking.spec import Reference, TrackingSpec
from interp.tracking.trajectory import Trajectory, assemble

logger = logging.getLogger(__name__)

__all__ = ["ElasticityCallback", "TrackingSpec", "Trajectory", "measure_series", "track"]


def track(
    checkpoints: "Sequence[Named] | Named",
    spec: TrackingSpec | None = None,
    *,
    base: str | ChatModel | None = None,
    reference: "Named | None" = None,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Trajectory:
    """Measure every checkpoint of a series; one that cannot be measured is skipped and recorded with the reason.

    Args:
        checkpoints: see `interp.tracking.checkpoints`.
        spec: measures, prompts and corpora; None is the default `TrackingSpec()`.
        base: model that adapters belong to, by name or loaded; None takes the one that each names.
        reference: a label of the series, or another checkpoint; None is the first of the series that loads.
        out: run folder; finished checkpoints are stored beside it until the run is complete.
        show_progress: draw a progress bar.

    Raises:
        ValueError: no such checkpoint, or no reference that can be measured.
    """
    spec = spec or TrackingSpec()
    series = find_series(checkpoints, reference=reference, base=base)
    finished = _finished(out, spec)
    with open_stages(out, key={"experiment": NAME, **spec.key}, show_progress=show_progress) as stages:
        record = measure_series(series, spec, stages, base=base, finished=finished)
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
) -> TrackRecord:
    """The measurements of `track`, inside a run whose stages are open.

    Args:
        base: base of the adapters; a loaded model is reused.
        finished: an earlier run by the same spec, whose checkpoints are reused if its reference is one of this
            series' candidates.

    Raises:
        ValueError: as for `track`.
    """
    if finished is not None and finished.reference.fingerprint not in series.reference_fingerprints:
        logger.warning("the stored run has another reference; measuring all checkpoints again")
        finished = None
    known = {} if finished is None else {c.fingerprint: c for c in finished.checkpoints if c.measured}
    if finished is not None and all(c.fingerprint in known for c in series.checkpoints):
        return _assembled(series, known, finished.reference, finished.provenance.model, spec)

    # 1. The reference.
    loader = CheckpointLoader(base if isinstance(base, ChatModel) else None)
    cache = StageCache(stages.workspace("series") / "parts", spec.key)
    run = _choose_reference(series.references, spec, loader, cache)
    if finished is not None and finished.reference.fingerprint != run.chosen.fingerprint:
        known = {}

    # 2. Every checkpoint by itself. 3. The reference on the checkpoints' samples.
    todo = [checkpoint for checkpoint in series.checkpoints if checkpoint.fingerprint not in known]
    measured = {
        checkpoint.fingerprint: _measure_checkpoint(run, checkpoint)
        for checkpoint in stages.progress(todo, "checkpoints")
    }
    measured = _with_kl_to_reference(run, todo, measured)
    if not known and not any(checkpoint.measured for checkpoint in measured.values()):
        raise ValueError(
            f"no checkpoint could be measured; the first: {measured[series.checkpoints[0].fingerprint].status}"
        )

    # 4. The series.
    record = ReferenceRecord(
        label=run.chosen.label, fingerprint=run.chosen.fingerprint, facts=run.reference.facts
    )
    return _assembled(series, known | measured, record, run.reference.model, spec)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    """The spec, reference and cache that every checkpoint of a series is measured with."""

    spec: TrackingSpec
    chosen: Checkpoint
    """The reference's checkpoint."""
    reference: Reference
    loader: CheckpointLoader
    cache: StageCache
    """Finished parts: the reference, its weights, measurements, and samples to be scored by the reference."""

    def name(self, part: str, checkpoint: Checkpoint | None = None) -> str:
        """Cache key of a part of a checkpoint measured against this reference, or of the reference itself."""
        return "-".join([part, *(c.fingerprint[:16] for c in (self.chosen, checkpoint) if c is not None)])


def _choose_reference(
    candidates: Sequence[Checkpoint], spec: TrackingSpec, loader: CheckpointLoader, cache: StageCache
) -> _Run:
    """Fit the reference on the first candidate for which that is possible.

    Raises:
        ValueError: no candidate can be the reference.
    """
    reasons = []
    for checkpoint in candidates:
        key = checkpoint.fingerprint[:16]

        def fit(checkpoint: Checkpoint = checkpoint, key: str = key) -> Reference:
            with loader.open(checkpoint) as model:
                if "weights" in spec.measures:
                    cache.put(f"weights-{key}", block_weights(model))
                return fit_reference(model, spec)

        try:
            reference = keep_reference(cache, f"reference-{key}", fit)
            return _Run(spec=spec, chosen=checkpoint, reference=reference, loader=loader, cache=cache)
        except ValueError as error:
            reasons.append(f"{checkpoint.label}: {error}")
            logger.warning("%s cannot be the reference: %s", checkpoint.label, error)
    raise ValueError(f"no checkpoint can be the reference; {reasons[0]}")


def _measure_checkpoint(run: _Run, checkpoint: Checkpoint) -> CheckpointRecord:
    """All measurements of a checkpoint but KL on its own samples, from the cache where they are finished."""
    record = CheckpointRecord(
        label=checkpoint.label, step=checkpoint.step, fingerprint=checkpoint.fingerprint
    )

    def compute() -> CheckpointRecord:
        begun = time.perf_counter()
        with run.loader.open(checkpoint) as model:
            rows = measure(model, run.spec, run.reference)
            if "weights" in run.spec.measures:
                with run.cache.open_tensors(run.name("weights")) as reference:
                    rows += weight_change(model, reference)
            if "kl" in run.spec.measures:
                _leave_samples(run, checkpoint, model)
        return replace(record, rows=tuple(rows), seconds=round(time.perf_counter() - begun, 2))

    try:
        return run.cache.keep(run.name("rows", checkpoint), compute, CheckpointRecord)
    except ValueError as error:
        logger.warning("%s was skipped: %s", checkpoint.label, error)
        return replace(record, status=" ".join(str(error).split()))


def block_weights(model: ChatModel) -> dict[str, Tensor]:
    """Parameters of every block, by block and name."""
    return {
        f"{number}.{name}": value
        for number, block in enumerate(model.blocks)
        for name, value in block.module.named_parameters()
    }


@torch.no_grad()
def weight_change(model: ChatModel, reference: Any) -> list[Measurement]:
    """Relative norm of the weight change, per block and for all blocks together (layer None).

    Exact: the interval is the value.

    Args:
        reference: `block_weights` of the reference as `safetensors.safe_open` gives them, one tensor at a time.
    """
    changed, norm = torch.zeros(model.n_layers).double(), torch.zeros(model.n_layers).double()
    counts = [0] * model.n_layers
    for key, value in block_weights(model).items():
        number = int(key.split(".", 1)[0])
        before = reference.get_tensor(key)
        changed[number] += (value.to("cpu", before.dtype) - before).double().square().sum()
        norm[number] += before.double().square().sum()
        counts[number] += value.numel()
    ratios = [*(changed / norm).sqrt().tolist(), float((changed.sum() / norm.sum()).sqrt())]
    layers: list[int | None] = [*range(model.n_layers), None]
    return [
        measurement(
            "weight_change",
            None,
            Estimate(value=ratio, n=n, low=ratio, high=ratio, interval="exact"),
            layer=layer,
        )
        for ratio, n, layer in zip(ratios, [*counts, sum(counts)], layers, strict=True)
    ]


def _leave_samples(run: _Run, checkpoint: Checkpoint, model: ChatModel) -> None:
    """Store the checkpoint's own samples and log-probabilities, to be scored by the reference later."""
    replies = {kind: sample(model, run.spec, kind) for kind in PAIRED_KINDS}
    run.cache.put(run.name("samples", checkpoint), replies)
    run.cache.put(
        run.name("distributions", checkpoint),
        {kind: distributions(model, run.spec, kind, replies[kind]) for kind in PAIRED_KINDS},
    )


def _with_kl_to_reference(
    run: _Run, todo: Sequence[Checkpoint], measured: dict[str, CheckpointRecord]
) -> dict[str, CheckpointRecord]:
    """The records with KL(checkpoint || reference) on the checkpoints' own samples; opens the reference once."""
    waiting = [checkpoint for checkpoint in todo if measured[checkpoint.fingerprint].measured]
    if "kl" not in run.spec.measures or not waiting:
        return measured
    finished = dict(measured)
    if any(run.name("kl", checkpoint) not in run.cache for checkpoint in waiting):
        with run.loader.open(run.chosen) as reference:
            for checkpoint in waiting:
                run.cache.keep(
                    run.name("kl", checkpoint),
                    lambda c=checkpoint: _kl_to_reference(run, reference, c),
                    tuple[Measurement, ...],
                )
                run.cache.drop(run.name("distributions", checkpoint))  # large and no longer needed
    for checkpoint in waiting:
        before = measured[checkpoint.fingerprint]
        rows = run.cache.get(run.name("kl", checkpoint), tuple[Measurement, ...])
        finished[checkpoint.fingerprint] = replace(before, rows=(*before.rows, *rows))
    return finished


def _kl_to_reference(run: _Run, reference: ChatModel, checkpoint: Checkpoint) -> tuple[Measurement, ...]:
    """KL(checkpoint || reference) per token on the checkpoint's own samples."""
    replies = run.cache.get(run.name("samples", checkpoint), dict[str, list[list[int]]])
    log_p = run.cache.get(run.name("distributions", checkpoint))
    return tuple(
        measurement(
            "kl_to_reference", kind, kl_per_token(reference, run.spec, kind, replies[kind], log_p[kind])
        )
        for kind in PAIRED_KINDS
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
