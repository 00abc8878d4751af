"""DR-PO where it can be computed: a prefix tree of all answers, closed-form natural policy gradient, exact values.

Answers are all sequences of `length` symbols, so a state is a prefix, a policy a table of the next symbol's
probabilities by depth, and values, KL and coverage are sums. Rewards to go are estimated from rollouts that start at
the prompt or from cuts of reference answers, and averaged over each visited state and symbol; a symbol never taken in
a visited state counts as the state's mean (ours: a regression on indicators says nothing of it). At a share of 1 no
rollout starts at the prompt, so that the first symbol is never updated: roll-in lengths begin at 1.

Source: Chang et al. 2024, arXiv:2404.08495, sections 3 and 4 (NPG oracle, KL bound, coverage).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Policy = tuple[Float[np.ndarray, "_state symbol"], ...]
"""Probabilities of the next symbol in every state, by depth; state i of a depth is the prefix whose digits are i."""
MOTIF = (0, 1, 2)


def npg_update(
    policy: Float[np.ndarray, "state symbol"],
    reference: Float[np.ndarray, "state symbol"],
    q: Float[np.ndarray, "state symbol"],
    *,
    eta: float | int,
    lam: float | int,
) -> Float[np.ndarray, "state symbol"]:
    """argmin over p of -<q, p> + lam KL(p | reference) + KL(p | policy) / eta, in closed form.

    reference^(eta lam / (eta lam + 1)) policy^(1 / (eta lam + 1)) exp(eta q / (eta lam + 1)), normalised.
    """
    share = 1 / (eta * lam + 1)
    with np.errstate(divide="ignore"):
        logits = (1 - share) * np.log(reference) + share * np.log(policy) + share * eta * q
    logits = np.where(reference > 0, logits, -np.inf)  # support never grows beyond the reference's
    logits -= logits.max(-1, keepdims=True)
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True)


def kl_divergence(
    p: Float[np.ndarray, "state symbol"], q: Float[np.ndarray, "state symbol"]
) -> Float[np.ndarray, " state"]:
    """KL(p | q) of every state, nats."""
    safe = np.where(p > 0, p, 1.0)
    return (p * (np.log(safe) - np.log(np.where(p > 0, q, 1.0)))).sum(-1)


def state_probabilities(policy: Policy) -> list[Float[np.ndarray, " _state"]]:
    """Probability of every prefix, by depth; the last entry is that of whole answers."""
    reached = [np.ones(1)]
    for table in policy:
        reached.append((reached[-1][:, None] * table).ravel())
    return reached


def action_values(
    policy: Policy, reward: Float[np.ndarray, " leaf"]
) -> list[Float[np.ndarray, "_state symbol"]]:
    """Exact expected reward of every symbol in every state, by depth."""
    values, found = reward, []
    for table in reversed(policy):
        q = values.reshape(table.shape)
        found.append(q)
        values = (table * q).sum(-1)
    return found[::-1]


def expected_reward(policy: Policy, reward: Float[np.ndarray, " leaf"]) -> float:
    """Of the policy's answers."""
    return float(state_probabilities(policy)[-1] @ reward)


def trajectory_kl(policy: Policy, reference: Policy) -> float:
    """KL between the distributions of whole answers, nats."""
    reached = state_probabilities(policy)
    return float(
        sum(d @ kl_divergence(p, q) for d, p, q in zip(reached[:-1], policy, reference, strict=True))
    )


def regularised_optimum(reference: Policy, reward: Float[np.ndarray, " leaf"], lam: float | int) -> Policy:
    """The policy with the largest expected reward minus lam KL: reference exp(soft value / lam), normalised."""
    values, found = reward / lam, list[np.ndarray]()
    for table in reversed(reference):
        scaled = table * np.exp(values.reshape(table.shape))
        total = scaled.sum(-1)
        found.append(scaled / total[:, None])
        values = np.log(total)
    return tuple(found[::-1])


def random_reference(rng: np.random.Generator, symbols: int, length: int, *, spread: float = 1.0) -> Policy:
    """Softmax of normal logits in every state."""
    tables = []
    for depth in range(length):
        p = np.exp(spread * rng.standard_normal((symbols**depth, symbols)))
        tables.append(p / p.sum(-1, keepdims=True))
    return tuple(tables)


def answers(symbols: int, length: int) -> Int[np.ndarray, "leaf pos"]:
    """All answers, in the order of leaves."""
    return np.stack(np.unravel_index(np.arange(symbols**length), (symbols,) * length), -1)


def written_reward(symbols: int, length: int) -> Float[np.ndarray, " leaf"]:
    """Between 0 and 1: 0.6 for the motif 0 1 2 anywhere, 0.4 for using symbols evenly."""
    leaves = answers(symbols, length)
    starts = range(length - len(MOTIF) + 1)
    has = np.any([np.all(leaves[:, i : i + len(MOTIF)] == MOTIF, axis=1) for i in starts], axis=0)
    most = np.max([(leaves == s).sum(1) for s in range(symbols)], axis=0)
    return 0.6 * has + 0.4 * (1 - (most - 1) / (length - 1))


def reward_features(symbols: int, length: int) -> Float[np.ndarray, "leaf feature"]:
    """The written reward's own two terms, and counts of symbols that say nothing of it."""
    leaves = answers(symbols, length)
    starts = range(length - len(MOTIF) + 1)
    has = np.any([np.all(leaves[:, i : i + len(MOTIF)] == MOTIF, axis=1) for i in starts], axis=0)
    most = np.max([(leaves == s).sum(1) for s in range(symbols)], axis=0)
    counts = np.stack([(leaves == s).mean(1) for s in range(symbols)], -1)
    return np.concatenate([has[:, None], (1 - (most - 1) / (length - 1))[:, None], counts], 1).astype(float)


class Estimated(NamedTuple):
    """Rewards to go from rollouts."""

    q: list[Float[np.ndarray, "_state symbol"]]
    visited: list[Int[np.ndarray, " _state"]]
    """How often each state was passed."""


def rollout_values(
    rng: np.random.Generator,
    policy: Policy,
    reward: Float[np.ndarray, " leaf"],
    references: Int[np.ndarray, " reference"],
    *,
    n: int,
    beta: float | int,
) -> Estimated:
    """Mean reward to go of every visited state and symbol over n rollouts of the policy.

    Args:
        references: leaves that resets cut, at a depth uniform on 1..length-1.
        beta: share of rollouts that start from a cut.
    """
    length, symbols = len(policy), policy[0].shape[1]
    cut = np.where(rng.random(n) < beta, rng.integers(1, length, n), 0)
    leaf = references[rng.integers(0, len(references), n)]
    state = leaf // symbols ** (length - cut)
    path = np.zeros((n, length), dtype=int)
    taken = np.zeros((n, length), dtype=int)
    for depth, table in enumerate(policy):
        free = cut <= depth
        forced = leaf // symbols ** (length - depth - 1) % symbols
        drawn = (table[np.where(free, state, 0)].cumsum(1) < rng.random(n)[:, None]).sum(1)
        drawn = np.minimum(drawn, symbols - 1)
        before = leaf // symbols ** (length - depth)
        path[:, depth] = np.where(free, state, before)
        taken[:, depth] = np.where(free, drawn, forced)
        state = np.where(free, state * symbols + drawn, state)
    total = reward[state]
    q, visited = [], []
    for depth, table in enumerate(policy):
        free = cut <= depth
        sums, counts = np.zeros_like(table), np.zeros_like(table)
        place = (path[free, depth], taken[free, depth])
        np.add.at(sums, place, total[free])
        np.add.at(counts, place, 1)
        passed = counts.sum(1)
        mean = sums.sum(1) / np.maximum(passed, 1)
        q.append(np.where(counts > 0, sums / np.maximum(counts, 1), mean[:, None]))
        visited.append(passed.astype(int))
    return Estimated(q, visited)


@dataclass(frozen=True, kw_only=True)
class TabularRow:
    """One step of one run."""

    beta: float | int
    """Share of rollouts from resets; -1 for exact values, which need none."""
    seed: int
    step: int
    """Number of updates."""
    reward: float
    """Expected true reward."""
    model_reward: float
    """Expected reward of the fitted reward model."""
    kl: float
    """KL to the reference over whole answers, nats."""
    largest_state_kl: float
    """Largest KL to the reference of any state."""
    bound: float
    """(t - 1) r_max / lambda."""
    covered: float
    """Share of the optimum's visits to inner states that the rollouts passed, so far."""


@dataclass(frozen=True, kw_only=True)
class TabularSetting:
    """The problem and its constants."""

    symbols: int
    length: int
    eta: float | int
    lam: float | int
    updates: int
    rollouts: int
    labels: int
    references: int


EXACT = -1.0
"""The `beta` of runs with exact values."""


def tabular_run(setting: TabularSetting, *, beta: float | int, seed: int) -> list[TabularRow]:
    """Fit a reward on noisy comparisons of the reference's answers, then update by NPG from rollouts."""
    import torch

    from interp.training.reward_models import fit_bradley_terry

    rng = np.random.default_rng(seed)
    reference = random_reference(rng, setting.symbols, setting.length)
    truth = written_reward(setting.symbols, setting.length)
    features = reward_features(setting.symbols, setting.length)
    drawn = state_probabilities(reference)[-1]
    pairs = rng.choice(len(truth), (setting.labels, 2), p=drawn)
    sharpness = 6.0
    wins = rng.random(setting.labels) < 1 / (
        1 + np.exp(-sharpness * (truth[pairs[:, 0]] - truth[pairs[:, 1]]))
    )
    signs = np.where(wins, 1.0, -1.0)[:, None]
    differences = torch.from_numpy(signs * (features[pairs[:, 0]] - features[pairs[:, 1]])).float()
    weight = fit_bradley_terry(differences, penalty=1e-3).double().numpy() / sharpness
    fitted = features @ weight
    fitted = np.clip(fitted - drawn @ fitted + drawn @ truth, 0, 1)
    # Human references are better than the policy's own answers: the best of four.
    candidates = rng.choice(len(truth), (setting.references, 4), p=drawn)
    references = candidates[np.arange(len(candidates)), truth[candidates].argmax(1)]
    optimum = state_probabilities(regularised_optimum(reference, truth, setting.lam))
    policy, rows = reference, list[TabularRow]()
    passed = [np.zeros(len(table), dtype=bool) for table in reference]
    for step in range(setting.updates + 1):
        kls = [kl_divergence(p, q) for p, q in zip(policy, reference, strict=True)]
        inner = range(1, setting.length)
        rows.append(
            TabularRow(
                beta=beta,
                seed=seed,
                step=step,
                reward=expected_reward(policy, truth),
                model_reward=expected_reward(policy, fitted),
                kl=trajectory_kl(policy, reference),
                largest_state_kl=float(max(k.max() for k in kls)),
                bound=step / setting.lam,
                covered=float(np.mean([optimum[d][passed[d]].sum() for d in inner])),
            )
        )
        if beta == EXACT:
            q = action_values(policy, fitted)
        else:
            found = rollout_values(rng, policy, fitted, references, n=setting.rollouts, beta=beta)
            q = found.q
            passed = [old | (new > 0) for old, new in zip(passed, found.visited, strict=True)]
        policy = tuple(
            npg_update(p, r, value, eta=setting.eta, lam=setting.lam)
            for p, r, value in zip(policy, reference, q, strict=True)
        )
    return rows


def coverage_coefficient(optimum: Policy, reference: Policy) -> float:
    """log of the largest ratio of an answer's probability under the optimum and the reference (C_TR)."""
    ratio = state_probabilities(optimum)[-1] / state_probabilities(reference)[-1]
    return math.log(float(ratio.max()))


def tabular_runs(
    setting: TabularSetting, betas: Sequence[float | int], seeds: Sequence[int]
) -> tuple[TabularRow, ...]:
    """Every beta and the exact control, for every seed."""
    return tuple(
        row
        for seed in seeds
        for beta in (EXACT, *betas)
        for row in tabular_run(setting, beta=beta, seed=seed)
    )
