"""Scoring a stream of texts with a detector whose model is loaded by name, in this process or in several.

    for line in json_lines(scored(guard, ModelSource("smollm2-safe"), lines, workers=Workers(count=2))):
        print(line)

A part is a chunk of `interp.detectors.detector.CHUNK` texts, which without workers is scored at a time as well, so that
every text has the same score.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from interp.detectors.detector import Finding, in_chunks
from interp.detectors.fitted import FittedDetector
from interp.detectors.machine_text.detector import MachineTextDetector
from interp.engine.ray import open_workers
from interp.engine.ray_cluster import Workers
from interp.models.chat_model import ChatModel, load, load_source
from interp.models.prompt_inputs import GatheredPrompts
from interp.models.sources import ModelSource


class _Models(NamedTuple):
    model: ChatModel
    reference: ChatModel | None


def scored(
    detector: FittedDetector[Any] | MachineTextDetector,
    source: ModelSource,
    texts: Iterator[str],
    *,
    reference: str | None = None,
    workers: Workers | None = None,
) -> Iterator[Finding]:
    """What the detector finds in each text, in order; a chunk is read when a worker is free for it.

    Args:
        source: the model that the detector was fitted on.
        reference: name of the second model, for a detector of machine-written text that has one.
        workers: processes that load the model and score a chunk each; None is this process.

    Raises:
        ValueError: another model than the detector was fitted on, or workers that cannot be had.
    """
    with open_workers(partial(_load, source, reference), workers) as pool:
        for findings in pool.in_order(partial(_score, detector), in_chunks(texts)):
            yield from findings


def _load(source: ModelSource, reference: str | None) -> _Models:
    model = load_source(source)
    return _Models(
        model, None if reference is None else load(reference, dtype=model.dtype, device=str(model.device))
    )


def _score(
    detector: FittedDetector[Any] | MachineTextDetector, models: _Models, chunk: GatheredPrompts
) -> list[Any]:
    if isinstance(detector, MachineTextDetector):
        return detector.score_chunk(models.model, chunk, reference=models.reference)
    return detector.score_chunk(models.model, chunk)
