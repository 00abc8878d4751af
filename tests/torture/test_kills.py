"""`kill -9` before every change to the disk of the long commands, on the tiny model; full disks."""

from pathlib import Path

import pytest

from interp.data.examples import Example
from interp.data.prompts import load_prompts
from interp.experiments.demo import EXPERIMENT as DEMO
from interp.experiments.demo import Config
from interp.models.chat_model import ChatModel
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import track
from interp.training.finetune import TrainConfig, fine_tune
from tests.conftest import PROMPTS
from tests.storage.test_run_folders import small_disk
from tests.torture.kills import content, killed_everywhere

EXAMPLES = [Example(prompt, "yes") for prompt in PROMPTS * 2]
TRAINING = TrainConfig(epochs=2.0, batch_size=4, warmup_steps=1, rank=4)

pytestmark = [pytest.mark.torture, pytest.mark.filterwarnings("ignore")]


def test_fine_tuning_killed_anywhere_ends_with_the_same_weights(tiny: ChatModel, tmp_path: Path) -> None:
    def train(out: Path) -> None:
        fine_tune(tiny, EXAMPLES, out=out, config=TRAINING, checkpoints=[8, 20])

    assert killed_everywhere(train, tmp_path) > 40


def test_an_experiment_killed_anywhere_ends_with_the_same_result(tiny: ChatModel, tmp_path: Path) -> None:
    prompts, small = load_prompts(), Config(n_train=8, n_val=4, n_test=5, n_candidates=2, max_new_tokens=3)
    assert killed_everywhere(lambda out: DEMO.run(tiny, prompts, small, out=out), tmp_path) > 30


def test_tracking_killed_anywhere_ends_with_the_same_record(
    tiny: ChatModel, saved_tiny: Path, tmp_path: Path
) -> None:
    series = fine_tune(tiny, EXAMPLES, out=tmp_path / "sft", config=TRAINING, checkpoints=[0, 12])
    spec = TrackingSpec(
        n=4, n_fit=8, n_documents=2, max_new_tokens=3, measures=("refusal", "directions", "weights")
    )

    def measure(out: Path) -> None:
        track(series.folder, spec, base=str(saved_tiny), out=out)

    place = tmp_path / "kills"
    place.mkdir()
    assert killed_everywhere(measure, place, every=2) > 10


@pytest.mark.parametrize("size", [1_000, 5_000, 20_000, 60_000])
def test_a_full_disk_is_one_line_and_the_run_continues(tiny: ChatModel, tmp_path: Path, size: int) -> None:
    prompts, small = load_prompts(), Config(n_train=8, n_val=4, n_test=5, n_candidates=2, max_new_tokens=3)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    DEMO.run(tiny, prompts, small, out=whole)
    with small_disk(size), pytest.raises(OSError, match=r"cannot write|too large") as caught:
        DEMO.run(tiny, prompts, small, out=cut)
    assert "\n" not in str(caught.value)
    DEMO.run(tiny, prompts, small, out=cut)
    assert content(cut) == content(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
