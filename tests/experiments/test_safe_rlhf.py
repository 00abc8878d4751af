"""The PKU-SafeRLHF experiment end to end on the tiny model, with the miniature and with a file of the same layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from interp.data.prompts import load_prompts
from interp.data.safe_rlhf_miniature import miniature_rows
from interp.experiments.definition import Run
from interp.experiments.running import open_run
from interp.experiments.safe_rlhf import EXPERIMENT, Config
from interp.experiments.safe_rlhf import run as method
from interp.models.chat_model import ChatModel
from tests.experiments.counted import assert_planned, counting

SMALL: dict[str, Any] = {"n_directions": 4, "n_components": 8, "false_positive_rate": 0.2}


@pytest.fixture(scope="module")
def made(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "safe-rlhf"
    with counting("safe-rlhf", tiny):
        return EXPERIMENT.run(tiny, load_prompts("builtin"), Config(**SMALL), out=out)


def test_every_reading_is_there_with_its_control(made: Run) -> None:
    result = made.result
    assert result.miniature and result.published == () and result.counts["pairs"] == 304
    assert len(result.told_apart) == len(result.cosine_with_refusal) == 4  # layers 0 to 3
    assert result.told_apart[result.layer].low > 0.5
    assert abs(result.told_apart_shuffled[result.layer] - 0.5) < 0.3 and result.norm_ratio[result.layer] > 2
    assert set(result.severity) >= {
        "along the harm direction",
        "all directions",
        "majority",
        "length",
        "categories",
    }
    assert set(result.moderation) == {"severity moderator", "severity moderator, calibrated", "words alone"}
    assert result.preferences["safer"].conflict.n > 10
    assert made.tensors["categories_own"].shape == (len(result.categories.names), 32)


def test_figures_and_verdicts_follow_from_the_stored_result(made: Run) -> None:
    assert made.folder is not None
    stored = open_run(made.folder)
    assert stored.result == made.result
    drawn = stored.figures()
    assert set(drawn) == {"told_apart", "categories", "severity", "preferences", "moderation"}
    assert "bundled miniature" in stored.verdicts()[0]
    assert "White-Collar Crime" in " ".join(stored.verdicts())  # planted to overlap
    page = (made.folder / "report.html").read_text()
    assert "Helpful and harmless" in page and "morning light" not in page  # no answer is shown


def test_a_file_of_pairs_is_checked_against_the_published_counts(tiny: ChatModel, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, miniature_rows())) + "\n")
    config = Config(**SMALL, data=str(path), n_pairs=60, min_pairs=2, layer=2)
    result = EXPERIMENT.run(tiny, load_prompts("builtin"), config).result
    assert not result.miniature and result.layer == 2 and result.counts["pairs"] == 60
    pairs = next(each for each in result.published if each.what == "pairs")
    assert (pairs.found, pairs.holds) == (304, False)
    assert "published counts hold in this copy; not: pairs" in EXPERIMENT.verdicts(result)[0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layer": 9}, r"layer must be in 0\.\.3, got 9"),
        ({"n_pairs": 8}, r"there are \d+ mixed pairs to fit on and \d held out; give more pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_answers_are_read(
    settings: dict[str, int], told: str, tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "answer_states", lambda *_, **__: pytest.fail("answers were read"))
    with pytest.raises(ValueError, match=told):
        EXPERIMENT.run(tiny, load_prompts("builtin"), Config(**SMALL, **settings))


@pytest.mark.usefixtures("made")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path) -> None:
    assert_planned("safe-rlhf", saved_tiny, Config(**SMALL))
