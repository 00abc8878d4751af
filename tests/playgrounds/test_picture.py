"""The static picture of a playground in a notebook that a kernel has run."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"


def test_a_stored_notebook_shows_the_last_state(saved_tiny: Path, tmp_path: Path) -> None:
    """The picture, a display of its own, follows a run of a later cell; the widget's display is left alone."""
    cells = [
        "import interp, torch\n"
        f"model = interp.load({str(saved_tiny)!r})\n"
        "way = interp.Direction(vector=torch.ones(32), layer=1, position='t_inst')\n"
        "panel = interp.playground(model, {'a way': way})\n"
        "panel.max_new_tokens.value = 4\n"
        "panel",
        "panel.run(); panel.wait(60)\nprint(panel.answers['steered'].tokens[0].text, panel.error.value)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    with client.setup_kernel():
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
