"""PPO and DR-PO: resets, masks, a bandit with a closed-form optimum, resuming, collapse and what is refused."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import TrainerCallback

from interp.data.preferences import PreferenceSet
from interp.engine.generation import generate, stream
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize
from interp.training.policy_config import PolicyConfig
from interp.training.policy_models import policy_in_training
from interp.training.policy_optimisation import optimise_policy
from interp.training.policy_updates import Targets, outputs_of, padded, ppo_steps
from interp.training.reward_models import reply_ids, with_replies
from interp.training.reward_trainer import train_reward_model
from interp.training.rollouts import Rollouts, draw_resets, roll_out
from tests.conftest import PROMPTS
from tests.training.test_reward_models import planted

QUICK = PolicyConfig(
    updates=3,
    rollouts=8,
    epochs=2,
    minibatches=2,
    micro_batch=8,
    learning_rate=2e-3,
    max_new_tokens=6,
    temperature=1.0,
    rank=2,
    save_every=1,
)
REFERENCES = ["yes, so", "no.", "a long answer", "b", "of course", "rain!"]


def vowels(_: ChatTokens, answers: Sequence[Sequence[int]]) -> Tensor:
    """Share of five byte tokens in an answer."""
    return torch.tensor([sum(token % 60 < 12 for token in answer) / len(answer) for answer in answers])


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# Resets


def test_cuts_are_uniform_and_beta_1_resets_every_reference_of_two_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = list(range(100, 153))  # 53 tokens, as in the paper
    found = draw_resets([reference] * 20_000, share=1.0, generator=generator)
    lengths = torch.tensor([len(prefix) for prefix in found])
    assert lengths.min() == 1 and lengths.max() == 52
    # SD of the mean: 15 / sqrt(20000) = 0.11; of a count: sqrt(20000 / 52) = 20.
    assert lengths.double().mean().item() == pytest.approx(26.5, abs=0.4)
    counts = torch.bincount(lengths, minlength=53)[1:]
    assert (counts - 20_000 / 52).abs().max() < 5 * 20
    assert all(list(prefix) == reference[: len(prefix)] for prefix in found)
    assert draw_resets([[5], [], [5, 6]], share=1.0, generator=generator) == [(), (), (5,)]
    half = draw_resets([reference] * 4000, share=0.25, generator=generator)
    assert sum(map(bool, half)) / 4000 == pytest.approx(0.25, abs=0.04)
    assert not any(draw_resets([reference] * 50, share=0.0, generator=generator))


def test_a_reset_prefix_and_forced_tokens_give_the_same_logits(tiny: ChatModel) -> None:
    prompt, forced = "Write a poem", reply_ids(tiny, ["green"])[0][:4]
    start = len(tokenize(tiny.tokenizer, [prompt]).ids[0])

    def force(so_far: Any, logits: Tensor) -> Tensor:
        place = len(so_far[0]) - start
        if place >= len(forced):
            return logits
        only = torch.full_like(logits, -torch.inf)
        only[:, forced[place]] = 0
        return only

    steps = list(stream(tiny, [prompt], max_new_tokens=5, processors=[force]))
    assert [step.ids[0] for step in steps[:4]] == forced
    fed = with_replies(tokenize(tiny.tokenizer, [prompt]), [forced])
    assert torch.allclose(steps[4].logits.log_softmax(-1), next_token_log_probs(tiny, fed), atol=1e-4)


def test_rollouts_hold_their_prefix_and_keep_to_their_length(tiny: ChatModel) -> None:
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    prefixes = [(), (70,), (71, 72), (), (73, 74, 75, 76), (77,)]
    found = roll_out(tiny, tokens, prefixes, max_new_tokens=5, temperature=1.0, seed=3)
    for answer, prefix, forced, finished in zip(
        found.answers, prefixes, found.forced, found.finished, strict=True
    ):
        assert answer[:forced] == prefix and forced == len(prefix)
        assert len(answer) == 5 or (finished and len(answer) < 5)
        assert len(answer) > forced
    # Without resets they are the engine's samples, to the token.
    plain = roll_out(tiny, tokens, [()] * 6, max_new_tokens=5, temperature=0.7, seed=3)
    assert plain.answers == generate(tiny, tokens, max_new_tokens=5, temperature=0.7, seed=3).ids
    with pytest.raises(ValueError, match="a reset prefix of 5 tokens leaves nothing of 5 to generate"):
        roll_out(tiny, tokens, [(1,) * 5] * 6, max_new_tokens=5, temperature=1.0, seed=0)


# Updates


def one_batch(tiny: ChatModel) -> tuple[Any, Rollouts, Any]:
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    rollouts = roll_out(tiny, tokens, [(70, 71)] * 6, max_new_tokens=5, temperature=1.0, seed=0)
    return tokens, rollouts, padded(rollouts, padding=256, device=tiny.device)


def targets_of(network: Any, batch: Any, **changes: Any) -> Targets:
    old = outputs_of(network, batch, 6)
    present = batch.answers >= 0
    advantages = torch.randn(present.shape, generator=torch.Generator().manual_seed(0)) * present
    given: dict[str, Any] = {
        "old": old,
        "advantages": advantages,
        "returns": advantages,
        "policy_mask": present,
        "value_mask": present,
    }
    return Targets(**{**given, **changes})


def gradients(network: Any, batch: Any, targets: Targets, **settings: Any) -> list[Tensor]:
    """Gradients of one minibatch, as an optimiser without a step would see them."""
    kept: list[Tensor] = []

    class Keeps(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # noqa: ARG002 (the optimiser's signature)
            kept.extend(
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for group in self.param_groups
                for p in group["params"]
            )

    trained = [p for p in network.parameters() if p.requires_grad]
    options = {"clip": 0.2, "value_clip": 0.2, "value_coefficient": 0.1, "micro_batch": 6, **settings}
    ppo_steps(network, Keeps(trained, lr=0.0), batch, targets, [torch.arange(6)], **options)
    return kept


def test_forced_positions_have_no_policy_gradient_and_log_probs_are_the_models(tiny: ChatModel) -> None:
    with policy_in_training(tiny, QUICK, None) as policy:
        for name, parameter in policy.network.named_parameters():
            if "lora_B" in name:  # an untrained adapter has gradients in one of its matrices only
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        _, rollouts, batch = one_batch(tiny)
        found = outputs_of(policy.network, batch, 4)
        live = policy.live.refreshed()
        first = next_token_log_probs(live, rollouts.prompts)
        taken = first.gather(1, torch.tensor([[answer[0]] for answer in rollouts.answers]))[:, 0]
        assert torch.allclose(found.log_probs[:, 0], taken, atol=1e-4)  # the merged twin, other padding
        reference = outputs_of(policy.reference, batch, 4)
        plain = next_token_log_probs(tiny, rollouts.prompts)
        assert torch.allclose(
            reference.log_probs[:, 0], plain.gather(1, batch.answers[:, :1])[:, 0], atol=1e-4
        )
        assert not torch.allclose(found.log_probs, reference.log_probs, atol=1e-3)  # control
        nothing = torch.zeros_like(batch.answers, dtype=torch.bool)
        masked = gradients(
            policy.network,
            batch,
            targets_of(policy.network, batch, policy_mask=nothing),
            value_coefficient=0.0,
        )
        assert all(float(g.abs().max()) == 0 for g in masked)
        free = gradients(policy.network, batch, targets_of(policy.network, batch), value_coefficient=0.0)
        assert max(float(g.abs().max()) for g in free) > 1e-4  # control


def test_micro_batches_and_running_out_of_memory_leave_gradients_as_they_are(
    tiny: ChatModel, caplog: pytest.LogCaptureFixture
) -> None:
    with policy_in_training(tiny, QUICK, None) as policy:
        _, _, batch = one_batch(tiny)
        targets = targets_of(policy.network, batch)
        whole = gradients(policy.network, batch, targets)
        small = gradients(policy.network, batch, targets, micro_batch=2)

        class Full(type(policy.network)):
            """Takes two rows at most, as a card with little memory."""

            def forward(self, ids: Tensor, *rest: Tensor) -> Any:
                if len(ids) > 2:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return super().forward(ids, *rest)

        policy.network.__class__ = Full
        with caplog.at_level(logging.WARNING, logger="interp"):
            squeezed = gradients(policy.network, batch, targets)
    for other in (small, squeezed):
        for one, two in zip(whole, other, strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)
    for size in (3, 1):
        assert f"going on with micro-batches of {size} (same gradients)" in caplog.text


def test_a_bandit_reaches_its_closed_form_optimum(tiny: ChatModel, tmp_path: Path) -> None:
    """One token, KL price lambda: the optimum is pi_ref exp(r / lambda), and J* = lambda log E_ref exp(r / lambda)."""
    price = 0.4
    table = torch.zeros(tiny.d_vocab)
    table[65:75] = 1.0
    table[75:95] = 0.5
    prompt = ["Hi"]
    before = next_token_log_probs(tiny, prompt)[0].double()
    optimum = (before + table.double() / price).log_softmax(-1)
    best = price * torch.logsumexp(before + table.double() / price, -1).item()

    def objective(log_probs: Tensor) -> float:
        return float((log_probs.exp() * (table.double() - price * (log_probs - before))).sum())

    assert objective(optimum) == pytest.approx(best, abs=1e-6)
    config = PolicyConfig(
        method="full",
        updates=24,
        rollouts=128,
        epochs=4,
        micro_batch=128,
        learning_rate=4e-3,
        kl_coefficient=price,
        max_new_tokens=1,
        temperature=1.0,
        missing_end_score=None,
        max_kl=50,
        max_empty=1.0,
        whiten_rewards=False,
    )
    done = optimise_policy(
        tiny,
        prompt,
        lambda _, answers: table[[a[0] for a in answers]],
        out=tmp_path / "bandit",
        config=config,
    )
    after = next_token_log_probs(load(str(done.folder)), prompt)[0].double()
    start, end = objective(before), objective(after)
    assert best - end < 0.15 * (best - start)  # 128 samples an update leave this much noise
    distance = 0.5 * (after.exp() - optimum.exp()).abs().sum().item()
    assert distance < 0.4 * 0.5 * (before.exp() - optimum.exp()).abs().sum().item()
    assert done.records[-1].reward > done.records[0].reward + 0.1
    assert done.collapsed is None and done.records[-1].tokens == 24 * 128


# Runs


def test_beta_0_is_ppo_to_the_bit_and_beta_1_is_not(tiny: ChatModel, tmp_path: Path) -> None:
    before = tiny.weights_hash
    plain = optimise_policy(tiny, PROMPTS, vowels, out=tmp_path / "ppo", config=QUICK)
    zero = optimise_policy(
        tiny, PROMPTS, vowels, out=tmp_path / "zero", config=replace(QUICK, beta=0.0), references=REFERENCES
    )
    assert equal(adapter(plain.folder), adapter(zero.folder)) and plain.records == zero.records
    reset = optimise_policy(
        tiny, PROMPTS, vowels, out=tmp_path / "one", config=replace(QUICK, beta=1.0), references=REFERENCES
    )
    assert not equal(adapter(plain.folder), adapter(reset.folder))
    assert all(
        record.reset_share == 1 for record in reset.records
    )  # every reference has two tokens with its end
    assert plain.records[0].reset_share == 0 and plain.records[0].kl == 0
    everywhere = optimise_policy(
        tiny,
        PROMPTS,
        vowels,
        out=tmp_path / "all",
        config=replace(QUICK, beta=1.0, forced="everywhere"),
        references=REFERENCES,
    )
    assert not equal(adapter(everywhere.folder), adapter(reset.folder))
    assert tiny.weights_hash == before
    loaded = optimise_policy(tiny, PROMPTS, vowels, out=tmp_path / "ppo", config=QUICK)
    assert loaded == plain  # read, not trained again
    # The stored adapter is the policy: another stage starts where this one ended.
    later = optimise_policy(tiny, PROMPTS, vowels, out=tmp_path / "later", config=QUICK, start=plain.folder)
    assert later.records[0].kl == pytest.approx(0, abs=1e-5)
    assert not equal(adapter(later.folder), adapter(plain.folder))


class Killed(Exception):
    pass


def killed_at(call: int) -> Callable[..., Tensor]:
    calls = [0]

    def reward(prompts: ChatTokens, answers: Sequence[Sequence[int]]) -> Tensor:
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return vowels(prompts, answers)

    return reward


def test_a_killed_run_continues_to_the_same_weights(tiny: ChatModel, tmp_path: Path) -> None:
    config = replace(QUICK, beta=0.5, updates=4)
    whole = optimise_policy(
        tiny, PROMPTS, vowels, out=tmp_path / "whole", config=config, references=REFERENCES
    )
    with pytest.raises(Killed):
        optimise_policy(
            tiny, PROMPTS, killed_at(3), out=tmp_path / "cut", config=config, references=REFERENCES
        )
    assert not (tmp_path / "cut").exists() and (tmp_path / "cut.parts").is_dir()
    again = optimise_policy(tiny, PROMPTS, vowels, out=tmp_path / "cut", config=config, references=REFERENCES)
    assert again.records == whole.records and equal(adapter(again.folder), adapter(whole.folder))
    assert not (tmp_path / "cut.parts").exists()


class StopAt(TrainerCallback):
    """Asks to stop after so many updates."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        control.should_training_stop = state.global_step >= self.step


def test_a_callback_may_ask_to_stop(tiny: ChatModel, tmp_path: Path) -> None:
    done = optimise_policy(tiny, PROMPTS, vowels, out=tmp_path / "run", config=QUICK, callbacks=[StopAt(2)])
    assert len(done.records) == 2 < QUICK.updates and done.collapsed is None


def test_collapse_stops_a_run_and_says_why(
    tiny: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(QUICK, updates=30, learning_rate=5e-2, max_kl=0.5, kl_coefficient=0.0)
    done = optimise_policy(tiny, PROMPTS, vowels, out=tmp_path / "kl", config=config)
    assert done.collapsed is not None and len(done.records) < 30
    assert "KL beyond 0.5 nats an answer (reward" in done.collapsed and done.collapsed in caplog.text
    assert (
        optimise_policy(tiny, PROMPTS, vowels, out=tmp_path / "kl", config=config).collapsed == done.collapsed
    )
    end = tiny.tokenizer.eos_token_id
    empty = optimise_policy(
        tiny,
        PROMPTS,
        lambda _, answers: torch.tensor([5.0 * (answer[0] == end) for answer in answers]),
        out=tmp_path / "empty",
        config=replace(
            config, updates=40, rollouts=32, micro_batch=32, max_kl=1e9, max_empty=0.2, learning_rate=5e-2
        ),
    )
    assert empty.collapsed is not None and "more than 20% of answers are empty" in empty.collapsed


def test_trackers_get_rewards_kl_entropy_clipping_and_length(tiny: ChatModel, tmp_path: Path) -> None:
    out = tmp_path / "logged"
    done = optimise_policy(tiny, PROMPTS, vowels, out=out, config=QUICK, report_to=["tensorboard"])
    (folder,) = {path.parent for path in out.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    for name in ("reward", "kl", "entropy", "clip_share", "length"):
        values = events.Scalars(f"train/policy/{name}")
        assert [event.step for event in values] == [1, 2, 3]
        expected = [getattr(record, name) for record in done.records]
        assert [event.value for event in values] == pytest.approx(expected, abs=1e-6)


def test_a_reward_model_and_its_value_head_are_used(tiny: ChatModel, tmp_path: Path) -> None:
    preferences: PreferenceSet = planted()
    reward = train_reward_model(tiny, preferences)
    done = optimise_policy(
        tiny,
        preferences.prompts("train"),
        reward,
        out=tmp_path / "rm",
        config=replace(QUICK, updates=1, missing_end_score=None),
        value_head=reward,
    )
    other = optimise_policy(
        tiny,
        preferences.prompts("train"),
        reward,
        out=tmp_path / "zero",
        config=replace(QUICK, updates=1, missing_end_score=None),
    )
    assert done.records[0].reward == other.records[0].reward != 0
    assert done.records[0].value_loss != other.records[0].value_loss


def test_what_cannot_be_trained_is_refused(tiny: ChatModel, tmp_path: Path) -> None:
    def go(reward: Any = vowels, **further: Any) -> None:
        config = replace(QUICK, **further.pop("config", {}))
        optimise_policy(tiny, PROMPTS, reward, out=tmp_path / "x", config=config, **further)

    with pytest.raises(ValueError, match=r"beta is 0.5: resets need references"):
        go(config={"beta": 0.5})
    with pytest.raises(ValueError, match="got 1 references for 6 prompts"):
        go(config={"beta": 0.5}, references=["a"])
    with pytest.raises(ValueError, match="the reward must be one finite number an answer"):
        go(lambda _, answers: torch.full((len(answers),), torch.nan))
    with pytest.raises(ValueError, match="continues no adapter"):
        go(config={"method": "full"}, start=tmp_path)
    with pytest.raises(ValueError, match="the losses are not numbers"):
        go(config={"learning_rate": 1e30, "updates": 5, "max_kl": 1e30})
    with pytest.raises(ValueError, match="beta must be 1 or less"):
        PolicyConfig(beta=1.5)
