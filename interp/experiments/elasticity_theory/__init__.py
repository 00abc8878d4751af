"""The theorem of alignment elasticity where it can be computed: does the ratio of sizes k set the slope ratio?

Ji, Wang, Qiu, Chen, Zhou, Li, Lou, Dai, Liu, Yang, "Language Models Resist Alignment: Evidence From Data Compression",
arXiv:2406.06144 (ACL 2025).

The theorem holds at a joint optimum of both data sets, where the two gradients balance (`models.py`). Training on one
set after the other need not end at such an optimum: then the curvature of the loss may set the rebound. The two
explanations predict different ratios of slopes R for N_p pretraining and N_a alignment examples: |R| ~ N_p / N_a by the
theorem, |R| ~ 1 / N_a by curvature.

| file | experiments |
|---|---|
| `joint_optima.py` | E1 mixture of counts, E2 token tree, E3 log-linear model |
| `sequential_training.py` | E4 exponents and E5 rebound of the log-linear model trained in stages |
| `transformer.py` | E6 a tiny transformer trained in stages |
| `analysis.py` | curves, slope ratios and exponents from the transformer's rows |

The largest model has 100 thousand parameters, so none of the results is evidence about language models. Importing this
package does not import torch.
"""

from dataclasses import dataclass

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.experiments.elasticity_theory.results import (
    LogLinear,
    LogLinearRebound,
    Mixture,
    Sequential,
    TokenTree,
    TransformerRow,
)
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count, Positive, Share
from interp.tracking.rebound import ReboundStatistics

CLAIMS = (
    Claim(
        text="d gamma_a / dl = Theta(-k d gamma_p / dl) at a joint optimum.",
        where="theorem 4.2",
        theirs="a theorem",
        same_when="R = -k within 1% in E1 mixture, E2 tree and E3 log-linear",
    ),
    Claim(
        text="gamma_p falls and gamma_a rises with perturbation.",
        where="theorem 4.2",
        theirs="a theorem, for small l",
        same_when="E1: the signs hold up to the pole l* = s / (1 - s), slopes within 1% of the closed form",
    ),
    Claim(
        text='|D| times the change of KL is equal for all sets ("Hooke\'s law").',
        where="after theorem 4.2",
        theirs="an elastic invariant",
        same_when="E1 to E3: products on the identity line within 1%",
    ),
    Claim(
        text="The same holds for training in stages.",
        where="experiments",
        theirs="read off real pipelines",
        same_when="E4, E6: the intervals of the exponents in N_p and N_a hold 1 and -1",
    ),
    Claim(
        text='More alignment, faster return ("rebound").',
        where="figure 4, table 3",
        theirs="so on all of their models",
        same_when="E5 log-linear, E6 transformer: the verdict of `interp.tracking.rebound.judge`",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; sizes of the data sets are exact or expected counts."""

    ks: tuple[Positive, ...] = (10, 30, 100, 300, 1000)
    """|D_p| / |D_a| of E1 and E3."""
    shares: tuple[Share, ...] = (0.1, 0.3)
    """s of E1."""
    tree_ks: tuple[Positive, ...] = (5, 10, 20, 50, 100)
    """|D_p| / |D_a| of E2."""
    depths: tuple[Count, ...] = (4, 8, 12)
    """Depths that the token tree is pruned to."""
    tree_depth: Count = 12
    """Depth of the whole tree."""
    tree_pretraining: Count = 200_000
    """|D_p| of E2, in samples."""
    alignment_steps: tuple[Count, ...] = (10, 30, 100, 300, 1000, 3000)
    """T_a of E4 after a converged pre-training, at `small_rate`."""
    small_rate: Positive = 1e-3
    """Learning rate of those steps."""
    pretraining_examples: tuple[Count, ...] = (2_000, 8_000, 32_000, 128_000)
    """N_p of E4's one-pass training."""
    alignment_examples: tuple[Count, ...] = (80, 160, 320, 640)
    """N_a of E4's one-pass training."""
    positives: tuple[Count, ...] = (1000, 2000, 5000, 10000)
    """N+ of E5; as in the paper's figure 4."""
    negatives: tuple[int, ...] = (0, 100, 200, 500, 1000, 2000)
    """N- of E5; as in the paper's figure 4."""
    runs: AtLeastTwo = 5
    """Seeds of E2, E4 and E5."""
    transformer_pretraining: tuple[Count, ...] = (2_000, 8_000, 32_000)
    """N_p of E6."""
    transformer_positives: tuple[Count, ...] = (250, 1000, 4000)
    """N+ of E6."""
    transformer_negatives: tuple[int, ...] = (0, 25, 50, 100, 250, 500)
    """N- of E6."""
    transformer_runs: Count = 3
    """Seeds of E6; 0 leaves it out."""
    seed: int = 0
    """First seed; the others follow it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("negatives", "transformer_negatives"):
            values = list(getattr(self, name))
            if values[:1] != [0] or values != sorted(set(values)) or len(values) < 2:
                raise ValueError(f"{name} must begin with 0 and ascend, such as (0, 100, 500), got {values}")
        if any(n % 25 for n in self.transformer_negatives):
            raise ValueError(
                f"transformer_negatives must be multiples of the batch, 25; got {list(self.transformer_negatives)}"
            )


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    mixture: Mixture
    """E1."""
    token_tree: TokenTree
    """E2."""
    log_linear: LogLinear
    """E3."""
    sequential: Sequential
    """E4."""
    rebound: LogLinearRebound
    """E5."""
    transformer: tuple[TransformerRow, ...]
    """E6; empty where it was left out."""
    rebound_statistics: dict[str, ReboundStatistics]
    """Statistics and verdict of E5 and of E6 at every N_p, by name."""


EXPERIMENT = Experiment(
    name="elasticity-theory",
    summary=SUMMARIES["elasticity-theory"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    default_model=None,
)
