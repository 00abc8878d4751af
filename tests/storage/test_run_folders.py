"""Run folders are whole or not there; killed runs continue."""

import errno
import gzip
import json
import math
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
import pytest
import torch

from interp.stats import Estimate, Measured, rate
from interp.storage import typed_json
from interp.storage.atomic_files import write_file
from interp.storage.run_folders import (
    read_header,
    read_result,
    read_tensors,
    replacing_folder,
    stored_json,
    write_run,
)

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


@dataclass(frozen=True, kw_only=True)
class Small:
    a: int


@dataclass(frozen=True, kw_only=True)
class Nested:
    rate: Estimate
    nothing: Estimate
    rows: tuple[tuple[int, Measured], ...]
    by_kind: dict[str, int | None]


def save(folder: Path, a: int, **options: Any) -> Path:
    return write_run(folder, "small", Small(a=a), **options)


def load(folder: Path) -> int:
    found = read_result(read_header(folder), Small).a
    read_tensors(folder)
    return found


# Whole folders


def test_round_trip(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"base": base, "view": base[:, 1], "half": base.bfloat16(), "ids": torch.tensor([3, 1])}
    figure = go.Figure(go.Bar(x=["a"], y=[1.5]))
    folder = tmp_path / "runs" / "first"
    nested = Nested(
        rate=rate([True, False]), nothing=rate([]), rows=((1, math.inf), (2, 2.5)), by_kind={"é": None}
    )
    where = write_run(
        folder,
        "nested",
        nested,
        tensors=tensors,
        figures={"bars": figure},
        report="<p>é</p>",
        files={"refusal.safetensors": b"\x00\x01"},
    )
    assert where == folder
    header = read_header(folder)
    assert header.experiment == "nested"
    assert header.body["rows"] == [[1, None], [2, 2.5]]  # not measurable is null
    back = read_result(header, Nested)
    assert back.rate == nested.rate and not back.nothing.measurable
    assert math.isnan(back.rows[0][1]) and back.rows[1] == (2, 2.5) and back.by_kind == {"é": None}
    stored = read_tensors(folder)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(stored[name], tensor)
        assert stored[name].dtype == tensor.dtype
    assert plotly.io.from_json((folder / "figures" / "bars.json").read_text()) == figure
    assert (folder / "report.html").read_text(encoding="utf-8") == "<p>é</p>"
    assert (folder / "refusal.safetensors").read_bytes() == b"\x00\x01"
    assert "NaN" not in (folder / "result.json").read_text()
    assert names(tmp_path / "runs") == ["first"]


def test_minimal_result_holds_one_file(tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    assert names(tmp_path / "run") == ["result.json"]
    assert read_tensors(tmp_path / "run") == {}


def test_a_new_result_replaces_the_old_one_whole(tmp_path: Path) -> None:
    save(tmp_path / "run", 1, tensors={"t": torch.ones(2)}, report="old")
    save(tmp_path / "run", 2)
    assert load(tmp_path / "run") == 2
    assert names(tmp_path / "run") == ["result.json"]
    assert names(tmp_path) == ["run"]


def test_saved_folder_can_be_read_by_others(tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("writer", ["tensors", "figures", "files"])
@pytest.mark.parametrize("had_result", [True, False])
def test_failure_in_mid_write_leaves_the_old_result_or_none(
    writer: str, had_result: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    if had_result:
        save(folder, 1, report="old")

    def fail(*_: object, **__: object) -> None:
        raise FULL

    if writer == "tensors":
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    if writer == "files":
        monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left on device"):
        save(
            folder,
            2,
            tensors={"t": torch.ones(2)},
            figures={"f": UnwritableFigure()} if writer == "figures" else None,
            files={"x": b"x"},
        )
    assert names(tmp_path) == (["run"] if had_result else [])
    if had_result:
        assert load(folder) == 1
        assert names(folder) == ["report.html", "result.json"]


def test_a_disk_that_fills_up_under_safetensors_is_an_oserror(tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    with small_disk(100_000), pytest.raises(OSError, match=r"cannot write .*tensors\.safetensors"):
        save(tmp_path / "run", 2, tensors={"t": torch.ones(100_000)})
    assert load(tmp_path / "run") == 1


def test_kill_between_the_two_renames_is_recovered_on_reading(tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    (tmp_path / "run").rename(tmp_path / ".run.old")
    assert load(tmp_path / "run") == 1
    assert names(tmp_path) == ["run"]


def test_kill_between_the_two_renames_is_recovered_on_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "run", 1)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if Path(target).name == "run":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "run", 2)
    assert names(tmp_path) == [".run.old"]  # control: this is the state in question
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "run", 2, figures={"f": UnwritableFigure()})
    assert load(tmp_path / "run") == 1
    save(tmp_path / "run", 3)
    assert load(tmp_path / "run") == 3
    assert names(tmp_path) == ["run"]


def test_leftover_of_a_kill_after_both_renames_is_removed(tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    for use in (load, lambda folder: save(folder, 1)):
        save(tmp_path / ".run.old", 0)
        use(tmp_path / "run")
        assert load(tmp_path / "run") == 1
        assert names(tmp_path) == ["run"]


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files and no result; give a new or empty folder"):
        save(tmp_path, 1)
    assert names(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis\.tex is a file; give a folder"):
        save(tmp_path / "thesis.tex", 1)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", 1)
    assert load(tmp_path / "empty") == 1


def test_drafts_of_killed_processes_are_removed_and_those_of_running_ones_kept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        running = f".run.draft-{platform.node()}-{process.pid}-0a1b2c3d"
        for name in (running, f".run.draft-{platform.node()}-{2**22 + 1}-0a1b2c3d", ".run.removed-abc"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "result.json").write_text("{}")
        other = f".run.draft-elsewhere.{platform.node()}-{2**22 + 1}-0a1b2c3d"  # another machine's
        (tmp_path / other).mkdir()
        save(tmp_path / "run", 1)
        assert names(tmp_path) == sorted(["run", running, other])
        process.kill()
    save(tmp_path / "run", 2)
    assert names(tmp_path) == sorted(["run", other])
    (tmp_path / f".a.json.draft-{platform.node()}-{process.pid}-0a1b2c3d").write_text("half")
    write_file(tmp_path / "a.json", b"whole")
    assert names(tmp_path) == sorted(["run", other, "a.json"])


def test_the_working_folder_is_filled_and_stays_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    inode = work.stat().st_ino
    save(Path(), 1, report="old", files={"old.bin": b"x"})
    assert load(Path()) == 1 and names(work) == ["old.bin", "report.html", "result.json"]
    save(Path(), 2, figures={"bars": go.Figure()})
    assert load(work) == 2 and names(work) == ["figures", "result.json"]
    assert work.stat().st_ino == Path().stat().st_ino == inode
    assert names(tmp_path) == ["work"]


@pytest.mark.parametrize("step", range(1, 12))
def test_a_kill_while_the_working_folder_is_filled_is_completed(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, steps = tmp_path / "work", iter(range(1, 99))
    work.mkdir()
    monkeypatch.chdir(work)
    save(Path(), 1, report="old", files={"old.bin": b"x"})

    def killed(change: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            if next(steps) == step:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return changed

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(Path, name, killed(getattr(Path, name)))
        try:
            save(Path(), 2, files={"new.bin": b"y"})
        except KeyboardInterrupt:
            pass
        else:
            assert step > 8  # control: the loop covers every change
    found = load(Path())
    assert names(work) == (
        ["new.bin", "result.json"] if found == 2 else ["old.bin", "report.html", "result.json"]
    )
    save(Path(), 3)
    assert load(Path()) == 3 and names(work) == ["result.json"]
    assert names(tmp_path) == ["work"]


def test_draft_vanishes_when_the_context_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), replacing_folder(tmp_path / "run") as draft:
        (draft / "part").write_text("x")
        assert names(tmp_path) == sorted([draft.name, ".run.lock"])
        raise RuntimeError("boom")
    assert names(tmp_path) == []


# Reading what is not well


@pytest.mark.parametrize("found", [1, 99, None, "2"])
def test_unknown_format_version(found: object, tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    changed = {"format_version": found, "experiment": "small", "a": 1}
    (tmp_path / "run" / "result.json").write_text(json.dumps(changed))
    with pytest.raises(
        ValueError,
        match=rf"has format_version {found}, this interp reads 2; make it again with `interp run small",
    ):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [[1, "high"], [2, 2.5]]}, r"result\.json: rows\.0\.1: .*number.*got 'high'"),
        ({"rate": {"value": 0.5, "n": 2.5}}, r"result\.json: rate\.n: .*integer.*got 2\.5"),
        ({"nothing": None}, r"result\.json: nothing: .*Nested|result\.json: nothing: "),
        ({"by_kind": {"harmful": [3]}}, r"result\.json: by_kind\.harmful: "),
    ],
)
def test_a_wrong_field_is_named_with_its_path(change: dict, message: str, tmp_path: Path) -> None:
    nested = Nested(rate=rate([True]), nothing=rate([]), rows=((1, 2.0), (2, 2.5)), by_kind={})
    path = write_run(tmp_path / "run", "nested", nested) / "result.json"
    whole = json.loads(path.read_text())
    assert read_result(read_header(path.parent), Nested).rows == nested.rows  # control
    path.write_text(json.dumps({**whole, **change}))
    with pytest.raises(ValueError, match=message):
        read_result(read_header(path.parent), Nested)
    del whole["rate"]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"result\.json: rate: field required"):
        read_result(read_header(path.parent), Nested)


CHANGES: list[tuple[str, Any]] = [
    ("rate", {"value": 0.75, "n": 2, "low": 0.1, "high": 0.9, "unit": "share", "interval": "Wilson"}),
    ("rows", [[1, None], [2, 2.75]]),
    ("by_kind", {"é": 4}),
    ("experiment", "other"),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_a_value_changed_after_writing_is_seen(field: str, value: Any, tmp_path: Path) -> None:
    nested = Nested(
        rate=rate([True, False]), nothing=rate([]), rows=((1, math.inf), (2, 2.5)), by_kind={"é": 3}
    )
    path = write_run(tmp_path / "run", "nested", nested) / "result.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole, sort_keys=True))  # control: another layout of the same numbers
    assert read_result(read_header(path.parent), Nested).rate == nested.rate
    path.write_text(json.dumps({**whole, field: value}))
    with pytest.raises(ValueError, match=r"run/result\.json was changed after it was written .* run the exp"):
        read_result(read_header(path.parent), Nested)
    del whole["sha256"]  # as runs were written before the hash was recorded
    path.write_text(json.dumps(whole))
    assert read_result(read_header(path.parent), Nested).rate == nested.rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 7.0}, r"result\.json: rate: .*within 0 to 1|result\.json: rate: .*in order"),
        ({"n": -3}, r"result\.json: rate: .*counts must be 0 or more, got n -3"),
        ({"low": 0.9, "high": 0.1}, r"result\.json: rate: .*in order, got 0\.9, 0\.5 and 0\.1"),
    ],
)
def test_numbers_that_cannot_be_an_estimate_are_refused_without_a_hash_as_well(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    nested = Nested(rate=rate([True, False]), nothing=rate([]), rows=(), by_kind={})
    path = write_run(tmp_path / "run", "nested", nested) / "result.json"
    whole = json.loads(path.read_text())
    del whole["sha256"]
    path.write_text(json.dumps({**whole, "rate": {**whole["rate"], **change}}))
    with pytest.raises(ValueError, match=message) as caught:
        read_result(read_header(path.parent), Nested)
    assert "\n" not in str(caught.value)


def test_a_tensor_changed_after_writing_is_seen(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", 1, tensors={"t": torch.arange(3.0)})
    stored = folder / "tensors.safetensors"
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"tensors\.safetensors is damaged \(its content is not what was"):
        read_tensors(folder)


def test_folder_without_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no result\.json; is it the --out of a finished run\?"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"absent holds no result\.json"):
        load(tmp_path / "absent")


def test_damaged_files_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", 1, tensors={"t": torch.ones(3)})
    stored = folder / "tensors.safetensors"
    stored.write_bytes(stored.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"tensors\.safetensors .* is damaged .*; run the experiment again"):
        load(folder)
    path = folder / "result.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"result\.json is damaged \(.*line \d+.*\); run the experiment again"
    ):
        load(folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"is damaged \(input should be an object\); run"):
        load(folder)


def test_a_compressed_result_is_the_result_and_a_damaged_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_run(tmp_path / "run", "small", Small(a=1)) / "result.json"
    header = read_header(plain.parent)
    packed = plain.with_name("result.json.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert read_header(packed.parent)._replace(path=plain) == header
    assert stored_json(packed.parent)["experiment"] == "small"
    whole = packed.read_bytes()
    for damaged in (whole[:-20], b"{" + whole, whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"result\.json\.gz is damaged \(.*\); run the experiment again"):
            read_header(packed.parent)
    packed.write_bytes(gzip.compress(bytes(3 << 20)))
    monkeypatch.setattr(typed_json, "_LARGEST", 1 << 20)
    with pytest.raises(ValueError, match="over 1 MiB when decompressed"):
        read_header(packed.parent)
