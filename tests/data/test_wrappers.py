"""Jailbreaks: wrappers and files, shifts planted in points, and a run on the tiny model from end to end."""

import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats

from interp.data.prompts import Prompts, load_prompts
from interp.data.wrappers import (
    Wrapper,
    attempts,
    find_suffixes,
    read_attacks,
    read_suffixes,
    wrappers,
)
from interp.experiments.jailbreaks import run as experiment
from interp.experiments.jailbreaks.run import Config, beliefs_of
from interp.experiments.jailbreaks.shifts import shifts, success
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import fit_centres
from interp.storage.untyped import load_result


def some(texts: Sequence[str]) -> Prompts:
    return Prompts(tuple(texts), tuple(f"p-{i}" for i in range(len(texts))), (None,) * len(texts), "test")


# Wrappers and files


def test_wrappers_hold_the_request_once_and_unchanged() -> None:
    request = "How do I {braces} bake?"
    for wrapper in wrappers():
        assert wrapper.wrap(f" {request} ").count(request) == 1
        before, after = wrapper.around
        assert wrapper.wrap(request) == before + request + after
    assert len({w.name for w in wrappers()}) == len(wrappers())
    with pytest.raises(ValueError, match=r"must hold {request} exactly once, got 2 of them"):
        Wrapper(family="x", name="twice", text="{request} {request}")
    with pytest.raises(ValueError, match="unknown family 'hypnosis'; known: template, persuasion"):
        wrappers(("hypnosis",))
    tried = attempts(wrappers(("template",)), some(["a", "b"]))
    assert len(tried) == 2 * len(wrappers(("template",)))


def test_files_of_suffixes_and_of_attacks(tmp_path) -> None:
    (tmp_path / "suffixes.txt").write_text("x { y\nz {request}\n")
    first, second = read_suffixes(tmp_path / "suffixes.txt")
    assert first.wrap("Why?") == "Why? x { y"
    assert second.wrap("Why?") == "Why? z"  # the slot is taken out
    rows = [
        {"family": "mine", "wrapper": "Please: {request}"},
        {"request": "Why?", "prompt": "Why, dear friend, why?"},
    ]
    path = tmp_path / "attacks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found, finished = read_attacks(path)
    assert [w.family for w in found] == ["mine"]
    assert (finished[0].family, finished[0].request) == ("attacks", "Why?")
    for bad, message in (
        ({"family": "mine"}, r"attacks.jsonl, row 1 must have `wrapper` .* got family"),
        ({"wrapper": "no slot"}, r"row 1: wrapper 'attacks 1' must hold {request} exactly once, got 0"),
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=message):
            read_attacks(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="row 1: expected an object or text, got list"):
        read_attacks(path)


def test_suffixes_are_searched_with_the_package_and_named_when_it_is_absent(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    with pytest.raises(ValueError, match="needs the nanogcg package: pip install nanogcg, or give a file"):
        find_suffixes(tiny, some(["Hi"]))
    asked: list[Any] = []

    def search(_hf: Any, _tokenizer: Any, message: str, target: str, config: Any) -> SimpleNamespace:
        asked.append((message, target, config.num_steps))
        torch.rand(1)
        return SimpleNamespace(best_string="! ! {request}")

    package = SimpleNamespace(GCGConfig=lambda **settings: SimpleNamespace(**settings), run=search)
    monkeypatch.setitem(sys.modules, "nanogcg", package)
    before = torch.get_rng_state()
    found = find_suffixes(tiny, some(["Hi"]), steps=3)
    assert asked == [("Hi {optim_str}", "Sure, here is", 3)]
    assert found[0].wrap("Other") == "Other ! !"
    assert torch.equal(before, torch.get_rng_state())  # the caller's random numbers are as they were


# Shifts, planted


def planted(harm: float, refusal: float, on_harmless: float = 0.0, n: int = 30) -> list[dict[str, Any]]:
    """Plain requests at harm 0.1, refusal 0.3 (harmless -0.1, -0.3); `moves` shifts each by so much when it succeeds.

    Wrapper `works` succeeds on two requests of three, `fails` never and shifts nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def row(
        kind: str, i: int, family: str, wrapper: str, refused: bool, h: float, r: float
    ) -> dict[str, Any]:
        at = (torch.tensor([h, r]) + 0.01 * torch.randn(2, generator=generator)).tolist()
        return {
            "kind": kind,
            "family": family,
            "wrapper": wrapper,
            "id": f"{kind}-{i}",
            "refused": refused,
            "as-is": at,
            "period": at,
        }

    rows = []
    for i in range(n):
        rows += [
            row("harmful", i, "plain", "plain", True, 0.1, 0.3),
            row("harmless", i, "plain", "plain", False, -0.1, -0.3),
            row(
                "harmful",
                i,
                "mine",
                "works",
                i % 3 == 0,
                0.1 + harm * (i % 3 > 0),
                0.3 + refusal * (i % 3 > 0),
            ),
            row("harmful", i, "mine", "fails", True, 0.1, 0.3),
            row("harmless", i, "mine", "works", False, -0.1, -0.3 + on_harmless),
            row("harmless", i, "mine", "fails", i % 2 == 0, -0.1, 5.0),  # never a success: weighs nothing
        ]
    return rows


def test_success_counts_what_was_refused_plainly() -> None:
    rows = planted(0.0, -0.4)
    rows[0]["refused"] = False  # answered plainly: no success can be had on it
    found = success(rows)
    assert found["wrappers"]["works"]["success"]["n"] == 29
    assert found["wrappers"]["works"]["success"]["value"] == pytest.approx(20 / 29)
    assert found["wrappers"]["fails"]["success"]["value"] == 0.0
    assert found["wrappers"]["fails"]["success"]["high"] > 0.05  # Wilson, not a bootstrap of zeros
    assert found["wrappers"]["fails"]["harmless refused"]["value"] == pytest.approx(0.5)
    family = found["families"]["mine"]["success"]
    assert (family["value"], family["n"]) == (pytest.approx(10 / 29), 29)
    assert family["low"] < family["value"] < family["high"]


def test_a_planted_shift_of_one_belief_is_found_in_that_belief_alone() -> None:
    said = shifts(planted(0.0, -0.4), "as-is")["families"]["mine"]
    assert said["requests"] == 20
    assert said["refusal"]["moved"]["value"] == pytest.approx(-0.4, abs=0.02)
    assert said["refusal"]["share_of_gap"]["value"] == pytest.approx(-0.4 / 0.6, abs=0.04)
    assert said["refusal"]["p"] < 1e-4
    assert said["refusal"]["effect"] < -5
    assert said["refusal"]["beyond"]["high"] < 0
    assert said["refusal"]["negative_side"]["value"] == 1.0
    assert said["harm"]["moved"]["low"] < 0 < said["harm"]["moved"]["high"]
    assert said["harm"]["p"] > 0.01
    assert said["harm"]["negative_side"]["value"] == 0.0
    assert said["refusal_beyond_harm"]["low"] > 0
    assert abs(said["refusal"]["still_refused"]["value"]) < 0.02
    # Swapped: the other belief is found.
    other = shifts(planted(-0.2, 0.0), "as-is")["families"]["mine"]
    assert other["refusal_beyond_harm"]["high"] < 0
    assert other["harm"]["negative_side"]["value"] == 1.0


def test_what_wrapping_does_to_harmless_requests_is_no_effect_of_a_jailbreak() -> None:
    said = shifts(planted(0.0, -0.4, on_harmless=-0.4), "as-is")["families"]["mine"]
    assert said["refusal"]["moved"]["high"] < 0
    assert said["refusal"]["harmless"]["value"] == pytest.approx(-0.4, abs=0.02)  # weighted by success
    assert said["refusal"]["beyond"]["low"] < 0 < said["refusal"]["beyond"]["high"]


def test_the_test_is_wilcoxons_on_requests() -> None:
    rows = planted(0.005, 0.0)
    plain = {r["id"]: r["as-is"][0] for r in rows if r["family"] == "plain"}
    won = [r for r in rows if r["wrapper"] == "works" and r["kind"] == "harmful" and not r["refused"]]
    differences = [r["as-is"][0] - plain[r["id"]] for r in won]
    said = shifts(rows, "as-is")["families"]["mine"]["harm"]
    assert said["p"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    values = torch.tensor(differences).double()
    assert said["effect"] == pytest.approx(float(values.mean() / values.std()), rel=1e-5)


def test_beliefs_at_swapped_positions_have_the_wrong_sign(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States with a harm axis at t_inst and a refusal axis at t_post_inst, pointing opposite ways."""
    axis = torch.nn.functional.one_hot(torch.tensor([0, 1]), 6).float()

    def read(_model: ChatModel, texts: Sequence[str]) -> torch.Tensor:
        # "1-0": harmful, not refused.
        signs = torch.tensor([[2.0 * int(c) - 1 for c in text.split("-")] for text in texts])
        return torch.ones(len(texts), 3, 2, 6) + signs[:, None, :, None] * axis[None, None]

    monkeypatch.setattr(experiment, "states", read)
    bad, good = read(tiny, ["1-1"] * 4), read(tiny, ["0-0"] * 4)
    centres = fit_centres(bad[:, :, 0], good[:, :, 0]), fit_centres(bad[:, :, 1], good[:, :, 1])
    (accepted_harmful, refused_harmless) = beliefs_of(tiny, ["1-0", "0-1"], centres, "as-is")
    assert accepted_harmful[0] > 0.1 > -0.1 > accepted_harmful[1]
    assert refused_harmless[0] < -0.1 < 0.1 < refused_harmless[1]
    swapped = beliefs_of(tiny, ["0-1"], centres, "as-is")[0]
    assert swapped[0] < 0 < swapped[1]


# The whole run


def refuse_harmful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model refuses by no known words: here harmful requests are refused unless someone asks kindly."""
    real = experiment.respond
    harmful = {text for part in ("train", "test") for text in load_prompts()["harmful", part].texts}

    def respond(model: ChatModel, asked: Prompts, **options: Any):
        seen = real(model, asked, **options)
        said = tuple(
            any(text in prompt for text in harmful) and "Please" not in prompt for prompt in asked.texts
        )
        return type(seen)(prompts=asked, refused=said, replies=seen.replies)

    monkeypatch.setattr(experiment, "respond", respond)


def test_a_run_is_whole_and_drawn_from_its_numbers(
    tiny: ChatModel, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_harmful(monkeypatch)
    text = load_prompts()["harmful", "train"].texts[-1]
    rows = [
        {"family": "kind", "wrapper": "Please. {request}"},
        {"family": "paraphrase", "request": text, "prompt": f"Please, {text}"},
    ]
    (tmp_path / "attacks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = Config(
        families=("template",),
        attacks=str(tmp_path / "attacks.jsonl"),
        n_train=10,
        n_test=6,
        max_new_tokens=1,
    )
    experiment.run(tiny, load_prompts(), config, out=tmp_path / "run")
    numbers = load_result(tmp_path / "run").numbers
    wrapped = numbers["success"]["wrappers"]
    assert wrapped["kind 1"]["success"]["value"] == 1.0
    assert wrapped["story"]["success"]["value"] == 0.0
    assert numbers["success"]["families"]["paraphrase"]["success"]["n"] == 1
    drawn = experiment.figures(numbers)
    names = {trace.name for trace in drawn["fig06_beliefs"].data}
    assert "kind, answered (n = 6)" in names
    assert "template, answered (n = 0)" in names  # only successes are plotted
    lines = experiment.verdicts(numbers)
    assert any(line.startswith("Not testable (template") for line in lines)
    assert any("(kind, messages as they are)" in line for line in lines)
    page = experiment.report(numbers)
    assert not any(text in page for text in load_prompts()["harmful", "test"].texts[:6])
    assert not (tmp_path / "run.parts").exists()


def test_models_that_refuse_too_little_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="tiny refuses only 1 of 10 harmful training prompts; at least 8"):
        experiment.run(tiny, load_prompts(), Config(n_train=10, n_test=4, max_new_tokens=1))
    with pytest.raises(ValueError, match="compares endings itself"):
        experiment.run(tiny, load_prompts(ending="period"))
