"""Tracking a model while it is trained by transformers' Trainer or any of TRL's.

    trainer = SFTTrainer(...)
    ElasticityCallback(every=50, out="runs/live").attach(trainer)

Training is identical with and without the callback: a measurement happens between two optimiser steps, in eval mode,
without gradients, with its own caches, and restores the mode of every module and the state of every random generator
(Python, NumPy, torch on all devices). Values go to whatever the trainer reports to (TensorBoard, W&B, trackio) as
`elasticity/{measure}/{prompts}`, and as a `Trajectory` to `out`. The cost of a measurement is reported with them, in
seconds and in training steps.
"""

import logging
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from interp.models.adapters import method_name
from interp.models.chat_model import ChatModel
from interp.models.logit_checks import probe_logits, probe_tokens, relative_difference, tolerance_of
from interp.storage.paths import expanded
from interp.storage.stages import StageCache
from interp.storage.typed_json import first_line
from interp.tracking.measures import measure
from interp.tracking.records import CheckpointRecord, Cost, Group, Measurement, ReferenceRecord
from interp.tracking.references import fit_reference, keep_reference
from interp.tracking.spec import Reference, TrackingSpec
from interp.tracking.trajectory import Trajectory, assemble

logger = logging.getLogger(__name__)

LIVE_MEASURES: tuple[Group, ...] = (
    "refusal",
    "beliefs",
    "directions",
    "shift",
    "guard",
    "compression",
    "kl",
    "detectability",
)
"""Groups of measures for a live model: all but the weight change, and KL only on the reference's samples."""


def live_spec() -> TrackingSpec:
    """A spec small enough to be measured every few training steps."""
    measures: tuple[Group, ...] = ("refusal", "directions", "shift", "guard", "compression")
    return TrackingSpec(measures=measures, n=16, n_fit=32, n_documents=8, max_new_tokens=12)


class ElasticityCallback(TrainerCallback):
    """Measures the model at the start of training and then at regular training steps, or at each save.

    Args:
        spec: what to measure, of `LIVE_MEASURES`; None is `live_spec()`.
        every: optimiser steps between measurements; None measures at each save.
        out: folder of the trajectory, complete after every measurement; None is `{output_dir}/elasticity`.
        reference: what to measure against; None is the model at the start of training, which is kept beside `out` for
            a resumed run.
        tokenizer: the model's; None takes the trainer's `processing_class`.
        drawn: whether figures and a report are written when training ends; `Trajectory.save` draws them later.

    Raises:
        ValueError: `every` below 1, or a group of measures that a live model does not allow.
    """

    def __init__(
        self,
        spec: TrackingSpec | None = None,
        *,
        every: int | None = None,
        out: str | Path | None = None,
        reference: Reference | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        drawn: Literal["at end", "never"] = "at end",
    ) -> None:
        self.drawn = drawn
        self.spec = spec or live_spec()
        if every is not None and every < 1:
            raise ValueError(
                f"every must be 1 step or more, got {every}; leave it out to measure at each save"
            )
        if refused := [name for name in self.spec.measures if name not in LIVE_MEASURES]:
            raise ValueError(
                f"{', '.join(refused)} cannot be measured on a live model; track() measures it on saved checkpoints"
            )
        self.every, self.reference, self.tokenizer = every, reference, tokenizer
        self.out = None if out is None else expanded(out)
        self.trajectory: Trajectory | None = None
        """The measurements so far; None before the first."""
        self._series: list[CheckpointRecord] = []
        self._begun = 0.0
        self._step_seconds: list[float] = []
        self._handler: CallbackHandler | None = None
        self._warned = False

    def attach(self, trainer: Trainer) -> "ElasticityCallback":
        """Add the callback to a trainer and report to whatever the trainer reports to.

        A callback passed to the trainer's constructor also measures, but a trainer does not tell its callbacks about
        each other: without this call values only go to the trainer's history and to `out`.
        """
        handler: CallbackHandler = trainer.callback_handler
        if self not in handler.callbacks:
            trainer.add_callback(self)
        self._handler = handler
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Fit the reference and measure training step 0, or continue the trajectory of a resumed run.

        Raises:
            ValueError: no tokenizer, or a model whose trained part the measurements would not see.
        """
        if not state.is_world_process_zero:
            return
        with untouched(given["model"]):
            self._begin(args, state, control, given)

    def _begin(self, args: Any, state: Any, control: Any, given: Mapping[str, Any]) -> None:
        tokenizer = self.tokenizer or given.get("processing_class")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                "ElasticityCallback needs the tokenizer; give tokenizer=, or processing_class to the trainer"
            )
        self.out = self.out or Path(args.output_dir) / "elasticity"
        folder = self.out.with_name(f"{self.out.name}.parts")
        if state.global_step == 0:
            shutil.rmtree(folder, ignore_errors=True)
        self._cache = StageCache(folder, self.spec.key)
        self._series = _before(self._cache, state.global_step)
        self._step_seconds = []
        from accelerate.utils import extract_model_from_parallel

        self._trained: Any = extract_model_from_parallel(given["model"])
        self._model = _chat_model(self._trained, tokenizer)
        self._against = self.reference or keep_reference(
            self._cache, "reference", lambda: fit_reference(self._model, self.spec)
        )
        if state.global_step not in [record.step for record in self._series]:
            self._measure_here(args, state, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (Trainer's signature)
        """Start timing the training step."""
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure at every `every`-th training step."""
        self._step_seconds.append(time.perf_counter() - self._begun)
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure at each save where `every` is None."""
        if self.every is None and state.global_step not in [record.step for record in self._series]:
            self._measure(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Write the figures and the report."""
        if state.is_world_process_zero and self.trajectory is not None and self.drawn == "at end":
            assert self.out is not None
            with untouched(self._model.hf):
                self.trajectory.save(self.out)

    def _measure(self, args: Any, state: Any, control: Any) -> None:
        if state.is_world_process_zero:
            with untouched(self._model.hf):
                self._measure_here(args, state, control)

    def _measure_here(self, args: Any, state: Any, control: Any) -> None:
        assert self.out is not None
        begun = time.perf_counter()
        if hasattr(self._trained, "active_peft_config"):  # a method may only begin to differ in training
            check_base_computes_the_same(self._trained)
        rows = measure(self._model, self.spec, self._against)
        seconds = time.perf_counter() - begun
        step = int(state.global_step)
        record = CheckpointRecord(
            label=f"step {step}", step=step, fingerprint="", rows=tuple(rows), seconds=round(seconds, 3)
        )
        self._cache.put(f"step-{step}", record, CheckpointRecord)
        self._series.append(record)
        cost = self._cost(seconds)
        reference = ReferenceRecord(label=self._series[0].label, fingerprint="", facts=self._against.facts)
        self.trajectory = Trajectory(
            assemble(self._series, reference, self._against.model, self.spec, cost=cost)
        )
        self.trajectory.save(self.out, drawn=False)
        costs = {} if cost is None else {f"elasticity/{name}": value for name, value in vars(cost).items()}
        self._report(args, state, control, _flat(rows) | costs)

    def _cost(self, seconds: float) -> Cost | None:
        """Cost of a measurement of this many seconds, in median training steps; None before the first step."""
        if not self._step_seconds:
            return None
        step = float(np.median(self._step_seconds))
        every = self.every or max(1, len(self._step_seconds))
        return Cost(
            seconds_per_measurement=seconds,
            seconds_per_step=step,
            steps_per_measurement=seconds / step,
            share_of_training=seconds / (seconds + every * step),
        )

    def _report(self, args: Any, state: Any, control: Any, logs: dict[str, float]) -> None:
        """Log as the trainer itself would: to its history and to every callback that reports.

        Setting `control.should_log` would log the loss at additional steps. The trainer's handler passes a log on to
        all callbacks.
        """
        if state.epoch is not None:
            logs["epoch"] = state.epoch
        state.log_history.append({**logs, "step": state.global_step})
        if self._handler is None:
            if args.report_to and not self._warned:
                self._warned = True
                logger.warning(
                    "values go to %s and the trainer's history, not to %s; call attach(trainer) on the callback",
                    self.out,
                    ", ".join(args.report_to),
                )
            return
        asked = control.should_log
        self._handler.on_log(args, state, control, dict(logs))
        control.should_log = asked  # on_log resets the request of this training step


def _before(cache: StageCache, step: int) -> list[CheckpointRecord]:
    """The measurements of a resumed run up to this training step, in order."""
    records = [cache.get(name, CheckpointRecord) for name in cache.names("step-")]
    return sorted((r for r in records if (r.step or 0) <= step), key=lambda r: r.step or 0)


def _flat(rows: Sequence[Measurement]) -> dict[str, float]:
    """Values by their name in logs."""
    return {
        f"elasticity/{row.measure}/{str(row.prompts).replace(' ', '_')}": row.estimate.value
        for row in rows
        if row.estimate.measurable
    }


def _chat_model(plain: Any, tokenizer: PreTrainedTokenizerBase) -> ChatModel:
    """The trained model, with its adapter in place, as a `ChatModel`.

    Raises:
        ValueError: the model that is trained is more than its modules, as under virtual tokens.
    """
    from peft import PeftModel

    if isinstance(plain, PeftModel):
        check_base_computes_the_same(plain)
        plain = plain.get_base_model()
    if not isinstance(plain, PreTrainedModel):
        raise ValueError(
            f"ElasticityCallback measures transformers models and PEFT adapters on them, got {type(plain).__name__}"
        )
    name = Path(str(plain.config.name_or_path)).name or "live model"
    return ChatModel(plain, tokenizer, name=name)


@torch.no_grad()
def check_base_computes_the_same(adapted: Any) -> None:
    """Compare the logits of a few tokens between a `PeftModel` and the base model that holds its modules.

    The measurements run the base model. Virtual tokens (prompt, prefix and P-tuning), mixtures that PEFT computes
    before a pass and adapters that wait for a string act outside it.

    Raises:
        ValueError: the two differ beyond rounding, or the trained model does not run on tokens alone.
    """
    config, base = adapted.active_peft_config, adapted.get_base_model()
    what = f"the live callback cannot measure {method_name(config)}"
    remedy = "train an adapter of weights, such as LoRA, or leave the callback out"
    if config.is_prompt_learning:
        raise ValueError(
            f"{what}: it learns virtual tokens, which the measured model does not have; {remedy}"
        )
    ids = probe_tokens(base)
    if invocation := getattr(config, "alora_invocation_tokens", None):
        ids = torch.cat([ids, torch.tensor([invocation], device=ids.device), ids], dim=1)
    try:
        trained = probe_logits(adapted, ids)
    except Exception as error:  # a method that needs more than tokens, such as task numbers
        raise ValueError(
            f"{what}: it does not run on tokens alone ({first_line(error)}); {remedy}"
        ) from error
    gap = relative_difference(probe_logits(base, ids), trained)
    if not gap <= tolerance_of(base):
        raise ValueError(
            f"{what}: the measured model's logits differ by {gap:.2g} of their size from those of the "
            f"trained one; {remedy}"
        )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; restores the mode of every module and the state of every random generator."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_devices:
            torch.cuda.set_rng_state_all(on_devices)
