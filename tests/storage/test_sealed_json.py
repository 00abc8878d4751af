"""Sealed files come back as they were written, and a changed one is seen."""

import json
from pathlib import Path

import pytest

from interp.storage.sealed_json import read_sealed, write_sealed

CONTENT = {"threshold": 0.1 + 0.2, "names": ["é", "b"], "none": None}


def read(path: Path) -> dict[str, object]:
    return read_sealed(path, "interp-test", 2, what="a test", remedy="write it again")


def test_content_comes_back(tmp_path: Path) -> None:
    assert read(write_sealed(tmp_path / "x.json", "interp-test", 2, CONTENT)) == CONTENT


def test_changes_damage_and_other_files_are_named(tmp_path: Path) -> None:
    path = write_sealed(tmp_path / "x.json", "interp-test", 2, CONTENT)
    about = json.loads(path.read_text())
    for changes, message in (
        ({"threshold": 0.4}, "is damaged .its content is not what was written.; write it again"),
        ({"sha256": None}, "its content is not what was written"),
        ({"format": "other"}, "is not a test; write it again"),
        ({"format_version": 3}, "format_version 3, this interp reads up to 2; upgrade"),
    ):
        path.write_text(json.dumps({**about, **changes}))
        with pytest.raises(ValueError, match=message):
            read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read(path)
    with pytest.raises(ValueError, match=r"no such file of a test: .*absent"):
        read(tmp_path / "absent")
