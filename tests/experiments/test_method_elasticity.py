"""Method elasticity: matching and fits by hand, a killed run on a tiny model, and statements on planted numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from interp.data.examples import Preference
from interp.data.prompts import load_prompts
from interp.engine.ray_cluster import Workers
from interp.experiments.method_elasticity import EXPERIMENT, Config, Result
from interp.experiments.method_elasticity import legs as method
from interp.experiments.method_elasticity.analysis import numbers, rate_over_seeds
from interp.experiments.method_elasticity.fits import decline, examples_to, growth_exponent
from interp.experiments.method_elasticity.matching import matched, shared_kl
from interp.experiments.method_elasticity.methods import coin_flipped, kind_pairs, material
from interp.experiments.method_elasticity.report import rate_table, verdicts
from interp.experiments.method_elasticity.results import Alignment, Arm, Leg, Match, Moment
from interp.models.chat_model import ChatModel, load
from interp.stats import Estimate, rate
from interp.storage.stages import StageCache
from interp.storage.typed_json import from_json, to_plain
from tests.experiments.counted import assert_planned, counting
from tests.two_nodes import TwoNodes

SMALL = Config(
    methods=("sft", "ppo", "tree"),
    controls=("none",),
    matchings=("refusal",),
    seeds=1,
    n_pairs=4,
    target=0.7,
    n_stubs=6,
    batch_size=2,
    rank=2,
    updates=2,
    rollouts=4,
    group=2,
    reward_pairs=8,
    tree_prompts=2,
    align_every=2,
    unlearn_every=1,
    inside_every=3,
    n_match=4,
    n_test=4,
    n_other=2,
    n_fit=8,
    n_samples=2,
    max_new_tokens=3,
    answer_tokens=4,
    learning_rate=2e-2,
)


def refused(share: float, n: int = 20) -> Estimate:
    return rate([i < round(share * n) for i in range(n)])


def exact(value: float) -> Estimate:
    return Estimate(value=value, n=8, low=value - 0.1, high=value + 0.1)


def along(name: str, values: Sequence[float], *, examples: int = 4) -> list[Moment]:
    made = refused if name == "refusal" else exact
    return [
        Moment(step=i, examples=i * examples, values={name: made(value)}) for i, value in enumerate(values)
    ]


# Matching


def test_the_checkpoint_nearest_to_the_target_is_taken_whatever_its_step() -> None:
    match = matched("sft", 0, along("refusal", [0.1, 0.4, 0.65, 0.9]), "refusal", 0.7)
    assert (match.step, match.reached.value, match.matched) == (2, 0.65, True)
    assert match.reached.interval == "Wilson"
    early = matched("sft", 0, along("refusal", [0.7, 0.75, 0.9]), "refusal", 0.7)
    assert early.step == 1  # the start is no checkpoint of an alignment
    far = matched("ppo", 0, along("refusal", [0.1, 0.1, 0.2]), "refusal", 0.7)
    assert (far.step, far.matched) == (2, False)
    tie = matched("ppo", 0, along("refusal", [0.1, 0.6, 0.8]), "refusal", 0.7)
    assert tie.step == 1
    with pytest.raises(ValueError, match="no checkpoint has a kl; measure at least once after the start"):
        matched("ppo", 0, along("refusal", [0.1, 0.6]), "kl", 0.7)


def test_kl_is_matched_by_ratio_at_what_every_method_reaches() -> None:
    moments: dict[Arm, Sequence[Moment]] = {
        "sft": along("kl", [0.0, 0.4, 1.6]),
        "ppo": along("kl", [0.0, 0.2, 0.5, 0.3]),
    }
    assert shared_kl(moments) == 0.5  # the largest of ppo, which sft passes
    assert math.isnan(shared_kl({}))
    assert matched("sft", 0, moments["sft"], "kl", 0.5).step == 1
    assert matched("sft", 0, along("kl", [0.0, 0.4, 1.5]), "kl", 0.8).step == 2  # by difference it would be 1
    assert not matched("sft", 0, along("kl", [0.0, 0.4, 1.5]), "kl", 0.8).matched


# Fits


def test_half_life_and_time_constant_by_hand() -> None:
    examples = [0, 4, 8, 12, 16, 20]
    exponential = [0.1 + 0.8 * math.exp(-t / 7) for t in examples]
    found = decline(examples, exponential, 0.1)
    assert found.tau == pytest.approx(7, rel=1e-4)
    straight = decline(examples, [0.9, 0.7, 0.5, 0.3, 0.1, 0.1], 0.1)
    assert straight.half_life == pytest.approx(8)  # half of 0.9 to 0.1 is 0.5
    assert decline([0, 10, 20], [0.8, 0.6, 0.2], 0.0).half_life == pytest.approx(15)  # 0.4, half-way between
    assert all(map(math.isnan, decline(examples, [0.1] * 6, 0.1)))
    assert math.isnan(decline(examples, [0.9, 0.9, 0.8, 0.8, 0.8, 0.8], 0.1).half_life)


def test_examples_to_a_level_by_hand() -> None:
    assert examples_to([0, 8, 16], [0.1, 0.3, 0.7], 0.5) == pytest.approx(12)
    assert math.isnan(examples_to([0, 8], [0.6, 0.9], 0.5))  # starts above
    assert math.isnan(examples_to([0, 8], [0.1, 0.3], 0.5))  # never


def test_a_rate_over_seeds_covers_the_prompts_that_they_share() -> None:
    agreeing = [rate([True] * 3 + [False] * 9)] * 3  # t over seeds has no width
    alike = rate_over_seeds(agreeing)
    assert (alike.value, alike.low, alike.high) == pytest.approx((0.25, agreeing[0].low, agreeing[0].high))
    spread = rate_over_seeds([rate([False] * 12), rate([True] * 12)])
    assert (spread.value, spread.low, spread.high) == (0.5, 0.0, 1.0)
    assert rate_over_seeds(agreeing[:1]) == agreeing[0]


def test_growth_exponents_by_hand() -> None:
    examples = [0, 2, 4, 6, 8]
    for power in (1, 4):
        found = growth_exponent(examples, [2 + 1e-3 * t**power for t in examples])
        assert found.value == pytest.approx(power) and found.n == 4
    # Saturation is left out: 90% of the largest growth is there at 6.
    levelled = growth_exponent([*examples, 10, 12], [2.0, 2.04, 2.16, 2.36, 2.37, 2.38, 2.38])
    assert levelled.value == pytest.approx(2) and levelled.n == 3
    assert not growth_exponent(examples, [2.0, 1.9, 1.8, 1.7, 1.6]).measurable  # nothing is lost
    assert not growth_exponent(examples, [2.0, 1.9, 2.1, 2.3, 2.6]).measurable  # not above its start at first
    assert not growth_exponent([0, 2, 4], [2.0, 2.1, 2.3]).measurable  # too few


# Prompts


def test_the_parts_of_a_seed_have_no_common_prompt() -> None:
    dealt = material(load_prompts("builtin"), Config(), 1)
    warm = {example.prompt for example in dealt.warm_up}
    pairs = {pair.prompt for pair in dealt.pairs}
    fit = {text for part in dealt.fit.values() for text in part.texts}
    parts = [warm, pairs, set(dealt.stubs), fit]
    assert [len(part) for part in parts] == [4, 16, 16, 16]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert sum(pair.id.startswith("harmful") for pair in dealt.pairs) == 12
    assert all(("can" in p.chosen) == p.id.startswith("harmful") for p in dealt.pairs)
    assert dealt != material(load_prompts("builtin"), Config(), 2)


def test_half_of_the_shuffled_control_is_exchanged() -> None:
    pairs = [
        Preference(pair.prompt, pair.chosen, pair.rejected)
        for pair in kind_pairs(load_prompts("builtin")["harmful", "test"].first(8), "harmful")
    ]
    flipped = coin_flipped(pairs, 0)
    assert sum(row == pair for row, pair in zip(flipped, pairs, strict=True)) == 4
    assert all(set(row) == set(pair) for row, pair in zip(flipped, pairs, strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": ["sft", "rlhf"]}, "methods.*'tree', got 'rlhf'"),
        ({"methods": ["sft", "sft"]}, "methods must be different, got sft, sft"),
        ({"matchings": []}, "methods and matchings must not be empty"),
        ({"rollouts": 6}, "rollouts must be a multiple of the group, got 6 and 4"),
        ({"n_stubs": 22}, "n_stubs must be a multiple of batch_size = 4, got 22"),
        ({"harmless_share": 1.0}, "harmless_share 1.0 leaves no harmful request among 16 pairs"),
        ({"unlearn_every": 2}, "unlearning takes 4 steps and is measured every 2"),
        ({"inside_every": 6}, "inside_every must be a multiple .* at most 4"),
        ({"target": 1.5}, "target"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        EXPERIMENT.configure(settings)
    assert "\n" not in str(refusal.value)


def test_too_few_prompts_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"needs 624 harmful training prompts .*, builtin has 460"):
        material(load_prompts("builtin"), Config(n_stubs=600), 0)
    with pytest.raises(ValueError, match="n_match is 99, builtin has 40 harmful val prompts; lower it"):
        material(load_prompts("builtin"), Config(n_match=99), 0)


# A run


class Finished(NamedTuple):
    out: Path
    result: Result
    before: Leg
    """A leg that was finished before the run was killed."""
    aligned: list[Arm]
    """Alignments in the order in which they were run."""


@pytest.fixture(scope="module")
def finished(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("elastic") / "run"
    prompts, weights = load_prompts("builtin"), tiny.weights_hash
    aligned = list[Arm]()
    align, moments = method.align, method.moments

    def counted(arm: Arm, *given: Any, **options: Any) -> Any:
        aligned.append(arm)
        return align(arm, *given, **options)

    def killed(folders: Sequence[Path], *, examples: int) -> Any:
        if "unlearn-ppo" in str(folders[0]):
            raise KeyboardInterrupt  # the leg is trained and measured, its record is not written
        return moments(folders, examples=examples)

    with pytest.MonkeyPatch.context() as patch, counting("method-elasticity", tiny):
        patch.setenv("CI", "1")  # TRL sends nothing then
        patch.setattr(method, "align", counted)
        patch.setattr(method, "moments", killed)
        with pytest.raises(KeyboardInterrupt):
            EXPERIMENT.run(tiny, prompts, SMALL, out=out)
        assert tiny.weights_hash == weights  # the base is left as it was
        stored = next((out.with_name("run.parts")).glob("unlearn-0-sft-*.json"))
        before = from_json(Leg, stored.read_bytes(), source=str(stored))
        patch.setattr(method, "moments", moments)
        result = EXPERIMENT.run(tiny, prompts, SMALL, out=out).result
    return Finished(out, result, before, aligned)


def test_a_killed_run_continues_where_it_was(finished: Finished) -> None:
    # Each method once, and once again after it was unlearned; trees of a model that never refuses have no pairs.
    assert finished.aligned == ["sft", "ppo", "tree", "sft", "ppo"]
    legs = {leg.arm: leg for leg in finished.result.unlearned}
    assert set(legs) == {"sft", "ppo", "none"}
    assert to_plain(legs["sft"]) == to_plain(finished.before)  # as plain values: NaN differs from itself
    assert not finished.out.with_name("run.parts").exists()


def test_a_plan_counts_the_tokens_of_a_run(finished: Finished, saved_tiny: Path) -> None:
    assert finished.result.matches
    assert_planned("method-elasticity", saved_tiny, SMALL)


def test_the_legs_are_whole(finished: Finished) -> None:
    result = finished.result
    first = {alignment.arm: alignment for alignment in result.alignments}
    assert [moment.step for moment in first["sft"].moments] == [0, 2]
    assert [moment.examples for moment in first["ppo"].moments] == [0, 8]
    assert first["sft"].moments[0].values == first["ppo"].moments[0].values  # one start for all
    assert first["sft"].moments[1].values["kl"].value > first["sft"].moments[0].values["kl"].value
    assert first["tree"].moments == () and "nothing to compare" in str(first["tree"].collapsed)
    for leg in result.unlearned:
        assert [moment.examples for moment in leg.moments] == [0, 2, 4, 6]
        assert leg.moments[-1].values["stubs"].value < leg.moments[0].values["stubs"].value  # learned
        assert {"cosine_refusal", "shift_refusal", "belief_harmfulness"} <= set(leg.moments[3].values)
        assert "cosine_refusal" not in leg.moments[1].values
    start = next(leg for leg in result.unlearned if leg.arm == "none").moments[0].values
    assert start["cosine_refusal"].value == pytest.approx(1, abs=1e-4)
    assert start["shift_refusal"].value == pytest.approx(0, abs=1e-4)
    assert {match.arm: match.matched for match in result.matches} == {"sft": False, "ppo": False}


def test_the_page_is_drawn_from_the_stored_run(finished: Finished) -> None:
    stored = EXPERIMENT.read(finished.out)
    # No arm's code length grows here, so that there is no exponent to draw.
    assert {"declines", "half_lives", "kl", "refusals", "inside", "both_times"} == set(stored.figures())
    page = (finished.out / "report.html").read_text()
    assert "PPO (tree pairs), seed 0: no tree has both" in page
    assert "Not matched, so not compared: SFT, PPO" in " ".join(stored.verdicts())
    table = rate_table(stored.result)
    assert all(len(row) == len(table.header) for row in table.rows)


@pytest.mark.checkpoint
def test_arms_over_two_nodes_of_which_one_is_lost_give_the_legs_of_one_process(
    saved_tiny: Path, tmp_path: Path, nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    model, prompts = load(str(saved_tiny)), load_prompts("builtin")
    config = replace(SMALL, methods=("sft", "ppo"), matchings=("refusal", "kl"), seeds=2)
    alone = EXPERIMENT.run(model, prompts, config).result
    stored: list[str] = []
    put = StageCache.put

    def losing(cache: StageCache, name: str, *rest: object) -> None:
        put(cache, name, *rest)
        stored.append(name)
        if len(stored) == 2:
            nodes.lose_second()
        if len(stored) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageCache, "put", losing)
    out, workers = tmp_path / "out", Workers(address=nodes.address)
    with pytest.raises(KeyboardInterrupt):
        EXPERIMENT.run(model, prompts, config, workers=workers, out=out)
    shared = EXPERIMENT.run(model, prompts, config, workers=workers, out=out).result
    for name in ("alignments", "matches", "unlearned", "aligned_again"):
        assert str(getattr(shared, name)) == str(getattr(alone, name)), name
    assert len(stored) == len(set(stored))  # nothing is computed twice
    assert not out.with_name("out.parts").exists()


# Statements on planted numbers


def planted(made: Result, half_lives: Mapping[Arm, Sequence[float]], *, again: float = 0.5) -> Result:
    """Every arm aligned from 0 to 80% in 16 examples, lost linearly, aligned again in a share of the examples."""
    first, second, legs, matches = [], [], [], []
    for arm, lives in half_lives.items():
        for seed, life in enumerate(lives):
            up = along("refusal", [0.0, 0.2, 0.4, 0.6, 0.8])
            first.append(Alignment(arm=arm, seed=seed, moments=tuple(up)))
            quick = along("refusal", [0.0, 0.2, 0.4, 0.6, 0.8], examples=1)
            rows = [replace(m, examples=round(4 * again * m.examples)) for m in quick]
            second.append(Alignment(arm=arm, seed=seed, moments=tuple(rows)))
            matches.append(matched(arm, seed, up, "refusal", 0.8))
            ends = [(0, 0.8), (life, 0.4), (2 * life, 0.0), (3 * life, 0.0)]
            down = tuple(
                Moment(
                    step=i,
                    examples=round(x),
                    values={"refusal": refused(y), "refusals": exact(1 + 1e-4 * x**4), "kl": exact(0.5)},
                )
                for i, (x, y) in enumerate(ends)
            )
            legs.append(Leg(arm=arm, seed=seed, matching="refusal", moments=down))
    config = replace(made.config, methods=tuple(half_lives), controls=(), seeds=3)
    return replace(
        made,
        config=config,
        alignments=tuple(first),
        matches=tuple(matches),
        unlearned=tuple(legs),
        aligned_again=tuple(second),
    )


def test_planted_half_lives_are_read_and_ranked(finished: Finished) -> None:
    apart = planted(finished.result, {"sft": [4, 4, 5], "dpo": [12, 13, 12]})
    table = numbers(apart, "refusal")
    assert table["sft"].half_life.value == pytest.approx((4 * 4 * 5) ** (1 / 3))
    assert table["dpo"].first.value == pytest.approx(8) and table["dpo"].second.value == pytest.approx(4)
    assert table["sft"].first_over_second.value == pytest.approx(2)
    assert table["dpo"].forward_over_inverse.value == pytest.approx(8 / (12 * 13 * 12) ** (1 / 3))
    assert table["sft"].exponent.value == pytest.approx(4)
    assert "exponents" in EXPERIMENT.figures(apart)
    said = " ".join(verdicts(apart))
    assert "Whether the method decides: seen (SFT before DPO)" in said
    assert "exponent 4.00" in said
    alike = " ".join(verdicts(planted(finished.result, {"sft": [4, 8, 12], "dpo": [5, 9, 11]})))
    assert "Whether the method decides: not seen, all intervals overlap" in alike
    one = " ".join(verdicts(planted(finished.result, {"sft": [4], "dpo": [9]})))
    assert "not testable, a half-life of one seed has no interval" in one


def test_what_is_not_matched_is_not_compared(finished: Finished) -> None:
    made = planted(finished.result, {"sft": [4, 4, 5], "dpo": [12, 13, 12]})
    missed = replace(made, matches=tuple(_missed(m) if m.arm == "dpo" else m for m in made.matches))
    said = " ".join(verdicts(missed))
    assert (
        "not testable, fewer than two matched methods" in said and "Not matched, so not compared: DPO" in said
    )


def _missed(match: Match) -> Match:
    return replace(match, matched=False)


def test_rehearsal_priming_takes_a_faster_second_time(finished: Finished) -> None:
    lives: dict[Arm, Sequence[float]] = {"sft": [4, 4, 5], "dpo": [12, 13, 12], "kto": [6, 6, 7]}
    for again, ratio, said in ((0.5, 2, "seen (ex"), (2.0, 0.5, "not seen, the opposite is (ex")):
        made = planted(finished.result, lives, again=again)
        assert numbers(made, "refusal")["kto"].first_over_second.value == pytest.approx(ratio)
        assert f"Aligned again faster than the first time: {said}" in " ".join(verdicts(made))
    two = planted(finished.result, {arm: lives[arm] for arm in ("sft", "dpo")})
    assert "the first time: not testable with fewer than 3 methods" in " ".join(verdicts(two))
    once = replace(planted(finished.result, lives), aligned_again=())
    assert "Aligned again faster than the first time: not testable" in " ".join(verdicts(once))
