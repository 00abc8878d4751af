"""What one thread changes about a model is seen by that thread alone.

Hooks and swapped forwards sit in modules that other threads run too. Wrapped by `in_this_thread` they act in the
thread that put them there, and in every other thread a module computes as if they were not there. A worker that
computes for another thread, as autograd's does when it repeats a block in the backward pass, says so by `on_behalf_of`.

One lock a model (`lock_of`), whatever number of `ChatModel`s stand on it, is held by passes that change how the model
as a whole computes, so that two such passes follow each other.
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
    """What runs inside the context, in whatever thread, counts as running in the thread `owner`."""
    before = getattr(_worker, "owner", None)
    _worker.owner = owner
    try:
        yield
    finally:
        _worker.owner = before


def in_this_thread(here: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """What calls `here` in the thread that made it and `elsewhere` in every other."""
    owner = this_thread()
    return lambda *args, **options: (here if this_thread() == owner else elsewhere)(*args, **options)


@contextmanager
def swapped_forwards(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the context, passes of this thread compute these modules by these functions.

    Hold the model's lock. A module that already has a forward of its own, as offloading gives it, has it back
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
