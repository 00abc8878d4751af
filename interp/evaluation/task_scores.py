r"""Scores of replies against references, one reply and one reference a row, each an `Estimate` of 0 to 1.

| metric | a reply scores |
|---|---|
| `exact_match` | 1 when it is the reference, white space aside |
| `sql_exact_match` | 1 when it is the same tokens, white space, the case outside quotes and a last semicolon aside |
| `command_accuracy` | 1 when it calls the same utilities in the same order |
| `rouge_1` | F of the words that it shares with the reference |
| `BinaryF1` | F1 over all rows of one of two labels |

The first four are means over rows with an interval (Wilson; bootstrap for `rouge_1`); F1 has a bootstrap interval over
rows. F1 is no mean of rows: `row_parts` gives what each row adds to a score above and below the line. A metric compares
texts: two different queries with the same rows of a table are different here, and a summary in other words scores low.

    exact_match(["FROM a"], ["FROM  a"]).value        # 1.0
    BinaryF1("toxic", "harmless")(replies, references)
"""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from interp.stats import Estimate, mean_with_interval, rate


@runtime_checkable
class Metric(Protocol):
    """Callable that scores replies against references."""

    def __call__(self, replies: Sequence[str], references: Sequence[str]) -> Estimate: ...


def exact_match(replies: Sequence[str], references: Sequence[str]) -> Estimate:
    """Share of replies that equal their reference; runs of white space count as one space.

    Raises:
        ValueError: as many replies as references are needed.
    """
    return rate([reply.split() == wanted.split() for reply, wanted in _pairs(replies, references)])


def sql_exact_match(replies: Sequence[str], references: Sequence[str]) -> Estimate:
    """Share of replies with the tokens of their reference: case counts only inside quotes, white space nowhere else.

    Raises:
        ValueError: as `exact_match`.
    """
    return rate([sql_tokens(reply) == sql_tokens(wanted) for reply, wanted in _pairs(replies, references)])


_SQL_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|[\w.]+|[^\w\s.]")


def sql_tokens(text: str) -> list[str]:
    """Tokens of an SQL statement: quoted texts as they are, words in lower case, and each further character alone."""
    tokens = [t if t[0] in "'\"" else t.lower() for t in _SQL_TOKEN.findall(text)]
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return tokens


def command_accuracy(replies: Sequence[str], references: Sequence[str]) -> Estimate:
    """Share of replies that call the utilities of their reference, in the same order.

    The released command metric of the paper (Yang et al. 2025, arXiv:2504.09757) weighs flags and arguments too; this
    compares the names of utilities alone, and scores a right utility with wrong arguments as right.

    Raises:
        ValueError: as `exact_match`.
    """
    called = [(utilities(reply), utilities(wanted)) for reply, wanted in _pairs(replies, references)]
    return rate([bool(reply) and reply == wanted for reply, wanted in called])


_SEPARATORS = set("|&;()")
_NO_UTILITY = {"sudo", "!", "{", "if", "then", "else", "elif", "do", "while", "until", "time"}


def utilities(command: str) -> list[str]:
    r"""Names of the utilities that a shell command calls, in order; none where a quote is never closed.

    A utility is the first word of every part of a pipeline or list, assignments, `sudo` and shell keywords aside.
    Utilities given as arguments (`xargs rm`, `-exec rm {} \;`) are arguments.
    """
    # Both end an -exec; an escaped semicolon would look like one that separates commands.
    text = command.replace(r"\;", "+").replace("\n", " ; ").replace("`", " ; ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    names, expected = [], True
    try:
        for token in lexer:
            if token and set(token) <= _SEPARATORS:
                expected = True
            elif expected and token not in _NO_UTILITY and not re.match(r"\w+=", token):
                names.append(token)
                expected = False
    except ValueError:  # shlex: no closing quotation
        return []
    return names


def rouge_1(replies: Sequence[str], references: Sequence[str]) -> Estimate:
    """Mean over rows of ROUGE-1 F: the harmonic mean of the shares of common words in the reply and in the reference.

    Words are runs of letters a-z and digits in lower case, not stemmed, each counted as often as both have it: equal to
    `rouge1` of the package rouge-score without its stemmer, which would bring NLTK along.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 2.

    Raises:
        ValueError: as `exact_match`.
    """
    return mean_with_interval(
        [_unigram_f(reply, wanted) for reply, wanted in _pairs(replies, references)], unit="ROUGE-1 F"
    )


def _unigram_f(reply: str, reference: str) -> float:
    one, other = (Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in (reply, reference))
    common = (one & other).total()
    return 2 * common / (one.total() + other.total()) if common else 0.0


@dataclass(frozen=True)
class BinaryF1:
    """F1 of one of two labels, each a word that a reply gives."""

    positive: str
    """The label whose precision and recall count."""
    negative: str
    """The other label."""
    resamples: int = 2000
    """Bootstrap resamples of the interval."""

    def __call__(self, replies: Sequence[str], references: Sequence[str]) -> Estimate:
        """F1 over all rows, with a percentile-bootstrap interval over rows.

        A reply that gives neither label, or both, counts as the wrong one, and in `missing`. Without a positive label
        in references and replies F1 is not measurable.

        Raises:
            ValueError: as `exact_match`, or a reference that is neither label.
        """
        unread = sum(self._label(reply) is None for reply in replies)
        score = self.parts(replies, references).score(resamples=self.resamples, unit="F1")
        return replace(score, missing=unread)

    def parts(self, replies: Sequence[str], references: Sequence[str]) -> "RowParts":
        """Of each row twice the hit, and twice the hit plus the error: F1 = 2 hits / (2 hits + errors).

        Raises:
            ValueError: as `exact_match`, or a reference that is neither label.
        """
        gained, possible = list[float](), list[float]()
        for reply, reference in _pairs(replies, references):
            wanted, label = self._label(reference), self._label(reply)
            if wanted is None:
                raise ValueError(
                    f"every reference must be {self.positive!r} or {self.negative!r}, got {reference!r}"
                )
            given = not wanted if label is None else label
            gained.append(2.0 * (wanted and given))
            possible.append(gained[-1] + (wanted != given))
        return RowParts(tuple(gained), tuple(possible))

    def _label(self, text: str) -> bool | None:
        """Whether a text gives the positive label, and None where it gives neither or both."""
        words = set(re.findall(r"\w+", text.lower()))
        positive, negative = self.positive.lower() in words, self.negative.lower() in words
        return positive if positive != negative else None


class RowParts(NamedTuple):
    """What every row adds to a score above and below the line: that of any rows is the sum of one over the other."""

    gained: tuple[float, ...]
    """Numerator of each row: its score, of F1 twice the hit."""
    possible: tuple[float, ...]
    """Denominator of each row: 1, of F1 twice the hit plus the error."""

    def score(self, *, seed: int = 0, resamples: int = 2000, unit: str = "") -> Estimate:
        """The score with a percentile-bootstrap interval over rows, Wilson's of rows that are right or wrong; not
        measurable where all denominators are 0."""
        if set(self.possible) == {1.0} and set(self.gained) <= {0.0, 1.0}:
            return replace(rate([row == 1 for row in self.gained]), unit=unit)
        gained, possible = np.asarray(self.gained), np.asarray(self.possible)
        if not possible.any():
            return Estimate.unmeasured(len(gained), unit=unit)
        index = np.random.default_rng(seed).integers(0, len(gained), (resamples, len(gained)))
        above, below = gained[index].sum(1), possible[index].sum(1)
        defined = below > 0  # a resample of F1 may hold neither a hit nor an error
        low, high = np.quantile(above[defined] / below[defined], (0.025, 0.975))
        return Estimate(
            value=float(gained.sum() / possible.sum()),
            n=len(gained),
            low=float(low),
            high=float(high),
            unit=unit,
            interval="bootstrap",
        )


def row_parts(metric: Metric, replies: Sequence[str], references: Sequence[str]) -> RowParts:
    """What every row adds to the metric's score.

    Raises:
        ValueError: as the metric.
    """
    if isinstance(metric, BinaryF1):
        return metric.parts(replies, references)
    pairs = _pairs(replies, references)
    return RowParts(tuple(metric([reply], [wanted]).value for reply, wanted in pairs), (1.0,) * len(pairs))


def _pairs(replies: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Each reply with its reference.

    Raises:
        ValueError: as many replies as references are needed.
    """
    if len(replies) != len(references):
        raise ValueError(f"each reply needs its reference, got {len(replies)} and {len(references)}")
    return list(zip(replies, references, strict=True))
