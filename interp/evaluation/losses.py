"""Side effects of a change to a model: KL divergence from the unmodified model and cross-entropy of text, in nats."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.interventions import Intervention
from interp.engine.log_probs import completion_log_probs, map_completions
from interp.engine.plain_texts import leading_ids
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, PromptInput
from interp.stats import Estimate, ratio_with_interval


def kl_divergence(
    log_p: Float[Tensor, "batch d_vocab"], log_q: Float[Tensor, "batch d_vocab"], *, epsilon: float = 1e-6
) -> Float[Tensor, " batch"]:
    """KL(p || q) in nats per prompt: sum over the vocabulary of p (log(p + eps) - log(q + eps)), in float64.

    Source: Arditi et al. 2024, arXiv:2406.11717, section 2.3 ("kl_score"), p the unmodified model; eps as released.
    """
    p, q = log_p.double().exp(), log_q.double().exp()
    return (p * (torch.log(p + epsilon) - torch.log(q + epsilon))).sum(-1)


class KLFrom:
    """`kl_divergence` from fixed distributions p to many q; terms that depend only on p are computed once.

    Args:
        log_p: log-probabilities of p.
    """

    def __init__(self, log_p: Float[Tensor, "batch d_vocab"], *, epsilon: float = 1e-6) -> None:
        p, self._epsilon = log_p.double().exp(), epsilon
        self._p = p.float()
        self._own = (p * torch.log(p + epsilon)).sum(-1)
        self.lower_bound: Float[Tensor, " batch"] = -torch.log1p(epsilon * (p / (p + epsilon)).sum(-1))
        """Lower bound on the divergence for any q, by Jensen's inequality: slightly below 0 because of epsilon."""

    def __call__(
        self, log_q: Float[Tensor, "row d_vocab"], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """KL(p || q) in nats for the given rows of p."""
        # Terms in float32 and in place, their sum in float64: within 1e-6 of kl_divergence at a tenth of its cost.
        logs = torch.exp(log_q.float()).add_(self._epsilon).log_()
        return self._own[rows] - logs.mul_(self._p[rows]).sum(-1, dtype=torch.float64)


def token_kl(
    model: ChatModel,
    prompts: PromptInput,
    completions: Sequence[Sequence[int]],
    log_p: Sequence[Float[Tensor, "_ d_vocab"]],
) -> list[Float[Tensor, " _"]]:
    """KL(p || model) in nats at every token of given completions, teacher-forced.

    Args:
        log_p: log-probabilities of p at the tokens of each completion; float16 suffices, since they are renormalised.
    """

    def divergence(log_q: Float[Tensor, "token d_vocab"], row: int) -> Float[Tensor, " token"]:
        logs = log_p[row].to(log_q.device).float().log_softmax(-1)  # float16 rounds
        return (logs.exp() * (logs - log_q)).sum(-1)

    return map_completions(model, prompts, completions, divergence)


def cross_entropy(
    model: ChatModel,
    prompts: PromptInput,
    completions: Sequence[Sequence[int]],
    *,
    interventions: Sequence[Intervention] = (),
) -> Estimate:
    """Token-weighted mean cross-entropy of completions, in nats per token, with a bootstrap interval over prompts.

    Sums over completion tokens only, then divides by their number (Arditi et al. 2024, appendix G.3); exp of it is the
    perplexity. Comparable between models only when they share a tokenizer.
    """
    scores = completion_log_probs(model, prompts, completions, interventions=interventions)
    sums = np.array([-float(s.double().sum()) for s in scores if len(s)])
    counts = np.array([len(s) for s in scores if len(s)])
    return ratio_with_interval(sums, counts, unit="nats per token")


def text_cross_entropy(
    model: ChatModel,
    text: str,
    *,
    interventions: Sequence[Intervention] = (),
    window: int = 256,
) -> Estimate:
    """Mean cross-entropy of plain text in nats per token, cut into windows; bootstrap interval over windows.

    No chat template; each window starts with BOS where the tokenizer adds one, and its first token is not scored.

    Args:
        window: tokens in a window (Arditi et al. 2024, appendix G.3, truncate to 256).

    Raises:
        ValueError: text of fewer than two tokens.
    """
    starts, windows = text_windows(model, text, window=window)
    return cross_entropy(model, starts, windows, interventions=interventions)


def text_windows(model: ChatModel, text: str, *, window: int = 256) -> tuple[ChatTokens, list[list[int]]]:
    """Split plain text into windows: the first token of each, and the remaining tokens, which are scored.

    Raises:
        ValueError: text of fewer than two tokens.
    """
    ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    windows = [ids[i : i + window] for i in range(0, len(ids), window) if len(ids[i : i + window]) > 1]
    if not windows:
        raise ValueError("the text has fewer than two tokens; give a longer one")
    windows = [[*leading_ids(model.tokenizer), *w] for w in windows]
    starts = ChatTokens(
        ids=tuple((w[0],) for w in windows),
        starts=(0,) * len(windows),
        ends=(1,) * len(windows),
        tokenizer=model.tokenizer,
    )
    return starts, [w[1:] for w in windows]
