"""Callbacks of a run of TRL's trainers: states that a killed run continues from, and a loss that is not a number.

    trainer = GRPOTrainer(..., callbacks=[FiniteLoss(), KeepStates(every=5)])
    last = last_state(parts)                                     # of `interp.training.saving`
    trainer.train(resume_from_checkpoint=None if last is None else str(last))

The arguments that they need are `TRAINER_ARGUMENTS`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from interp.training.saving import mark_complete

TRAINER_ARGUMENTS = {
    "save_strategy": "no",  # `KeepStates` asks for it
    "save_total_limit": 2,  # the last may be incomplete when the run is killed
    "logging_nan_inf_filter": False,  # transformers would log the mean of the other losses in the place of NaN
}
"""Arguments of a trainer with these callbacks."""


class KeepStates(TrainerCallback):
    """Makes the trainer save its state every so many steps, but not of the last one or one that stops the run."""

    def __init__(self, every: int, write: Callable[[Path], None] | None = None) -> None:
        self.every, self.write = every, write

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (Trainer's signature)
        """Ask for a saved state."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            control.should_save = False
        elif state.global_step % self.every == 0:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Write what the trainer does not know, then mark the state as complete."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.write is not None:
            self.write(folder)
        mark_complete(folder)


class FiniteLoss(TrainerCallback):
    """Raises a ValueError at the first loss logged that is not a number: the weights are lost from there on."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Look at the mean loss since the previous entry."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise ValueError(
                f"the loss is not a number at step {state.global_step}; take a smaller learning rate, load the model "
                "in float32 or bfloat16, and check the rewards if there are any"
            )
