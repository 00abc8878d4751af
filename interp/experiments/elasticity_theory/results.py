"""Records of the elasticity theory's result, experiment by experiment.

k = |D_p| / |D_a| and l = |D_t| / |D_a| are size ratios of pre-training (p), alignment (a) and perturbation data (t).
gamma is a compression rate, lower is a better fit; R = change of gamma_a / change of gamma_p.
"""

from dataclasses import dataclass

from interp.stats import Estimate, Measured, Number

# E1: mixture of counts


@dataclass(frozen=True, kw_only=True)
class MixtureRow:
    """Slopes of the mixture at one k, s and l; nats per unit of l."""

    k: Number
    share: float
    """s: what the aligned and the perturbing source each have of pre-training."""
    l: float  # noqa: E741 (the theorem's name)
    l_over_pole: float
    """l in units of the pole l* = s / (1 - s)."""
    slope_a: Measured
    """d gamma_a / dl, by differences."""
    slope_p: Measured
    """d gamma_p / dl, by differences."""
    ratio: Measured
    """R = slope_a / slope_p."""
    closed_a: float
    """d gamma_a / dl in closed form."""
    closed_p: float
    """d gamma_p / dl in closed form."""
    closed_ratio: float
    """R in closed form."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """E1."""

    rows: tuple[MixtureRow, ...]
    slope: Estimate
    """Slope of log|R| in log k at the smallest l; the theorem predicts 1."""
    largest_error: float
    """Largest relative error of R against its closed form."""


# E2: token tree


@dataclass(frozen=True, kw_only=True)
class TreeRow:
    """One token tree, pruned to a depth."""

    seed: int
    k: Number
    depth: int
    change_a: Measured
    """Change of gamma_a by the perturbation on the sampled counts, nats per level of the tree."""
    change_p: Measured
    """Change of gamma_p, the same way."""
    ratio: Measured
    """R on the sampled counts."""
    held_out_ratio: Measured
    """R measured on the sources that the counts were sampled from."""
    expected_ratio: Measured
    """R with expected instead of sampled counts and a vanishing l, where it must be -k."""


@dataclass(frozen=True, kw_only=True)
class TreeSlopes:
    """Slopes in log k at one depth."""

    ratio: Estimate
    """Slope of log|R| in log k from the sampled counts; the theorem predicts 1."""
    held_out_ratio: Estimate
    """Slope of log|R| in log k on the sources; the theorem predicts 1."""
    expected_ratio: Estimate
    """Slope of log|R| in log k from expected counts; the theorem predicts 1."""
    change_a: Estimate
    """Slope of the log change of gamma_a in log k; the theorem predicts -1."""
    change_p: Estimate
    """Slope of the log change of gamma_p in log k; the theorem predicts -2."""


@dataclass(frozen=True, kw_only=True)
class TokenTree:
    """E2."""

    rows: tuple[TreeRow, ...]
    slopes: dict[int, TreeSlopes]
    """Slopes by depth of the trees."""
    largest_error: float
    """Largest relative error of R against -k with expected counts."""
    wrong_sign: dict[int, int]
    """Number of rows, by depth, whose sampled R is above 0 and therefore not interpretable."""


# E3: log-linear model at a joint optimum


@dataclass(frozen=True, kw_only=True)
class LogLinearRow:
    """Change of the rates from l = 0 to l, each fitted jointly; nats."""

    k: Number
    l: float  # noqa: E741 (the theorem's name)
    change_a: Measured
    change_p: Measured
    ratio: Measured
    """R."""


@dataclass(frozen=True, kw_only=True)
class LogLinear:
    """E3."""

    rows: tuple[LogLinearRow, ...]
    slope: Estimate
    """Slope of log|R| in log k at the smallest l; the theorem predicts 1."""
    largest_error: float
    """Largest relative error of R against -k at the smallest l."""


# E4: training in stages


@dataclass(frozen=True, kw_only=True)
class ConvergedRow:
    """Change after a number of small alignment steps that follow a converged pre-training."""

    steps: int
    """T_a."""
    ratio: Measured
    """R of one small step on perturbation data."""
    first_order: Measured
    """The same by curvature, to first order in T_a."""


@dataclass(frozen=True, kw_only=True)
class StagedRow:
    """One pass over N_p, then over N_a examples."""

    n_p: int
    n_a: int
    seed: int
    ratio: Measured
    """R of one small step on perturbation data."""


@dataclass(frozen=True, kw_only=True)
class JointRow:
    """The control: a joint optimum at the same sizes."""

    n_p: int
    n_a: int
    ratio: Measured
    """R."""


@dataclass(frozen=True, kw_only=True)
class SizeExponents:
    """Exponents of |R| in the two sizes, d log|R| / d log N."""

    n_p: Estimate
    """Exponent of the pre-training size: the theorem predicts 1, curvature 0."""
    n_a: Estimate
    """Exponent of the alignment size: both predict -1."""


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """E4."""

    converged: tuple[ConvergedRow, ...]
    staged: tuple[StagedRow, ...]
    joint: tuple[JointRow, ...]
    exponents: dict[str, SizeExponents]
    """`in stages`, and `joint optimum (control)`."""


# E5: rebound of the log-linear model


@dataclass(frozen=True, kw_only=True)
class StagedCurves:
    """Curves of one N+, [seed][N-]."""

    scores: tuple[tuple[Measured, ...], ...]
    """Share of aligned behaviour."""
    kl: tuple[tuple[Measured, ...], ...]
    """KL to the model before alignment, nats."""


@dataclass(frozen=True, kw_only=True)
class LogLinearRebound:
    """E5."""

    negatives: tuple[int, ...]
    """N-, ascending from 0."""
    base_score: float
    """Score of the model before alignment."""
    curves: dict[int, StagedCurves]
    """Curves by N+."""


# E6: tiny transformer


@dataclass(frozen=True, kw_only=True)
class PairedChange:
    """Change of a compression rate since N- = 0 over the same held-out sequences, bits per symbol."""

    mean: Measured
    sd: Measured
    n: int
    """Sequences."""


@dataclass(frozen=True, kw_only=True)
class TransformerRow:
    """One checkpoint of the tiny transformer."""

    seed: int
    n_p: int
    n_plus: int
    n_minus: int
    score: Measured
    """Probability that a neutral prefix is continued by the positive grammar."""
    base_score: Measured
    """The same before alignment."""
    kl: Measured
    """KL(model || model before alignment), nats per symbol of the model's own samples."""
    rates: dict[str, Measured]
    """Mean bits per symbol on held-out sequences, by grammar and for `pretraining`."""
    base_rates: dict[str, Measured]
    """The same before alignment."""
    change_a: PairedChange
    """Change on positive sequences."""
    change_p: PairedChange
    """Change on pre-training sequences."""
