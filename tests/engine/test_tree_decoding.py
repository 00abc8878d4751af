"""Trees whose segments keep their cache equal a computation that runs every prefix from its first token."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.engine import decoding
from interp.engine.budgets import PassBudget
from interp.engine.decoding import stop_ids
from interp.engine.sampling import at_quantiles
from interp.engine.tree_decoding import Segments, TreeShape, sample_trees, uniforms_of
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS
from tests.families import CHANGING_ROPE, COVERED, build

SHAPE = TreeShape(depth=3, branching=2, segment_tokens=3, temperatures=(1.0, 0.7))


def ends(token: int) -> bool:
    return token % 5 == 0


@torch.no_grad()
def plain_tree(model: ChatModel, prompt: tuple[int, ...], tree: int, shape: TreeShape, seed: int) -> Segments:
    """Every token from a whole pass, without padding or cache, and in float64."""
    found: Segments = {}

    def follow(number: int, level: int, before: tuple[int, ...]) -> None:
        if level == shape.depth:
            return
        for child in range(number * shape.branching + 1, (number + 1) * shape.branching + 1):
            ids: tuple[int, ...] = ()
            for uniform in uniforms_of(seed, tree, child, shape.segment_tokens):
                # Dynamic frequencies are those of the longest pass so far.
                fresh = copy.deepcopy(model.hf) if model.rotary.vary else model.hf
                logits = fresh(input_ids=torch.tensor([before + ids])).logits[0, -1].double()
                heat = shape.temperatures[min(level, len(shape.temperatures) - 1)]
                sums = (logits / heat).softmax(-1).cumsum(-1) if heat else None
                ids += (int(logits.argmax()) if sums is None else int((sums <= uniform).sum()),)
                if ids[-1] in stop_ids(model) or ends(ids[-1]):
                    break
            found[child] = ids
            if ids[-1] not in stop_ids(model):
                follow(child, level + 1, before + ids)

    follow(0, 0, prompt)
    return dict(sorted(found.items()))


def model_of(kind: str, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    name, settings = {**COVERED, **CHANGING_ROPE}[kind]
    window = {"sliding_window": 16} if kind == "mistral" else {}
    return ChatModel(build(name, {**settings, **window}), tokenizer, name=kind)


@pytest.mark.parametrize("kind", ["llama", "mistral", "dynamic"])
def test_segments_are_those_of_running_every_prefix_again(
    kind: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch, and in batches that had to be cut; a window shorter than the prompt; frequencies that change."""
    model = model_of(kind, tokenizer)
    tokens = tokenize(model.tokenizer, PROMPTS[: 2 if kind == "llama" else 1])
    expected = [plain_tree(model, ids, tree, SHAPE, seed=3) for tree, ids in enumerate(tokens.ids)]
    assert sample_trees(model, tokens, SHAPE, seed=3, ends=ends) == expected
    assert any(
        len(ids) < SHAPE.segment_tokens for ids in expected[0].values()
    )  # control: ends do end segments
    few = replace(PassBudget.for_(model), decode_rows=3)
    monkeypatch.setattr(PassBudget, "for_", lambda _model: few)
    assert sample_trees(model, tokens, SHAPE, seed=3, ends=ends) == expected
    assert sample_trees(model, tokens, SHAPE, seed=4, ends=ends) != expected


def test_greedy_levels_and_answers_that_the_model_ends(tiny: ChatModel) -> None:
    tokens = tokenize(tiny.tokenizer, PROMPTS[:2])
    shape = replace(SHAPE, temperatures=(3.0, 0.0))
    expected = [plain_tree(tiny, ids, tree, shape, seed=0) for tree, ids in enumerate(tokens.ids)]
    assert sample_trees(tiny, tokens, shape, ends=ends) == expected
    # The first token of the first segment ends the turn: what follows it is not sampled.
    before, config = copy.copy(tiny.hf.generation_config), tiny.hf.generation_config
    assert config is not None
    try:
        config.eos_token_id = expected[0][1][0]
        ended = [plain_tree(tiny, ids, tree, shape, seed=0) for tree, ids in enumerate(tokens.ids)]
        assert sample_trees(tiny, tokens, shape, ends=ends) == ended
        assert sum(map(len, ended)) < sum(map(len, expected))
    finally:
        tiny.hf.generation_config = before


def test_a_token_is_run_once_for_all_that_follows_it(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of decoding steps: every token but the last ones of an answer, which may run with others, and none twice."""
    rows: list[int] = []
    step = decoding.Decoding.step

    def counted(state: decoding.Decoding, model: ChatModel, next_ids: torch.Tensor) -> torch.Tensor:
        rows.append(len(next_ids))
        return step(state, model, next_ids)

    monkeypatch.setattr(decoding.Decoding, "step", counted)
    tokens = tokenize(tiny.tokenizer, PROMPTS[:2])
    shape = replace(SHAPE, depth=4)
    segments = sample_trees(tiny, tokens, shape, seed=0)
    generated = sum(len(ids) for tree in segments for ids in tree.values())
    leaves = sum(2 * n + 1 not in tree for tree in segments for n in tree)
    assert generated - leaves <= sum(rows) <= generated
    assert leaves == 2 * 2**4  # no answer ended early, so that chains would run four segments for each
    assert sum(rows) < 0.5 * leaves * (4 * shape.segment_tokens - 1)


def test_a_quantile_picks_the_token_in_whose_share_it_lies() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log().repeat(5, 1)
    assert at_quantiles(logits, [0.0, 0.49, 0.51, 0.79, 0.999999], [1.0] * 5) == [0, 0, 2, 2, 3]
    assert at_quantiles(logits, [0.9] * 5, [1.0, 0.0, 1e-6, 100.0, 1.0]) == [3, 0, 0, 3, 3]
    with pytest.raises(ValueError, match="the logits are not finite"):
        at_quantiles(torch.full((1, 4), float("nan")), [0.5], [1.0])


def test_settings_out_of_range_are_named(tiny: ChatModel) -> None:
    tokens = tokenize(tiny.tokenizer, PROMPTS[:1])
    with pytest.raises(ValueError, match="temperature must be 0"):
        sample_trees(tiny, tokens, replace(SHAPE, temperatures=(-1.0,)))
    with pytest.raises(ValueError, match="seed must be within"):
        sample_trees(tiny, tokens, SHAPE, seed=-1)
