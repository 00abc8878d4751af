"""Independent parts of a run, in this process or, with Ray, in several on one or more machines.

    with open_workers(partial(load_source, source), Workers(count=2)) as pool:
        for number, value in pool.map(measure, parts):           # as they finish
            cache.put(f"part-{number}", value)

A part is what a run computes and stores as one value: a checkpoint, a chunk of prompts, a cell of a grid. The function
`measure(model, part)` is the same with and without workers, so that a part has the same value wherever it is computed.

A worker is a Ray actor with a share of the machine's threads, or a GPU of its own. It prepares its state (loads the
model) once and keeps it between parts. When its process or its whole node is lost, Ray starts it again elsewhere and
repeats the part it was at; finished parts are with the caller, who stores them. Results are read on the caller's
machine alone, and models are loaded by name, so that workers need the same files and versions (compared at the start)
but no common disk.
"""

import itertools
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

from interp.engine.ray_cluster import Share, Workers, connected, ray_module
from interp.storage.provenance import library_versions
from interp.storage.stages import code_hash

logger = logging.getLogger(__name__)
StateT = TypeVar("StateT")
PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")

_RESTARTS = 6
"""Times that a worker that was lost is started again; then its part is taken to be what kills it."""
_LOOK_SECONDS = 5
"""Seconds between looks at which nodes are alive, while nothing finishes."""


class Pool(ABC, Generic[StateT]):
    """Where parts are computed; made by `open_workers`."""

    @abstractmethod
    def map(
        self, function: Callable[[StateT, PartT], ResultT], parts: Iterable[PartT]
    ) -> Iterator[tuple[int, ResultT]]:
        """Number and result of every part, as they finish.

        A part is taken from `parts` when a worker is free for it. The first error that a part raises ends the map.
        """

    def in_order(
        self, function: Callable[[StateT, PartT], ResultT], parts: Iterable[PartT]
    ) -> Iterator[ResultT]:
        """The results in the order of their parts; those that finish early wait in memory."""
        early: dict[int, ResultT] = {}
        following = 0
        for number, result in self.map(function, parts):
            early[number] = result
            while following in early:
                yield early.pop(following)
                following += 1


@contextmanager
def open_workers(prepare: Callable[[], StateT], workers: Workers | None) -> Iterator[Pool[StateT]]:
    """A pool whose workers each call `prepare` once, when their first part comes.

    Args:
        prepare: makes what every part needs, such as a loaded model; with workers it is sent to them.
        workers: None computes in this process.

    Raises:
        ValueError: as `Workers.check`, more workers than the cluster has room for, or workers with other versions.
    """
    if workers is None:
        yield _ThisProcess(prepare)
        return
    workers.check()
    with connected(workers) as share:
        pool = _RayPool(prepare, share)
        try:
            yield pool
        finally:
            pool.close()


class _ThisProcess(Pool[StateT]):
    def __init__(self, prepare: Callable[[], StateT]) -> None:
        self._prepare, self._state = prepare, list[StateT]()

    def map(
        self, function: Callable[[StateT, PartT], ResultT], parts: Iterable[PartT]
    ) -> Iterator[tuple[int, ResultT]]:
        for number, part in enumerate(parts):
            if not self._state:
                self._state.append(self._prepare())
            yield number, function(self._state[0], part)


class _RayPool(Pool[StateT]):
    def __init__(self, prepare: Callable[[], StateT], share: Share) -> None:
        self._ray = ray = ray_module()
        self._n_nodes = self._nodes_alive()
        actor = ray.remote(_Worker).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=_RESTARTS,
            max_task_retries=-1,  # while a lost node is not known to be lost, each try counts
            scheduling_strategy="SPREAD",
        )
        # In a list it stays a reference, which a worker reads once; it goes with every part, for workers that are
        # started again.
        self._prepare = [ray.put(prepare)]
        self._actors = [actor.remote(share.cpus, _versions()) for _ in range(share.workers)]
        self._warned: set[tuple[str, str]] = set()

    def map(
        self, function: Callable[[StateT, PartT], ResultT], parts: Iterable[PartT]
    ) -> Iterator[tuple[int, ResultT]]:
        ray, waiting, idle = self._ray, enumerate(parts), list(self._actors)
        sent, running = ray.put(function), dict[Any, tuple[int, Any]]()
        while True:
            for number, part in itertools.islice(waiting, len(idle)):
                actor = idle.pop(0)
                running[actor.run.remote(self._prepare, sent, part)] = number, actor
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
            if done:
                number, actor = running.pop(done[0])
                idle.append(actor)
                yield number, self._result(done[0], number)
            elif idle:
                self._make_room(idle)

    def _make_room(self, idle: list[Any]) -> None:
        """After the loss of a node, end a worker that has nothing to do: one that waits for its place takes it."""
        alive = self._nodes_alive()
        if alive < self._n_nodes and len(self._actors) > 1:
            self._n_nodes -= 1
            actor = idle.pop()
            self._actors.remove(actor)
            self._ray.kill(actor)
            logger.warning("a node was lost; %d workers go on", len(self._actors))

    def _nodes_alive(self) -> int:
        return sum(1 for node in self._ray.nodes() if node["Alive"])

    def _result(self, reference: Any, number: int) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            value, records = self._ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise ChildProcessError(
                f"part {number} was lost with its worker, which had been started {_RESTARTS + 1} times (is there too "
                f"little memory?); finished parts are kept, the same command continues: {reason}"
            ) from error
        for record in records:  # as if it had been logged here, and once where every worker says it
            if (key := (record.name, record.getMessage())) not in self._warned:
                self._warned.add(key)
                logging.getLogger(record.name).handle(record)
        return value

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            self._ray.kill(actor)


class _Worker(Generic[StateT]):
    """The actor: keeps its state between parts."""

    def __init__(self, threads: int, versions: Mapping[str, str]) -> None:
        self._threads, self._expected = threads, versions
        self._state = list[StateT]()

    def run(
        self, prepare: list[Any], function: Callable[[StateT, PartT], ResultT], part: PartT
    ) -> tuple[ResultT, list[logging.LogRecord]]:
        """Result of a part, and what was logged meanwhile; `prepare` holds the reference to what makes the state."""
        with _logged() as records:
            if not self._state:
                _check_versions(self._expected)
                torch.set_num_threads(self._threads)
                self._state.append(ray_module().get(prepare[0])())
            return function(self._state[0], part), records


@contextmanager
def _logged() -> Iterator[list[logging.LogRecord]]:
    """The library's warnings inside the context, in a form that can be sent."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.msg, record.args, record.exc_info = record.getMessage(), None, None
            records.append(record)

    log, handler = logging.getLogger("interp"), Keep(logging.WARNING)
    log.addHandler(handler)
    try:
        yield records
    finally:
        log.removeHandler(handler)


def _versions() -> dict[str, str]:
    return {"interp's code": code_hash(), **library_versions()}


def _check_versions(expected: Mapping[str, str]) -> None:
    for name, here in _versions().items():
        if expected.get(name) != here:
            raise ValueError(
                f"{name} is {here} on {socket.gethostname()}, {expected.get(name)} where the run was started; install "
                "the same version on every machine of the cluster"
            )
