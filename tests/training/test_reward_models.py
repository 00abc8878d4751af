"""Reward models: Bradley-Terry by hand, the head's parts, per-token readings, files, and the views by layer."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.data.preferences import PreferencePair, PreferenceSet
from interp.data.prompt_sets import PromptSet
from interp.data.prompts import load_prompts
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.training.reward_files import load_reward_model
from interp.training.reward_models import (
    RewardModelConfig,
    bradley_terry_loss,
    fit_bradley_terry,
    pair_tokens,
    reply_ids,
    with_replies,
)
from interp.training.reward_trainer import SequenceReward, train_reward_model
from interp.training.reward_views import reward_by_layer, reward_cosines
from tests.conftest import make_tokenizer, tiny_config

SUBJECTS = ("bread", "rain", "tea", "a lamp", "the sea", "a door", "salt", "wood", "ink", "glass")


def planted(n_train: int = 40, n_test: int = 30) -> PreferenceSet:
    """Replies that end in `!` are preferred, whatever else they say."""
    sides: dict[str, list[PreferencePair]] = {"train": [], "test": []}
    for i in range(n_train + n_test):
        split = "train" if i < n_train else "test"
        word = SUBJECTS[i % 10]
        sides[split].append(
            PreferencePair(id=str(i), prompt=f"Tell me {i} of {word}", chosen=f"{word}!", rejected=f"{word}?")
        )
    return PreferenceSet(name="planted", parts={"train": tuple(sides["train"]), "test": tuple(sides["test"])})


@pytest.fixture(scope="module")
def preferences() -> PreferenceSet:
    return planted()


# Bradley and Terry by hand


def test_the_loss_is_ln_2_at_equal_rewards_and_blind_to_a_constant_per_prompt() -> None:
    equal = torch.tensor([0.3, -2.0, 5.0])
    assert bradley_terry_loss(equal, equal).item() == pytest.approx(math.log(2))
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(by_hand)
    constant = torch.tensor([7.0, -3.0])
    assert bradley_terry_loss(chosen + constant, rejected + constant).item() == pytest.approx(
        by_hand, abs=1e-6
    )


def test_the_fit_is_the_log_odds_where_there_is_one_feature() -> None:
    """30 of 40 pairs prefer the reply with the feature: sigmoid(w) = 0.75 at the optimum."""
    differences = torch.cat([torch.ones(30, 1), -torch.ones(10, 1)])
    assert fit_bradley_terry(differences, penalty=0).item() == pytest.approx(math.log(3), rel=1e-4)
    assert 0 < fit_bradley_terry(differences, penalty=1.0).item() < 0.5 * math.log(3)  # a penalty shrinks it
    scaled = fit_bradley_terry(10 * differences, penalty=1.0, scale=torch.tensor([10.0]))
    assert 10 * scaled.item() == pytest.approx(fit_bradley_terry(differences, penalty=1.0).item(), rel=1e-4)
    with pytest.raises(ValueError, match="finite states of pairs, got 1"):
        fit_bradley_terry(torch.full((1, 1), math.nan), penalty=0)


# The head


def test_a_head_finds_what_was_planted_and_references_score_zero(
    tiny: ChatModel, preferences: PreferenceSet, tmp_path: Path
) -> None:
    before = tiny.weights_hash
    reward = train_reward_model(tiny, preferences, out=tmp_path / "reward")
    found = reward.accuracy(preferences["test"])
    assert found.value > 0.9 and found.n == 30 and found.low > 0.5
    assert reward.about["accuracy"]["value"] == found.value
    chosen = reward.score([p.prompt for p in preferences["train"]], [p.chosen for p in preferences["train"]])
    assert chosen.mean().item() == pytest.approx(0, abs=1e-4)
    flipped = [
        PreferencePair(id=p.id, prompt=p.prompt, chosen=p.rejected, rejected=p.chosen)
        for p in preferences["test"]
    ]
    assert reward.accuracy(flipped).value == pytest.approx(1 - found.value)  # control
    assert tiny.weights_hash == before
    again = load_reward_model(tmp_path / "reward", model=tiny)
    prompts, replies = ["Name a colour", "Hi"], ["red!", "hello there?"]
    assert torch.equal(again.score(prompts, replies), reward.score(prompts, replies))
    assert again.direction.vector.equal(reward.weight)
    # As ids, a reply without an end is scored where it stops.
    ids = reply_ids(tiny, replies)
    assert torch.allclose(reward.score(prompts, ids), reward.score(prompts, replies))
    assert not torch.allclose(reward.score(prompts, [row[:-1] for row in ids]), reward.score(prompts, ids))


def test_rewards_at_every_prefix_are_those_of_the_prefixes_alone(
    tiny: ChatModel, preferences: PreferenceSet
) -> None:
    reward = train_reward_model(tiny, preferences)
    prompts, replies = ["Name a colour", "Hi"], ["red!", "hello"]
    ids = reply_ids(tiny, replies)
    found = reward.per_token(prompts, replies)
    for row in range(2):
        assert len(found[row]) == len(ids[row]) + 1
        for length in (0, 1, 3, len(ids[row])):
            alone = reward.score([prompts[row]], [ids[row][:length]])[0]
            assert found[row][length].item() == pytest.approx(
                alone.item(), abs=1e-4
            )  # float32, other padding
    assert found[0].std() > 1e-3  # control: they differ


def test_an_adapter_is_trained_by_trl_stored_and_loaded(
    tiny: ChatModel, preferences: PreferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then
    before = tiny.weights_hash
    config = RewardModelConfig(method="lora", batch_size=8, learning_rate=1e-2, epochs=2, rank=2)
    reward = train_reward_model(tiny, preferences, config=config, out=tmp_path / "reward")
    assert tiny.weights_hash == before != reward.model.weights_hash
    assert reward.accuracy(preferences["test"]).value > 0.8
    again = load_reward_model(tmp_path / "reward", model=tiny)
    assert torch.equal(again.score(["Hi"], ["yes!"]), reward.score(["Hi"], ["yes!"]))
    # The head of a frozen model is another one: control.
    assert not torch.equal(
        train_reward_model(tiny, preferences).score(["Hi"], ["yes!"]), reward.score(["Hi"], ["yes!"])
    )
    with pytest.raises(ValueError, match="is kept in a folder; give out="):
        train_reward_model(tiny, preferences, config=config)
    # Damage and other models.
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "reward", broken)
    data = bytearray((broken / "head.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "head.safetensors").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"head.safetensors is missing or damaged; train the reward model again"
    ):
        load_reward_model(broken, model=tiny)
    text = (broken / "reward.json").read_text()
    (broken / "reward.json").write_text(text.replace('"bias": ', '"bias": 1'))
    with pytest.raises(ValueError, match="is damaged"):
        load_reward_model(broken, model=tiny)


def test_a_killed_training_continues_to_the_same_weights(
    tiny: ChatModel, preferences: PreferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then
    config = RewardModelConfig(method="lora", batch_size=8, learning_rate=1e-2, epochs=2, rank=2)
    whole = train_reward_model(tiny, preferences, config=config, out=tmp_path / "whole")
    steps: list[int] = []
    forward = SequenceReward.forward

    def killed(module: SequenceReward, *given: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 8:  # in the second pass over the pairs
            raise KeyboardInterrupt
        return forward(module, *given, **named)

    monkeypatch.setattr(SequenceReward, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(tiny, preferences, config=config, out=tmp_path / "cut")
    state = tmp_path / "cut.parts" / "checkpoint-7"
    assert (state / "complete").is_file()
    assert (state / "trained.safetensors").stat().st_size < 100_000  # no base model in it
    again = train_reward_model(tiny, preferences, config=config, out=tmp_path / "cut")
    assert len(steps) == 8 + 3 and not state.parent.exists()
    assert torch.equal(again.weight, whole.weight) and again.bias == whole.bias
    assert again.model.weights_hash == whole.model.weights_hash != tiny.weights_hash


def test_parts_of_a_batch_that_needs_too_much_memory_give_the_same_weights(
    tiny: ChatModel, preferences: PreferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then
    config = RewardModelConfig(method="lora", batch_size=8, learning_rate=1e-2, epochs=1, rank=2)
    whole = train_reward_model(tiny, preferences, config=config, out=tmp_path / "whole")
    forward = SequenceReward.forward
    rows: list[int] = []

    def little(
        module: SequenceReward, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> Any:
        if len(input_ids) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rows.append(len(input_ids))
        return forward(module, input_ids, attention_mask)

    monkeypatch.setattr(SequenceReward, "forward", little)
    parts = train_reward_model(tiny, preferences, config=config, out=tmp_path / "parts")
    assert set(rows) == {4}  # two pairs
    assert (
        torch.allclose(parts.weight, whole.weight, rtol=1e-3, atol=1e-5) and whole.weight.abs().max() > 1e-3
    )


def test_a_loss_that_is_not_a_number_is_named(
    tiny: ChatModel, preferences: PreferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then
    config = RewardModelConfig(method="lora", batch_size=8, learning_rate=1e38, rank=2)
    with pytest.raises(
        ValueError, match=r"the loss is not a number at step \d; take a smaller learning rate"
    ):
        train_reward_model(tiny, preferences, config=config, out=tmp_path / "nan")
    assert not (tmp_path / "nan" / "reward.json").exists()


def test_another_tokenizer_and_other_weights_are_refused(
    tiny: ChatModel, preferences: PreferenceSet, tmp_path: Path
) -> None:
    reward = train_reward_model(tiny, preferences, out=tmp_path / "reward")
    hf = AutoModelForCausalLM.from_config(tiny_config())
    special = make_tokenizer(special=("<|endoftext|>", "<|im_start|>", "<|other|>", "<|im_end|>"))
    stranger = ChatModel(hf, special, name="stranger")
    with pytest.raises(
        ValueError, match="stranger has another tokenizer; train the reward model again on it"
    ):
        load_reward_model(tmp_path / "reward", model=stranger)
    with pytest.raises(ValueError, match="whose tokenizer is not that of stranger"):
        reward.check_tokenizer(stranger)
    with pytest.raises(ValueError, match="not of tiny's tokenizer"):
        reward.score(tokenize(special, ["Hi"]), ["yes"])
    with pytest.raises(ValueError, match="other weights or another chat template than other has now"):
        load_reward_model(tmp_path / "reward", model=ChatModel(hf, tiny.tokenizer, name="other"))
    with pytest.raises(ValueError, match="got 1 replies for 2 prompts"):
        reward.score(["Hi", "Ho"], ["yes"])


def test_pairs_that_are_equal_once_cut_are_refused(tiny: ChatModel) -> None:
    pair = PreferencePair(id="long", prompt="p", chosen="abcdefg", rejected="abcdefh")
    assert pair_tokens(tiny, [pair], 8)[0].ids != pair_tokens(tiny, [pair], 8)[1].ids
    with pytest.raises(ValueError, match="pair long: both replies begin with the same 6 tokens"):
        pair_tokens(tiny, [pair], 6)


def test_replies_are_prefilled_turns(tiny: ChatModel) -> None:
    tokens = tokenize(tiny.tokenizer, ["Hi"])
    joined = with_replies(tokens, [[1, 2]])
    assert joined.ids[0] == (*tokens.ids[0], 1, 2)
    assert (
        joined.index(0, "t_post_inst") == len(tokens.ids[0]) - 1
        and joined.index(0, "t_prefill") == len(joined.ids[0]) - 1
    )


# The view by layer


def test_the_reward_is_found_by_layer_and_a_shuffled_one_is_not(
    tiny: ChatModel, preferences: PreferenceSet
) -> None:
    rows = reward_by_layer(tiny, preferences)
    assert [row.layer for row in rows] == [0, 1, 2]
    assert max(row.accuracy.value for row in rows) > 0.9
    assert min(row.shuffled.value for row in rows) < 0.8
    # The last layer's states, normed, are those of a reward model: same order of most pairs.
    assert rows[-1].head.layer == 2 and rows[-1].head.kind == "reward_head"
    prompts = load_prompts("builtin")
    small = PromptSet("small", {key: part.first(8) for key, part in prompts.parts.items()})
    found = reward_cosines(tiny, rows, small)
    assert len(found) == 3 and found[0].random == pytest.approx(1.96 / 32**0.5)
    for row in found:
        for value in (row.harmfulness, row.refusal, row.difference_harmfulness, row.difference_refusal):
            assert -1 <= value <= 1
    assert len({round(row.refusal, 6) for row in found}) == 3
