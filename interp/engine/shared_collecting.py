"""Activations of one set of prompts over several workers, into one file.

    store_shared(ModelSource("smollm2-safe"), prompts, "acts.safetensors", workers=Workers(count=2))

One worker plans the passes of the whole set, as one process would run them; a part is a few of these passes. Every pass
has the same prompts in it as in one process, so that the file is the same to the byte on a CPU.

With an activation store each worker reads the rows that it has of its part and runs only the passes in which some are
missing, whose rows it writes: all workers write to one store at once, and a second run computes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.display.progress import progress
from interp.engine.activation_files import FileHead, StoredActivations, file_head, write_batches
from interp.engine.activations import Batch, activation_batches, fast_path_agrees, planned_batches
from interp.engine.ray import Pool, open_workers
from interp.engine.ray_cluster import Workers
from interp.engine.reads import Request, requested
from interp.engine.stored_activations import StoreInput, active_store, opened_store, stored_batches
from interp.models.chat_model import ChatModel, load_source
from interp.models.layers import Layers
from interp.models.sites import Sites
from interp.models.sources import ModelSource
from interp.models.tokens import ChatTokens, Positions, tokenize
from interp.storage.activation_store import ActivationStore
from interp.storage.paths import expanded

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
    store: tuple[str, dict[str, str]] | None

    def opened(self) -> "_Opened":
        model = load_source(self.source)
        tokens, request = requested(
            model,
            tokenize(model.tokenizer, self.prompts, system=self.system),
            self.sites,
            self.layers,
            self.positions,
        )
        store = None if self.store is None else ActivationStore(self.store[0], self.store[1])
        return _Opened(model=model, tokens=tokens, request=request, store=store)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Opened:
    """The state of a worker."""

    model: ChatModel
    tokens: ChatTokens
    request: Request
    store: ActivationStore | None


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
    store: StoreInput = None,
    show_progress: bool = False,
) -> StoredActivations:
    """The file that `store_activations` writes, computed by several workers.

    Args:
        source: the model, by name.
        prompts: instructions or conversations, as `tokenize` takes them.
        system: system message.
        store: activation store that every worker can reach, or where it is; when None, the one of `using_store`.

    Raises:
        ValueError: as `store_activations`, or workers that cannot be had.
        OSError: as `store_activations`, or a worker that is lost again and again.
    """
    opened = active_store() if store is None else opened_store(store)
    wanted = _Wanted(
        source=source,
        prompts=prompts,
        system=system,
        sites=sites,
        layers=layers,
        positions=positions,
        store=None if opened is None else (_place(opened), dict(opened.options)),
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


def _place(store: ActivationStore) -> str:
    """Where it is, for a process in another working folder."""
    return str(expanded(store.url).absolute()) if store.is_local else str(store.url)


@torch.no_grad()
def _run(opened: _Opened, planned: list[list[int]]) -> list[Batch]:
    batches = _passes(opened, planned) if opened.store is None else _stored(opened, opened.store, planned)
    return [(rows, {site: value.cpu() for site, value in batch.items()}) for rows, batch in batches]


def _passes(opened: _Opened, planned: list[list[int]]) -> Iterator[Batch]:
    return activation_batches(opened.model, opened.tokens, opened.request, planned=planned)


def _stored(opened: _Opened, store: ActivationStore, planned: list[list[int]]) -> Iterator[Batch]:
    """The rows of a part: those that the store has, then those of the passes that it lacks, which are stored."""
    model, part = opened.model, [row for rows in planned for row in rows]
    stored = stored_batches(
        store,
        model,
        opened.tokens.take(part),
        opened.request._replace(where=opened.request.where[part]),
        (),
        path="packed" if fast_path_agrees(model, opened.tokens) else "plain",
        purpose="serve",
    )
    if stored is None:
        yield from _passes(opened, planned)
        return

    def compute(missing: list[int]) -> Iterator[Batch]:
        wanted = {part[number]: number for number in missing}
        for rows, batch in _passes(opened, [rows for rows in planned if not wanted.keys().isdisjoint(rows)]):
            lacking = [k for k, row in enumerate(rows) if row in wanted]
            yield (
                [wanted[rows[k]] for k in lacking],
                {site: value[lacking] for site, value in batch.items()},
            )

    for batches in (stored.read(), stored.computed(compute)):
        for numbers, batch in batches:
            yield [part[number] for number in numbers], batch
