"""A Ray cluster of two nodes on one machine, for tests."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def cluster() -> Iterator[Any]:
    """A cluster of one node with one CPU; `add_node` adds the second. Nothing of it is left afterwards."""
    from ray.cluster_utils import Cluster

    started = Cluster()
    try:
        started.add_node(**_settings(), include_dashboard=False, no_monitor=True)
        yield started
    finally:
        started.shutdown()


def add_node(cluster: Any) -> Any:
    """Another node with one CPU."""
    return cluster.add_node(**_settings())


def _settings() -> dict[str, Any]:
    # Given ports: on a busy machine Ray's agents do not tell theirs within the time that the node waits for them.
    names = (
        "metrics_agent_port",
        "dashboard_agent_listen_port",
        "runtime_env_agent_port",
        "metrics_export_port",
    )
    sockets = [socket.socket() for _ in names]
    for each in sockets:
        each.bind(("", 0))
    ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    return {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_log_monitor": False, **ports}
