"""The demo end to end on the tiny model: every part of its result, resume, and the page."""

from dataclasses import replace

import pytest
import torch

from interp.data.prompts import load_prompts
from interp.experiments.demo import EXPERIMENT as DEMO
from interp.experiments.demo import Config
from interp.experiments.demo import run as method
from interp.models.chat_model import ChatModel
from interp.stats import Estimate

SMALL = Config(n_train=8, n_val=4, n_test=5, n_candidates=2, max_new_tokens=3)


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    return DEMO.run(tiny, load_prompts(), SMALL, out=out), out


def test_the_run_folder_holds_what_the_result_says(run) -> None:
    made, out = run
    stored = DEMO.read(out)
    assert stored.result == made.result
    assert made.result.provenance.model.weights_hash == stored.provenance.model.weights_hash != ""
    assert {p.name for p in out.iterdir()} == {
        "result.json",
        "tensors.safetensors",
        "figures",
        "report.html",
        "refusal.safetensors",
        "harmfulness.safetensors",
    }
    assert not out.with_name("demo.parts").exists()
    torch.testing.assert_close(stored.tensors["harmfulness/as-is"], made.tensors["harmfulness/as-is"])


def test_every_rate_has_n_an_interval_and_a_control(run) -> None:
    rates = run[0].result.refusal_rate
    assert {"baseline", "ablation", "addition", "random ablation", "random addition"} <= set(rates)
    for arm in ("baseline", "ablation", "addition", "random ablation", "random addition"):
        for kind in ("harmful", "harmless", "borderline"):
            for entry in (rates[arm][kind].arditi, rates[arm][kind].zhao):
                assert isinstance(entry, Estimate)
                assert (entry.n, entry.interval) == (5, "Wilson")
                assert entry.low <= entry.value <= entry.high


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
    result = run[0].result
    assert run[0].tensors["refusal/as-is"][0].abs().max() == 0
    for role, layers in result.auroc["as-is"].items():
        if role != "t_inst":
            assert layers[0].value == 0.5
    assert result.leak_check["as-is"].embedding["t_post_inst"].value == 0.5


def test_figures_and_page_are_drawn_from_the_stored_result_alone(run) -> None:
    stored = DEMO.read(run[1])
    drawn = stored.figures()
    assert set(drawn) == {"refusal_rates", "cosine", "auroc", "selection"}
    bars = {bar.name.split(" (")[0]: bar for bar in drawn["refusal_rates"].data}
    assert set(bars) == {"harmful", "harmless", "borderline"}
    ablated = stored.result.refusal_rate["ablation"]["harmful"].arditi
    place = list(stored.result.refusal_rate).index("ablation")
    assert bars["harmful"].base + bars["harmful"].y[place] == pytest.approx(ablated.value)
    assert tuple(drawn["cosine"].data[0].y) == stored.result.cosine["as-is"]
    page = stored.report()
    assert stored.result.examples[0].id.startswith("harmless-")
    harmful = load_prompts()["harmful", "test"].texts
    assert not any(text in page for text in harmful)  # ids and categories, not prompt text


def test_a_killed_run_continues(tiny: ChatModel, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = method.generate

    def counted(*args, **options):
        calls.append(options)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(method, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        DEMO.run(tiny, load_prompts(), SMALL, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    DEMO.run(tiny, load_prompts(), SMALL, out=tmp_path / "run")
    assert len(calls) == 4 + 6 - 3  # six arms, three of them kept
    DEMO.run(tiny, load_prompts(), replace(SMALL, seed=1), out=tmp_path / "run")
    assert len(calls) == 4 + 6 - 3 + 6


def test_prompt_sets_with_changed_endings_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="compares endings itself"):
        DEMO.run(tiny, load_prompts(ending="period"), SMALL)


@pytest.mark.checkpoint
def test_on_the_bundled_model_ablation_removes_refusals_and_a_random_direction_does_not(bundled) -> None:
    config = Config(n_train=32, n_val=8, n_test=6, n_candidates=2, max_new_tokens=8)
    rates = DEMO.run(bundled("smollm2-safe"), load_prompts(), config).result.refusal_rate

    def value(arm: str, kind: str) -> float:
        return rates[arm][kind].arditi.value

    assert value("baseline", "harmful") > 0.5
    assert value("ablation", "harmful") < value("random ablation", "harmful") - 0.4
    assert value("addition", "harmless") > value("random addition", "harmless") + 0.4
