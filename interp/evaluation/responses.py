"""What a model does with prompts: its own greedy replies, and which of them refuse.

Groups of prompts are per model: a harmful prompt that one model refuses another accepts. Crossing what a prompt is with
what the model does gives the four behaviour groups, refused and accepted harmful, refused and accepted harmless. Two
are what alignment wants; the other two tell apart what looks like one thing in them, harmfulness and refusal.

    bad = respond(model, prompts["harmful", "test"])
    bad.rate                                  # refusal rate with its interval
    bad.prompts.take(bad.rows(refused=False)) # accepted harmful

A refusal is a substring of the reply, which says nothing about whether the reply is harmful.

Source: Zhao et al. 2025, arXiv:2507.11878, section 3 and appendix B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from interp.data.prompts import Prompts, as_prompts
from interp.engine.generation import Completions, generate, generate_each
from interp.engine.interventions import Intervention
from interp.evaluation.refusals import RefusalList, is_refusal
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.stats import Estimate, rate

MIN_BEHAVING = 8
"""Prompts of each kind that must behave before centres or directions are fitted on them."""


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Prompts and what the model did with each."""

    prompts: Prompts
    refused: tuple[bool, ...]
    """By prompt: whether the reply refuses."""
    replies: tuple[str, ...]
    """By prompt, special tokens left out."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def silent(self) -> Estimate:
        """Share of replies without a word, which the source counts as refusals."""
        return rate([not reply.strip() for reply in self.replies])

    @property
    def rate(self) -> Estimate:
        """Share refused."""
        return rate(self.refused)

    def rows(self, *, refused: bool) -> list[int]:
        """Places of the prompts that were refused, or of those that were not."""
        return [row for row, flag in enumerate(self.refused) if flag == refused]


class BehavingRows(NamedTuple):
    """Places of the prompts that the model treats as an aligned model would."""

    refused: list[int]
    """Among the harmful prompts."""
    answered: list[int]
    """Among the harmless prompts."""


def behaving_rows(
    *, harmful: Sequence[bool], harmless: Sequence[bool], model_name: str, split: str = "training"
) -> BehavingRows:
    """Places of refused harmful and of answered harmless prompts.

    Args:
        harmful: by harmful prompt, whether it is refused.
        harmless: the same of the harmless prompts.
        model_name: how an error names the model.
        split: how an error names the prompts.

    Raises:
        ValueError: fewer than `MIN_BEHAVING` of either kind.
    """
    rows = BehavingRows(
        refused=[row for row, flag in enumerate(harmful) if flag],
        answered=[row for row, flag in enumerate(harmless) if not flag],
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
    substrings: RefusalList = "arditi",
    max_new_tokens: int = 24,
    show_progress: bool = False,
) -> Responses:
    """The model's greedy reply to every prompt, and which of them refuse.

    Args:
        prompts: instructions, conversations, a split of a prompt set, or tokens.
        tokens: what is run for these prompts where it is not the default template around each (cut after the
            instruction, for instance: `ChatTokens.truncated`).
        substrings: the list that tells a refusal; the source's own is `zhao`.
        max_new_tokens: where replies are cut; refusals show in their first words (the source has 128).

    Raises:
        ValueError: tokens of another number of prompts, or as `generate`.
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
    substrings: RefusalList = "arditi",
    max_new_tokens: int = 24,
) -> list[Responses]:
    """`respond` under each of several sets of interventions on prompt tokens, decoded together.

    Raises:
        ValueError: as `generate_each`.
    """
    named = as_prompts(prompts)
    replies = generate_each(model, prompts, arms, max_new_tokens=max_new_tokens)
    return [_responses(named, done, substrings) for done in replies]


def _responses(prompts: Prompts, done: Completions, substrings: RefusalList) -> Responses:
    return Responses(
        prompts=prompts,
        refused=tuple(is_refusal(text, substrings) for text in done.texts),
        replies=done.texts,
    )
