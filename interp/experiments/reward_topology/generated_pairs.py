"""Answers of a model as prefix trees and as chains, a reward model from each, and what it is worth.

Three arms: trees, whose leaves are compared in any pairs; chains of as many generated tokens, compared in any pairs;
and chains without a bound on tokens, in which no answer is compared twice. A reward is a Bradley-Terry head on the
frozen model's states, so that arms differ in their pairs alone. Preferences come from `topical_variety`, a score that
can be computed; held-out pairs are chains on other prompts, and near pairs are tree leaves with a common first segment.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from interp.data.preference_trees import PreferenceTree, tree_pairs
from interp.data.preferences import PreferencePair
from interp.data.prompt_sets import PromptSet
from interp.engine.log_probs import final_states
from interp.experiments.reward_topology import ARMS, Arm, BestOfRow, Config, Generated, GeneratedRow
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.stats import Measured, over_seeds
from interp.storage.stages import Stages
from interp.training.reward_models import fit_bradley_terry, reply_ids, with_replies
from interp.training.tree_generation import grow_trees, sample_chains

_PENALTY = 1e-2
States = Mapping[tuple[str, str], Tensor]
"""State of the last token of an answer, by prompt and text."""


def topical_variety(prompt: str, text: str) -> float:
    """Different words over the square root of all, plus a half for each word of the prompt that comes back, up to 3."""
    words = [word.strip(".,;:!?\"'()").lower() for word in text.split()]
    words = [word for word in words if word]
    if not words:
        return 0.0
    asked = {word.strip(".,;:!?\"'()").lower() for word in prompt.split() if len(word) > 4}
    return len(set(words)) / math.sqrt(len(words)) + 0.5 * min(3, len(asked & set(words)))


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """One arm, number of labels and seed."""

    arm: Arm
    labels: int
    used: int
    accuracy: float
    near_accuracy: Measured
    margins: tuple[float, ...]
    """Scaled reward differences of the held-out pairs."""
    best_of: tuple[float, ...]
    """Mean oracle score of the pick, by N."""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Everything of one seed."""

    rows: tuple[SeedRow, ...]
    tokens: dict[Arm, int]
    answers: dict[Arm, float]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Answers to the held-out prompts, one for all seeds."""

    chains: tuple[PreferenceTree, ...]
    trees: tuple[PreferenceTree, ...]


def generated_pairs(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Generated:
    """All arms at all numbers of labels and seeds; a finished seed is kept."""
    tested = prompts["harmless", "test"].first(config.n_test)
    n_tokens = config.tree_depth * config.segment_tokens
    held = stages.keep(
        "held-out",
        lambda: HeldOut(
            chains=tuple(
                sample_chains(
                    model,
                    tested,
                    n=max(config.best_of),
                    max_new_tokens=n_tokens,
                    temperature=float(config.temperature),
                    seed=config.seed + 900,
                )
            ),
            trees=tuple(_trees(model, tested.texts, config, config.seed + 901)),
        ),
        HeldOut,
    )
    states = states_of(model, [*held.chains, *held.trees])
    pairs = tree_pairs(held.chains, topical_variety, labels=200, seed=0)
    if not pairs:
        raise ValueError(
            f"no two answers of {model.name} to a held-out prompt differ in their score, so that no reward is tested; "
            "raise n_test, segment_tokens or temperature"
        )
    near = [pair for tree in held.trees for pair in _near_pairs(tree)]
    seeds = [
        stages.keep(
            f"generated-{seed}",
            lambda seed=seed: _one_seed(model, prompts, config, seed, held, states, pairs, near),
            Seed,
        )
        for seed in stages.progress(range(config.seed, config.seed + config.runs), "seeds of generated pairs")
    ]
    oracle = [
        float(np.mean([max(topical_variety(t.prompt, text) for text in t.texts[:n]) for t in held.chains]))
        for n in config.best_of
    ]
    return _collected(seeds, config, oracle)


def _trees(model: ChatModel, texts: Sequence[str], config: Config, seed: int) -> list[PreferenceTree]:
    return grow_trees(
        model,
        list(texts),
        depth=config.tree_depth,
        branching=config.branching,
        segment_tokens=config.segment_tokens,
        temperatures=(float(config.temperature),),
        seed=seed,
    )


def _near_pairs(tree: PreferenceTree) -> list[PreferencePair]:
    """Pairs of leaves with a common first segment."""
    groups: dict[int, list[int]] = {}
    for leaf in tree.leaves:
        groups.setdefault(tree.path(leaf)[0].id, []).append(leaf)
    found = []
    for leaves in groups.values():
        ids = [list(tree.answers)[tree.leaves.index(leaf)] for leaf in leaves]
        texts = [tree.texts[tree.leaves.index(leaf)] for leaf in leaves]
        nodes = tuple(
            replace(tree.nodes[0], id=i, parent=None, ids=row, text=text)
            for i, (row, text) in enumerate(zip(ids, texts, strict=True))
        )
        found += tree_pairs([PreferenceTree(prompt=tree.prompt, nodes=nodes)], topical_variety, labels=4)
    return found


def states_of(model: ChatModel, trees: Sequence[PreferenceTree]) -> States:
    """The state that a reward reads, of every answer."""
    keys = sorted({(tree.prompt, text) for tree in trees for text in tree.texts if text})
    tokens = tokenize(model.tokenizer, [prompt for prompt, _ in keys])
    found = final_states(model, with_replies(tokens, reply_ids(model, [text for _, text in keys])))
    return dict(zip(keys, found, strict=True))


def _differences(pairs: Sequence[PreferencePair], states: States) -> Tensor:
    return torch.stack([states[p.prompt, p.chosen] - states[p.prompt, p.rejected] for p in pairs])


def arms_of(
    trees: Sequence[PreferenceTree], chains: Sequence[PreferenceTree]
) -> dict[Arm, list[PreferenceTree]]:
    """The answers of each arm; chains of equal tokens are as many of each prompt as the trees' tokens allow."""
    budget = sum(tree.generated for tree in trees)
    count = len(chains[0].nodes)
    while count > 1 and sum(replace(c, nodes=c.nodes[:count]).generated for c in chains) > budget:
        count -= 1
    equal = [replace(chain, nodes=chain.nodes[:count]) for chain in chains]
    return dict(zip(ARMS, (list(trees), equal, list(chains)), strict=True))


def _one_seed(
    model: ChatModel,
    prompts: PromptSet,
    config: Config,
    seed: int,
    held: HeldOut,
    held_states: States,
    pairs: Sequence[PreferencePair],
    near: Sequence[PreferencePair],
) -> Seed:
    asked = prompts["harmless", "train"].first(config.n_prompts)
    trees = _trees(model, asked.texts, config, seed)
    # Without reuse a comparison takes two answers.
    n = max(config.branching**config.tree_depth, -(-2 * max(config.labels) // config.n_prompts))
    chains = sample_chains(
        model,
        asked,
        n=n,
        max_new_tokens=config.tree_depth * config.segment_tokens,
        temperature=float(config.temperature),
        seed=seed + 500,
    )
    arms = arms_of(trees, chains)
    states = states_of(model, [*trees, *chains])
    rows = []
    for arm, answers in arms.items():
        for labels in config.labels:
            chosen = tree_pairs(
                answers, topical_variety, labels=labels, seed=seed, reuse=arm != "chains, equal labels"
            )
            if not chosen:
                continue
            differences = _differences(chosen, states)
            head = fit_bradley_terry(
                differences, penalty=_PENALTY, scale=differences.std(0, correction=0) + 1e-3
            )
            margins = _differences(pairs, held_states) @ head
            close = _differences(near, held_states) @ head if near else torch.zeros(0)
            picks = [_best_of(held.chains, held_states, head, size) for size in config.best_of]
            rows.append(
                SeedRow(
                    arm=arm,
                    labels=labels,
                    used=len(chosen),
                    accuracy=float((margins > 0).float().mean()),
                    near_accuracy=float((close > 0).float().mean()) if len(close) else math.nan,
                    margins=tuple((margins / margins.square().mean().sqrt().clamp(min=1e-9)).tolist()),
                    best_of=tuple(picks),
                )
            )
    return Seed(
        rows=tuple(rows),
        tokens={arm: sum(tree.generated for tree in answers) for arm, answers in arms.items()},
        answers={arm: float(np.mean([len(t.leaves) for t in answers])) for arm, answers in arms.items()},
    )


def _best_of(chains: Sequence[PreferenceTree], states: States, head: Tensor, n: int) -> float:
    """Mean oracle score of the answer with the largest reward among the first n of each prompt."""
    scores = []
    for tree in chains:
        texts = [text for text in tree.texts[:n] if text]
        rewards = [float(states[tree.prompt, text] @ head) for text in texts]
        scores.append(topical_variety(tree.prompt, texts[int(np.argmax(rewards))]) if texts else 0.0)
    return float(np.mean(scores))


def _collected(seeds: Sequence[Seed], config: Config, oracle: Sequence[float]) -> Generated:
    rows, best = [], []
    for arm in ARMS:
        for labels in config.labels:
            found = [r for s in seeds for r in s.rows if r.arm == arm and r.labels == labels]
            if not found:
                continue
            margins = np.array([r.margins for r in found])
            rows.append(
                GeneratedRow(
                    arm=arm,
                    labels=labels,
                    used=over_seeds([r.used for r in found]),
                    accuracy=over_seeds([r.accuracy for r in found]),
                    variance=float(margins.var(0, ddof=1).mean()) if len(found) > 1 else math.nan,
                    near_accuracy=over_seeds([r.near_accuracy for r in found]),
                )
            )
        last = [r for s in seeds for r in s.rows if r.arm == arm and r.labels == max(config.labels)]
        best += [
            BestOfRow(arm=arm, n=n, score=over_seeds([r.best_of[i] for r in last]), oracle=oracle[i])
            for i, n in enumerate(config.best_of)
            if last
        ]
    return Generated(
        rows=tuple(rows),
        best_of=tuple(best),
        tokens={arm: over_seeds([s.tokens[arm] for s in seeds]) for arm in ARMS},
        answers={arm: over_seeds([s.answers[arm] for s in seeds]) for arm in ARMS},
    )
