"""Differences of logits: rounding is told from another computation, also where a model amplifies rounding."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from interp.models.adapter_merging import merge_adapter
from interp.models.logit_checks import (
    explained_by_rounding,
    probe_logits,
    probe_tokens,
    relative_difference,
    rounding_noise,
    tolerance_of,
)
from tests.models.test_adapter_merging import base, train


def amplifying() -> PreTrainedModel:
    """The first block writes a huge component that the unembedding does not read, and with it its rounding."""
    hf: Any = base()
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight.add_(1e4)
        head = hf.get_output_embeddings().weight
        head.sub_(head.mean(dim=1, keepdim=True))
    return hf


def adapter(folder: Path) -> str:
    train(base(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], r=4), folder)
    return str(folder)


def gap_of(first: PreTrainedModel, second: PreTrainedModel) -> float:
    ids = probe_tokens(first)
    return relative_difference(probe_logits(first, ids), probe_logits(second, ids))


def test_an_exact_merge_into_a_model_that_amplifies_rounding_is_accepted(tmp_path: Path) -> None:
    path, hf = adapter(tmp_path), amplifying()
    assert rounding_noise(hf, probe_tokens(hf)) > tolerance_of(hf)
    merge_adapter(hf, path, shown="tiny")
    gap = gap_of(hf, amplifying())
    assert not explained_by_rounding(
        gap, hf, probe_tokens(hf)
    )  # control: the adapter does more than rounding


def test_what_is_not_rounding_is_told_on_both_kinds_of_model() -> None:
    for make in (base, amplifying):
        hf, changed = make(), make()
        ids = probe_tokens(hf)
        with torch.no_grad():
            for name, weight in changed.named_parameters():
                if name.endswith("0.mlp.down_proj.weight"):
                    weight.mul_(1.5)  # a part that a merge would have missed
        assert not explained_by_rounding(gap_of(changed, hf), hf, ids)
        assert explained_by_rounding(gap_of(make(), hf), hf, ids)
        assert not explained_by_rounding(float("nan"), hf, ids)


def test_a_model_that_amplifies_nothing_keeps_the_tolerance_of_its_dtype() -> None:
    hf = base()
    assert 0 < 4 * rounding_noise(hf, probe_tokens(hf)) < tolerance_of(hf)
    plain = probe_logits(hf, probe_tokens(hf))
    assert torch.equal(plain, probe_logits(hf, probe_tokens(hf)))  # no hook is left behind
