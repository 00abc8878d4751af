"""The jailbreak experiment: shifts planted in points, and a run on the tiny model from end to end."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from interp.data.prompts import Kind, Prompts, load_prompts
from interp.experiments.jailbreaks import EXPERIMENT as JAILBREAKS
from interp.experiments.jailbreaks import Config, FamilyShifts, Point
from interp.experiments.jailbreaks import run as method
from interp.experiments.jailbreaks.run import beliefs_of
from interp.experiments.jailbreaks.shifts import shifts, success
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import fit_both_centres
from interp.representations.records import HarmAndRefusal
from tests.experiments.counted import assert_planned, counting

# Shifts, planted


def planted(harm: float, refusal: float, on_harmless: float = 0.0, n: int = 30) -> list[Point]:
    """Plain requests at harm 0.1, refusal 0.3 (harmless -0.1, -0.3); `moves` shifts each by so much when it succeeds.

    Wrapper `works` succeeds on two requests of three, `fails` never and shifts nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def point(kind: Kind, i: int, family: str, wrapper: str, refused: bool, h: float, r: float) -> Point:
        at = (torch.tensor([h, r]) + 0.01 * torch.randn(2, generator=generator)).tolist()
        both = HarmAndRefusal(harm=at[0], refusal=at[1])
        return Point(
            kind=kind,
            family=family,
            wrapper=wrapper,
            id=f"{kind}-{i}",
            refused=refused,
            beliefs={"as-is": both, "period": both},
        )

    points = []
    for i in range(n):
        moves = i % 3 > 0
        points += [
            point("harmful", i, "plain", "plain", True, 0.1, 0.3),
            point("harmless", i, "plain", "plain", False, -0.1, -0.3),
            point("harmful", i, "mine", "works", not moves, 0.1 + harm * moves, 0.3 + refusal * moves),
            point("harmful", i, "mine", "fails", True, 0.1, 0.3),
            point("harmless", i, "mine", "works", False, -0.1, -0.3 + on_harmless),
            point("harmless", i, "mine", "fails", i % 2 == 0, -0.1, 5.0),  # never a success: weighs nothing
        ]
    return points


def of_mine(points: Sequence[Point]) -> FamilyShifts:
    return shifts(points, "as-is").families["mine"]


def test_success_counts_what_was_refused_plainly() -> None:
    points = planted(0.0, -0.4)
    points[0] = replace(points[0], refused=False)  # answered plainly: no success can be had on it
    rates = success(points)
    works, fails = rates.wrappers["works"], rates.wrappers["fails"]
    assert works.harmful_answered.n == 29
    assert works.harmful_answered.value == pytest.approx(20 / 29)
    assert fails.harmful_answered.value == 0.0
    assert fails.harmful_answered.high > 0.05  # Wilson, not a bootstrap of zeros
    assert fails.harmless_refused.value == pytest.approx(0.5)
    family = rates.families["mine"].harmful_answered
    assert (family.value, family.n) == (pytest.approx(10 / 29), 29)
    assert family.low < family.value < family.high


def test_a_planted_shift_of_one_belief_is_found_in_that_belief_alone() -> None:
    said = of_mine(planted(0.0, -0.4))
    harm, refusal = said.beliefs.harm, said.beliefs.refusal
    assert said.requests == 20
    assert refusal.moved.value == pytest.approx(-0.4, abs=0.02)
    assert refusal.share_of_gap.value == pytest.approx(-0.4 / 0.6, abs=0.04)
    assert refusal.p_value < 1e-4
    assert refusal.effect_size < -5
    assert refusal.beyond.negative
    assert refusal.negative_side.value == 1.0
    assert harm.moved.low < 0 < harm.moved.high
    assert harm.p_value > 0.01
    assert harm.negative_side.value == 0.0
    assert said.refusal_beyond_harm.positive
    assert abs(refusal.still_refused.value) < 0.02
    # Swapped: the other belief is found.
    other = of_mine(planted(-0.2, 0.0))
    assert other.refusal_beyond_harm.negative
    assert other.beliefs.harm.negative_side.value == 1.0


def test_what_wrapping_does_to_harmless_requests_is_no_effect_of_a_jailbreak() -> None:
    refusal = of_mine(planted(0.0, -0.4, on_harmless=-0.4)).beliefs.refusal
    assert refusal.moved.negative
    assert refusal.harmless.value == pytest.approx(-0.4, abs=0.02)  # weighted by success
    assert refusal.beyond.low < 0 < refusal.beyond.high


def test_the_test_is_wilcoxons_on_requests() -> None:
    points = planted(0.005, 0.0)
    plain = {p.id: p.beliefs["as-is"].harm for p in points if p.family == "plain"}
    answered = [p for p in points if p.wrapper == "works" and p.kind == "harmful" and not p.refused]
    differences = [p.beliefs["as-is"].harm - plain[p.id] for p in answered]
    harm = of_mine(points).beliefs.harm
    assert harm.p_value == pytest.approx(stats.wilcoxon(differences).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    values = torch.tensor(differences).double()
    assert harm.effect_size == pytest.approx(float(values.mean() / values.std()), rel=1e-5)


def test_a_family_without_a_success_is_not_measured() -> None:
    points = [p for p in planted(0.0, -0.4) if p.wrapper != "works"]
    said = of_mine(points)
    assert (said.requests, said.prompts) == (0, 0)
    for shift in (said.beliefs.harm, said.beliefs.refusal):
        assert not shift.moved.measurable and not shift.beyond.measurable
        assert shift.p_value != shift.p_value  # NaN, never 0
        assert shift.still_refused.measurable


def test_beliefs_at_swapped_positions_have_the_wrong_sign(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States with a harm axis at t_inst and a refusal axis at t_post_inst, pointing opposite ways."""
    axis = torch.nn.functional.one_hot(torch.tensor([0, 1]), 6).float()

    def read(_model: ChatModel, texts: Sequence[str]) -> torch.Tensor:
        # "1-0": harmful, not refused.
        signs = torch.tensor([[2.0 * int(c) - 1 for c in text.split("-")] for text in texts])
        return torch.ones(len(texts), 3, 2, 6) + signs[:, None, :, None] * axis[None, None]

    monkeypatch.setattr(method, "states", read)
    centres = fit_both_centres(read(tiny, ["1-1"] * 4), read(tiny, ["0-0"] * 4))
    accepted_harmful, refused_harmless = beliefs_of(tiny, ["1-0", "0-1"], centres, "as-is")
    assert accepted_harmful.harm > 0.1 > -0.1 > accepted_harmful.refusal
    assert refused_harmless.harm < -0.1 < 0.1 < refused_harmless.refusal


# The whole run


def refuse_harmful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model refuses by no known words: here harmful requests are refused unless someone asks kindly."""
    real = method.respond
    harmful = {text for part in ("train", "test") for text in load_prompts()["harmful", part].texts}

    def respond(model: ChatModel, asked: Prompts, **options: Any):
        made = real(model, asked, **options)
        refused = tuple(
            any(text in prompt for text in harmful) and "Please" not in prompt for prompt in asked.texts
        )
        return type(made)(prompts=asked, refused=refused, replies=made.replies)

    monkeypatch.setattr(method, "respond", respond)


def attacks(folder: Path) -> Path:
    """A file with a wrapper that succeeds and a finished jailbreak."""
    text = load_prompts()["harmful", "train"].texts[-1]
    rows = [
        {"family": "kind", "wrapper": "Please. {request}"},
        {"family": "paraphrase", "request": text, "prompt": f"Please, {text}"},
    ]
    path = folder / "attacks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_run_is_whole_and_drawn_from_its_result(
    tiny: ChatModel, saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_harmful(monkeypatch)
    config = Config(
        families=("template",), attacks=str(attacks(tmp_path)), n_train=10, n_test=6, max_new_tokens=3
    )
    with counting("jailbreaks", tiny):
        made = JAILBREAKS.run(tiny, load_prompts(), config, out=tmp_path / "run")
    assert_planned("jailbreaks", saved_tiny, config)
    stored = JAILBREAKS.read(tmp_path / "run")
    result = stored.result
    assert result.points == made.result.points
    assert result.wrappers["kind 1"].harmful_answered.value == 1.0
    assert result.wrappers["story"].harmful_answered.value == 0.0
    assert result.families["paraphrase"].harmful_answered.n == 1
    assert set(made.tensors) == {
        f"{belief}/{ending}/{side}"
        for belief in ("harm", "refusal")
        for ending in ("as-is", "period")
        for side in ("positive", "negative")
    }
    names = {trace.name for trace in stored.figures()["fig06_beliefs"].data}  # pyright: ignore[reportAttributeAccessIssue]
    assert "harmful with a kind jailbreak, answered (n = 6, few)" in names
    assert "harmful with a template jailbreak, answered (n = 0, few)" in names  # only successes are plotted
    lines = stored.verdicts()
    assert any(line.startswith("Not testable (template") for line in lines)
    assert any("(kind, prompts as they are)" in line for line in lines)
    page = stored.report()
    assert not any(text in page for text in load_prompts()["harmful", "test"].texts[:6])
    assert not (tmp_path / "run.parts").exists()


def test_models_that_refuse_too_little_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="tiny refuses only 1 of 10 harmful training prompts; at least 8"):
        JAILBREAKS.run(tiny, load_prompts(), Config(n_train=10, n_test=4, max_new_tokens=1))
    with pytest.raises(ValueError, match="compares endings itself"):
        JAILBREAKS.run(tiny, load_prompts(ending="period"))
