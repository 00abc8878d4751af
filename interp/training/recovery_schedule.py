"""The schedule of a recovery: warm-up, the task score's decision about rollback, saved steps and the pick.

Source: Yang et al. 2025, arXiv:2504.09757, as released; `interp.training.recovery_steps` has the steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from interp.display.progress import progress
from interp.models.chat_model import ChatModel
from interp.models.scalars import finite_number
from interp.stats import Estimate
from interp.training.recovered import RecoveryStep
from interp.training.recovery_config import RecoveryConfig
from interp.training.recovery_progress import Progress, read_progress, write_progress
from interp.training.recovery_steps import RecoverySteps, untouched

TaskScore = Callable[[ChatModel], Estimate | float | int]
"""Score of a model on the downstream task, above 0; higher is better."""


def pick_step(scores: Mapping[int, Estimate], floor: float) -> int:
    """The last saved step before the first whose task score is at or below the floor; 0 where the first one is.

    Looks at the task score alone, never at what the model refuses.

    Args:
        scores: task score by saved step, ascending.
    """
    picked = 0
    for step, score in scores.items():
        if score.value <= floor:
            break
        picked = step
    return picked


class Schedule:
    """The course of a recovery, step by step, from where it was interrupted.

    Args:
        model: the fine-tuned model.
        steps: its recovery steps.
        task_score: scores it as it is when called.
        show: draw progress.
        file: where every saved step is kept; None keeps none.
        key: what the recovery depends on; another one's file is not used.
    """

    def __init__(
        self,
        model: ChatModel,
        steps: RecoverySteps,
        task_score: TaskScore,
        config: RecoveryConfig,
        *,
        show: bool,
        file: Path | None,
        key: str,
    ) -> None:
        self._model, self._on, self._score, self._config, self._show = model, steps, task_score, config, show
        self._file, self._key = file, key
        self._steps: list[RecoveryStep] = []
        self.discarded: tuple[RecoveryStep, ...] = ()
        """The warm-up, where it was thrown away."""
        self._rollback: bool | None = None
        self.saved: dict[int, Mapping[str, Tensor]] = {0: {}}
        """Places of the restored weights after every saved step."""

    @property
    def steps(self) -> tuple[RecoveryStep, ...]:
        """Steps that led to the picked one and beyond, from the fine-tuned model on."""
        return tuple(self._steps)

    @property
    def used_rollback(self) -> bool:
        """Whether steps roll back."""
        return bool(self._rollback)

    @property
    def floor(self) -> float:
        """Task score that a step must exceed: that of the fine-tuned model less what may be lost, minus infinity where
        any may be; NaN before it ran."""
        start = self._steps[0].task_score if self._steps else None
        allowed = self._config.max_task_drop
        if start is None:
            return math.nan
        return -math.inf if allowed == 1 else start.value * (1 - allowed)

    @property
    def picked(self) -> int:
        """The picked step."""
        scores = {step.step: step.task_score for step in self._steps[1:] if step.task_score is not None}
        return pick_step(scores, self.floor)

    def run(self) -> None:
        """Warm up, go on without rollback or start again with it."""
        config = self._config
        if self._resumed():
            return
        if not self._steps:
            self._steps = [self._measured(untouched())]
            self._check_start()
            self._keep()
        if self._rollback is None:
            self._walk(min(config.warmup, config.steps), rollback=False)
            score = self._steps[-1].task_score
            self._rollback = score is not None and score.value < self.floor
            if self._rollback:
                self.discarded, self._steps = tuple(self._steps[1:]), self._steps[:1]
                self._on.start_again()
                self.saved = {0: {}}
            self._keep()
        self._walk(config.steps, rollback=self._rollback)
        self._keep(finished=True)

    def _check_start(self) -> None:
        score = self._steps[0].task_score
        assert score is not None
        if not score.value > 0:
            raise ValueError(
                f"the task score of {self._model.name} is {score.value:g}, so no share of it can be kept; "
                "give a score above 0 where higher is better"
            )

    def _walk(self, last: int, *, rollback: bool) -> None:
        """Steps up to `last`, ended early once nothing is left to restore; the saved ones are scored."""
        before = self._steps[-1]
        if before.step and not before.n_restored:
            return
        label = "recovery steps with rollback" if rollback else "recovery steps"
        numbers = range(before.step + 1, last + 1)
        for number in progress(numbers, total=len(numbers), label=label, show=self._show):
            step = self._on.recovery_step(number, rollback=rollback)
            if rollback and step.n_restored:
                step = self._on.rollback_step(step)
            saves = not step.n_restored or number == last or number % self._config.save_every == 0
            if saves:
                self.saved[number] = self._on.restoration.places()
                step = self._measured(step)
            self._steps.append(step)
            if saves:
                self._keep()
            if not step.n_restored:
                break

    def _measured(self, step: RecoveryStep) -> RecoveryStep:
        """A saved step, with the cosines to both references and the task score."""
        harmful, task = self._on.cosines()
        score = _estimate(self._score(self._model))
        return replace(step, harmful_cosine=harmful, task_cosine=task, task_score=score)

    def _keep(self, *, finished: bool = False) -> None:
        """Write how far it has come."""
        if self._file is None:
            return
        sums = {} if finished or self._config.accumulate == "cleared" else self._on.gradients
        kept = Progress(
            course=self.steps,
            discarded=self.discarded,
            rollback=self._rollback,
            finished=finished,
            saved=self.saved,
            gradients=sums,
            n_batches=self._on.n_batches,
        )
        write_progress(self._file, kept, self._key)

    def _resumed(self) -> bool:
        """Go to where the recovery was interrupted, if it was; returns whether it is finished."""
        if self._file is None:
            return False
        kept = read_progress(self._file, self._key)
        if not kept.course:
            return False
        self._steps, self.discarded, self._rollback = list(kept.course), kept.discarded, kept.rollback
        self.saved = dict(kept.saved)
        if not kept.finished:
            self._on.resume(self.saved[self._steps[-1].step], kept.gradients, kept.n_batches)
        return kept.finished


def _estimate(score: object) -> Estimate:
    """A task score as an estimate.

    Raises:
        ValueError: not a finite number.
    """
    if isinstance(score, Estimate) and score.measurable:
        return score
    try:
        return Estimate(value=finite_number(score, "the task score"), n=1)
    except ValueError:
        raise ValueError(
            f"the task score must be a finite number or an Estimate, got {score!r:.80}; check the function that "
            "was given"
        ) from None
