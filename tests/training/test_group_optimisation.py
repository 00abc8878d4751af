"""GRPO with resets: one prefix a group, masked from the loss, and a collapse that stops it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from interp.models.adapted_models import copy_with_weights
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.training import group_optimisation
from interp.training.group_optimisation import optimise_groups
from interp.training.rollouts import roll_out, sampled_kl
from tests.conftest import PROMPTS
from tests.training.test_policy_optimisation import (
    QUICK,
    REFERENCES,
    Killed,
    adapter,
    equal,
    killed_at,
    vowels,
)


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then


def test_groups_share_a_reset_that_has_no_gradient(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.weights_hash
    batches: list[dict[str, Any]] = []
    scored: list[Sequence[Sequence[int]]] = []
    gradients: list[float] = []
    build = group_optimisation._trainer

    def watched(*given: Any) -> Any:
        trainer = build(*given)
        inner, loss = trainer._generate_and_score_completions, trainer._compute_loss

        def largest(model: Any, inputs: dict[str, Any]) -> float:
            weights = [p for p in model.parameters() if p.requires_grad]
            found = torch.autograd.grad(loss(model, inputs), weights, allow_unused=True)
            return max(0.0 if g is None else float(g.abs().max()) for g in found)

        def checked(model: Any, inputs: dict[str, Any]) -> Tensor:
            if not gradients:
                nothing = torch.zeros_like(inputs["tool_mask"])
                gradients.append(largest(model, {**inputs, "tool_mask": nothing}))
                gradients.append(largest(model, inputs))
            return loss(model, inputs)

        trainer._compute_loss = checked

        def keep(inputs: Any) -> Any:
            batches.append(inner(inputs))
            return batches[-1]

        trainer._generate_and_score_completions = keep
        return trainer

    def reward(prompts: ChatTokens, answers: Sequence[Sequence[int]]) -> Tensor:
        scored.append(answers)
        return vowels(prompts, answers)

    monkeypatch.setattr(group_optimisation, "_trainer", watched)
    config = replace(QUICK, beta=1.0, epochs=1, updates=2, missing_end_score=None)
    done = optimise_groups(
        tiny, PROMPTS, reward, out=tmp_path / "reset", config=config, group=4, references=REFERENCES
    )
    assert tiny.weights_hash == before and len(done.records) == 2
    assert all(record.reset_share == 1 for record in done.records)
    for answers in scored:
        for start in range(0, 8, 4):
            assert len({answer[0] for answer in answers[start : start + 4]}) == 1  # forced, one for all
    mask = batches[0]["tool_mask"]
    assert (mask[:, 0] == 0).all() and mask.sum() > 0
    assert (mask.diff(dim=1)[:, :1] >= 0).all()  # a prefix of zeros
    masked, free = gradients
    assert masked == 0 < free  # with every token masked, and with the mask as it was
    plain = optimise_groups(
        tiny, PROMPTS, vowels, out=tmp_path / "plain", config=replace(config, beta=0.0), group=4
    )
    assert plain.records[0].reset_share == 0
    assert not equal(adapter(plain.folder), adapter(done.folder))
    again = optimise_groups(
        tiny, PROMPTS, vowels, out=tmp_path / "plain", config=replace(config, beta=0.0), group=4
    )
    assert [r.reward for r in again.records] == [r.reward for r in plain.records]  # read


def test_what_cannot_be_grouped_is_refused(tiny: ChatModel, tmp_path: Path) -> None:
    callbacks: list[TrainerCallback] = []
    with pytest.raises(ValueError, match="multiple of the group, 2 or more, got 8 and 3"):
        optimise_groups(tiny, PROMPTS, vowels, out=tmp_path, config=QUICK, group=3, callbacks=callbacks)
    with pytest.raises(ValueError, match="resets need references"):
        optimise_groups(tiny, PROMPTS, vowels, out=tmp_path, config=replace(QUICK, beta=1.0), group=4)
    with pytest.raises(ValueError, match="got 1 references for 6 prompts"):
        optimise_groups(tiny, PROMPTS, vowels, out=tmp_path, config=QUICK, group=4, references=["a"])
    assert not list(tmp_path.iterdir())  # before work starts


def test_rewards_and_losses_that_are_not_numbers_stop_the_run(tiny: ChatModel, tmp_path: Path) -> None:
    def reward(prompts: ChatTokens, answers: Sequence[Sequence[int]]) -> Tensor:
        return vowels(prompts, answers) * float("nan")

    config = replace(QUICK, missing_end_score=None, epochs=2)
    with pytest.raises(ValueError, match="the reward must be one finite number an answer"):
        optimise_groups(tiny, PROMPTS, reward, out=tmp_path / "nan", config=config, group=4)
    config = replace(config, learning_rate=1e30)
    with pytest.raises(ValueError, match="the loss is not a number at step 2; take a smaller learning rate"):
        optimise_groups(tiny, PROMPTS, vowels, out=tmp_path / "nan", config=config, group=4)
    assert not (tmp_path / "nan" / "policy.json").exists()


def test_a_killed_run_continues_to_the_same_weights(tiny: ChatModel, tmp_path: Path) -> None:
    """Killed in the third batch, when prompts are drawn a second time; two passes over each batch."""
    config = replace(QUICK, beta=0.5, updates=4, epochs=2, save_every=1)
    given = {"config": config, "group": 2, "references": REFERENCES}
    whole = optimise_groups(tiny, PROMPTS, vowels, out=tmp_path / "whole", **given)
    with pytest.raises(Killed):
        optimise_groups(tiny, PROMPTS, killed_at(3), out=tmp_path / "cut", **given)
    assert (tmp_path / "cut.parts" / "checkpoint-4" / "complete").is_file()
    calls: list[int] = []

    def counted(prompts: ChatTokens, answers: Sequence[Sequence[int]]) -> Tensor:
        calls.append(len(answers))
        return vowels(prompts, answers)

    again = optimise_groups(tiny, PROMPTS, counted, out=tmp_path / "cut", **given)
    assert len(calls) == 2  # what was done before is not done again
    assert [r.tokens for r in again.records] == [r.tokens for r in whole.records]
    assert [r.reward for r in again.records] == [r.reward for r in whole.records]
    assert equal(adapter(again.folder), adapter(whole.folder))
    assert not (tmp_path / "cut.parts").exists()


def test_collapse_stops_a_run_as_it_does_in_ppo(
    tiny: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(
        QUICK, updates=6, epochs=1, learning_rate=0.2, kl_coefficient=0.0, max_kl=0.05, missing_end_score=None
    )
    done = optimise_groups(tiny, PROMPTS, vowels, out=tmp_path / "run", config=config, group=4)
    assert done.collapsed is not None and 1 < len(done.records) < 6
    assert "KL beyond 0.05 nats an answer" in done.collapsed and done.collapsed in caplog.text
    assert done.records[0].kl == pytest.approx(0, abs=1e-4) and done.records[-1].kl > 0.05
    again = optimise_groups(tiny, PROMPTS, vowels, out=tmp_path / "run", config=config, group=4)
    assert again.collapsed == done.collapsed  # read


def test_the_kl_of_a_batch_is_that_of_the_plain_computation(tiny: ChatModel) -> None:
    other = copy_with_weights(
        tiny,
        {name: 1.1 * value for name, value in tiny.hf.named_parameters() if name.endswith("q_proj.weight")},
    )
    tokens = tokenize(tiny.tokenizer, PROMPTS[:3])
    prefixes = [(5, 6), (), (7,)]
    rollouts = roll_out(other, tokens, prefixes, max_new_tokens=5, temperature=0.7, seed=3)
    found = sampled_kl(other, tiny, rollouts, temperature=0.7)
    sums = {"generated": 0.0, "forced": 0.0}
    for prompt, answer, forced in zip(tokens.ids, rollouts.answers, rollouts.forced, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logs = [(m.hf(ids).logits[0] / 0.7).log_softmax(-1) for m in (other, tiny)]
        for place, token in enumerate(answer):
            ratio = float(logs[0][len(prompt) + place - 1, token] - logs[1][len(prompt) + place - 1, token])
            sums["forced" if place < forced else "generated"] += ratio / 3
    assert found.generated == pytest.approx(sums["generated"], abs=1e-4) != 0
    assert found.forced == pytest.approx(sums["forced"], abs=1e-4) != 0
