"""Settings of the rows that recover, for the run and for its plan; imports no torch."""

from dataclasses import replace

from interp.training.recovery_config import Ranking, RecoveryConfig


def recovery_settings(rank_by: Ranking, max_task_drop: float | int, seed: int) -> RecoveryConfig:
    """The released settings, without what decides nothing.

    Where any task score is allowed, it is asked for at the ends alone. Differences do not change between steps, so that
    one step of the whole budget restores what all steps do, but for one weight a step that the released tie rule leaves
    out.
    """
    config = RecoveryConfig(rank_by=rank_by, max_task_drop=max_task_drop, seed=seed)
    if max_task_drop < 1:
        return config
    if rank_by == "difference":
        config = replace(config, rate=config.rate * config.steps, steps=1, warmup=0)
    return replace(config, save_every=config.steps)
