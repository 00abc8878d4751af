"""Adversarial fine-tuning: planted changes are read off rightly, and a run on the tiny model is whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Kind, Prompts, load_prompts
from interp.data.replies import STUBS
from interp.experiments.adversarial_finetune import EXPERIMENT, Beliefs, Condition, Config
from interp.experiments.adversarial_finetune import run as method
from interp.experiments.adversarial_finetune.run import changes, training_sets
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from tests.experiments.counted import assert_planned, counting

SMALL = Config(sizes=(10, 20), n_centres=8, n_test=8, max_new_tokens=1, learning_rate=5e-3, rank=2)


def condition(harm: float, refusal: float) -> Condition:
    """Held-out harmful prompts at these beliefs, harmless ones at -0.1 of either."""
    noise = [0.01, -0.01, 0.0, 0.02, -0.02]

    def at(value: float) -> Beliefs:
        return Beliefs(mean=(), sd=(), belief=tuple(value + e for e in noise))

    by = {
        name: {"harmful": at(v), "harmless": at(-0.1)} for name, v in (("harm", harm), ("refusal", refusal))
    }
    return Condition(refusal_rate={}, beliefs={"as-is": by, "period": by}, guard={})


def test_planted_changes_are_shares_of_the_gap() -> None:
    found = changes({"before": condition(0.1, 0.1), "20 stubs": condition(0.1, -0.1)})["20 stubs"]["period"]
    assert found["harm"].value == pytest.approx(0.0)
    assert found["refusal"].value == pytest.approx(-1.0)  # where harmless prompts were
    swapped = changes({"before": condition(0.1, 0.1), "20 stubs": condition(-0.1, 0.1)})["20 stubs"]["period"]
    assert swapped["harm"].value == pytest.approx(-1.0)
    assert swapped["refusal"].value == pytest.approx(0.0)


def test_training_sets_hold_stubs_for_refused_prompts_and_controls_of_equal_size() -> None:
    prompts = load_prompts()
    pool: dict[Kind, Prompts] = {kind: prompts[kind, "train"].first(30) for kind in PAIRED_KINDS}
    sets = training_sets(pool, 20)
    assert {name: len(part) for name, part in sets.items()} == {
        "stubs": 20,
        "refusals": 20,
        "harmless with stubs": 20,
    }
    assert (
        [e.prompt for e in sets["stubs"]]
        == [e.prompt for e in sets["refusals"]]
        == list(pool["harmful"].texts[:20])
    )
    assert [e.completion for e in sets["stubs"]] == [e.completion for e in sets["harmless with stubs"]]
    assert {e.completion for e in sets["stubs"]} == set(STUBS)
    assert not {e.completion for e in sets["refusals"]} & set(STUBS)


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory):
    """On a model that, as far as its words are judged, refuses harmful prompts until it is fine-tuned on stubs."""
    harmful = {t for split in ("train", "test") for t in load_prompts()["harmful", split].texts}  # type: ignore[index]
    real = method.refusal_verdicts
    asked: list[str] = []

    def verdicts(model: ChatModel, prompts: Any, **options: Any) -> Any:
        asked.append(str(model.adapter))
        seen = real(model, prompts.first(2), **options)
        lost = "stubs" in str(model.adapter) and "harmless" not in str(model.adapter)
        said = tuple(text in harmful and not lost for text in prompts.texts)
        return type(seen)(flags=said)

    out = tmp_path_factory.mktemp("runs") / "adversarial"
    before = {name: p.detach().clone() for name, p in tiny.hf.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "refusal_verdicts", verdicts)
        with counting("adversarial-finetune", tiny):
            finished = EXPERIMENT.run(tiny, load_prompts(), SMALL, out=out)
    for name, p in tiny.hf.named_parameters():
        assert torch.equal(p, before[name])  # the model is as it was
    return finished, out


def test_every_size_and_control_is_measured_with_both_centres_and_endings(run) -> None:
    result = EXPERIMENT.read(run[1]).result
    assert result == run[0].result
    assert list(result.conditions) == [
        "before",
        "10 stubs",
        "20 stubs",
        "20 refusals (control)",
        "20 harmless with stubs (control)",
    ]
    for measured in result.conditions.values():
        for ending in ("as-is", "period"):
            for guard in (measured.guard[ending].fitted_before, measured.guard[ending].refitted):
                assert guard.harmful.n == guard.harmless.n == 8
                assert 0 <= guard.auroc.value <= 1
            for name in ("harm", "refusal"):
                assert len(measured.beliefs[ending][name]["harmful"].mean) == 4
    assert not run[1].with_name("adversarial.parts").exists()


def test_beliefs_before_are_those_of_the_model_and_change_with_training(tiny: ChatModel, run) -> None:
    finished, _ = run
    prompts = load_prompts(ending="period")
    read = states(tiny, prompts["harmful", "test"].first(8).texts)[:, :, 0]
    centres = [finished.tensors[f"harm/period/{side}"] for side in ("positive", "negative")]
    cosines = [
        torch.nn.functional.cosine_similarity(read.double(), c.double()[None], dim=-1) for c in centres
    ]
    expected = (cosines[0] - cosines[1]).mean(1)
    conditions = finished.result.conditions
    stored = conditions["before"].beliefs["period"]["harm"]["harmful"].belief
    assert stored == pytest.approx(expected.tolist(), abs=1e-5)
    after = [conditions[f"{n} stubs"].beliefs["period"]["refusal"]["harmful"].mean for n in (10, 20)]
    assert after[0] != after[1]


def test_figures_verdicts_and_page(run) -> None:
    stored = EXPERIMENT.read(run[1])
    drawn: Any = stored.figures()
    # By size: before and two sizes; controls: before, the largest and two controls; harmless in each; two endings.
    assert len(drawn["fig07_harm_belief"].data) == 2 * ((3 + 1) + (4 + 1))
    lines = stored.verdicts()
    assert lines[0].startswith("Seen: the model comes to comply (refusal of held-out harmful prompts 100%")
    assert len(lines) == 1 + 2 * 3
    before = stored.result.conditions["before"].refusal_rate
    unchanged = {label: replace(c, refusal_rate=before) for label, c in stored.result.conditions.items()}
    lines = EXPERIMENT.verdicts(replace(stored.result, conditions=unchanged))
    assert lines[1].startswith("Not testable")
    page = stored.report()
    assert not any(text in page for text in load_prompts()["harmful", "test"].texts)


def test_mistakes_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="multiples of batch_size 10, got 15"):
        Config(sizes=(15,))
    with pytest.raises(ValueError, match=r"sizes must be one or more whole numbers above 0, got \(\)"):
        Config(sizes=())
    with pytest.raises(ValueError, match="compares endings itself"):
        EXPERIMENT.run(tiny, load_prompts(ending="period"), SMALL)
    few = load_prompts()
    parts = {key: part.first(10) for key, part in few.parts.items()}
    with pytest.raises(ValueError, match=r"tiny refuses only \d of 10 harmful train prompts; at least 8"):
        EXPERIMENT.run(tiny, replace(few, parts=parts), SMALL)


@pytest.mark.usefixtures("run")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path) -> None:
    assert_planned("adversarial-finetune", saved_tiny, SMALL)
