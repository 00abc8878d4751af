"""The same measurements along a series of checkpoints.

    trajectory = track("runs/sft", base="smollm2", out="runs/track")      # checkpoint-* inside, by step
    trajectory.of("refusal_rate", "harmful")

Steps (`track`):

1. find the checkpoints (`interp.tracking.series`) and fit the reference, the first of them unless named
   (`interp.tracking.references`);
2. open one checkpoint at a time and measure it (`interp.tracking.spec`), its weights against the reference's, block
   by block;
3. open the reference once more for KL(checkpoint || reference) on the samples that the checkpoints left;
4. put the rows together (`interp.tracking.trajectory`).

Every finished checkpoint is kept in `<out>.parts` at once, and found again in a finished `<out>`, so a run that is
killed, or started again with further checkpoints, measures none of them twice. `ElasticityCallback` does the same on a
live model.
"""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from interp.display.progress import progress
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.untyped import Parts, load_result
from interp.tracking.callback import ElasticityCallback
from interp.tracking.measures import Row, as_records, distributions, kl_per_token, measure, sample
from interp.tracking.references import fit_reference, load_reference
from interp.tracking.series import Checkpoint, Shelf, find_checkpoints, step_unit
from interp.tracking.spec import Probe, Reference
from interp.tracking.trajectory import Measured, Trajectory, assemble

logger = logging.getLogger(__name__)

__all__ = ["ElasticityCallback", "Probe", "Trajectory", "track"]

_SAMPLED = ("harmful", "harmless")


def track(
    checkpoints: Sequence[str | Path | ChatModel] | str | Path | ChatModel,
    probe: Probe | None = None,
    *,
    base: str | ChatModel | None = None,
    reference: str | Path | ChatModel | None = None,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Trajectory:
    """Measure every checkpoint of a series; one that cannot be measured is named, skipped and has a row that says so.

    Args:
        checkpoints: see `interp.tracking.series`.
        probe: what to measure; None is the default probe.
        base: model that adapters belong to, by name or loaded; None takes the one that each names.
        reference: a label of the series, or a further checkpoint; None is the first of the series that loads.
        out: run folder; finished checkpoints are kept beside it until the run is whole.
        show_progress: draw a progress bar.

    Raises:
        ValueError: no such checkpoint, a reference that cannot be measured, or none that can.
    """
    probe = probe or Probe()
    loaded, base = (base, base.source) if isinstance(base, ChatModel) else (None, base)
    found = find_checkpoints(checkpoints, base=base)
    candidates = _candidates(found, reference, base)
    known = _known(out, probe, candidates)
    if known is not None and all(c.fingerprint in known.rows for c in found):
        return _saved(_assembled(found, known.rows, known.facts, probe), out)
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "track"
        parts = Parts(folder, probe.provenance)
        run = _Run(probe, parts, Shelf(loaded))
        chosen = run.choose(candidates)
        rows = (
            dict(known.rows) if known is not None and known.facts["fingerprint"] == chosen.fingerprint else {}
        )
        todo = [c for c in found if c.fingerprint not in rows]
        for checkpoint in progress(todo, total=len(todo), label="checkpoints", show=show_progress):
            rows[checkpoint.fingerprint] = run.measure(checkpoint)
        run.finish_kl(chosen, todo, rows)
        if all(entry.status != "ok" for entry in rows.values()):
            raise ValueError(
                f"no checkpoint could be measured; the first: {rows[found[0].fingerprint].status}"
            )
        trajectory = _saved(_assembled(found, rows, run.facts(chosen), probe), out)
        parts.discard()
    return trajectory


def _candidates(
    found: Sequence[Checkpoint], reference: str | Path | ChatModel | None, base: str | None
) -> list[Checkpoint]:
    """What may be the reference, best first."""
    if reference is None:
        return list(found)
    named = [checkpoint for checkpoint in found if checkpoint.label == str(reference)]
    if not named:
        named = find_checkpoints(reference, base=base)
    if len(named) != 1:
        raise ValueError(
            f"the reference {reference} stands for {len(named)} checkpoints; name one of "
            f"{', '.join(checkpoint.label for checkpoint in named)}"
        )
    return named


class _Known:
    """Rows of a finished run under the same probe, by fingerprint."""

    def __init__(self, trajectory: Trajectory, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        by_index: dict[int, list[Mapping[str, Any]]] = {}
        for row in trajectory.numbers["rows"]:
            kept = {key: value for key, value in row.items() if key not in ("checkpoint", "index", "step")}
            by_index.setdefault(row["index"], []).append(kept)
        self.rows = {
            entry["fingerprint"]: Measured(
                label=entry["label"],
                step=entry["step"],
                fingerprint=entry["fingerprint"],
                rows=tuple(by_index[entry["index"]]),
                seconds=entry["seconds"],
            )
            for entry in trajectory.checkpoints
            if entry["status"] == "ok"
        }


def _known(out: str | Path | None, probe: Probe, candidates: Sequence[Checkpoint]) -> _Known | None:
    if out is None or not (Path(out) / "result.json").is_file():
        return None
    if load_result(out).numbers.get("experiment") != "track":
        raise ValueError(f"{out} holds the run of another experiment; give a new folder")
    stored = Trajectory.load(out)
    fits = stored.provenance.get("probe") == probe.provenance
    if not fits or stored.reference["fingerprint"] not in {c.fingerprint for c in candidates}:
        logger.warning("%s holds a run with another probe or reference; measuring anew", out)
        return None
    model = {
        key: value for key, value in stored.provenance.items() if key not in ("prompts", "probe", "seed")
    }
    return _Known(stored, {**stored.reference, "model": model})


class _Run:
    """One run of `track`: the reference it measures against, and its finished parts."""

    def __init__(self, probe: Probe, parts: Parts, shelf: Shelf) -> None:
        self.probe, self.parts, self.shelf = probe, parts, shelf
        self.reference: Reference
        self.key = ""

    def choose(self, candidates: Sequence[Checkpoint]) -> Checkpoint:
        """Fit the reference on the first candidate that allows it.

        Raises:
            ValueError: none does.
        """
        reasons = []
        for checkpoint in candidates:
            self.key = checkpoint.fingerprint[:16]
            try:
                self.reference = load_reference(
                    self.parts, f"reference-{self.key}", lambda c=checkpoint: self._fit(c)
                )
                return checkpoint
            except ValueError as error:
                reasons.append(f"{checkpoint.label}: {error}")
                logger.warning("%s cannot be the reference: %s", checkpoint.label, error)
        raise ValueError(f"no checkpoint can be the reference; {reasons[0]}")

    def _fit(self, checkpoint: Checkpoint) -> Reference:
        with self.shelf.open(checkpoint) as model:
            if "weights" in self.probe.measures:
                self.parts.tensors(f"weights-{self.key}", lambda: block_weights(model))
            return fit_reference(model, self.probe)

    def facts(self, chosen: Checkpoint) -> dict[str, Any]:
        """The reference's facts with its label and fingerprint."""
        return {**self.reference.facts, "label": chosen.label, "fingerprint": chosen.fingerprint}

    def measure(self, checkpoint: Checkpoint) -> Measured:
        """All rows of a checkpoint but KL against the reference; read when finished before."""
        place = {"label": checkpoint.label, "step": checkpoint.step, "fingerprint": checkpoint.fingerprint}
        begun = time.perf_counter()

        def compute() -> dict[str, Any]:
            with self.shelf.open(checkpoint) as model:
                rows = measure(model, self.probe, self.reference)
                if "weights" in self.probe.measures:
                    rows += weight_change(model, self.parts.folder / f"weights-{self.key}.safetensors")
                if "kl" in self.probe.measures:
                    self._leave_samples(checkpoint, model)
            return {"rows": as_records(rows), "seconds": round(time.perf_counter() - begun, 2)}

        try:
            stored = self.parts.numbers(f"rows-{self._name(checkpoint)}", compute)
        except ValueError as error:
            logger.warning("%s was skipped: %s", checkpoint.label, error)
            return Measured(**place, rows=(), status=" ".join(str(error).split()))
        return Measured(**place, rows=tuple(stored["rows"]), seconds=stored["seconds"])

    def _name(self, checkpoint: Checkpoint) -> str:
        return f"{self.key}-{checkpoint.fingerprint[:16]}"

    def _leave_samples(self, checkpoint: Checkpoint, model: ChatModel) -> None:
        """Keep the checkpoint's own samples and distributions for the reference to be compared on."""
        name = f"samples-{self._name(checkpoint)}"
        replies = self.parts.numbers(name, lambda: {k: sample(model, self.probe, k) for k in _SAMPLED})
        self.parts.tensors(
            name, lambda: {k: distributions(model, self.probe, k, replies[k]) for k in _SAMPLED}
        )

    def finish_kl(self, chosen: Checkpoint, todo: Sequence[Checkpoint], rows: dict[str, Measured]) -> None:
        """Add KL(checkpoint || reference) on the checkpoints' own samples, the reference being opened once for all."""
        waiting = [c for c in todo if rows[c.fingerprint].status == "ok"]
        if "kl" not in self.probe.measures or not waiting:
            return
        with ExitStack() as stack:
            opened: list[ChatModel] = []

            def compute(checkpoint: Checkpoint) -> list[dict[str, Any]]:
                if not opened:
                    opened.append(stack.enter_context(self.shelf.open(chosen)))
                name = f"samples-{self._name(checkpoint)}"
                replies = self.parts.numbers(name, dict)
                log_p = self.parts.tensors(name, dict)
                return as_records(
                    [
                        Row(
                            "kl_to_reference",
                            kind,
                            kl_per_token(opened[0], self.probe, kind, replies[kind], log_p[kind]),
                        )
                        for kind in _SAMPLED
                    ]
                )

            for checkpoint in waiting:
                before = rows[checkpoint.fingerprint]
                further = self.parts.numbers(f"kl-{self._name(checkpoint)}", lambda c=checkpoint: compute(c))
                (self.parts.folder / f"samples-{self._name(checkpoint)}.safetensors").unlink(missing_ok=True)
                rows[checkpoint.fingerprint] = Measured(**{**vars(before), "rows": (*before.rows, *further)})


def block_weights(model: ChatModel) -> dict[str, Tensor]:
    """Parameters of every block, by block and name."""
    return {
        f"{number}.{name}": value
        for number, block in enumerate(model.blocks)
        for name, value in block.module.named_parameters()
    }


@torch.no_grad()
def weight_change(model: ChatModel, reference: Path) -> list[Row]:
    """Norm of each block's change over the norm of the reference's block, and of all blocks together (layer None).

    The reference's weights are read from their file one tensor at a time. Exact: the interval is the value.
    """
    changed, norm = torch.zeros(model.n_layers).double(), torch.zeros(model.n_layers).double()
    counts = [0] * model.n_layers
    with safe_open(str(reference), framework="pt") as stored:
        for key, value in block_weights(model).items():
            number = int(key.split(".", 1)[0])
            before = stored.get_tensor(key)
            changed[number] += (value.to("cpu", before.dtype) - before).double().square().sum()
            norm[number] += before.double().square().sum()
            counts[number] += value.numel()
    ratios = [*(changed / norm).sqrt().tolist(), float((changed.sum() / norm.sum()).sqrt())]
    layers: list[int | None] = [*range(model.n_layers), None]
    return [
        Row("weight_change", None, Estimate(value=ratio, n=n, low=ratio, high=ratio), layer=layer)
        for ratio, n, layer in zip(ratios, [*counts, sum(counts)], layers, strict=True)
    ]


def _assembled(
    found: Sequence[Checkpoint], rows: Mapping[str, Measured], facts: Mapping[str, Any], probe: Probe
) -> Trajectory:
    series = [Measured(**{**vars(rows[c.fingerprint]), "label": c.label, "step": c.step}) for c in found]
    return assemble(series, facts, probe, step_unit=step_unit(found))


def _saved(trajectory: Trajectory, out: str | Path | None) -> Trajectory:
    if out is not None:
        trajectory.save(out)
    return trajectory
