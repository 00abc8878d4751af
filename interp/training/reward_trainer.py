"""Training of reward models: a head fitted on a frozen model, or one with an adapter by `trl.RewardTrainer`."""

import copy
import logging
import math
from collections.abc import Sequence
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
from interp.training.config import TrainConfig
from interp.training.reward_files import ADAPTER, adapted_copy, reward_record, save_reward_model
from interp.training.reward_models import RewardModel, RewardModelConfig, fit_bradley_terry, pair_tokens
from interp.training.runner import trainable_module
from interp.training.saving import write_checkpoint

logger = logging.getLogger(__name__)


def train_reward_model(
    model: ChatModel,
    preferences: PreferenceSet,
    *,
    config: RewardModelConfig | None = None,
    out: str | Path | None = None,
    references: Sequence[PreferencePair] | None = None,
) -> RewardModel:
    """A reward model of the train split, with its accuracy on the test split.

    The given model stays as it is.

    Args:
        out: folder that it is saved to (`interp.training.reward_files`); `lora` needs one.
        references: pairs whose chosen replies score 0 on average; those of the train split when None.

    Raises:
        ValueError: a reply that does not fit into the context, pairs that are equal once they are cut, or a loss that
            is not a number.
    """
    config = RewardModelConfig() if config is None else config
    if config.method == "lora" and out is None:
        raise ValueError("a reward model with an adapter is kept in a folder; give out=")
    pairs = preferences["train"]
    sides = pair_tokens(model, pairs, config.max_completion_tokens)
    backbone = model
    if config.method == "head":
        chosen, rejected = (final_states(model, side) for side in sides)
        weight = fit_bradley_terry(chosen - rejected, penalty=config.penalty, scale=chosen.std(0))
    else:
        backbone, weight = _train_with_adapter(model, sides, config, Path(str(out)))
    made = RewardModel(
        model=backbone, weight=weight, bias=0.0, about=reward_record(model, preferences, config)
    )
    base = pairs if references is None else references
    replies = pair_tokens(backbone, base, config.max_completion_tokens)[0]
    made = replace(made, bias=-float(made.score_states(final_states(backbone, replies)).double().mean()))
    held_out = made.accuracy(preferences["test"]) if preferences.parts.get("test") else Estimate.unmeasured()
    made = replace(made, about={**made.about, "accuracy": asdict(held_out), "references": len(base)})
    if out is not None:
        save_reward_model(made, out)
    return made


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
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    set_seed(config.seed)
    rows = [
        {"chosen_ids": list(chosen), "rejected_ids": list(rejected)}
        for chosen, rejected in zip(sides[0].ids, sides[1].ids, strict=True)
    ]
    train = TrainConfig(
        rank=config.rank,
        alpha=2 * config.rank,
        dropout=0.0,
        target_modules=config.target_modules,
        seed=config.seed,
    )
    twin = copy_with_weights(model, {})
    with trainable_module(twin, train, None) as adapted:
        settings = copy.deepcopy(model.hf.config)
        settings.num_labels = 1
        module = SequenceReward(twin.decoder, settings)
        arguments = RewardConfig(
            output_dir=str(out / "trainer"),
            num_train_epochs=float(config.epochs),
            per_device_train_batch_size=config.batch_size,
            learning_rate=float(config.learning_rate),
            lr_scheduler_type="cosine",
            max_length=None,  # what does not fit was refused, not filtered out
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            bf16=False,
            seed=config.seed,
            disable_tqdm=not logger.isEnabledFor(logging.INFO),
            use_cpu=model.device.type == "cpu",
        )
        trainer = RewardTrainer(
            model=module,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(model.tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
        if not losses or not all(map(math.isfinite, losses)):
            raise ValueError(
                f"the loss of the reward model is not a number ({losses[-1:]}); take a smaller learning rate"
            )
        adapted.eval()
        out.mkdir(parents=True, exist_ok=True)
        write_checkpoint(adapted, out / ADAPTER, twin, train)
    return adapted_copy(model, out / ADAPTER), module.score.weight.detach()[0].float().cpu().clone()
