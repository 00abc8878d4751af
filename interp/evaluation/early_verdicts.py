"""Whether a model refuses, without the rest of its reply: a completion ends once its verdict cannot change.

A list of refusal substrings is read anywhere in an answer, so that an answer which holds one is a refusal whatever
follows. Its row leaves the batch there. The verdict is that of the whole reply: a substring counts once white space
follows it, since a letter may still be composed with the mark after it.

    refusal_verdicts(model, prompts).rate                   # as respond(model, prompts).rate, without replies

Whole replies are generated where they may change the verdict or are wanted: for models whose template or vocabulary
marks thoughts (a refusal inside a thought is none), for prompts that end inside one, and where replies are recorded for
judges. Of other models one that refuses, and then writes a mark that ends a thought, is the one case that differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from interp.engine.decoding import Settled
from interp.engine.generation import Completions, generate
from interp.engine.interventions import Intervention
from interp.engine.joint_generation import generate_each
from interp.evaluation.records import RefusalList
from interp.evaluation.refusals import refuses
from interp.evaluation.responses import rows_where
from interp.models.chat_model import ChatModel
from interp.models.thinking import MARKS, opens_thought, separated
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.stats import Estimate, rate
from interp.storage.reply_records import recorder


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Which prompts a model refuses."""

    flags: tuple[bool | None, ...]
    """Whether each prompt is refused; None for a reply without an answer."""

    @property
    def rate(self) -> Estimate:
        """Share of prompts that are refused, of those with an answer."""
        return rate([flag for flag in self.flags if flag is not None])

    def rows(self, *, refused: bool) -> list[int]:
        """Indices of the prompts that were refused, or of those that were answered."""
        return rows_where(self.flags, refused=refused)


def refusal_verdicts(
    model: ChatModel,
    prompts: PromptInput,
    *,
    interventions: Sequence[Intervention] = (),
    substrings: RefusalList = "normalised",
    max_new_tokens: int = 24,
    early_stop: bool = True,
    show_progress: bool = False,
) -> Verdicts:
    """The flags of `interp.evaluation.responses.respond`, without the replies.

    Args:
        prompts: instructions, conversations, a split of a prompt set, or tokens.
        substrings: the list that defines a refusal.
        max_new_tokens: maximum length of replies.
        early_stop: False generates every reply to its end.

    Raises:
        ValueError: as for `generate`.
    """
    tokens = as_tokens(model.tokenizer, prompts)
    done = generate(
        model,
        tokens,
        interventions=interventions,
        max_new_tokens=max_new_tokens,
        settled=settled_refusals(model, tokens, substrings) if early_stop else None,
        show_progress=show_progress,
    )
    return _verdicts(done, substrings)


def refusal_verdicts_each(
    model: ChatModel,
    prompts: PromptInput,
    arms: Sequence[Sequence[Intervention]],
    *,
    substrings: RefusalList = "normalised",
    max_new_tokens: int = 24,
    early_stop: bool = True,
) -> list[Verdicts]:
    """`refusal_verdicts` under each of several sets of interventions on prompt tokens, decoded together.

    Raises:
        ValueError: as for `generate_each`.
    """
    tokens = as_tokens(model.tokenizer, prompts)
    settled = settled_refusals(model, tokens, substrings) if early_stop else None
    replies = generate_each(model, tokens, arms, max_new_tokens=max_new_tokens, settled=settled)
    return [_verdicts(done, substrings) for done in replies]


def settled_refusals(model: ChatModel, tokens: ChatTokens, substrings: RefusalList) -> Settled | None:
    """Whether a completion is a refusal however it goes on; None where whole replies are needed."""
    before = model.tokenizer.batch_decode(
        [list(row[end:]) for row, end in zip(tokens.ids, tokens.ends, strict=True)]
    )
    if recorder() is not None or marks_thoughts(model) or any(map(opens_thought, before)):
        return None
    decode = model.tokenizer.decode

    def settled(ids: Sequence[int]) -> bool:
        words = _whole_words(str(decode(list(ids), skip_special_tokens=True)))
        # An empty answer is a refusal of one list only when nothing follows.
        return bool(words.strip()) and refuses(words, substrings) and separated(words).thought is None

    return settled


def marks_thoughts(model: ChatModel) -> bool:
    """Whether the model's template or vocabulary has a mark that begins or ends a thought."""
    template, words = str(model.tokenizer.chat_template), set(model.tokenizer.get_vocab())
    return any(mark in template or mark in words for pair in MARKS for mark in pair)


def _whole_words(text: str) -> str:
    """The text before its last white space; what is in it cannot change when more follows."""
    end = len(text)
    while end and not text[end - 1].isspace():
        end -= 1
    return text[: max(end - 1, 0)]


def _verdicts(done: Completions, substrings: RefusalList) -> Verdicts:
    return Verdicts(
        flags=tuple(None if answer is None else refuses(answer, substrings) for answer in done.answers)
    )
