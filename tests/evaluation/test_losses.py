"""KL and cross-entropy equal those of plain logits."""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from interp.engine.interventions import Ablate
from interp.engine.log_probs import map_completions
from interp.evaluation.losses import cross_entropy, kl_divergence, text_cross_entropy, token_kl
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from tests.conftest import PROMPTS, make_tokenizer
from tests.evaluation.test_refusals import direct_log_probs


def test_kl_divergence() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.9, 0.05, 0.05]])
    assert kl_divergence(p.log(), p.log()).abs().max() == 0
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.05)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(
        expected, abs=2e-5
    )  # eps of 1e-6 over 0.05
    backwards = 0.9 * math.log(0.9 / 0.5) + 0.05 * math.log(0.05 / 0.5) + 0.05 * math.log(0.05 / 1e-6)
    assert kl_divergence(q.log(), p.log()).item() == pytest.approx(backwards, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 50, generator=generator).log_softmax(-1)
    torch.testing.assert_close(
        kl_divergence(a, b).float(),
        torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1),
        rtol=1e-3,  # the published eps
        atol=1e-4,
    )
    assert (kl_divergence(a, b) > 0).all()


def test_token_kl_is_that_of_plain_logits_and_nothing_to_itself(tiny: ChatModel) -> None:
    prompts, completions = PROMPTS[:3], [[10, 20, 30], [40], [50, 60]]
    own = map_completions(tiny, prompts, completions, lambda logs, _: logs.half())
    assert torch.cat(token_kl(tiny, prompts, completions, own)).abs().max() < 1e-4  # float16
    generator = torch.Generator().manual_seed(0)
    other = [torch.randn(len(ids), 300, generator=generator).log_softmax(-1) for ids in completions]
    found = token_kl(tiny, prompts, completions, other)
    for prompt, ids, log_p, kl in zip(prompts, completions, other, found, strict=True):
        start = tokenize(tiny.tokenizer, [prompt]).ids[0]
        log_q = direct_log_probs(tiny, [*start, *ids])[len(start) - 1 : -1].float()
        torch.testing.assert_close(kl, (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-4, atol=1e-4)


def test_cross_entropy_is_weighted_by_tokens(tiny: ChatModel, tokens: ChatTokens) -> None:
    completions = [[65], [66, 67, 68, 69, 70], [], [71, 72], [73] * 12, [1, 2, 3]]
    losses = []
    for ids, completion in zip(tokens.ids, completions, strict=True):
        log_probs = direct_log_probs(tiny, [*ids, *completion])
        losses += [-log_probs[len(ids) - 1 + i, token].item() for i, token in enumerate(completion)]
    found = cross_entropy(tiny, tokens, completions)
    assert found.n == len(losses) == 23
    assert found.value == pytest.approx(sum(losses) / 23, abs=1e-4)
    assert found.low < found.value < found.high
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    ablated = cross_entropy(tiny, tokens, completions, interventions=[Ablate(direction=direction)])
    assert abs(ablated.value - found.value) > 1e-3
    nothing = cross_entropy(tiny, tokens, [[]] * 6)
    assert (nothing.n, math.isnan(nothing.value)) == (0, True)


def window_losses(model: ChatModel, windows: list[list[int]]) -> list[float]:
    losses = []
    for window in windows:
        log_probs = direct_log_probs(model, window)
        losses += [-log_probs[i - 1, window[i]].item() for i in range(1, len(window))]
    return losses


def test_text_cross_entropy_is_that_of_plain_windows(tiny: ChatModel) -> None:
    text = " ".join(PROMPTS)
    ids = tiny.tokenizer(text)["input_ids"]
    for size in (16, 50, len(ids) - 1, 4096):
        windows = [ids[i : i + size] for i in range(0, len(ids), size)]
        losses = window_losses(tiny, windows)
        found = text_cross_entropy(tiny, text, window=size)
        assert found.n == len(losses)
        assert found.value == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    with pytest.raises(ValueError, match="the text has fewer than two tokens"):
        text_cross_entropy(tiny, "a")


def test_text_cross_entropy_starts_windows_with_the_tokenizers_bos(tiny: ChatModel) -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    bos = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    model, text = ChatModel(tiny.hf, tokenizer, name="tiny with BOS"), " ".join(PROMPTS)
    ids = tiny.tokenizer(text)["input_ids"]
    assert tokenizer(text)["input_ids"] == [bos, *ids]
    losses = window_losses(model, [[bos, *ids[i : i + 50]] for i in range(0, len(ids), 50)])
    found = text_cross_entropy(model, text, window=50)
    assert found.n == len(losses) == len(ids)
    assert found.value == pytest.approx(sum(losses) / len(losses), abs=1e-4)
