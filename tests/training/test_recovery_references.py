"""The references, losses and gradients of recovery are those of the plain computation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.engine.activations import collect_means
from interp.models.reference_weights import reference_weights
from interp.models.tokens import tokenize
from interp.training.recovery import RecoveryConfig
from interp.training.recovery_references import (
    harmful_reference,
    reference_loss,
    sum_gradients,
    task_reference,
)
from interp.training.weight_restoration import restorable_weights
from tests.training.recovery_pairs import (
    HARMFUL,
    TASK,
    Pair,
    pair,
    plain_gradients,
    plain_states,
    run,
)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "qwen3_moe"])
def test_references_losses_and_gradients_are_those_of_autograd_over_whole_padded_prompts(
    tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    finetuned, aligned = pair(tokenizer, kind)
    config, cut = RecoveryConfig(batch_size=2), 2
    assert config.cut_layer(3) == cut
    harmful, task = (tokenize(tokenizer, texts) for texts in (HARMFUL, TASK))
    source = reference_weights(aligned, finetuned)
    to_harmful = harmful_reference(source, finetuned, harmful, task, config)
    to_task = task_reference(finetuned, harmful, task, config)
    with torch.no_grad():
        d_harm = plain_states(aligned, harmful, cut).mean(0)
        d_task = plain_states(finetuned, task, cut).mean(0)
    torch.testing.assert_close(to_harmful.direction, d_harm, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(to_task.direction, d_task, rtol=1e-4, atol=1e-5)
    assert (d_harm - d_task).norm() > 0.01 * d_harm.norm()  # control: they differ
    wanted = restorable_weights(finetuned, cut)
    loss, expected = plain_gradients(finetuned, HARMFUL, d_harm, cut, 2)
    for fast in (True, False):
        sums: dict[str, Tensor] = {}
        summed = sum_gradients(finetuned, wanted, harmful, to_harmful, config, into=sums, fast=fast)
        assert summed.n_batches == 3
        assert summed.loss == pytest.approx(loss, abs=1e-5)
        assert sums.keys() == expected.keys()
        everything = torch.cat([expected[name].flatten() for name in expected])
        ours = torch.cat([sums[name].flatten() for name in expected])
        assert (ours - everything).norm() < 1e-4 * everything.norm()
        assert everything.norm() > 1e-4


@pytest.mark.parametrize("target", ["mean", "difference-of-means"])
def test_the_cosine_of_a_reference_with_itself_is_1_and_the_aligned_loss_on_one_full_batch_is_minus_1(
    tokenizer: PreTrainedTokenizerFast, both: Pair, target: Any
) -> None:
    finetuned, aligned = both
    config = RecoveryConfig(batch_size=100, target=target)
    harmful, task = (tokenize(tokenizer, texts) for texts in (HARMFUL, TASK))
    to_harmful = harmful_reference(reference_weights(aligned, finetuned), finetuned, harmful, task, config)
    own = to_harmful.direction + to_harmful.centre
    assert float(to_harmful.cosine(own)) == pytest.approx(1, abs=1e-6)
    sums: dict[str, Tensor] = {}
    summed = sum_gradients(aligned, restorable_weights(aligned, 2), harmful, to_harmful, config, into=sums)
    assert summed.loss == pytest.approx(-1, abs=1e-5)
    assert max(gradient.abs().max() for gradient in sums.values()) < 1e-3  # a minimum
    broken = sum_gradients(
        finetuned, restorable_weights(finetuned, 2), harmful, to_harmful, config, into=dict[str, Tensor]()
    )
    assert broken.loss > -0.9999  # control: the fine-tuned model is elsewhere
    to_task = task_reference(finetuned, harmful, task, config)
    kept = sum_gradients(
        finetuned, restorable_weights(finetuned, 2), task, to_task, config, into=dict[str, Tensor]()
    )
    assert kept.loss == pytest.approx(-1, abs=1e-5)
    centred = target == "difference-of-means"
    assert bool(to_harmful.centre.any()) is bool(to_task.centre.any()) is centred


def test_mean_states_are_those_that_collect_reads(tokenizer: PreTrainedTokenizerFast, both: Pair) -> None:
    finetuned, aligned = both
    harmful, task = (tokenize(tokenizer, texts) for texts in (HARMFUL, TASK))
    config = RecoveryConfig(position="t_inst")
    found = harmful_reference(reference_weights(aligned, finetuned), finetuned, harmful, task, config)
    means = collect_means(aligned, harmful, sites="resid_post", layers=1, positions="t_inst", fast=False)
    torch.testing.assert_close(found.direction, means.means["resid_post"][0, 0].float())
    loss = reference_loss(found.direction[None], found)
    assert float(loss) == pytest.approx(-1, abs=1e-6)


def test_gradients_that_are_not_finite_are_refused_and_the_weights_are_as_before(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    finetuned, aligned = pair(tokenizer)
    digest = finetuned.weights_hash
    weight: Any = dict(finetuned.hf.named_parameters())["model.layers.1.mlp.up_proj.weight"]
    handle = weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(ValueError, match=r"gradient of model.layers.1.mlp.up_proj.weight holds NaN"):
        run(finetuned, aligned)
    handle.remove()
    assert finetuned.weights_hash == digest
