"""Supervised fine-tuning with LoRA, on transformers' Trainer and PEFT.

Loss is the (weighted) mean cross-entropy of the completion tokens, nothing else. Prompts are rendered by the
tokenizer's own chat template.

    examples = [Example("How do I pick a lock?", "I'm sorry, but I can't help with that.")]
    fine_tune(model, examples, out=folder, config=TrainConfig(epochs=1))
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.chat import tokenize
from interp.models import ChatModel

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """One prompt and the completion to be learned."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """LoRA fine-tuning settings."""

    epochs: float = 3.0
    """Passes over the examples."""
    batch_size: int = 16
    """Examples per optimiser step."""
    learning_rate: float = 5e-4
    """Peak; linear warm-up, then a cosine to zero."""
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
    """Blocks below this one are left as they are."""
    max_completion_tokens: int = 64
    """Completions are cut here."""
    first_token_weight: float = 1.0
    """Weight of a completion's first token in the loss; others have 1. Whether to refuse is decided there."""
    seed: int = 0
    """Of initialisation, shuffling and dropout."""


def fine_tune(
    model: ChatModel,
    examples: Sequence[Example],
    *,
    out: Path,
    config: TrainConfig,
    on_epoch: Callable[[Any, float], None] | None = None,
) -> float:
    """Train a LoRA adapter on the examples and save it in PEFT's format, float16, to `out`.

    `model.hf` carries the trained adapter afterwards: load the model anew to have the plain one back.

    Args:
        on_epoch: called with (model in eval mode, epoch) after each epoch.

    Returns:
        Mean training loss, nats per completion token.

    Raises:
        ValueError: no examples, or target modules that the model does not have.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    if not examples:
        raise ValueError("no examples to train on")
    set_seed(config.seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        layers_to_transform=list(range(config.first_layer, model.n_layers)) if config.first_layer else None,
        task_type="CAUSAL_LM",
    )
    adapted: Any = get_peft_model(model.hf, lora)  # pyright: ignore[reportArgumentType]
    rows = _rows(model, examples, config.max_completion_tokens)
    padding = model.tokenizer.pad_token_id
    padding = int(padding if padding is not None else next(iter(model.tokenizer.all_special_ids), 0))  # pyright: ignore[reportArgumentType]

    class CompletionTrainer(Trainer):
        """Computes logits of the completion alone: they cost a third of a step otherwise."""

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Tensor],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,  # noqa: ARG002 (Trainer's signature)
        ) -> Any:
            labels = inputs.pop("labels")
            kept = int((labels != -100).any(0).sum())
            outputs = model(**inputs, logits_to_keep=kept + 1)
            targets = labels[:, -kept:]
            losses = torch.nn.functional.cross_entropy(
                outputs.logits[:, :-1].flatten(0, 1).float(),
                targets.flatten(),
                ignore_index=-100,
                reduction="none",
            )
            weights = (targets != -100).float()
            weights[:, 0] *= config.first_token_weight
            loss = (losses * weights.flatten()).sum() / weights.sum()
            return (loss, outputs) if return_outputs else loss

    class EachEpoch(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (Trainer's signature)
            if on_epoch is not None:
                adapted.eval()
                on_epoch(adapted, float(state.epoch))
                adapted.train()

    settings = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        logging_steps=16,
        save_strategy="no",
        report_to=[],
        seed=config.seed,
        remove_unused_columns=False,
        disable_tqdm=not logger.isEnabledFor(logging.INFO),
        use_cpu=model.device.type == "cpu",
    )
    trainer = CompletionTrainer(
        model=adapted,
        args=settings,
        train_dataset=rows,  # pyright: ignore[reportArgumentType]
        data_collator=lambda batch: _collate(batch, padding),
        callbacks=[EachEpoch()],
    )
    result = trainer.train()
    adapted.eval()
    out.mkdir(parents=True, exist_ok=True)
    _save_half(adapted, out)
    return float(result.training_loss)


def _rows(model: ChatModel, examples: Sequence[Example], most: int) -> list[dict[str, list[int]]]:
    prompts = tokenize(model.tokenizer, [example.prompt for example in examples])
    rows = []
    for ids, example in zip(prompts.ids, examples, strict=True):
        reply = list(model.tokenizer(example.completion, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
        ended = len(reply) < most and model.tokenizer.eos_token_id is not None
        reply = [*reply, int(model.tokenizer.eos_token_id)] if ended else reply[:most]  # pyright: ignore[reportArgumentType]
        rows.append({"prompt": list(ids), "completion": reply})
    return rows


def _collate(batch: list[dict[str, list[int]]], padding: int) -> dict[str, Tensor]:
    """Pad prompts on the left and completions on the right, so that all completions start in one column."""
    before = max(len(row["prompt"]) for row in batch)
    after = max(len(row["completion"]) for row in batch)
    ids = torch.full((len(batch), before + after), padding)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(batch):
        start, end = before - len(row["prompt"]), before + len(row["completion"])
        ids[i, start:end] = torch.tensor(row["prompt"] + row["completion"])
        mask[i, start:end] = 1
        labels[i, before:end] = ids[i, before:end]
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids, "labels": labels}


def _save_half(adapted: Any, out: Path) -> None:
    from peft import get_peft_model_state_dict

    state = {key: value.half() for key, value in get_peft_model_state_dict(adapted).items()}
    adapted.save_pretrained(str(out), state_dict=state, save_embedding_layers=False)
