"""Run folders are whole or not there; killed runs continue."""

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
import pytest
import torch

from interp.stats import rate
from interp.storage import run_folders as results
from interp.storage.atomic_files import write_file
from interp.storage.provenance import library_versions
from interp.storage.run_folders import replacing_folder
from interp.storage.untyped import Parts, load_result, save_result

FULL = OSError(errno.ENOSPC, "No space left on device")


class UnwritableFigure:
    def to_json(self) -> str:
        raise FULL


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Whole folders


def test_round_trip(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"base": base, "view": base[:, 1], "half": base.bfloat16(), "ids": torch.tensor([3, 1])}
    figure = go.Figure(go.Bar(x=["a"], y=[1.5]))
    folder = tmp_path / "runs" / "first"
    where = save_result(
        folder,
        {
            "experiment": "x",
            "rate": rate([True, False]),
            "empty": rate([]),
            "rows": ({"layer": 1, "kl": float("inf")}, [float("nan"), 2.5, None, True]),
            "tensor": torch.tensor([1.0, float("nan")]),
            3: "key",
        },
        tensors=tensors,
        figures={"bars": figure},
        report="<p>é</p>",
        files={"refusal.safetensors": b"\x00\x01"},
    )
    assert where == folder
    stored = load_result(folder)
    assert stored.folder == folder
    expected = rate([True, False])
    assert stored.numbers == {
        "experiment": "x",
        "rate": {"value": 0.5, "n": 2, "low": expected.low, "high": expected.high},
        "empty": {"value": None, "n": 0, "low": None, "high": None},
        "rows": [{"layer": 1, "kl": None}, [None, 2.5, None, True]],
        "tensor": [1.0, None],
        "3": "key",
    }
    assert stored.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(stored.tensors[name], tensor)
        assert stored.tensors[name].dtype == tensor.dtype
    assert plotly.io.from_json((folder / "figures" / "bars.json").read_text()) == figure
    assert (folder / "report.html").read_text(encoding="utf-8") == "<p>é</p>"
    assert (folder / "refusal.safetensors").read_bytes() == b"\x00\x01"
    assert "NaN" not in (folder / "result.json").read_text()
    assert names(tmp_path / "runs") == ["first"]


def test_minimal_result_holds_one_file(tmp_path: Path) -> None:
    save_result(tmp_path / "run", {"a": 1})
    assert names(tmp_path / "run") == ["result.json"]
    assert load_result(tmp_path / "run").tensors == {}


def test_a_new_result_replaces_the_old_one_whole(tmp_path: Path) -> None:
    save_result(tmp_path / "run", {"a": 1}, tensors={"t": torch.ones(2)}, report="old")
    save_result(tmp_path / "run", {"a": 2})
    assert load_result(tmp_path / "run").numbers == {"a": 2}
    assert names(tmp_path / "run") == ["result.json"]
    assert names(tmp_path) == ["run"]


def test_saved_folder_can_be_read_by_others(tmp_path: Path) -> None:
    save_result(tmp_path / "run", {"a": 1})
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("writer", ["tensors", "figures", "files"])
@pytest.mark.parametrize("had_result", [True, False])
def test_failure_in_mid_write_leaves_the_old_result_or_none(
    writer: str, had_result: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    if had_result:
        save_result(folder, {"a": 1}, report="old")

    def fail(*_: object, **__: object) -> None:
        raise FULL

    if writer == "tensors":
        monkeypatch.setattr(results, "save_file", fail)
    if writer == "files":
        monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left on device"):
        save_result(
            folder,
            {"a": 2},
            tensors={"t": torch.ones(2)},
            figures={"f": UnwritableFigure()} if writer == "figures" else None,
            files={"x": b"x"},
        )
    assert names(tmp_path) == (["run"] if had_result else [])
    if had_result:
        assert load_result(folder).numbers == {"a": 1}
        assert names(folder) == ["report.html", "result.json"]


def test_a_disk_that_fills_up_under_safetensors_is_an_oserror(tmp_path: Path) -> None:
    save_result(tmp_path / "run", {"a": 1})
    with small_disk(100_000), pytest.raises(OSError, match=r"cannot write .*tensors\.safetensors"):
        save_result(tmp_path / "run", {"a": 2}, tensors={"t": torch.ones(100_000)})
    assert load_result(tmp_path / "run").numbers == {"a": 1}
    parts = Parts(tmp_path / "run", {})
    with small_disk(100_000), pytest.raises(OSError, match="cannot write"):
        parts.tensors("t", lambda: {"t": torch.ones(100_000)})
    assert parts.tensors("t", lambda: {"t": torch.ones(2)})["t"].tolist() == [1, 1]


def test_kill_between_the_two_renames_is_recovered_on_reading(tmp_path: Path) -> None:
    save_result(tmp_path / "run", {"a": 1})
    (tmp_path / "run").rename(tmp_path / ".run.old")
    assert load_result(tmp_path / "run").numbers == {"a": 1}
    assert names(tmp_path) == ["run"]


def test_kill_between_the_two_renames_is_recovered_on_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_result(tmp_path / "run", {"a": 1})
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if Path(target).name == "run":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save_result(tmp_path / "run", {"a": 2})
    assert names(tmp_path) == [".run.old"]  # control: this is the state in question
    with pytest.raises(OSError, match="No space left"):
        save_result(tmp_path / "run", {"a": 2}, figures={"f": UnwritableFigure()})
    assert load_result(tmp_path / "run").numbers == {"a": 1}
    save_result(tmp_path / "run", {"a": 3})
    assert load_result(tmp_path / "run").numbers == {"a": 3}
    assert names(tmp_path) == ["run"]


def test_leftover_of_a_kill_after_both_renames_is_removed(tmp_path: Path) -> None:
    save_result(tmp_path / "run", {"a": 1})
    for use in (load_result, lambda folder: save_result(folder, {"a": 1})):
        save_result(tmp_path / ".run.old", {"a": 0})
        use(tmp_path / "run")
        assert load_result(tmp_path / "run").numbers == {"a": 1}
        assert names(tmp_path) == ["run"]


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files and no result; give a new or empty folder"):
        save_result(tmp_path, {"a": 1})
    assert names(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis\.tex is a file; give a folder"):
        save_result(tmp_path / "thesis.tex", {"a": 1})
    (tmp_path / "empty").mkdir()
    save_result(tmp_path / "empty", {"a": 1})
    assert load_result(tmp_path / "empty").numbers == {"a": 1}


def test_draft_vanishes_when_the_context_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), replacing_folder(tmp_path / "run") as draft:
        (draft / "part").write_text("x")
        assert names(tmp_path) == [draft.name]
        raise RuntimeError("boom")
    assert names(tmp_path) == []


# Reading what is not well


@pytest.mark.parametrize("found", [2, 99, None, "1"])
def test_unknown_format_version(found: object, tmp_path: Path) -> None:
    save_result(tmp_path / "run", {"a": 1})
    (tmp_path / "run" / "result.json").write_text(json.dumps({"format_version": found, "a": 1}))
    with pytest.raises(
        ValueError, match=rf"has format_version {found}, this interp reads 1; install the interp"
    ):
        load_result(tmp_path / "run")


def test_folder_without_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no result\.json; is it the --out of a finished run\?"):
        load_result(tmp_path)
    with pytest.raises(ValueError, match=r"absent holds no result\.json"):
        load_result(tmp_path / "absent")


def test_damaged_files_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    folder = save_result(tmp_path / "run", {"a": [1, 2]}, tensors={"t": torch.ones(3)})
    stored = folder / "tensors.safetensors"
    stored.write_bytes(stored.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"tensors\.safetensors is damaged .*; run the experiment again"):
        load_result(folder)
    path = folder / "result.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"result\.json is damaged \(.*line \d+\); run the experiment again"):
        load_result(folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"has format_version None"):
        load_result(folder)


# Parts of a run


class Counted:
    def __init__(self, value: object) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> object:
        self.calls += 1
        return self.value


def test_finished_parts_are_not_computed_again(tmp_path: Path) -> None:
    value = {"x": [1.5, float("nan")], "rate": rate([True])}
    numbers, tensors = Counted(value), Counted({"t": torch.arange(4.0).reshape(2, 2).T})
    for _ in range(2):
        parts = Parts(tmp_path / "run", {"seed": 0, "rules": (0.1, float("inf"))})
        found = parts.numbers("n", numbers)
        assert found["x"] == [1.5, None]
        assert found["rate"]["n"] == 1
        assert parts.tensors("t", tensors)["t"].tolist() == [[0, 2], [1, 3]]
    assert (numbers.calls, tensors.calls) == (1, 1)
    assert names(tmp_path) == ["run.parts"]
    parts.discard()
    assert names(tmp_path) == []


def test_settings_that_changed_start_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compute = Counted(1)
    Parts(tmp_path / "run", {"seed": 0}).numbers("n", compute)
    Parts(tmp_path / "run", {"seed": 0}).numbers("n", compute)
    assert compute.calls == 1
    with caplog.at_level(logging.WARNING, logger="interp"):
        Parts(tmp_path / "run", {"seed": 1}).numbers("n", compute)
    assert compute.calls == 2
    assert "parts of a run with other settings; starting anew" in caplog.text


def test_parts_of_other_code_are_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compute, said = Counted(1), "parts that another version of interp made; remove it"
    Parts(tmp_path / "run", {}).numbers("n", compute)
    with caplog.at_level(logging.WARNING, logger="interp"):
        Parts(tmp_path / "run", {}).numbers("n", compute)
        assert said not in caplog.text
        (tmp_path / "run.parts" / "code.sha256").write_text("0" * 64)
        Parts(tmp_path / "run", {}).numbers("n", compute)
    assert said in caplog.text
    assert compute.calls == 1


def test_a_part_that_fails_is_not_kept(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "run", {})

    def fail() -> dict[str, torch.Tensor]:
        raise RuntimeError("boom")

    for method in (parts.numbers, parts.tensors):
        with pytest.raises(RuntimeError, match="boom"):
            method("x", fail)
    assert parts.numbers("x", Counted(7)) == 7
    assert parts.tensors("x", Counted({"t": torch.ones(1)}))["t"].tolist() == [1]


RUN = """
import os, signal, sys
from pathlib import Path
import torch
from interp.storage.run_folders import Parts

log = Path(sys.argv[2])
parts = Parts(sys.argv[1], {"seed": 0})

def compute(name, value):
    with log.open("a") as stream:
        stream.write(name)
    if name == "c" and sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return value

parts.numbers("a", lambda: compute("a", 1))
parts.tensors("b", lambda: compute("b", {"t": torch.ones(2)}))
parts.numbers("c", lambda: compute("c", 3))
"""


def test_a_killed_run_continues_with_the_part_it_was_at(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def start(how: str) -> int:
        command = [sys.executable, "-c", RUN, str(tmp_path / "run"), str(log), how]
        return subprocess.run(command, check=False, timeout=60).returncode

    assert start("die") == -signal.SIGKILL
    assert log.read_text() == "abc"
    assert start("live") == 0
    assert log.read_text() == "abcc"  # a and b were there, c was not


# Single files


def test_write_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "er" / "x.json"
    write_file(path, b"old")
    assert path.read_bytes() == b"old"
    with small_disk(1000), pytest.raises(OSError, match="File too large"):
        write_file(path, b"x" * 5000)
    assert path.read_bytes() == b"old"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["x.json"]
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_library_versions_are_those_installed() -> None:
    found = library_versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"transformers", "transformer-lens", "interp-workbench"} <= found.keys()
