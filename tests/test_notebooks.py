"""The notebooks read in order, call the library and define nothing, and every cell of theirs runs."""

import ast
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

import interp

ROOT = Path(interp.__file__).parent.parent
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
SMALL = {"N_PROMPTS": 8, "N_MEASURED": 4}
"""What the switches of notebooks that compute, how many prompts, are set to here."""
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"


def name_of(path: Path) -> str:
    return path.stem


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shrink(notebook: NotebookNode) -> None:
    """Set the switches to few prompts."""
    for cell in code_cells(notebook):
        for name, n in SMALL.items():
            cell.source = re.sub(rf"^{name} = \d+", f"{name} = {n}", cell.source, flags=re.MULTILINE)


def outputs(notebook: NotebookNode, mime: str) -> int:
    """How many outputs come in this form."""
    return sum(mime in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)


# As they are written


def test_numbered_in_reading_order() -> None:
    assert [path.stem[:2] for path in SCRIPTS] == [f"{i:02}" for i in range(1, len(SCRIPTS) + 1)]
    assert len(SCRIPTS) >= 9
    for path, after in pairwise(SCRIPTS):
        assert f"({after.stem}.ipynb)" in path.read_text(), f"{path.stem} does not lead to {after.stem}"


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_cells_are_short_and_call_the_library(path: Path) -> None:
    notebook = jupytext.read(path)
    assert notebook.cells[0].cell_type == "markdown"
    assert re.match(rf"# {path.stem[:2]} · ", notebook.cells[0].source)
    for cell in code_cells(notebook):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 10, f"{len(lines)} lines: {lines[0]} ..."
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)) for node in nodes), (
            lines[0]
        )
        assert "register_forward" not in cell.source


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_the_published_notebook_is_the_script_with_its_outputs(path: Path) -> None:
    script, published = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in published.cells] == [
        (c.cell_type, c.source) for c in script.cells
    ]
    assert all(cell.execution_count for cell in code_cells(published))
    errors = [o for c in code_cells(published) for o in c.outputs if o.output_type == "error"]
    allowed = [c for c in code_cells(published) if "raises-exception" in c.metadata.get("tags", [])]
    assert len(errors) == len(allowed)
    assert outputs(published, PLOTLY) == outputs(published, "image/png") > 0  # readable where nothing can run


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_published_notebook_has_no_stray_output(path: Path) -> None:
    published = jupytext.read(path.with_suffix(".ipynb"))
    for cell in code_cells(published):
        assert cell.source.strip()
        for output in cell.outputs:
            assert output.get("name") != "stderr", output.text  # a red box is for errors
            data = output.get("data", {})
            assert not data or any(data.values())  # of a progress bar that is done
            assert "no answer yet" not in data.get(
                "text/plain", ""
            )  # the playground's picture is of an answer
            assert str(Path.home()) not in str(data.get("text/plain", "")) and "PosixPath" not in str(data)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_sentence_stands_before_every_figure(path: Path) -> None:
    published = jupytext.read(path.with_suffix(".ipynb"))
    for before, cell in pairwise(published.cells):
        if cell.cell_type == "code" and any(PLOTLY in o.get("data", {}) for o in cell.outputs):
            assert before.cell_type == "markdown" or PLOTLY not in str(before.outputs), cell.source


# As they run


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside the stored results, where notebooks may write."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "figures").symlink_to(ROOT / "figures")
    (folder / "notebooks").mkdir()
    return folder / "notebooks"


@pytest.fixture(scope="module")
def client(desk: Path) -> Iterator[NotebookClient]:
    """One kernel for all notebooks, reset in between: libraries are loaded once."""
    shared = NotebookClient(new_notebook(), timeout=300, resources={"metadata": {"path": str(desk)}})
    with shared.setup_kernel(env={**os.environ, "PYTHONPATH": str(ROOT)}):
        yield shared


@pytest.mark.checkpoint
@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_every_cell_runs(path: Path, client: NotebookClient) -> None:
    for experiment in re.findall(r'interp\.run\("([\w-]+)"', path.read_text()):
        if not (ROOT / "figures" / experiment / "result.json").is_file():
            pytest.skip(
                f"figures/ has no run of {experiment}, which takes too long to compute here: make figures"
            )
    notebook = jupytext.read(path)
    shrink(notebook)
    notebook.cells.insert(0, new_code_cell("%reset -f"))
    client.nb = notebook
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)
    assert outputs(notebook, PLOTLY) > 0
    if path.stem.startswith("01"):
        assert outputs(notebook, WIDGET) == 1
    for cell in code_cells(notebook):
        expects = "raises-exception" in cell.metadata.get("tags", [])
        errors = [output for output in cell.outputs if output.output_type == "error"]
        assert bool(errors) == expects
        assert all(len(error.traceback) == 1 for error in errors)  # a user's mistake is one line
