"""Recovery as a whole: schedule and pick, what it leaves, and the mistakes that are named."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import interp
from interp.models.chat_model import ChatModel
from interp.models.reference_weights import reference_weights
from interp.models.tokens import tokenize
from interp.stats import Estimate
from interp.training.recovery import RecoveryConfig, recover, restored_share
from interp.training.weight_restoration import restorable_weights
from tests.conftest import make_tokenizer
from tests.families import COVERED, build
from tests.storage.test_run_folders import small_disk
from tests.training.recovery_pairs import (
    CONFIG,
    HARMFUL,
    TASK,
    Pair,
    Scores,
    pair,
    plain_states,
    run,
    weights,
)


def test_equal_models_have_no_candidates_no_change_and_no_crash(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    _, aligned = pair(tokenizer)
    score = Scores(1.0)
    for same in (aligned, pair(tokenizer)[1]):
        recovered = run(same, aligned, score=score)
        assert recovered.n_different == recovered.picked_step == recovered.delta.n_changed == 0
        assert recovered.steps == () and not recovered.used_rollback
        assert recovered.delta.result_hash == recovered.delta.base_hash == same.weights_hash
    assert score.calls == 0
    assert "has the weights of aligned below the cut, so there is nothing to recover" in caplog.text


def test_recovery_brings_the_states_of_harmful_prompts_back(both: Pair) -> None:
    finetuned, aligned = both
    steps = run(finetuned, aligned, replace(CONFIG, rate=0.02, steps=8)).steps
    assert steps[-1].harmful_cosine > steps[0].harmful_cosine + 0.5 * (1 - steps[0].harmful_cosine)
    assert steps[0].task_cosine == pytest.approx(1, abs=1e-5)
    assert all(step.task_cosine < 1 for step in steps if step.n_aligned and step.task_score)


def adapter_pair(tokenizer: PreTrainedTokenizerFast) -> Pair:
    """A pair that differs in the matrices of attention and MLP alone, in every block, as after a LoRA fine-tuning."""
    finetuned, aligned = pair(tokenizer)
    theirs, matrices = dict(aligned.hf.named_parameters()), set(restorable_weights(finetuned, 3).values())
    for name, weight in finetuned.hf.named_parameters():
        if weight not in matrices:
            weight.data.copy_(theirs[name].data)
    return finetuned, aligned


def test_restoring_everything_gives_the_aligned_model_bit_for_bit(tokenizer: PreTrainedTokenizerFast) -> None:
    finetuned, aligned = adapter_pair(tokenizer)
    recovered = run(finetuned, aligned, replace(CONFIG, rank_by="all", cut=1.0))
    assert recovered.delta.result_hash == aligned.weights_hash != finetuned.weights_hash
    with recovered.applied(finetuned) as model:
        assert all(torch.equal(value, weights(aligned)[name]) for name, value in weights(model).items())


def test_restoring_everything_below_the_cut_gives_the_aligned_states_there_and_the_least_loss(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    finetuned, aligned = adapter_pair(tokenizer)
    recovered = run(finetuned, aligned, replace(CONFIG, rank_by="all", batch_size=100))
    assert recovered.steps[0].harmful_cosine < 0.999  # control
    # The step after everything was restored reads the aligned model's loss; on one full batch it is the least, -1.
    assert recovered.steps[-1].n_candidates == 0 and recovered.steps[-1].loss == pytest.approx(-1, abs=1e-6)
    assert recovered.steps[-1].harmful_cosine == pytest.approx(1, abs=1e-6)
    prompts = tokenize(tokenizer, HARMFUL)
    with recovered.applied(finetuned) as model, torch.no_grad():
        found, expected = (plain_states(m, prompts, 2) for m in (model, aligned))
        assert torch.equal(found, expected)
        above = [plain_states(m, prompts, 3) for m in (model, aligned)]
    assert not torch.equal(*above)  # blocks above the cut keep what fine-tuning made of them


def test_aligned_weights_may_be_read_from_shards(
    tokenizer: PreTrainedTokenizerFast, both: Pair, tmp_path: Path
) -> None:
    finetuned, aligned = both
    expected = run(finetuned, aligned)
    digest = finetuned.weights_hash
    aligned.hf.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    recovered = run(finetuned, tmp_path / "shards", fast=False)  # and the plain path
    assert recovered.delta.result_hash == expected.delta.result_hash != digest
    assert [s.n_candidates for s in recovered.steps] == [s.n_candidates for s in expected.steps]
    assert finetuned.weights_hash == digest
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    next((tmp_path / "shards").glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match=r"shard model-00002.* is missing"):
        run(finetuned, tmp_path / "shards")


def test_the_model_is_as_before_also_after_an_exception(tokenizer: PreTrainedTokenizerFast) -> None:
    finetuned, aligned = pair(tokenizer)
    parameters = list(finetuned.hf.parameters())
    parameters[3].requires_grad_(False)
    parameters[4].grad = torch.ones_like(parameters[4])
    flags, digest = [p.requires_grad for p in parameters], finetuned.weights_hash

    def fails(model: ChatModel) -> float:
        if model.weights_hash != digest:
            raise KeyError("stop")
        return 1.0

    with pytest.raises(KeyError):
        run(finetuned, aligned, score=fails)
    run(finetuned, aligned)
    assert finetuned.weights_hash == digest
    assert [p.requires_grad for p in parameters] == flags
    assert [p.grad is not None for p in parameters] == [i == 4 for i in range(len(parameters))]
    assert torch.equal(parameters[4].grad, torch.ones_like(parameters[4]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in finetuned.hf.modules())


def test_restored_share_is_a_table_of_layers_and_modules(both: Pair) -> None:
    finetuned, aligned = both
    recovered = run(finetuned, aligned)
    table = restored_share(recovered)
    assert table.layers == (0, 1) and table.shares.shape == (2, 7)
    assert table.modules[0] == "self_attn.q_proj" and table.modules[-1] == "mlp.down_proj"
    change = recovered.delta.changes["model.layers.1.mlp.down_proj.weight"]
    assert float(table.shares[1, -1]) == pytest.approx(len(change.indices) / (32 * 64))
    sizes = torch.tensor([recovered.places[name].size for name in recovered.places]).reshape(2, 7)
    assert (table.shares * sizes).sum().round() == recovered.delta.n_changed


def test_the_recovered_model_is_a_folder_and_a_file(
    tokenizer: PreTrainedTokenizerFast, both: Pair, tmp_path: Path
) -> None:
    finetuned, aligned = both
    finetuned.hf.save_pretrained(tmp_path / "finetuned")
    tokenizer.save_pretrained(tmp_path / "finetuned")
    finetuned = interp.load(tmp_path / "finetuned")
    recovered = interp.recover(finetuned, aligned, HARMFUL, TASK, Scores(1.0), CONFIG)
    saved = recovered.save(finetuned, tmp_path / "recovered")
    assert saved.weights_hash == recovered.delta.result_hash
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered")
    loaded = interp.load(tmp_path / "finetuned", delta=recovered.write(tmp_path / "delta.safetensors"))
    assert loaded.weights_hash == saved.weights_hash != finetuned.weights_hash
    ids = torch.tensor([tokenize(tokenizer, HARMFUL[:1]).ids[0]])
    with torch.no_grad():
        expected = recovered.copied(finetuned).hf(ids).logits
        assert torch.equal(plain(ids).logits, expected) and torch.equal(loaded.hf(ids).logits, expected)
        assert not torch.equal(finetuned.hf(ids).logits, expected)


# Mistakes


def broken_tokenizer(_: ChatModel, aligned: ChatModel) -> ChatModel:
    other = make_tokenizer(special=("<|endoftext|>", "<|im_end|>", "<|im_start|>"))
    return ChatModel(aligned.hf, other, name="aligned")


def other_family(_: ChatModel, aligned: ChatModel) -> ChatModel:
    return ChatModel(build(*COVERED["qwen3"]), aligned.tokenizer, name="aligned")


def other_vocabulary(_: ChatModel, aligned: ChatModel) -> ChatModel:
    return ChatModel(
        build("LlamaConfig", {**COVERED["llama"][1], "vocab_size": 320}), aligned.tokenizer, name="aligned"
    )


def other_depth(_: ChatModel, aligned: ChatModel) -> ChatModel:
    settings = {**COVERED["llama"][1], "num_hidden_layers": 4}
    return ChatModel(build("LlamaConfig", settings), aligned.tokenizer, name="aligned")


def quantised(_: ChatModel, aligned: ChatModel) -> ChatModel:
    projection: Any = aligned.blocks[0].mlp.down_proj  # pyright: ignore[reportAttributeAccessIssue]
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    return aligned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken_tokenizer, "no pair: their tokenizers number 2 tokens differently"),
        (other_family, "no pair: model_type is llama in one and qwen3 in the other"),
        (other_vocabulary, "no pair: their vocabularies have 300 and 320 entries"),
        (other_depth, "no pair: num_hidden_layers is 3 in one and 4 in the other"),
        (quantised, "stored quantised"),
        (lambda *_: "no/such/folder", "no checkpoint folder: no/such/folder"),
    ],
)
def test_what_is_no_pair_is_refused_before_any_work(
    tokenizer: PreTrainedTokenizerFast, change: Callable[..., Any], message: str
) -> None:
    finetuned, aligned = pair(tokenizer)
    score = Scores(1.0)
    with pytest.raises(ValueError, match=message):
        run(finetuned, change(finetuned, aligned), score=score)
    assert score.calls == 0


def test_a_quantised_fine_tuned_model_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    finetuned, aligned = pair(tokenizer)
    with pytest.raises(ValueError, match="weights of finetuned are stored quantised"):
        run(quantised(aligned, finetuned), aligned)


def test_a_task_without_a_score_is_refused(both: Pair) -> None:
    finetuned, aligned = both
    with pytest.raises(ValueError, match="needs a task_score"):
        recover(finetuned, aligned, HARMFUL, TASK, None)
    for value, message in (
        (math.nan, "finite number"),
        (0.0, "is 0, so no share"),
        (-1.0, "is -1, so no share"),
    ):
        with pytest.raises(ValueError, match=message):
            run(finetuned, aligned, score=Scores(value))
    with pytest.raises(ValueError, match="finite number or an Estimate, got 'good'"):
        run(finetuned, aligned, score=_says_good)
    with pytest.raises(ValueError, match="no prompts were given"):
        recover(finetuned, aligned, [], TASK, Scores(1.0))


def _says_good(_model: ChatModel) -> Any:
    return "good"


@pytest.mark.parametrize("one", [np.float32(0.5), np.int64(1), torch.tensor(0.5)])
def test_a_task_score_may_be_a_number_of_numpy_or_torch(both: Pair, one: Any) -> None:
    def score(_model: ChatModel) -> Any:
        return one

    recovered = run(*both, score=score)
    assert recovered.steps[0].task_score == Estimate(value=float(one), n=1)
    assert recovered.picked_step == CONFIG.steps


@pytest.mark.parametrize("one", [True, np.bool_(True), torch.ones(2), math.inf, None, "0.5"])
def test_what_is_no_task_score_is_refused(both: Pair, one: Any) -> None:
    with pytest.raises(ValueError, match="must be a finite number or an Estimate, got"):
        run(*both, score=lambda _model: one)


def test_arguments_of_another_type_are_named(both: Pair) -> None:
    finetuned, aligned = both
    plain, other = (
        inspect.unwrap(recover),
        inspect.unwrap(reference_weights),
    )  # without the tests' type checks
    with pytest.raises(ValueError, match="model must be a ChatModel, got str"):
        plain("smollm2", aligned, HARMFUL, TASK, Scores(1.0))
    with pytest.raises(ValueError, match="config must be a RecoveryConfig, got dict"):
        plain(finetuned, aligned, HARMFUL, TASK, Scores(1.0), {})
    with pytest.raises(ValueError, match="a loaded model or a folder, got NoneType"):
        other(None, finetuned)


def test_a_task_score_that_changes_weights_is_found(tokenizer: PreTrainedTokenizerFast) -> None:
    finetuned, aligned = pair(tokenizer)

    def score(model: ChatModel) -> float:
        with torch.no_grad():
            model.embedding.weight[0, 0] += 1
        return 1.0

    with pytest.raises(RuntimeError, match="the task score changed them"):
        run(finetuned, aligned, score=score)


def test_a_full_disk_leaves_nothing_of_a_recovered_model(both: Pair, tmp_path: Path) -> None:
    finetuned, aligned = both
    recovered, digest = run(finetuned, aligned), finetuned.weights_hash
    path = recovered.write(tmp_path / "delta.safetensors")
    before = path.read_bytes()
    with small_disk(2000):
        with pytest.raises(OSError, match=r"cannot write .*delta.safetensors"):
            recovered.write(path)
        with pytest.raises(OSError, match="cannot write"):
            recovered.save(finetuned, tmp_path / "whole")
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before
    assert finetuned.weights_hash == digest


def test_settings_are_checked() -> None:
    for wrong, message in (
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": 1.5}, "rate must be 1 or less"),
        ({"warmup": -1}, "warmup must be 0 or more"),
        ({"cut": math.nan}, "cut must be a finite number|cut"),
    ):
        with pytest.raises(ValueError, match=message):
            RecoveryConfig(**wrong)  # pyright: ignore[reportArgumentType]
    depths = {30: 20, 32: 21, 40: 26, 18: 12, 28: 18}  # as published
    assert {n: RecoveryConfig().cut_layer(n) for n in depths} == depths
    assert [RecoveryConfig(cut=k / 6).cut_layer(30) for k in range(2, 6)] == [10, 15, 20, 25]
    with pytest.raises(ValueError, match="leaves none of 3 layers"):
        RecoveryConfig(cut=0.1).cut_layer(3)
