"""What a new user sees: a real JupyterLab in headless Chromium, and a report opened from disk without a network."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest

import interp
from interp.experiments import EXPERIMENTS
from interp.experiments.running import open_run
from tests.test_notebooks import SMALL, shrink

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install '.[dev]')")

ROOT = Path(interp.__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "reader"
STORED = [path for name in EXPERIMENTS if (path := ROOT / "figures" / name).is_dir()]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def chromium() -> "Iterator[playwright.Browser]":
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a JupyterLab that serves a small 01 from a folder like the repository's."""
    desk = tmp_path_factory.mktemp("lab")
    (desk / "figures").symlink_to(ROOT / "figures")
    (desk / "notebooks").mkdir()
    notebook = jupytext.read(ROOT / "notebooks" / "01_quick_start.py")
    shrink(notebook)
    jupytext.write(notebook, desk / "notebooks" / "01_quick_start.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(desk / ".jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
            *(f"--ServerApp.root_dir={desk}", f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0"),
        ],
        cwd=desk,
        env={**os.environ, **folders, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=(desk / "server.log").open("w"),
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        begun = time.monotonic()
        while not answers(f"{address}/api/status?token={TOKEN}"):
            assert server.poll() is None and time.monotonic() - begun < 120, (desk / "server.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def wait_for_kernel(lab: str) -> None:
    """Until the notebook's kernel has started and the page has connected to it: Lab asks for a kernel before that."""
    begun = time.monotonic()
    while True:
        with urllib.request.urlopen(f"{lab}/api/sessions?token={TOKEN}", timeout=20) as reply:
            kernels = [session["kernel"] for session in json.load(reply)]
        if any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels):
            return
        assert time.monotonic() - begun < 120, kernels
        time.sleep(0.2)


def test_a_new_user_runs_01_and_plays(
    chromium: "playwright.Browser", lab: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 1800})
    page.set_default_timeout(90_000)
    page.goto(f"{lab}/lab/tree/notebooks/01_quick_start.ipynb?token={TOKEN}")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for()
    wait_for_kernel(lab)
    page.locator(".jp-NotebookPanel .jp-MarkdownCell").first.click()  # the menu acts on the active notebook
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*1]\]")).first.wait_for(state="attached")

    figure = page.locator(".jp-OutputArea .js-plotly-plot .main-svg").first
    figure.wait_for(timeout=240_000)  # a cold kernel loads torch and the model first
    points = page.locator(".js-plotly-plot .violinlayer .points path").count()
    assert points >= 2 * SMALL["N_PROMPTS"]  # every prompt of both kinds is one
    cards = page.locator(".interp-card").all_inner_texts()
    assert any("ChatModel smollm2-safe" in card for card in cards)

    amount = page.locator(".widget-slider", has_text="amount")
    handle = amount.locator(".noUi-handle")
    handle.wait_for()
    screenshots = tmp_path_factory.getbasetemp() / "browser"
    screenshots.mkdir(exist_ok=True)

    page.locator(".jupyter-button.mod-primary").scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "notebook.png")

    # Two rows of settings and one of buttons, no label cut.
    cells = page.locator(".widget-gridbox > *").all()
    assert len(cells) == 8 and len({round(cell.bounding_box()["y"]) for cell in cells}) == 2
    buttons = page.locator(".jupyter-widgets.jupyter-button:visible")
    below = [
        button for button in buttons.all() if button.inner_text() in ("Run", "Stop", "Start over", "Code")
    ]
    assert len(below) == 4 and len({round(button.bounding_box()["y"]) for button in below}) == 1
    assert buttons.evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth + 1).length") == 0
    assert page.locator("[class$=-picture]").is_hidden()  # the static picture is for readers without a kernel

    def press_run() -> tuple[str, str]:
        """Press Run, wait for the end; the plain and the steered answer."""
        page.locator(".jupyter-button.mod-primary", has_text="Run").click()
        page.locator(".widget-html-content", has_text="Steered answer: ").wait_for()
        page.locator(".widget-html-content", has_text="Done: ").wait_for()
        plain, steered = (page.locator(f".interp-{arm} p").inner_text() for arm in ("plain", "steered"))
        return plain, steered

    plain, steered = press_run()
    assert plain != steered
    assert page.locator(".interp-token").count() > 100
    page.locator(".interp-plain").scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "playground.png")

    before = amount.locator(".widget-readout").inner_text()
    handle.focus()
    for _ in range(10):
        handle.press("ArrowLeft")
    assert (before, amount.locator(".widget-readout").inner_text()) == ("1.00", "0.00")
    again, unsteered = press_run()
    assert unsteered == again == plain  # a push of zero is none
    page.screenshot(path=screenshots / "playground_zero.png")
    assert page.locator(".jp-OutputArea-output [data-mime-type*=stderr]").count() == 0
    page.close()


@pytest.mark.parametrize("folder", STORED, ids=lambda path: path.name)
def test_a_report_draws_every_figure_without_a_network(
    chromium: "playwright.Browser", folder: Path, tmp_path: Path
) -> None:
    stored = open_run(folder)
    report = tmp_path / "report.html"
    report.write_text(stored.report(), encoding="utf-8")
    context = chromium.new_context(offline=True)
    page = context.new_page()
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(report.as_uri())
    page.locator(".main-svg").first.wait_for()
    drawn = page.eval_on_selector_all(
        ".plotly-graph-div", "divs => divs.map(div => div.querySelectorAll('.main-svg').length)"
    )
    assert len(drawn) >= len(stored.figures()) > 0
    assert min(drawn) >= 1
    assert not faults
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()
