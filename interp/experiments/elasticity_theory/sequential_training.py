"""E4 and E5: the log-linear model trained in stages, which need not end at a joint optimum."""

import numpy as np

from interp.experiments.elasticity_theory import Config
from interp.experiments.elasticity_theory import models as theory
from interp.experiments.elasticity_theory.exponents import exponents
from interp.experiments.elasticity_theory.results import (
    ConvergedRow,
    JointRow,
    LogLinearRebound,
    Sequential,
    SizeExponents,
    StagedCurves,
    StagedRow,
)


def sequential(config: Config) -> Sequential:
    """E4: exponents of |R| in N_p and N_a after training in stages, with a joint optimum as control."""
    generator, sources, model = _setting(config)
    converged = model.fit(sources.pretraining)
    small = []
    for steps in config.alignment_steps:
        theta = converged
        for _ in range(steps):
            theta = theta - config.small_rate * model.gradient(theta, sources.aligned)
        first_order = theory.curvature_ratio(model, converged, sources, rate=config.small_rate, steps=steps)
        ratio = _ratio_of_a_step(model, theta, sources)
        small.append(ConvergedRow(steps=steps, ratio=ratio, first_order=first_order))
    staged: list[StagedRow] = []
    joint: list[JointRow] = []
    for n_p in config.pretraining_examples:
        start = np.zeros((config.runs, model.features.shape[1]))
        base = model.one_pass(generator, start, sources.pretraining, n_p, rate=0.03, batch=10, decay=True)
        for n_a in config.alignment_examples:
            aligned = model.one_pass(generator, base, sources.aligned, n_a, rate=0.003, batch=10)
            staged += [
                StagedRow(n_p=n_p, n_a=n_a, seed=i, ratio=_ratio_of_a_step(model, theta, sources))
                for i, theta in enumerate(aligned)
            ]
            joint.append(JointRow(n_p=n_p, n_a=n_a, ratio=_joint_ratio(model, sources, n_p / n_a)))
    return Sequential(
        converged=tuple(small),
        staged=tuple(staged),
        joint=tuple(joint),
        exponents={"in stages": _exponents(staged), "joint optimum (control)": _exponents(joint)},
    )


def rebound(config: Config) -> LogLinearRebound:
    """E5: positives, then negatives, by stochastic gradient descent: does more alignment return sooner?"""
    generator, sources, model = _setting(config)
    base = model.fit(sources.pretraining)
    before = model.probabilities(base)
    curves: dict[int, StagedCurves] = {}
    for n_plus in config.positives:
        theta = model.one_pass(
            generator, np.tile(base, (config.runs, 1)), sources.aligned, n_plus, rate=0.003, batch=10
        )
        scores, kls = [], []
        for last, n_minus in zip((0, *config.negatives), config.negatives, strict=False):
            if n_minus > last:
                theta = model.one_pass(
                    generator, theta, sources.perturbing, n_minus - last, rate=0.003, batch=10
                )
            p = model.probabilities(theta)
            scores.append(theory.behaviour_score(p))
            kls.append((p * np.log(p / before)).sum(-1))
        curves[n_plus] = StagedCurves(scores=_by_seed(scores), kl=_by_seed(kls))
    return LogLinearRebound(
        negatives=config.negatives, base_score=float(theory.behaviour_score(before)), curves=curves
    )


def _setting(config: Config) -> tuple[np.random.Generator, theory.Sources, theory.LogLinear]:
    """Three Pareto sources and a log-linear model over their symbols."""
    generator = np.random.default_rng(config.seed)
    sources = theory.pareto_sources(generator, share=0.2)
    return generator, sources, theory.LogLinear(theory.grouped_features(generator, sources))


def _ratio_of_a_step(
    model: theory.LogLinear, theta: theory.Array, sources: theory.Sources, *, rate: float = 1e-5
) -> float:
    """Change of gamma_a over change of gamma_p in one small step on D_t."""
    before = model.rates(theta, sources)
    after = model.rates(theta - rate * model.gradient(theta, sources.perturbing), sources)
    return (after[0] - before[0]) / (after[1] - before[1])


def _joint_ratio(model: theory.LogLinear, sources: theory.Sources, k: float) -> float:
    """R at a joint optimum."""
    before = model.fit(sources.mixture(k, 0.0))
    after = model.fit(sources.mixture(k, 1e-4), start=before)
    change = np.subtract(model.rates(after, sources), model.rates(before, sources))
    return float(change[0] / change[1])


def _exponents(rows: list[StagedRow] | list[JointRow]) -> SizeExponents:
    sizes = {"n_p": [r.n_p for r in rows], "n_a": [r.n_a for r in rows]}
    return SizeExponents(**exponents(sizes, [r.ratio for r in rows]))


def _by_seed(values: list[theory.Array]) -> tuple[tuple[float, ...], ...]:
    """[dose][seed] → [seed][dose]."""
    return tuple(map(tuple, np.stack(values, 1).tolist()))
