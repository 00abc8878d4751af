"""Figures as small PNG and HTML files, and the same for the pictures and figures that a notebook holds.

A chart has few colours: 64 to 255 of them, chosen for the picture, are a third of the bytes and look the same. Nobody
sees the seventh digit of a coordinate either.

    Path("roc.png").write_bytes(png(figure))
    Path("roc.html").write_bytes(page(figure))
    shrink_notebook("notebooks/03_refusal_direction.ipynb")
"""

import base64
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

_PLOTLY = "application/vnd.plotly.v1+json"


def page(figure: go.Figure) -> bytes:
    """The figure as an HTML file that loads plotly.js from its CDN, coordinates in six digits."""
    return go.Figure(six_digits(json.loads(str(figure.to_json())))).to_html(include_plotlyjs="cdn").encode()


def six_digits(value: Any) -> Any:
    """Plain JSON with each number below a million in six significant digits.

    six_digits({"x": [0.12345678, 12, 1234567.125], "name": "0.12345678"})
    # {"x": [0.123457, 12, 1234567.125], "name": "0.12345678"}
    """
    if isinstance(value, dict):
        return {key: six_digits(part) for key, part in value.items()}
    if isinstance(value, list):
        return [six_digits(part) for part in value]
    if isinstance(value, float) and abs(value) < 1e6:
        return float(f"{value:.6g}")
    return value


def png(figure: go.Figure, *, scale: int = 2) -> bytes:
    """The figure as a PNG file of few colours.

    Raises:
        ValueError: kaleido or its browser is missing.
    """
    try:
        data = figure.to_image(format="png", scale=scale)
    except Exception as error:  # kaleido's own classes, which do not exist without kaleido
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"cannot draw a PNG ({reason}); pip install 'interp-workbench[notebook]' and install Chrome or Chromium"
        ) from error
    return fewer_colours(data)


def fewer_colours(data: bytes) -> bytes:
    """The same PNG with as few colours as look the same; unchanged where Pillow is missing or nothing is won.

    A colour bar needs many: a palette counts as the same where all but one pixel in two thousand are within 12 of 255
    in every channel.
    """
    if importlib.util.find_spec("PIL") is None:
        return data
    from PIL import Image, ImageChops

    image = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (64, 128, 255):
        small = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        away = ImageChops.difference(image, small.convert("RGB"))
        far = max(sum(channel.histogram()[13:]) for channel in away.split())
        if far <= image.width * image.height / 2000:
            break
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return min(data, out.getvalue(), key=len)


def shrink_notebook(path: str | Path) -> int:
    """Write a notebook's pictures with fewer colours, figures in six digits, without outputs of nothing; returns the
    bytes that were saved.

    An output of nothing is what a progress bar that is done leaves. Lines are not indented, since figures have a number
    a line.
    """
    file = Path(path)
    before = file.read_text(encoding="utf-8")
    notebook: dict[str, Any] = json.loads(before)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if "data" not in o or any(o["data"].values())]
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                small = fewer_colours(base64.b64decode(output["data"]["image/png"]))
                output["data"]["image/png"] = base64.b64encode(small).decode() + "\n"
            if _PLOTLY in output.get("data", {}):
                output["data"][_PLOTLY] = six_digits(output["data"][_PLOTLY])
    after = json.dumps(notebook, indent=0, ensure_ascii=False) + "\n"
    file.write_text(after, encoding="utf-8")
    return len(before.encode()) - len(after.encode())
