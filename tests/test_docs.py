"""The pages quote stored numbers, name the rooms that there are, and would say where they do not."""

import re
import sys
from pathlib import Path

import pytest

from tests.test_imports import ROOMS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/findings").glob("*.md")),
]

sys.path.insert(0, str(ROOT / "docs" / "extensions"))
import api_pages  # noqa: E402 (its folder is put on the path above)
import file_tree  # noqa: E402
import offline  # noqa: E402
import stored_entries  # noqa: E402
import stored_paths  # noqa: E402


def references(text: str) -> set[str]:
    """What a page quotes: roles of the site, and comments of the README."""
    return {
        reference.strip()
        for reference in re.findall(r"\{stored\}`([^`]+)`|<!-- stored ([^>]+?) -->", text)
        for reference in reference
    } - {""}


def test_every_quoted_number_is_stored_and_every_path_is_quoted() -> None:
    quoted = set().union(*(references(page.read_text()) for page in PAGES))
    assert len(quoted) > 100
    for reference in sorted(quoted):
        assert stored_paths.text_of(reference)
    named = {f"{run}: {name}" for run, entries in stored_paths.STORED.items() for name in entries}
    used = {reference.replace("@qwen", stored_paths.QWEN) for reference in quoted} | {
        reference.replace("@qwen", "") for reference in quoted
    }
    assert not named - used, f"no page quotes {', '.join(sorted(named - used))}"


def test_the_readme_says_what_the_stored_runs_say() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    marks = re.findall(r"<!-- stored ([^>]+?) -->", text)
    assert marks
    for reference in marks:
        assert f"<!-- stored {reference} -->{stored_paths.text_of(reference)}" in text, reference


def test_a_number_that_is_not_stored_is_named() -> None:
    with pytest.raises(
        KeyError, match="no stored number 'harmful abalation' of 'demo'; there are harmful baseline"
    ):
        stored_paths.text_of("demo: harmful abalation")
    with pytest.raises(KeyError, match="no 'x' at a/x; there is b"):
        stored_entries.follow({"a": {"b": 1}}, ("a", "x"))
    with pytest.raises(KeyError, match="picks 2 rows"):
        stored_entries.follow([{"a": 1}, {"a": 1}], ({"a": 1},))


def test_numbers_are_written_with_their_interval() -> None:
    entry = {"value": 0.966, "n": 60, "low": 0.886, "high": 0.991}
    assert stored_entries.formatted(entry, stored_entries.percent()) == "97% [89, 99]"
    assert stored_entries.formatted(entry, stored_entries.at(form="+.2f")) == "+0.97 [0.89, 0.99]"
    assert stored_entries.formatted(entry, stored_entries.at(bare=True)) == "0.97"
    with pytest.raises(ValueError, match="not measurable"):
        stored_entries.formatted({**entry, "value": None}, stored_entries.at())


def test_architecture_lists_the_rooms_in_their_order() -> None:
    table = (ROOT / "docs/architecture.md").read_text().split("## How data flows")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == ROOMS


def test_the_file_tree_has_every_module_with_a_few_words() -> None:
    lines = file_tree.tree_lines()
    modules = [path for path in file_tree.PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sum(line.split()[0].endswith(".py") for line in lines) == len(modules)
    bare = [line for line in lines if len(line.split()) < 3]
    assert not bare, f"no docstring in {', '.join(line.strip() for line in bare)}"


def test_public_names_have_docstrings() -> None:
    missing = [
        name for path in sorted(file_tree.PACKAGE.rglob("*.py")) for name in api_pages.undocumented(path)
    ]
    assert not missing, f"no docstring: {', '.join(missing)}"


def test_docstrings_become_restructured_text() -> None:
    table = ["| a | b |", "|---|---|", "| `x|y` | 2 |"]
    lines = ["Rows with |R|.", "", *table, "", "    run()", "", "Args:", "    n: how many."]
    assert api_pages.to_rest(lines) == [
        "Rows with \\|R\\|.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - a",
        "     - b",
        "   * - ``x|y``",
        "     - 2",
        "",
        ".. code-block:: python",
        "",
        "    run()",
        "",
        "Args:",
        "    n: how many.",
        "",
    ]


def test_pages_that_load_from_elsewhere_are_found() -> None:
    assert offline.loaded_from_elsewhere('<script src="https://cdn.example/x.js"></script>') == [
        "https://cdn.example/x.js"
    ]
    assert offline.loaded_from_elsewhere("@import url('//fonts.example/a.css')") == ["//fonts.example/a.css"]
    assert (
        offline.loaded_from_elsewhere('<a href="https://arxiv.org/abs/1">paper</a> <img src="_images/a.png">')
        == []
    )


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#x">b</a> <a href="#top">top</a> <a href="https://x.example/">x</a>'
    )
    (tmp_path / "a.md").write_text("![image](figures/a.png) `rows[0](x)` [page](a.md)")
    assert offline.broken_links(tmp_path) == ["a.html: b.html", "a.md: figures/a.png"]
    (tmp_path / "b.html").write_text("")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.png").write_bytes(b"")
    assert offline.broken_links(tmp_path) == []
