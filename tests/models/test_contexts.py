"""The context of a model, and the refusal of prompts beyond it before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.data.examples import Example
from interp.directions import Direction
from interp.engine.activations import collect, collect_means
from interp.engine.generation import generate, stream
from interp.engine.gradients import SoftPrefix, differentiable
from interp.engine.joint_generation import generate_each
from interp.engine.log_probs import completion_log_probs, next_token_log_probs
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import tokenize
from interp.representations.beliefs import states
from interp.representations.steering import steer
from interp.training.config import TrainConfig
from interp.training.finetune import fine_tune
from tests.conftest import prompts_of
from tests.families import CHANGING_ROPE, COMMON, HEAD, IDS, build

_DIRECTION = Direction(vector=torch.ones(32), layer=1, position="t_inst")
_SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **IDS}
_NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, **IDS}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LIMITS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "learned": ("GPT2Config", _SMALL, 64),
    "learned, by another name": ("GPTNeoConfig", {**_NEO, "attention_types": [[["global", "local"], 1]]}, 64),
    "table of sines": ("GPTJConfig", {**_SMALL, "rotary_dim": 4}, 64),
    "rotary": ("LlamaConfig", {**HEAD, "max_position_embeddings": 64}, 64),
    "scaled after": ("LlamaConfig", {**HEAD, "max_position_embeddings": 64, "rope_parameters": _YARN}, 256),
    "scaled before": ("LlamaConfig", {**HEAD, "max_position_embeddings": 256, "rope_parameters": _YARN}, 256),
    "longrope": (*CHANGING_ROPE["longrope"], 512),
    "dynamic": (*CHANGING_ROPE["dynamic"], None),
    "mixture": (
        "MixtralConfig",
        {**COMMON, "head_dim": 8, "num_local_experts": 4, "max_position_embeddings": 64},
        64,
    ),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_the_context_is_found(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    config, settings, limit = LIMITS[kind]
    assert ChatModel(build(config, settings), tokenizer, name=kind).context_length == limit


@pytest.fixture(scope="module", params=["learned", "table of sines", "rotary"])
def small(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    config, settings, _ = LIMITS[request.param]
    return ChatModel(build(config, settings), tokenizer, name="small")


CALLS: dict[str, Callable[[ChatModel, Any], Any]] = {
    "collect": lambda model, prompts: collect(model, prompts),
    "plain": lambda model, prompts: collect(model, prompts, fast=False),
    "means": lambda model, prompts: collect_means(model, prompts),
    "states": lambda model, prompts: states(model, prompts),
    "generate": lambda model, prompts: generate(model, prompts, max_new_tokens=1),
    "stream": lambda model, prompts: list(stream(model, prompts, max_new_tokens=1)),
    "each": lambda model, prompts: generate_each(model, prompts, [[]], max_new_tokens=1),
    "steer": lambda model, prompts: steer(model, prompts, _DIRECTION, max_new_tokens=1),
    "next token": lambda model, prompts: next_token_log_probs(model, prompts),
    "completions": lambda model, prompts: completion_log_probs(model, prompts, [[1], [1]]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_long_prompt_is_named_before_anything_runs(small: ChatModel, call: str) -> None:
    prompts = prompts_of(["Hi", "x" * 100])
    ran = []
    handle = small.hf.base_model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(ValueError, match=r"prompt p1 has 1\d\d tokens.*context of small is 64 tokens"):
            CALLS[call](small, prompts)
    finally:
        handle.remove()
    assert not ran


def test_completions_must_fit_as_well(small: ChatModel) -> None:
    prompts = prompts_of(["Hi", "Name three colours."])
    room = 64 - max(len(ids) for ids in tokenize(small.tokenizer, prompts).ids)
    generate(small, prompts, max_new_tokens=room)  # up to the last position
    with pytest.raises(ValueError, match=rf"prompt p1 .* generate at most {room} tokens"):
        generate(small, prompts, max_new_tokens=room + 1)
    with pytest.raises(ValueError, match=r"prompt p1 .* 64 tokens"):
        completion_log_probs(small, prompts, [[5], [5] * (room + 1)])


def test_gradients_and_inserted_embeddings_count(small: ChatModel) -> None:
    with differentiable(small) as through:
        with pytest.raises(ValueError, match=r"prompt 0 has 1\d\d tokens"):
            through.run(["x" * 100])
        soft = SoftPrefix(embeddings=through.embed(["x" * 40])[0])
        with pytest.raises(ValueError, match="context of small is 64 tokens"):
            through.run(["Hi there, all of you"], soft_prefix=soft)


def test_training_examples_count(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config, settings, _ = LIMITS["rotary"]
    small = ChatModel(build(config, settings), tokenizer, name="small")
    with pytest.raises(ValueError, match=r"prompt 0 has 1\d\d tokens"):
        fine_tune(small, [Example("x" * 100, "Sure.")], out=tmp_path / "out", config=TrainConfig())


def test_one_number_counts_for_every_prompt(small: ChatModel) -> None:
    tokens = tokenize(small.tokenizer, ["Hi", "Yo"])
    check_context(small, tokens, new_tokens=10)
    with pytest.raises(ValueError, match="prompt 1"):
        check_context(small, tokens, new_tokens=[1, 60])
