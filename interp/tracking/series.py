"""Loading the checkpoints of a series one at a time.

    loader = CheckpointLoader()
    with loader.open(checkpoints[0]) as model:                    # a ChatModel
        ...

`interp.tracking.checkpoints` finds them. Adapters on the same base reuse the base in memory, and a whole model stays in
memory until another is opened: never more than one model at a time. A folder that cannot be read stays in the series:
opening it raises an error with the reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel, load_source
from interp.models.sources import ModelSource
from interp.tracking.checkpoints import Checkpoint

_DEFAULTS = ModelSource("")


def _load(checkpoint: Checkpoint, *, adapter: str | None = None) -> ChatModel:
    """The whole model, or the base of an adapter."""
    source = replace(
        checkpoint.options, name=checkpoint.source, adapter=adapter, revision=checkpoint.revision
    )
    return load_source(source)


class CheckpointLoader:
    """Loads checkpoints one at a time; the last whole model, or base of an adapter, stays loaded for the next.

    Args:
        base: a base model that is already loaded.
    """

    def __init__(self, base: ChatModel | None = None) -> None:
        self._key: Any = None if base is None else (base.source, None, _DEFAULTS)
        self._base = base

    @contextmanager
    def open(self, checkpoint: Checkpoint) -> Iterator[ChatModel]:
        """Load the checkpoint as a model that must not be used after the context.

        Raises:
            ValueError: it cannot be loaded; the message gives the reason.
        """
        if checkpoint.live is not None:
            yield checkpoint.live
            return
        key = (checkpoint.source, checkpoint.revision, replace(checkpoint.options, name=""))
        if key != self._key or self._base is None:
            self._base = self._key = None  # freed before the next is loaded: one model in memory at a time
            self._base, self._key = _load(checkpoint), key
        if checkpoint.adapter is None:
            yield self._base
            return
        with with_adapter(self._base, checkpoint.adapter) as model:
            yield model
