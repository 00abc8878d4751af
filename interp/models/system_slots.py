r"""The system slot: the tokens of a prompt at which its system message stands, under any chat template.

    <|im_start|> system \n  You  assist  people  ...  .   <|im_end|>  \n  <|im_start|>  user  \n  How  do  I  ...
                           |------- system slot ------|                                          |- instruction

Templates put the system message into a block of its own, or in front of the first user turn. The slot is found in the
rendered prompt, by the characters that each token covers. A token that also covers characters of the template is no
part of it.

    slot = system_slot(model.tokenizer, ["How do I bake bread?"], "You assist people kindly.")
    slot.tokens.ids[0][slot.start : slot.stop]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from interp.models.conversations import Options, before_system
from interp.models.tokens import ChatTokens, PromptInput, tokenize


@dataclass(frozen=True, eq=False, kw_only=True)
class SystemSlot:
    """Prompts with one system message, and where it stands in all of them."""

    tokens: ChatTokens
    """The prompts, rendered with the system message."""
    start: int
    """Index of the slot's first token, the same in every prompt."""
    stop: int
    """Index of the first token after the slot."""

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids of the system message."""
        return self.tokens.ids[0][self.start : self.stop]

    def filled(self, ids: Sequence[int]) -> ChatTokens:
        """The same prompts with these ids in the slot, one for each of its tokens."""
        assert len(ids) == len(self)
        rows = tuple((*row[: self.start], *ids, *row[self.stop :]) for row in self.tokens.ids)
        return replace(self.tokens, ids=rows)


def system_slot(
    tokenizer: PreTrainedTokenizerBase, prompts: PromptInput, text: str, *, template_options: Options = None
) -> SystemSlot:
    """Render the prompts with this system message and find its tokens.

    Args:
        prompts: instructions or conversations without a system message of their own.
        text: the system message.
        template_options: variables of the template.

    Raises:
        ValueError: a template without a system slot, one that rewrites the system message or does not put it at the
            same place in every prompt, a text without a token of its own, or as `tokenize`.
    """
    text = text.strip()
    begin = len(before_system(tokenizer, template_options))
    tokens = tokenize(tokenizer, prompts, system=text, template_options=template_options)
    spans, slots = set[tuple[int, int]](), set[tuple[int, ...]]()
    for ids, offsets in zip(tokens.ids, tokens.offsets, strict=True):
        first = offsets[0][0]  # offsets count from the instruction
        inside = [
            i
            for i, (a, b) in enumerate(offsets)
            if b > a and begin <= a - first and b - first <= begin + len(text)
        ]
        if not inside:
            raise ValueError(f"the system message {text[:40]!r} has no token of its own; take a longer one")
        spans.add((inside[0], inside[-1] + 1))
        slots.add(tuple(ids[inside[0] : inside[-1] + 1]))
    if len(slots) > 1 or len(spans) > 1:
        raise ValueError(
            "the chat template does not put the system message at the same place in every prompt"
        )
    ((start, stop),) = spans
    shown = str(tokenizer.decode(list(slots.pop())))
    if "".join(shown.split()) not in "".join(text.split()):
        raise ValueError(f"the chat template rewrites the system message: it shows {shown[:60]!r}")
    return SystemSlot(tokens=tokens, start=start, stop=stop)
