"""The method of the elasticity-theory experiment: the theorem at joint optima, then models trained in stages.

Steps (`run`): E1 to E3 in `joint_optima.py`, E4 and E5 in `sequential_training.py`, E6 in `transformer.py`; then the
rebound statistics of the decay curves of E5 and E6. E1 to E5 take seconds, E6 half a minute a seed on one core.
"""

from interp.experiments.definition import Outcome
from interp.experiments.elasticity_theory import Config, Result
from interp.experiments.elasticity_theory.analysis import rebound_statistics
from interp.experiments.elasticity_theory.joint_optima import log_linear, mixture, token_tree
from interp.experiments.elasticity_theory.results import TransformerRow
from interp.experiments.elasticity_theory.sequential_training import rebound, sequential
from interp.experiments.elasticity_theory.transformer import Sizes, life_cycle
from interp.storage.stages import Stages


def run(config: Config, stages: Stages) -> Outcome[Result]:
    """Run E1 to E6."""
    # E1: mixture of counts.
    counts = mixture(config)
    stages.lap("mixture")
    # E2: token tree.
    tree = token_tree(config)
    stages.lap("token_tree")
    # E3: log-linear model, fitted jointly.
    joint = log_linear(config)
    stages.lap("log_linear")
    # E4: the same model trained in stages.
    staged = sequential(config)
    stages.lap("sequential")
    # E5: its rebound.
    returned = rebound(config)
    stages.lap("rebound")
    # E6: tiny transformer.
    rows = _transformer(config, stages)
    stages.lap("transformer")
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        mixture=counts,
        token_tree=tree,
        log_linear=joint,
        sequential=staged,
        rebound=returned,
        transformer=rows,
        rebound_statistics=rebound_statistics(returned, rows),
    )
    return Outcome(result=result)


def _transformer(config: Config, stages: Stages) -> tuple[TransformerRow, ...]:
    """All stages of every seed; a finished seed is kept."""
    sizes = Sizes(
        pretraining=config.transformer_pretraining,
        positives=config.transformer_positives,
        negatives=config.transformer_negatives,
    )
    seeds = range(config.seed, config.seed + config.transformer_runs)
    return tuple(
        row
        for seed in stages.progress(seeds, "tiny transformer")
        for row in stages.keep(
            f"transformer-{seed}",
            lambda seed=seed: life_cycle(sizes, seed=seed),
            tuple[TransformerRow, ...],
        )
    )
