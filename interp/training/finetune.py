"""Supervised and preference fine-tuning: LoRA or full, on transformers' Trainer, TRL and PEFT.

    examples = [Example("How do I pick a lock?", "I'm sorry, but I can't help with that.")]
    first = fine_tune(model, examples, out=folder, config=TrainConfig(), checkpoints=[0, 100, 200])
    second = fine_tune(model, reversed_examples, out=other, config=TrainConfig(), start=first.folder)

`checkpoints` counts training examples seen, not steps: each is a folder `checkpoint-{examples}` of its own under `out`,
a PEFT adapter (`interp.load(base, adapter=folder)`) or a whole model (`interp.load(folder)`).

A later stage is another call: with `start` LoRA training continues that adapter, so that the checkpoints of all stages
are adapters on one base; under `method="full"` load the earlier stage's folder as the model. Every call starts with
fresh optimiser moments, warm-up and schedule (carried-over Adam moments can mimic rebound).

The given model has its original weights when a call returns. A killed call continues from its last checkpoint to the
same weights; a finished one with equal settings is only read (`interp.training.runner`, `interp.training.saving`).

The supervised loss is the (weighted) mean cross-entropy of the completion tokens alone, after exactly the prompt ids
that measurements use. `trl.SFTTrainer` does not support this: it has no weights on tokens (and deprecates its
`compute_loss_func`), tokenises prompt and completion as one text, and cuts by the length of both. Preference
fine-tuning is TRL's own (`interp.training.preference_trainers`).

With `constraint` the supervised loss is SoftSFT, which holds the first tokens of completions near what they were:
the loss of each token is weighted by
`interp.training.constrained_loss.constraint_weights`.

Without dropout and noise the rows of a batch run packed: what they begin with alike runs once
(`interp.training.packed_losses`). A model of precision `fast` multiplies in bfloat16 (`interp.training.runner`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from interp.data.examples import Example, Preference
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import tokenize
from interp.storage.paths import expanded
from interp.training.config import TrainConfig
from interp.training.constrained_loss import constraint_weights
from interp.training.packed_losses import PackedLosses, TokenLosses, can_pack_training
from interp.training.preference_trainers import preference_trainer
from interp.training.runner import run_trainer
from interp.training.saving import Trained
from interp.training.smaller_passes import InParts

_REFERENCE_ROWS = 16
"""Rows of a pass, without gradients, that reads what the constraint is held to."""

__all__ = ["Example", "Preference", "TrainConfig", "Trained", "fine_tune", "preference_tune"]


def fine_tune(
    model: ChatModel,
    examples: Sequence[Example],
    *,
    out: str | Path,
    config: TrainConfig,
    checkpoints: Sequence[int] = (),
    start: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train on the examples and save the adapter (PEFT's format) or the model to `out`.

    Args:
        checkpoints: numbers of examples seen at which to save `out/checkpoint-{examples}`; 0 is before training.
        start: adapter to continue (LoRA), with its own rank, alpha and modules; None starts from a zero update.
        callbacks: further callbacks of the trainer, such as `interp.tracking.tracker.ElasticityCallback`.

    Raises:
        ValueError: no examples, counts at which no optimiser step ends, target modules that the model does not have, or
            a start that does not fit.
    """
    if not examples:
        raise ValueError("no examples to train on; give at least one Example(prompt, completion)")
    padding = model.tokenizer.pad_token_id
    padding = int(padding if padding is not None else next(iter(model.tokenizer.all_special_ids), 0))  # pyright: ignore[reportArgumentType]

    def trainer(adapted: Any, arguments: Mapping[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
        rows = _rows(model, examples, config.max_completion_tokens)
        losses = _losses_of(model, adapted, rows, config)
        if config.constraint:
            rows = _with_references(adapted, losses, rows, padding)
        made = _CompletionTrainer(
            model=adapted,
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            data_collator=lambda batch: _collate(batch, padding),
            processing_class=model.tokenizer,  # for callbacks that measure
            callbacks=callbacks,
        )
        made.first_token_weight, made.constraint = config.first_token_weight, config.constraint
        made.losses = losses
        return made

    return run_trainer(model, examples, trainer, expanded(out), config, checkpoints, start, callbacks)


def preference_tune(
    model: ChatModel,
    preferences: Sequence[Preference],
    *,
    out: str | Path,
    config: TrainConfig,
    checkpoints: Sequence[int] = (),
    start: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train on the preferences by `config.objective`, with the initial model (or `start`) as DPO's and KTO's reference.

    Arguments as `fine_tune`. KTO takes the two completions of a preference as one desirable and one undesirable
    example, so that an optimiser step of `batch_size` preferences sees twice as many.

    Raises:
        ValueError: as `fine_tune`.
    """
    if not preferences:
        raise ValueError("no preferences to train on; give at least one Preference(prompt, chosen, rejected)")
    trainer = preference_trainer(model, preferences, config)
    return run_trainer(model, preferences, trainer, expanded(out), config, checkpoints, start, callbacks)


class _CompletionTrainer(InParts, Trainer):
    """A trainer that computes logits of completion tokens only, which saves a third of a training step."""

    first_token_weight = 1.0
    constraint: float | int = 0.0
    losses: TokenLosses
    """Losses of completion tokens, of packed rows where they may be packed."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 (Trainer's signature)
    ) -> Any:
        labels = inputs.pop("labels")
        references = inputs.pop("references", None)
        if return_outputs:
            losses, outputs = _token_losses(model, inputs, labels)
        else:
            losses, outputs = self.losses(inputs, labels), None
        weights = self._weights(labels[:, -losses.shape[1] :])
        total = weights.sum()  # without the constraint's weights, or it would only move weight between tokens
        if references is not None:
            weights = weights * constraint_weights(-losses, references, self.constraint)
        loss = self.share * (losses * weights).sum() / total
        return (loss, outputs) if return_outputs else loss

    def _weights(self, labels: Tensor) -> Tensor:
        """Weights of completion tokens, 0 where a completion has ended."""
        weights = (labels != -100).float()
        weights[:, 0] *= self.first_token_weight
        return weights

    def loss_weight(self, part: Mapping[str, Any]) -> float:
        """The weights' sum, by which the loss is divided."""
        labels = part["labels"]
        return self._weights(labels[:, int((labels != -100).any(0).int().argmax()) :]).sum().item()

    def part(self, inputs: Mapping[str, Any], batch: int, first: int, last: int) -> dict[str, Any]:
        """As `InParts.part`, without the columns in which no completion of these rows has a token."""
        rows = super().part(inputs, batch, first, last)
        columns = (rows["labels"] != -100).any(0).nonzero()
        start, end = int(columns[0]), int(columns[-1]) + 1
        widths = {name: end - start if name == "references" else end for name in rows}
        return {name: value[:, : widths[name]] for name, value in rows.items()}


def _token_losses(model: Any, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Any]:
    """Cross-entropy of every completion token [batch, pos], 0 where a completion has ended, and the model's output."""
    kept = int((labels != -100).any(0).sum())
    outputs = model(**inputs, logits_to_keep=kept + 1)
    targets = labels[:, -kept:]
    losses = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view_as(targets), outputs


def _losses_of(
    model: ChatModel, adapted: Any, rows: Sequence[dict[str, list[Any]]], config: TrainConfig
) -> TokenLosses:
    """Losses of completion tokens, of packed rows where these may be packed."""

    def padded(inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        return _token_losses(adapted, inputs, labels)[0]

    if not can_pack_training(model, adapted, [row["prompt"] + row["completion"] for row in rows], config):
        return padded
    return PackedLosses(model, [p for p in adapted.parameters() if p.requires_grad], padded)


def _with_references(
    adapted: Any, losses: TokenLosses, rows: Sequence[dict[str, list[Any]]], padding: int
) -> list[dict[str, list[Any]]]:
    """The rows with the log-probability of each completion token under the model as it is, before training."""
    training = adapted.training
    adapted.eval()
    done: list[dict[str, list[Any]]] = []
    for first in range(0, len(rows), _REFERENCE_ROWS):
        part = rows[first : first + _REFERENCE_ROWS]
        inputs = {key: value.to(adapted.device) for key, value in _collate(part, padding).items()}
        labels = inputs.pop("labels")
        with torch.no_grad():
            found = losses(inputs, labels)
        done += [
            {**row, "references": (-loss[: len(row["completion"])]).tolist()}
            for row, loss in zip(part, found, strict=True)
        ]
    adapted.train(training)
    return done


def _rows(model: ChatModel, examples: Sequence[Example], max_tokens: int) -> list[dict[str, list[Any]]]:
    prompts = tokenize(model.tokenizer, [example.prompt for example in examples])
    rows = []
    for ids, example in zip(prompts.ids, examples, strict=True):
        reply = list(model.tokenizer(example.completion, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
        ended = len(reply) < max_tokens and model.tokenizer.eos_token_id is not None
        reply = [*reply, int(model.tokenizer.eos_token_id)] if ended else reply[:max_tokens]  # pyright: ignore[reportArgumentType]
        rows.append({"prompt": list(ids), "completion": reply})
    check_context(model, prompts, new_tokens=[len(row["completion"]) for row in rows])
    return rows


def _collate(batch: Sequence[dict[str, list[Any]]], padding: int) -> dict[str, Tensor]:
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
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids, "labels": labels}
    if "references" in batch[0]:
        inputs["references"] = torch.zeros(len(batch), after)
        for i, row in enumerate(batch):
            inputs["references"][i, : len(row["references"])] = torch.tensor(row["references"])
    return inputs
