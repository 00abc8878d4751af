"""Parts over workers: the same results as in one process, whatever is lost on the way. Clusters are real ones."""

import logging
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from interp.engine import ray as scale
from interp.engine import ray_cluster
from interp.engine.ray import open_workers
from interp.engine.ray_cluster import Share, Workers, shares, workers_asked
from tests.engine import ray_parts as parts
from tests.two_nodes import TwoNodes

# In this process


def test_parts_are_computed_in_order_and_the_state_is_made_once_for_the_first(tmp_path: Path) -> None:
    with open_workers(partial(parts.prepared, tmp_path), None) as pool:
        assert not (tmp_path / "notes").exists()
        assert list(pool.map(parts.mistaken, iter([5, 7]))) == [(0, 5), (1, 7)]
        assert list(pool.in_order(parts.mistaken, [1])) == [1]
    assert len(parts.notes(tmp_path, "prepared")) == 1
    with (
        open_workers(partial(parts.prepared, tmp_path), None) as pool,
        pytest.raises(ValueError, match="three is not"),
    ):
        list(pool.map(parts.mistaken, [1, 3, 4]))
    assert parts.notes(tmp_path, "part") == ["5", "7", "1", "1"]


def test_results_wait_for_those_before_them() -> None:
    class Backwards(scale.Pool[None]):
        def map(self, function: Any, parts: Any) -> Iterator[tuple[int, Any]]:
            yield from reversed([(number, function(None, part)) for number, part in enumerate(parts)])

    assert list(Backwards().in_order(lambda _, part: 2 * part, range(4))) == [0, 2, 4, 6]


def test_a_worker_has_a_share_of_the_threads_and_a_gpu_of_its_own() -> None:
    one, two = {"CPU": 16.0}, {"CPU": 8.0, "GPU": 4.0}
    assert shares([one], 2) == Share(2, 8, 0)
    assert shares([one], 3) == Share(3, 5, 0)
    assert shares([one, one], None) == Share(2, 16, 0)  # one a node
    assert shares([one, one], 3) == Share(3, 8, 0)  # 10 threads would find two places
    assert shares([two], None) == Share(4, 2, 1)  # one a GPU
    assert shares([one, two], 2) == Share(2, 4, 1)  # on the node that has them
    assert shares([two], 8) == Share(8, 1, 0.5)
    assert shares([{"CPU": 2.0}], 2) == Share(2, 1, 0)
    with pytest.raises(ValueError, match="3 workers need 3 CPUs, the cluster has 2; ask for fewer"):
        shares([{"CPU": 2.0}], 3)


def test_what_cannot_be_had_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_asked(None, None) is None
    assert workers_asked(2, None) == Workers(count=2)
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"workers must be 1 or more, got {count}; leave them out"):
            workers_asked(count, None)
    with pytest.raises(ValueError, match="has a device of its own, so it cannot be cuda:1; give cuda or cpu"):
        workers_asked(2, None, device="cuda:1")
    for address in ("ray://somewhere:10001", "somewhere", "somewhere:port"):
        with pytest.raises(
            ValueError, match=r"is auto or host:port, got .*run this on a machine of the cluster"
        ):
            workers_asked(2, address)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"  # bound, and nothing listens
        with pytest.raises(ValueError, match=f"no Ray cluster answers at {closed} .*ray start --head"):
            workers_asked(None, closed)
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"not installed; run `pip install 'interp-workbench\[scale\]'`"):
        workers_asked(2, None)


# On two nodes of one machine


@pytest.mark.checkpoint
def test_two_nodes_give_what_one_process_gives_and_keep_their_state(
    nodes: TwoNodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers(address=nodes.address)  # one a node
    with open_workers(partial(parts.prepared, tmp_path), workers) as pool:
        computed = list(pool.in_order(parts.product, range(6)))
        facts = list(pool.in_order(parts.environment, range(4)))
        with pytest.raises(ValueError, match=r"^three is not allowed; give another number$"):
            list(pool.map(parts.mistaken, [1, 3, 4]))
    assert all(torch.equal(here, parts.product(tmp_path, seed)) for seed, here in enumerate(computed))
    assert len({process for _, process in facts}) == 2 and {threads for threads, _ in facts} == {1}
    assert len(parts.notes(tmp_path, "prepared")) == 2
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.count("these are random numbers") == 1 + 6  # once for all workers, six times here


@pytest.mark.checkpoint
def test_a_lost_node_costs_the_part_that_it_was_at(nodes: TwoNodes, tmp_path: Path) -> None:
    with open_workers(partial(parts.prepared, tmp_path), Workers(address=nodes.address)) as pool:
        computed: dict[int, torch.Tensor] = {}
        for number, value in pool.map(parts.product, range(8)):
            computed[number] = value
            if len(computed) == 3:
                nodes.lose_second()
    assert all(torch.equal(computed[seed], parts.product(tmp_path, seed)) for seed in range(8))
    assert len(parts.notes(tmp_path, "part")) - 8 in (8, 9)  # eight of them were for the comparison


@pytest.mark.checkpoint
def test_a_killed_worker_costs_its_part_and_one_that_always_dies_is_named(
    nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "_RESTARTS", 2)
    with open_workers(partial(parts.prepared, tmp_path), Workers(address=nodes.address)) as pool:
        computed = list(pool.in_order(parts.killed_once, range(5)))
        assert sorted(parts.notes(tmp_path, "part")) == ["0", "1", "2", "2", "3", "4"]
        with pytest.raises(
            ChildProcessError, match="part 0 was lost with its worker, which had been started 3 times"
        ):
            list(pool.map(parts.always_killed, [0]))
    assert all(torch.equal(here, parts.product(tmp_path, seed)) for seed, here in enumerate(computed))


def raylets() -> set[int]:
    """Processes of Ray nodes that this one started."""
    below = psutil.Process().children(recursive=True)
    return {process.pid for process in below if process.name() == "raylet"}


@pytest.mark.checkpoint
def test_a_ray_of_its_own_ends_with_the_run(tmp_path: Path) -> None:
    import ray

    before = raylets()  # of the cluster of two nodes
    with open_workers(partial(parts.prepared, tmp_path), Workers(count=2)) as pool:
        facts = list(pool.in_order(parts.environment, range(4)))
        left = list(pool.in_order(parts.leave_a_folder, range(2)))
        assert ray.is_initialized() and all(folder.is_dir() for folder in left)
        started = raylets() - before
    assert len({process for _, process in facts}) == 2
    assert started and not ray.is_initialized() and not any(map(psutil.pid_exists, started))
    assert not any(psutil.pid_exists(process) for _, process in facts)
    assert not any(folder.exists() for folder in left)  # as those of a part that was not finished
