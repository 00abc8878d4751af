"""What may move, and that hard copies are the reference's values bit for bit and nothing else."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.training.weight_restoration import n_block_parameters, restorable_weights
from tests.training.recovery_pairs import CONFIG, Pair, Scores, pair, run, weights


def test_what_moves_is_every_matrix_below_the_cut_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    finetuned, _ = pair(tokenizer, "qwen3")  # has norms inside attention, too
    wanted = restorable_weights(finetuned, 2)
    assert len(wanted) == 14 and not any("norm" in name for name in wanted)
    assert {name.split(".")[2] for name in wanted} == {"0", "1"}
    assert (
        len(restorable_weights(pair(tokenizer, "gpt2")[0], 2)) == 16
    )  # four matrices and their biases in each
    everything = sum(w.numel() for n, w in finetuned.hf.named_parameters() if ".layers." in n)
    assert n_block_parameters(finetuned) == everything


@pytest.mark.parametrize("rollback", [False, True])
def test_restored_weights_are_the_aligned_ones_bit_for_bit_and_all_others_the_fine_tuned_ones(
    both: Pair, rollback: bool
) -> None:
    finetuned, aligned = both
    score = Scores(1.0, 0.1, 1.0) if rollback else Scores(1.0)
    before, digest = weights(finetuned), finetuned.weights_hash
    recovered = run(finetuned, aligned, score=score)
    assert recovered.used_rollback == rollback and recovered.picked_step == 4
    assert finetuned.weights_hash == digest == recovered.delta.base_hash
    assert all(torch.equal(value, before[name]) for name, value in weights(finetuned).items())
    with recovered.applied(finetuned) as model:
        after = weights(model)
        assert model.weights_hash == recovered.delta.result_hash
    assert finetuned.weights_hash == digest
    reference, moved = weights(aligned), 0
    for name, value in after.items():
        change = recovered.delta.changes.get(name)
        mask = torch.zeros(value.numel(), dtype=torch.bool)
        if change is not None:
            assert ".layers.0." in name or ".layers.1." in name
            assert "norm" not in name
            mask[change.indices] = True
        assert torch.equal(value.flatten()[mask], reference[name].flatten()[mask])
        assert torch.equal(value.flatten()[~mask], before[name].flatten()[~mask])
        assert (before[name].flatten()[mask] != reference[name].flatten()[mask]).all()
        moved += int(mask.sum())
    assert moved == recovered.delta.n_changed == recovered.steps[-1].n_aligned > 100
    copy = recovered.copied(finetuned)
    assert copy.weights_hash == recovered.delta.result_hash and finetuned.weights_hash == digest
    assert copy.embedding.weight is finetuned.embedding.weight  # tensors without a change are shared


def test_half_precision_restores_bit_for_bit(tokenizer: PreTrainedTokenizerFast) -> None:
    finetuned, aligned = pair(tokenizer, dtype=torch.bfloat16)
    recovered = run(finetuned, aligned)
    assert recovered.delta.n_changed > 100
    with recovered.applied(finetuned) as model:
        after, reference = weights(model), weights(aligned)
    for name, change in recovered.delta.changes.items():
        assert change.values.dtype == torch.bfloat16
        assert torch.equal(after[name].flatten()[change.indices], reference[name].flatten()[change.indices])


def test_rate_1_without_sign_test_until_no_candidates_remain_gives_the_aligned_blocks(
    both: Pair,
) -> None:
    finetuned, aligned = both
    before, reference = weights(finetuned), weights(aligned)
    for config in (
        replace(CONFIG, rate=1.0, sign_test="off"),
        replace(CONFIG, rank_by="all"),
        replace(CONFIG, rank_by="difference", rate=0.5, steps=5, tie_rule="exact-k"),
    ):
        recovered = run(finetuned, aligned, config)
        assert recovered.delta.n_changed == recovered.n_different
        assert recovered.steps[-1].n_restored == 0 and recovered.steps[-1].n_candidates == 0
        with recovered.applied(finetuned) as model:
            for name, value in weights(model).items():
                lower = name in recovered.places
                assert torch.equal(value, reference[name] if lower else before[name])
    assert len(recovered.places) == 14
