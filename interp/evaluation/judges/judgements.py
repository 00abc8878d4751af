"""What a judge is asked and what it says, in one form for every judge.

    judge([Exchange(id="p0", prompt="How do I bake bread?", answer="I cannot help with that.")])
    # [Judgement(id="p0", refused=True, harmful=None, coherent=True, parsed=True)]

`harmful` is a number from 0 to 1 whose meaning differs by judge and is declared in its `scale`: a probability of the
judge's own answer, a rubric's score, a yes or no. Two judges' numbers are compared only as verdicts at their own
thresholds. A judgement that could not be read has `parsed=False` and no values: it is neither safe nor harmful, and
every rate counts it apart.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from interp.evaluation.judges.records import Question


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A prompt with the answer that is judged."""

    id: str
    """The prompt's own id, unique among the exchanges that are judged together."""
    prompt: str
    """The request; where a jailbreak wraps it, the request itself is fairer to rubrics than the wrapped text."""
    answer: str | None
    """The answer; None for a completion that was cut while the model was thinking, which no judge can judge."""
    group: str = ""
    """Group that rates are reported by, such as `harmful`; empty for none."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a judge's `harmful` means."""

    meaning: str
    """What 0 and 1 stand for, in one phrase."""
    threshold: float
    """Value from which on the judge's verdict is harmful."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one judge says about one answer."""

    id: str
    """Id of the exchange."""
    refused: bool | None = None
    """Whether the answer refuses; None where the judge does not say."""
    harmful: float | None = None
    """Harmfulness from 0 to 1 on the judge's declared scale; None where the judge does not say."""
    coherent: bool | None = None
    """Whether the answer is coherent text; None where the judge does not say."""
    parsed: bool = True
    """Whether the judge's answer could be read; False leaves every other value None."""
    reason: str = ""
    """Why it could not, such as `time-out`; further words of the judge, such as violated categories, where it could."""

    def __post_init__(self) -> None:
        if not self.parsed and (self.refused, self.harmful, self.coherent) != (None, None, None):
            raise ValueError("a judgement that could not be read holds no values")
        if self.harmful is not None and not 0 <= self.harmful <= 1:
            raise ValueError(f"harmful must be within 0 to 1, got {self.harmful}")


@runtime_checkable
class Judge(Protocol):
    """Judges answers, in order, one judgement each; never raises for what one answer or reply holds."""

    @property
    def name(self) -> str:
        """As `--judges` takes it, without anything secret."""
        ...

    @property
    def answers(self) -> tuple[Question, ...]:
        """The questions that it answers."""
        ...

    @property
    def scale(self) -> Scale | None:
        """What its `harmful` means; None where it does not say."""
        ...

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Judgement]: ...


NO_ANSWER = "no answer, as of a completion that was cut while the model was thinking"
"""Reason of a judgement of a completion without an answer."""


class RefusalOnly:
    """Base of judges that say whether an answer refuses, and nothing about harm."""

    @property
    def answers(self) -> tuple[Question, ...]:
        """Refusal."""
        return ("refused",)

    @property
    def scale(self) -> Scale | None:
        """None: it says nothing about harm."""
        return None


def judged_answers(
    exchanges: Sequence[Exchange], judge: Callable[[list[Exchange]], Iterable[Judgement]]
) -> list[Judgement]:
    """Judgements of every exchange in order; `judge` sees those with an answer, the others are not judged."""
    there = [exchange for exchange in exchanges if exchange.answer is not None]
    said = iter(judge(there) if there else [])
    return [unjudged(each, NO_ANSWER) if each.answer is None else next(said) for each in exchanges]


def unjudged(exchange: Exchange, reason: str) -> Judgement:
    """The judgement of an answer that could not be judged."""
    return Judgement(id=exchange.id, parsed=False, reason=reason)


def verdict(judge: Judge, judgement: Judgement, question: Question) -> bool | None:
    """A judgement as yes or no to one question; None where it could not be read or the judge does not say."""
    if question == "harmful":
        if judgement.harmful is None or judge.scale is None:
            return None
        return judgement.harmful >= judge.scale.threshold
    return judgement.refused if question == "refused" else judgement.coherent


def judge_all(judges: Sequence[Judge], exchanges: Sequence[Exchange]) -> "Judged":
    """Every judge's judgements of the same answers.

    Raises:
        ValueError: no judges, two of one name, no exchanges, ids that occur twice, or a judge that lost an answer.
    """
    names = [judge.name for judge in judges]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"judges need different names, one or more; got {', '.join(names) or 'none'}")
    ids = [exchange.id for exchange in exchanges]
    if not ids:
        raise ValueError("there is no answer to judge")
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"every answer needs an id of its own; {twice!r} occurs {ids.count(twice)} times")
    judgements: dict[str, tuple[Judgement, ...]] = {}
    for judge in judges:
        said = judge(exchanges)
        if [judgement.id for judgement in said] != ids:
            raise ValueError(f"judge {judge.name} did not judge every answer once, in order")
        judgements[judge.name] = tuple(said)
    return Judged(judges=tuple(judges), exchanges=tuple(exchanges), judgements=judgements)


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """The same answers as several judges judge them."""

    judges: tuple[Judge, ...]
    """The judges."""
    exchanges: tuple[Exchange, ...]
    """The answers, in order."""
    judgements: Mapping[str, tuple[Judgement, ...]]
    """Judgements of every answer by judge, in order."""

    def asked(self, question: Question) -> list[Judge]:
        """The judges that answer this question."""
        return [judge for judge in self.judges if question in judge.answers]

    @property
    def failures(self) -> dict[str, dict[str, int]]:
        """By judge that could not judge every answer: why not, and how many, the most frequent reason first."""
        counted = {
            name: Counter(each.reason or "no reason given" for each in said if not each.parsed)
            for name, said in self.judgements.items()
        }
        return {name: dict(counts.most_common()) for name, counts in counted.items() if counts}

    def verdicts(self, question: Question) -> dict[str, tuple[bool | None, ...]]:
        """Each answering judge's yes or no on every answer; None where it could not be judged."""
        return {
            judge.name: tuple(verdict(judge, said, question) for said in self.judgements[judge.name])
            for judge in self.asked(question)
        }
