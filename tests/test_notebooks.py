"""The notebooks read in order, call the library and define nothing, and every cell of theirs runs.

The first and the ninth run on the bundled model, the others that load one on a model of its depth and with its
tokenizer that is an eighth as wide: what it says is noise, but every call of theirs is made. The published outputs are
the bundled model's.
"""

import ast
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import jupytext
import pytest
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import interp
from interp.models.gguf import convert_gguf
from interp.models.sources import ADAPTER_FOLDERS, bundled_gguf

ROOT = Path(interp.__file__).parent.parent
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
SMALL = {"N_PROMPTS": 8, "N_MEASURED": 4}
"""What the switches of notebooks that compute, how many prompts, are set to here."""
BUNDLED = ("01", "09")
"""Notebooks that run on the bundled model: the first one, and the one that names its adapter by its folder."""
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
    numbers = [int(path.stem[:2]) for path in SCRIPTS]
    assert numbers == sorted(set(numbers)) and numbers[0] == 1
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
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, as deep as the bundled one but narrow and of random weights, and `adapter` for it."""
    folder = tmp_path_factory.mktemp("narrow")
    bundled = convert_gguf(bundled_gguf())
    config = AutoConfig.from_pretrained(bundled)
    for name in ("hidden_size", "intermediate_size", "head_dim"):
        setattr(config, name, getattr(config, name) // 8)
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).float()
    hf.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(bundled).save_pretrained(folder / "model")
    adapted = get_peft_model(hf, LoraConfig(task_type="CAUSAL_LM", target_modules=["o_proj", "down_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)  # zeros would make no difference
    adapted.save_pretrained(folder / "adapter")
    return folder


def bundled_is(model: Path, adapters: dict[str, Path]) -> NotebookNode:
    """A cell in front of a notebook: an empty namespace, and what the bundled names stand for in it."""
    paths = {name: str(folder) for name, folder in adapters.items()}
    return new_code_cell(
        "%reset -f\n"
        "from pathlib import Path\n"
        "from interp.models import sources\n"
        f"sources.bundled_gguf = lambda place=Path({str(model)!r}): place\n"
        f"sources.ADAPTER_FOLDERS = {{k: Path(v) for k, v in {paths}.items()}}\n"
        "del Path, sources"
    )


@pytest.fixture(scope="module")
def client(desk: Path) -> Iterator[NotebookClient]:
    """One kernel for all notebooks, reset in between: libraries are loaded once."""
    shared = NotebookClient(new_notebook(), timeout=300, resources={"metadata": {"path": str(desk)}})
    with shared.setup_kernel(env={**os.environ, "PYTHONPATH": str(ROOT)}):
        yield shared


@pytest.mark.checkpoint
@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_every_cell_runs(path: Path, client: NotebookClient, narrow: Path) -> None:
    for experiment in re.findall(r'interp\.run\("([\w-]+)"', path.read_text()):
        if not any((ROOT / "figures").glob(f"{experiment}*/result.json.gz")):
            pytest.skip(
                f"figures/ has no run of {experiment}, which takes too long to compute here: make figures"
            )
    notebook = jupytext.read(path)
    shrink(notebook)
    whole = path.stem[:2] in BUNDLED or "interp.load(" not in path.read_text()  # opens stored runs alone
    adapters = ADAPTER_FOLDERS if whole else dict.fromkeys(ADAPTER_FOLDERS, narrow / "adapter")
    notebook.cells.insert(0, bundled_is(bundled_gguf() if whole else narrow / "model", adapters))
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


@pytest.mark.checkpoint
def test_a_stored_notebook_shows_the_last_state_of_its_playground(
    client: NotebookClient, saved_tiny: Path
) -> None:
    """The picture, a display of its own, follows a run of a later cell; the widget's display is left alone."""
    cells = [
        "%reset -f\n"
        "import interp, torch\n"
        f"model = interp.load({str(saved_tiny)!r})\n"
        "way = interp.Direction(vector=torch.ones(32), layer=1, position='t_inst')\n"
        "panel = interp.playground(model, {'a way': way})\n"
        "panel.max_new_tokens.value = 4\n"
        "panel",
        "panel.run(); panel.wait(60)\nprint(panel.answers['steered'].tokens[0].text, panel.error.value)",
    ]
    client.nb = notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client.execute_cell(notebook.cells[0], 0)
    view, picture = notebook.cells[0].outputs
    assert WIDGET in view.data and "Textarea" not in view.data["text/plain"]
    assert WIDGET not in picture.data and "press Run" in picture.data["text/html"]
    client.execute_cell(notebook.cells[1], 1)
    shown = picture.data["text/html"]
    assert notebook.cells[0].outputs[0] == view
    assert "projection on a way" in shown and "probability of the first token" in shown
    assert "1 × the norm of a way added at layer 1, at all tokens" in shown
    assert "Done: 8 tokens" in shown and "How do I bake bread?" in shown
    assert picture.data["text/plain"].startswith("plain: ")
    # Where the widget is live, the picture is hidden by the widget's own class.
    live = f"interp-playground-{view.data[WIDGET]['model_id']}"
    assert f"body:has(.{live})" in shown
    assert "<script" not in shown
