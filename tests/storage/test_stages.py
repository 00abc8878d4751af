"""Finished stages are computed once, however often a run is killed."""

import logging
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from interp.stats import Estimate, rate
from interp.storage.stages import StageCache, open_stages
from tests.storage.test_run_folders import names, small_disk


class Counted:
    def __init__(self, value: object) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> object:
        self.calls += 1
        return self.value


@dataclass(frozen=True, kw_only=True)
class Scores:
    rates: dict[str, Estimate]
    place: tuple[int, int]


def test_finished_stages_are_not_computed_again(tmp_path: Path) -> None:
    typed, loose = Counted(Scores(rates={"a": rate([True])}, place=(1, 2))), Counted({"x": [1.5, math.nan]})
    tensors = Counted({"t": torch.arange(4.0).reshape(2, 2).T})
    for attempt in range(2):
        with (
            pytest.raises(RuntimeError),
            open_stages(tmp_path / "run", key={"rules": (0.1, math.inf)}) as stages,
        ):
            found = stages.keep("typed", typed, Scores)
            assert found == typed.value and found.rates["a"].n == 1
            assert stages.keep("loose", loose) == {"x": [1.5, None]}
            assert stages.keep("tensors", tensors)["t"].tolist() == [[0, 2], [1, 3]]
            raise RuntimeError(attempt)
    assert (typed.calls, loose.calls, tensors.calls) == (1, 1, 1)
    assert names(tmp_path) == ["run.parts"]
    with open_stages(tmp_path / "run", key={"rules": (0.1, math.inf)}) as stages:
        stages.keep("typed", typed, Scores)
    assert typed.calls == 1
    assert names(tmp_path) == []  # a whole run leaves none


def test_a_run_without_a_folder_gives_the_same_and_keeps_nothing() -> None:
    compute = Counted({"x": (1, math.nan)})
    for _ in range(2):
        with open_stages(None, key={}) as stages:
            assert stages.keep("x", compute) == {"x": [1, None]}
            place = stages.workspace("checkpoints")
            assert place.is_dir()
    assert compute.calls == 2
    assert not place.exists()


def test_a_missing_value_is_none_and_not_made_up(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", {})
    assert cache.get("x") is None and "x" not in cache
    assert names(tmp_path) == []  # asking writes nothing
    cache.put("x", {"a": 1})
    assert names(tmp_path / "cache") == ["code.sha256", "settings.sha256", "x.json"]
    cache.put("t", {"v": torch.ones(2)})
    assert cache.get("x") == {"a": 1} and "x" in cache and cache.names() == ["t", "x"]
    cache.drop("x")
    cache.drop("never there")
    assert cache.get("x") is None and cache.names() == ["t"]


def test_only_a_finished_stage_is_stored(tmp_path: Path) -> None:
    scores = Scores(rates={}, place=(1, 2))
    with pytest.raises(RuntimeError), open_stages(tmp_path / "run", key={}) as stages:
        assert stages.stored("scores", Scores) is None
        stages.keep("scores", lambda: scores, Scores)
        assert stages.stored("scores", Scores) == scores
        (tmp_path / "run.parts" / "scores.json").write_text("(")
        assert stages.stored("scores", Scores) is None
        raise RuntimeError
    with open_stages(None, key={}) as stages:
        stages.keep("scores", lambda: scores, Scores)
        assert stages.stored("scores", Scores) is None


def test_a_damaged_stage_is_named(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", {})
    cache.put("x", Scores(rates={}, place=(1, 2)), Scores)
    (tmp_path / "cache" / "x.json").write_text('{"rates": {}, "place": [1]}')
    with pytest.raises(ValueError, match=r"x\.json: place\.1: field required"):
        cache.get("x", Scores)


def test_a_damaged_stage_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers, tensors = Counted(1), Counted({"t": torch.ones(2)})
    cache = StageCache(tmp_path / "cache", {})
    for name, content in (("n.json", b'{"a": '), ("t.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{")):
        cache.keep("n", numbers, int)
        cache.keep("t", tensors)
        (tmp_path / "cache" / name).write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="interp"):
        assert cache.keep("n", numbers, int) == 1
        assert cache.keep("t", tensors)["t"].tolist() == [1, 1]
    assert (numbers.calls, tensors.calls) == (2, 2)
    assert "n.json" in caplog.text and "t.safetensors is damaged" in caplog.text


def test_a_run_that_finished_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_test"), open_stages(tmp_path / "new" / "run", key={}) as stages:
        stages.workspace("checkpoints")
        raise ValueError("n_test must be 1 or more")
    assert names(tmp_path) == []


def test_the_second_run_with_one_folder_is_refused(tmp_path: Path) -> None:
    """From another process, another thread, and the same one after a crash of the first."""
    first = "import sys\nfrom interp.storage.stages import open_stages\n"
    first += "with open_stages(sys.argv[1], key={}) as stages:\n"
    first += "    stages.keep('a', lambda: 1); print('running', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", first, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"running\n"
        for entry in (tmp_path / "run", tmp_path / "." / "run"):
            message = rf"run is being written by another run \(process {process.pid}\); wait until it ends"
            with pytest.raises(ValueError, match=message), open_stages(entry, key={}):
                raise AssertionError("two runs write one folder")
        assert names(tmp_path) == [".run.lock", "run.parts"]
        process.kill()
    with open_stages(tmp_path / "run", key={}) as stages:  # the lock died with its process
        assert stages.keep("a", Counted(2)) == 1
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(ValueError, match="is being written by another run"),
        ):
            pool.submit(lambda: open_stages(tmp_path / "run", key={}).__enter__()).result()
    assert names(tmp_path) == []


def test_settings_that_changed_start_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compute = Counted(1)
    for _ in range(2):
        StageCache(tmp_path / "cache", {"seed": 0}).keep("n", compute)
    assert compute.calls == 1
    with caplog.at_level(logging.WARNING, logger="interp"):
        StageCache(tmp_path / "cache", {"seed": 1}).keep("n", compute)
    assert compute.calls == 2
    assert "stages of a run with other settings; starting again" in caplog.text
    assert names(tmp_path) == ["cache"]


def test_stages_of_other_code_are_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compute, said = Counted(1), "stages that another version of interp computed; remove"
    StageCache(tmp_path / "cache", {}).keep("n", compute)
    with caplog.at_level(logging.WARNING, logger="interp"):
        StageCache(tmp_path / "cache", {}).keep("n", compute)
        assert said not in caplog.text
        (tmp_path / "cache" / "code.sha256").write_text("0" * 64)
        StageCache(tmp_path / "cache", {}).keep("n", compute)
    assert said in caplog.text
    assert compute.calls == 1


def test_a_stage_that_fails_is_not_kept(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", {})

    def fail() -> dict[str, torch.Tensor]:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        cache.keep("x", fail)
    with small_disk(100_000), pytest.raises(OSError, match="cannot write"):
        cache.keep("x", lambda: {"t": torch.ones(100_000)})
    assert "x" not in cache
    assert cache.keep("x", Counted({"t": torch.ones(1)}))["t"].tolist() == [1]


def test_a_kill_while_stages_are_removed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", {})
    cache.put("x", 1)
    away = tmp_path / ".cache.removed-abc"  # what a kill between renaming and removing leaves
    away.mkdir()
    (tmp_path / "cache").rename(away / "stages")
    again = StageCache(tmp_path / "cache", {})
    assert "x" not in again
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_run_continues_with_the_stage_it_was_at(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def run(dies: bool) -> None:
        def compute(name: str, value: object) -> object:
            with log.open("a") as stream:
                stream.write(name)
            if dies and name == "c":
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        with open_stages(tmp_path / "run", key={"seed": 0}) as stages:
            stages.keep("a", lambda: compute("a", 1))
            stages.keep("b", lambda: compute("b", {"t": torch.ones(2)}))
            stages.keep("c", lambda: compute("c", 3))

    def start(dies: bool) -> int:
        """The exit code of a process that does the run."""
        if (child := os.fork()) == 0:
            try:
                run(dies)
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert start(dies=True) == -signal.SIGKILL
    assert log.read_text() == "abc"
    assert start(dies=False) == 0
    assert log.read_text() == "abcc"  # a and b were there, c was not
    assert names(tmp_path) == ["log"]


def test_seconds_are_booked_by_stage_and_summed() -> None:
    with open_stages(None, key={}) as stages:
        stages.lap("a")
        stages.lap("b")
        stages.lap("a")
        assert list(stages.seconds) == ["a", "b", "total"]
        assert stages.seconds["total"] == pytest.approx(stages.seconds["a"] + stages.seconds["b"], abs=2e-3)
        assert list(stages.progress(iter([3, 4]), "counting")) == [3, 4]
