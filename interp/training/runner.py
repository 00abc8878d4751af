"""One fine-tuning run of a transformers trainer: trained parameters, checkpoints at example counts, resuming.

`interp.training.finetune` provides the trainer, supervised or preference-based. In both cases:

- the given model is unchanged when the run ends: an adapter is removed, full weights are restored;
- checkpoints count training examples seen, and are folders that `interp.load` takes;
- beside each checkpoint the trainer keeps its own (optimiser, schedule, RNG) in `<out>.parts`, so that a killed run
  continues to the same weights, bit for bit; the parts are removed at the end;
- a finished run with equal settings is only read;
- in a model of precision `fast` the products with frozen weights are in bfloat16 (`interp.engine.half_products`).
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from interp.engine.batching import is_out_of_memory
from interp.engine.half_products import HalfWeights, half_products
from interp.models.adapters import attach_adapter, quiet_peft
from interp.models.chat_model import ChatModel
from interp.models.snapshots import Snapshot
from interp.storage.atomic_files import remove_folder
from interp.storage.locks import folder_lock, resolved
from interp.storage.typed_json import first_line
from interp.training.config import TrainConfig
from interp.training.saving import (
    Trained,
    last_state,
    mark_complete,
    open_parts,
    parts_folder,
    read_finished,
    run_key,
    write_checkpoint,
    write_record,
)
from interp.training.trainer_states import TRAINER_ARGUMENTS, FiniteLoss

logger = logging.getLogger(__name__)


MakeTrainer = Callable[[Any, Mapping[str, Any], list[TrainerCallback]], Trainer]
"""Builds a trainer from the model or adapter to train, training arguments and callbacks."""


def run_trainer(
    model: ChatModel,
    examples: Sequence[tuple[str, ...]],
    make_trainer: MakeTrainer,
    out: Path,
    config: TrainConfig,
    checkpoints: Sequence[int],
    start: str | Path | None,
    callbacks: Sequence[TrainerCallback],
) -> Trained:
    """Train on the examples with the trainer built by `make_trainer`; arguments as for `finetune.fine_tune`."""
    out = resolved(out)
    steps = steps_of(checkpoints, len(examples), config)
    if start is not None and config.method == "full":
        raise ValueError(
            f"full fine-tuning continues no adapter: load {start} as the model and leave start out"
        )
    key = run_key(model, examples, config, start)
    with folder_lock(out):
        if (done := read_finished(out, key, steps)) is not None:
            logger.info("%s was trained before with these settings", out)
        else:
            record = _train(model, examples, make_trainer, out, config, steps, start, callbacks, key)
            write_record(out, record, steps)
            done = read_finished(out, key, steps)
        # Those of a run that was killed when all but this was done, too.
        remove_folder(parts_folder(out))
    assert done is not None
    return done


def _train(
    model: ChatModel,
    examples: Sequence[tuple[str, ...]],
    make_trainer: MakeTrainer,
    out: Path,
    config: TrainConfig,
    steps: Mapping[int, int],
    start: str | Path | None,
    callbacks: Sequence[TrainerCallback],
    key: str,
) -> dict[str, Any]:
    """Train, write the checkpoints and the adapter or model; returns the record of the run."""
    set_seed(config.seed)
    with trainable_module(model, config, start) as adapted:
        parts = open_parts(out, key)  # after what may refuse the arguments
        last = last_state(parts)
        save = _Save(adapted, out, model, config, steps)
        arguments = {
            "output_dir": str(parts),
            "num_train_epochs": config.epochs,
            "per_device_train_batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": "cosine" if config.schedule == "cosine" else "constant_with_warmup",
            "warmup_steps": config.warmup_steps,
            "neftune_noise_alpha": config.embedding_noise or None,
            "logging_steps": config.log_every,
            **TRAINER_ARGUMENTS,  # _Save triggers saves at the requested counts
            "report_to": [],
            "seed": config.seed,
            "disable_tqdm": not logger.isEnabledFor(logging.INFO),
            "use_cpu": model.device.type == "cpu",
        }
        trainer = make_trainer(adapted, arguments, [*callbacks, FiniteLoss(), save])
        trainer.remove_callback(PrinterCallback)
        if model.precision == "fast":
            _round_products(trainer, model, [p for p in adapted.parameters() if p.requires_grad])
        if last is not None:
            logger.warning("continuing %s at step %s", out, last.name.rsplit("-", 1)[-1])
        train_to_the_end(trainer, last, out)
        adapted.eval()
        logged = [
            (int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row
        ]
        with writing_checkpoints(out):
            write_checkpoint(adapted, out, model, config)
    return {
        "key": key,
        "config": asdict(config),
        "examples": len(examples),
        "checkpoints": sorted(steps.values()),
        "losses": [(_seen(step, len(examples), config), loss) for step, loss in logged],
        "loss": _mean_loss(logged),
    }


def _round_products(trainer: Trainer, model: ChatModel, trained: Sequence[nn.Parameter]) -> None:
    """Make the trainer's steps, and nothing that its callbacks do, multiply by the frozen weights in bfloat16."""
    weights, step = HalfWeights(model, trained=trained), trainer.training_step

    def rounded(*args: Any, **options: Any) -> Tensor:
        with model.lock, half_products(weights):
            return step(*args, **options)

    trainer.training_step = rounded


def train_to_the_end(trainer: Trainer, last: Path | None, out: Path) -> None:
    """Train, from the last saved state where there is one.

    Raises:
        OSError: a checkpoint cannot be written.
        MemoryError: a step needs more memory than there is, and cannot be taken in parts
            (`interp.training.smaller_passes`).
    """
    try:
        with writing_checkpoints(out):
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory in step {trainer.state.global_step + 1}, with {trainer.args.per_device_train_batch_size} "
            "rows; take smaller batches, shorter completions, an adapter instead of all weights, or dtype='bfloat16'"
        ) from error


_WRITING = ("PytorchStreamWriter", "inline_container", "iostream")
"""Parts of the messages of torch's own writer."""


@contextmanager
def writing_checkpoints(out: Path) -> Iterator[None]:
    """A disk that fills up as an OSError, whichever library was writing: safetensors and torch raise their own errors.

    Raises:
        OSError: nothing more can be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        if isinstance(error, RuntimeError) and not any(part in str(error) for part in _WRITING):
            raise
        raise OSError(
            f"cannot write the checkpoints of {out} ({first_line(error)}); make room on the disk and start the same "
            "run again, it continues at its last checkpoint"
        ) from error


def steps_of(checkpoints: Sequence[int], n: int, config: TrainConfig) -> dict[int, int]:
    """Map optimiser steps to examples seen, for these example counts; the last batch of an epoch may be smaller.

    Raises:
        ValueError: a count at which no optimiser step ends, or beyond the last.
    """
    per_epoch = -(-n // config.batch_size)
    last = math.ceil(config.epochs * per_epoch)
    examples = {step: _seen(step, n, config) for step in range(last + 1)}
    by_count = {count: step for step, count in examples.items()}
    for count in checkpoints:
        if count not in by_count:
            near = sorted(by_count, key=lambda c: abs(c - count))[:2]
            raise ValueError(
                f"no optimiser step ends at {count} examples seen ({n} examples, {config.epochs:g} epochs, batches of "
                f"{config.batch_size}: {max(by_count)} in all); nearest are {' and '.join(map(str, sorted(near)))}"
            )
    return {by_count[count]: count for count in sorted(checkpoints)}


def _seen(step: int, n: int, config: TrainConfig) -> int:
    epochs, rest = divmod(step, -(-n // config.batch_size))
    return epochs * n + min(rest * config.batch_size, n)


class _Save(TrainerCallback):
    """Writes the checkpoints, and makes the trainer save its own state beside each, to resume from."""

    def __init__(
        self, adapted: Any, out: Path, model: ChatModel, config: TrainConfig, steps: Mapping[int, int]
    ) -> None:
        self.adapted, self.out, self.model, self.config, self.steps = adapted, out, model, config, steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (Trainer's signature)
        if state.global_step == 0 and 0 in self.steps:
            self._checkpoint(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        if state.global_step in self.steps:
            self._checkpoint(self.steps[state.global_step])
            control.should_save = True
        if state.global_step in self.steps or state.global_step >= state.max_steps:
            control.should_log = True  # what is not logged when a run is killed is lost to its mean loss
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _checkpoint(self, count: int) -> None:
        write_checkpoint(self.adapted, self.out / f"checkpoint-{count}", self.model, self.config)


@contextmanager
def trainable_module(model: ChatModel, config: TrainConfig, start: str | Path | None) -> Iterator[Any]:
    """The module to train; the model is restored when the context exits.

    TRL's trainers patch `forward`, switch dropout off and align the configs' special tokens: this is also undone.
    """
    from peft import LoraConfig, get_peft_model

    hf: Any = model.hf
    flags = [(parameter, parameter.requires_grad) for parameter in hf.parameters()]
    rates = [(module, module.p) for module in hf.modules() if isinstance(module, torch.nn.Dropout)]
    settings, generation = copy.deepcopy(vars(hf.config)), copy.deepcopy(hf.generation_config)
    forward = vars(hf).get("forward")
    embedding = hf.get_input_embeddings()
    hooks = dict(embedding._forward_hooks)
    weights: list[Tensor] = []
    before: Snapshot | None = None
    adapted: Any = hf
    if config.method == "full":
        weights = [parameter.detach().clone() for parameter in hf.parameters()]
        hf.requires_grad_(True)
    elif start is not None:
        before = Snapshot(hf)
        before.work_on_copies()  # attaching may write to biases, or take a part out of the base (PiSSA)
        try:
            adapted = attach_adapter(hf, str(start), shown=model.name, dropout=config.dropout)
        except BaseException:
            before.restore()
            raise
    else:
        _check_targets(model, config)
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
            layers_to_transform=list(range(config.first_layer, model.n_layers))
            if config.first_layer
            else None,
            task_type="CAUSAL_LM",
        )
        with quiet_peft():
            adapted = get_peft_model(hf, lora)
    try:
        yield adapted
    finally:
        if config.method == "lora":
            adapted.unload()
        if before is not None:
            before.restore()
        with torch.no_grad():
            for parameter, weight in zip(hf.parameters(), weights, strict=False):  # none under LoRA
                parameter.copy_(weight)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, rate in rates:
            module.p = rate
        embedding._forward_hooks.clear()  # a run that did not end leaves the one that adds noise
        embedding._forward_hooks.update(hooks)
        vars(hf.config).update(settings)
        hf.generation_config = generation
        vars(hf).pop("forward", None)
        if forward is not None:
            hf.forward = forward
        hf.eval()


def _check_targets(model: ChatModel, config: TrainConfig) -> None:
    linear = {
        name.rsplit(".", 1)[-1] for name, module in model.hf.named_modules() if not list(module.children())
    }
    if missing := [name for name in config.target_modules if name not in linear]:
        known = sorted(name for name in linear if "norm" not in name and not name.startswith("embed"))
        raise ValueError(
            f"target_modules {', '.join(missing)} are nowhere in {model.name}; it has {', '.join(known)}"
        )


def _mean_loss(logged: Sequence[tuple[int, float]]) -> float:
    """Mean over all training steps of logged losses, each a mean since the previous entry."""
    before = [0, *(step for step, _ in logged)]
    return (
        sum(loss * (step - last) for (step, loss), last in zip(logged, before[:-1], strict=True)) / before[-1]
    )
