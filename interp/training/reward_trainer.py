"""Training of reward models: a head fitted on a frozen model, or one with an adapter by `trl.RewardTrainer`."""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from interp.data.preferences import PreferencePair, PreferenceSet
from interp.engine.log_probs import final_states
from interp.models.adapted_models import copy_with_weights
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.stats import Estimate
from interp.storage.atomic_files import remove_folder
from interp.storage.locks import folder_lock, resolved
from interp.storage.paths import expanded
from interp.training.config import plain_adapter
from interp.training.reward_files import ADAPTER, adapted_copy, reward_record, save_reward_model
from interp.training.reward_models import RewardModel, RewardModelConfig, fit_bradley_terry, pair_tokens
from interp.training.runner import train_to_the_end, trainable_module, writing_checkpoints
from interp.training.saving import last_state, open_parts, parts_folder, write_checkpoint
from interp.training.smaller_passes import InParts
from interp.training.trainer_states import TRAINER_ARGUMENTS, FiniteLoss, KeepStates

logger = logging.getLogger(__name__)

_WEIGHTS = "trained.safetensors"
"""File of the trained parameters in a saved state."""
_SAVED_STATES = 10
"""States saved in the course of a run."""


def train_reward_model(
    model: ChatModel,
    preferences: PreferenceSet,
    *,
    config: RewardModelConfig | None = None,
    out: str | Path | None = None,
    references: Sequence[PreferencePair] | None = None,
) -> RewardModel:
    """A reward model of the train split, with its accuracy on the test split.

    The given model stays as it is. Training of an adapter that was killed continues to the same weights.

    Args:
        out: folder that it is saved to (`interp.training.reward_files`); `lora` needs one.
        references: pairs whose chosen replies score 0 on average; those of the train split when None.

    Raises:
        ValueError: a reply that does not fit into the context, pairs that are equal once they are cut, or a loss that
            is not a number.
        OSError: the disk is full.
    """
    config = RewardModelConfig() if config is None else config
    if config.method == "lora" and out is None:
        raise ValueError("a reward model with an adapter is kept in a folder; give out=")
    if out is None:
        return _trained(model, preferences, config, None, references)
    out = resolved(expanded(out))
    with folder_lock(out):
        made = _trained(model, preferences, config, out, references)
        save_reward_model(made, out)
        remove_folder(parts_folder(out))
    return made


def _trained(
    model: ChatModel,
    preferences: PreferenceSet,
    config: RewardModelConfig,
    out: Path | None,
    references: Sequence[PreferencePair] | None,
) -> RewardModel:
    pairs = preferences["train"]
    sides = pair_tokens(model, pairs, config.max_completion_tokens)
    backbone = model
    if config.method == "head":
        chosen, rejected = (final_states(model, side) for side in sides)
        weight = fit_bradley_terry(chosen - rejected, penalty=config.penalty, scale=chosen.std(0))
    else:
        backbone, weight = _train_with_adapter(model, sides, config, Path(str(out)))  # `lora` has a folder
    made = RewardModel(
        model=backbone, weight=weight, bias=0.0, about=reward_record(model, preferences, config)
    )
    base = pairs if references is None else references
    replies = pair_tokens(backbone, base, config.max_completion_tokens)[0]
    made = replace(made, bias=-float(made.score_states(final_states(backbone, replies)).double().mean()))
    held_out = made.accuracy(preferences["test"]) if preferences.parts.get("test") else Estimate.unmeasured()
    return replace(made, about={**made.about, "accuracy": asdict(held_out), "references": len(base)})


class SequenceReward(PreTrainedModel):
    """A decoder with a head, in the form of a sequence classifier; reads the last token that the mask keeps."""

    # The decoder chose its attention when it was loaded; what this class would allow is not asked.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, decoder: Any, config: Any) -> None:
        super().__init__(config)
        self.decoder = decoder
        self.score = nn.Linear(decoder.get_input_embeddings().weight.shape[1], 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        """Rewards [batch, 1] of right-padded sequences."""
        states = self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last = attention_mask.sum(1) - 1
        logits = self.score(states[torch.arange(len(last), device=last.device), last].float())
        return SequenceClassifierOutput(logits=logits)  # pyright: ignore[reportArgumentType]


def _train_with_adapter(
    model: ChatModel, sides: tuple[ChatTokens, ChatTokens], config: RewardModelConfig, out: Path
) -> tuple[ChatModel, Float[Tensor, " d_model"]]:
    """Train an adapter and a head on chosen and rejected token ids; the adapter is written to `out/adapter`.

    Returns:
        A model with the adapter merged, and the head's weight.

    Raises:
        ValueError: the loss is not a number.
    """
    set_seed(config.seed)
    rows = [
        {"chosen_ids": list(chosen), "rejected_ids": list(rejected)}
        for chosen, rejected in zip(sides[0].ids, sides[1].ids, strict=True)
    ]
    train = plain_adapter(rank=config.rank, target_modules=config.target_modules, seed=config.seed)
    twin = copy_with_weights(model, {})
    with trainable_module(twin, train, None) as adapted:
        settings = copy.deepcopy(model.hf.config)
        settings.num_labels = 1
        module = SequenceReward(twin.decoder, settings)
        parts = open_parts(out, _adapter_key(model, rows, config))
        trainer = _trainer(module, rows, config, model, parts)
        if (last := last_state(parts)) is not None:
            logger.warning("continuing %s at step %s", out, last.name.rsplit("-", 1)[-1])
        train_to_the_end(trainer, last, out)
        adapted.eval()
        with writing_checkpoints(out):
            out.mkdir(parents=True, exist_ok=True)
            write_checkpoint(adapted, out / ADAPTER, twin, train)
    return adapted_copy(model, out / ADAPTER), module.score.weight.detach()[0].float().cpu().clone()


def _adapter_key(model: ChatModel, rows: Sequence[Mapping[str, list[int]]], config: RewardModelConfig) -> str:
    """Hash of all that the adapter and its head depend on."""
    facts = {"weights": model.weights_hash, "rows": list(rows), "config": asdict(config)}
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _trainer(
    module: SequenceReward,
    rows: Sequence[Mapping[str, list[int]]],
    config: RewardModelConfig,
    model: ChatModel,
    parts: Path,
) -> Any:
    """TRL's trainer, which keeps and reads the trained parameters alone: the rest is the base model."""
    from datasets import Dataset
    from safetensors.torch import load_file, save_file
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}

    class Resumable(InParts, RewardTrainer):
        pairs = True

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
            folder = Path(str(output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: weight.detach().contiguous() for name, weight in trained.items()}, folder / _WEIGHTS
            )

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
            stored = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
            with torch.no_grad():
                for name, weight in trained.items():
                    weight.copy_(stored[name])

    steps = math.ceil(config.epochs * -(-len(rows) // config.batch_size))
    arguments = RewardConfig(
        **TRAINER_ARGUMENTS,
        output_dir=str(parts),
        num_train_epochs=float(config.epochs),
        per_device_train_batch_size=config.batch_size,
        learning_rate=float(config.learning_rate),
        lr_scheduler_type="cosine",
        max_length=None,  # what does not fit was refused, not filtered out
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        bf16=False,
        seed=config.seed,
        disable_tqdm=not logger.isEnabledFor(logging.INFO),
        use_cpu=model.device.type == "cpu",
    )
    trainer = Resumable(
        model=module,
        args=arguments,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=copy.deepcopy(model.tokenizer),
        callbacks=[FiniteLoss(), KeepStates(max(1, steps // _SAVED_STATES))],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
