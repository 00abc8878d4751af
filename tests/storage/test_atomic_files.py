"""Single files are whole or not there."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from interp.storage.atomic_files import remove_folder, write_file
from tests.storage.test_run_folders import small_disk

FULL = OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


@pytest.mark.parametrize("before", ["rename", "rmtree"])
def test_a_removal_that_was_killed_is_completed_by_the_next_one(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run.parts"
    folder.mkdir()
    (folder / "state").write_text("x")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "rename") if before == "rename" else (shutil, "rmtree")), killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(folder)
    assert folder.is_dir() == (before == "rename")  # control: renamed or not yet
    assert any(name.startswith(".run.parts.removed-") for name in names(tmp_path))
    remove_folder(folder)
    assert names(tmp_path) == []
