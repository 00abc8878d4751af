"""The text that a chat template puts around an instruction, and the date in it.

What a template renders is more than its own text: some show today's date (`strftime_now`), so that the same template
gives other tokens every day, and activations at all positions after it move. The frame is the rendered text before and
after an instruction; results carry it, and what was fitted under another frame says so. A model whose template shows a
date has one date for as long as it is loaded: that of `load(..., date="2026-01-31")`, or the day it was loaded.
"""

import copy
import logging
from collections.abc import Sequence
from datetime import datetime, time
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from interp.models.conversations import DATE_ATTRIBUTE, TemplateDate, render_frame
from interp.models.sources import check_date

logger = logging.getLogger(__name__)

_VARIABLES = ("date_string", "current_date", "today_date", "todays_date", "today", "date")
"""Variables from which templates take a date; written as `26 Jul 2024`, as that of Llama 3 is."""
_DIRECTIVES = (
    *(f"%-{letter}" for letter in "dmHIMSjy"),
    *(f"%{letter}" for letter in "aAbBcCdDeFfGhHIjklmMnpPrRsStTuUVwWxXyYzZ"),
    "%%",
)
_TWO_MOMENTS = (datetime(2001, 2, 3, 4, 5, 6, 789), datetime(2019, 11, 28, 17, 38, 49, 123456))
"""Moments that differ in every directive, the time of day too: some templates show the hour alone."""


class PromptFrame(NamedTuple):
    """The rendered text around an instruction."""

    before: str
    """Text before the instruction: system message, date, opening of the user's turn."""
    after: str
    """Text after it, up to where the model's answer begins."""


def frame_of(tokenizer: PreTrainedTokenizerBase) -> PromptFrame | None:
    """The frame of a single instruction; None without a chat template, or with one that shows none."""
    if not tokenizer.chat_template:
        return None
    try:
        return PromptFrame(*render_frame(tokenizer))
    except (
        ValueError
    ):  # a template that needs options, or hides the instruction; said when prompts are tokenised
        return None


def dated(tokenizer: PreTrainedTokenizerBase, date: str | None) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer with the date of its template pinned, and that date; unchanged with None where it shows none.

    Args:
        date: ISO 8601; None is the date that the tokenizer has, else today, where the template shows one.

    Raises:
        ValueError: not a date, or a date for a template that shows none.
    """
    pinned: TemplateDate | None = getattr(tokenizer, DATE_ATTRIBUTE, None)
    if date is None and pinned is not None:
        return tokenizer, pinned.iso
    wanted = None if date is None else check_date(date)
    if not _shows_date(tokenizer, variables=wanted is not None):
        if date is not None:
            raise ValueError(
                f"date={date!r} is given, and the chat template shows no date; leave date out (a template takes it "
                f"from strftime_now or one of the variables {', '.join(_VARIABLES)})"
            )
        return tokenizer, None
    if wanted is None:
        wanted = datetime.now().date()
        logger.warning(
            "the chat template shows the date: it stays %s while this model is loaded; give date=%r to get the same "
            "prompts on another day",
            wanted,
            wanted.isoformat(),
        )
    return _at(tokenizer, datetime.combine(wanted, time.min), date is not None), wanted.isoformat()


def dated_like(tokenizer: PreTrainedTokenizerBase, date: str | None) -> str | None:
    """The date for another tokenizer of the same model: this one where its template shows a date, else None."""
    shows = date is not None and any(_shows_date(tokenizer, variables=option) for option in (False, True))
    return date if shows else None


def _shows_date(tokenizer: PreTrainedTokenizerBase, *, variables: bool) -> bool:
    early, late = (frame_of(_at(tokenizer, moment, variables)) for moment in _TWO_MOMENTS)
    return early != late


def frame_difference(was: Sequence[str] | None, now: Sequence[str] | None) -> str | None:
    """How two frames differ, in words; None where they do not, or where one is unknown."""
    if was is None or now is None or tuple(was) == tuple(now):
        return None
    for where, old, new in zip(("before", "after"), was, now, strict=True):
        if old != new:
            start = next(
                (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
            )
            shown = slice(max(0, start - 12), start + 24)
            return f"the text {where} the instruction was {old[shown]!r} and is {new[shown]!r}"
    return None


def warn_of_frame(
    made_with: tuple[str, str] | None, now: PromptFrame | None, *, model: str, warned: set[tuple[str, str]]
) -> None:
    """Warn, once for each frame, that a direction was read on prompts in another frame than the model's."""
    difference = frame_difference(made_with, now)
    if made_with is None or difference is None or made_with in warned:
        return
    warned.add(made_with)
    logger.warning(
        "a direction was read on prompts in another frame than those of %s: %s; load the model with the same chat "
        "template and date, or fit the direction again",
        model,
        difference,
    )


def _at(tokenizer: PreTrainedTokenizerBase, moment: datetime, variables: bool) -> PreTrainedTokenizerBase:
    """A copy that renders its template at this moment; its vocabulary is shared with the original."""
    options: dict[str, str] = {name: moment.strftime("%d %b %Y") for name in _VARIABLES if variables}
    pinned = copy.copy(tokenizer)
    setattr(pinned, DATE_ATTRIBUTE, TemplateDate(moment.date().isoformat(), _clock(moment), options))
    return pinned


def _clock(moment: datetime) -> str:
    """A macro in place of transformers' `strftime_now`, at this moment; of a pinned date, its midnight.

    Templates only get plain data from outside, so the clock is written in Jinja: every directive is replaced.
    """
    replaced = "".join(f".replace({name!r}, {_written(moment, name)!r})" for name in _DIRECTIVES)
    # The newline is taken by the end of the block, so that the template begins as it does alone.
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


def _written(moment: datetime, directive: str) -> str:
    """A moment under one directive; unchanged where the platform does not know it."""
    try:
        return moment.strftime(directive)
    except ValueError:
        return directive
