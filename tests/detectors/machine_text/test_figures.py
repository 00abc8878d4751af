"""Figures hold the numbers of what they draw."""

import pytest

from interp.detectors.machine_text.figures import gltr_figure, watermark_figure
from interp.detectors.machine_text.watermark import Watermark
from interp.detectors.machine_text.watermark_detection import detect_watermark
from interp.display.charts import traces_of
from tests.detectors.machine_text.test_gltr import view_of


def test_the_gltr_figure_has_three_histograms() -> None:
    view = view_of([1, 2, 30, 5000])
    bars, ratios, entropies = traces_of(gltr_figure(view))
    assert list(bars.y) == [2, 1, 0, 1]
    assert list(ratios.x) == pytest.approx(view.ratios.tolist())
    assert list(entropies.x) == pytest.approx([1.0] * 4)
    # Ten and eight bins, the last of which holds the end of the range.
    assert ratios.xbins.end > 1.0 and ratios.xbins.end / ratios.xbins.size == pytest.approx(10)
    assert entropies.xbins.end / entropies.xbins.size == pytest.approx(8)


def test_the_watermark_figure_draws_z_along_the_text() -> None:
    found = detect_watermark(Watermark(key=7, vocab_size=50), list(range(30)))
    figure = watermark_figure(found)
    (z,) = [trace for trace in traces_of(figure) if trace.name == "z"]
    assert list(z.y) == pytest.approx(list(found.z_along)) and list(z.x) == list(range(1, 30))
    assert "tokens are green" in figure.layout.title.text  # pyright: ignore[reportAttributeAccessIssue]
