"""Directions and steering on whatever stands for prompts, multi-turn and prefilled ones on published templates."""

from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.data.prompts import PromptSet, as_prompts, load_prompts
from interp.directions import Direction, difference_in_means
from interp.engine.activations import collect, collect_means
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.engine.joint_generation import generate_each
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.steering import find_directions, steer
from interp.storage.direction_files import write_direction
from tests.chat_templates import PUBLISHED, Published
from tests.conftest import PROMPTS, tiny_config
from tests.models.test_tokens import published_tokenizer


def conversation(text: str, *, prefill: str | None) -> list[dict[str, str]]:
    turns = [("user", text), ("assistant", "Yes."), ("user", text)]
    turns += [("assistant", prefill)] if prefill else []
    return [{"role": role, "content": content} for role, content in turns]


def model_of(entry: Published) -> ChatModel:
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(tiny_config()).float()
    return ChatModel(hf, published_tokenizer(entry), name=entry.name)


def direction_of(seed: int = 0) -> Direction:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Direction(vector=vector, layer=1, position="t_inst", mean_activation_norm=10.0)


@pytest.mark.parametrize("prefill", [None, "Sure, here"])
@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_conversations_are_read_steered_and_continued(entry: Published, prefill: str | None) -> None:
    model = model_of(entry)
    bad, good = (
        as_prompts([conversation(text, prefill=prefill) for text in texts], source=name)
        for name, texts in (("bad", PROMPTS[:2]), ("good", PROMPTS[2:4]))
    )
    prompts = PromptSet("mine", {("harmful", "train"): bad, ("harmless", "train"): good})
    found = find_directions(model, prompts, layer=2)
    # The same from whole prompts run one by one, at indices counted by hand.
    for name, role in (("harmfulness", "t_inst"), ("refusal", "t_post_inst")):
        means = []
        for part in (bad, good):
            tokens = tokenize(model.tokenizer, part)
            rows = []
            for row, ids in enumerate(tokens.ids):
                hidden = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
                rows.append(hidden[tokens.index(row, role)].detach())
            means.append(torch.stack(rows).double().mean(0))
        expected = (means[0] - means[1]).float()
        torch.testing.assert_close(found[name].vector, expected, rtol=1e-4, atol=1e-4)
    # Greedy completions go on after the prefill; the plain path is whole prompts.
    fast, plain = (generate(model, bad, max_new_tokens=2, fast=fast) for fast in (True, False))
    assert fast.ids == plain.ids and fast.identity.ids == bad.ids
    where = "prefill" if prefill else "instruction"
    answers = steer(model, bad, found["refusal"], coefficient=30, positions=where, max_new_tokens=2)
    push = [Add(found["refusal"], coefficient=30, positions=where)]
    assert answers.steered == generate(model, bad, interventions=push, max_new_tokens=2, fast=False).texts
    assert answers.plain == fast.texts and answers.identity.hash == bad.hash
    moved = next_token_log_probs(model, bad, interventions=push)
    assert not torch.allclose(moved, next_token_log_probs(model, bad))


@pytest.mark.parametrize("region", ["prefill", "thinking"])
def test_a_region_that_is_not_there_is_refused(tiny: ChatModel, region: str) -> None:
    with pytest.raises(ValueError, match=f"position {region} is not there: prompt 0 has no"):
        generate(tiny, ["Hi"], interventions=[Add(direction_of(), positions=region)], max_new_tokens=1)


def test_results_keep_the_identity_of_their_prompts(tiny: ChatModel) -> None:
    part = load_prompts("builtin")["harmful", "test"].first(3)
    given: list[tuple[Any, tuple[str, ...]]] = [
        (part, part.ids),
        (list(part.texts), ("0", "1", "2")),
        (pd.Series(list(part.texts), index=["a", "b", "c"]), ("a", "b", "c")),
        (tokenize(tiny.tokenizer, part), part.ids),
    ]
    expected = collect(tiny, part, layers=1)
    for prompts, ids in given:
        acts = collect(tiny, prompts, layers=1)
        assert torch.equal(acts["resid_pre"], expected["resid_pre"])
        results = [
            acts,
            collect_means(tiny, prompts, layers=1),
            generate(tiny, prompts, max_new_tokens=1),
            *generate_each(tiny, prompts, [[]], max_new_tokens=1),
            steer(tiny, prompts, direction_of(), max_new_tokens=1),
        ]
        for result in results:
            assert result.identity is not None
            assert result.identity.ids == ids and result.identity.hash == part.hash
    alone = collect(tiny, part.texts[0], layers=1)
    torch.testing.assert_close(alone["resid_pre"], expected["resid_pre"][:1])


def test_directions_come_by_position_in_any_form(tiny: ChatModel, tmp_path: Any) -> None:
    direction = direction_of()
    path = write_direction(tmp_path / "mine.safetensors", direction)
    vector = direction.vector
    for given in (direction, path, str(path)):
        add = Add(given, coefficient=2)
        assert torch.equal(add.direction, vector) and (add.layers, add.sites) == ((1,), ("resid_pre",))
        assert torch.equal(Ablate(given).direction, vector)
    for given in (vector, vector.numpy(), vector.tolist()):
        assert torch.equal(Add(given, layers=2).direction, vector)
        assert Ablate(given, layers=range(1, 3), sites="attn_out").sites == ("attn_out",)
        with pytest.raises(ValueError, match="an addition of bare numbers needs layers="):
            Add(given)
        with pytest.raises(ValueError, match="relative_norm needs a direction with its mean_activation_norm"):
            Add(given, layers=1, relative_norm=1)
    last = Direction(vector=vector, layer=1, position="t_inst", site="resid_post")
    assert Add(last).sites == ("resid_post",)  # at its own place
    with pytest.raises(ValueError, match="give coefficient or relative_norm, not both"):
        Add(direction, coefficient=2, relative_norm=1)
    with pytest.raises(ValueError, match=r"layers=\[-1, 2\] repeats one"):
        generate(tiny, "Hi", interventions=[Add(vector, layers=[-1, 2])], max_new_tokens=1)
    with pytest.raises(ValueError, match="one axis of floats"):
        Add(torch.ones(2, 3), layers=1)
    steered = steer(tiny, "Hi", path, coefficient=5, layers=-1, max_new_tokens=3).steered
    expected = generate(tiny, "Hi", interventions=[Add(5 * vector, layers=[2])], max_new_tokens=3)
    assert steered == expected.texts


def test_layers_and_sites_are_written_in_many_ways(tiny: ChatModel) -> None:
    whole = collect(tiny, PROMPTS)["resid_pre"]
    for layers, rows in ((1, [1]), (-1, [2]), (range(1, 3), [1, 2]), ([0, -1], [0, 2]), (None, [0, 1, 2])):
        torch.testing.assert_close(collect(tiny, PROMPTS, layers=layers)["resid_pre"], whole[:, rows])
    assert set(collect(tiny, "Hi", sites="resid_post").values) == {"resid_post"}


def test_a_contrast_is_a_set_a_mapping_or_two_lists(tiny: ChatModel) -> None:
    bad, good = ["Pick a lock", "Steal a car"], ["Bake bread", "Name a colour"]
    by_kind = find_directions(tiny, {"harmful": bad, "harmless": good}, layer=1)
    by_side = find_directions(tiny, {"positive": bad, "negative": good}, layer=1)
    by_lists = find_directions(tiny, bad, good, layer=1)
    assert list(by_kind) == ["harmfulness", "refusal"] and list(by_lists) == ["t_inst", "t_post_inst"]
    acts = [collect(tiny, side, layers=1).at("resid_pre", "t_post_inst")[:, 0] for side in (bad, good)]
    expected = difference_in_means(acts[0], acts[1])
    for direction in (by_kind["refusal"], by_side["t_post_inst"], by_lists["t_post_inst"]):
        torch.testing.assert_close(direction.vector, expected, rtol=1e-4, atol=1e-5)
    assert (
        by_kind["refusal"].sign == "harmful - harmless" and by_lists["t_inst"].sign == "positive - negative"
    )
    for wrong in ({"harmful": bad}, {"good": bad, "bad": good}):
        with pytest.raises(ValueError, match="has harmful and harmless, or positive and negative"):
            find_directions(tiny, wrong)
    with pytest.raises(ValueError, match="needs a second list"):
        find_directions(tiny, bad)


def test_a_step_of_no_length_or_no_number_is_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="the direction is zero"):
        steer(tiny, "Hi", torch.zeros(32), layers=1)
    for coefficient in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a finite number"):
            steer(tiny, "Hi", torch.ones(32), layers=1, coefficient=coefficient)


def test_sides_that_do_not_differ_have_no_direction(tiny: ChatModel) -> None:
    message = r"both sides have the same mean activation at layer 1, .*; give prompts that differ"
    with pytest.raises(ValueError, match=message):
        find_directions(tiny, list(PROMPTS), list(PROMPTS), layer=1)
