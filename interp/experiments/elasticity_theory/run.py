"""The theorem of alignment elasticity where it can be computed: does the ratio of sizes k set the slope ratio?

Ji, Wang, Qiu, Chen, Zhou, Li, Lou, Dai, Liu, Yang, "Language Models Resist Alignment: Evidence From Data Compression",
arXiv:2406.06144 (ACL 2025).

Claims and where they are tested:

| claim | section | test | tolerance |
|---|---|---|---|
| d gamma_a / dl = Theta(-k d gamma_p / dl), joint optimum | theorem 4.2 | E1 mixture, E2 tree, E3 log-linear | 1% |
| gamma_p falls and gamma_a rises with perturbation | theorem 4.2 | E1: holds up to the pole l* = s / (1 - s) | 1% |
| |D| times the change of KL is equal for all sets ("Hooke's law") | after 4.2 | elastic invariant, E1-E3 | 1% |
| the same for training in stages | experiments | E4: exponents in N_p and N_a | intervals only |
| more alignment, faster return ("rebound") | figure 4, table 3 | E5 log-linear, E6 transformer | intervals only |

The theorem is about a joint optimum, where it follows from the gradients' balance alone (`elasticity_theory_models`).
Training in stages need not end at one. Telling apart: |R| ~ N_p^1 N_a^-1 by the theorem, N_p^0 N_a^-1 by curvature.

Nothing here is evidence about language models: the largest model has 100 thousand parameters.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.display.progress import progress
from interp.experiments.elasticity_theory import models as theory
from interp.experiments.elasticity_theory.report import (
    figures,
    rate_table,
    rebound_summaries,
    report,
    verdicts,
)
from interp.experiments.elasticity_theory.transformer import Stages, life_cycle
from interp.stats import exponents, over_seeds
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch

__all__ = [
    "DEFAULT_MODEL",
    "NAME",
    "SUMMARY",
    "Config",
    "Result",
    "figures",
    "rate_table",
    "report",
    "run",
    "verdicts",
]

NAME = "elasticity-theory"
SUMMARY = (
    "the theorem of alignment elasticity in models that can be computed and a tiny transformer; no chat model"
)
DEFAULT_MODEL = None
"""Runs without a chat model and without prompts."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; sizes of the data sets are exact or expected counts."""

    ks: tuple[int | float, ...] = (10, 30, 100, 300, 1000)
    """|D_p| / |D_a| of E1 and E3."""
    shares: tuple[float, ...] = (0.1, 0.3)
    """s of E1."""
    tree_ks: tuple[int | float, ...] = (5, 10, 20, 50, 100)
    """|D_p| / |D_a| of E2."""
    depths: tuple[int, ...] = (4, 8, 12)
    """Depths that the token tree is pruned to."""
    tree_depth: int = 12
    """Depth of the whole tree."""
    tree_pretraining: int = 200_000
    """|D_p| of E2, in samples."""
    alignment_steps: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    """T_a of E4 after a converged pre-training, at `small_rate`."""
    small_rate: float = 1e-3
    """Learning rate of those steps."""
    pretraining_examples: tuple[int, ...] = (2_000, 8_000, 32_000, 128_000)
    """N_p of E4's one-pass training."""
    alignment_examples: tuple[int, ...] = (80, 160, 320, 640)
    """N_a of E4's one-pass training."""
    positives: tuple[int, ...] = (1000, 2000, 5000, 10000)
    """N+ of E5; as in the paper's figure 4."""
    negatives: tuple[int, ...] = (0, 100, 200, 500, 1000, 2000)
    """N- of E5; as in the paper's figure 4."""
    runs: int = 5
    """Seeds of E2, E4 and E5."""
    transformer_pretraining: tuple[int, ...] = (2_000, 8_000, 32_000)
    """N_p of E6."""
    transformer_positives: tuple[int, ...] = (250, 1000, 4000)
    """N+ of E6."""
    transformer_negatives: tuple[int, ...] = (0, 25, 50, 100, 250, 500)
    """N- of E6."""
    transformer_runs: int = 3
    """Seeds of E6; 0 leaves it out."""
    seed: int = 0
    """First seed; the others follow it."""

    def __post_init__(self) -> None:
        for name in ("negatives", "transformer_negatives"):
            values = list(getattr(self, name))
            if values[:1] != [0] or values != sorted(set(values)) or len(values) < 2:
                raise ValueError(f"{name} must begin with 0 and ascend, such as (0, 100, 500), got {values}")
        if self.runs < 2:
            raise ValueError(f"runs must be at least 2, or there is no interval; got {self.runs}")
        if any(n % 25 for n in self.transformer_negatives):
            raise ValueError(
                f"transformer_negatives must be multiples of the batch, 25; got {list(self.transformer_negatives)}"
            )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""


def run(
    config: Config | None = None, *, out: str | Path | None = None, show_progress: bool = False
) -> Result:
    """Run E1 to E6; seconds for E1 to E5, and half a minute a seed on one core for E6.

    Args:
        out: run folder; finished seeds of E6 are kept beside it until the run is whole; started again, it continues.
    """
    config = config or Config()
    watch = Stopwatch()
    parts = Parts(out, {"experiment": NAME, "config": asdict(config)}) if out is not None else None

    found: dict[str, Any] = {}
    steps: dict[str, Callable[[Config], Any]] = {
        "mixture": mixture,
        "token_tree": token_tree,
        "log_linear": log_linear,
        "sequential": sequential,
        "rebound": rebound,
    }
    for name, compute in steps.items():
        found[name] = compute(config)
        watch.lap(name)
    rows = []
    stages = Stages(
        pretraining=config.transformer_pretraining,
        positives=config.transformer_positives,
        negatives=config.transformer_negatives,
    )
    seeds = range(config.seed, config.seed + config.transformer_runs)
    for seed in progress(seeds, total=len(seeds), label="tiny transformer", show=show_progress):

        def live(seed: int = seed) -> list[dict[str, Any]]:
            return life_cycle(stages, seed=seed)

        rows += parts.numbers(f"transformer-{seed}", live) if parts else live()
    watch.lap("transformer")
    numbers = {
        "experiment": NAME,
        **found,
        "transformer": {"rows": rows},
        "seconds": watch.with_total,
        "provenance": provenance(
            {"model": "computed models", "device": "cpu"}, {"name": "synthetic", "notes": []}, config
        ),
    }
    numbers["summaries"] = rebound_summaries(numbers)
    result = Result(numbers=numbers)
    if out is not None:
        result.save(out)
        assert parts is not None
        parts.discard()
    return result


def mixture(config: Config) -> dict[str, Any]:
    """E1: mixture of counts over disjoint Pareto supports; slopes by differences against the closed form."""
    generator = np.random.default_rng(config.seed)
    rows = []
    for share in config.shares:
        sources = theory.pareto_sources(generator, share=share)
        for k in config.ks:
            for fraction in (1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 1.03, 1.1, 1.5):
                l = fraction * theory.pole(share)  # noqa: E741 (the theorem's name)
                slope_a, slope_p = theory.local_slopes(sources, k, l)
                rows.append(
                    {
                        "k": k,
                        "share": share,
                        "l": l,
                        "l_over_pole": fraction,
                        "slope_a": slope_a,
                        "slope_p": slope_p,
                        "ratio": slope_a / slope_p,
                        "closed_a": theory.slope_of_alignment(k, l),
                        "closed_p": theory.slope_of_pretraining(k, l, share),
                        "closed_ratio": theory.slope_ratio(k, l, share),
                    }
                )
    small = [r for r in rows if r["l_over_pole"] == 1e-3]
    return {
        "rows": rows,
        "slope": exponents({"k": [r["k"] for r in small]}, [r["ratio"] for r in small])["k"].as_dict(),
        "largest_error": max(abs(r["ratio"] / r["closed_ratio"] - 1) for r in rows),
    }


def token_tree(config: Config) -> dict[str, Any]:
    """E2: random binary-tree sources, sampled, counted at depth d: slope ratio against k by seed.

    `expected` is the same with expected instead of sampled counts and a vanishing l, where R = -k must hold exactly,
    though pruned supports overlap. `held_out` is measured on the sources, `train` on the counts themselves.
    """
    share, small, l = 0.2, 1e-6, 0.1  # noqa: E741 (the theorem's name)
    rows: list[dict[str, Any]] = []
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
            for depth in config.depths:
                p, a, t = (theory.prune(c, depth) for c in (counts_p, counts_a, counts_t))
                exact = _pruned(whole, depth)
                before, after = theory.counted(p + a), theory.counted(p + a + t)
                train = [
                    theory.cross_entropy(c / c.sum(), after) - theory.cross_entropy(c / c.sum(), before)
                    for c in (a, p)
                ]
                held_out = np.subtract(theory.rates(exact, after), theory.rates(exact, before))
                start, end = (theory.rates(exact, exact.mixture(k, x)) for x in (0.0, small))
                rows.append(
                    {
                        "seed": seed,
                        "k": k,
                        "depth": depth,
                        "change_a": train[0] / depth,
                        "change_p": train[1] / depth,
                        "ratio": train[0] / train[1],
                        "held_out_ratio": float(held_out[0] / held_out[1]),
                        "expected_ratio": (end[0] - start[0]) / (end[1] - start[1]),
                    }
                )
    slopes = {}
    for depth in config.depths:
        here = [r for r in rows if r["depth"] == depth]
        slopes[str(depth)] = {
            name: exponents({"k": [r["k"] for r in here]}, [r[name] for r in here])["k"].as_dict()
            for name in ("ratio", "held_out_ratio", "expected_ratio", "change_a", "change_p")
        }
    return {
        "rows": rows,
        "slopes": slopes,
        "largest_error": max(abs(r["expected_ratio"] / -r["k"] - 1) for r in rows),
        "meaningless": {str(d): sum(r["ratio"] > 0 for r in rows if r["depth"] == d) for d in config.depths},
    }


def _pruned(sources: theory.Sources, depth: int) -> theory.Sources:
    bulk, aligned, perturbing = (
        theory.prune(leaves, depth) for leaves in (sources.bulk, sources.aligned, sources.perturbing)
    )
    return theory.Sources(bulk=bulk, aligned=aligned, perturbing=perturbing, share=sources.share)


def log_linear(config: Config) -> dict[str, Any]:
    """E3: a log-linear model fitted jointly: R(0) = -k whatever the capacity, and the elastic invariant."""
    generator = np.random.default_rng(config.seed)
    sources = theory.pareto_sources(generator, share=0.2)
    model = theory.LogLinear(theory.grouped_features(generator, sources))
    rows = []
    for k in config.ks:
        start = model.fit(sources.mixture(k, 0.0))
        before = model.rates(start, sources)
        for l in (1e-4, 1e-3, 1e-2, 0.1, 1.0):  # noqa: E741 (the theorem's name)
            after = model.rates(model.fit(sources.mixture(k, l), start=start), sources)
            change_a, change_p = (y - x for x, y in zip(before, after, strict=True))
            rows.append(
                {"k": k, "l": l, "change_a": change_a, "change_p": change_p, "ratio": change_a / change_p}
            )
    small = [r for r in rows if r["l"] == 1e-4]
    return {
        "rows": rows,
        "slope": exponents({"k": [r["k"] for r in small]}, [r["ratio"] for r in small])["k"].as_dict(),
        "largest_error": max(abs(r["ratio"] / -r["k"] - 1) for r in small),
    }


def sequential(config: Config) -> dict[str, Any]:
    """E4: the same model trained in stages; exponents of |R| in N_p and N_a, with a joint optimum as control."""
    generator = np.random.default_rng(config.seed)
    sources = theory.pareto_sources(generator, share=0.2)
    model = theory.LogLinear(theory.grouped_features(generator, sources))
    converged = model.fit(sources.pretraining)
    small = []
    for steps in config.alignment_steps:
        theta = converged
        for _ in range(steps):
            theta = theta - config.small_rate * model.gradient(theta, sources.aligned)
        small.append(
            {
                "steps": steps,
                "ratio": _ratio_of_a_step(model, theta, sources),
                "first_order": theory.curvature_ratio(
                    model, converged, sources, rate=config.small_rate, steps=steps
                ),
            }
        )
    staged, joint = [], []
    for n_p in config.pretraining_examples:
        start = np.zeros((config.runs, model.features.shape[1]))
        base = model.one_pass(generator, start, sources.pretraining, n_p, rate=0.03, batch=10, decay=True)
        for n_a in config.alignment_examples:
            aligned = model.one_pass(generator, base, sources.aligned, n_a, rate=0.003, batch=10)
            staged += [
                {"n_p": n_p, "n_a": n_a, "seed": i, "ratio": _ratio_of_a_step(model, theta, sources)}
                for i, theta in enumerate(aligned)
            ]
            k = n_p / n_a
            before = model.fit(sources.mixture(k, 0.0))
            after = model.fit(sources.mixture(k, 1e-4), start=before)
            change = np.subtract(model.rates(after, sources), model.rates(before, sources))
            joint.append({"n_p": n_p, "n_a": n_a, "ratio": float(change[0] / change[1])})

    def both(rows: list[dict[str, Any]]) -> dict[str, Any]:
        factors = {name: [r[name] for r in rows] for name in ("n_p", "n_a")}
        return {name: e.as_dict() for name, e in exponents(factors, [r["ratio"] for r in rows]).items()}

    return {
        "converged": small,
        "staged": staged,
        "joint": joint,
        "exponents": {"in stages": both(staged), "joint optimum (control)": both(joint)},
    }


def _ratio_of_a_step(
    model: theory.LogLinear, theta: theory.Array, sources: theory.Sources, *, rate: float = 1e-5
) -> float:
    """Change of gamma_a over change of gamma_p in one small step on D_t."""
    before = model.rates(theta, sources)
    after = model.rates(theta - rate * model.gradient(theta, sources.perturbing), sources)
    return (after[0] - before[0]) / (after[1] - before[1])


def rebound(config: Config) -> dict[str, Any]:
    """E5: positives, then negatives, by stochastic gradient descent: does more alignment return sooner?"""
    generator = np.random.default_rng(config.seed)
    sources = theory.pareto_sources(generator, share=0.2)
    model = theory.LogLinear(theory.grouped_features(generator, sources))
    base = model.fit(sources.pretraining)
    before = model.probabilities(base)
    curves = {}
    for n_plus in config.positives:
        theta = model.one_pass(
            generator, np.tile(base, (config.runs, 1)), sources.aligned, n_plus, rate=0.003, batch=10
        )
        scores, kls = [], []
        for last, n_minus in zip((0, *config.negatives), config.negatives, strict=False):
            theta = (
                model.one_pass(generator, theta, sources.perturbing, n_minus - last, rate=0.003, batch=10)
                if n_minus > last
                else theta
            )
            p = model.probabilities(theta)
            scores.append(theory.behaviour_score(p))
            kls.append((p * np.log(p / before)).sum(-1))
        curves[str(n_plus)] = {"scores": np.stack(scores, 1).tolist(), "kl": np.stack(kls, 1).tolist()}
    return {
        "negatives": list(config.negatives),
        "base_score": float(theory.behaviour_score(before)),
        "curves": curves,
        "start": {n: over_seeds([s[0] for s in c["scores"]]).as_dict() for n, c in curves.items()},
    }
