"""The harmfulness experiment: planted states, the inverted question, steering arms, and a run of the bundled model."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import interp
from interp.data.prompts import Prompts, load_prompts
from interp.engine.budgets import PassBudget
from interp.evaluation.records import GROUPS, Group
from interp.experiments.harmfulness import EXPERIMENT as HARMFULNESS
from interp.experiments.harmfulness import ON_INSTRUCTION, RANDOM, Config, Result, groups
from interp.experiments.harmfulness import run as method
from interp.experiments.harmfulness.analysis import (
    Anchors,
    beliefs,
    clusters,
    geometry,
    positions_margin,
    yardstick,
)
from interp.experiments.harmfulness.figures import figures
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
    REFUSAL_ARMS,
    Directions,
    inversion_sweep,
    position_sweep,
    refusal_sweep,
)
from interp.experiments.harmfulness.verdicts import verdicts
from interp.models.chat_model import ChatModel
from interp.storage.stages import open_stages
from tests.conftest import prompts_of

LAYERS, WIDTH = 5, 64
N: dict[Group, int] = {name: 12 + number for number, name in enumerate(GROUPS)}
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


def planted_groups(axes: tuple[Tensor, Tensor] = (HARM, REFUSE)) -> dict[Group, Tensor]:
    return {
        name: planted("harmful" in name, "refused" in name, N[name], seed=number, axes=axes)
        for number, name in enumerate(GROUPS)
    }


def planted_anchors(axes: tuple[Tensor, Tensor] = (HARM, REFUSE)) -> Anchors:
    return Anchors(
        harmful=planted(True, True, 30, seed=10, axes=axes),
        harmless=planted(False, False, 30, seed=11, axes=axes),
    )


IDS: dict[Group, list[str]] = {name: [f"{name}-{i}" for i in range(n)] for name, n in N.items()}


def test_planted_axes_give_each_belief_its_own_label() -> None:
    found = beliefs(planted_groups(), IDS, planted_anchors(), seed=0)
    for name, by in found.means.items():
        assert (by.harm.value > 0) == ("harmful" in name), name
        assert (by.refusal.value > 0) == ("refused" in name), name
    own = {"harmful from harmless": "harm", "refused from accepted": "refusal"}
    for row in found.separation:
        if row.belief == own[row.tells]:
            assert row.auroc.low > 0.9
        else:  # control: the other belief knows nothing of it
            assert 0.1 < row.auroc.value < 0.9
    assert [p.id for p in found.points["refused harmful"]] == IDS["refused harmful"]


def test_swapped_positions_give_the_wrong_signs() -> None:
    swapped = {name: states.flip(2) for name, states in planted_groups().items()}
    anchors = planted_anchors()
    crossed = Anchors(harmful=anchors.harmful.flip(2), harmless=anchors.harmless.flip(2))
    means = beliefs(swapped, IDS, crossed, seed=0).means
    assert means["accepted harmful"].harm.value < 0
    assert means["refused harmless"].harm.value > 0


def test_clusters_leave_the_range_of_shuffled_labels() -> None:
    found = clusters(planted_groups(), planted_anchors(), 0, draws=40, seed=0)
    bad, good = (found.curves[name].mean for name in ("accepted harmful", "refused harmless"))
    assert min(bad) > 0.5 and max(good) < -0.5
    chance = found.shuffled["accepted harmful"]
    for layer in range(LAYERS):
        assert chance.high[layer] < bad[layer]
        assert chance.low[layer] < 0 < chance.high[layer]


def test_an_empty_group_has_no_curve() -> None:
    hidden: dict[Group, Tensor] = {**planted_groups(), "refused harmless": torch.empty(0, LAYERS, 2, WIDTH)}
    found = clusters(hidden, planted_anchors(), 1, draws=5, seed=0)
    empty = found.curves["refused harmless"]
    assert (empty.n, len(empty.mean), len(empty.sd)) == (0, LAYERS, LAYERS)
    assert all(math.isnan(value) for value in (*empty.mean, *empty.sd))
    assert "refused harmless" not in found.shuffled
    rows = beliefs(hidden, {**IDS, "refused harmless": []}, planted_anchors(), seed=0).separation
    assert all(row.auroc.measurable == (row.n_negative > 0 and row.n_positive > 0) for row in rows)
    assert {row.auroc.measurable for row in rows} == {True, False}


@pytest.mark.parametrize(("axes", "expected"), [((HARM, REFUSE), 0.0), ((HARM, HARM), 1.0)])
def test_geometry_recovers_the_planted_angle(axes: tuple[Tensor, Tensor], expected: float) -> None:
    found = geometry(planted_anchors(axes), resamples=50, seed=0)
    for estimate in found.cosine:
        assert abs(estimate.value - expected) < 0.1  # 30 prompts of noise 1 against a signal of 3
        assert estimate.low <= estimate.value <= estimate.high < estimate.low + 0.2
    assert min(found.reliability.harm) > 0.95
    assert found.direction_norm.harm[0] == pytest.approx(6, abs=0.3)
    assert found.random_sd == WIDTH**-0.5


def test_yardstick_and_positions_follow_the_plants() -> None:
    curves = yardstick(planted_groups(), planted_anchors()).refusal
    assert min(curves["refused harmless"].mean) > 0.5
    assert max(curves["accepted harmful"].mean) < -0.5
    table = positions_margin(planted_groups(), planted_anchors(), ["0", "1"])
    first, last = (row.groups["accepted harmful"].middle.value for row in table)
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
    for by in (found[0].strict, found[0].published):  # a random model says neither word
        assert by.no.n + round(by.invalid.value * by.invalid.n) == 2


# Steering


def test_arms_have_their_sign_norm_and_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = Directions(
        harmfulness=torch.randn(3, 8, generator=generator), refusal=2 * torch.randn(3, 8, generator=generator)
    )
    minus = directions.arm("-harmfulness", 1, coefficient=2.0, inversion=True, seed=0)
    assert minus.coefficient == -2.0 and minus.positions == BEFORE_QUESTION and minus.new_tokens == "none"
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


def stored(name: str) -> Result:
    return HARMFULNESS.read(Path(interp.__file__).parents[1] / "figures" / name).result


def test_sweeps_have_a_rate_for_every_arm_and_layer_and_are_drawn(tiny: ChatModel) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = Directions(
        harmfulness=torch.randn(3, 32, generator=generator), refusal=torch.randn(3, 32, generator=generator)
    )
    config = Config(steer_every=2, invert_every=2, max_new_tokens=3, verdict_tokens=3)
    texts = ("Bake bread", "Sing a song", "Hi there")
    old = stored("harmfulness")
    vectors = torch.randn(len(old.positions.margins), 3, 32, generator=generator)
    with open_stages(None, key={}) as stages:
        swept = refusal_sweep(tiny, directions, prompts_of(texts), config, stages)
        both = {"harmless": texts, "harmful": texts}
        inverted = inversion_sweep(tiny, directions, both, 0, config, stages)
        positions = position_sweep(tiny, vectors, texts, 0, config, stages)
    assert swept.layers == inverted.layers == (0, 2)
    assert set(swept.rates) == set(REFUSAL_ARMS)
    assert all([rate.n for rate in rates] == [3, 3] for rates in swept.rates.values())
    assert positions.layers == (0,) and [len(row) for row in positions.verdicts] == [1] * len(vectors)
    for kind in ("harmless", "harmful"):
        assert {arm: len(row) for arm, row in inverted.of(kind).arms.items()} == dict.fromkeys(
            INVERSION_ARMS[kind], 2
        )
    result = replace(
        old,
        by_ending={"as-is": replace(old.by_ending["as-is"], steering=swept, inversion=inverted)},
        positions=replace(old.positions, inversion=positions),
    )
    drawn = figures(result)

    def lines(name: str) -> list[str]:
        return [trace["name"].removesuffix(" (control)") for trace in drawn[name].data if trace["name"]]

    assert set(lines("fig05b_inversion_harmful")) == set(INVERSION_ARMS["harmful"])
    assert lines("fig04_refusal_steering") == list(REFUSAL_ARMS)
    assert len(lines("fig16_position_inversion")) == len(vectors) + 1  # and what the grey ones are called
    assert len(lines("fig10_instruction_tokens_only")) >= 4
    assert len(verdicts(result)) == 13
    assert len(verdicts(old)) == 10  # the inversion is one line where it is not testable


def test_batches_of_arms_give_each_arm_its_own_rate(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms that decode together, and arms that decode alone, come back under their own names."""
    from interp.experiments.harmfulness import steering

    generator = torch.Generator().manual_seed(0)
    directions = Directions(
        harmfulness=50 * torch.randn(3, 32, generator=generator),
        refusal=torch.randn(3, 32, generator=generator),
    )
    config = Config(invert_every=1, invert_coefficient=4.0, verdict_tokens=2)
    seen: list[str] = []
    real = steering.verdicts_each

    def counted(*args, **options):
        seen.append("batch")
        return real(*args, **options)

    monkeypatch.setattr(steering, "verdicts_each", counted)
    both = {"harmless": ("Bake bread",), "harmful": ("Hi there",)}
    with open_stages(None, key={}) as stages:
        together = inversion_sweep(tiny, directions, both, 0, config, stages)
        assert len(seen) == 2
        one_row = replace(PassBudget.for_(tiny), decode_rows=1)
        monkeypatch.setattr(PassBudget, "for_", lambda _model: one_row)
        assert inversion_sweep(tiny, directions, both, 0, config, stages) == together
        assert len(seen) > 20


# The run


def test_a_truncated_prompt_without_a_word_is_in_no_group() -> None:
    def part(
        kind: str, full: tuple[bool, ...], cut: tuple[bool, ...], silent: tuple[bool, ...]
    ) -> groups.Part:
        n = len(full)
        prompts = Prompts(
            texts=("x",) * n, ids=tuple(f"{kind}-{i}" for i in range(n)), categories=(None,) * n, source=kind
        )
        return groups.Part(prompts, full, cut, silent, torch.arange(n)[:, None, None, None].float())

    measured = {
        ("harmful", "test"): part("h", (True, True, False), (True, True, False), (True, False, False)),
        ("harmless", "test"): part("g", (False,), (True,), (True,)),
        ("borderline", "test"): part("b", (True,), (False,), (False,)),
    }
    full, ids = groups.behaviour_groups(measured, "full")
    assert ids["refused harmful"] == ["h-0", "h-1"] and ids["refused harmless"] == ["b-0"]
    assert list(full) == list(GROUPS)
    cut, ids = groups.behaviour_groups(measured, "truncated")
    assert (
        ids["refused harmful"] == ["h-1"]
        and ids["refused harmless"] == []
        and ids["accepted harmless"] == ["b-0"]
    )
    assert cut["refused harmful"].flatten().tolist() == [1.0] and len(full["refused harmful"]) == 2


def test_a_model_that_refuses_nothing_is_named(tiny: ChatModel) -> None:
    config = Config(n_train=8, n_test=4, n_invert=2, max_new_tokens=2, verdict_tokens=2)
    with pytest.raises(
        ValueError, match=r"tiny refuses only \d of 8 harmful training prompts; at least 8 are"
    ):
        HARMFULNESS.run(tiny, load_prompts("builtin"), config)


def test_changed_endings_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="compares endings itself"):
        HARMFULNESS.run(tiny, load_prompts("builtin", ending="period"))


@pytest.mark.checkpoint
def test_run_on_the_bundled_model(
    bundled: Callable[[str], ChatModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "ENDINGS", ("as-is",))  # the stored runs have all
    config = Config(
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
    made = HARMFULNESS.run(bundled("smollm2-safe"), load_prompts("builtin"), config, out=tmp_path / "run")
    run = HARMFULNESS.read(tmp_path / "run")
    assert set(run.figures()) == set(made.figures())
    assert run.result.endings == ("as-is",)
    for one in run.result.by_ending.values():
        assert one.steering is not None
        top = max(rate.value for rate in one.steering.rates["refusal"])
        random = max(rate.value for name in RANDOM for rate in one.steering.rates[name])
        assert top > random  # layer 16 of 30 is one of the two that are steered
        harm = {name: by.harm.value for name, by in one.beliefs.means.items()}
        assert harm["refused harmful"] > harm["accepted harmless"]
    assert len(run.verdicts()) == 10
