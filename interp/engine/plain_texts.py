"""Plain texts as what is scored after what: no chat template, BOS where a tokenizer adds one, sliding windows.

Each token of a text is scored exactly once. A text longer than the context is cut into sliding windows: a window after
the first begins half a window before its scored tokens, so that each of them has at least that much context.

    windows = scored_windows([model], tokenizer(texts, add_special_tokens=False)["input_ids"])
    list(map_positions([model], windows.prompts, windows.completions, reduce))
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredWindows:
    """Windows of texts, as `interp.engine.log_probs.map_positions` takes them."""

    prompts: tuple[ChatTokens, ...]
    """For each model, the tokens before the scored ones of every window."""
    completions: tuple[tuple[int, ...], ...]
    """Scored tokens of every window."""
    texts: tuple[int, ...]
    """Text of every window, in order."""


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """BOS where the tokenizer puts one before a text; else nothing."""
    special = tokenizer("")["input_ids"]
    return tuple(i for i in special if i == tokenizer.bos_token_id)  # pyright: ignore[reportGeneralTypeIssues]


def scored_windows(
    models: Sequence[ChatModel], texts: Sequence[Sequence[int]], *, window: int | None = None
) -> ScoredWindows:
    """Windows of texts for models that share a tokenizer.

    The first token is scored where every model's tokenizer puts BOS before it, and is context otherwise.

    Args:
        texts: token ids without special tokens; a text without a scored token has no window.
        window: maximum tokens of a window, BOS included; None is the shortest context of the models.

    Raises:
        ValueError: a window of fewer than 4 tokens.
    """
    leading = [leading_ids(model.tokenizer) for model in models]
    limits = [n for n in (window, *(model.context_length for model in models)) if n is not None]
    longest = max([len(ids) for ids in texts], default=0)
    size = min(limits, default=longest + 4) - max(map(len, leading))
    if size < 3:
        raise ValueError(f"a window must hold 4 tokens or more, got {min(limits)}")
    begin = 0 if all(leading) else 1
    before: list[tuple[int, ...]] = []
    scored: list[tuple[int, ...]] = []
    texts_of: list[int] = []
    for number, given in enumerate(texts):
        ids, first, stop = tuple(given), 0, begin
        while stop < len(ids):
            end = min(len(ids), first + size)
            before.append(ids[first:stop])
            scored.append(ids[stop:end])
            texts_of.append(number)
            first, stop = end - size // 2, end
    prompts = [
        ChatTokens(
            ids=tuple((*bos, *context) for context in before),
            starts=(0,) * len(before),
            ends=tuple(len(bos) + len(context) for context in before),
            tokenizer=model.tokenizer,
        )
        for model, bos in zip(models, leading, strict=True)
    ]
    return ScoredWindows(prompts=tuple(prompts), completions=tuple(scored), texts=tuple(texts_of))
