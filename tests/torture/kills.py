"""`kill -9` before the k-th change that a process makes to the file system."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.storage.tensor_files import read_safetensors

_CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.chmod",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def in_child(work: Callable[[], Any], root: Path, *, kill_at: int = 0) -> int:
    """Do the work in a forked process; returns the number of changes below `root`, or -9 where it was killed.

    Args:
        kill_at: the change before which it is killed, counted from 1; 0 lets it finish.

    Raises:
        AssertionError: the work raised an exception, which is printed.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        try:
            count = _watch(root, kill_at)
            work()
            os.write(writer, str(count[0]).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    _, ended = os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        said = stream.read()
    if os.WIFSIGNALED(ended):
        return -os.WTERMSIG(ended)
    assert os.WEXITSTATUS(ended) == 0, "the work failed in the child"
    return int(said)


def _watch(root: Path, kill_at: int) -> list[int]:
    """Count changes below a folder from now on; the counter is a list of one number."""
    count, below = [0], str(root.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if not (isinstance(flags, int) and flags & _WRITING):
                return
        elif event not in _CHANGES:
            return
        paths = [os.fsdecode(path) for path in arguments[:2] if isinstance(path, (str, bytes, os.PathLike))]
        # Removing a tree names files relative to an open folder.
        if not any(path.startswith(below) or not os.path.isabs(path) for path in paths):  # noqa: PTH117
            return
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def content(folder: Path) -> dict[str, Any]:
    """What a run folder or a trained folder says, without times: numbers, tensors, records."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and "figures" not in name:
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            file = read_safetensors(path)  # the order of a header is not fixed
            found[name] = file.metadata, {key: value.tolist() for key, value in file.tensors.items()}
        elif path.is_file():
            found[name] = "there"
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(item)
            for key, item in value.items()
            # The hash covers the times as well.
            if key not in ("created", "seconds", "cost", "sha256")
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def killed_everywhere(work: Callable[[Path], Any], root: Path, *, every: int = 1) -> int:
    """Kill the work before each of its changes, start it again, and compare with one that was left alone.

    Args:
        work: writes the folder that it is given; started again it continues.
        every: kill before every n-th change only.

    Returns:
        Number of kills.

    Raises:
        AssertionError: another result, or something left beside it.
    """
    alone = root / "alone"
    alone.mkdir()
    changes = in_child(lambda: work(alone / "run"), alone)
    expected, kills = content(alone / "run"), 0
    for step in range(1, changes + 1, every):
        place = root / f"at-{step}"
        place.mkdir()
        out = place / "run"
        assert in_child(lambda out=out: work(out), place, kill_at=step) == -signal.SIGKILL
        in_child(lambda out=out: work(out), place)
        assert content(out) == expected, f"another result after a kill before change {step}"
        left = sorted(path.name for path in place.iterdir())
        assert left == ["run"], f"left after a kill before change {step}: {left}"
        inside = [path.name for path in out.rglob(".*")]
        assert not inside, f"left inside after a kill before change {step}: {inside}"
        kills += 1
    return kills
