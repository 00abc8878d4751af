"""E1 to E3: the slope ratio at joint optima, where the theorem says R = -k.

Three kinds of model, from closed form to fitted: a mixture of counts, a token tree, a log-linear model (`models.py`).
"""

import numpy as np

from interp.experiments.elasticity_theory import Config
from interp.experiments.elasticity_theory import models as theory
from interp.experiments.elasticity_theory.exponents import exponents
from interp.experiments.elasticity_theory.results import (
    LogLinear,
    LogLinearRow,
    Mixture,
    MixtureRow,
    TokenTree,
    TreeRow,
    TreeSlopes,
)
from interp.stats import Estimate, Number

POLE_FRACTIONS = (1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 1.03, 1.1, 1.5)
"""l of E1, in units of the pole."""
DOSES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""l of E3."""


def mixture(config: Config) -> Mixture:
    """E1: mixture of counts over disjoint Pareto supports; slopes by differences against the closed form."""
    generator = np.random.default_rng(config.seed)
    rows: list[MixtureRow] = []
    for share in config.shares:
        sources = theory.pareto_sources(generator, share=share)
        rows += [_mixture_row(sources, k, share, fraction) for k in config.ks for fraction in POLE_FRACTIONS]
    small = [r for r in rows if r.l_over_pole == min(POLE_FRACTIONS)]
    return Mixture(
        rows=tuple(rows),
        slope=_slope([r.k for r in small], [r.ratio for r in small]),
        largest_error=max(abs(r.ratio / r.closed_ratio - 1) for r in rows),
    )


def _mixture_row(sources: theory.Sources, k: Number, share: float, fraction: float) -> MixtureRow:
    l = fraction * theory.pole(share)  # noqa: E741 (the theorem's name)
    slope_a, slope_p = theory.local_slopes(sources, k, l)
    return MixtureRow(
        k=k,
        share=share,
        l=l,
        l_over_pole=fraction,
        slope_a=slope_a,
        slope_p=slope_p,
        ratio=slope_a / slope_p,
        closed_a=theory.slope_of_alignment(k, l),
        closed_p=theory.slope_of_pretraining(k, l, share),
        closed_ratio=theory.slope_ratio(k, l, share),
    )


def token_tree(config: Config) -> TokenTree:
    """E2: random binary-tree sources, sampled, counted at depth d: slope ratio against k by seed.

    The expected ratio uses expected instead of sampled counts and a vanishing l, where R = -k must hold exactly, though
    pruned supports overlap.
    """
    share, l = 0.2, 0.1  # noqa: E741 (the theorem's name)
    rows: list[TreeRow] = []
    for seed in range(config.seed, config.seed + config.runs):
        generator = np.random.default_rng(seed)
        leaves = [theory.tree_source(generator, config.tree_depth) for _ in range(3)]
        n_p = config.tree_pretraining
        whole = theory.Sources(bulk=leaves[0], aligned=leaves[1], perturbing=leaves[2], share=share)
        counts_p = generator.multinomial(n_p, whole.pretraining).astype(np.float64)
        for k in config.tree_ks:
            n_a = round(n_p / k)
            counts_a, counts_t = (
                generator.multinomial(n, source).astype(np.float64)
                for n, source in ((n_a, whole.aligned), (round(l * n_a), whole.perturbing))
            )
            rows += [
                _tree_row(whole, (counts_p, counts_a, counts_t), seed=seed, k=k, depth=depth)
                for depth in config.depths
            ]
    return TokenTree(
        rows=tuple(rows),
        slopes={depth: _tree_slopes([r for r in rows if r.depth == depth]) for depth in config.depths},
        largest_error=max(abs(r.expected_ratio / -r.k - 1) for r in rows),
        wrong_sign={depth: sum(r.ratio > 0 for r in rows if r.depth == depth) for depth in config.depths},
    )


def _tree_row(
    whole: theory.Sources,
    counts: tuple[theory.Array, theory.Array, theory.Array],
    *,
    seed: int,
    k: Number,
    depth: int,
) -> TreeRow:
    """One tree at one depth.

    Args:
        counts: sampled counts of D_p, D_a and D_t at the leaves.
    """
    p, a, t = (theory.prune(c, depth) for c in counts)
    exact = _pruned(whole, depth)
    before, after = theory.counted(p + a), theory.counted(p + a + t)
    change_a, change_p = (
        theory.cross_entropy(c / c.sum(), after) - theory.cross_entropy(c / c.sum(), before) for c in (a, p)
    )
    held_out = np.subtract(theory.rates(exact, after), theory.rates(exact, before))
    start, end = (theory.rates(exact, exact.mixture(k, l)) for l in (0.0, 1e-6))  # noqa: E741 (the theorem's name)
    return TreeRow(
        seed=seed,
        k=k,
        depth=depth,
        change_a=change_a / depth,
        change_p=change_p / depth,
        ratio=change_a / change_p,
        held_out_ratio=float(held_out[0] / held_out[1]),
        expected_ratio=(end[0] - start[0]) / (end[1] - start[1]),
    )


def _tree_slopes(rows: list[TreeRow]) -> TreeSlopes:
    ks = [r.k for r in rows]
    return TreeSlopes(
        ratio=_slope(ks, [r.ratio for r in rows]),
        held_out_ratio=_slope(ks, [r.held_out_ratio for r in rows]),
        expected_ratio=_slope(ks, [r.expected_ratio for r in rows]),
        change_a=_slope(ks, [r.change_a for r in rows]),
        change_p=_slope(ks, [r.change_p for r in rows]),
    )


def _pruned(sources: theory.Sources, depth: int) -> theory.Sources:
    bulk, aligned, perturbing = (
        theory.prune(leaves, depth) for leaves in (sources.bulk, sources.aligned, sources.perturbing)
    )
    return theory.Sources(bulk=bulk, aligned=aligned, perturbing=perturbing, share=sources.share)


def log_linear(config: Config) -> LogLinear:
    """E3: a log-linear model fitted jointly: R(0) = -k whatever the capacity, and the elastic invariant."""
    generator = np.random.default_rng(config.seed)
    sources = theory.pareto_sources(generator, share=0.2)
    model = theory.LogLinear(theory.grouped_features(generator, sources))
    rows: list[LogLinearRow] = []
    for k in config.ks:
        start = model.fit(sources.mixture(k, 0.0))
        before = model.rates(start, sources)
        for l in DOSES:  # noqa: E741 (the theorem's name)
            after = model.rates(model.fit(sources.mixture(k, l), start=start), sources)
            change_a, change_p = (y - x for x, y in zip(before, after, strict=True))
            rows.append(
                LogLinearRow(k=k, l=l, change_a=change_a, change_p=change_p, ratio=change_a / change_p)
            )
    small = [r for r in rows if r.l == min(DOSES)]
    return LogLinear(
        rows=tuple(rows),
        slope=_slope([r.k for r in small], [r.ratio for r in small]),
        largest_error=max(abs(r.ratio / -r.k - 1) for r in small),
    )


def _slope(ks: list[Number], response: list[float]) -> Estimate:
    """Slope of log|response| in log k."""
    return exponents({"k": ks}, response)["k"]
