"""Pairs of human and machine-written text, made as the field makes them: a model continues a human text's beginning.

    pairs = make_pairs(model, bundled_passages(), length=150)
    pairs.human, pairs.machine          # as long as each other, and with the same first 30 tokens

Source: Mitchell et al. 2023, arXiv:2301.11305, section 5: 30 tokens of the human text, which stay in the machine's,
and both cut to one length. Texts of other lengths, decodings and models give other error rates: say which were used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.data.prompts import Prompts
from interp.detectors.machine_text.reading import MIN_TOKENS
from interp.display.cards import Card, Shown
from interp.engine.decoding import LogitsProcessor
from interp.engine.generation import generate
from interp.engine.interventions import Intervention
from interp.engine.plain_texts import leading_ids
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TextPairs(Shown):
    """Human texts, and a model's continuations of their beginnings, row by row."""

    human: Prompts
    """Human texts, cut to the length of their twins."""
    machine: Prompts
    """The same beginnings continued by the model."""
    lengths: tuple[int, ...]
    """Tokens of both texts of a pair."""
    dropped: tuple[str, ...]
    """Ids of human texts without a pair: too short, or the model wrote nothing."""
    made_by: dict[str, Any]
    """Model, decoding and lengths."""

    def __len__(self) -> int:
        return len(self.lengths)

    def _card(self) -> Card:
        return Card(
            title=f"{len(self)} pairs of human and machine-written text",
            facts={
                "human": self.human.source,
                **self.made_by,
                "tokens": f"{min(self.lengths)} to {max(self.lengths)}",
                "without a pair": len(self.dropped),
            },
        )


def make_pairs(
    model: ChatModel,
    human: Prompts,
    *,
    length: int = 150,
    prefix_tokens: int = 30,
    temperature: int | float = 1.0,
    top_p: int | float = 1.0,
    seed: int = 0,
    interventions: Sequence[Intervention] = (),
    processors: Sequence[LogitsProcessor] = (),
    show_progress: bool = False,
) -> TextPairs:
    """Continue the first tokens of human texts with a model, and cut both to one length.

    Where the model ends its text early, the human text is cut as short.

    Args:
        length: tokens of each text at most, the prefix included.
        prefix_tokens: tokens of the human text that the model is given.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens that holds this probability; 1 is all.
        processors: further logits processors, such as a watermark, after top-p.

    Raises:
        ValueError: a length that leaves nothing to write, or no human text that is long enough.
    """
    if not 0 < prefix_tokens < length:
        raise ValueError(f"prefix_tokens must lie between 0 and length {length}, got {prefix_tokens}")
    rows = model.tokenizer(list(human.texts), add_special_tokens=False)["input_ids"]
    ids: list[list[int]] = [list(row)[:length] for row in rows]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
    long = [row for row, own in enumerate(ids) if len(own) > prefix_tokens]
    if not long:
        raise ValueError(
            f"no text of {human.source} has more than {prefix_tokens} tokens; lower prefix_tokens"
        )
    bos = leading_ids(model.tokenizer)
    starts = [(*bos, *ids[row][:prefix_tokens]) for row in long]
    written = generate(
        model,
        plain_prompts(model, starts),
        interventions=interventions,
        max_new_tokens=length - prefix_tokens,
        temperature=float(temperature),
        top_p=top_p,
        seed=seed,
        processors=processors,
        show_progress=show_progress,
    )
    kept: list[int] = []
    texts: list[tuple[str, str]] = []
    lengths: list[int] = []
    decode = model.tokenizer.decode
    special = set(model.tokenizer.all_special_ids)
    for row, new in zip(long, written.ids, strict=True):
        own = [token for token in new if token not in special]
        n = min(len(ids[row]), prefix_tokens + len(own))
        if n - prefix_tokens >= MIN_TOKENS:
            machine = [*ids[row][:prefix_tokens], *own][:n]
            texts.append((str(decode(ids[row][:n])), str(decode(machine))))
            lengths.append(n)
            kept.append(row)
    if not kept:
        raise ValueError(
            f"{model.name} continued no text of {human.source}; give another model or temperature"
        )
    about = {
        "model": model.name,
        "temperature": temperature,
        "top_p": top_p,
        "prefix tokens": prefix_tokens,
        "seed": seed,
    }
    identity = human.take(kept)
    return TextPairs(
        human=_texts(identity, [pair[0] for pair in texts], human.source),
        machine=_texts(identity, [pair[1] for pair in texts], f"{human.source}, continued by {model.name}"),
        lengths=tuple(lengths),
        dropped=tuple(name for row, name in enumerate(human.ids) if row not in set(kept)),
        made_by=about,
    )


def plain_prompts(model: ChatModel, rows: Sequence[Sequence[int]]) -> ChatTokens:
    """Token ids as prompts without a chat template."""
    return ChatTokens(
        ids=tuple(map(tuple, rows)),
        starts=(0,) * len(rows),
        ends=tuple(len(row) for row in rows),
        tokenizer=model.tokenizer,
    )


def _texts(identity: Prompts, texts: Sequence[str], source: str) -> Prompts:
    return Prompts(texts=tuple(texts), ids=identity.ids, categories=identity.categories, source=source)
