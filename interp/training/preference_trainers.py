"""TRL's trainers of preferences, one per objective, in the form that `interp.training.runner` takes.

| `TrainConfig.objective` | loss | trainer |
|---|---|---|
| dpo | Rafailov et al. 2023, arXiv:2305.18290, equation 7 | `trl.DPOTrainer` |
| kto | Ethayarajh et al. 2024, arXiv:2402.01306, equation 8 | `trl.KTOTrainer` |
| orpo | Hong et al. 2024, arXiv:2403.07691, equation 6 | `trl.experimental.orpo.ORPOTrainer` |

KTO knows desirable and undesirable completions, no pairs: each preference is one of both. It estimates its KL term on
completions that are shifted by one within a batch, so the desirable ones stand first in their batch, then the
undesirable ones: neighbours then answer different prompts. As TRL has it, ORPO's likelihood term covers the prompt as
well as the chosen completion.
"""

import copy
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import Trainer, TrainerCallback

from interp.data.examples import Preference
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import tokenize
from interp.training.config import TrainConfig
from interp.training.runner import MakeTrainer
from interp.training.smaller_passes import InParts

Row = dict[str, Any]
"""One row of a trainer's data set."""


def preference_trainer(
    model: ChatModel, preferences: Sequence[Preference], config: TrainConfig
) -> MakeTrainer:
    """What builds the trainer of an objective.

    Raises:
        ValueError: prompts and completions that do not fit into the context, or `kto` with a batch of one preference.
    """
    if config.objective == "kto" and config.batch_size < 2:
        raise ValueError(
            "objective kto compares the prompts of a batch with each other's completions; batch_size must be 2 or "
            f"more, got {config.batch_size}"
        )
    prompts = tokenize(model.tokenizer, [row.prompt for row in preferences])
    check_context(model, prompts, new_tokens=config.max_completion_tokens)
    length = max(len(ids) for ids in prompts.ids) + config.max_completion_tokens
    parts_of = {"dpo": _dpo, "kto": _kto, "orpo": _orpo}[config.objective]

    def trainer(adapted: Any, arguments: Mapping[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
        from datasets import Dataset

        # TRL's configs have gradient checkpointing on, which trades a third of the time for memory, and bfloat16
        # products, with which the trained model is not quite the one that is measured and compared with supervised
        # steps.
        own = {"gradient_checkpointing": False, "bf16": False, "beta": config.beta, "max_length": length}
        kind, settings, rows = parts_of({**arguments, **own}, preferences, config)
        return kind(
            model=adapted,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(model.tokenizer),  # TRL sets padding on it
            callbacks=callbacks,
        )

    return trainer


class _Parts(NamedTuple):
    """What differs between objectives."""

    kind: Any
    """TRL's trainer."""
    settings: Any
    """Its arguments."""
    rows: list[Row]


def _dpo(arguments: Mapping[str, Any], preferences: Sequence[Preference], config: TrainConfig) -> _Parts:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class PairsInParts(InParts, DPOTrainer):
        pairs = True

    # An adapter is its own reference when switched back; whole weights would need a second model in memory.
    settings = DPOConfig(**arguments, precompute_ref_log_probs=config.method == "full")
    return _Parts(PairsInParts, settings, paired_rows(preferences))


def _kto(arguments: Mapping[str, Any], preferences: Sequence[Preference], config: TrainConfig) -> _Parts:
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    size = config.batch_size
    settings = KTOConfig(
        **{**arguments, "per_device_train_batch_size": 2 * size},
        precompute_ref_log_probs=config.method == "full",
    )
    return _Parts(KTOTrainer, settings, rated_rows(preferences, batch_size=size, seed=config.seed))


def _orpo(
    arguments: Mapping[str, Any],
    preferences: Sequence[Preference],
    config: TrainConfig,  # noqa: ARG001 (one signature for all)
) -> _Parts:
    with warnings.catch_warnings():  # that it is experimental; its version is pinned here
        warnings.filterwarnings("ignore", message=".*trl.experimental.*")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    settings = ORPOConfig(**arguments, remove_unused_columns=False)
    return _Parts(ORPOTrainer, settings, paired_rows(preferences))


def paired_rows(preferences: Sequence[Preference]) -> list[Row]:
    """Rows of prompt, chosen and rejected completion, as conversations."""
    return [
        {
            "prompt": [{"role": "user", "content": row.prompt}],
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
        for row in preferences
    ]


def rated_rows(preferences: Sequence[Preference], *, batch_size: int, seed: int) -> list[Row]:
    """Rows of prompt, completion and whether it is desirable, in the order of training.

    Preferences are shuffled, since KTO's trainer reads its rows in order; each `2 * batch_size` rows are the desirable
    completions of `batch_size` preferences, then their undesirable ones.
    """
    order = random.Random(seed).sample(list(preferences), len(preferences))
    rows: list[Row] = []
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        for desirable in (True, False):
            rows += [
                {
                    "prompt": [{"role": "user", "content": row.prompt}],
                    "completion": [
                        {"role": "assistant", "content": row.chosen if desirable else row.rejected}
                    ],
                    "label": desirable,
                }
                for row in batch
            ]
    return rows
