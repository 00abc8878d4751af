"""Ranks as colours: GLTR's buckets, and a text as a strip of tokens with rank and probability on hover.

Needs no model, so that stored results can be drawn.

Source: Gehrmann et al. 2019, arXiv:1906.04043: buckets of 10, 100 and 1,000.
"""

from bisect import bisect_left
from collections.abc import Sequence

from interp.display.token_strips import StripToken, strip_html

BUCKETS = (10, 100, 1000)
"""Highest rank of each bucket; the last bucket has no end."""
BUCKET_NAMES = ("top 10", "top 100", "top 1,000", "beyond")
BUCKET_COLOURS = ("#C8E6C9", "#FFF59D", "#FFAB91", "#D1B3E0")
"""Backgrounds of the buckets, light enough for dark text."""
MAX_TOKENS = 400
"""Maximum tokens of a strip."""


def bucket_of(rank: int) -> int:
    """Number of a rank's bucket, 0 to 3."""
    return bisect_left(BUCKETS, rank)


def rank_strip(
    tokens: Sequence[str], ranks: Sequence[int], probabilities: Sequence[float], *, context: str = ""
) -> str:
    """A text as HTML, coloured by bucket, with rank and probability on hover; at most `MAX_TOKENS` tokens of it.

    Args:
        context: text before the first token, which has no rank.
    """
    rows = list(zip(tokens, ranks, probabilities, strict=True))[:MAX_TOKENS]
    shown = [
        StripToken(
            text=token,
            colour=BUCKET_COLOURS[bucket_of(rank)],
            hover=f"rank {rank:,}, probability {probability:.3g}",
        )
        for token, rank, probability in rows
    ]
    before = [StripToken(text=context, colour="#EEEEEE", hover="not scored")] if context else []
    return strip_html([*before, *shown])
