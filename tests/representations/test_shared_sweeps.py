"""A sweep over workers: the scores and the pick of one process to the bit, and nothing measured that was stored."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from interp.engine.ray import open_workers
from interp.engine.ray_cluster import Workers
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.representations.picks import choose, pick_stability, scored_candidates
from interp.representations.selection import Candidate, Rule
from interp.representations.shared_sweeps import over_workers, score_each
from interp.representations.sweeps import Sweep
from interp.storage.stages import open_stages
from tests.representations.sweep_cases import OPEN, sweep_of


@contextmanager
def beside(sweep: Sweep) -> Iterator[Sweep]:
    """The sweep with one worker, which has a sweep of its own in this process."""
    with open_workers(partial(sweep_of, sweep.model), None) as pool:
        sweep.pool = pool
        yield sweep
        sweep.pool = None


def tables(sweep: Sweep) -> dict[tuple[str, int, int], list[float]]:
    """Every score of every prompt."""
    kinds = {"ablated": sweep.ablated, "induced": sweep.induced}
    return {(kind, *place): table.tolist() for kind, of in kinds.items() for place, table in of.items()}


def limits(published: list[Candidate]) -> Rule:
    """Limits that some of the candidates meet; the margin is that of the packed passes."""
    kls, induces = sorted(row.kl for row in published), sorted(row.induce for row in published)
    return Rule(kl_threshold=kls[len(kls) // 2] + 1e-3, induce_threshold=induces[len(induces) // 4] - 1e-3)


@pytest.mark.parametrize("exhaustive", [True, False])
def test_a_worker_s_scores_are_those_of_one_process_to_the_bit(
    tiny: ChatModel, published: list[Candidate], exhaustive: bool
) -> None:
    alone, shared, rule = sweep_of(tiny), sweep_of(tiny), limits(published)
    expected = choose(alone, [rule], exhaustive=exhaustive)
    stability = pick_stability(alone, rule, resamples=50)
    with beside(shared):
        shared.ablate = shared.add = None  # pyright: ignore[reportAttributeAccessIssue] # nothing is measured here
        assert choose(shared, [rule], exhaustive=exhaustive) == expected
        assert pick_stability(shared, rule, resamples=50) == stability
    assert tables(shared) == tables(alone)
    assert str(scored_candidates(shared, rule)) == str(scored_candidates(alone, rule))


def test_a_model_in_fast_is_screened_by_workers_and_proven_here(tiny: ChatModel) -> None:
    rule = replace(OPEN, prune_layer_fraction=0.0)
    alone, shared = (sweep_of(with_precision(tiny, "fast")) for _ in range(2))
    expected = choose(alone, [rule])
    with beside(shared):
        assert choose(shared, [rule]) == expected
    assert shared.confirmed == alone.confirmed
    assert tables(shared.exact) == tables(alone.exact)


def test_what_was_stored_is_not_measured_again(tiny: ChatModel, tmp_path: Path) -> None:
    asked: list[str] = []
    places = list(sweep_of(tiny).directions)
    with open_stages(tmp_path / "run", key={}) as stages:
        half = sweep_of(tiny, keep=stages.keep)
        for place in places[:5]:
            half.complete(place)
        shared = sweep_of(tiny, keep=stages.keep)

        def measure(sweep: Sweep, place: tuple[int, int]) -> None:
            if sweep is not shared:
                asked.append(str(place))
            sweep.complete(place)

        with beside(shared):
            score_each(shared, measure, places, lambda items, _label: items, "")
        assert asked == [str(place) for place in places[5:]]
        names = stages.cache.names() if stages.cache is not None else []
        alone = sweep_of(tiny)
        for place in places:
            alone.complete(place)
        assert tables(shared) == tables(alone)
        assert len(names) == 2 * len(places)  # as one process stores them


def test_a_model_in_memory_cannot_be_sent_to_workers(tiny: ChatModel) -> None:
    with (
        pytest.raises(ValueError, match="in this process's memory alone"),
        over_workers(sweep_of(tiny), Workers(count=2)),
    ):
        pass
