"""A Ray cluster of two nodes on one machine, for tests."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.engine.ray_cluster import quick_start


class TwoNodes:
    """A cluster of one node with one CPU, and a second that a test may lose.

    Ray waits 30 s of the clock for a node, which a busy machine may miss: the cluster is then started again.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._cluster: Any = None
        self._second: Any = None

    @property
    def address(self) -> str:
        """Where workers find it."""
        return self._cluster.address

    def complete(self) -> "TwoNodes":
        """The cluster, with what is missing of it started."""
        for left in reversed(range(_STARTS)):
            try:
                self._start()
                return self
            except Exception as error:  # Ray raises bare exceptions
                self.shutdown()
                if not left or "timed out" not in str(error).lower():
                    raise
        raise AssertionError("the last start succeeds or raises")

    def _start(self) -> None:
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        # Ray notes the cluster's address there, and makes the folder only where it keeps its own files in it.
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
        if self._cluster is None:
            self._cluster = Cluster()
            head = {"include_dashboard": False, "no_monitor": True, "temp_dir": self._folder}
            self._cluster.add_node(wait=False, **_NODE, **head)
        if self._second is None:
            self._second = self._cluster.add_node(wait=False, **_NODE)
        self._cluster.wait_for_nodes(timeout=_WAIT_SECONDS)

    def lose_second(self) -> None:
        """Kill the second node's processes."""
        node, self._second = self._second, None
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        """End all of its processes."""
        if self._cluster is not None:
            self._cluster.shutdown()
        self._cluster = self._second = None


@contextmanager
def cluster() -> Iterator[TwoNodes]:
    """A cluster that `complete` starts. Nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="interp-ray-", ignore_cleanup_errors=True) as folder:
        with quick_start(folder):
            started = TwoNodes(folder)
            try:
                yield started
            finally:
                started.shutdown()


_STARTS, _WAIT_SECONDS = 3, 120
_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_log_monitor": False}
