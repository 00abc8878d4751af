"""`kill -9` at a random moment of a command: forked processes that are killed by the clock, not by what they do."""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.kills import content


def forked(work: Callable[[], Any], *, seconds: float | None = None) -> tuple[bool, float]:
    """Do the work in a forked process, killed after `seconds`; returns whether it ended by itself, and its time.

    Raises:
        AssertionError: the work raised an exception, which is printed.
    """
    begun = time.monotonic()
    if (child := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if seconds is not None:
        while time.monotonic() < begun + seconds:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            time.sleep(0.002)
        else:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
    else:
        _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0, "the work failed in the child"
    return not killed, time.monotonic() - begun


def killed_at_random(work: Callable[[Path], Any], root: Path, *, times: int, seed: int = 0) -> int:
    """Kill the work at random moments, start it again until it is whole, and compare with one left alone.

    Args:
        work: writes the folder that it is given; started again it continues or begins again.
        times: number of kills to try.

    Returns:
        Number of kills that hit it running.

    Raises:
        AssertionError: another result, or something left beside it.
    """
    alone = root / "alone"
    alone.mkdir()
    _, whole = forked(lambda: work(alone / "run"))
    expected, rng, hits = content(alone / "run"), random.Random(seed), 0
    left_alone = sorted(path.name for path in alone.iterdir())
    for number in range(times):
        place = root / f"kill-{number}"
        place.mkdir()
        ended, _ = forked(lambda place=place: work(place / "run"), seconds=rng.uniform(0, whole))
        hits += not ended
        forked(lambda place=place: work(place / "run"))
        assert content(place / "run") == expected, f"another result after kill {number}"
        left = sorted(path.name for path in place.iterdir())
        assert left == left_alone, f"left after kill {number}: {left}"
    return hits
