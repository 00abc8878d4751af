"""A model's responses to prompts: its greedy replies, and which of them are refusals.

Groups of prompts depend on the model: one model may refuse a harmful prompt that another accepts. Crossing the kind of
a prompt with the model's behaviour gives four groups: refused and accepted harmful, refused and accepted harmless. In
refused harmful and accepted harmless prompts harmfulness and refusal coincide; the other two groups separate them.

    bad = respond(model, prompts["harmful", "test"])
    bad.rate                                  # refusal rate with its interval
    bad.prompts.take(bad.rows(refused=False)) # accepted harmful

A refusal is detected by a substring of the answer, which is no evidence on whether an answer is harmful. A reply that
was cut while the model was thinking has no answer, and belongs to neither side.

Source: Zhao et al. 2025, arXiv:2507.11878, section 3 and appendix B.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from interp.data.prompts import Prompts, as_prompts
from interp.engine.generation import Completions, generate
from interp.engine.interventions import Intervention
from interp.engine.joint_generation import generate_each
from interp.evaluation.refusals import RefusalList, refuses
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.stats import Estimate, rate

MIN_BEHAVING = 8
"""Minimum refused harmful, and answered harmless, prompts for fitting centres or directions on them."""
_REPEATED = re.compile(r"(?:^|\s)(\S+)(?:\s+\1){3,}(?:\s|$)")
"""One word more than three times in a row."""


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Prompts with the model's reply to each and whether it refuses."""

    prompts: Prompts
    refused: tuple[bool, ...]
    """Whether the reply to each prompt is a refusal."""
    replies: tuple[str, ...]
    """Reply to each prompt, without special tokens."""
    unfinished: tuple[bool, ...] = ()
    """Whether each reply was cut while the model was still thinking, so that it has no answer; empty where none was."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def silent(self) -> Estimate:
        """Share of empty replies, which the source counts as refusals."""
        return rate([not reply.strip() for reply in self.replies])

    @property
    def rate(self) -> Estimate:
        """Share of prompts that are refused, of those with an answer."""
        return rate([flag for flag in self.flags if flag is not None])

    @property
    def n_unfinished(self) -> int:
        """Number of replies without an answer, which neither refuse nor comply."""
        return sum(self.unfinished)

    @property
    def flags(self) -> tuple[bool | None, ...]:
        """Whether each prompt is refused; None for a reply without an answer."""
        unfinished = self.unfinished or (False,) * len(self)
        return tuple(None if cut else flag for flag, cut in zip(self.refused, unfinished, strict=True))

    def rows(self, *, refused: bool) -> list[int]:
        """Indices of the prompts that were refused, or of those that were answered."""
        return rows_where(self.flags, refused=refused)


def is_incoherent(reply: str) -> bool:
    """Whether a reply is empty or repeats one word more than three times in a row."""
    return not reply.strip() or _REPEATED.search(reply) is not None


def rows_where(flags: Sequence[bool | None], *, refused: bool) -> list[int]:
    """Indices of the prompts that were refused, or of those that were answered, from `Responses.flags`."""
    return [row for row, flag in enumerate(flags) if flag is refused]


class BehavingRows(NamedTuple):
    """Indices of the prompts on which the model behaves as an aligned model would."""

    refused: list[int]
    """Indices of refused prompts among the harmful ones."""
    answered: list[int]
    """Indices of answered prompts among the harmless ones."""


def behaving_rows(
    *,
    harmful: Sequence[bool | None],
    harmless: Sequence[bool | None],
    model_name: str,
    split: str = "training",
) -> BehavingRows:
    """Indices of refused harmful and of answered harmless prompts.

    Args:
        harmful: `Responses.flags` of the harmful prompts.
        harmless: `Responses.flags` of the harmless prompts.
        model_name: name of the model in errors.
        split: name of the prompts in errors.

    Raises:
        ValueError: fewer than `MIN_BEHAVING` of either kind.
    """
    rows = BehavingRows(
        refused=rows_where(harmful, refused=True), answered=rows_where(harmless, refused=False)
    )
    for does, kind, behaving, asked in (
        ("refuses", "harmful", rows.refused, harmful),
        ("answers", "harmless", rows.answered, harmless),
    ):
        if len(behaving) < MIN_BEHAVING:
            raise ValueError(
                f"{model_name} {does} only {len(behaving)} of {len(asked)} {kind} {split} prompts; at least "
                f"{MIN_BEHAVING} are needed: use an aligned model, other prompts, or more of them"
            )
    return rows


def respond(
    model: ChatModel,
    prompts: PromptInput,
    *,
    tokens: ChatTokens | None = None,
    interventions: Sequence[Intervention] = (),
    substrings: RefusalList = "normalised",
    max_new_tokens: int = 24,
    show_progress: bool = False,
) -> Responses:
    """Generate the model's greedy reply to every prompt and detect refusals.

    Args:
        prompts: instructions, conversations, a split of a prompt set, or tokens.
        tokens: tokens to run for these prompts instead of the default template around each (for instance cut after the
            instruction: `ChatTokens.truncated`).
        substrings: the list that defines a refusal; the source's own is `zhao`.
        max_new_tokens: maximum length of replies; refusals show in their first words (128 in the source).

    Raises:
        ValueError: tokens of another number of prompts, or as for `generate`.
    """
    named = as_prompts(prompts)
    tokens = as_tokens(model.tokenizer, prompts) if tokens is None else tokens
    if len(tokens) != len(named):
        raise ValueError(f"{len(tokens)} tokenised prompts were given for {len(named)} prompts")
    done = generate(
        model,
        tokens,
        interventions=interventions,
        max_new_tokens=max_new_tokens,
        show_progress=show_progress,
    )
    return _responses(named, done, substrings)


def respond_each(
    model: ChatModel,
    prompts: PromptInput,
    arms: Sequence[Sequence[Intervention]],
    *,
    substrings: RefusalList = "normalised",
    max_new_tokens: int = 24,
) -> list[Responses]:
    """`respond` under each of several sets of interventions on prompt tokens, decoded together.

    Raises:
        ValueError: as for `generate_each`.
    """
    named = as_prompts(prompts)
    replies = generate_each(model, prompts, arms, max_new_tokens=max_new_tokens)
    return [_responses(named, done, substrings) for done in replies]


def _responses(prompts: Prompts, done: Completions, substrings: RefusalList) -> Responses:
    return Responses(
        prompts=prompts,
        refused=tuple(answer is not None and refuses(answer, substrings) for answer in done.answers),
        replies=done.texts,
        unfinished=tuple(answer is None for answer in done.answers),
    )
