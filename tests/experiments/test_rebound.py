"""The rebound grid on a tiny model, and its statements on planted numbers."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from interp.cli.main import app
from interp.data.prompts import load_prompts
from interp.data.tasks import load_task
from interp.engine.log_probs import completion_log_probs
from interp.experiments.rebound import run as rebound
from interp.experiments.rebound.analysis import lost_per_example, representation, slope_ratio_rows
from interp.models.chat_model import ChatModel, with_adapter
from interp.storage.untyped import load_result
from interp.tracking.rebound import summarise

GRID = rebound.Config(
    positives=(0, 8),
    negatives=(0, 4, 8),
    seeds=1,
    batch_size=4,
    learning_rate=2e-2,
    n_eval=4,
    max_new_tokens=3,
    n_kl=3,
    n_documents=3,
    n_states=4,
    n_fit=16,
    scorer="substring:e",
)


@pytest.fixture(scope="module")
def finished(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("rebound") / "run"
    before = {name: value.clone() for name, value in tiny.hf.state_dict().items()}
    result = rebound.run(tiny, load_prompts("builtin"), GRID, out=out)
    after = tiny.hf.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())  # the base is left as it was
    return out, result.numbers


def test_the_grid_is_whole_and_starts_where_it_should(finished: tuple[Path, dict[str, Any]]) -> None:
    model = finished[1]["models"]["tiny"]
    rows = model["rows"]
    assert {(r["n_plus"], r["n_minus"], r["seed"]) for r in rows} == {
        (p, n, s) for p in (0, 8) for n in (0, 4, 8) for s in (0,)
    }
    start = [r for r in rows if r["n_plus"] == r["n_minus"] == 0]
    assert all(r["score"] == r["base_score"] for r in start)
    assert all(abs(r["kl"]) < 1e-3 for r in start)  # float16 distributions
    assert min(r["kl"] for r in rows if r["n_plus"] == 8) > 0.01  # control: training moved the model
    ends = [
        np.mean(r["bits_per_byte"]["negative"]) for r in rows if r["n_plus"] == 8 and r["n_minus"] in (0, 8)
    ]
    assert ends[1] < ends[0]  # negatives learned


def test_the_projection_starts_at_the_alignments_own_shift(finished: tuple[Path, dict[str, Any]]) -> None:
    model = finished[1]["models"]["tiny"]
    for r in model["rows"]:
        if r["n_minus"] == 0:
            for moved in r["representation"].values():
                assert np.allclose(moved["since_base"], moved["at_aligned"], atol=1e-4)
    names = set(model["rows"][0]["representation"])
    assert {"harmfulness", "refusal"} <= names
    assert any(name.startswith("control") for name in names)
    for by in representation(model).values():
        for entries in by.values():
            assert entries[0]["share"]["value"] is None or entries[0]["share"]["value"] == pytest.approx(
                1, abs=1e-3
            )


def test_figures_and_page_come_from_the_stored_run(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    numbers = load_result(out).numbers
    drawn = rebound.figures(numbers)
    assert set(drawn) == {
        "decline",
        "kl",
        "by_positives",
        "time_constants",
        "heat_map",
        "rates",
        "representation",
    }
    assert [t.name for t in drawn["decline"].data if t.mode == "lines+markers"] == [
        "N+ = 0 (control)", "N+ = 8",
    ]  # fmt: skip
    assert list(drawn["heat_map"].data[0].x) == ["0", "4", "8"]
    page = (out / "report.html").read_text()
    assert "proves no elasticity" in page
    assert "961" in page  # the published count
    header, rows = rebound.rate_table(numbers).header, rebound.rate_table(numbers).rows
    assert all(len(row) == len(header) for row in rows)
    assert not out.with_name("run.parts").exists()
    assert CliRunner().invoke(app, ["plot", str(out)]).exit_code == 0


def test_several_models_have_a_panel_each_and_a_killed_run_continues(
    saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "second"
    copied.symlink_to(saved_tiny)
    arguments = ["run", "rebound", "--models", f"{saved_tiny},{copied}", "--out", str(tmp_path / "run")]
    settings = {
        "positives": [4], "negatives": [0, 4, 8], "seeds": 1, "batch_size": 4, "n_eval": 4, "max_new_tokens": 2,
        "n_kl": 2, "n_documents": 2, "n_states": 0,
    }  # fmt: skip
    for name, value in settings.items():
        arguments += ["--set", f"{name}={json.dumps(value)}"]
    calls = []
    plain = rebound._Grid._point

    def interrupted(self: Any, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(rebound._Grid, "_point", interrupted)
    assert CliRunner().invoke(app, arguments).exit_code == 130
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(calls) == 3 + 6 - 2  # two finished points were not measured again
    numbers = load_result(tmp_path / "run").numbers
    assert list(numbers["models"]) == [str(saved_tiny), str(copied)]
    assert len(rebound.figures(numbers)["decline"].layout.annotations) >= 2


def test_the_reverse_stage_by_dpo_prefers_the_negative_completion(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(GRID, positives=(4,), n_states=0, n_documents=1, reverse="dpo")
    prompts = load_prompts("builtin")
    margins: list[float] = []
    plain = rebound.preference_tune

    def watched(model: ChatModel, pairs: Any, **options: Any) -> Any:
        assert pairs == load_task("builtin", prompts, n_eval=4).preferences(0)[:8]
        assert options["start"].name == "checkpoint-4"
        trained = plain(model, pairs, **options)
        for count in (0, 8):
            with with_adapter(model, str(trained.checkpoints[count])) as at:
                chosen, rejected = (
                    completion_log_probs(
                        at,
                        [pair.prompt for pair in pairs],
                        [at.tokenizer(pair[side], add_special_tokens=False)["input_ids"] for pair in pairs],
                    )
                    for side in (1, 2)
                )
            margins.append(float(sum(c.sum() - r.sum() for c, r in zip(chosen, rejected, strict=True))))
        return trained

    monkeypatch.setattr(rebound, "preference_tune", watched)
    numbers = rebound.run(tiny, prompts, config, out=tmp_path / "run").numbers
    assert margins[1] > margins[0] + 1  # nats; the supervised stage alone has no rejected completion
    assert numbers["provenance"]["config"]["reverse"] == "dpo"
    assert "(reverse stage by DPO)" in rebound.verdicts(numbers)[0]
    drawn = rebound.figures(numbers)
    for name in ("decline", "heat_map"):
        assert "reverse stage by DPO" in drawn[name].layout.title.text
    assert "; reverse stage by DPO;" in (tmp_path / "run" / "report.html").read_text()


def test_what_cannot_be_reversed_is_said_before_anything_is_trained(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"reverse must be sft or dpo, got 'ppo'"):
        rebound.Config(reverse="ppo")
    for side in ("good", "bad"):
        rows = [{"prompt": f"{side} {i}?", "completion": side} for i in range(20)]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = f"positive={tmp_path / 'good.jsonl'},negative={tmp_path / 'bad.jsonl'}"
    config = dataclasses.replace(GRID, task=task, reverse="dpo")

    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(rebound, "fine_tune", trained)
    with pytest.raises(ValueError, match=r"16 of 16 have none, the first is number 1: give their prompts in"):
        rebound.run(tiny, load_prompts("builtin"), config)
    with pytest.raises(AssertionError, match="trained"):  # control: supervised, these files would do
        rebound.run(tiny, load_prompts("builtin"), dataclasses.replace(config, reverse="sft"))


def test_a_run_stored_before_there_was_a_choice_still_opens(finished: tuple[Path, dict[str, Any]]) -> None:
    numbers = copy.deepcopy(finished[1])
    del numbers["provenance"]["config"]["reverse"]
    assert "(reverse stage by SFT)" in rebound.verdicts(numbers)[0]
    assert "reverse stage by SFT" in rebound.figures(numbers)["heat_map"].layout.title.text
    assert "reverse stage by SFT" in rebound.report(numbers)


def test_the_heat_map_prints_means_over_seeds_on_a_scale_that_grey_keeps(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    numbers = planted(finished[1], {"2": 80.0, "4": 40.0, "8": 20.0})
    (drawn,) = rebound.figures(numbers)["heat_map"].data
    scores = [r["score"] for r in numbers["models"]["tiny"]["rows"] if (r["n_plus"], r["n_minus"]) == (4, 20)]
    at = list(drawn.y).index("4"), list(drawn.x).index("20")
    assert len(scores) == 4 and drawn.z[at[0]][at[1]] == pytest.approx(np.mean(scores))
    assert drawn.text[at[0]][at[1]] == f"{np.mean(scores):.2f}"
    assert "%{text}" in drawn.texttemplate
    weights = (0.299, 0.587, 0.114)  # luma of red, green and blue
    grey = [
        sum(w * float(c) for w, c in zip(weights, re.findall(r"\d+", colour), strict=True))
        for _, colour in drawn.colorscale
    ]
    assert grey == sorted(grey, reverse=True) and grey[0] - grey[-1] > 150


def planted(numbers: dict[str, Any], taus: dict[str, float]) -> dict[str, Any]:
    """The stored run with planted curves, projections and code lengths in place of the measured ones."""
    found = copy.deepcopy(numbers)
    model = found["models"]["tiny"]
    generator = np.random.default_rng(0)
    doses = [0, 10, 20, 40, 80, 160]
    rows = []
    for n_plus in (0, *map(int, taus)):
        for seed in range(4):
            for dose in doses:
                share = np.exp(-dose / taus[str(n_plus)]) if n_plus else 0.0
                noise = generator.normal(size=(3, 16))
                rows.append(
                    {
                        "seed": seed, "n_plus": n_plus, "n_minus": dose, "base_score": 0.1, "kl": 0.3 * share,
                        "score": float(0.1 + (0.6 + 0.1 * np.log(max(n_plus, 1))) * share + 0.005 * noise[0, 0]),
                        "representation": {
                            "refusal": {
                                "since_base": (share + 0.02 * noise[0]).tolist(),
                                "at_aligned": (1 + 0.02 * noise[1]).tolist(),
                            },
                            "control (topic)": {
                                "since_base": noise[1].tolist(), "at_aligned": noise[2].tolist(),
                            },
                        },
                        "bits_per_byte": {
                            "positive": (1 - share + 0.01 * noise[0]).tolist(),
                            "negative": [1.0] * 16,
                            "prose": (2 - (0.05 * (1 - share) if n_plus == 2 else 0) + 0.002 * noise[1]).tolist(),
                        },
                    }
                )  # fmt: skip
    found["provenance"]["config"]["negatives"] = doses
    model["rows"] = rows
    by = {(r["n_plus"], r["seed"], r["n_minus"]): r for r in rows}
    for key, name in (("score", "curves"), ("kl", "kl")):
        model[name] = {
            str(n): [[by[n, s, d][key] for d in doses] for s in range(4)] for n in (0, *map(int, taus))
        }
    model["base"] = [0.1] * 4
    model["summary"] = summarise(doses, model["curves"], base=0.1, kl=model["kl"])
    return found


def test_planted_rebound_is_said_and_its_opposite_denied(finished: tuple[Path, dict[str, Any]]) -> None:
    faster = planted(finished[1], {"2": 80.0, "4": 40.0, "8": 20.0})
    assert any("tiny: consistent with rebound" in line for line in rebound.verdicts(faster))
    tau = faster["models"]["tiny"]["summary"]["groups"]["4"]["tau"]
    assert tau["low"] <= 40 <= tau["high"]
    slower = planted(finished[1], {"2": 20.0, "4": 40.0, "8": 80.0})
    assert any("tiny: not consistent with rebound" in line for line in rebound.verdicts(slower))
    assert "returned" not in rebound.report(slower).split("</script>")[-1].split("What was found")[0]


def test_planted_projections_and_ratios_are_recovered_or_not_resolved(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    model = planted(finished[1], {"2": 80.0, "4": 40.0, "8": 20.0})["models"]["tiny"]
    lost = lost_per_example(model)
    expected = np.polyfit([0, 10], [0, 1 - np.exp(-10 / 40)], 1)[0]  # the range is the first tenth, 0 to 16
    assert lost["refusal"]["4"].low <= expected <= lost["refusal"]["4"].high
    assert np.isnan(lost["control (topic)"]["4"].value)  # what alignment did not move has no share to lose
    share = representation(model)["refusal"]["8"]
    last = next(e for e in share if e["n_minus"] == 20)["share"]
    assert last["low"] <= np.exp(-1) <= last["high"]
    ratios = {(r["n_plus"], r["n_minus"]): r["ratio"] for r in slope_ratio_rows(model)}
    assert ratios[2, 160]["value"] is not None
    assert ratios[2, 160]["low"] <= -20 <= ratios[2, 160]["high"]
    assert ratios[4, 160]["value"] is None  # prose did not change


def test_wrong_grids_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match=r"negatives must ascend from 0, three or more, got \[8, 0\]"):
        rebound.Config(negatives=(8, 0))
    with pytest.raises(ValueError, match=r"positives must ascend and hold one above 0, got \[0\]"):
        rebound.Config(positives=(0,))
    with pytest.raises(ValueError, match=r"multiples of batch_size = 8, got 12"):
        rebound.Config(positives=(12,))
    big = rebound.Config(positives=(8000,))
    with pytest.raises(
        ValueError, match=r"positives go up to 8000, the task has \d+; give more or smaller counts"
    ):
        rebound.run(tiny, load_prompts("builtin"), big)


def test_a_model_is_used_only_for_its_own_name(tiny: ChatModel, saved_tiny: Path) -> None:
    named = ChatModel(tiny.hf, tiny.tokenizer, name=saved_tiny.name)
    assert rebound.is_named(named, str(saved_tiny))
    assert not rebound.is_named(tiny, str(saved_tiny))
    revised = ChatModel(tiny.hf, tiny.tokenizer, name="owner/model", revision="step1000")
    assert rebound.is_named(revised, "owner/model@step1000")
    assert not rebound.is_named(revised, "owner/model")
