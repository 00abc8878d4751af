"""Activations of one set of prompts over several workers, into one file.

    store_shared(ModelSource("smollm2-safe"), prompts, "acts.safetensors", workers=Workers(count=2))

One worker plans the passes of the whole set, as one process would run them; a part is a few of these passes. Every pass
has the same prompts in it as in one process, so that the file is the same to the byte on a CPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.display.progress import progress
from interp.engine.activation_files import FileHead, StoredActivations, file_head, write_batches
from interp.engine.activations import Batch, activation_batches, planned_batches
from interp.engine.ray import Pool, open_workers
from interp.engine.ray_cluster import Workers
from interp.engine.reads import Request, requested
from interp.models.chat_model import ChatModel, load_source
from interp.models.layers import Layers
from interp.models.sites import Sites
from interp.models.sources import ModelSource
from interp.models.tokens import ChatTokens, Positions, tokenize

_PART_BYTES = 32 * 2**20
"""Activations of a part, which are sent back at once; a single pass may have more."""
_PART_PASSES = 16
"""Passes of a part at most, so that a lost worker costs little."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Wanted:
    """What is collected, before a model is there to resolve it."""

    source: ModelSource
    prompts: Any
    system: str | None
    sites: Sites
    layers: Layers
    positions: Positions

    def opened(self) -> "_Opened":
        model = load_source(self.source)
        tokens, request = requested(
            model,
            tokenize(model.tokenizer, self.prompts, system=self.system),
            self.sites,
            self.layers,
            self.positions,
        )
        return _Opened(model=model, tokens=tokens, request=request)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Opened:
    """The state of a worker."""

    model: ChatModel
    tokens: ChatTokens
    request: Request


@dataclass(frozen=True, eq=False, kw_only=True)
class _Plan:
    head: FileHead
    batches: list[list[int]]


def store_shared(
    source: ModelSource,
    prompts: Any,
    path: str | Path,
    *,
    workers: Workers,
    system: str | None = None,
    sites: Sites = "resid_pre",
    layers: Layers = None,
    positions: Positions = ("t_inst", "t_post_inst"),
    show_progress: bool = False,
) -> StoredActivations:
    """The file that `store_activations` writes, computed by several workers.

    Args:
        source: the model, by name.
        prompts: instructions or conversations, as `tokenize` takes them.
        system: system message.

    Raises:
        ValueError: as `store_activations`, or workers that cannot be had.
        OSError: as `store_activations`, or a worker that is lost again and again.
    """
    wanted = _Wanted(
        source=source, prompts=prompts, system=system, sites=sites, layers=layers, positions=positions
    )
    with open_workers(wanted.opened, workers) as pool:
        plan = next(pool.in_order(_planned, [None]))
        computed = progress(
            _computed(pool, plan),
            total=plan.head.shape[0],
            label="collecting activations",
            show=show_progress,
            size=lambda batch: len(batch[0]),
        )
        return write_batches(Path(path), plan.head, computed)


def _planned(opened: _Opened, _part: None) -> _Plan:
    return _Plan(
        head=file_head(opened.model, opened.tokens, opened.request),
        batches=planned_batches(opened.model, opened.tokens, opened.request),
    )


def _computed(pool: Pool[_Opened], plan: _Plan) -> Iterator[Batch]:
    for _, batches in pool.map(_run, grouped(plan.batches, bytes_a_row=plan.head.bytes_a_prompt)):
        yield from batches


def grouped(batches: Sequence[list[int]], *, bytes_a_row: int) -> Iterator[list[list[int]]]:
    """The passes in parts: at least one, and as many as come back together."""
    part: list[list[int]] = []
    for rows in batches:
        size = bytes_a_row * (len(rows) + sum(map(len, part)))
        if part and (size > _PART_BYTES or len(part) == _PART_PASSES):
            yield part
            part = []
        part.append(rows)
    if part:
        yield part


@torch.no_grad()
def _run(opened: _Opened, planned: list[list[int]]) -> list[Batch]:
    return [
        (rows, {site: value.cpu() for site, value in batch.items()})
        for rows, batch in activation_batches(opened.model, opened.tokens, opened.request, planned=planned)
    ]
