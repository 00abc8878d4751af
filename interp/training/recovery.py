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

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.engine.reads import check_model
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.reference_weights import ReferenceWeights, reference_weights
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.models.weight_deltas import WeightChange, WeightDelta, put_changes
from interp.storage.paths import expanded
from interp.training.recovered import Recovered, RecoveryStep, restored_share
from interp.training.recovery_config import RecoveryConfig
from interp.training.recovery_progress import progress_key
from interp.training.recovery_schedule import Schedule, TaskScore, pick_step
from interp.training.recovery_steps import RecoverySteps
from interp.training.weight_restoration import places_of

__all__ = ["Recovered", "RecoveryConfig", "RecoveryStep", "pick_step", "recover", "restored_share"]

logger = logging.getLogger(__name__)


def recover(
    finetuned: ChatModel,
    aligned: ChatModel | str | Path,
    harmful: PromptInput,
    task: PromptInput,
    task_score: TaskScore | None,
    config: RecoveryConfig | None = None,
    *,
    resume: str | Path | None = None,
    fast: bool = True,
    show_progress: bool = False,
) -> Recovered:
    """Find a sparse change of the fine-tuned model that brings its alignment back, at little loss on the task.

    The fine-tuned model computes with changed weights meanwhile, and has its own again, bit for bit, when this returns
    or raises: other threads must not use it. Memory beside both models: one gradient of the weights below the cut, and
    the activations of a pass.

    Args:
        finetuned: the broken model, an adapter merged; of precision `fast` it takes gradients by products in bfloat16,
            which rank some weights near the limit otherwise.
        aligned: the model before fine-tuning, loaded or as a folder of safetensors, which are read tensor by tensor.
        harmful: prompts that the aligned model refuses, 256 in the paper; rendered by the fine-tuned model's template.
        task: prompts of the downstream task, 256 training prompts in the paper.
        task_score: scores a model on the task: decides about rollback and where to stop. Its prompts must never be
            those that are reported.
        config: settings; the released ones when None.
        resume: file in which every saved step is kept, so that a killed recovery of the same models, prompts and
            settings goes on from there, with an equal result, and a finished one is read from it. Remove it when the
            result is stored. The task score must be the same function.
        fast: pack prompts and stop at the cut; False runs each mini-batch padded through all blocks.

    Raises:
        ValueError: no task score, or one that is not a number above 0; no loaded model; models that are no pair of one
            architecture, vocabulary and tokenizer; quantised weights; no prompts; gradients or activations that are
            not finite.
        OSError: the disk of `resume` is full or not writable; the older file is untouched.
        RuntimeError: the weights are not those of before, because the task score changed them.
    """
    check_model(finetuned)
    config, task_score = _settings(config), _checked(task_score)
    reference = reference_weights(aligned, finetuned)
    prompts = _tokens(finetuned, harmful), _tokens(finetuned, task)
    steps = RecoverySteps(finetuned, reference, *prompts, config, fast=fast)
    before = finetuned.weights_hash
    schedule = Schedule(
        finetuned,
        steps,
        task_score,
        config,
        show=show_progress,
        file=None if resume is None else expanded(resume),
        key=_key(finetuned, before, reference, prompts, config),
    )
    _run(finetuned, reference, steps, schedule, before)
    changes = steps.restoration.change_to_reference(schedule.saved[schedule.picked])
    delta = WeightDelta(
        changes=changes,
        base_hash=before,
        result_hash=_hash_with(finetuned, changes),
        base=finetuned.name,
        provenance=_provenance(finetuned, reference, prompts, schedule, config),
    )
    return Recovered(
        delta=delta,
        steps=schedule.steps,
        discarded=schedule.discarded,
        saved=schedule.saved,
        picked_step=schedule.picked,
        used_rollback=schedule.used_rollback,
        floor=schedule.floor,
        n_different=steps.n_different,
        places=places_of(finetuned, config.cut_layer(finetuned.n_layers)),
        config=config,
    )


def _key(
    finetuned: ChatModel,
    weights_hash: str,
    reference: ReferenceWeights,
    prompts: tuple[ChatTokens, ChatTokens],
    config: RecoveryConfig,
) -> str:
    """What the progress that is kept depends on."""
    facts = {
        "config": asdict(config),
        "finetuned": [weights_hash, finetuned.template_hash],
        "aligned": reference.digest,
        "prompts": [part.identity.hash for part in prompts],
    }
    if finetuned.precision == "fast":  # its products round
        facts["precision"] = "fast"
    return progress_key(facts)


def _provenance(
    finetuned: ChatModel,
    reference: ReferenceWeights,
    prompts: tuple[ChatTokens, ChatTokens],
    schedule: Schedule,
    config: RecoveryConfig,
) -> dict[str, Any]:
    return {
        "method": "recovery",
        "config": asdict(config),
        "finetuned": finetuned.provenance,
        "aligned": {"name": reference.name, "hash": reference.digest},
        "harmful": prompts[0].identity.hash,
        "task": prompts[1].identity.hash,
        "picked_step": schedule.picked,
        "used_rollback": schedule.used_rollback,
    }


def _run(
    finetuned: ChatModel, reference: ReferenceWeights, steps: RecoverySteps, schedule: Schedule, before: str
) -> None:
    """Run the schedule, if there is something to restore, and put the model's own weights back."""
    try:
        if steps.n_different:
            schedule.run()
        else:
            logger.warning(
                "%s has the weights of %s below the cut, so there is nothing to recover",
                finetuned.name,
                reference.name,
            )
    finally:
        steps.restoration.undo()
    if finetuned.weights_hash != before:
        raise RuntimeError(
            f"the weights of {finetuned.name} are not what they were before the recovery: the task score changed them; "
            "load the model again"
        )


def _settings(config: object) -> RecoveryConfig:
    """The settings, the released ones for None.

    Raises:
        ValueError: something else.
    """
    config = RecoveryConfig() if config is None else config
    if not isinstance(config, RecoveryConfig):
        raise ValueError(f"config must be a RecoveryConfig, got {type(config).__name__}")
    return config


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


def _tokens(model: ChatModel, prompts: PromptInput) -> ChatTokens:
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens)
    return tokens
