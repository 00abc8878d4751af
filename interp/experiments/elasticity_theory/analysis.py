"""Curves, slope ratios and exponents from a result's rows. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from interp.experiments.elasticity_theory import Result
from interp.experiments.elasticity_theory.exponents import exponents
from interp.experiments.elasticity_theory.results import LogLinearRebound, SizeExponents, TransformerRow
from interp.stats import Estimate, ratio_of_means
from interp.tracking.rebound import ReboundStatistics, summarise


@dataclass(frozen=True, kw_only=True)
class TransformerCurves:
    """Decay curves of the tiny transformer at one N_p."""

    doses: tuple[int, ...]
    """N-."""
    scores: dict[int, list[list[float]]]
    """N+ → [seed][N-]."""
    kl: dict[int, list[list[float]]]
    """N+ → [seed][N-]."""
    base: list[float]
    """Score before alignment, by seed."""


@dataclass(frozen=True, kw_only=True)
class TransformerRatio:
    """Slope ratio of the tiny transformer at one (N_p, N+, N-)."""

    n_p: int
    n_plus: int
    n_minus: int
    ratio: Estimate
    """R over seeds, Fieller's interval; not measurable where the change of gamma_p does not differ from 0."""

    @property
    def k(self) -> float:
        """N_p / N+."""
        return self.n_p / self.n_plus


def transformer_curves(rows: Sequence[TransformerRow]) -> dict[int, TransformerCurves]:
    """Decay curves by N_p."""
    return {n_p: _curves([r for r in rows if r.n_p == n_p]) for n_p in sorted({r.n_p for r in rows})}


def _curves(rows: Sequence[TransformerRow]) -> TransformerCurves:
    seeds, doses = sorted({r.seed for r in rows}), sorted({r.n_minus for r in rows})
    sizes = sorted({r.n_plus for r in rows})
    by = {(r.n_plus, r.seed, r.n_minus): r for r in rows}

    def curves(value: Callable[[TransformerRow], float]) -> dict[int, list[list[float]]]:
        return {n: [[value(by[n, seed, dose]) for dose in doses] for seed in seeds] for n in sizes}

    return TransformerCurves(
        doses=tuple(doses),
        scores=curves(lambda row: row.score),
        kl=curves(lambda row: row.kl),
        base=[by[sizes[0], seed, 0].base_score for seed in seeds],
    )


def transformer_ratios(rows: Sequence[TransformerRow]) -> list[TransformerRatio]:
    """Slope ratio of every (N_p, N+, N- > 0): over seeds, from paired changes on held-out sequences.

    The change at a seed is a mean over its held-out sequences; the interval is Fieller's over seeds, which hold every
    other source of noise as well.
    """
    by: dict[tuple[int, int, int], list[TransformerRow]] = {}
    for row in rows:
        if row.n_minus:
            by.setdefault((row.n_p, row.n_plus, row.n_minus), []).append(row)
    return [
        TransformerRatio(
            n_p=n_p,
            n_plus=n_plus,
            n_minus=n_minus,
            ratio=ratio_of_means([r.change_a.mean for r in here], [r.change_p.mean for r in here]),
        )
        for (n_p, n_plus, n_minus), here in sorted(by.items())
    ]


def exponent_dose(rows: Sequence[TransformerRow]) -> int | None:
    """The smallest N- at which more than half of the slope ratios are resolved: the theorem is about small l."""
    ratios = transformer_ratios(rows)
    for dose in sorted({r.n_minus for r in ratios}):
        resolved = [r.ratio.measurable for r in ratios if r.n_minus == dose]
        if sum(resolved) > len(resolved) / 2:
            return dose
    return None


def transformer_exponents(rows: Sequence[TransformerRow], dose: int) -> SizeExponents | None:
    """Exponents of |R| in N_p and N_a at this N-, one point a seed; None where a size does not vary."""
    here = [r for r in rows if r.n_minus == dose and r.change_p.mean]
    if len({r.n_p for r in here}) < 2 or len({r.n_plus for r in here}) < 2:
        return None
    sizes = {"n_p": [r.n_p for r in here], "n_a": [r.n_plus for r in here]}
    return SizeExponents(**exponents(sizes, [r.change_a.mean / r.change_p.mean for r in here]))


def all_exponents(result: Result) -> Mapping[str, SizeExponents]:
    """Series of E4 and E6 → exponents of |R|."""
    found = {f"log-linear, {name}": sizes for name, sizes in result.sequential.exponents.items()}
    dose = exponent_dose(result.transformer)
    if dose is not None and (live := transformer_exponents(result.transformer, dose)) is not None:
        found[f"tiny transformer in stages, N- = {dose}"] = live
    return found


def rebound_statistics(
    rebound: LogLinearRebound, rows: Sequence[TransformerRow]
) -> dict[str, ReboundStatistics]:
    """Statistics and verdict of E5's decay curves, and of E6's at every N_p."""
    found = {
        "E5 log-linear": summarise(
            rebound.negatives,
            {n_plus: curves.scores for n_plus, curves in rebound.curves.items()},
            base=rebound.base_score,
            kl={n_plus: curves.kl for n_plus, curves in rebound.curves.items()},
        )
    }
    for n_p, curves in transformer_curves(rows).items():
        found[f"E6 transformer, N_p = {n_p:,}"] = summarise(
            curves.doses, curves.scores, base=curves.base, kl=curves.kl
        )
    return found
