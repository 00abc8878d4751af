"""Greedy completions through the activation store: what was completed once is read.

    with using_store("runs/store"):
        generate(model, prompts, max_new_tokens=64)   # computed and stored
        generate(model, prompts, max_new_tokens=24)   # read: the first 24 tokens of the same

A completion is found by what determines it: the model and its numerics, the interventions, the tokens that end a turn
(the key of its table), and the token ids of the whole prompt. Sampled ones, those under logits processors or a soft
prompt, those of the plain path, and those of a model whose rotary frequencies follow the length are neither stored nor
read, nor is what `store_keys.why_not` names.

As with activations, decoding the same prompt in other company differs in the last bits, so that a near tie between two
tokens may fall otherwise; what is read is what was computed when it was stored.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from interp.engine.decoding import Settled, stop_ids
from interp.engine.interventions import Intervention
from interp.engine.store_keys import scope_of, table_key, under_interventions, why_not
from interp.engine.stored_activations import active_store
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.storage.activation_store import ActivationStore
from interp.storage.completion_tables import (
    COMPLETIONS,
    CompletionRow,
    StoredCompletion,
    completion_names,
)
from interp.storage.store_cells import TableKey

logger = logging.getLogger(__name__)


class StoredCompletions:
    """The completions of one call: those that a store has, and the storing of the others."""

    def __init__(
        self,
        store: ActivationStore,
        key: TableKey,
        model: ChatModel,
        tokens: ChatTokens,
        interventions: Sequence[Intervention],
        *,
        max_new_tokens: int,
        settled: Settled | None,
    ) -> None:
        self._store, self._model, self._tokens = store, model, tokens
        self._limit, self._settled, self._stops = max_new_tokens, settled, stop_ids(model)
        self._table = store.completions(under_interventions(key, interventions))
        self._prompts = [tuple(map(int, ids)) for ids in tokens.ids]
        self._scopes = [scope_of(tokens, row) if interventions else "" for row in range(len(tokens))]
        names = completion_names(self._prompts, self._scopes)
        known = self._table.read(names) if self._table.exists else {}
        self.found: dict[int, list[int]] = {}
        """Token ids of the completions that are stored, by row."""
        for row, name in enumerate(names):
            if name in known and (ids := self._answer(known[name])) is not None:
                self.found[row] = ids
        self.missing = [row for row in range(len(tokens)) if row not in self.found]
        """Rows whose completions are not."""

    def _answer(self, stored: StoredCompletion) -> list[int] | None:
        """What the call asks for of a stored completion; None where that says too little."""
        ids = list(stored.ids[: self._limit])
        if self._settled is not None:
            for end in range(1, len(ids) + 1):
                if self._settled(ids[:end]):
                    return ids[:end]
        return ids if len(ids) == self._limit or stored.ended else None

    def keep(self, done: Mapping[int, Sequence[int]]) -> None:
        """Store completions by row; those that were interrupted are left out, and a failure loses the storing alone."""
        rows = [row for row, ids in done.items() if ids and self._is_whole(ids)]
        if not rows:
            return
        texts = self._tokens.identity.texts
        try:
            if not self._table.exists:
                self._store.register(
                    self._table.key, {"model": self._model.name, "adapter": self._model.adapter or ""}
                )
            self._table.append(
                [
                    CompletionRow(
                        prompt=self._prompts[row],
                        scope=self._scopes[row],
                        text=texts[row],
                        completion=StoredCompletion(tuple(done[row]), done[row][-1] in self._stops),
                    )
                    for row in rows
                ]
            )
        except (OSError, ValueError) as error:
            logger.warning("%s; going on without storing completions", error)

    def _is_whole(self, ids: Sequence[int]) -> bool:
        settled = self._settled is not None and self._settled(ids)
        return len(ids) == self._limit or ids[-1] in self._stops or settled


def stored_completions(
    model: ChatModel,
    tokens: ChatTokens,
    arms: Sequence[Sequence[Intervention]],
    *,
    max_new_tokens: int,
    settled: Settled | None,
) -> list[StoredCompletions | None]:
    """Greedy completions through the store in force, for each of several sets of interventions.

    None stands where there is no store, or where the model's completions cannot be stored.
    """
    if (store := active_store()) is None:
        return [None] * len(arms)
    key: TableKey | None = None
    kept: list[StoredCompletions | None] = []
    for arm in arms:
        if reason := "its rotary frequencies follow the length" if model.rotary.vary else why_not(model, arm):
            logger.info("completions of %s are not stored: %s", model.name, reason)
            kept.append(None)
            continue
        if key is None:  # once: it takes a hash of the weights
            key = table_key(model, COMPLETIONS, (), path="generate")
            stops = ",".join(map(str, sorted(stop_ids(model))))
            key = replace(key, numerics={**key.numerics, "stops": stops})
        try:
            kept.append(
                StoredCompletions(
                    store, key, model, tokens, arm, max_new_tokens=max_new_tokens, settled=settled
                )
            )
        except ValueError as error:
            logger.warning("%s; going on without the store", error)
            kept.append(None)
    return kept
