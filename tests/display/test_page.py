"""The page that opens offline, and the figure forms."""

import base64
import gzip
import json
import math
import re
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from interp.display.cards import Table
from interp.display.charts import CONTROL_COLOUR, THEME, finish, layer_lines, ordered, rate_bars, style
from interp.display.page import Section, html_report
from interp.display.styles import MEANINGS
from interp.stats import Estimate

NASTY = "</script><script>alert(1)</script> <b>&\"'"


def bare(html: str) -> str:
    """The page without what is packed in it."""
    return re.sub(r'(<script type="text/plain"[^>]*>)[^<]*', r"\1", html)


def unpacked(html: str, name: str) -> str:
    """What the page holds packed under this name."""
    found = re.search(rf'id="{name}" data-bytes="(\d+)">([^<]*)</script>', html)
    assert found
    data = base64.b85decode(found[2].replace(",", "<"))
    return gzip.decompress(data[: int(found[1])]).decode()


@pytest.fixture(scope="module")
def page() -> str:
    figures = [
        finish(go.Figure(go.Bar(x=["a"], y=[0.25])), title=f"figure {i}", note="a note") for i in range(3)
    ]
    return html_report(
        "A title",
        "The lead.",
        [
            Section(
                title="First",
                text=["one", "two, by AUROC", "AUROC again"],
                notes=["mind this"],
                figures=figures[:2],
            ),
            Section(
                title="Second",
                figures=figures[2:],
                tables=[
                    Table(header=["name", "2"], rows=[["x", 0.123456], ["y", 60.0], [True, None]]),
                    Table(header=["empty"], rows=[]),
                ],
            ),
        ],
        {"model": "tiny", "config": {"seed": 0}, "path": math},
        paper="2406.11717",
        next_steps=[("Go on", "interp list")],
    )


# The page


def test_plotly_is_there_once_and_nothing_is_loaded(page: str) -> None:
    assert unpacked(page, "plotly") == get_plotlyjs()
    assert page.count('id="plotly"') == 1 and len(page.encode()) < 2_000_000
    rest = bare(page)
    assert "plotly-graph-div" in rest  # control: the rest holds the figures' places
    assert not re.search(r"""(?:src)\s*=\s*["']?\s*(?:https?:)?//""", rest, re.IGNORECASE)
    assert re.findall(r'href="(https?:[^"]*)"', rest) == [
        "https://arxiv.org/abs/2406.11717"
    ]  # a link, not loaded
    assert not re.search(
        r"@import|url\(|<link[^>]*stylesheet|<script[^>]*\bsrc\b|<iframe", rest, re.IGNORECASE
    )


def test_page_holds_contents_and_sections_in_order(page: str) -> None:
    rest = bare(page)
    assert rest.startswith("<!doctype html>")
    assert '<meta charset="utf-8"><title>A title</title>' in rest
    assert 'name="viewport"' in rest
    order = [
        "<h1>A title</h1><p>The lead.</p>",
        '<a href="#section-1">First</a>',
        '<a href="#section-3">What to do next</a>',
        '<h2 id="section-1">First</h2>',
        "<p>one</p>",
        "<p>two, by AUROC</p>",
        "<b>AUROC</b>: the area under the ROC curve",
        '<p class="note">mind this</p>',
        "<b>Figure 1.</b> figure 0",
        "<b>Figure 2.</b> figure 1<br><span>a note</span>",
        '<h2 id="section-2">Second</h2>',
        "<table>",
        "<b>Figure 3.</b> figure 2",
        '<h2 id="section-3">What to do next</h2><p>Go on:</p><pre>interp list</pre>',
        '<h2 id="provenance">Provenance</h2>',
        "&quot;seed&quot;: 0",
    ]
    places = [rest.index(part) for part in order]
    assert places == sorted(places)
    assert rest.count("<b>AUROC</b>") == 1  # explained once, where it first stands
    figures = json.loads(unpacked(page, "figures"))
    assert list(figures) == ["figure-1", "figure-2", "figure-3"]
    assert all(f'id="{name}"' in rest for name in figures)
    assert "text" not in figures["figure-2"]["layout"].get("title", {})  # the caption says it


def test_tables(page: str) -> None:
    rest = bare(page)
    assert (
        '<table><thead><tr><th>name</th><th class="num">2</th></tr></thead><tbody>'
        '<tr><td>x</td><td class="num">0.123</td></tr>'
        '<tr><td>y</td><td class="num">60</td></tr>'
        '<tr><td>yes</td><td class="num">–</td></tr></tbody></table>'
    ) in rest
    assert "<table><thead><tr><th>empty</th></tr></thead><tbody></tbody></table>" in rest


def test_text_from_models_and_users_is_escaped() -> None:
    figure = go.Figure(go.Bar(x=[NASTY], y=[1]), layout={"title": NASTY})
    section = Section(
        title=NASTY,
        text=[NASTY],
        notes=[NASTY],
        figures=[figure],
        tables=[Table(header=[NASTY], rows=[[NASTY]])],
    )
    rest = bare(html_report(NASTY, NASTY, [section], {NASTY: NASTY}))
    assert "alert(1)" in rest  # control
    assert "<script>alert" not in rest
    assert rest.count("&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; &lt;b&gt;&amp;&quot;&#x27;") >= 8
    assert rest.count("<script") == rest.count("</script>") == 3


# Figures


RATES = {
    "baseline": {
        "harmful": Estimate(value=0.5, n=10, low=0.25, high=0.75),
        "harmless": Estimate(value=0.0, n=20, low=0.0, high=0.125),
    },
    "random": {
        "harmful": Estimate(value=1.0, n=10, low=0.75, high=1.0),
        "harmless": Estimate.unmeasured(),
    },
    "ablation": {
        "harmful": Estimate(value=0.25, n=10, low=0.125, high=0.5),
        "harmless": Estimate(value=0.0, n=20, low=0.0, high=0.125),
    },
}


def test_rate_bars_draw_values_and_intervals() -> None:
    figure: Any = rate_bars(RATES, title="Refusal", y_title="refusal rate", note="a note")
    assert [trace.name.split(" (")[0] for trace in figure.data] == list(RATES)
    assert figure.data[0].name == "baseline (n = 10 to 20)"
    assert [trace.type for trace in figure.data] == ["bar"] * 3
    baseline, random, _ = figure.data
    assert baseline.x == ("harmful", "harmless")
    assert [baseline.base + y for y in baseline.y] == [0.5, 0.0]  # bars begin below 0, so that 0% is seen
    assert min(baseline.y) > 0 > baseline.base
    for trace in figure.data:
        assert (trace.error_y.type, trace.error_y.symmetric) == ("data", False)
    assert baseline.error_y.array == (0.25, 0.125)
    assert baseline.error_y.arrayminus == (0.25, 0.0)
    assert [list(entry) for entry in baseline.customdata] == [[0.5, 0.25, 0.75, 10], [0.0, 0.0, 0.125, 20]]
    # What was not measured is no bar of height 0.
    assert math.isnan(random.y[1])
    assert math.isnan(random.error_y.array[1])
    assert figure.layout.barmode == "group"
    low, high = figure.layout.yaxis.range
    assert low <= baseline.base and 1 < high < 1.1
    assert figure.layout.title.text.startswith("Refusal<br>") and "a note" in figure.layout.title.text
    assert figure.layout.yaxis.title.text == "refusal rate"
    assert figure.layout.template == THEME


def test_what_is_in_the_table_has_its_look_and_series_differ_without_colour() -> None:
    arms: Any = rate_bars(RATES, title="", y_title="").data
    assert (
        arms[0].marker.color == style("baseline").colour and arms[2].marker.color == style("ablation").colour
    )
    assert len({trace.marker.color for trace in arms}) == 3
    for kind, table in MEANINGS.items():
        looks = [(look.dash, look.symbol, look.pattern) for look in table.values()]
        assert len(set(looks)) == len(looks), kind
        coloured = [look.colour for look in table.values() if look.colour != CONTROL_COLOUR]
        assert len(set(coloured)) == len(coloured) or kind == "groups", kind
    assert style("harmful").colour == style("refused harmful").colour != style("harmless").colour
    assert style("refusal").colour != style("harmfulness").colour
    lightness = [sum(int(look.colour[i : i + 2], 16) for i in (1, 3, 5)) for look in ordered(5)]
    assert lightness == sorted(lightness) and len(set(lightness)) == 5  # an order reads in grey


def test_layer_lines_data_and_axes() -> None:
    series = {"a": [0.5, None, 0.75], "b": [0.1, 0.2, 0.3]}
    figure: Any = layer_lines(series, title="T", y_title="AUROC", y_range=(0.0, 1.0))
    assert [trace.name for trace in figure.data] == ["a", "b"]
    assert figure.data[0].x == (0, 1, 2)
    assert [trace.y for trace in figure.data] == [(0.5, None, 0.75), (0.1, 0.2, 0.3)]
    assert (
        len({trace.line.color for trace in figure.data})
        == len({trace.line.dash for trace in figure.data})
        == 2
    )
    assert (figure.layout.title.text, figure.layout.yaxis.title.text) == ("T", "AUROC")
    assert figure.layout.xaxis.title.text == "layer (input of the block)"
    assert tuple(figure.layout.yaxis.range) == (0, 1)
    assert len(figure.layout.shapes) == len(figure.layout.annotations) == 0
    other: Any = layer_lines(series, title="", y_title="", layers=[4, 8, 12])
    assert other.data[1].x == (4, 8, 12) and other.layout.yaxis.range is None


def test_layer_lines_of_estimates_have_bands() -> None:
    entries = [Estimate(value=v, n=9, low=v - 0.1, high=v + 0.2) for v in (0.0, 0.5)]
    figure: Any = layer_lines({"a": entries, "b": [0.1, 0.2]}, title="T", y_title="cosine")
    band, measured, plain = figure.data
    assert measured.y == (0.0, 0.5) and plain.y == (0.1, 0.2)
    assert band.y == pytest.approx((0.2, 0.7, 0.4, -0.1)) and band.fill == "toself"
    assert measured.customdata[1] == pytest.approx((0.4, 0.7)) and plain.customdata is None


def test_layer_lines_reference_and_mark() -> None:
    figure: Any = layer_lines({"a": [0.5]}, title="", y_title="", reference=0.25, marked=(7, "picked"))
    reference, mark = figure.layout.shapes
    assert (reference.y0, reference.y1) == (0.25, 0.25)
    assert (mark.x0, mark.x1) == (7, 7)
    assert [note.text for note in figure.layout.annotations] == ["picked"]


def test_no_series_gives_an_empty_figure_with_its_titles() -> None:
    for figure in (rate_bars({}, title="T", y_title="y"), layer_lines({}, title="T", y_title="y")):
        shown: Any = figure
        assert (len(shown.data), shown.layout.yaxis.title.text) == (0, "y")
