"""PNG files of few colours."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from interp.display.images import fewer_colours, page, shrink_notebook, six_digits

Image = pytest.importorskip("PIL.Image")


def picture() -> bytes:
    """A chart-like picture: white, a coloured band, grey shades of smoothed edges."""
    pixels = np.full((200, 300, 3), 255, dtype=np.uint8)
    pixels[50:150, 20:280] = (213, 94, 0)
    pixels[150:180] = np.linspace(0, 255, 300, dtype=np.uint8)[None, :, None]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def test_a_picture_of_few_colours_is_smaller_and_looks_the_same() -> None:
    data = picture()
    small = fewer_colours(data)
    assert len(small) < len(data)
    before, after = (np.asarray(Image.open(io.BytesIO(d)).convert("RGB"), dtype=int) for d in (data, small))
    assert before.shape == after.shape and np.abs(before - after).max() <= 4
    assert len(fewer_colours(small)) <= len(small)


def test_a_notebook_keeps_all_but_the_bytes_of_its_pictures(tmp_path: Path) -> None:
    kept = {"output_type": "stream", "text": ["ø\n"]}
    shown: dict[str, Any] = {
        "output_type": "display_data",
        "data": {"image/png": base64.b64encode(picture()).decode()},
    }
    bar = {"output_type": "display_data", "data": {"text/html": "", "text/plain": ""}}
    shown["data"]["application/vnd.plotly.v1+json"] = {"data": [{"y": [1 / 3], "text": "0.12345678"}]}
    notebook = {"cells": [{"source": ["x"], "outputs": [bar, kept, shown]}, {"source": []}], "nbformat": 4}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert shrink_notebook(path) > 0
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after["cells"][0]["outputs"][0] == kept and after["nbformat"] == 4
    assert base64.b64decode(after["cells"][0]["outputs"][1]["data"]["image/png"]) == fewer_colours(picture())
    figure = after["cells"][0]["outputs"][1]["data"]["application/vnd.plotly.v1+json"]
    assert figure == {"data": [{"y": [0.333333], "text": "0.12345678"}]}


def test_coordinates_have_six_digits_and_nothing_else_changes() -> None:
    plain = {"x": [-1.23456789e-7, 12, True, None, 2.0], "deep": [{"y": 123456.789}], "large": 1234567.125}
    rounded = six_digits(plain)
    assert rounded == {
        "x": [-1.23457e-7, 12, True, None, 2.0],
        "deep": [{"y": 123457.0}],
        "large": 1234567.125,
    }
    assert type(rounded["x"][1]) is int and rounded["x"][2] is True
    figure = go.Figure(go.Scatter(x=[1 / 3], y=[2], name="0.33333333"))
    html = page(figure).decode()
    assert '"x":[0.333333]' in html and '"name":"0.33333333"' in html
    assert list(figure.to_plotly_json()["data"][0]["x"]) == [1 / 3]  # the figure itself is as it was
