"""Models whose rotary frequencies change with the length: everything equals passes over one prompt by itself."""

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from interp.engine import activations
from interp.engine.activations import collect, fast_path_agrees
from interp.engine.applying import apply
from interp.engine.decoding import stop_ids
from interp.engine.generation import generate, stream
from interp.engine.gradients import differentiable
from interp.engine.interventions import Ablate, Add
from interp.engine.joint_generation import generate_each
from interp.engine.log_probs import completion_log_probs, next_token_log_probs
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from tests.families import CHANGING_ROPE, build

TEXTS = ("Hi there", "yo", "x" * 42, "y" * 35 + "z", "q" * 90, "q" * 90 + "w")
"""Two short prompts, two that cross the limit of 64 tokens in 12 tokens, two beyond it."""
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=sorted(CHANGING_ROPE))
def changing(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*CHANGING_ROPE[request.param]), tokenizer, name=request.param)


@pytest.fixture(scope="module")
def tokens(changing: ChatModel) -> ChatTokens:
    found = tokenize(changing.tokenizer, TEXTS)
    lengths = [len(ids) for ids in found.ids]
    assert max(lengths[:4]) < 64 < min(lengths[2:4]) + 12 < min(lengths[4:])
    return found


def fresh(model: ChatModel) -> PreTrainedModel:
    """The same weights in a model that has not run: dynamic NTK keeps the frequencies of earlier passes."""
    return build(*CHANGING_ROPE[model.name])


@torch.no_grad()
def hidden(model: ChatModel, ids: Sequence[int]) -> torch.Tensor:
    return torch.stack(fresh(model)(torch.tensor([ids]), output_hidden_states=True).hidden_states[:3])[:, 0]


@torch.no_grad()
def uncached(model: ChatModel, ids: Sequence[int], n: int) -> list[int]:
    """Greedy decoding with neither cache nor batch."""
    hf, so_far = fresh(model), list(ids)
    for _ in range(n):
        so_far.append(int(hf(torch.tensor([so_far])).logits[0, -1].argmax()))
        if so_far[-1] in stop_ids(model):
            break
    return so_far[len(ids) :]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("rows", [[0, 1], [4, 5], [5], [0, 4], [0, 1, 2, 3, 4, 5]])
def test_activations_do_not_depend_on_the_other_prompts(
    changing: ChatModel, tokens: ChatTokens, rows: list[int], fast: bool
) -> None:
    part = tokens.take(rows)
    # Two roles, one of them long before the prompt's end.
    found = collect(changing, part, positions=["t_inst", "t_post_inst", -18], fast=fast)["resid_pre"]
    _, where = part.resolve(["t_inst", "t_post_inst", -18])
    for row, ids in enumerate(part.ids):
        expected = hidden(changing, ids)[:, where[row]]
        assert (found[row] - expected).norm() < 1e-5 * expected.norm()  # float32


@pytest.mark.parametrize("fast", [True, False])
def test_next_tokens_do_not_depend_on_the_other_prompts(
    changing: ChatModel, tokens: ChatTokens, fast: bool
) -> None:
    for rows in ([0, 1, 2, 4], [4, 5]):
        found = next_token_log_probs(changing, tokens.take(rows), fast=fast)
        for row, log_probs in zip(rows, found, strict=True):
            with torch.no_grad():
                logits = fresh(changing)(torch.tensor([tokens.ids[row]])).logits[0, -1]
            torch.testing.assert_close(log_probs, logits.log_softmax(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_completions_that_cross_the_limit_equal_uncached_ones(
    changing: ChatModel, tokens: ChatTokens, fast: bool
) -> None:
    found = generate(changing, tokens, max_new_tokens=14, fast=fast)
    assert [list(ids) for ids in found.ids] == [uncached(changing, ids, 14) for ids in tokens.ids]


def change(positions: str, steps: int | None) -> list[Add | Ablate]:
    return [Add(VECTOR, layers=1, positions=positions, new_tokens=steps), Ablate(VECTOR.flip(0))]


@pytest.mark.parametrize(("positions", "steps"), [("all", None), ("t_inst", None), ("instruction", 3)])
def test_interventions_act_on_the_same_tokens_when_keys_are_computed_again(
    changing: ChatModel, tokens: ChatTokens, positions: str, steps: int | None
) -> None:
    part, n = tokens.take([2, 0]), 14
    found = generate(changing, part, interventions=change(positions, steps), max_new_tokens=n).ids
    for row in range(2):
        alone = ChatModel(fresh(changing), changing.tokenizer, name="alone")
        so_far = part.take([row])
        with torch.no_grad(), apply(alone, change(positions, steps), tokens=so_far):
            ids = list(part.ids[row])
            for _ in range(n):
                ids.append(int(alone.hf(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
                if ids[-1] in stop_ids(alone):
                    break
        assert list(found[row]) == ids[len(part.ids[row]) :]
    assert found != generate(changing, part, max_new_tokens=n).ids  # control


def test_streams_and_sets_of_interventions_are_generate(changing: ChatModel, tokens: ChatTokens) -> None:
    add = Add(VECTOR, layers=1, positions="t_inst")
    part, arms = tokens.take([0, 2, 4]), [[], [add]]
    expected = [generate(changing, part, interventions=arm, max_new_tokens=12).ids for arm in arms]
    found = generate_each(changing, part, arms, max_new_tokens=12)
    assert [done.ids for done in found] == expected
    streamed: list[list[int]] = [[], [], []]
    for step in stream(changing, part, interventions=arms[1], max_new_tokens=12):
        for row, token in zip(step.rows, step.ids, strict=True):
            streamed[row].append(token)
    assert tuple(map(tuple, streamed)) == expected[1]


def test_given_completions_and_gradients_use_the_length_of_their_own_row(
    changing: ChatModel, tokens: ChatTokens
) -> None:
    replies = [[5, 6, 7], [8, 9], [10] * 20, [11], [12, 13], [14]]
    found = completion_log_probs(changing, tokens, replies)
    with differentiable(changing) as through:
        readings = through.run(tokens, sites=["resid_pre"], positions="t_post_inst")
    for row, (ids, reply) in enumerate(zip(tokens.ids, replies, strict=True)):
        with torch.no_grad():
            logits = fresh(changing)(torch.tensor([[*ids, *reply]])).logits[0, len(ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None])[:, 0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
        state = hidden(changing, ids)[:, -1]
        assert (readings["resid_pre"][row, :, 0] - state).norm() < 1e-5 * state.norm()


def test_the_fast_path_is_tested_again_with_every_longer_prompt(tiny: ChatModel, monkeypatch) -> None:
    model = ChatModel(tiny.hf, tiny.tokenizer, name="again")
    tested: list[int] = []

    def disagrees_beyond_80(model: ChatModel, probe: ChatTokens) -> bool:  # noqa: ARG001
        tested.append(max(len(ids) for ids in probe.ids))
        return tested[-1] < 80

    monkeypatch.setattr(activations, "_paths_agree", disagrees_beyond_80)
    agrees = [
        fast_path_agrees(model, tokenize(model.tokenizer, [text]))
        for text in ("Hi", "yo", "x" * 30, "x" * 90)
    ]
    assert agrees == [True, True, True, False]
    assert len(tested) == 3 and tested == sorted(tested)
    assert not fast_path_agrees(model, tokenize(model.tokenizer, ["Hi"]))  # one failure is enough
