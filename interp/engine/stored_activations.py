"""Collecting through the activation store: what it has is read, what it lacks is computed and stored.

    with using_store("runs/store"):
        collect(model, prompts)            # and everything that collects: states, guards, detectors, tracking

`using_store` is in force in the thread that enters it. Every collection passes through `StoredBatches`, which splits
the prompts into those whose activations are all stored and the others. A store that cannot be written to (a full disk,
a server that is away) costs only what is not stored: the activations are computed as without one, with a warning.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interp.engine.interventions import Intervention
from interp.engine.reads import Request
from interp.engine.store_keys import places_of, table_keys, why_not
from interp.models.chat_model import ChatModel, Site
from interp.models.tokens import ChatTokens
from interp.storage.activation_store import ActivationStore, can_store
from interp.storage.store_cells import Place, row_names
from interp.storage.store_tables import StoreTable

logger = logging.getLogger(__name__)

StoreInput = ActivationStore | str | Path | None
"""A store, or where it is; None and "none" are no store."""
Purpose = Literal["serve", "fill"]
Batch = tuple[list[int], dict[Site, Tensor]]
_BUFFER = 2**26
"""Bytes of activations that are written in one commit."""
_READ = 2**25
"""Bytes that are read at a time."""
DEFAULT_STORE = "runs/store"
"""Where experiments store activations when nothing else is said."""
_store: ContextVar[ActivationStore | Literal["unsaid"] | None] = ContextVar("store", default="unsaid")


def active_store() -> ActivationStore | None:
    """The store in force, if any."""
    store = _store.get()
    return None if store == "unsaid" else store


def opened_store(store: StoreInput) -> ActivationStore | None:
    """The store that is meant, if any.

    Raises:
        ValueError: the extra `scale` is not installed, or what is no place for a store.
    """
    if store is None or isinstance(store, ActivationStore):
        return store
    return None if store == "none" else ActivationStore(store)


@contextmanager
def using_store(store: StoreInput) -> Iterator[ActivationStore | None]:
    """Collections inside the context read from this store and write to it; with None or "none" they use none.

    Raises:
        ValueError: as `opened_store`.
    """
    opened = opened_store(store)
    before = _store.set(opened)
    try:
        yield opened
    finally:
        _store.reset(before)


@contextmanager
def experiment_store(store: StoreInput) -> Iterator[None]:
    """The store of an experiment: the one given, else that of `using_store`, of the environment, or `DEFAULT_STORE`.

    Without the store's format (extra `scale`), `DEFAULT_STORE` is none. `INTERP_STORE` names another one, or `none`.
    """
    if isinstance(store, (str, Path)) and str(store) == DEFAULT_STORE:
        if _store.get() != "unsaid" or not can_store():
            yield
            return
        store = os.environ.get("INTERP_STORE", DEFAULT_STORE)
    with using_store(store):
        yield


class StoredBatches:
    """Batches of one collection through a store: first those that are stored, then the others as they are computed."""

    def __init__(
        self,
        store: ActivationStore,
        model: ChatModel,
        tokens: ChatTokens,
        request: Request,
        interventions: Sequence[Intervention],
        *,
        path: str,
        purpose: Purpose = "serve",
    ) -> None:
        self._store, self._model, self._request = store, model, request
        self._purpose: Purpose = purpose
        self._tokens, self._interventions = tokens, interventions
        self._tables: dict[Site, StoreTable] = {
            site: store.table(key)
            for site, key in table_keys(model, request, interventions, path=path).items()
        }
        n = len(request.roles)
        names = row_names(places_of(tokens, range(len(tokens)), request, interventions))
        self._names = [names[row * n : (row + 1) * n] for row in range(len(tokens))]
        self._addresses = {
            site: table.addresses(names, request.layers).reshape(len(tokens), n, len(request.layers), 2)
            for site, table in self._tables.items()
        }
        there = np.ones(len(tokens), bool)
        for addresses in self._addresses.values():
            there &= (addresses >= 0).all((1, 2, 3))
        self.stored = np.flatnonzero(there).tolist()
        """Prompts that are stored."""
        self.missing = np.flatnonzero(~there).tolist()
        """Prompts that are not, or not whole."""

    def read(self) -> Iterator[Batch]:
        """Stored prompts in batches; those whose content is damaged are moved to `missing` instead."""
        request, d_model = self._request, self._model.d_model
        size = len(request.sites) * len(request.layers) * len(request.roles) * d_model * 4
        step, damaged = max(1, _READ // size), 0
        for start in range(0, len(self.stored), step):
            rows = self.stored[start : start + step]
            sound, values = np.ones(len(rows), bool), dict[Site, Tensor]()
            for site, table in self._tables.items():
                names = [name for row in rows for name in self._names[row]]
                addresses = self._addresses[site][rows].reshape(-1, len(request.layers), 2)
                read, good = table.read(names, request.layers, addresses)
                sound &= good.reshape(len(rows), -1).all(1)
                values[site] = self._as_tensor(read, len(rows))
            whole = np.flatnonzero(sound).tolist()
            damaged += len(rows) - len(whole)
            self.missing += [rows[k] for k in np.flatnonzero(~sound)]
            if whole:
                yield [rows[k] for k in whole], {site: value[whole] for site, value in values.items()}
        if damaged:
            logger.warning(
                "%s: %d stored prompts are damaged; computing them again", self._store.url, damaged
            )

    def _as_tensor(self, read: np.ndarray, n_rows: int) -> Tensor:
        """[layer, prompt and role, d_model] of numpy as [prompt, layer, role, d_model] in the model's dtype."""
        value = torch.from_numpy(read).reshape(len(read), n_rows, len(self._request.roles), -1)
        if self._model.dtype == torch.bfloat16:
            value = value.view(torch.bfloat16)
        return value.transpose(0, 1)

    def computed(self, compute: Callable[[list[int]], Iterator[Batch]]) -> Iterator[Batch]:
        """Batches of the missing prompts, as `compute` gives them for their rows, stored as they pass."""
        if not self.missing:
            return
        writer = _Writer(self._store, self._model, self._request, self._tables, self._purpose)
        try:
            for rows, values in compute(self.missing):
                writer.add(places_of(self._tokens, rows, self._request, self._interventions), values)
                yield rows, values
        finally:  # also after an interrupt: what was computed is stored
            writer.flush()


class _Writer:
    """Activations on their way to the store, written a few tens of MB at a time."""

    def __init__(
        self,
        store: ActivationStore,
        model: ChatModel,
        request: Request,
        tables: dict[Site, StoreTable],
        purpose: Purpose,
    ) -> None:
        self._store, self._model, self._request, self._tables = store, model, request, tables
        self._purpose = purpose
        self._places: list[Place] = []
        self._values: dict[Site, list[Tensor]] = {site: [] for site in tables}
        self._bytes, self._works = 0, True

    def add(self, places: Sequence[Place], values: dict[Site, Tensor]) -> None:
        """Take a batch: values [prompt, layer, role, d_model]."""
        if not self._works:
            return
        self._places += places
        for site, value in values.items():
            held = value.detach().transpose(0, 1).to("cpu", copy=True)
            self._values[site].append(held.flatten(1, 2))
            self._bytes += held.nbytes
        if self._bytes >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what was taken; a failure ends the writing and nothing else."""
        if not self._places or not self._works:
            return
        try:
            for site, table in self._tables.items():
                if not table.exists:
                    made_by = {"model": self._model.name, "adapter": self._model.adapter or ""}
                    self._store.register(table.key, made_by)
                values = torch.cat(self._values[site], 1).contiguous()
                if values.dtype == torch.bfloat16:
                    values = values.view(torch.uint16)
                table.append(self._places, self._request.layers, values.numpy())
        except (OSError, ValueError) as error:
            if self._purpose == "fill":
                raise
            logger.warning("%s; going on without storing activations", error)
            self._works = False
        self._places, self._bytes = [], 0
        self._values = {site: [] for site in self._tables}


def stored_batches(
    store: ActivationStore,
    model: ChatModel,
    tokens: ChatTokens,
    request: Request,
    interventions: Sequence[Intervention],
    *,
    path: str,
    purpose: Purpose,
) -> StoredBatches | None:
    """Batches through a store; None where this model's activations cannot be stored, or the store cannot be read.

    Raises:
        ValueError: in place of None, where the purpose is to fill the store.
    """
    if reason := why_not(model, interventions):
        if purpose == "fill":
            raise ValueError(f"activations of {model.name} cannot be stored: {reason}")
        logger.info("activations of %s are not stored: %s", model.name, reason)
        return None
    try:
        return StoredBatches(store, model, tokens, request, interventions, path=path, purpose=purpose)
    except ValueError as error:
        if purpose == "fill":
            raise
        logger.warning("%s; going on without the store", error)
        return None
