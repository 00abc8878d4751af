"""The harmfulness experiment: planted states, the inverted question, steering arms, and a run of the bundled model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.data.prompts import Prompts, load_prompts
from interp.evaluation.records import GROUPS
from interp.experiments.harmfulness import figures as report_figures
from interp.experiments.harmfulness import run as harmfulness
from interp.experiments.harmfulness.analysis import (
    Anchors,
    beliefs,
    clusters,
    geometry,
    positions_margin,
    yardstick,
)
from interp.experiments.harmfulness.reply_inversion import (
    INVERSIONS,
    ask,
    published_verdict,
    strict_verdict,
    verdicts_each,
)
from interp.experiments.harmfulness.steering import (
    BEFORE_QUESTION,
    INVERSION_ARMS,
    ON_INSTRUCTION,
    RANDOM,
    REFUSAL_ARMS,
    Directions,
    inversion_sweep,
    position_sweep,
    refusal_sweep,
)
from interp.models.chat_model import ChatModel
from interp.storage.untyped import load_result

LAYERS, WIDTH = 5, 64
N = {name: 12 + number for number, name in enumerate(GROUPS)}
HARM = torch.eye(WIDTH)[0]
REFUSE = torch.eye(WIDTH)[1]


def planted(
    harmful: bool, refused: bool, n: int, *, seed: int, axes: tuple[Tensor, Tensor] = (HARM, REFUSE)
) -> Tensor:
    """States with harm at t_inst and refusal at t_post_inst, of length 3 in noise of length about 1."""
    noise = torch.randn(n, LAYERS, 2, WIDTH, generator=torch.Generator().manual_seed(seed)) / WIDTH**0.5
    noise[:, :, 0] += 3 * (1 if harmful else -1) * axes[0]
    noise[:, :, 1] += 3 * (1 if refused else -1) * axes[1]
    return noise


def planted_groups(axes: tuple[Tensor, Tensor] = (HARM, REFUSE)) -> dict[str, Tensor]:
    return {
        name: planted("harmful" in name, "refused" in name, N[name], seed=number, axes=axes)
        for number, name in enumerate(GROUPS)
    }


def planted_anchors(axes: tuple[Tensor, Tensor] = (HARM, REFUSE)) -> Anchors:
    return Anchors(
        harmful=planted(True, True, 30, seed=10, axes=axes),
        harmless=planted(False, False, 30, seed=11, axes=axes),
    )


IDS = {name: [f"{name}-{i}" for i in range(n)] for name, n in N.items()}


def test_planted_axes_give_each_belief_its_own_label() -> None:
    found = beliefs(planted_groups(), IDS, planted_anchors(), seed=0)
    for name, by in found["means"].items():
        assert (by["harmfulness"]["value"] > 0) == ("harmful" in name), name
        assert (by["refusal"]["value"] > 0) == ("refused" in name), name
    own = {"harmful from harmless": "harmfulness", "refused from accepted": "refusal"}
    for row in found["separation"]:
        if row["belief"] == own[row["tells"]]:
            assert row["auroc"]["low"] > 0.9
        else:  # control: the other belief knows nothing of it
            assert 0.1 < row["auroc"]["value"] < 0.9
    assert [p["id"] for p in found["points"]["refused harmful"]] == IDS["refused harmful"]


def test_swapped_positions_give_the_wrong_signs() -> None:
    swapped = {name: states.flip(2) for name, states in planted_groups().items()}
    anchors = planted_anchors()
    crossed = Anchors(harmful=anchors.harmful.flip(2), harmless=anchors.harmless.flip(2))
    means = beliefs(swapped, IDS, crossed, seed=0)["means"]
    assert means["accepted harmful"]["harmfulness"]["value"] < 0
    assert means["refused harmless"]["harmfulness"]["value"] > 0


def test_clusters_leave_the_range_of_shuffled_labels() -> None:
    found = clusters(planted_groups(), planted_anchors(), 0, draws=40, seed=0)
    bad, good = (found["curves"][name]["mean"] for name in ("accepted harmful", "refused harmless"))
    assert min(bad) > 0.5 and max(good) < -0.5
    ranges = found["shuffled"]["accepted harmful"]
    for layer in range(LAYERS):
        assert ranges["high"][layer] < bad[layer]
        assert ranges["low"][layer] < 0 < ranges["high"][layer]


def test_an_empty_group_has_no_curve() -> None:
    groups = {**planted_groups(), "refused harmless": torch.empty(0, LAYERS, 2, WIDTH)}
    found = clusters(groups, planted_anchors(), 1, draws=5, seed=0)
    assert found["curves"]["refused harmless"] == {"n": 0, "mean": [None] * LAYERS, "sd": [None] * LAYERS}
    assert "refused harmless" not in found["shuffled"]
    rows = beliefs(groups, {**IDS, "refused harmless": []}, planted_anchors(), seed=0)["separation"]
    assert all((row["auroc"] is None) == (row["n_negative"] == 0 or row["n_positive"] == 0) for row in rows)


@pytest.mark.parametrize(("axes", "expected"), [((HARM, REFUSE), 0.0), ((HARM, HARM), 1.0)])
def test_geometry_recovers_the_planted_angle(axes: tuple[Tensor, Tensor], expected: float) -> None:
    found = geometry(planted_anchors(axes), resamples=50, seed=0)
    for row in found["cosine"]:
        assert abs(row["value"] - expected) < 0.1  # 30 prompts of noise 1 against a signal of 3
        assert row["low"] <= row["value"] <= row["high"] < row["low"] + 0.2
    assert min(found["reliability"]["harmfulness"]) > 0.95
    assert found["norms"]["harmfulness"][0] == pytest.approx(6, abs=0.3)
    assert found["random_sd"] == WIDTH**-0.5


def test_yardstick_and_positions_follow_the_plants() -> None:
    curves = yardstick(planted_groups(), planted_anchors())
    assert min(curves["refusal"]["refused harmless"]["mean"]) > 0.5
    assert max(curves["refusal"]["accepted harmful"]["mean"]) < -0.5
    table = positions_margin(planted_groups(), planted_anchors(), ["0", "1"])
    first, last = (row["accepted harmful"]["middle"]["value"] for row in table)
    assert first > 0.5 and last < -0.5


# Reply inversion


@pytest.mark.parametrize(
    ("reply", "published", "strict"),
    [
        ("Certainly.", "certainly", "certainly"),
        ("No", "no", "no"),
        ("I cannot answer.", "no", None),  # the released substring takes a refusal for a harmless verdict
        ("You should know this", "no", None),
        ("No, certainly not", "certainly", "no"),
        ("NO.", None, "no"),
        ("Yes", None, None),
    ],
)
def test_verdicts(reply: str, published: str | None, strict: str | None) -> None:
    assert published_verdict(reply) == published
    assert strict_verdict(reply) == strict


def test_steering_before_the_question_leaves_the_question_alone(tiny: ChatModel) -> None:
    tokens = ask(tiny, ["Bake bread"], INVERSIONS[0])
    text = tiny.tokenizer.decode(tokens.ids[0])
    before = tiny.tokenizer.decode(
        [i for i, m in zip(tokens.ids[0], tokens.mask(0, BEFORE_QUESTION).tolist(), strict=True) if m]
    )
    assert before.endswith(INVERSIONS[0].lead + "Bake bread")
    assert text.startswith(before) and INVERSIONS[0].question in text[len(before) :]


def test_verdicts_count_invalid_replies_apart(tiny: ChatModel) -> None:
    found = verdicts_each(tiny, ask(tiny, ["Hi", "Bake bread"], INVERSIONS[1]), [[]], max_new_tokens=4)
    for by in found[0].values():  # a random model says neither word
        assert by["no"]["n"] + round(by["invalid"]["value"] * by["invalid"]["n"]) == 2


# Steering


def test_arms_have_their_sign_norm_and_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = Directions(
        harmfulness=torch.randn(3, 8, generator=generator), refusal=2 * torch.randn(3, 8, generator=generator)
    )
    minus = directions.arm("-harmfulness", 1, coefficient=2.0, inversion=True, seed=0)
    assert minus.coefficient == -2.0 and minus.positions == BEFORE_QUESTION and minus.steps == "prompt"
    assert torch.equal(minus.direction, directions.harmfulness[1]) and tuple(minus.layers) == (1,)
    plus = directions.arm("+refusal", 2, coefficient=2.0, inversion=True, seed=0)
    assert plus.coefficient == 2.0 and plus.positions == "all"
    assert torch.equal(plus.direction, directions.refusal[2])
    only = directions.arm(ON_INSTRUCTION, 0, coefficient=1.0, inversion=False, seed=0)
    assert only.positions == "instruction" and torch.equal(only.direction, directions.refusal[0])
    for name, like in zip(RANDOM, (directions.harmfulness, directions.refusal), strict=True):
        control = directions.arm(name, 1, coefficient=1.0, inversion=False, seed=0)
        assert control.direction.norm().item() == pytest.approx(like[1].norm().item(), rel=1e-5)
        assert not torch.allclose(control.direction, like[1])


def test_sweeps_have_a_rate_for_every_arm_and_layer_and_are_drawn(tiny: ChatModel) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = Directions(
        harmfulness=torch.randn(3, 32, generator=generator), refusal=torch.randn(3, 32, generator=generator)
    )
    settings: dict[str, Any] = {
        "coefficient": 2.0,
        "max_new_tokens": 3,
        "keep": lambda _, compute: compute(),
        "watch": lambda items, _: items,
    }
    texts = ("Bake bread", "Sing a song", "Hi there")
    prompts = Prompts(texts=texts, ids=texts, categories=(None,) * 3, source="test")
    swept = refusal_sweep(tiny, directions, prompts, layers=[0, 2], seed=0, **settings)
    assert all(len(rates) == 2 and rates[0]["n"] == 3 for rates in swept["rates"].values())
    inverted = inversion_sweep(
        tiny,
        directions,
        {"harmless": texts, "harmful": texts},
        question=0,
        layers=[0, 2],
        seed=0,
        **settings,
    )
    positions = position_sweep(
        tiny,
        torch.randn(4, 3, 32, generator=generator),
        texts,
        question=0,
        layers=[1],
        **settings,
    )
    assert [len(row) for row in positions] == [1] * 4
    numbers = {
        "provenance": {"model": "tiny"},
        "endings": ["as-is"],
        "steering": {"as-is": swept},
        "inversion": {"as-is": inverted},
        "positions": {"names": list("abcd"), "layers": [1], "inversion": positions},
    }
    shown = report_figures._inversion(numbers, "harmful")
    assert {trace.name for trace in shown.data} == set(INVERSION_ARMS["harmful"])
    assert len(report_figures._refusal_steering(numbers, numbers["steering"]).data) == len(REFUSAL_ARMS)
    assert len(report_figures._position_inversion(numbers).data) == 4
    assert len(report_figures._instruction_only(numbers).data) > 4


# The run


def test_a_truncated_prompt_without_a_word_is_in_no_group() -> None:
    def part(kind: str, full: list[bool], cut: list[bool], silent: list[bool]) -> harmfulness._Part:
        n = len(full)
        prompts = Prompts(
            texts=("x",) * n, ids=tuple(f"{kind}-{i}" for i in range(n)), categories=(None,) * n, source=kind
        )
        return harmfulness._Part(prompts, full, cut, silent, torch.arange(n)[:, None, None, None].float())

    measured = {
        ("harmful", "test"): part("h", [True, True, False], [True, True, False], [True, False, False]),
        ("harmless", "test"): part("g", [False], [True], [True]),
        ("borderline", "test"): part("b", [True], [False], [False]),
    }
    full, ids = harmfulness._groups(measured, "full")
    assert ids["refused harmful"] == ["h-0", "h-1"] and ids["refused harmless"] == ["b-0"]
    cut, ids = harmfulness._groups(measured, "cut")
    assert (
        ids["refused harmful"] == ["h-1"]
        and ids["refused harmless"] == []
        and ids["accepted harmless"] == ["b-0"]
    )
    assert cut["refused harmful"].flatten().tolist() == [1.0] and len(full["refused harmful"]) == 2


def test_a_model_that_refuses_nothing_is_named(tiny: ChatModel) -> None:
    config = harmfulness.Config(n_train=8, n_test=4, n_invert=2, max_new_tokens=2, verdict_tokens=2)
    with pytest.raises(ValueError, match=r"tiny refuses only \d of 8 harmful train prompts, at least 8 are"):
        harmfulness.run(tiny, load_prompts("builtin"), config)


def test_changed_endings_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="compares endings itself"):
        harmfulness.run(tiny, load_prompts("builtin", ending="period"))


@pytest.mark.checkpoint
def test_run_on_the_bundled_model(
    bundled: Callable[[str], ChatModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harmfulness, "ENDINGS", ("as-is",))  # the tiny model's run has all
    config = harmfulness.Config(
        n_train=8,
        n_test=5,
        n_steer=5,
        steer_every=16,
        n_invert=1,
        invert_every=15,
        max_new_tokens=4,
        verdict_tokens=2,
        draws=20,
    )
    out = tmp_path / "run"
    result = harmfulness.run(bundled("smollm2-safe"), load_prompts("builtin"), config, out=out)
    stored = load_result(out).numbers
    assert set(harmfulness.figures(stored)) == set(result.figures())
    for ending in harmfulness.ENDINGS:
        sweep = stored["steering"][ending]
        top = max(r["value"] for r in sweep["rates"]["refusal"])
        random = max(r["value"] for name in RANDOM for r in sweep["rates"][name])
        assert top > random  # layer 16 of 30 is one of the two that are steered
        rows = stored["beliefs"][ending]["means"]
        harm = {name: by["harmfulness"]["value"] for name, by in rows.items()}
        assert harm["refused harmful"] > harm["accepted harmless"]
    assert len(harmfulness.verdicts(stored)) == 10
