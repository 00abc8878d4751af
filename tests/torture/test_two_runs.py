"""Two runs of the same command in one folder: one writes it, the other is refused in one line; the result is whole."""

import os
import time
from pathlib import Path

import pytest

from interp.data.prompts import load_prompts
from interp.experiments.demo import EXPERIMENT as DEMO
from interp.experiments.demo import Config
from interp.models.chat_model import ChatModel
from tests.torture.kills import content

SMALL = Config(n_train=8, n_val=4, n_test=5, n_candidates=2, max_new_tokens=3)


def together(model: ChatModel, out: Path, *, delay: float) -> list[int]:
    """Exit codes of two forked processes that run the demo into one folder: 0 done, 2 refused, 1 anything else."""
    prompts, children = load_prompts(), list[int]()
    for number in range(2):
        if (child := os.fork()) == 0:
            status = 1
            try:
                time.sleep(number * delay)
                DEMO.run(model, prompts, SMALL, out=out)
                status = 0
            except ValueError as error:
                status = 2 if "is being written by another run" in str(error) else 1
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")
def test_two_runs_in_one_folder_leave_one_whole_result(tiny: ChatModel, tmp_path: Path) -> None:
    DEMO.run(tiny, load_prompts(), SMALL, out=tmp_path / "alone")
    expected, refusals = content(tmp_path / "alone"), 0
    for number in range(20):
        place = tmp_path / f"{number}"
        place.mkdir()
        codes = together(tiny, place / "run", delay=0.01 * number)
        assert 0 in codes and 1 not in codes
        refusals += codes.count(2)
        assert content(place / "run") == expected
        assert [path.name for path in place.iterdir()] == ["run"]
    assert refusals > 3
