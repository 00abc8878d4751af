"""A Ray cluster of two nodes on one machine, for tests."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interp.engine.ray_cluster import quick_start


class TwoNodes:
    """A cluster of one node with one CPU, and a second that a test may lose."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._second: Any = None

    @property
    def address(self) -> str:
        """Where workers find it."""
        return self._cluster.address

    def complete(self) -> "TwoNodes":
        """The cluster, with a second node started where there is none."""
        if self._second is None:
            self._second = self._cluster.add_node(**_NODE)
        return self

    def lose_second(self) -> None:
        """Kill the second node's processes."""
        node, self._second = self._second, None
        self._cluster.remove_node(node, allow_graceful=False)


@contextmanager
def cluster() -> Iterator[TwoNodes]:
    """A cluster of one node so far. Nothing of it is left afterwards."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="interp-ray-", ignore_cleanup_errors=True) as folder:
        with quick_start(folder):
            started = Cluster()
            try:
                started.add_node(**_NODE, include_dashboard=False, no_monitor=True, temp_dir=folder)
                yield TwoNodes(started)
            finally:
                started.shutdown()


_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_log_monitor": False}
