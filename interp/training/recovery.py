"""Alignment recovery: copy a few weights of the aligned model back into a fine-tuned one, chosen by gradients.

Fine-tuning an aligned model weakens its refusals. Recovery moves the states of harmful prompts back to where the
aligned model has them by giving single weights their aligned values, and gives some of them back where the task
suffers. With w the weights, w_al the aligned and w_ft the fine-tuned ones, a step

1. sums the gradients of -cos(mean of h over a mini-batch, d_harm) over all mini-batches of harmful prompts;
2. keeps weights whose w - w_al and gradient have the same sign: copying them lowers the loss to first order;
3. copies w_al for those of the largest |gradient|, `rate` of all parameters of blocks;
4. with rollback, does the same for task prompts among the weights just copied, and gives w_ft back.

Source: Yang, Tao, Chen, Xu 2025, "Alleviating the Fear of Losing Alignment in LLM Fine-tuning", IEEE S&P 2025,
arXiv:2504.09757, as released. Deviations: prompts are taken in the order given; fewer candidates than asked for are all
taken; norms never move, whatever they are called; a released gradient that is never cleared is a setting
(`accumulate`).

    aligned = interp.load("smollm2-safe")
    finetuned = interp.load("smollm2-safe", adapter="runs/sft")
    recovered = interp.recover(finetuned, aligned, harmful, task_prompts, task_score, RecoveryConfig())
    recovered.steps[-1].task_score, recovered.picked_step
    with recovered.applied(finetuned) as model: ...          # for a while; `copied` for a second model
    recovered.write("recovered.safetensors")                 # interp.load(..., delta="recovered.safetensors")

The task score decides where to stop, so **the prompts that it scores are training data**: a score of the recovered
model is reported on other prompts. Lower loss is not less harm: whether the recovered model refuses is for
`interp.evaluation` to say, and whether the gradient mattered for a control that restores as many weights at random
(`rank_by="random"`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from interp.display.progress import progress
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.reference_weights import reference_weights
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.models.weight_deltas import WeightChange, WeightDelta, put_changes
from interp.stats import Estimate
from interp.training.recovered import Recovered, RecoveryStep, restored_share
from interp.training.recovery_config import RecoveryConfig
from interp.training.recovery_steps import RecoverySteps, untouched
from interp.training.weight_restoration import places_of

__all__ = ["Recovered", "RecoveryConfig", "RecoveryStep", "recover", "restored_share"]

TaskScore = Callable[[ChatModel], Estimate | float | int]
"""Score of a model on the downstream task, above 0; higher is better."""


def recover(
    finetuned: ChatModel,
    aligned: ChatModel | str | Path,
    harmful: PromptInput,
    task: PromptInput,
    task_score: TaskScore | None,
    config: RecoveryConfig | None = None,
    *,
    fast: bool = True,
    show_progress: bool = False,
) -> Recovered:
    """Find a sparse change of the fine-tuned model that brings its alignment back, at little loss on the task.

    The fine-tuned model computes with changed weights meanwhile, and has its own again, bit for bit, when this returns
    or raises: other threads must not use it. Memory beside both models: one gradient of the weights below the cut, and
    the activations of a pass.

    Args:
        finetuned: the broken model, an adapter merged.
        aligned: the model before fine-tuning, loaded or as a folder of safetensors, which are read tensor by tensor.
        harmful: prompts that the aligned model refuses, 256 in the paper; rendered by the fine-tuned model's template.
        task: prompts of the downstream task, 256 training prompts in the paper.
        task_score: scores a model on the task: decides about rollback and where to stop. Its prompts must never be
            those that are reported.
        config: settings; the released ones when None.
        fast: pack prompts and stop at the cut; False runs each mini-batch padded through all blocks.

    Raises:
        ValueError: no task score, or one that is not a number above 0; models that are no pair of one architecture,
            vocabulary and tokenizer; quantised weights; no prompts; gradients or activations that are not finite.
        RuntimeError: the weights are not those of before, because the task score changed them.
    """
    config, task_score = config or RecoveryConfig(), _checked(task_score)
    cut = config.cut_layer(finetuned.n_layers)
    reference = reference_weights(aligned, finetuned)
    prompts = _tokens(finetuned, harmful), _tokens(finetuned, task)
    steps = RecoverySteps(finetuned, reference, *prompts, config, fast=fast)
    before, restoration = finetuned.weights_hash, steps.restoration
    schedule = _Schedule(finetuned, steps, task_score, config, show=show_progress)
    course = _Course((), (), 0, False, math.nan)
    try:
        if steps.n_different:
            course = schedule.run()
    finally:
        restoration.undo()
    if finetuned.weights_hash != before:
        raise RuntimeError(
            f"the weights of {finetuned.name} are not what they were before the recovery: the task score changed them; "
            "load the model again"
        )
    changes = restoration.change_to_reference(schedule.saved[course.picked])
    delta = WeightDelta(
        changes=changes,
        base_hash=before,
        result_hash=_hash_with(finetuned, changes),
        base=finetuned.name,
        provenance={
            "method": "recovery",
            "config": asdict(config),
            "finetuned": finetuned.provenance,
            "aligned": {"name": reference.name, "hash": reference.digest},
            "harmful": prompts[0].identity.hash,
            "task": prompts[1].identity.hash,
            "picked_step": course.picked,
            "used_rollback": course.rollback,
        },
    )
    return Recovered(
        delta=delta,
        steps=course.steps,
        discarded=course.discarded,
        picked_step=course.picked,
        used_rollback=course.rollback,
        floor=course.floor,
        n_different=steps.n_different,
        places=places_of(finetuned, cut),
        config=config,
    )


def _checked(task_score: TaskScore | None) -> TaskScore:
    """The task score, refused where it is none."""
    if task_score is None or not callable(task_score):
        raise ValueError(
            "recovery needs a task_score, a function of a model that returns a number (higher is better); without a "
            "task there is nothing to keep: restore all weights instead"
        )
    return task_score


def _hash_with(model: ChatModel, changes: Mapping[str, WeightChange]) -> str:
    """Hash of the model's weights with a change, which is undone."""
    weights = dict(model.hf.named_parameters())
    undo = put_changes(weights, changes)
    try:
        return model.weights_hash
    finally:
        put_changes(weights, undo)


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


class _Schedule:
    """The schedule of a recovery: warm-up, the task score's decision about rollback, saved steps and the pick.

    Args:
        model: the fine-tuned model.
        steps: its recovery steps.
        task_score: scores it as it is when called.
        show: draw progress.
    """

    def __init__(
        self,
        model: ChatModel,
        steps: RecoverySteps,
        task_score: TaskScore,
        config: RecoveryConfig,
        *,
        show: bool,
    ) -> None:
        self._model, self._on, self._score, self._config, self._show = model, steps, task_score, config, show
        self.saved: dict[int, dict[str, Tensor]] = {0: {}}
        """Places of the restored weights after every saved step."""

    def run(self) -> "_Course":
        """Warm up, go on without rollback or start again with it, and pick."""
        config = self._config
        start = self._measured(untouched())
        floor = self._floor(start)
        course = [start, *self._walk(0, min(config.warmup, config.steps), rollback=False)]
        discarded: list[RecoveryStep] = []
        score = course[-1].task_score
        rollback = score is not None and score.value < floor
        if rollback:
            discarded, course = course[1:], [start]
            self._on.start_again()
            self.saved = {0: {}}
        if course[-1].step == 0 or course[-1].n_restored:
            course += self._walk(course[-1].step, config.steps, rollback=rollback)
        scores = {step.step: step.task_score for step in course[1:] if step.task_score is not None}
        return _Course(tuple(course), tuple(discarded), pick_step(scores, floor), rollback, floor)

    def _floor(self, start: RecoveryStep) -> float:
        """Task score that a step must exceed: that of the fine-tuned model less what may be lost."""
        assert start.task_score is not None
        if not start.task_score.value > 0:
            raise ValueError(
                f"the task score of {self._model.name} is {start.task_score.value:g}, so no share of it can be kept; "
                "give a score above 0 where higher is better"
            )
        allowed = self._config.max_task_drop
        return -math.inf if allowed == 1 else start.task_score.value * (1 - allowed)

    def _walk(self, done: int, last: int, *, rollback: bool) -> list[RecoveryStep]:
        """Steps after `done` up to `last`, ended early once nothing is left to restore; the saved ones are scored."""
        steps: list[RecoveryStep] = []
        label = "recovery steps with rollback" if rollback else "recovery steps"
        numbers = range(done + 1, last + 1)
        for number in progress(numbers, total=len(numbers), label=label, show=self._show):
            step = self._on.recovery_step(number, rollback=rollback)
            if rollback and step.n_restored:
                step = self._on.rollback_step(step)
            if not step.n_restored or number == last or number % self._config.save_every == 0:
                self.saved[number] = self._on.restoration.places()
                step = self._measured(step)
            steps.append(step)
            if not step.n_restored:
                break
        return steps

    def _measured(self, step: RecoveryStep) -> RecoveryStep:
        """A saved step, with the cosines to both references and the task score."""
        harmful, task = self._on.cosines()
        score = _estimate(self._score(self._model))
        return replace(step, harmful_cosine=harmful, task_cosine=task, task_score=score)


class _Course(NamedTuple):
    """A finished schedule."""

    steps: tuple[RecoveryStep, ...]
    discarded: tuple[RecoveryStep, ...]
    picked: int
    rollback: bool
    floor: float


def _tokens(model: ChatModel, prompts: PromptInput) -> ChatTokens:
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens)
    return tokens


def _estimate(score: object) -> Estimate:
    """A task score as an estimate.

    Raises:
        ValueError: not a finite number.
    """
    estimate = score if isinstance(score, Estimate) else None
    if estimate is None and isinstance(score, (int, float)):
        estimate = Estimate(value=float(score), n=1)
    if estimate is None or not estimate.measurable:
        raise ValueError(
            f"the task score must be a finite number or an Estimate, got {score!r}; check the function that was given"
        )
    return estimate
