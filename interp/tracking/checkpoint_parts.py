"""The parts of a series that are computed one by one, in this process or in a worker (`interp.engine.ray`).

| part | opens | gives |
|---|---|---|
| `fitted` | a candidate for the reference | the `Reference` |
| `measured` | a checkpoint | its rows, and its own samples with their log-probabilities |
| `kl_to_reference` | the reference | KL(checkpoint || reference) on those samples |

No part writes to the run's folder: `interp.tracking.tracker` stores what they give. Each process has a `SeriesModels`,
which keeps a model and the reference's weights between parts.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.data.prompt_sets import PAIRED_KINDS
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.reply_records import RecordedReply, recording
from interp.storage.stages import StageCache
from interp.tracking.checkpoints import Checkpoint
from interp.tracking.measures import distributions, kl_per_token, measure, measurement, sample
from interp.tracking.records import Measurement
from interp.tracking.references import fit_reference
from interp.tracking.series import CheckpointLoader
from interp.tracking.spec import Reference, TrackingSpec


class SeriesModels:
    """The models that one process has open, one at a time, and the reference's weights on its disk.

    Args:
        base: base of the adapters that is already loaded.
        cache: keeps the reference's weights for a run that continues; None puts them where the system reclaims them
            when the process ends, however it ends.
    """

    def __init__(self, base: ChatModel | None = None, cache: StageCache | None = None) -> None:
        self.loader = CheckpointLoader(base)
        self._cache = cache
        self._weights: tuple[str, Any] | None = None

    def keep_weights(self, checkpoint: Checkpoint, model: ChatModel) -> None:
        """Write the weights of an open checkpoint, to be compared with later ones."""
        name = _weights_name(checkpoint)
        if self._cache is not None:
            self._cache.put(name, block_weights(model))
            return
        with tempfile.TemporaryDirectory(prefix="interp-", ignore_cleanup_errors=True) as folder:
            cache = StageCache(Path(folder) / "weights", {})
            cache.put(name, block_weights(model))
            # The folder goes now, the file when nothing has it open: a killed worker leaves none behind.
            self._weights = name, cache.open_tensors(name).__enter__()

    @contextmanager
    def weights(self, checkpoint: Checkpoint) -> Iterator[Any]:
        """The stored weights of a checkpoint, open (`safetensors.safe_open`); written first where there are none."""
        name = _weights_name(checkpoint)
        if not self._has_weights(name):
            with self.loader.open(checkpoint) as model:
                self.keep_weights(checkpoint, model)
        if self._cache is not None:
            with self._cache.open_tensors(name) as tensors:
                yield tensors
        else:
            assert self._weights is not None
            yield self._weights[1]

    def _has_weights(self, name: str) -> bool:
        if self._cache is not None:
            return name in self._cache
        return self._weights is not None and self._weights[0] == name


def _weights_name(checkpoint: Checkpoint) -> str:
    return f"weights-{checkpoint.fingerprint[:16]}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """What every checkpoint of a series is measured with."""

    spec: TrackingSpec
    """Measures, prompts and corpora."""
    chosen: Checkpoint
    """The reference's checkpoint."""
    reference: Reference
    """What it fixes for all checkpoints."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """A checkpoint's own replies, to be scored by the reference."""

    replies: dict[str, list[list[int]]]
    """Token ids, by kind of prompt."""
    log_probs: dict[str, Tensor]
    """Log-probabilities at every token of the replies, by kind of prompt."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What is measured at one checkpoint."""

    rows: tuple[Measurement, ...]
    """All measurements but KL on its own samples."""
    seconds: float
    """Seconds that loading and measuring it took."""
    samples: Samples | None
    """Its own samples; None where KL is not measured."""
    replies: tuple[RecordedReply, ...]
    """Its greedy replies to test prompts, for judges; empty where the measure `refusal` is not taken."""


def fitted(models: SeriesModels, checkpoint: Checkpoint, spec: TrackingSpec) -> Reference:
    """The reference that this checkpoint gives.

    Raises:
        ValueError: it cannot be loaded, or cannot be the reference.
    """
    with models.loader.open(checkpoint) as model:
        if "weights" in spec.measures:
            models.keep_weights(checkpoint, model)
        return fit_reference(model, spec)


def measured(models: SeriesModels, checkpoint: Checkpoint, against: Comparison) -> Measured | str:
    """The measurements of a checkpoint, or why it cannot be measured."""
    begun = time.perf_counter()
    spec = against.spec
    try:
        weights = models.weights(against.chosen) if "weights" in spec.measures else nullcontext()
        with weights as before, models.loader.open(checkpoint) as model:
            with recording() as recorded:
                rows = measure(model, spec, against.reference)
            rows += [] if before is None else weight_change(model, before)
            samples = own_samples(model, spec)
    except ValueError as error:
        return " ".join(str(error).split())
    return Measured(
        rows=tuple(rows),
        seconds=round(time.perf_counter() - begun, 2),
        samples=samples,
        replies=tuple(recorded.replies) if "refusal" in spec.measures else (),
    )


def own_samples(model: ChatModel, spec: TrackingSpec) -> Samples | None:
    """The model's own samples; None where KL is not measured."""
    if "kl" not in spec.measures:
        return None
    replies = {kind: sample(model, spec, kind) for kind in PAIRED_KINDS}
    log_probs = {kind: distributions(model, spec, kind, replies[kind]) for kind in PAIRED_KINDS}
    return Samples(replies={**replies}, log_probs={**log_probs})


def kl_to_reference(models: SeriesModels, samples: Samples, against: Comparison) -> tuple[Measurement, ...]:
    """KL(checkpoint || reference) per token on the checkpoint's own samples."""
    with models.loader.open(against.chosen) as reference:
        return tuple(
            measurement(
                "kl_to_reference",
                kind,
                kl_per_token(reference, against.spec, kind, samples.replies[kind], samples.log_probs[kind]),
            )
            for kind in PAIRED_KINDS
        )


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
