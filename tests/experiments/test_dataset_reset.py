"""Dataset resets: the natural policy gradient by hand, its limits and its bound, the toy, and a whole run."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.data.prompt_sets import PromptSet
from interp.data.prompts import load_prompts
from interp.experiments.dataset_reset import EXPERIMENT, Config
from interp.experiments.dataset_reset.report import verdicts
from interp.experiments.dataset_reset.tabular import (
    EXACT,
    TabularSetting,
    action_values,
    answers,
    coverage_coefficient,
    expected_reward,
    kl_divergence,
    npg_update,
    random_reference,
    regularised_optimum,
    rollout_values,
    state_probabilities,
    tabular_run,
    trajectory_kl,
    written_reward,
)
from interp.experiments.dataset_reset.toy import letter_tokenizer, toy_answers, toy_score
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from tests.experiments.counted import assert_planned, counting

SETTING = TabularSetting(
    symbols=4, length=4, eta=2.0, lam=0.2, updates=8, rollouts=300, labels=400, references=50
)


def test_the_update_by_hand_and_at_its_limits() -> None:
    reference, policy, q = np.array([[0.5, 0.5]]), np.array([[0.8, 0.2]]), np.array([[1.0, 0.0]])
    # eta lam = 1: square root of both policies times exp(q), so odds sqrt(4) e.
    odds = 2 * math.e
    found = npg_update(policy, reference, q, eta=2.0, lam=0.5)
    assert found[0] == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    assert npg_update(policy, reference, q, eta=1e-9, lam=0.5) == pytest.approx(policy, abs=1e-6)
    assert npg_update(policy, reference, q, eta=2.0, lam=1e9) == pytest.approx(reference, abs=1e-6)
    without = npg_update(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]), q[:, ::-1], eta=9.0, lam=0.1)
    assert without[0].tolist() == [1.0, 0.0]  # support never grows

    def objective(p: np.ndarray) -> float:
        kls = 0.5 * kl_divergence(p, reference) + kl_divergence(p, policy) / 2
        return float(-(q * p).sum() + kls.sum())

    for shift in (-0.05, 0.05):  # it is the minimum
        other = np.array([[found[0, 0] + shift, found[0, 1] - shift]])
        assert objective(found) < objective(other)


def test_exact_values_are_sums_over_all_answers() -> None:
    rng = np.random.default_rng(0)
    policy, reward = random_reference(rng, 3, 3), rng.random(27)
    leaves = answers(3, 3)
    by_hand = 0.0
    for leaf, value in zip(leaves, reward, strict=True):
        a, b, c = leaf
        by_hand += policy[0][0, a] * policy[1][a, b] * policy[2][a * 3 + b, c] * value
    assert expected_reward(policy, reward) == pytest.approx(by_hand)
    q = action_values(policy, reward)
    assert float((policy[0] * q[0]).sum()) == pytest.approx(by_hand)
    assert q[2][5].tolist() == pytest.approx(reward[15:18].tolist())
    other = random_reference(rng, 3, 3)
    p, r = (state_probabilities(x)[-1] for x in (policy, other))
    assert trajectory_kl(policy, other) == pytest.approx(float((p * np.log(p / r)).sum()))
    best = regularised_optimum(other, reward, 0.3)
    tilted = r * np.exp(reward / 0.3)
    assert state_probabilities(best)[-1] == pytest.approx(tilted / tilted.sum())
    assert (
        coverage_coefficient(best, other) > coverage_coefficient(other, other) == pytest.approx(0, abs=1e-9)
    )


def test_rollouts_estimate_the_exact_values_of_what_they_visit() -> None:
    rng = np.random.default_rng(1)
    policy, reward = random_reference(rng, 3, 4), written_reward(3, 4)
    exact = action_values(policy, reward)
    found = rollout_values(rng, policy, reward, np.arange(81), n=40_000, beta=0.5)
    assert found.q[0] == pytest.approx(exact[0], abs=0.05)
    assert found.q[2] == pytest.approx(exact[2], abs=0.2)
    reset = rollout_values(rng, policy, reward, np.array([5]), n=2000, beta=1.0)
    assert reset.visited[0].tolist() == [0]  # every rollout is reset, to depth 1 at least
    first = 5 // 27
    assert reset.visited[1].nonzero()[0].tolist() == [first]  # a forced prefix is the reference's
    assert rollout_values(rng, policy, reward, np.array([5]), n=2000, beta=0.0).visited[0].tolist() == [2000]


def test_the_kl_bound_holds_in_every_state_and_exact_values_raise_the_reward() -> None:
    for beta in (EXACT, 0.0, 1.0):
        rows = tabular_run(SETTING, beta=beta, seed=0)
        assert rows[0].largest_state_kl == 0 and rows[0].bound == 0
        assert all(row.largest_state_kl <= row.bound + 1e-9 for row in rows)
        assert rows[-1].largest_state_kl > 0.01  # control: something moved
    exact = tabular_run(SETTING, beta=EXACT, seed=0)
    assert exact[-1].model_reward > exact[0].model_reward + 0.02
    assert tabular_run(SETTING, beta=0.5, seed=2) == tabular_run(SETTING, beta=0.5, seed=2)


def test_the_toy_has_its_own_tokenizer_and_reward() -> None:
    tokens = tokenize(letter_tokenizer(), ["abc"])
    assert len(tokens.ids[0]) == 5
    assert toy_score("") == 0 and toy_score("cab") == 1.5 and toy_score("caba") == 1 + 0.5 * (1 - 1 / 3)
    assert toy_score("hhhh") == 0
    generator = torch.Generator().manual_seed(0)
    found = toy_answers(300, generator, good=0.5)
    assert sum("cab" in text for text in found) / 300 == pytest.approx(0.5, abs=0.1)
    assert all(5 <= len(text) <= 9 for text in found)


def test_a_run_at_all_scales_is_stored_and_drawn(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then
    prompts = load_prompts("builtin")
    small = PromptSet("small", {key: part.first(4) for key, part in prompts.parts.items()})
    config = Config(
        betas=(0.0, 1.0),
        runs=1,
        symbols=3,
        length=4,
        tabular_updates=2,
        tabular_rollouts=20,
        tabular_labels=50,
        tabular_references=10,
        toy_updates=2,
        toy_rollouts=16,
        toy_examples=32,
        toy_grpo=False,
        model_updates=1,
        model_rollouts=4,
        model_betas=(1.0,),
        model_tokens=4,
        n_test=2,
    )
    run = EXPERIMENT.run(tiny, small, config, out=tmp_path / "run")
    stored = EXPERIMENT.read(tmp_path / "run").result
    assert (
        repr(stored.tabular) == repr(run.result.tabular) and stored.bound_kept
    )  # one seed has no interval: NaN
    assert [row.arm for row in stored.toy] == ["SFT", "PPO", "DR-PO, beta 1", "DPO"]
    assert stored.toy[0].kl == 0 and all(row.tokens > 0 for row in stored.toy[1:])
    assert [row.beta for row in stored.alignment] == [-1.0, 1.0]
    drawn = EXPERIMENT.figures(stored)
    assert set(drawn) == {
        "tabular",
        "tabular_frontier",
        "toy_arms",
        "toy_frontier",
        "toy_learning",
        "toy_clipping",
        "alignment",
    }
    assert any("KL bound" in sentence and "holds" in sentence for sentence in verdicts(stored))
    assert "dataset resets" in (tmp_path / "run" / "report.html").read_text()
    tables = EXPERIMENT.table(replace(stored, toy=(), toy_curves=()))
    assert len(tables.rows) == 3


def test_a_plan_counts_the_tokens_of_the_part_on_the_model(tiny: ChatModel, saved_tiny: Path) -> None:
    config = Config(
        runs=1, symbols=3, length=4, tabular_updates=1, tabular_rollouts=4, tabular_labels=10, tabular_references=4,
        toy_updates=0, model_updates=2, model_rollouts=16, model_betas=(0.0, 1.0), model_tokens=8, n_test=8,
    )  # fmt: skip
    with counting("dataset-reset", tiny):
        EXPERIMENT.run(tiny, load_prompts("builtin"), config)
    assert_planned("dataset-reset", saved_tiny, config)
