"""What the type checks of the tests cost, cut to what they need.

jaxtyping's import hook puts `jaxtyping.jaxtyped` on every function and dataclass of the package, and in the tests that
makes every annotated call a checked one. The decorator costs 2 ms for each function and 12 us for each call: it binds
the arguments and opens a table of axis sizes even where no array is annotated, it checks arguments twice, and it starts
again whenever a function inside another function is defined. `install` puts a decorator in its place that checks the
same annotations and raises on the same calls:

- where no annotation holds an array, beartype checks alone (1 us a call);
- where one does, beartype checks arguments and result once, inside jaxtyping's table of axis sizes;
- the check of a function is made when it is first called: 3,700 functions cost every worker 3 s, and it calls a part;
- a function inside another is given the check made for its code before.

Annotations that are strings, which only jaxtyping resolves, are left to `jaxtyping.jaxtyped`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial, update_wrapper, wraps
from types import CellType, FunctionType
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError

_jaxtyped = jaxtyping.jaxtyped
_beartype = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
"""A violation is a TypeError, as it is under jaxtyping and where nothing is checked."""
_inner: dict[Any, Callable[..., Any]] = {}
"""Checked functions that were defined inside others, by their code and annotations."""


def install() -> None:
    """Modules imported from here on are decorated with `checked` where the import hook says `jaxtyping.jaxtyped`."""
    jaxtyping.jaxtyped = checked


def checked(target: Any = None, *, typechecker: Callable[..., Any] | None = None) -> Any:
    """Calls of a function, or of a dataclass's `__init__`, are checked against their annotations."""
    if typechecker is None:  # another library's use, not the import hook's
        return _jaxtyped(target, typechecker=None)
    typechecker = _beartype  # the hook's own is a call of beartype, with a violation that is no TypeError
    if target is None:
        return partial(checked, typechecker=typechecker)
    if not isinstance(target, type):
        return _checked_function(target, typechecker)
    if dataclasses.is_dataclass(target) and isinstance(vars(target).get("__init__"), FunctionType):
        target.__init__ = _checked_function(target.__init__, typechecker)
    return target


def _checked_function(function: Any, typechecker: Callable[..., Any]) -> Any:
    if "<locals>" in function.__qualname__:
        return _checked_inner(function, typechecker)
    check: Callable[..., Any] | None = None

    @wraps(function)
    def checks_when_called(*args: Any, **options: Any) -> Any:
        nonlocal check
        if check is None:
            check = _with_check(function, typechecker)
        return check(*args, **options)

    return checks_when_called


def _with_check(function: Any, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    annotations = inspect.get_annotations(function).values()
    if any(map(_is_deferred, annotations)):
        return _jaxtyped(function, typechecker=typechecker)
    if not any(map(_holds_array, annotations)):
        return typechecker(function)
    # Without a checker, jaxtyping makes a generator's annotation pass anything, wherever it is shared.
    if inspect.isgeneratorfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    return _jaxtyped(typechecker(function), typechecker=None)


def _checked_inner(function: FunctionType, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """The check of the function's code and annotations, around this definition of it."""
    hints = inspect.get_annotations(function)
    special = function.__defaults__ or function.__kwdefaults__ or inspect.isgeneratorfunction(function)
    if special or any(map(_is_deferred, hints.values())):
        return _with_check(function, typechecker)
    key = (function.__code__, typechecker, *hints.items())
    if key not in _inner:
        # Without what the function refers to, which would be kept as long as the check.
        cells = tuple(CellType() for _ in function.__code__.co_freevars)
        bare = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        _inner[key] = typechecker(update_wrapper(bare, function))
        vars(bare).pop("__wrapped__")
    check = _inner[key]
    options = check.__kwdefaults__ or {}
    if "__beartype_func" not in options:  # nothing to check, or another checker
        return _with_check(function, typechecker)
    copy = FunctionType(check.__code__, check.__globals__, function.__name__)
    copy.__kwdefaults__ = {**options, "__beartype_func": function}
    update_wrapper(copy, function)
    return _jaxtyped(copy, typechecker=None) if any(map(_holds_array, hints.values())) else copy


def _is_deferred(hint: Any) -> bool:
    """Whether the annotation, or a part of it, is the name of a type."""
    if isinstance(hint, str | ForwardRef):
        return True
    return any(map(_is_deferred, _parts(hint)))


def _holds_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_holds_array, _parts(hint)))


def _parts(hint: Any) -> tuple[Any, ...]:
    """What a generic annotation is made of, with the arguments of a callable among them."""
    if get_origin(hint) is Literal:  # values, not types
        return ()
    return tuple(part for group in get_args(hint) for part in (group if isinstance(group, list) else [group]))
