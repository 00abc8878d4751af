"""After the build: nothing on the site is loaded from elsewhere, and what it links to inside itself is there.

Links that a reader follows to other sites are left alone. Images of the Markdown twins are named from where the twins
lie: the builder that writes them names them from the sources.
"""

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

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


def relink_twins(app: Sphinx, exception: Exception | None) -> None:
    """Name the images of the Markdown twins from where the twins lie, and bring those of `figures/` along."""
    if exception is not None or app.builder.format != "html":
        return
    site, outputs = Path(app.outdir), os.path.relpath(Path(app.outdir).parent / "jupyter_execute", app.srcdir)
    for page in site.rglob("*.md"):
        up = "../" * (len(page.relative_to(site).parts) - 1)
        text = page.read_text().replace(f"]({outputs}/", f"]({up}_images/")  # beside those of the pages
        for name in re.findall(r"\]\((?:\.\./)+figures/([^)]+\.png)\)", text):
            target = site / "figures" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(app.srcdir).parent / "figures" / name, target)
        page.write_text(re.sub(r"\]\((?:\.\./)+figures/", f"]({up}figures/", text))


def broken_links(site: Path) -> list[str]:
    """Links and images of the pages and their Markdown twins that lead to nothing inside the site."""
    found = []
    for page in [*site.rglob("*.html"), *site.rglob("*.md")]:
        if "_static" in page.parts:
            continue  # parts of the theme
        pattern = (
            r"""(?:href|src)="([^"#?]+)""" if page.suffix == ".html" else r"\]\(([^)#\s]+\.(?:md|html|png))"
        )
        for address in re.findall(pattern, page.read_text(errors="replace")):
            if not re.match(r"[a-z]+:|//", address) and not (page.parent / unquote(address)).exists():
                found.append(f"{page.relative_to(site)}: {address}")
    return found


def check(app: Sphinx, exception: Exception | None) -> None:
    """Look through every page and style sheet.

    Raises:
        sphinx.errors.ExtensionError: something would be fetched, or a link leads nowhere.
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
    if broken := broken_links(Path(app.outdir)):
        raise ExtensionError("links that lead nowhere: " + "; ".join(sorted(broken)[:10]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", relink_twins, priority=800)  # the twins are written at 101
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
