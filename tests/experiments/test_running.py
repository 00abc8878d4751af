"""Stored runs open without a model, are found where they are, and are computed where they are not."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest

import interp
from interp.experiments import EXPERIMENTS
from interp.experiments.running import find_run, open_run, run

ROOT = Path(interp.__file__).parent.parent
STORED = sorted(path.parent for path in (ROOT / "figures").glob("*/result.json"))


@pytest.mark.parametrize("folder", STORED, ids=lambda path: path.name)
def test_every_stored_run_opens_and_shows_itself(folder: Path) -> None:
    stored = open_run(folder)
    drawn = stored.figures()
    assert drawn and all(isinstance(figure, go.Figure) for figure in drawn.values())
    assert len(stored.table()) > 0
    html, text = stored._repr_html_(), repr(stored)
    for part in (stored.numbers["provenance"]["model"], *drawn, *stored.verdicts()[0].split()[:3]):
        assert part in html and part in text


def test_opening_needs_no_model_library() -> None:
    code = f"import interp, sys; interp.open_run({str(STORED[0])!r}).figures()\n"
    code += "print('transformer_lens' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_where_a_stored_run_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    assert find_run("demo") is None
    for place in (tmp_path / "figures" / "demo", tmp_path / "runs" / "demo", notebooks / "elsewhere"):
        place.mkdir(parents=True)
        (place / "result.json").write_bytes((ROOT / "figures" / "demo" / "result.json").read_bytes())
        if place.name == "demo":  # a run of one's own comes before the published one
            assert find_run("demo") == place
    assert find_run("demo", out="elsewhere") == Path("elsewhere")
    assert find_run("demo", out="nowhere") is None
    assert find_run("refusal-direction") is None
    assert run("demo").folder == tmp_path / "runs" / "demo"


def test_a_run_is_computed_where_none_is_stored(
    saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"n_train": 6, "n_val": 4, "n_test": 3, "n_candidates": 1, "max_new_tokens": 2}
    first = run("demo", model=str(saved_tiny), settings=small)
    assert first.folder == Path("runs/demo")
    assert first.numbers["provenance"]["config"]["n_train"] == 6
    assert first.tensors  # a whole run keeps them
    written = (first.folder / "result.json").stat().st_mtime_ns
    assert run("demo", model="no such model").numbers == first.numbers  # stored: nothing is loaded
    run("demo", source="computed", model=str(saved_tiny), settings={**small, "n_test": 2})
    assert (first.folder / "result.json").stat().st_mtime_ns > written


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=f"unknown experiment 'demos'; known: {', '.join(EXPERIMENTS)}"):
        run("demos")
    with pytest.raises(ValueError, match=re.escape("demo has no setting 'n_trian'; it has n_train, ")):
        run("demo", source="computed", settings={"n_trian": 3})
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        open_run("nowhere")
    unchecked = inspect.unwrap(run)  # the tests' type checks would refuse it first
    with pytest.raises(ValueError, match="source must be 'stored' or 'computed', got 'fresh'"):
        unchecked("demo", source="fresh")  # type: ignore[arg-type]
