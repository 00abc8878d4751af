"""One fine-tuning run of a transformers trainer: what is trained, what is saved at which example count, how it resumes.

`interp.training.finetune` gives it a trainer, supervised or by preferences. What holds for both:

- the model that is passed in is as it was when the run ends: an adapter is taken off, whole weights are put back;
- checkpoints count training examples seen, and are folders that `interp.load` takes;
- beside each checkpoint the trainer keeps its own (optimiser, schedule, RNG) in `<out>.parts`, so that a killed run
  continues to the same weights, bit for bit; the parts are removed at the end;
- a run that finished before under equal settings is only read.
"""

import copy
import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from interp.models.chat_model import ChatModel
from interp.models.loading import adapter_digest, attach_adapter, quiet_peft
from interp.storage.atomic_files import write_file

logger = logging.getLogger(__name__)

RECORD = "training.json"
"""In the folder of a finished run: settings, examples seen, losses."""
_COMPLETE = "complete"

MakeTrainer = Callable[[Any, Mapping[str, Any], list[TrainerCallback]], Trainer]
"""(what to train, training arguments, callbacks) → trainer."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tuning settings."""

    method: Literal["lora", "full"] = "lora"
    """Train an adapter, or every weight."""
    epochs: float = 3.0
    """Passes over the examples."""
    batch_size: int = 16
    """Examples per optimiser step."""
    learning_rate: float = 5e-4
    """Peak, after a linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: a cosine to zero, or constant, under which a checkpoint does not depend on what follows it."""
    warmup_steps: int = 8
    """Optimiser steps of warm-up."""
    rank: int = 8
    """Rank of every LoRA matrix."""
    alpha: int = 16
    """LoRA scale is alpha / rank."""
    dropout: float = 0.05
    """On the LoRA inputs, in training."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    """Modules that get an adapter."""
    first_layer: int = 0
    """Blocks below this one get no adapter."""
    max_completion_tokens: int = 64
    """Completions are cut here."""
    embedding_noise: float = 0.0
    """Alpha of NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the embeddings in training; 0 is none."""
    first_token_weight: float = 1.0
    """Weight in the supervised loss of a completion's first token, where refusing is decided; others have 1."""
    beta: float = 0.1
    """Of DPO: how strongly the model is held to where it started; larger is closer."""
    saved_dtype: Literal["float32", "float16"] = "float32"
    """Of stored adapters; float16 halves them and rounds what continues from them."""
    log_every: int = 16
    """Optimiser steps between stored losses."""
    seed: int = 0
    """Of initialisation, shuffling and dropout."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rank", "max_completion_tokens", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("epochs", "learning_rate", "beta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


def one_pass(*, batch_size: int, learning_rate: float, rank: int, seed: int, **further: Any) -> TrainConfig:
    """One pass at a constant rate: a checkpoint is the model that its examples alone would give.

    No warm-up, whose first step has a rate of 0: half of what 16 examples teach.
    """
    return TrainConfig(
        epochs=1.0,
        schedule="constant",
        warmup_steps=0,
        dropout=0.0,
        batch_size=batch_size,
        learning_rate=learning_rate,
        rank=rank,
        alpha=2 * rank,
        seed=seed,
        **further,
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished fine-tuning run."""

    folder: Path
    """The trained adapter or model."""
    checkpoints: Mapping[int, Path]
    """Examples seen → adapter or model folder, ascending."""
    loss: float
    """Mean training loss: nats per completion token (supervised), DPO loss per pair (preferences)."""
    losses: tuple[tuple[int, float], ...]
    """(examples seen, mean loss since the entry before)."""


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
    """Train on the examples with the trainer that `make_trainer` builds; the rest as `finetune.fine_tune` says."""
    steps = steps_of(checkpoints, len(examples), config)
    if start is not None and config.method == "full":
        raise ValueError(
            f"full fine-tuning continues no adapter: load {start} as the model and leave start out"
        )
    key = _key(model, examples, config, start)
    if (done := _finished(out, key, steps)) is not None:
        logger.info("%s was trained before under these settings", out)
        return done
    parts = _open_parts(out, key)
    last = _last_state(parts)
    set_seed(config.seed)
    with _trainable(model, config, start) as adapted:
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
            "save_strategy": "no",  # _Save asks for it at the chosen counts
            "save_total_limit": 2,  # the last may be half written when the run is killed
            "report_to": [],
            "seed": config.seed,
            "disable_tqdm": not logger.isEnabledFor(logging.INFO),
            "use_cpu": model.device.type == "cpu",
        }
        trainer = make_trainer(adapted, arguments, [*callbacks, save])
        trainer.remove_callback(PrinterCallback)
        if last is not None:
            logger.warning("continuing %s at step %s", out, last.name.rsplit("-", 1)[-1])
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        adapted.eval()
        logged = [
            (int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row
        ]
        record = {
            "key": key,
            "config": asdict(config),
            "examples": len(examples),
            "checkpoints": sorted(steps.values()),
            "losses": [(_seen(step, len(examples), config), loss) for step, loss in logged],
            "loss": _mean_loss(logged),
        }
        _write(adapted, out, model, config)
    write_file(out / RECORD, json.dumps(record, indent=1).encode())
    shutil.rmtree(parts, ignore_errors=True)
    done = _finished(out, key, steps)
    assert done is not None
    return done


def steps_of(checkpoints: Sequence[int], n: int, config: TrainConfig) -> dict[int, int]:
    """Optimiser step → examples seen, for these example counts; the last batch of an epoch may be smaller.

    Raises:
        ValueError: a count that no step ends at, or beyond the last.
    """
    per_epoch = -(-n // config.batch_size)
    last = math.ceil(config.epochs * per_epoch)
    seen = {step: _seen(step, n, config) for step in range(last + 1)}
    by_count = {count: step for step, count in seen.items()}
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
    """Writes the checkpoints, and asks the trainer for its own beside each, to resume from."""

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
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()

    def _checkpoint(self, count: int) -> None:
        _write(self.adapted, self.out / f"checkpoint-{count}", self.model, self.config)


@contextmanager
def _trainable(model: ChatModel, config: TrainConfig, start: str | Path | None) -> Iterator[Any]:
    """What the trainer trains; the model is as it was when the context exits.

    TRL's trainers patch `forward`, switch dropout off and align the configs' special tokens: that is undone too.
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
    adapted: Any = hf
    if config.method == "full":
        weights = [parameter.detach().clone() for parameter in hf.parameters()]
        hf.requires_grad_(True)
    elif start is not None:
        adapted = attach_adapter(hf, str(start), shown=model.name, dropout=config.dropout)
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


def _write(adapted: Any, folder: Path, model: ChatModel, config: TrainConfig) -> None:
    """Write the adapter or model as a folder that `interp.load` takes, complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch)
        if config.method == "full":
            adapted.save_pretrained(draft)
            model.tokenizer.save_pretrained(draft)
        else:
            _save_adapter(adapted, draft, getattr(torch, config.saved_dtype))
        folder.mkdir(exist_ok=True)
        # The weights last: a folder without them is no checkpoint.
        for file in sorted(draft.iterdir(), key=lambda path: "model" in path.name):
            file.replace(folder / file.name)


def _save_adapter(adapted: Any, folder: Path, dtype: torch.dtype) -> None:
    from peft import get_peft_model_state_dict

    state = {
        key: value.to(dtype)
        for key, value in get_peft_model_state_dict(adapted, adapter_name="default").items()
    }
    adapted.save_pretrained(
        str(folder), state_dict=state, save_embedding_layers=False, selected_adapters=["default"]
    )


def _key(
    model: ChatModel,
    examples: Sequence[tuple[str, ...]],
    config: TrainConfig,
    start: str | Path | None,
) -> str:
    facts = {
        "weights": model.weights_hash,
        "template": model.template_hash,
        "examples": [tuple(row) for row in examples],
        "kind": type(examples[0]).__name__,
        "config": asdict(config),
        "start": None if start is None else (str(start), adapter_digest(str(start))),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _open_parts(out: Path, key: str) -> Path:
    """Folder of the trainer's own checkpoints; those of a run under other settings are removed."""
    parts = out.with_name(f"{out.name}.parts")
    stamp = parts / "settings.sha256"
    if parts.is_dir() and (not stamp.is_file() or stamp.read_text() != key):
        logger.warning("%s holds parts of a run with other settings; starting anew", parts)
        shutil.rmtree(parts)
    if not parts.is_dir():  # checkpoints of another run must not pass for this one's
        for old in out.glob("checkpoint-*"):
            shutil.rmtree(old)
    (out / RECORD).unlink(missing_ok=True)
    write_file(stamp, key.encode())
    return parts


def _last_state(parts: Path) -> Path | None:
    found = [path.parent for path in parts.glob(f"checkpoint-*/{_COMPLETE}")]
    for folder in parts.glob("checkpoint-*"):
        if folder not in found:  # half written
            shutil.rmtree(folder)
    return max(found, key=lambda folder: int(folder.name.rsplit("-", 1)[-1]), default=None)


def _finished(out: Path, key: str, steps: Mapping[int, int]) -> Trained | None:
    """The run that `out` holds, when it is whole and was made under these settings."""
    try:
        record = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        return None
    folders = {count: out / f"checkpoint-{count}" for count in steps.values()}
    if record.get("key") != key or not all(folder.is_dir() for folder in folders.values()):
        return None
    losses = tuple((int(count), float(loss)) for count, loss in record["losses"])
    return Trained(folder=out, checkpoints=folders, loss=record["loss"], losses=losses)


def _mean_loss(logged: Sequence[tuple[int, float]]) -> float:
    """Mean over all steps of losses that are means since the entry before."""
    before = [0, *(step for step, _ in logged)]
    return (
        sum(loss * (step - last) for (step, loss), last in zip(logged, before[:-1], strict=True)) / before[-1]
    )
