"""Malformed input on the command line: exit code 2, one line that names what is wrong, and nothing left behind."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from interp.directions import Direction
from interp.storage.direction_files import write_direction
from tests.cli.commands import run
from tests.torture.damage import damaged_bytes, damaged_json

pytestmark = pytest.mark.torture

STORED = Path(__file__).parents[2] / "figures" / "demo"


class Case(NamedTuple):
    """A command on a malformed file."""

    how: str
    path: Path
    data: bytes
    words: Sequence[object]


def cases(place: Path, model: Path) -> Iterator[Case]:
    """Malformed files of every kind that a command reads, with the command."""
    rows = [{"instruction": f"How {i}?"} for i in range(6)]
    texts = {
        "prompts.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "prompts.json": json.dumps(rows).encode(),
        "prompts.csv": b"instruction\nHow?\nWhy?\n",
    }
    for name, data in texts.items():
        path = place / name
        words = ["collect", path, "--model", model, "--out", place / f"{name}.safetensors"]
        spoiled = [*damaged_bytes(data, seed=1)]
        if name != "prompts.csv":
            spoiled += damaged_json(rows, seed=2, n=60)
        yield from (Case(f"{name}, {how}", path, changed, words) for how, changed in spoiled)
    direction = write_direction(
        place / "d.safetensors", Direction(vector=torch.ones(32), layer=1, position="t_inst")
    )
    for how, changed in damaged_bytes(direction.read_bytes(), seed=3):
        yield Case(how, direction, changed, ["steer", "Hi", "-d", direction, "--model", model])
        yield Case(how, direction, changed, ["export", direction, "--out", place / "x.gguf"])
    config = json.loads((model / "config.json").read_text())
    copy = place / "model"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    for how, changed in (
        *damaged_json(config, seed=4, n=60),
        *damaged_bytes(json.dumps(config).encode(), seed=4),
    ):
        yield Case(how, copy / "config.json", changed, ["plan", "demo", "--model", copy])
    template = place / "template.jinja"
    for text in ("", "{% if", "{{ x.y.z }}", "{{ raise_exception('no') }}", "\0", "no instruction at all"):
        words = ["tokens", "Hi", "--model", model, "--chat-template", template]
        yield Case(text, template, text.encode(), words)
    folder = place / "run"
    folder.mkdir()
    for how, changed in damaged_bytes(b'{"format_version": 2, "experiment": "demo"}', seed=5):
        yield Case(how, folder / "result.json", changed, ["plot", folder])
        yield Case(how, folder / "result.json", changed, ["runs", "show", folder])
    for number, value in enumerate(
        ("n_test=-1", "n_test=x", "n_test=1e400", "n_test", "rules=[[1]]", "=", "seed=1")
    ):
        path = place / f"unused-{number}"
        yield Case(value, path, b"", ["run", "demo", "--model", model, "--set", value, "--out", place / "o"])
    for number, prompts in enumerate(
        ("absent", "harmful=", "harmful=a,harmless=b", "hub:", "data:nothing", "+")
    ):
        path = place / f"spare-{number}"
        yield Case(prompts, path, b"", ["run", "demo", "--prompts", prompts, "--out", place / "o"])


def refused_in_one_line(place: Path, model: Path, *, every: int) -> tuple[int, list[str]]:
    """Run the cases; returns how many were refused, and what went wrong."""
    refused, wrong = 0, list[str]()
    for case in [*cases(place, model)][::every]:
        whole = case.path.read_bytes() if case.path.exists() else None
        case.path.write_bytes(case.data)
        before = sorted(place.rglob("*"))
        result = run(*case.words)
        said = result.stderr.removesuffix("\n")
        label = f"{case.words[0]}, {case.how}: "
        if result.exit_code == 2:
            refused += 1
            if not said.startswith("error: ") or "\n" in said or "Traceback" in said or result.stdout:
                wrong.append(label + result.output)
        elif result.exit_code != 0:  # what is still whole may be read
            wrong.append(f"{label}exit code {result.exit_code} {result.exception!r}")
        if result.exit_code == 2 and sorted(place.rglob("*")) != before:
            wrong.append(f"{label}left behind {set(place.rglob('*')) - set(before)}")
        if whole is None:
            case.path.unlink()
        else:
            case.path.write_bytes(whole)
    return refused, wrong


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, a cache and a measured machine of its own."""
    from interp.engine.machine_speed import _key

    cache, place = tmp_path / "cache", tmp_path / "place"
    cache.mkdir()
    place.mkdir()
    speeds = {_key("float32", "cpu"): {"reading": 1e9, "decoding": 5e8}}
    (cache / "machine-speed.json").write_text(json.dumps(speeds))
    monkeypatch.setenv("INTERP_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return place


@pytest.mark.filterwarnings("ignore")
def test_a_slice_of_malformed_input(quiet: Path, saved_tiny: Path) -> None:
    refused, wrong = refused_in_one_line(quiet, saved_tiny, every=13)
    assert wrong == []
    assert refused >= 12


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_malformed_input(quiet: Path, saved_tiny: Path) -> None:
    refused, wrong = refused_in_one_line(quiet, saved_tiny, every=1)
    assert wrong == []
    assert refused >= 200
