"""Every stored run, drawn once for all tests: what drawing loads, and the figures it makes.

It happens in a process of its own, where nothing has been imported and types are not checked.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import interp
from interp.experiments import EXPERIMENTS
from interp.storage.run_folders import read_header

ROOT = Path(interp.__file__).parent.parent
STORED = sorted(path.parent for path in (ROOT / "figures").glob("*/result.json*"))

SCRIPT = """
import json, sys
from importlib import import_module
from pathlib import Path
import interp

def loaded():
    return [name for name in ("torch", "transformers", "transformer_lens") if name in sys.modules]

libraries, figures = {}, {}

def keep(folder, made):
    figures.update({f"{Path(folder).name}/{name}": json.loads(str(figure.to_json())) for name, figure in made.items()})
    return made

for name, package, folders in json.loads(sys.argv[1]):
    before = loaded()
    for part in ("figures", "report"):
        import_module(f"{package}.{part}")
    page = sys.modules[f"{package}.report"]
    for number, folder in enumerate(folders):
        run = interp.open_run(folder)
        if number == 0:  # the figures of the report, where it draws them itself
            draw = getattr(page, "figures", None)
            page.figures = lambda result: keep(folder, draw(result))
            run.report(), repr(run)
            page.figures = draw
        if number > 0 or draw is None:
            keep(folder, run.figures())
    libraries[name] = [*before, "since another"] if before else loaded()
Path(sys.argv[2]).write_text(json.dumps({"loaded": libraries, "figures": figures}))
"""


class Drawn(NamedTuple):
    loaded: dict[str, list[str]]
    """By experiment: the model libraries that the process held after drawing its runs, one experiment after another."""
    figures: dict[str, Any]
    """By `run/figure`: the figure as JSON."""


def draw(path: Path) -> None:
    """Write what `read` reads."""
    runs: dict[str, list[str]] = {name: [] for name in EXPERIMENTS}
    for folder in STORED:
        runs[str(read_header(folder).experiment)].append(str(folder))
    jobs = [[name, package, runs[name]] for name, package in EXPERIMENTS.items()]
    command = [sys.executable, "-c", SCRIPT, json.dumps(jobs), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def read(path: Path) -> Drawn:
    return Drawn(**json.loads(path.read_text()))
