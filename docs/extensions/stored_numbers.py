"""The role {stored}`RUN: NAME`: a number of a stored run; where it is not there, a warning fails `make docs`."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole
from stored_paths import FIGURES, find, text_of


class StoredRole(SphinxRole):
    """Puts a stored number into the text."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The text of the number; the page is read again when its run changes."""
        try:
            folder, _ = find(self.text)
            self.env.note_dependency(str(FIGURES / folder / "result.json.gz"))
            return [nodes.inline(self.rawtext, text_of(self.text), classes=["stored"])], []
        except (KeyError, ValueError, OSError) as error:
            message = self.inliner.reporter.warning(f"{self.rawtext}: {error}", line=self.lineno)
            return [nodes.problematic(self.rawtext, self.rawtext)], [message]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_role("stored", StoredRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
