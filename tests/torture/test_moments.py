"""`kill -9` at random moments of every long command of the command line, on the tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from interp.cli.main import app
from tests.conftest import PROMPTS
from tests.torture.moments import killed_at_random

pytestmark = pytest.mark.torture

SMALL = ("n_train=8", "n_val=4", "n_test=5", "n_candidates=2", "max_new_tokens=3")


def settings(*given: str) -> list[str]:
    return [word for one in given for word in ("--set", one)]


def command(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "run demo": lambda model, out: ["run", "demo", "--model", model, *settings(*SMALL), "--out", out],
    "run endings": lambda model, out: [
        *("run", "endings", "--model", model, "--out", out),
        *settings("n_train=6", "n_test=6", "n_shuffles=2", "n_resamples=5"),
    ],
    "collect": lambda model, out: [
        *("collect", model.parent / "prompts.txt", "--model", model, "--out", out / "acts.safetensors"),
    ],
    "directions": lambda model, out: [
        *("directions", "--model", model, "--n-prompts", 8, "--n-test", 6, "--out", out),
    ],
    "track": lambda model, out: ["track", model, "--base", model, "-n", 4, "--out", out],
}
"""Commands that take long on a real model: model and output folder → words."""


def killed(name: str, saved_tiny: Path, tmp_path: Path, *, times: int) -> int:
    model = tmp_path / "model"
    model.symlink_to(saved_tiny)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 8))
    place = tmp_path / "kills"
    place.mkdir()

    def work(out: Path) -> None:
        if name == "collect":
            out.mkdir(exist_ok=True)
        command(*COMMANDS[name](model, out))

    return killed_at_random(work, place, times=times)


@pytest.mark.filterwarnings("ignore")
def test_collect_killed_at_a_few_moments_ends_with_the_same_file(saved_tiny: Path, tmp_path: Path) -> None:
    killed("collect", saved_tiny, tmp_path, times=3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_50_moments_ends_with_the_same(
    name: str, saved_tiny: Path, tmp_path: Path
) -> None:
    assert killed(name, saved_tiny, tmp_path, times=50) > 25
