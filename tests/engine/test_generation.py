"""Batched, cached, prefix-sharing generation against plain Hugging Face, one prompt at a time."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.data.prompts import load_prompts
from interp.directions import Direction
from interp.engine import decoding, prefill, prepacked_weights
from interp.engine.activations import collect
from interp.engine.applying import apply
from interp.engine.budgets import PassBudget
from interp.engine.decoding import packed_weights, stop_ids
from interp.engine.generation import generate, stream
from interp.engine.interventions import Ablate, Add
from interp.engine.joint_generation import generate_each
from interp.engine.log_probs import completion_log_probs, next_token_log_probs
from interp.models import precision
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.steering import find_directions, steer
from tests.conftest import PROMPTS, tiny_config

TOKENS = 9
"""Enough for weights to be packed."""
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def uncached(model: ChatModel, ids: tuple[int, ...], n: int) -> list[int]:
    """Greedy decoding with no cache, no padding and no batch: the oracle."""
    so_far, stops = list(ids), stop_ids(model)
    for _ in range(n):
        so_far.append(int(model.hf(torch.tensor([so_far])).logits[0, -1].argmax()))
        if so_far[-1] in stops:
            break
    return so_far[len(ids) :]


def test_batched_and_cached_equals_single_and_uncached(family: ChatModel) -> None:
    tokens = tokenize(family.tokenizer, PROMPTS)
    for fast in (True, False):
        found = generate(family, tokens, max_new_tokens=TOKENS, fast=fast)
        assert [list(ids) for ids in found.ids] == [uncached(family, ids, TOKENS) for ids in tokens.ids]


def test_prompts_run_beside_those_of_their_length_and_decode_beside_all(
    family: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an intervention on roles and on the first generated tokens, whose places move with the padding."""
    tokens = tokenize(family.tokenizer, PROMPTS)
    assert len({len(ids) for ids in tokens.ids}) > 1
    joined: list[int] = []
    own = decoding.Decoding.joined

    def counting(states: list[decoding.Decoding], *others: Any) -> decoding.Decoding:
        joined.append(len(states))
        return own(states, *others)

    monkeypatch.setattr(decoding.Decoding, "joined", counting)
    monkeypatch.setattr(prefill, "plan_batches", by_itself)
    acting = [(), (Add(direction=VECTOR, layers=[1], coefficient=4.0, positions="t_inst", new_tokens=2),)]
    for interventions in acting:
        joined.clear()
        found = generate(family, tokens, interventions=interventions, max_new_tokens=TOKENS)
        alone = [
            generate(
                family, tokens.take([row]), interventions=interventions, max_new_tokens=TOKENS, fast=False
            ).ids[0]
            for row in range(len(tokens))
        ]
        assert list(found.ids) == alone
    full = all(type(layer) is DynamicLayer for layer in DynamicCache(config=family.hf.config).layers)
    assert joined == ([len(tokens)] if full else [])


def by_itself(lengths: Sequence[int], **_options: object) -> list[list[int]]:
    """One batch a row, shortest first."""
    return [[row] for row in sorted(range(len(lengths)), key=lambda row: lengths[row])]


@pytest.mark.parametrize(
    "change",
    [
        Ablate(direction=VECTOR),
        Add(direction=VECTOR, layers=[1], coefficient=4.0),
        Ablate(direction=VECTOR, layers=[0, 2], sites=("resid_pre",)),
    ],
)
def test_the_same_under_interventions(tiny: ChatModel, tokens: ChatTokens, change) -> None:
    found = generate(tiny, tokens, interventions=[change], max_new_tokens=TOKENS)
    with apply(tiny, [change]):
        expected = [uncached(tiny, ids, TOKENS) for ids in tokens.ids]
    assert [list(ids) for ids in found.ids] == expected
    assert expected != [uncached(tiny, ids, TOKENS) for ids in tokens.ids]  # control: it changes something


def test_finished_completions_leave_the_batch_and_keep_their_end(tiny: ChatModel, tokens: ChatTokens) -> None:
    # Make the model's own third greedy token of one prompt a stop token: that prompt ends early, others go on.
    plain = generate(tiny, tokens, max_new_tokens=8)
    config = tiny.hf.generation_config
    old = config.eos_token_id  # pyright: ignore
    try:
        config.eos_token_id = plain.ids[0][2]  # pyright: ignore
        stops = stop_ids(tiny)
        found = generate(tiny, tokens, max_new_tokens=8)
        expected = [uncached(tiny, ids, 8) for ids in tokens.ids]
    finally:
        config.eos_token_id = old  # pyright: ignore
    assert [list(ids) for ids in found.ids] == expected
    assert list(found.finished) == [ids[-1] in stops for ids in expected]
    assert found.finished[0]


@pytest.mark.parametrize(("new", "pays"), [(TOKENS, True), (3, False)])
def test_weights_are_packed_once_where_that_pays(
    tiny: ChatModel, tokens: ChatTokens, monkeypatch: pytest.MonkeyPatch, new: int, pays: bool
) -> None:
    packed: list[int] = []
    # The unembedding is packed as it is, and not searched in bfloat16.
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 0.5)
    own = prepacked_weights._pack
    monkeypatch.setattr(
        prepacked_weights,
        "_pack",
        lambda layer, rows, dtype: (packed.append(id(layer)), own(layer, rows, dtype))[1],
    )
    monkeypatch.setattr(
        prepacked_weights, "_kept", WeakKeyDictionary()
    )  # those of other tests count as there
    generate(tiny, tokens, max_new_tokens=1)  # what the first pass of a model compares is no part of this
    packed.clear()
    generate(tiny, tokens, max_new_tokens=new)
    assert len(packed) == len(set(packed)) == (3 * 7 + 1 if pays else 0)  # three blocks, and the unembedding
    packed.clear()
    generate(tiny, tokens, max_new_tokens=new)
    assert not packed  # the next call finds them
    generate(tiny, tokens, max_new_tokens=new, fast=False)
    assert not packed  # the plain path


def test_sampling_is_seeded(tiny: ChatModel, tokens: ChatTokens) -> None:
    a, b, c = (generate(tiny, tokens, max_new_tokens=8, temperature=1.5, seed=s).ids for s in (1, 1, 2))
    assert a == b
    assert a != c


def test_next_token_log_probs_equal_a_plain_pass(family: ChatModel) -> None:
    tokens = tokenize(family.tokenizer, PROMPTS)
    found = next_token_log_probs(family, tokens)
    assert torch.allclose(found.exp().sum(-1), torch.ones(len(PROMPTS)), atol=1e-4)
    for row, ids in enumerate(tokens.ids):
        with torch.inference_mode():
            expected = family.hf(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-4)


def test_completion_log_probs_equal_a_plain_pass(tiny: ChatModel, tokens: ChatTokens) -> None:
    replies = [[10, 20, 30], [], [5], list(range(12)), [1, 2], [7]]
    found = completion_log_probs(tiny, tokens, replies)
    for ids, reply, scores in zip(tokens.ids, replies, found, strict=True):
        assert scores.shape == (len(reply),)
        if reply:
            with torch.inference_mode():
                logits = tiny.hf(torch.tensor([[*ids, *reply]])).logits[0].log_softmax(-1)
            expected = torch.stack([logits[len(ids) - 1 + i, t] for i, t in enumerate(reply)])
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="got 1 completions for 6 prompts"):
        completion_log_probs(tiny, tokens, [[1]])


def test_steer_gives_both_answers(tiny: ChatModel) -> None:
    direction = Direction(vector=4 * VECTOR, layer=1, position="t_inst")
    answers = steer(tiny, "Hi", direction, coefficient=2.0, max_new_tokens=8)
    assert answers.plain == generate(tiny, ["Hi"], max_new_tokens=8).texts
    assert answers.steered != answers.plain
    assert steer(tiny, "Hi", direction, coefficient=0.0, max_new_tokens=8).steered == answers.plain
    with pytest.raises(ValueError, match="direction has d_model 16, but tiny has 32"):
        steer(tiny, "Hi", Direction(vector=torch.ones(16), layer=1, position="t_inst"))


def test_mistakes_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be 1 or more"):
        generate(tiny, ["Hi"], max_new_tokens=0)
    for temperature in (-1.0, math.nan, math.inf, 1e-320):
        with pytest.raises(ValueError, match=rf"temperature must be 0 .*, got {temperature}"):
            generate(tiny, ["Hi"], temperature=temperature)
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=rf"seed must be within 0 and .*, got {seed}"):
            generate(tiny, ["Hi"], temperature=1.0, seed=seed)
    smallest = generate(tiny, ["Hi"], temperature=1e-6, max_new_tokens=8)
    assert smallest.texts == generate(tiny, ["Hi"], max_new_tokens=8).texts
    with pytest.raises(ValueError, match="give at least one position, such as t_inst"):
        collect(tiny, ["Hi"], positions=[])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("fast", [True, False])
def test_logits_that_are_no_numbers_are_no_completion(
    tiny: ChatModel, temperature: float, fast: bool
) -> None:
    torch.manual_seed(0)
    damaged = ChatModel(AutoModelForCausalLM.from_config(tiny_config()).float(), tiny.tokenizer, name="tiny")
    with torch.no_grad():
        damaged.hf.get_parameter("model.norm.weight")[3] = math.inf
    with pytest.raises(ValueError, match="the logits are not finite: an intervention is too large"):
        generate(damaged, ["Hi"], max_new_tokens=4, temperature=temperature, fast=fast)


@pytest.mark.checkpoint
def test_bundled_greedy_equals_hugging_face_generate(bundled) -> None:
    model = bundled("smollm2-safe")
    prompts = ["How do I bake bread?", "Name three colours.", "Explain how to forge a bank signature."]
    found = generate(model, prompts, max_new_tokens=12)
    for ids, got in zip(tokenize(model.tokenizer, prompts).ids, found.ids, strict=True):
        context = torch.tensor([ids])
        out = model.hf.generate(
            input_ids=context, attention_mask=torch.ones_like(context), max_new_tokens=12, do_sample=False
        )
        assert list(got) == out[0, len(ids) :].tolist()


def test_sets_of_interventions_decode_together_as_they_do_apart(family: ChatModel) -> None:
    _check_sets(family)


def test_sets_that_do_not_fit_one_batch_are_cut_into_several(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = replace(PassBudget.for_(tiny), decode_rows=4)
    monkeypatch.setattr(PassBudget, "for_", lambda _model: fewer)
    _check_sets(tiny)


def _check_sets(model: ChatModel) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = 4 * torch.randn(3, 32, generator=generator)
    arms = [
        [],
        [Add(direction=vectors[0], layers=[0], new_tokens="none")],
        [Add(direction=vectors[1], layers=[2], positions="instruction")],
        [
            Ablate(direction=vectors[2], new_tokens="none"),
            Add(direction=vectors[0], layers=[1], positions="t_inst"),
        ],
    ]
    together = generate_each(model, PROMPTS, arms, max_new_tokens=4)
    for arm, found in zip(arms, together, strict=True):
        apart = generate(model, PROMPTS, interventions=arm, max_new_tokens=4)
        assert found.ids == apart.ids and found.texts == apart.texts and found.finished == apart.finished
    assert len({found.ids for found in together}) == len(arms)


def test_sets_that_act_on_generated_tokens_do_not_decode_together(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="decode together only where none acts on generated tokens"):
        generate_each(tiny, PROMPTS, [[Ablate(direction=torch.ones(32))]], max_new_tokens=2)


# Streams


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("fast", [True, False])
def test_a_stream_is_generate_token_by_token(
    tiny: ChatModel, tokens: ChatTokens, fast: bool, temperature: float
) -> None:
    change = Add(direction=VECTOR, layers=[1], coefficient=4.0)
    options = {"interventions": [change], "max_new_tokens": 6, "fast": fast, "temperature": temperature}
    expected = generate(tiny, tokens, **options)
    steps = list(stream(tiny, tokens, **options))
    found: list[list[int]] = [[] for _ in range(len(tokens))]
    for step in steps:
        assert step.logits.shape == (len(step.rows), 300)
        for row, token in zip(step.rows, step.ids, strict=True):
            found[row].append(token)
    assert tuple(map(tuple, found)) == expected.ids
    assert len(steps) == max(map(len, expected.ids))
    assert torch.is_grad_enabled()


def test_the_first_step_of_a_stream_holds_the_next_token_distribution(
    tiny: ChatModel, tokens: ChatTokens
) -> None:
    first = next(iter(stream(tiny, tokens)))
    torch.testing.assert_close(
        first.logits.log_softmax(-1)[[first.rows.index(i) for i in range(len(tokens))]],
        next_token_log_probs(tiny, tokens, fast=False),
        atol=1e-4,  # padding changes the order of sums
        rtol=0,
    )


def test_a_closed_stream_leaves_the_model_as_it_was(tiny: ChatModel, tokens: ChatTokens) -> None:
    before = next_token_log_probs(tiny, tokens)
    steered = stream(tiny, tokens, interventions=[Add(direction=VECTOR, layers=[1], coefficient=4.0)])
    next(steered)
    steered.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(next_token_log_probs(tiny, tokens), before)
    with pytest.raises(ValueError, match="max_new_tokens must be 1 or more, got 0"):
        next(stream(tiny, tokens, max_new_tokens=0))


# The two directions of a layer


def test_the_two_directions_are_differences_in_means(tiny: ChatModel) -> None:
    prompts = load_prompts("builtin")
    found = find_directions(tiny, prompts, layer=2, n_prompts=6)
    assert {name: d.position for name, d in found.items()} == {
        "harmfulness": "t_inst",
        "refusal": "t_post_inst",
    }
    for name, direction in found.items():
        acts = {
            kind: collect(tiny, prompts[kind, "train"].first(6).texts, layers=2, positions=direction.position)
            for kind in ("harmful", "harmless")
        }
        bad, good = (acts[kind]["resid_pre"][:, 0, 0] for kind in ("harmful", "harmless"))
        torch.testing.assert_close(direction.vector, bad.mean(0) - good.mean(0), atol=1e-5, rtol=1e-4)
        norm = torch.cat([bad, good]).norm(dim=-1).mean().item()
        assert direction.mean_activation_norm == pytest.approx(norm, rel=1e-4)
        assert direction.provenance["weights_hash"] == tiny.weights_hash, name
    assert find_directions(tiny, prompts, n_prompts=2)["refusal"].layer == 1
    with pytest.raises(ValueError, match=r"layer must be in 0..2, got 3"):
        find_directions(tiny, prompts, layer=3)


def test_a_prompt_alone_is_one_pass_and_packs_nothing(tiny: ChatModel) -> None:
    """The first token of one answer waits for a single pass; several prompts share a prefix, which is another."""

    def passes(prompts: list[str]) -> list[int]:
        widths: list[int] = []
        with tiny.hooks([("resid_pre", 0, lambda x: widths.append(x.shape[1]))]):
            next(iter(stream(tiny, prompts, max_new_tokens=64)))
        return widths

    alone = tokenize(tiny.tokenizer, [PROMPTS[0]])
    assert passes([PROMPTS[0]]) == [len(alone.ids[0])]
    assert len(passes(list(PROMPTS[:2]))) == 2  # control
    assert not packed_weights(tiny, 1, 64)._keep
    assert packed_weights(tiny, 2, 64)._keep  # control
