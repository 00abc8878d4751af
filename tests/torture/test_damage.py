"""Damaged files of every kind that the tool reads: each is read, or refused in one line that names the file.

Where the file proves its content, a damaged one is refused or reads as the whole one does.
"""

from pathlib import Path

import pytest

from tests.torture.files import FAMILIES, Kind


def sweep(kind: Kind, *, every: int = 1) -> tuple[int, list[str]]:
    """Read every damaged version; returns how many were refused, and what went wrong."""
    whole, before = kind.path.read_bytes(), sorted(kind.path.parent.iterdir())
    expected = kind.read()  # control: the whole file is read
    refused, wrong = 0, list[str]()
    for how, data in kind.damaged[::every]:
        kind.path.write_bytes(data)
        try:
            found = kind.read()
            if kind.sealed and found != expected:
                wrong.append(f"{kind.path.name}, {how}: read as something else")
        except (ValueError, OSError) as error:
            refused += 1
            message = str(error)
            if "\n" in message.strip() or kind.named not in message or "weights_only=" in message:
                wrong.append(f"{kind.path.name}, {how}: {message}")
        except Exception as error:
            wrong.append(f"{kind.path.name}, {how}: {type(error).__name__} {error}")
    kind.path.write_bytes(whole)
    kind.read()
    if sorted(kind.path.parent.iterdir()) != before:
        wrong.append(f"{kind.path.name}: files left behind")
    return refused, wrong


@pytest.mark.parametrize("family", ["directions", "guards", "prompts"])
@pytest.mark.filterwarnings("ignore")
def test_a_slice_of_the_damaged_files(family: str, tmp_path: Path) -> None:
    found = [sweep(kind, every=9) for kind in FAMILIES[family](tmp_path)]
    assert [line for _, wrong in found for line in wrong] == []
    assert sum(refused for refused, _ in found) > 20


@pytest.mark.torture
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_every_damaged_file(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    found = [sweep(kind) for kind in FAMILIES[family](tmp_path)]
    assert [line for _, wrong in found for line in wrong] == []
    assert sum(refused for refused, _ in found) > 150
