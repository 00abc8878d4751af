"""One page of the API reference for each room, written before each build from the modules that are there.

Also the docstrings on them: an indented example becomes a Python block, and a public name without a docstring is a
warning, which `make docs` turns into an error.
"""

import ast
import re
import textwrap
from pathlib import Path

from file_tree import PACKAGE
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util import logging

logger = logging.getLogger(__name__)
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note|Notes):\s*$")


def modules_of(room: Path) -> list[Path]:
    """The files of a room and the packages inside it, its own `__init__.py` apart; a room of one file is itself."""
    if room.is_file():
        return [room]
    return sorted(path for path in room.rglob("*.py") if path != room / "__init__.py")


def rooms() -> list[Path]:
    """Folders and single files of the package."""
    return sorted(
        path
        for path in PACKAGE.iterdir()
        if (path / "__init__.py").is_file() or (path.suffix == ".py" and path.name != "__init__.py")
    )


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def page_of(room: Path) -> str:
    """The reStructuredText of a room's page."""
    title = f"interp.{room.stem}"
    lines = [title, "=" * len(title), ""]
    if room.is_dir():
        lines += [f".. automodule:: {title}", ""]
    for path in modules_of(room):
        name = module_name(path)
        if path != room:
            lines += [name, "-" * len(name), ""]
        lines += [f".. automodule:: {name}", ""]
    return "\n".join(lines)


def undocumented(path: Path) -> list[str]:
    """Public modules, classes, functions, methods and properties of a file that have no docstring.

    Members of a protocol that are a name and types alone are described by the protocol.
    """
    tree = ast.parse(path.read_text())
    name = module_name(path)
    missing = [] if ast.get_docstring(tree) else [name]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and node.name[0] != "_"
            ):
                if not ast.get_docstring(node) and not _is_bare(node):
                    missing.append(f"{prefix}.{node.name}")
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}.{node.name}")

    visit(tree.body, name)
    return missing


def _is_bare(node: ast.stmt) -> bool:
    """Whether a member of a protocol is a name and types alone."""
    body = getattr(node, "body", [])
    return len(body) == 1 and isinstance(body[0], ast.Expr) and getattr(body[0].value, "value", None) is ...


def write_pages(app: Sphinx) -> None:
    """Write what differs, so that an unchanged page is not read again, and complain of what has no docstring."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages = {f"{room.stem}.rst": page_of(room) for room in rooms()}
    for name, text in pages.items():
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    if app.builder.name == "html":
        for path in sorted(PACKAGE.rglob("*.py")):
            for name in undocumented(path):
                logger.warning("public name %s has no docstring", name)


def to_rest(lines: list[str]) -> list[str]:
    """A Markdown docstring as the reStructuredText that Sphinx reads.

    Indented examples become Python blocks and tables become list tables, code is marked twice; outside of it, what
    reStructuredText would take for its own marks is escaped.
    """
    written: list[str] = []
    in_section = False
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = block.split("\n")
        in_section = bool(_SECTION.match(rows[0])) or (in_section and rows[0].startswith("    "))
        if written and not in_section and all(row.startswith("    ") for row in rows):
            written += [f".. code-block:: {_language(rows)}", "", *rows, ""]
        elif rows[0].startswith("|") and len(rows) > 1:
            written += [*_list_table(rows), ""]
        else:
            written += [*_escaped(block).split("\n"), ""]
    return written


def _language(rows: list[str]) -> str:
    try:
        ast.parse(textwrap.dedent("\n".join(rows)))
    except SyntaxError:
        return "none"  # a diagram or a formula
    return "python"


def _list_table(rows: list[str]) -> list[str]:
    cells = [re.split(r"\s\|\s", f" {row.strip()[1:-1]} ") for row in rows]
    del cells[1]  # the rule under the header
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in cells:
        for number, cell in enumerate(row):
            lines.append(f"   {'  ' if number else '* '}- {_escaped(cell.strip())}".rstrip())
    return lines


def _escaped(text: str) -> str:
    """The text with marks of reStructuredText escaped outside of `code`."""
    parts = re.split(r"(`+[^`]+`+)", text)
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"(\w)_(?!\w)", r"\1\\_", re.sub(r"(?<!\\)[|*]", r"\\\g<0>", parts[number]))
    for number in range(1, len(parts), 2):  # a word may touch code in Markdown
        before, after = parts[number - 1][-1:].isalnum(), parts[number + 1][:1].isalnum()
        parts[number] = "\\ " * before + f"``{parts[number].strip('`')}``" + "\\ " * after
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite a docstring in place, as Sphinx asks of this event."""
    del app, name, obj, options
    written = to_rest(lines)
    if what not in ("attribute", "data"):  # what stands before a colon there is no type
        written = GoogleDocstring(written, Config()).lines()
    lines[:] = written


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
