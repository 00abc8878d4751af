"""SoftSFT: its weights by hand, its gradient, the references it is held to, and what it holds back."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.data.examples import Example
from interp.engine.log_probs import completion_log_probs
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.training import finetune
from interp.training.constrained_loss import constraint_weights
from interp.training.finetune import fine_tune
from tests.conftest import PROMPTS
from tests.training.test_finetune import CONFIG, score


def test_constraint_weights_are_those_of_the_formula() -> None:
    references = torch.full((1, 7), -2.0)
    log_probs = torch.tensor([[-1.0, -1.0, -2.0, -3.0, -1.0, -1.0, -1.0]], requires_grad=True)
    found = constraint_weights(log_probs, references, 0.1)
    # 2 (1 - sigmoid(b gain)), b = 0.5 at the first token, 2 at the next four, 0.1 after.
    by_hand = [
        2 / (1 + math.exp(b * gain))
        for b, gain in ((0.5, 1), (2, 1), (2, 0), (2, -1), (2, 1), (0.1, 1), (0.1, 1))
    ]
    assert found[0].tolist() == pytest.approx(by_hand, abs=1e-6)
    assert by_hand[2] == 1 and by_hand[3] > 1.7 and not found.requires_grad
    assert constraint_weights(log_probs, references, 0.0)[0].tolist() == [1.0] * 7
    sure = constraint_weights(torch.zeros(1, 2), torch.full((1, 2), -50.0), 0.1)
    assert sure[0].tolist() == pytest.approx([1e-3, 1e-3])  # the lower bound


def test_the_constrained_loss_has_the_gradient_of_the_published_one() -> None:
    """Of -(2 / b_t) log sigmoid(b_t (log p - log p_ref)), the loss of Qi et al. 2024, section 4."""
    generator = torch.Generator().manual_seed(0)
    log_probs, references = (-2 * torch.rand(3, 8, generator=generator) for _ in range(2))
    strength = 0.1 * torch.tensor([5.0, 20, 20, 20, 20, 1, 1, 1])
    one = log_probs.clone().requires_grad_()
    (-(2 / strength) * torch.nn.functional.logsigmoid(strength * (one - references))).sum().backward()
    other = log_probs.clone().requires_grad_()
    (constraint_weights(other, references, 0.1) * -other).sum().backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad, other.grad)


def test_references_are_the_log_probabilities_before_training(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [
        Example(prompt, reply) for prompt, reply in zip(PROMPTS, ("yes", "no, not now", "") * 2, strict=True)
    ]
    calls: list[tuple[Tensor, Tensor]] = []
    plain = finetune.constraint_weights

    def spied(log_probs: Tensor, references: Tensor, constraint: float) -> Tensor:
        calls.append((log_probs.detach().clone(), references.clone()))
        return plain(log_probs, references, constraint)

    monkeypatch.setattr(finetune, "constraint_weights", spied)
    config = replace(CONFIG, constraint=0.1, dropout=0.0, batch_size=6, epochs=3.0)
    fine_tune(tiny, examples, out=tmp_path / "a", config=config)
    ids = [[*tiny.tokenizer(e.completion)["input_ids"], tiny.tokenizer.eos_token_id] for e in examples]  # pyright: ignore[reportGeneralTypeIssues]
    wanted = sorted(float(row.sum()) for row in completion_log_probs(tiny, list(PROMPTS), ids))
    (first, references), _, (last, same) = (
        calls  # whole batches, shuffled; the warm-up's first step has a rate of 0
    )
    assert sorted(references.sum(1).tolist()) == pytest.approx(wanted, abs=1e-4)
    assert sorted(same.sum(1).tolist()) == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(first, references, atol=1e-5, rtol=1e-5)  # a new adapter changes nothing
    assert (last - same).abs().max() > 1e-4  # and the model has moved on


def test_a_constraint_holds_the_first_tokens_back_and_none_is_plain_fine_tuning(
    tiny: ChatModel, tmp_path: Path
) -> None:
    long = [Example(prompt, "yes, and further on") for prompt in PROMPTS * 2]
    config = replace(CONFIG, dropout=0.0, epochs=6.0)
    scores = {}
    for name, constraint in (("plain", 0.0), ("tiny", 1e-9), ("soft", 0.1)):
        trained = fine_tune(tiny, long, out=tmp_path / name, config=replace(config, constraint=constraint))
        with with_adapter(tiny, str(trained.folder)) as model:
            scores[name] = score(model, "yes, "), score(model, "yes, and further on")
    assert scores["tiny"] == pytest.approx(
        scores["plain"], abs=1e-3
    )  # weights of 1, up to rounding in training
    assert scores["soft"][0] < scores["plain"][0] - 0.05
    assert scores["soft"][1] > score(tiny, "yes, and further on") + 0.1  # it still learns
