"""Stored runs whose prompts, replies and names are hostile: their pages and figures run nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from interp.experiments.running import open_run
from interp.storage.run_folders import write_run
from tests.torture.files import FIGURES

pytestmark = pytest.mark.torture

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
KEYS = ("prompt", "before", "after", "text", "reply", "texts", "post_inst_tokens", "source", "note", "label")
"""Fields that hold what models and users wrote."""
CHOICES = ("harm", "planted")
"""Labels that are one of a few, as the reader checks."""


def hostile(value: Any, key: str = "") -> Any:
    """A stored result with hostile texts, names of models and of prompt sets."""
    if isinstance(value, dict):
        changed = {k: hostile(v, k) for k, v in value.items()}
        if "weights_hash" in changed or "splits" in changed:  # provenance of a model or of prompts
            changed |= {name: NASTY for name in ("model", "name") if isinstance(changed.get(name), str)}
        return changed
    if isinstance(value, list):
        return [hostile(item, key) for item in value]
    return value + NASTY if isinstance(value, str) and key in KEYS and value not in CHOICES else value


def check(stored: Path, place: Path) -> int:
    """Draw a hostile version of a stored run; returns how often hostile text is on its page."""
    old = open_run(stored)
    folder = write_run(place / stored.name, old.experiment.name, old.result)
    path = folder / "result.json"
    content = hostile(json.loads(path.read_text()))
    del content["sha256"]
    path.write_text(json.dumps(content))
    run = open_run(folder)
    page = run.report()
    for html in (page, run._repr_html_()):
        shown = re.sub(r'(<script type="text/plain"[^>]*>)[^<]*', r"\1", html)
        assert "<script>alert" not in shown and "<img src=x" not in shown, stored.name
    for name, figure in run.figures().items():
        assert "<script>alert" not in figure.to_html(include_plotlyjs=False), name
    return page.count("&lt;script&gt;alert(1)")


def test_the_demo_s_page_is_inert(tmp_path: Path) -> None:
    assert check(FIGURES / "demo", tmp_path) > 5


WITH_TEXTS = sorted({path.parent.name for path in FIGURES.glob("*/result.json.gz")} - {"elasticity-theory"})
"""All but the one that has neither a model nor prompts."""


@pytest.mark.parametrize("stored", WITH_TEXTS)
def test_every_page_is_inert(stored: str, tmp_path: Path) -> None:
    assert check(FIGURES / stored, tmp_path) > 0
