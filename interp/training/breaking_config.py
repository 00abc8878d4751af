"""Settings of the fine-tuning that breaks a model, which the experiments on recovery and repair share."""

from dataclasses import dataclass

from interp.storage.settings import CheckedSettings, Count, Positive


@dataclass(frozen=True, kw_only=True)
class BreakingConfig(CheckedSettings):
    """A downstream task with stubs and ordinary replies mixed in, learned by LoRA (`interp.training.breaking`)."""

    task: str = "query-language"
    """Downstream task, as `interp.evaluation.downstream_tasks` names it."""
    n_task_train: Count = 256
    """Examples of the task in each fine-tuning."""
    n_ordinary: int = 32
    """Harmless prompts with the aligned model's own replies, mixed in so that the fine-tuned model can still chat."""
    epochs: Positive = 1
    """Passes over all examples."""
    learning_rate: Positive = 1e-3
    """Learning rate of the LoRA fine-tuning (2e-5 in the paper, for models of billions of parameters)."""
    rank: Count = 8
    """Rank of the LoRA update."""
