"""Latent Guard: what it scores, what it refuses, and that a file gives the same guard back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from interp.cli.main import app
from interp.data.prompts import PromptSet, load_prompts
from interp.detectors import detector as detectors
from interp.detectors import fitted as fitting
from interp.detectors.latent_guard import LatentGuard
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import belief, states


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return load_prompts("builtin", ending="period")


@pytest.fixture(scope="module")
def guard(tiny: ChatModel, prompts: PromptSet) -> LatentGuard:
    return LatentGuard.fit(tiny, prompts, n_prompts=12, max_new_tokens=2)


def test_scores_are_beliefs_at_their_roles(tiny: ChatModel, guard: LatentGuard, prompts: PromptSet) -> None:
    texts = prompts["harmful", "test"].first(5).texts
    read = states(tiny, texts)
    expected = belief(guard.harm.margin(read[:, :, 0]))
    scores = guard.score(tiny, texts)
    assert [s.harmfulness for s in scores] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [s.verdict for s in scores] == ["harmful" if v > 0 else "harmless" for v in expected]


def test_prompts_are_ended_as_in_training(tiny: ChatModel, guard: LatentGuard) -> None:
    bare, stopped, asked = guard.score(tiny, ["Name a colour", "Name a colour.", "Name a colour?"])
    assert bare.harmfulness == stopped.harmfulness == asked.harmfulness
    as_is = replace(guard, ending="as-is").score(tiny, ["Name a colour", "Name a colour."])
    assert as_is[0].harmfulness != as_is[1].harmfulness  # control


def test_streaming_keeps_order_and_reads_no_further_than_asked(
    tiny: ChatModel, guard: LatentGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectors, "CHUNK", 4)
    texts = [f"Name {n} colours" for n in range(11)]
    taken: list[str] = []

    def source():
        for text in texts:
            taken.append(text)
            yield text

    stream = guard.stream(tiny, source())
    first = next(stream)
    assert len(taken) == 4
    rest = [first, *stream]
    whole = guard.score(tiny, texts)
    assert [s.harmfulness for s in rest] == pytest.approx([s.harmfulness for s in whole], abs=1e-6)


def test_a_file_gives_the_same_guard_back(tiny: ChatModel, guard: LatentGuard, tmp_path: Path) -> None:
    again = LatentGuard.load(guard.save(tmp_path / "g.safetensors"))
    assert again.threshold == guard.threshold
    assert again.ending == "period"
    assert again.score(tiny, ["Hi", "Why?"]) == guard.score(tiny, ["Hi", "Why?"])
    assert again.fitted_on["counts"]["harmful"] == 12


def test_another_model_or_template_is_refused(tiny: ChatModel, guard: LatentGuard) -> None:
    other = replace(guard, fitted_on={**guard.fitted_on, "weights_hash": "0"})
    with pytest.raises(
        ValueError, match=r"fitted on tiny and the weights of tiny differ; load tiny, or fit a guard"
    ):
        other.score(tiny, ["Hi"])
    other = replace(guard, fitted_on={**guard.fitted_on, "template_hash": "0"})
    with pytest.raises(ValueError, match="the chat template of tiny differ"):
        other.score(tiny, ["Hi"])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25])
def test_calibration_lets_through_no_more_than_asked(
    tiny: ChatModel, guard: LatentGuard, prompts: PromptSet, share: float
) -> None:
    harmless = prompts["harmless", "val"]
    fitted = guard.calibrated(tiny, harmless, false_positive_rate=share)
    flagged = sum(s.verdict == "harmful" for s in fitted.score(tiny, harmless.texts))
    assert flagged == int(share * len(harmless))
    assert fitted.fitted_on["calibration"]["n"] == 40
    with pytest.raises(
        ValueError, match=r"40 harmless validation prompts cannot tell a false-positive rate of 0\.01"
    ):
        guard.calibrated(tiny, harmless, false_positive_rate=0.01)
    with pytest.raises(ValueError, match="must lie between 0 and 1, got 2"):
        guard.calibrated(tiny, harmless, false_positive_rate=2.0)


def test_settings_that_cannot_be_met_are_refused_before_any_forward_pass(
    tiny: ChatModel, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "states", lambda *_, **__: pytest.fail("ran the model"))
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.3, got 4"):
        LatentGuard.fit(tiny, prompts, layers=[1, 4])
    with pytest.raises(
        ValueError, match=r"40 harmless validation prompts cannot tell a false-positive rate of 0\.01"
    ):
        LatentGuard.fit(tiny, prompts, false_positive_rate=0.01)


def test_a_prompt_of_punctuation_does_not_end_a_stream(tiny: ChatModel, guard: LatentGuard) -> None:
    scores = guard.score(tiny, ["Hi", "???", "Why?"])
    assert len(scores) == 3
    alone = guard.score(tiny, ["Hi"])[0]
    assert scores[0].harmfulness == pytest.approx(alone.harmfulness, abs=1e-6)
    assert scores[0].verdict == alone.verdict


def test_roc_by_category_is_that_of_the_scores(
    tiny: ChatModel, guard: LatentGuard, prompts: PromptSet
) -> None:
    bad, good = prompts["harmful", "test"].first(30), prompts["harmless", "test"].first(20)
    found = guard.roc(tiny, bad, good)
    assert set(found) == {"all", *bad.categories}
    scores = {
        kind: [s.harmfulness for s in guard.score(tiny, part.texts)]
        for kind, part in (("b", bad), ("g", good))
    }
    category = bad.categories[4]
    chosen = [v for v, c in zip(scores["b"], bad.categories, strict=True) if c == category]
    pairs = [(a > b) + 0.5 * (a == b) for a in chosen for b in scores["g"]]
    assert found[str(category)].auroc.value == pytest.approx(
        sum(pairs) / len(pairs), abs=0.02
    )  # ties by rounding
    roc = found["all"]
    for false, true, threshold in zip(
        roc.false_positives[1:], roc.true_positives[1:], roc.thresholds[1:], strict=True
    ):
        assert false == pytest.approx(sum(v >= threshold for v in scores["g"]) / 20, abs=0.051)
        assert true == pytest.approx(sum(v >= threshold for v in scores["b"]) / 30, abs=0.034)


def test_files_that_are_no_guards_are_named(tmp_path: Path, guard: LatentGuard) -> None:
    with pytest.raises(ValueError, match="no such guard file"):
        LatentGuard.load(tmp_path / "absent.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is not a Latent Guard"):
        LatentGuard.load(tmp_path / "x.safetensors")
    path = guard.save(tmp_path / "g.safetensors")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="damaged"):
        LatentGuard.load(path)


def test_the_command_fits_and_scores_files_and_standard_input(saved_tiny: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "g.safetensors", ["--model", str(saved_tiny)]
    done = CliRunner().invoke(app, ["guard", "fit", *model, "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert "harmful 100" in done.output
    lines = [
        json.dumps({"prompt": "Name a colour"}),
        "Why is the sky blue?",
        "",
        json.dumps({"prompt": "Hi\u2028there"}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    few = [
        "guard",
        "fit",
        *model,
        "--out",
        str(tmp_path / "few.safetensors"),
        "--n-prompts",
        "10",
        "--layers",
        "1-2,3",
    ]
    assert "harmful 10" in CliRunner().invoke(app, few).output
    assert LatentGuard.load(tmp_path / "few.safetensors").layers == (1, 2, 3)
    done = CliRunner().invoke(app, [*few[:-1], "some"])
    assert done.exit_code == 2
    assert "give numbers or ranges, such as 8,12,16 or 10-20" in " ".join(done.output.split())
    arguments = ["guard", "score", str(path), str(tmp_path / "in.jsonl"), *model]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert all(set(row) == {"id", "category", "harmfulness", "refusal", "verdict"} for row in rows)
    piped = CliRunner().invoke(
        app, ["guard", "score", str(path), "-", *model], input="Why is the sky blue?\n"
    )
    assert json.loads(piped.stdout)["harmfulness"] == pytest.approx(rows[1]["harmfulness"], abs=1e-6)
    (tmp_path / "in.jsonl").write_text('{"words": "Hi"}\n')
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "line 1, does not have any of the columns" in " ".join(done.output.split())


@pytest.mark.checkpoint
def test_on_the_bundled_model_the_guard_tells_unseen_harmful_from_harmless(bundled) -> None:
    model, prompts = bundled("smollm2-safe"), load_prompts("builtin", ending="period")
    fitted = LatentGuard.fit(model, prompts, n_prompts=40, max_new_tokens=6)
    flagged = {
        kind: sum(s.verdict == "harmful" for s in fitted.score(model, prompts[kind, "test"].first(30).texts))
        for kind in ("harmful", "harmless")
    }
    assert flagged["harmful"] > flagged["harmless"] + 12
