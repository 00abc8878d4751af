"""After the build: nothing on the site is loaded from elsewhere. Links that a reader follows are left alone."""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

_TAGS = re.compile(r"<(script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", re.IGNORECASE)
_ADDRESS = re.compile(r"""(?:src|href|data)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""", re.IGNORECASE)
_STYLE = re.compile(r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
_RELATIONS = re.compile(r"""rel=["']?(?:canonical|alternate|license|author|search)""", re.IGNORECASE)


def loaded_from_elsewhere(text: str) -> list[str]:
    """Addresses that a browser would fetch to show this page or style sheet."""
    tags = [tag for tag in _TAGS.finditer(text) if not _RELATIONS.search(tag[0])]
    return [address for tag in tags for address in _ADDRESS.findall(tag[0])] + _STYLE.findall(text)


def check(app: Sphinx, exception: Exception | None) -> None:
    """Look through every page and style sheet.

    Raises:
        sphinx.errors.ExtensionError: something would be fetched.
    """
    if exception is not None or app.builder.format != "html":
        return
    found = [
        f"{path.relative_to(app.outdir)}: {address}"
        for path in sorted(Path(app.outdir).rglob("*"))
        if path.suffix in (".html", ".css")
        for address in loaded_from_elsewhere(path.read_text(errors="replace"))
    ]
    if found:
        raise ExtensionError("the site would fetch from elsewhere: " + "; ".join(found[:10]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
