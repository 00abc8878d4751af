"""Every stored figure as the browser lays it out: no text over another, none cut off, few panels and lines."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

import interp
from interp.display.charts import bars, estimates_line, finish, panels, rate_axis, style
from interp.stats import Estimate
from tests.stored_figures import STORED, Drawn

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install '.[dev]')")

FIGURES = Path(interp.__file__).parent.parent / "figures"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")

# Draws a figure and compares the corners of its texts, so that slanted labels count as they are.
OVERLAPS = """
async (figure) => {
  const host = document.getElementById("figure");
  Plotly.purge(host);
  const {width, height} = figure.layout;
  host.style.width = width + "px"; host.style.height = height + "px";
  await Plotly.newPlot(host, figure.data, figure.layout, {displayModeBar: false});
  const origin = host.getBoundingClientRect(), faults = [], boxes = [];
  const kinds = {title: ".gtitle", "x title": ".g-xtitle text", "y title": ".g-ytitle text", "x tick": ".xtick text",
    "y tick": ".ytick text", annotation: ".annotation-text-g text", legend: ".legend .legendtext",
    "legend title": ".legendtitletext", "colour bar": ".colorbar text", slider: ".slider-group text",
    menu: ".updatemenu-header .updatemenu-item-rect"};
  for (const [kind, query] of Object.entries(kinds)) for (const node of host.querySelectorAll(query)) {
    const box = node.getBBox(), m = node.getScreenCTM();
    if (!m || !box.width || (kind !== "menu" && !node.textContent.trim())) continue;
    const at = (x, y) => [m.a * x + m.c * y + m.e - origin.left, m.b * x + m.d * y + m.f - origin.top];
    const air = Math.min(2, box.height / 5);  // letters do not fill their box
    const [x0, x1, y0, y1] = [box.x + 1, box.x + box.width - 1, box.y + air, box.y + box.height - air];
    boxes.push({name: `${kind} '${node.textContent}'`, corners: [at(x0, y0), at(x1, y0), at(x1, y1), at(x0, y1)]});
  }
  const apart = (a, b) => [a, b].some((shape) => shape.some(([x1, y1], i) => {
    const [x2, y2] = shape[(i + 1) % 4], along = ([x, y]) => (y2 - y1) * x + (x1 - x2) * y;
    const [p, q] = [a.map(along), b.map(along)];
    return Math.max(...p) <= Math.min(...q) || Math.max(...q) <= Math.min(...p);
  }));
  boxes.forEach((one, i) => {
    if (one.corners.some(([x, y]) => x < -1 || y < -1 || x > width + 1 || y > height + 1))
      faults.push(`${one.name} leaves the figure`);
    for (const other of boxes.slice(0, i))
      if (!apart(one.corners, other.corners)) faults.push(`${other.name} and ${one.name} lie over each other`);
  });
  return {texts: boxes.length, faults};
}
"""


@pytest.fixture(scope="module")
def drawn(drawn_runs: Drawn) -> dict[str, Any]:
    """Every figure of every stored run."""
    return drawn_runs.figures


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_content('<body style="margin:0"><div id="figure"></div></body>')
        page.add_script_tag(content=get_plotlyjs())
        yield page
        browser.close()


@pytest.mark.browser
@needs_chromium
def test_no_text_of_any_stored_figure_lies_over_another(page: Any, drawn: dict[str, Any]) -> None:
    assert len(drawn) > 80
    faults = list[str]()
    for name, figure in drawn.items():
        seen = page.evaluate(OVERLAPS, figure)
        assert seen["texts"] > 4, name
        faults += [f"{name}: {fault}" for fault in seen["faults"]]
    assert not faults, "\n".join(faults)


@pytest.mark.browser
@needs_chromium
def test_the_check_sees_what_lies_over_another_and_what_is_cut(page: Any) -> None:
    crowded = panels(x_title="layer", y_title="rate")
    crowded.add_bar(x=[f"category {i}" for i in range(30)], y=[1] * 30)
    crowded.update_layout(title="short")
    crowded.update_xaxes(tickangle=0)
    found = page.evaluate(OVERLAPS, json.loads(str(crowded.to_json())))["faults"]
    assert any("x tick" in fault and "lie over each other" in fault for fault in found)
    finished = finish(crowded, title="A title", note="a note " * 60)
    assert page.evaluate(OVERLAPS, json.loads(str(finished.to_json())))["faults"] == []
    long = panels(y_title="rate").update_layout(title="a title without end " * 20)
    found = page.evaluate(OVERLAPS, json.loads(str(long.to_json())))["faults"]
    assert any("leaves the figure" in fault for fault in found)


def test_every_stored_run_is_drawn(drawn: dict[str, Any]) -> None:
    assert {name.split("/")[0] for name in drawn} == {folder.name for folder in STORED}


def test_no_figure_has_more_than_four_panels_or_five_strong_lines_in_one(drawn: dict[str, Any]) -> None:
    for name, figure in drawn.items():
        layout = figure["layout"]
        assert sum(key.startswith("xaxis") for key in layout) <= 4, name
        lines: dict[tuple[str, str], set[str]] = {}
        for trace in figure["data"]:
            strong = trace.get("line", {}).get("width", 2) > 1 and trace.get("x") != [None]
            chance = trace.get("name", "").startswith("chance")
            if trace["type"] == "scatter" and "lines" in trace.get("mode", "") and strong and not chance:
                panel = (trace.get("xaxis", "x"), trace.get("yaxis", "y"))
                lines.setdefault(panel, set()).add(trace.get("legendgroup") or trace.get("name", ""))
        assert max(map(len, lines.values()), default=0) <= 5, name


def test_figures_share_one_look_and_say_no_private_words(drawn: dict[str, Any]) -> None:
    private = (
        "centres of before",
        "theta ",
        "s<sup>l</sup>",
        "prompts full stop",
        "yardstick",
        "prompts period",
    )
    for name, figure in drawn.items():
        text = json.dumps(figure, ensure_ascii=False)
        assert not [word for word in private if word in text], name
        title = figure["layout"]["title"]["text"]
        assert title and title[0].isupper(), name
        for trace in figure["data"]:
            for meaning in ("harmful", "harmless", "borderline"):
                label = trace.get("name", "").split(" (")[0]
                colour = trace.get("marker", {}).get("color") or trace.get("line", {}).get("color")
                if label == meaning:
                    assert colour == style(meaning).colour, (name, label)


def test_shares_stay_within_0_and_1_and_0_percent_is_visible() -> None:
    entries = [Estimate(value=0.0, n=20, low=0.0, high=0.16), Estimate(value=1.0, n=20, low=0.84, high=1.0)]
    bar: Any = bars("harmful", ["none", "all"], entries, style("harmful"))
    figure = panels()
    figure.add_trace(bar)
    rate_axis(figure)
    low, high = figure.layout.yaxis.range  # pyright: ignore[reportAttributeAccessIssue]
    heights: list[float] = list(bar.y or ())
    assert min(heights) > 0  # a bar of 0% has a height
    assert [bar.base + height for height in heights] == pytest.approx([0.0, 1.0])  # and ends at its value
    assert low <= bar.base < 0 and 1.0 < high < 1.1
    band, _ = estimates_line("harmful", entries, style("harmful"), within=(0.1, 0.9))
    assert min(band.y or ()) == 0.1 and max(band.y or ()) == 0.9


def test_figures_and_notebooks_stay_small() -> None:
    files = [path for folder in (FIGURES, FIGURES.parent / "notebooks") for path in folder.rglob("*")]
    kept = [path for path in files if path.suffix in (".png", ".html", ".json", ".gz", ".ipynb", ".py")]
    stored = [
        path for path in kept if not {"figures", ".ipynb_checkpoints"} & {*path.parts[len(FIGURES.parts) :]}
    ]
    total = sum(path.stat().st_size for path in stored if path.name != "report.html")
    assert len(stored) > 150 and total < 20_000_000, total
