"""Two threads at once give what they give one after the other, bit for bit: of two models and of one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.data.prompts import load_prompts
from interp.engine.activations import collect
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel
from tests.families import COVERED, build

PROMPTS = [
    f"{start} {end}?" for start in ("How do I", "Why does") for end in ("pick", "a lock", "I", "go on and on")
]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))


def together(*jobs: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """Results of all jobs, begun at one moment in a thread each."""
    barrier = Barrier(len(jobs))

    def run(job: Callable[[], list[Tensor]]) -> list[Tensor]:
        torch.set_num_threads(1)
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as threads:
        return [future.result() for future in [threads.submit(run, job) for job in jobs]]


def job(model: ChatModel, seed: int, rounds: int = 4) -> Callable[[], list[Tensor]]:
    """Everything the engine does, over and over."""
    vector = VECTOR.roll(seed)
    change = [Ablate(direction=vector), Add(direction=vector, layers=[1], positions="t_inst", new_tokens=2)]

    def run() -> list[Tensor]:
        results = []
        for _ in range(rounds):
            sites = ["resid_pre"] if model.is_parallel else ["resid_pre", "resid_mid"]
            acts = collect(model, PROMPTS, sites=sites)  # pyright: ignore[reportArgumentType]
            results += acts.values.values()
            results.append(collect(model, PROMPTS, interventions=change, fast=False)["resid_pre"])
            results.append(next_token_log_probs(model, PROMPTS, interventions=change))
            replies = generate(model, PROMPTS[:3], interventions=change, max_new_tokens=4).ids
            results.append(torch.tensor([token for ids in replies for token in ids]))
        return results

    return run


def check(*jobs: Callable[[], list[Tensor]]) -> None:
    alone = [together(job)[0] for job in jobs]
    for expected, found in zip(alone, together(*jobs), strict=True):
        assert len(expected) == len(found)
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(*alone, strict=True))  # control: the jobs differ


@pytest.mark.parametrize(
    "kinds", [("llama", "llama"), ("llama", "qwen3"), ("gpt2", "gemma2"), ("gpt_neox", "llama")]
)
def test_two_models(kinds: tuple[str, str], tokenizer: PreTrainedTokenizerFast) -> None:
    models = [ChatModel(build(*COVERED[kind]), tokenizer, name=kind) for kind in kinds]
    check(*(job(model, seed) for seed, model in enumerate(models)))


def test_one_model(tokenizer: PreTrainedTokenizerFast) -> None:
    model = ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")
    check(job(model, 0), job(model, 1))


def test_two_chat_models_on_the_same_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    hf = build(*COVERED["llama"])
    one, other = (ChatModel(hf, tokenizer, name=name) for name in ("one", "other"))
    assert one.lock is other.lock
    check(job(one, 0), job(other, 1))


def test_a_plain_pass_beside_packed_ones_keeps_its_own_attention(tokenizer: PreTrainedTokenizerFast) -> None:
    model = ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")
    ids = torch.arange(1, 41).view(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0

    def plain() -> list[Tensor]:
        with torch.no_grad():
            return [model.hf(ids, attention_mask=mask).logits for _ in range(150)]

    check(plain, job(model, 0))


@pytest.mark.checkpoint
def test_the_two_bundled_models_collecting_at_once(bundled: Callable[[str], ChatModel]) -> None:
    prompts = load_prompts("builtin")["harmful", "train"].first(12).texts

    def collecting(name: str) -> Callable[[], list[Tensor]]:
        model = bundled(name)
        return lambda: [collect(model, prompts, sites=["resid_pre", "mlp_out"])["mlp_out"]]

    check(collecting("smollm2"), collecting("smollm2-safe"))
