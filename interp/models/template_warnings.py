"""Warnings about chat templates that render, and yet give other prompts than intended."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from interp.models.conversations import TokenPlaces

logger = logging.getLogger(__name__)


def warn_of_template(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], places: Sequence[TokenPlaces]
) -> None:
    """Warn of a template under which roles coincide, or which lacks the token that begins every text."""
    if any(place.prefill == place.end for place in places):
        logger.warning(
            "the chat template puts no token after the instruction: t_inst and t_post_inst are the same token, so that "
            "what is read at one is read at the other; end the template with what comes before an answer (Jinja drops "
            "a file's last newline: write {{ '\\n' }})"
        )
    bos = tokenizer.bos_token_id
    begins = list(tokenizer("")["input_ids"])[:1]  # pyright: ignore[reportArgumentType]
    if bos is not None and begins == [bos] and bos not in ids:
        logger.warning(
            "the chat template has no %s, with which this tokenizer begins every text; begin the template with "
            "{{ bos_token }}",
            tokenizer.bos_token,
        )
