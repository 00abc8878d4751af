"""Stored results about severity, categories and preferences: frozen records without tensors, readable without torch."""

from dataclasses import dataclass

from interp.stats import Estimate, Measured


@dataclass(frozen=True, kw_only=True)
class CategoryGeometry:
    """Directions of harm categories at one layer, beside the correlation of their labels."""

    names: tuple[str, ...]
    """Categories that have enough mixed pairs."""
    counts: tuple[int, ...]
    """Mixed pairs of each."""
    cosine: tuple[tuple[Measured, ...], ...]
    """Cosines of the mean differences."""
    own_cosine: tuple[tuple[Measured, ...], ...]
    """Cosines after the shared harm direction is projected out of each."""
    label_correlation: tuple[tuple[Measured, ...], ...]
    """Correlation (phi) of the flags over unsafe answers: what cosines can owe to answers that have both labels."""
    rank_correlation: Measured
    """Spearman's rho of own cosines and label correlations over pairs of categories."""
    mean_cosine: Measured
    """Mean cosine of two mean differences: how much categories share."""


@dataclass(frozen=True, kw_only=True)
class SeverityReading:
    """Severity of held-out unsafe answers, as one reader predicts it."""

    accuracy: Estimate
    """Share of answers with the right level."""
    macro_f1: Estimate
    """Mean F1 over levels."""
    kappa: Estimate
    """Cohen's kappa with quadratic weights."""
    spearman: Estimate
    """Spearman's rho of the reader's latent value and the level."""
    cosine_with_harm: float | None = None
    """Cosine of the reader's direction with the harm direction; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class PreferenceReading:
    """How often a probe for one preference is right on held-out pairs."""

    all_pairs: Estimate
    conflict: Estimate
    """Pairs whose more helpful answer is not the more harmless one."""
    agreeing: Estimate
    """The others."""


@dataclass(frozen=True, kw_only=True)
class ModerationScores:
    """Moderation of answers in the form of the paper's table."""

    accuracy: Estimate
    """Share of answers whose safe or unsafe is right."""
    f1: Measured
    """F1 of unsafe."""
    false_positive_rate: Estimate
    """Share of safe answers called unsafe."""
    level_accuracy: dict[str, Estimate]
    """Share of answers of each true severity whose severity is right, by level 1 to 3."""
    exact_match: Estimate
    """Share of answers with all 19 flags right."""
    severity_kappa: Measured
    """Quadratic kappa of severity 0 to 3."""
