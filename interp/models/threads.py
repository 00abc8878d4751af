"""Thread-local changes to a model: hooks and swapped forwards act only in the thread that made them.

Hooks and swapped forwards are attached to modules that other threads also run. Wrapped by `in_this_thread` they act in
the thread that attached them, and modules are unchanged in every other thread. A worker that computes for another
thread, such as autograd's when it recomputes a block in the backward pass, uses `on_behalf_of`.

Each model has one lock (`lock_of`), shared by all its `ChatModel`s. Passes that change how the whole model computes
hold it, so that only one of them runs at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, RLock, get_ident, local
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_worker = local()
_locks: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()
_making = Lock()


def lock_of(hf: nn.Module) -> Any:
    """The re-entrant lock of a model."""
    with _making:
        return _locks.setdefault(hf, RLock())


def this_thread() -> int:
    """Identity of the thread that this code computes for."""
    return getattr(_worker, "owner", None) or get_ident()


@contextmanager
def on_behalf_of(owner: int) -> Iterator[None]:
    """Code inside the context counts as running in the thread `owner`."""
    before = getattr(_worker, "owner", None)
    _worker.owner = owner
    try:
        yield
    finally:
        _worker.owner = before


def in_this_thread(here: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls `here` in the thread that made it and `elsewhere` in every other thread."""
    owner = this_thread()
    # The owner is read in place: a call of `this_thread` for every layer of every pass would be felt.
    return lambda *args, **options: (
        here if (getattr(_worker, "owner", None) or get_ident()) == owner else elsewhere
    )(*args, **options)


@contextmanager
def swapped_forwards(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the context, passes of this thread replace the forwards of these modules.

    The caller holds the model's lock. A forward that was already replaced, for instance by offloading, is restored
    afterwards.
    """
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = in_this_thread(forward, module.forward)
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
