"""Single steps of recovery: which weights they restore and give back, and what that predicts."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.models import precision
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.models.reference_weights import reference_weights
from interp.models.tokens import tokenize
from interp.training.recovery import RecoveryConfig, restored_share
from interp.training.recovery_steps import RecoverySteps
from interp.training.weight_restoration import n_block_parameters
from tests.training.recovery_pairs import (
    CONFIG,
    HARMFUL,
    TASK,
    Pair,
    pair,
    plain_gradients,
    plain_states,
    run,
    weights,
)


def test_tensors_that_fine_tuning_left_alone_get_no_gradient(tokenizer: PreTrainedTokenizerFast) -> None:
    """As after an adapter on some modules."""
    finetuned, aligned = pair(tokenizer)
    theirs, moved = dict(aligned.hf.named_parameters()), "self_attn.o_proj"
    for name, weight in finetuned.hf.named_parameters():
        if moved not in name:
            weight.data.copy_(theirs[name].data)
    before = weights(finetuned)
    steps = RecoverySteps(
        finetuned,
        reference_weights(aligned, finetuned),
        tokenize(tokenizer, HARMFUL),
        tokenize(tokenizer, TASK),
        CONFIG,
        fast=True,
    )
    steps.recovery_step(1, rollback=False)
    assert set(steps.gradients) == {f"model.layers.{layer}.{moved}.weight" for layer in (0, 1)}
    steps.start_again()
    assert all(torch.equal(value, before[name]) for name, value in weights(finetuned).items())
    recovered = run(finetuned, aligned, replace(CONFIG, rate=1.0))
    assert 0 < recovered.delta.n_changed <= recovered.n_different
    assert all(moved in name for name in recovered.delta.changes)
    assert recovered.n_different == sum(
        int((before[name] != theirs[name]).sum()) for name in before if moved in name and ".2." not in name
    )


def test_a_step_restores_at_most_k_weights_whose_gradient_times_difference_is_above_0(
    tokenizer: PreTrainedTokenizerFast,
    both: Pair,
) -> None:
    finetuned, aligned = both
    k = math.ceil(0.01 * n_block_parameters(finetuned))
    for tie_rule, expected in (("released", k - 1), ("exact-k", k)):
        config = replace(CONFIG, steps=1, tie_rule=tie_rule)
        recovered = run(finetuned, aligned, config)
        step = recovered.steps[-1]
        assert step.n_restored == recovered.delta.n_changed == expected <= step.n_candidates
        with torch.no_grad():
            direction = plain_states(aligned, tokenize(tokenizer, HARMFUL), 2).mean(0)
        _, gradients = plain_gradients(finetuned, HARMFUL, direction, 2, 2)
        before, reference = weights(finetuned), weights(aligned)
        candidates: list[Tensor] = []
        lowest = math.inf
        for name, gradient in gradients.items():
            products = gradient.double() * (before[name].double() - reference[name].double())
            candidates.append(gradient.abs()[products > 0])
            if (change := recovered.delta.changes.get(name)) is not None:
                assert (products.flatten()[change.indices] > 0).all()
                lowest = min(lowest, float(gradient.abs().flatten()[change.indices].min()))
        ranked = torch.cat(candidates).sort(descending=True).values
        assert len(ranked) == step.n_candidates
        assert lowest == pytest.approx(float(ranked[expected - 1]), rel=1e-3)  # the largest ones


def test_rollback_only_touches_weights_restored_in_the_same_step(both: Pair) -> None:
    finetuned, aligned = both
    names = [name for name, _ in finetuned.hf.named_parameters()]
    seen: list[dict[str, Tensor]] = []

    def score(model: ChatModel) -> float:
        seen.append(weights(model))
        return 0.1 if len(seen) == 2 else 1.0  # the warm-up fails

    config = replace(CONFIG, steps=4, warmup=1, save_every=1)
    recovered = run(finetuned, aligned, config, score)
    assert recovered.used_rollback and [s.step for s in recovered.discarded] == [1]
    start, walk = seen[0], [seen[0], *seen[2:]]
    assert len(walk) == 5
    for number, (before, after) in enumerate(pairwise(walk), start=1):
        step = recovered.steps[number]
        for name in names:
            was, now = (state[name] != start[name] for state in (before, after))
            assert (now | ~was).all()  # what earlier steps restored stays restored
        changed = sum(int((after[name] != start[name]).sum()) for name in names)
        assert changed == step.n_aligned
        assert step.n_aligned - recovered.steps[number - 1].n_aligned == step.n_restored - step.n_returned
        assert 0 < step.n_returned <= math.ceil(0.2 * step.n_restored)
    shares = restored_share(recovered), restored_share(recovered, before_rollback=True)
    assert (shares[1].shares >= shares[0].shares).all() and (shares[1].shares > shares[0].shares).any()


@pytest.mark.parametrize("rank_by", ["gradient", "gradient-x-difference"])
def test_predicted_decrease_and_measured_change_of_the_loss_agree_for_small_rates(
    tokenizer: PreTrainedTokenizerFast, rank_by: Any
) -> None:
    finetuned, aligned = pair(tokenizer, scale=0.003)
    config = RecoveryConfig(
        rate=0.0005, steps=5, warmup=0, save_every=5, batch_size=2, accumulate="cleared", rank_by=rank_by
    )
    steps = run(finetuned, aligned, config).steps
    for step, following in pairwise(steps[1:]):
        assert step.predicted_decrease > 3e-6  # float32 losses are exact to 1e-7
        assert step.loss - following.loss == pytest.approx(step.predicted_decrease, rel=0.1, abs=2e-7)


def by_hand(finetuned: ChatModel, aligned: ChatModel, *, accumulate: bool, k: int) -> dict[str, Tensor]:
    """Masks of what two steps restore, from autograd over whole prompts and a sort of everything."""
    with torch.no_grad():
        direction = plain_states(aligned, tokenize(finetuned.tokenizer, HARMFUL), 2).mean(0)
    own, reference = weights(finetuned), weights(aligned)
    live, sums = dict(finetuned.hf.named_parameters()), dict[str, Tensor]()
    try:
        for _ in range(2):
            _, gradients = plain_gradients(finetuned, HARMFUL, direction, 2, 2)
            keep = sums if accumulate else {}
            sums = {name: keep.get(name, 0) + gradient for name, gradient in gradients.items()}
            ranks = {
                name: torch.where((live[name] - reference[name]) * g > 0, g.abs(), -1.0).detach()
                for name, g in sums.items()
            }
            limit = torch.cat([r.flatten() for r in ranks.values()]).sort(descending=True).values[k - 1]
            with torch.no_grad():
                for name, rank in ranks.items():
                    live[name][rank >= limit] = reference[name][rank >= limit]
        return {name: (live[name] != own[name]).flatten() for name in sums}
    finally:
        with torch.no_grad():
            for name, value in own.items():
                live[name].copy_(value)


def test_released_gradients_are_summed_over_steps_and_cleared_ones_are_not(
    both: Pair,
) -> None:
    finetuned, aligned = both
    k = math.ceil(0.01 * n_block_parameters(finetuned))
    masks: dict[str, dict[str, Tensor]] = {}
    for accumulate in ("released", "cleared"):
        config = replace(CONFIG, steps=2, accumulate=accumulate, tie_rule="exact-k")
        recovered = run(finetuned, aligned, config)
        masks[accumulate] = by_hand(finetuned, aligned, accumulate=accumulate == "released", k=k)
        for name, mask in masks[accumulate].items():
            change = recovered.delta.changes.get(name)
            found = torch.zeros_like(mask)
            if change is not None:
                found[change.indices] = True
            assert torch.equal(found, mask), name
    differs = sum(int((a != masks["cleared"][name]).sum()) for name, a in masks["released"].items())
    assert differs > 0


def test_ablations_restore_as_many_weights_and_others(both: Pair) -> None:
    finetuned, aligned = both
    chosen: dict[str, set[tuple[str, int]]] = {}
    config = replace(CONFIG, steps=1, tie_rule="exact-k")
    arms = {
        "gradient": config,
        "gradient-x-difference": replace(config, rank_by="gradient-x-difference"),
        "difference": replace(config, rank_by="difference"),
        "random": replace(config, rank_by="random"),
        "other seed": replace(config, rank_by="random", seed=1),
        "no sign test": replace(config, sign_test="off"),
        "t_inst": replace(config, position="t_inst"),
        "difference of means": replace(config, target="difference-of-means"),
        "whole depth": replace(config, cut=1.0),
    }
    deltas = {}
    for name, arm in arms.items():
        recovered = run(finetuned, aligned, arm)
        deltas[name] = recovered
        chosen[name] = {
            (tensor, int(index))
            for tensor, change in recovered.delta.changes.items()
            for index in change.indices
        }
    k = math.ceil(0.01 * n_block_parameters(finetuned))
    assert {len(places) for places in chosen.values()} == {k}
    assert len({frozenset(places) for places in chosen.values()}) == len(arms)
    again = run(finetuned, aligned, arms["random"])
    assert again.delta.result_hash == deltas["random"].delta.result_hash
    # The largest differences, and at random both signs of gradient x difference.
    before, reference = weights(finetuned), weights(aligned)
    differences = torch.cat([(before[n] - reference[n]).abs().flatten() for n in deltas["difference"].places])
    limit = differences.sort(descending=True).values[k - 1]
    assert all((before[n] - reference[n]).flatten()[i].abs() >= limit for n, i in chosen["difference"])
    predicted = {name: recovered.steps[1].predicted_decrease for name, recovered in deltas.items()}
    assert predicted["gradient-x-difference"] > predicted["gradient"] > 10 * abs(predicted["random"])
    assert len(deltas["gradient"].places) == 14 and len(deltas["whole depth"].places) == 21


def test_a_fast_model_takes_its_gradients_by_rounded_products(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 7.0)
    finetuned, aligned = pair(tokenizer)
    fast = with_precision(finetuned, "fast")
    before, prompts = weights(finetuned), (tokenize(tokenizer, HARMFUL), tokenize(tokenizer, TASK))
    taken: list[dict[str, Tensor]] = []
    for model in (finetuned, fast):
        steps = RecoverySteps(model, reference_weights(aligned, model), *prompts, CONFIG, fast=True)
        steps.recovery_step(1, rollback=False)
        taken.append({name: value.clone() for name, value in steps.gradients.items()})
        steps.start_again()
    exact, rounded = taken
    assert exact.keys() == rounded.keys()
    for name, gradient in exact.items():
        gap = float((rounded[name] - gradient).norm() / gradient.norm())
        assert 1e-5 < gap < 0.1, name
    assert all(torch.equal(value, before[name]) for name, value in weights(finetuned).items())
    config = replace(CONFIG, steps=2, warmup=0, save_every=2)
    places = [
        {
            (name, int(i))
            for name, change in run(model, aligned, config).delta.changes.items()
            for i in change.indices
        }
        for model in (finetuned, fast)
    ]
    assert len(places[0] & places[1]) > 0.8 * len(places[0]) > 0
