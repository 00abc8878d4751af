"""Which workers are asked for, and the Ray cluster that they run on: one that is running, or one for this run alone."""

import importlib.util
import logging
import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

_STARTS = 3
"""Times that Ray is started: on a busy machine its agents may miss the 15 s that it gives them."""
_PATIENCE = {"RAY_agent_register_timeout_ms": "120000", "RAY_worker_register_timeout_seconds": "300"}
"""How long Ray's nodes wait for their agents and for workers that import their modules, on a machine that is busy."""
_STORE_BYTES = 100 * 2**20
"""Shared memory of a Ray started here; larger results go over the disk."""


_CONNECT_SECONDS = 5
"""Seconds in which an address must answer."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Processes that compute the parts of a run."""

    count: int | None = None
    """Number of workers; None is one for each GPU, or where there are none one for each node."""
    address: str | None = None
    """Running Ray cluster that this machine belongs to, `auto` or host:port; None starts Ray here for the run."""

    def check(self) -> None:
        """Find what is wrong before anything is loaded.

        Raises:
            ValueError: fewer than one worker, no Ray installed, or an address where nothing answers.
        """
        if self.count is not None and self.count < 1:
            raise ValueError(
                f"workers must be 1 or more, got {self.count}; leave them out to use this process"
            )
        if importlib.util.find_spec("ray") is None:
            raise ValueError(
                "workers need Ray, which is not installed; run `pip install 'interp-workbench[scale]'`"
            )
        if self.address is not None:
            _check_address(self.address)


def workers_asked(count: int | None, address: str | None, *, device: str | None = None) -> Workers | None:
    """The workers that options ask for, checked; None where they ask for none.

    Args:
        device: device that the model is asked for on.

    Raises:
        ValueError: as `Workers.check`, or one particular GPU.
    """
    if count is None and address is None:
        return None
    if device is not None and ":" in device:
        raise ValueError(f"each worker has a device of its own, so it cannot be {device}; give cuda or cpu")
    workers = Workers(count=count, address=address)
    workers.check()
    return workers


def _check_address(address: str) -> None:
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ValueError(
            f"the address of a Ray cluster is auto or host:port, got {address!r}; run this on a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or leave it out"
        ) from error


class Share(NamedTuple):
    """Number of workers, and what each has to itself."""

    workers: int
    """Number of workers."""
    cpus: int
    """Threads of each worker."""
    gpus: int | float
    """GPUs of each worker; a fraction where several share one."""


def shares(nodes: Sequence[Mapping[str, int | float]], count: int | None) -> Share:
    """What each of `count` workers may have of these nodes, given as Ray counts them (`CPU`, `GPU`).

    Raises:
        ValueError: more workers than CPUs.
    """
    cards = [int(node.get("GPU", 0)) for node in nodes]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    count = count or sum(cards) or sum(1 for n in cores if n) or 1
    if count > sum(cores):
        raise ValueError(
            f"{count} workers need {count} CPUs, the cluster has {sum(cores)}; ask for fewer workers"
        )
    together = 1 if count <= sum(cards) else -(-count // sum(cards)) if any(cards) else 0
    # A worker is on one node: the largest number of threads with which as many as asked for find a place.
    places = [n for n, card in zip(cores, cards, strict=True) if card or not together]
    threads = max(places)
    while threads > 1 and sum(n // threads for n in places) < count:
        threads -= 1
    return Share(count, threads, 1 / together if together else 0)


@contextmanager
def connected(workers: Workers) -> Iterator[Share]:
    """Connect to the cluster or start one, and leave it as it was found."""
    with ExitStack() as stack:
        ray = ray_module()
        if not ray.is_initialized():
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="interp-ray-", ignore_cleanup_errors=True)
            )
            stack.callback(ray.shutdown)
            _initialise(workers, folder)
        yield shares([node["Resources"] for node in ray.nodes() if node["Alive"]], workers.count)


def _initialise(workers: Workers, folder: str) -> None:
    """Connect to a cluster, or start one whose files are in this folder."""
    ray, before = ray_module(), _signal_handler()
    tries = _STARTS if workers.address is None else 1
    try:
        for number in range(1, tries + 1):
            try:
                with quick_start(folder), _quiet():
                    ray.init(**_options(workers, folder))
                return
            except Exception as error:  # Ray raises bare exceptions where it does not start
                ray.shutdown()
                if number == tries or "timed out" not in str(error):
                    raise ValueError(_why_not(workers, error)) from error
                logger.info("Ray does not start within its time; trying again")
    finally:
        _restore(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray says of its tokens, and lance of every fork: Ray's start is one, which runs none of its code."""
    log = logging.getLogger("ray")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            yield
    finally:
        log.setLevel(before)


def _why_not(workers: Workers, error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    if workers.address is not None:
        return f"Ray does not answer at {workers.address}: {said}"
    remedy = "; this machine may be too busy: try again, or leave workers out" if "timed out" in said else ""
    return f"Ray does not start here{remedy}: {said}"


@contextmanager
def quick_start(folder: str | Path) -> Iterator[None]:
    """Processes of Ray that are started inside the context start five times as fast.

    Two things take nearly all of the 4 s of processor time that each takes to import Ray, and Ray gives its agents 15 s
    of the clock: where writing bytecode is forbidden every process compiles its modules again; and jsonschema, which
    Ray imports, loads a parser of internationalised addresses wherever JupyterLab has brought one. Ray checks no such
    address, so its processes do without. What Ray lets be changed of its patience is raised as well.

    Args:
        folder: holds the module that stands in for the parser, on the path of these processes as long as they run, and
            their temporary files: a worker that is ended in the middle of a part cannot remove its own.
    """
    imports, temporary = Path(folder) / "imports", Path(folder) / "temporary"
    imports.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    (imports / "rfc3987_syntax.py").write_text('raise ImportError("not loaded in the processes of Ray")\n')
    names = ("PYTHONPATH", "TMPDIR", "PYTHONDONTWRITEBYTECODE", *_PATIENCE)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(imports), before["PYTHONPATH"])))
    os.environ.update(_PATIENCE, TMPDIR=str(temporary))
    try:
        yield
    finally:
        for name in ("PYTHONPATH", "TMPDIR", *_PATIENCE):
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def ray_module() -> Any:
    """Ray, imported when it is needed."""
    # Read when the module is loaded: nothing about this machine is sent to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


def _options(workers: Workers, folder: str) -> dict[str, Any]:
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    if workers.address is not None:
        return {"address": workers.address, **quiet}
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = workers.count or cards or 1
    return {
        "address": "local",
        "num_cpus": count * max(1, torch.get_num_threads() // count),
        "num_gpus": cards,
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": folder,
        **quiet,
    }


def _signal_handler() -> Any:
    here = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGTERM) if here else None


def _restore(handler: Any) -> None:
    """Ray replaces the handler of SIGTERM; a command's own says how to continue."""
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)
