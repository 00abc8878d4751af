"""Choosing weights: the sign test, ranks, and one top-k over all tensors against a sort of everything."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from interp.training.weight_selection import (
    NOT_A_CANDIDATE,
    Chosen,
    Ranks,
    agrees_in_sign,
    global_top_k,
    ranks_of,
)


def vector(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of(**tensors: Tensor) -> Ranks:
    def ranks() -> Iterator[tuple[str, Tensor]]:
        yield from tensors.items()

    return ranks


def chosen(found: Chosen) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in found.indices.items()}


def test_signs_agree_strictly_and_without_rounding() -> None:
    difference = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 1.0, 1e-30, 1e-30])
    gradient = torch.tensor([2.0, -2.0, -2.0, 2.0, 1.0, 0.0, 1e-30, -1e-30])
    agreeing = [True, False, True, False, False, False, True, False]
    assert agrees_in_sign(difference, gradient).tolist() == agreeing
    assert (difference * gradient > 0).tolist() != agreeing  # control: the product is rounded to 0


def test_the_top_k_of_all_tensors_is_that_of_a_sort_of_everything() -> None:
    tensors = {f"w{i}": vector(size, seed=i).abs() for i, size in enumerate((50, 7, 400, 1))}
    tensors["w2"][::3] = NOT_A_CANDIDATE
    everything = torch.cat(list(tensors.values())).sort(descending=True).values
    candidates = int((everything > NOT_A_CANDIDATE).sum())
    for k in (1, 2, 10, 100, candidates - 1, candidates):
        for tie_rule, count in (("exact-k", k), ("released", k - 1)):
            found = global_top_k(of(**tensors), k, tie_rule=tie_rule)  # pyright: ignore[reportArgumentType]
            values = torch.cat([tensors[n][i] for n, i in found.indices.items()] or [torch.empty(0)])
            torch.testing.assert_close(values.sort(descending=True).values, everything[:count])
            assert found.n_candidates == candidates
            assert all(len(i) and (i.diff() > 0).all() for i in found.indices.values())


@pytest.mark.parametrize("tie_rule", ["released", "exact-k"])
def test_fewer_candidates_than_k_are_all_taken(tie_rule: str) -> None:
    tensors = {"a": torch.tensor([NOT_A_CANDIDATE, 0.0, 3.0]), "b": torch.full((4,), NOT_A_CANDIDATE)}
    found = global_top_k(of(**tensors), 3, tie_rule=tie_rule)  # pyright: ignore[reportArgumentType]
    assert chosen(found) == {"a": [1, 2]} and found.n_candidates == 2
    none = global_top_k(of(b=tensors["b"]), 3, tie_rule=tie_rule)  # pyright: ignore[reportArgumentType]
    assert chosen(none) == {} and none.n_candidates == 0
    nothing = global_top_k(of(**tensors), 0, tie_rule=tie_rule)  # pyright: ignore[reportArgumentType]
    assert chosen(nothing) == {} and nothing.n_candidates == 2


def test_equal_ranks_are_left_out_as_released_or_filled_up_in_order() -> None:
    tensors = {"a": torch.tensor([5.0, 1.0, 1.0]), "b": torch.tensor([1.0, 9.0, 1.0])}
    assert chosen(global_top_k(of(**tensors), 4, tie_rule="released")) == {"a": [0], "b": [1]}
    assert chosen(global_top_k(of(**tensors), 4, tie_rule="exact-k")) == {"a": [0, 1, 2], "b": [1]}
    assert chosen(global_top_k(of(**tensors), 5, tie_rule="exact-k")) == {"a": [0, 1, 2], "b": [0, 1]}


def test_ranks_are_what_their_names_say() -> None:
    difference, gradient = vector(6, 5), vector(6, 5, seed=1)
    difference[0] = 0

    def ranks(rank_by: str, sign_test: str = "strict", seed: int = 0) -> Tensor:
        return ranks_of(
            difference,
            gradient,
            rank_by=rank_by,  # pyright: ignore[reportArgumentType]
            sign_test=sign_test,  # pyright: ignore[reportArgumentType]
            generator=torch.Generator().manual_seed(seed),
        )

    agreeing, differing = (difference * gradient > 0).flatten(), (difference != 0).flatten()
    for rank_by, expected, candidates in (
        ("gradient", gradient.abs(), agreeing),
        ("gradient-x-difference", (gradient * difference).abs(), agreeing),
        ("difference", difference.abs(), differing),
        ("all", torch.zeros(6, 5), differing),
    ):
        found = ranks(rank_by)
        assert torch.equal(found[candidates], expected.flatten()[candidates])
        assert (found[~candidates] == NOT_A_CANDIDATE).all()
    assert torch.equal(ranks("gradient", "off")[differing], gradient.abs().flatten()[differing])
    assert (ranks("random")[differing] >= 0).all() and (ranks("random")[~differing] == NOT_A_CANDIDATE).all()
    assert torch.equal(ranks("random"), ranks("random")) and not torch.equal(
        ranks("random"), ranks("random", seed=1)
    )
