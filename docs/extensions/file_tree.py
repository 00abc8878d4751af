"""The directive `file-tree`: every module of the package with the first sentence of its docstring at the build."""

import ast
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).parents[2] / "interp"


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[a-z\]`)])\.(?: |$)", first)[0].replace("`", "")


def tree_lines(folder: Path = PACKAGE) -> list[str]:
    """One line a folder and a module: rooms first, then the files beside them."""
    rows: list[tuple[str, str]] = []

    def walk(here: Path, depth: int) -> None:
        for child in sorted(here.iterdir(), key=lambda path: (path.is_file(), path.name)):
            indent = "    " * depth
            if child.is_dir() and (child / "__init__.py").is_file():
                rows.append((f"{indent}{child.name}/", summary(child / "__init__.py")))
                walk(child, depth + 1)
            elif child.suffix == ".py" and child.name != "__init__.py":
                rows.append((f"{indent}{child.name}", summary(child)))

    walk(folder, 0)
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:{width}}{text}".rstrip() for name, text in rows]


class FileTree(SphinxDirective):
    """A literal block with the tree."""

    def run(self) -> list[nodes.Node]:
        """The block; the page is read again when a module changes."""
        for path in PACKAGE.rglob("*.py"):
            self.env.note_dependency(str(path))
        text = "\n".join(["interp/", *(f"    {line}" for line in tree_lines())])
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("file-tree", FileTree)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
