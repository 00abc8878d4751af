"""Replies of a run, recorded where they are generated, so that judges see them afterwards whatever the experiment is.

    with recording() as recorder:
        ...                                       # generates, in stages that `StageCache.keep` names
    recorder.replies                              # every completion with its prompt, stage and interventions

Nothing is recorded outside the context. A stage that is read instead of computed gives back the replies that it
recorded when it was computed, so that an interrupted run loses none.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class RecordedReply:
    """One completion of a run."""

    stage: str
    """Stage in which it was generated; empty outside stages until the next lap."""
    interventions: str
    """Kinds of the interventions that were active, such as `Ablate`; empty without one."""
    id: str
    """Id of the prompt."""
    prompt: str
    """Text of the prompt, without its template."""
    answer: str | None
    """The completion without a thought; None for one that was cut while the model was thinking."""


class FurtherPrompt(NamedTuple):
    """A prompt that is not of the run's prompt set."""

    id: str
    """Its id, unique together with its group."""
    request: str
    """What it asks, as a judge reads it."""
    group: str
    """Group that rates are reported by."""


class ReplyRecorder:
    """Collects the replies of one run."""

    def __init__(self) -> None:
        self.replies: list[RecordedReply] = []
        """Replies in the order in which they were generated or read."""
        self.further: dict[str, FurtherPrompt] = {}
        """Prompts that are not of the run's prompt set and whose replies judges see as well, by their text."""
        self._stages: list[tuple[str, list[RecordedReply]]] = []

    def record(
        self, ids: Sequence[str], prompts: Sequence[str], answers: Sequence[str | None], interventions: str
    ) -> None:
        """Add the completions of one call."""
        stage = self._stages[-1][0] if self._stages else ""
        place = self._stages[-1][1] if self._stages else self.replies
        for name, prompt, answer in zip(ids, prompts, answers, strict=True):
            place.append(
                RecordedReply(stage=stage, interventions=interventions, id=name, prompt=prompt, answer=answer)
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[list[RecordedReply]]:
        """A named stage; gives the list of its own replies, which are complete when the context exits."""
        own: list[RecordedReply] = []
        self._stages.append((name, own))
        try:
            yield own
        finally:
            self._stages.pop()
            self.replies += own

    def lap(self, name: str) -> None:
        """Name the replies that were generated outside stages since the last lap."""
        self.replies = [replace(each, stage=name) if not each.stage else each for each in self.replies]


_RECORDER: ContextVar[ReplyRecorder | None] = ContextVar("reply recorder", default=None)


@contextmanager
def recording() -> Iterator[ReplyRecorder]:
    """Record the replies that are generated in this context."""
    recorder = ReplyRecorder()
    token = _RECORDER.set(recorder)
    try:
        yield recorder
    finally:
        _RECORDER.reset(token)


def recorder() -> ReplyRecorder | None:
    """The recorder of this context; None where nothing is recorded."""
    return _RECORDER.get()


def record_replies(
    ids: Sequence[str], prompts: Sequence[str], answers: Sequence[str | None], interventions: Sequence[object]
) -> None:
    """Record the completions of one call, where this context records."""
    if (record := recorder()) is not None:
        record.record(ids, prompts, answers, "+".join(type(each).__name__ for each in interventions))


def judge_further(prompts: Sequence[str], ids: Sequence[str], requests: Sequence[str], group: str) -> None:
    """Have judges see the replies to these prompts, which are not of the run's prompt set, where this context records.

    Args:
        prompts: texts of the prompts, the last message of a conversation.
        requests: what each asks, as a judge reads it.
    """
    if (record := recorder()) is not None:
        for prompt, name, request in zip(prompts, ids, requests, strict=True):
            record.further[prompt] = FurtherPrompt(name, request, group)
