"""Does the shape of preference data matter? Prefix trees against independent chains, simulated, fitted, and generated.

Qiu, Zeng, Ji, Yan, Wang, Zhou, Han, Dai, Pan, Yang, "Reward Generalization in RLHF: A Topological Perspective",
arXiv:2402.10184 (Findings of ACL 2025). The paper bounds reward uncertainty by the best path between two answers
through comparisons and similar answers, and finds trees ahead of chains by up to log n / log log n. With all paths
combined, as exact inference does, that lead is nearly gone: both quantities are computed here, and the report says so.

| file | what it does |
|---|---|
| `bayesian_network.py` | S1 hops, S2 best-path distance over n, S3 best path and posterior variance over noise |
| `trained_rewards.py` | S4 rewards fitted on synthetic comparisons |
| `generated_pairs.py` | answers of a model as trees and chains, rewards at equal tokens and labels |

Preferences of the last part come from a programmatic oracle, so they are evidence about sampling designs, not about
what people prefer. Importing this package does not import torch.
"""

from dataclasses import dataclass
from typing import Literal

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.stats import Estimate, Measured
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count, Positive

CLAIMS = (
    Claim(
        text="Typical routes between clusters take about log n / log log n comparisons.",
        where="theorem 4.5, derivation",
        theirs="log M / log(2 log n)",
        same_when="S1: slope in log n / log log n above 0 and within 20% of the prediction's",
    ),
    Claim(
        text="Trees lower the inference distance, and their lead grows with n.",
        where="theorem 4.5, table 2",
        theirs="by up to log n / log log n",
        same_when="S2: chain / tree grows with n for every alpha up to 0.5",
    ),
    Claim(
        text="Trees lower the variance of the reward model.",
        where="abstract",
        theirs="by up to log n / log log n",
        same_when="S3: posterior variance of trees is below that of chains by more than 5%",
    ),
    Claim(
        text="A reward model from trees generalises better than one from chains.",
        where="section 5",
        theirs="65% mean win rate in PPO",
        same_when="generated pairs: accuracy of trees above that of chains, intervals apart, at most label counts",
    ),
)

Arm = Literal["trees", "chains, equal tokens", "chains, equal labels"]
ARMS: tuple[Arm, ...] = ("trees", "chains, equal tokens", "chains, equal labels")
"""Trees; chains of as many generated tokens; chains of whatever tokens, in which no answer is used twice."""


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; the paper's own for trees were not found."""

    hop_sizes: tuple[Count, ...] = (256, 1024, 4096, 16384, 65536, 262144)
    """n of S1."""
    alphas: tuple[Positive, ...] = (0.25, 0.5)
    """Decay of the structure function in S2."""
    sizes: tuple[Count, ...] = (256, 512, 1024, 2048, 4096)
    """n of S2, powers of 2; far below 2^depth."""
    depth: Count = 14
    """Depth of the tree of answers in S2 and S3."""
    noise: Positive = 1e-5
    """Variance of a comparison in S2."""
    regimes: tuple[Positive, ...] = (1e-4, 0.1, 1.0)
    """Variances of a comparison in S3."""
    regime_size: Count = 1024
    """n of S3."""
    regime_alpha: Positive = 0.25
    """Decay in S3."""
    n_pairs: Count = 200
    """Pairs of leaves whose distance is averaged."""
    runs: AtLeastTwo = 5
    """Seeds of every part."""
    fitted_depth: Count = 9
    """Depth of the tree of answers in S4."""
    fitted_sizes: tuple[Count, ...] = (32, 64, 128, 256)
    """Comparisons of S4."""
    sharpness: Positive = 4.0
    """beta of the comparisons in S4; rewards have a standard deviation near 0.7."""
    n_prompts: int = 24
    """Prompts of harmless/train that answers are generated to; 0 leaves the part with a model out."""
    n_test: Count = 8
    """Prompts of harmless/test."""
    tree_depth: Count = 3
    """Levels of segments."""
    branching: Count = 2
    """Segments after each node."""
    segment_tokens: Count = 10
    """Tokens of a segment at most."""
    temperature: Positive = 1.0
    """Of sampling."""
    labels: tuple[Count, ...] = (16, 32, 64, 128)
    """Comparisons of a reward model."""
    best_of: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Answers from which a reward model picks."""
    seed: int = 0
    """First seed."""


@dataclass(frozen=True, kw_only=True)
class HopRow:
    """S1 at one n."""

    n: int
    hops: Estimate
    """Mean comparisons on a route, over seeds."""
    predicted: float
    """log M / log(2 log n)."""
    log_ratio: float
    """log n / log log n."""


@dataclass(frozen=True, kw_only=True)
class DistanceRow:
    """S2 at one alpha and n."""

    alpha: float | int
    n: int
    chain: Estimate
    """Best-path distance of chains, over seeds; lower is better."""
    tree: Estimate
    """That of trees."""
    ratio: Estimate
    """Chain over tree, over seeds; above 1 where trees are ahead."""


@dataclass(frozen=True, kw_only=True)
class RegimeRow:
    """S3 at one variance of a comparison."""

    noise: float | int
    best_chain: Estimate
    best_tree: Estimate
    posterior_chain: Estimate
    posterior_tree: Estimate
    best_ratio: Estimate
    """Best path, chain over tree."""
    posterior_ratio: Estimate
    """Posterior variance, chain over tree."""


@dataclass(frozen=True, kw_only=True)
class FittedRow:
    """S4 at one number of comparisons."""

    n: int
    tau_chain: Estimate
    """Kendall's tau on unseen leaves, over seeds."""
    tau_tree: Estimate
    variance_chain: float
    """Variance over seeds of the reward difference of two leaves."""
    variance_tree: float


@dataclass(frozen=True, kw_only=True)
class GeneratedRow:
    """A reward model's data and accuracy in one arm at one number of labels."""

    arm: Arm
    labels: int
    """Comparisons asked for."""
    used: Estimate
    """Comparisons that the arm's answers gave, over seeds."""
    accuracy: Estimate
    """On pairs of held-out prompts, over seeds."""
    variance: Measured
    """Variance over seeds of the scaled reward difference of held-out pairs; lower is steadier."""
    near_accuracy: Estimate
    """On pairs of held-out tree leaves that share their first segment."""


@dataclass(frozen=True, kw_only=True)
class BestOfRow:
    """Mean oracle score of the answer that an arm's reward model picks from N."""

    arm: Arm
    n: int
    score: Estimate
    """Over seeds, at the largest number of labels."""
    oracle: float
    """Of the oracle's own pick."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The part with a model."""

    rows: tuple[GeneratedRow, ...]
    best_of: tuple[BestOfRow, ...]
    tokens: dict[Arm, Estimate]
    """Tokens generated for each arm, over seeds."""
    answers: dict[Arm, Estimate]
    """Answers to a prompt."""


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    hops: tuple[HopRow, ...]
    hop_slope: Estimate
    """Slope of hops in log n / log log n."""
    predicted_slope: float
    """That of the prediction."""
    distances: tuple[DistanceRow, ...]
    regimes: tuple[RegimeRow, ...]
    fitted: tuple[FittedRow, ...]
    generated: Generated | None
    """None where the part with a model was left out."""


EXPERIMENT = Experiment(
    name="reward-topology",
    summary=SUMMARIES["reward-topology"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
    default_model="smollm2",
)
