"""Reports of a training loop of ours to trackers and callbacks, in the form in which transformers' trainer reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks


class Reporter:
    """Sends values to trackers, and steps to callbacks.

    with Reporter(module, tokenizer, out, ["tensorboard"], callbacks) as reporter:
        reporter.begin(0, 50)
        reporter.log(1, {"policy/reward": 0.3})
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        out: Path,
        report_to: Sequence[str],
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self._given = {"model": module, "processing_class": tokenizer}
        made = [callback() for callback in get_reporting_integration_callbacks(list(report_to))]
        self._callbacks = [*made, *callbacks]
        # The arguments are only made where something reads them: they look for devices.
        self._arguments = (
            TrainingArguments(output_dir=str(out), report_to=list(report_to), use_cpu=True)
            if self._callbacks
            else None
        )
        self._state, self._control = TrainerState(), TrainerControl()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._each("on_train_end")

    def begin(self, step: int, steps: int) -> None:
        """Training starts, or continues, at a step."""
        self._state.global_step, self._state.max_steps = step, steps
        self._each("on_train_begin")

    @property
    def stop_asked(self) -> bool:
        """Whether a callback asked that training stop (`control.should_training_stop`)."""
        return self._control.should_training_stop

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """A step ended with these values."""
        self._state.global_step = step
        self._state.log_history.append({**values, "step": step})
        self._each("on_step_end")
        self._each("on_log", logs=dict(values))
        self._each("on_step_begin")

    def _each(self, event: str, **further: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(self._arguments, self._state, self._control, **self._given, **further)
