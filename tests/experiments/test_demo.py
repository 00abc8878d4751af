"""The demo end to end on the tiny model: every part of its result, resume, and the page."""

import json
from dataclasses import replace

import pytest
import torch

from interp.data.prompts import load_prompts
from interp.experiments.demo import run as demo
from interp.models.chat_model import ChatModel
from interp.storage.run_folders import load_result

SMALL = demo.Config(n_train=8, n_val=4, n_test=5, n_candidates=2, max_new_tokens=3)


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    return demo.run(tiny, load_prompts(), SMALL, out=out), out


def test_the_run_folder_holds_what_the_result_says(run) -> None:
    result, out = run
    stored = load_result(out)
    assert stored.numbers["selected"] == json.loads(json.dumps(result.numbers["selected"]))
    assert {p.name for p in out.iterdir()} == {
        "result.json",
        "tensors.safetensors",
        "figures",
        "report.html",
        "refusal.safetensors",
        "harmfulness.safetensors",
    }
    assert not out.with_name("demo.parts").exists()
    torch.testing.assert_close(stored.tensors["harmfulness/as-is"], result.tensors["harmfulness/as-is"])


def test_every_rate_has_n_an_interval_and_a_control(run) -> None:
    rates = run[0].numbers["refusal_rate"]
    assert {"baseline", "ablation", "addition", "random ablation", "random addition"} <= set(rates)
    for arm in ("baseline", "ablation", "addition", "random ablation", "random addition"):
        for kind in ("harmful", "harmless", "borderline"):
            for words in ("12", "24"):
                entry = rates[arm][kind][words]
                assert entry["n"] == 5
                assert entry["low"] <= entry["value"] <= entry["high"]


def test_directions_are_differences_of_the_means_that_the_engine_reads(tiny: ChatModel, run) -> None:
    from interp.engine.activations import collect_means

    prompts = load_prompts(ending="period")
    means = [
        collect_means(tiny, prompts[kind, "train"].first(8).texts, positions="t_inst")["resid_pre"]
        for kind in ("harmful", "harmless")
    ]
    expected = (means[0] - means[1])[:, 0].float()
    torch.testing.assert_close(run[0].tensors["harmfulness/period"], expected, rtol=1e-4, atol=1e-5)


def test_template_tokens_carry_nothing_at_the_embedding(run) -> None:
    result = run[0]
    assert result.tensors["refusal/as-is"][0].abs().max() == 0
    for role, layers in result.numbers["auroc"]["as-is"].items():
        if role != "t_inst":
            assert layers[0]["value"] == 0.5
    assert result.numbers["leak_check"]["as-is"]["embedding"]["t_post_inst"]["value"] == 0.5


def test_figures_and_page_are_drawn_from_the_stored_numbers_alone(run) -> None:
    numbers = load_result(run[1]).numbers
    drawn = demo.figures(numbers)
    assert set(drawn) == {"refusal_rates", "cosine", "auroc", "selection"}
    assert len(drawn["refusal_rates"].data) == 6
    assert list(drawn["cosine"].data[0].y) == numbers["cosine"]["as-is"]
    page = demo.report(numbers)
    assert numbers["examples"][0]["id"].startswith("harmless-")
    harmful = load_prompts()["harmful", "test"].texts
    assert not any(text in page for text in harmful)  # ids and categories, not prompt text


def test_a_killed_run_continues(tiny: ChatModel, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = demo.generate

    def counted(*args, **options):
        calls.append(options)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(demo, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tiny, load_prompts(), SMALL, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    demo.run(tiny, load_prompts(), SMALL, out=tmp_path / "run")
    assert len(calls) == 4 + 16 - 3  # sixteen arms and kinds, three of them kept
    demo.run(tiny, load_prompts(), replace(SMALL, seed=1), out=tmp_path / "run")
    assert len(calls) == 4 + 16 - 3 + 16


def test_prompt_sets_with_changed_endings_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="compares endings itself"):
        demo.run(tiny, load_prompts(ending="period"), SMALL)


@pytest.mark.checkpoint
def test_on_the_bundled_model_ablation_removes_refusals_and_a_random_direction_does_not(bundled) -> None:
    config = demo.Config(n_train=32, n_val=8, n_test=6, n_candidates=2, max_new_tokens=8)
    rates = demo.run(bundled("smollm2-safe"), load_prompts(), config).numbers["refusal_rate"]

    def value(arm: str, kind: str) -> float:
        return rates[arm][kind]["12"]["value"]

    assert value("baseline", "harmful") > 0.5
    assert value("ablation", "harmful") < value("random ablation", "harmful") - 0.4
    assert value("addition", "harmless") > value("random addition", "harmless") + 0.4
