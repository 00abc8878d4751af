"""The quick checks raise on what jaxtyping's own raise on, and the package is under them."""

import gc
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

from interp import stats
from interp.directions import Direction
from tests import type_checks

MODULE = """
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from jaxtyping import Float
from torch import Tensor

def plain(x: int, *, names: list[str] | None = None) -> str:
    return "yes" if x else None

def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    return a @ b

def transposed(a: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    return a

def optional(a: dict[str, Float[Tensor, " n"] | None], b: Float[Tensor, " n"]) -> None: ...

def rows(a: Float[Tensor, "rows columns"]) -> Iterator[Float[Tensor, " columns"]]:
    yield from a

def deferred(x: "Later", n: "int") -> "list[int]":
    return [n] if n else n

class Later: ...

def maker(factor: int) -> Callable[[int], int]:
    def inner(x: int) -> int:
        return x * factor if x else None
    return inner

def holder(thing: object) -> Callable[[int], object]:
    def inner(x: int) -> object:
        return thing
    return inner

def array_maker(factor: float) -> Callable:
    def inner(x: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        return x * factor
    return inner

@dataclass(frozen=True)
class Pair:
    name: str
    left: Float[Tensor, " n"]
    right: Float[Tensor, " n"]

@dataclass
class Named:
    name: str

    @property
    def length(self) -> int:
        return self.name and len(self.name)

    @classmethod
    def of(cls, name: str) -> "Named":
        return cls(name)

    @staticmethod
    def joined(names: tuple[str, ...]) -> str:
        return " ".join(names)

class Child(Named): ...
"""
Z = torch.zeros
GOOD: dict[str, Callable[[Any], object]] = {
    "plain": lambda m: m.plain(1, names=["a"]),
    "product": lambda m: m.product(Z(2, 3), Z(3, 4)),
    "square": lambda m: m.transposed(Z(2, 2)),
    "optional": lambda m: m.optional({"a": Z(3), "b": None}, Z(3)),
    "rows": lambda m: list(m.rows(Z(2, 3))),
    "deferred": lambda m: m.deferred(m.Later(), 1),
    "inner": lambda m: m.maker(3)(2),
    "inner array": lambda m: m.array_maker(3.0)(Z(2, 2)),
    "pair": lambda m: m.Pair("a", Z(2), Z(2)),
    "property": lambda m: m.Named("a").length,
    "classmethod": lambda m: m.Named.of("a"),
    "staticmethod": lambda m: m.Named.joined(("a", "b")),
    "child": lambda m: m.Child("a"),
}
BAD: dict[str, Callable[[Any], object]] = {
    "argument": lambda m: m.plain("1"),
    "option": lambda m: m.plain(1, names=("a",)),
    "result": lambda m: m.plain(0),
    "dtype": lambda m: m.product(Z(2, 3, dtype=torch.int64), Z(3, 4)),
    "axes": lambda m: m.product(Z(3), Z(3, 4)),
    "axis of two arguments": lambda m: m.product(Z(2, 3), Z(2, 3)),
    "axis of the result": lambda m: m.transposed(Z(2, 3)),
    "array inside a dictionary": lambda m: m.optional({"a": Z(2, 2)}, Z(3)),
    "generator's argument": lambda m: list(m.rows(Z(2))),
    "deferred argument": lambda m: m.deferred(m.Later(), "1"),
    "deferred result": lambda m: m.deferred(m.Later(), 0),
    "inner argument": lambda m: m.maker(3)("2"),
    "inner result": lambda m: m.maker(3)(0),
    "argument of the second inner": lambda m: (m.maker(3)(2), m.maker(4)("2")),
    "result of the second inner": lambda m: (m.maker(3)(2), m.maker(4)(0)),
    "inner array": lambda m: m.array_maker(3.0)(Z(2, 3)),
    "second inner array": lambda m: (m.array_maker(3.0)(Z(2, 2)), m.array_maker(4.0)(Z(2, 3))),
    "field": lambda m: m.Pair(1, Z(2), Z(2)),
    "axis of two fields": lambda m: m.Pair("a", Z(2), Z(3)),
    "property": lambda m: m.Named("").length,
    "classmethod": lambda m: m.Named.of(1),
    "staticmethod": lambda m: m.Named.joined((1,)),
    "inherited field": lambda m: m.Child(1),
}


def imported(name: str, folder: Path) -> ModuleType:
    """The module above, imported under jaxtyping's hook."""
    (folder / f"{name}.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    hook = install_import_hook([name], "beartype.beartype")
    try:
        return importlib.import_module(name)
    finally:
        hook.uninstall()
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    assert jaxtyping.jaxtyped is type_checks.checked
    return imported("checked_quickly", tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping, "jaxtyped", type_checks._jaxtyped)
        yield imported("checked_by_jaxtyping", tmp_path_factory.mktemp("original"))


@pytest.mark.parametrize("case", GOOD)
def test_right_calls_pass(quick: ModuleType, original: ModuleType, case: str) -> None:
    GOOD[case](original)
    GOOD[case](quick)


@pytest.mark.parametrize("case", BAD)
def test_wrong_calls_raise_as_under_jaxtyping(quick: ModuleType, original: ModuleType, case: str) -> None:
    with pytest.raises(TypeError):
        BAD[case](original)
    with pytest.raises(TypeCheckError):
        BAD[case](quick)


def test_each_inner_function_is_its_own(quick: ModuleType) -> None:
    double, triple = quick.maker(2), quick.maker(3)
    assert (double(5), triple(5)) == (10, 15)
    assert double.__code__ is triple.__code__  # made once


def test_a_check_keeps_nothing_that_an_inner_function_refers_to(quick: ModuleType) -> None:
    held = torch.zeros(1)
    gone = weakref.ref(held)
    inner = quick.holder(held)
    assert inner(1) is held
    del held, inner
    gc.collect()
    assert gone() is None


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        stats.Estimate(value="1", n=1)  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        Direction(vector=torch.zeros(2, 2), layer=0, position="last")
