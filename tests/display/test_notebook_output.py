"""Progress bars and errors as a notebook shows them."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import interp
from interp.data.prompts import load_prompts
from interp.display.errors import error_line, is_users_mistake


def outputs(source: str) -> list[dict]:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(part) for part in source.split("\n\n")]
    )
    NotebookClient(notebook, allow_errors=True, timeout=60).execute(
        cwd=str(Path(interp.__file__).parent.parent)
    )
    return [output for cell in notebook.cells for output in cell.outputs]


KERNEL = """
import interp, interp.display.cards, interp.display.errors
from interp.display.progress import NotebookBar, in_notebook
print(in_notebook())

bar = NotebookBar("working", 4, patience=0, every=0)
for _ in range(4): bar.advance(1)
bar.close()

quick = NotebookBar("quick", 4)
quick.advance(4)
quick.close()

interp.display.cards.Card(title="a card").text()

interp.load_prompts("nowhere")

int("x")

%tb

get_ipython().set_custom_exc((KeyError,), lambda *a, **k: None)
interp.display.errors.short_errors()
interp.load_prompts("nowhere")

import logging
logging.getLogger("interp.some.module").warning("a note, %d", 3)
logging.getLogger("interp.some.module").info("not said")

logging.basicConfig()
logging.getLogger("interp.some.module").warning("to whoever set up logging")
"""


@pytest.fixture(scope="module")
def kernel_outputs() -> list[dict]:
    return outputs(KERNEL)


def test_the_bar_shows_and_leaves_nothing(kernel_outputs: list[dict]) -> None:
    seen, bar, *rest = kernel_outputs
    assert seen["text"] == "True\n"
    assert bar["output_type"] == "display_data"
    assert bar["data"] == {"text/plain": "", "text/html": ""}
    assert rest[0]["output_type"] == "execute_result"  # the quick one never showed
    assert rest[0]["data"] == {"text/plain": "'a card'"}  # and a card's text is not shown by being made
    assert rest[1]["output_type"] == "error"


def test_a_users_mistake_is_one_line_in_a_notebook(kernel_outputs: list[dict]) -> None:
    mistake, bug, traceback, others = [o for o in kernel_outputs if o["output_type"] == "error"]
    (line,) = mistake["traceback"]
    assert "ValueError: unknown prompt set 'nowhere'" in line and "\n" not in line
    assert "folder" in line  # the remedy is still there
    # Control: what interp did not raise keeps its traceback, %tb prints it, and a handler of the user's own stays.
    for full in (bug, traceback, others):
        assert len("".join(full["traceback"]).splitlines()) > 1


def test_a_note_of_the_library_is_no_red_box_in_a_notebook(kernel_outputs: list[dict]) -> None:
    notes = [o for o in kernel_outputs if o["output_type"] == "stream" and "WARNING" not in o["text"]][1:]
    assert [(o["name"], o["text"]) for o in notes] == [("stdout", "note: a note, 3\n")]
    (last,) = [o for o in kernel_outputs if o["output_type"] == "stream" and "WARNING" in o["text"]]
    assert last["name"] == "stderr" and "to whoever set up logging" in last["text"]


def test_whose_mistake_it_is() -> None:
    with pytest.raises(ValueError, match="unknown prompt set") as ours:
        load_prompts("nowhere")
    with pytest.raises(ValueError, match="unknown prompt set") as theirs:
        raise ValueError("unknown prompt set")
    with pytest.raises(TypeError) as bug:
        load_prompts(3)  # pyright: ignore[reportArgumentType]
    assert is_users_mistake(ours.value)
    assert not is_users_mistake(theirs.value)
    assert not is_users_mistake(bug.value)
    assert error_line(ValueError("two\n  lines")) == "ValueError: two lines"
