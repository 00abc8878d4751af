"""The scores of a sweep's candidates, in this process or over workers (`interp.engine.ray`).

    with over_workers(sweep, Workers(count=2)):
        candidate, rule = choose(sweep)                     # the pick and the scores of one process

A part is a candidate and a function that measures what it needs of it, such as `Sweep.induce`. A worker has a model and
a sweep of its own, keeps its weights packed from candidate to candidate, and sends back what it measured, under the
names under which this process's sweep stores it. So a candidate's prompts share passes as in one process, and on a CPU
every score is the same to the bit. Candidates are compared here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from interp.engine.ray import open_workers
from interp.engine.ray_cluster import Workers
from interp.models.named_models import load_same, source_of
from interp.models.sources import ModelSource
from interp.models.tokens import ChatTokens
from interp.representations.sweeps import Place, Sweep
from interp.stats import Measured

Progress = Callable[[Iterable[Place], str], Iterable[Place]]
"""Wraps a loop over candidates in a progress bar; the string names what is measured."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Inputs:
    """The arguments of a sweep, for a process that loads the model itself."""

    source: ModelSource
    weights_hash: str
    directions: Mapping[Place, Tensor]
    harmful: ChatTokens
    harmless: ChatTokens
    refusal_ids: list[int]
    fast: bool

    def opened(self) -> Sweep:
        """The state of a worker."""
        return Sweep(
            load_same(self.source, self.weights_hash),
            self.directions,
            harmful=self.harmful,
            harmless=self.harmless,
            refusal_ids=self.refusal_ids,
            fast=self.fast,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Scores:
    """What has been measured of a candidate."""

    place: Place
    ablated: Tensor | None
    induced: Tensor | None
    values: dict[str, list[float]]
    """What was measured by the last function, by the names that `Sweep.keep` stores it under."""


@contextmanager
def over_workers(sweep: Sweep, workers: Workers | None) -> Iterator[None]:
    """Inside the context the sweep's candidates are measured by workers.

    Args:
        workers: None leaves them to this process.

    Raises:
        ValueError: as `open_workers`, or a model that workers cannot load.
    """
    if workers is None:
        yield
        return
    inputs = _Inputs(
        source=source_of(sweep.model),
        weights_hash=sweep.model.weights_hash,
        directions=sweep.directions,
        harmful=sweep.harmful,
        harmless=sweep.harmless,
        refusal_ids=sweep.refusal_ids,
        fast=sweep.asked_fast,
    )
    with open_workers(inputs.opened, workers) as pool:
        sweep.pool = pool
        try:
            yield
        finally:
            sweep.pool = None


def score_each(
    sweep: Sweep,
    measure: Callable[[Sweep, Place], Any],
    places: Iterable[Place],
    progress: Progress,
    label: str,
) -> None:
    """Call the function for every candidate; afterwards the sweep has what it measures, and calls it for nothing.

    Args:
        measure: measures candidates of the sweep it is given; with workers it must be importable by them.
    """
    places = list(places)
    if sweep.pool is None:
        for place in progress(places, label):
            measure(sweep, place)
        return
    todo = [place for place in places if not _needs_nothing(sweep, measure, place)]
    parts = [_known(sweep, place) for place in todo]
    finished = sweep.pool.map(partial(_measured, measure), parts)
    for _ in progress(todo, label):
        _, scores = next(finished)
        _take(sweep, scores)


class _Missing(Exception):
    """A value that has not been measured yet."""


def _needs_nothing(sweep: Sweep, measure: Callable[[Sweep, Place], Any], place: Place) -> bool:
    """Whether everything that the function measures of a candidate is in the sweep or was stored."""
    keep = sweep.keep

    def missing() -> list[float]:
        raise _Missing

    sweep.keep = lambda name, _compute, kind: keep(name, missing, kind)
    try:
        measure(sweep, place)
    except _Missing:
        return False
    finally:
        sweep.keep = keep
    return True


def _known(sweep: Sweep, place: Place) -> _Scores:
    return _Scores(place=place, ablated=sweep.ablated.get(place), induced=sweep.induced.get(place), values={})


def _measured(measure: Callable[[Sweep, Place], Any], sweep: Sweep, known: _Scores) -> _Scores:
    """What a worker's sweep measures of a candidate beyond what is known."""
    place, values = known.place, dict[str, list[float]]()
    sweep.ablated = (
        {} if known.ablated is None else {place: known.ablated.clone()}
    )  # what is sent is read-only
    sweep.induced = {} if known.induced is None else {place: known.induced}

    def record(name: str, compute: Callable[[], list[float]], _kind: Any) -> list[float]:
        values[name] = compute()
        return values[name]

    sweep.keep = record
    measure(sweep, place)
    return _Scores(
        place=place, ablated=sweep.ablated.get(place), induced=sweep.induced.get(place), values=values
    )


def _take(sweep: Sweep, scores: _Scores) -> None:
    """Store what a worker measured as if it had been measured here."""
    for name, values in scores.values.items():
        sweep.keep(name, lambda values=values: values, list[Measured])
    for table, value in ((sweep.ablated, scores.ablated), (sweep.induced, scores.induced)):
        if value is not None:
            table[scores.place] = value
