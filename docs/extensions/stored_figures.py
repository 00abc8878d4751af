"""The directive `stored-figure`: a figure of a stored run as an image that opens its interactive version.

    :::{stored-figure} demo/refusal_rates
    Refusal rates under ablation and addition.
    :::

The interactive pages in `figures/` load plotly.js from a CDN. The site holds copies of those that are shown, which load
one plotly.js beside them, taken from the installed plotly.
"""

import re
import shutil
from pathlib import Path
from typing import ClassVar

import plotly
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FIGURES = Path(__file__).parents[2] / "figures"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
_SCRIPT = re.compile(r'<script[^>]*src="https?://[^"]*plotly[^"]*"[^>]*></script>')


class StoredFigure(SphinxDirective):
    """An image with its caption, linked to the interactive figure."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """The figure.

        Raises:
            sphinx.util.docutils.DirectiveError: no such figure.
        """
        name = self.arguments[0]
        for path in (FIGURES / f"{name}.png", FIGURES / f"{name}.html"):
            if not path.is_file():
                raise self.error(f"{path} does not exist; name a figure as RUN/FIGURE")
        up = "../" * self.env.docname.count("/")
        caption = "\n".join(self.content)
        image = nodes.image(uri=f"../{up}figures/{name}.png", alt=caption)
        link = nodes.reference("", "", image, refuri=f"{up}figures/{name}.html", internal=False)
        text, messages = self.state.inline_text(caption, self.lineno)
        self.env.metadata[self.env.docname].setdefault("stored_figures", "")
        self.env.metadata[self.env.docname]["stored_figures"] += f"{name}\n"
        return [nodes.figure("", link, nodes.caption(caption, "", *text)), *messages]


def copy_interactive(app: Sphinx, exception: Exception | None) -> None:
    """Copies of the figures that pages show, with one local plotly.js.

    Raises:
        ValueError: a figure still asks for something outside of the site.
    """
    if exception is not None or app.builder.format != "html":
        return
    names = {
        name
        for metadata in app.env.metadata.values()
        for name in str(metadata.get("stored_figures", "")).splitlines()
    }
    site = Path(app.outdir) / "figures"
    site.mkdir(exist_ok=True)
    shutil.copy2(PLOTLY, site / PLOTLY.name)
    for name in sorted(names):
        page, count = _SCRIPT.subn(
            f'<script src="../{PLOTLY.name}"></script>', (FIGURES / f"{name}.html").read_text()
        )
        if count != 1:
            raise ValueError(f"figures/{name}.html loads plotly.js in a way that is not known here")
        target = site / f"{name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page)
        shutil.copy2(FIGURES / f"{name}.png", target.with_suffix(".png"))  # where Markdown twins look for it


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("stored-figure", StoredFigure)
    app.connect("build-finished", copy_interactive, priority=50)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
