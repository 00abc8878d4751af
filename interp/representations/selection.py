"""Selecting one refusal direction among candidates by the published scores and rule.

For a candidate r read at layer l and position i, on validation prompts:

| score | intervention | prompts | quantity |
|---|---|---|---|
| bypass | ablate r everywhere | harmful | mean refusal metric; lower is better |
| induce | add r at layer l, all positions | harmless | mean refusal metric |
| kl | ablate r everywhere | harmless | mean KL(unmodified || ablated) at the last token |

The pick has the lowest bypass among candidates with induce >= 0, kl <= 0.1 and l < int(0.8 L).

Source: Arditi et al. 2024, arXiv:2406.11717, section 2.3 and appendix C; the layer cut rounds down and the other two
are not strict, as in the released code.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interp.stats import Measured


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate direction and its scores."""

    position: int
    """Token position it was read at, counted from the prompt's end: -1 is the last token."""
    layer: int
    """Layer it was read at and is added at."""
    bypass: float
    """Mean refusal metric on harmful prompts with the direction ablated, in nats."""
    induce: float
    """Mean refusal metric on harmless prompts with the direction added, in nats."""
    kl: float
    """Mean KL on harmless prompts with the direction ablated, in nats."""


@dataclass(frozen=True, kw_only=True)
class ScoredCandidate:
    """A candidate as stored in results: its scores, and why the rule dropped it."""

    position: int
    """Token position, as in `Candidate`."""
    layer: int
    """Layer, as in `Candidate`."""
    bypass: Measured
    """Bypass score in nats; NaN where it was not measured."""
    induce: Measured
    """Induce score in nats; NaN where it was not measured."""
    kl: Measured
    """KL score in nats; NaN where it was not measured."""
    kept: bool
    """Whether the rule keeps it."""
    reason: str | None
    """Why the rule drops it; None where it is kept."""


@dataclass(frozen=True, kw_only=True)
class RuleUsed:
    """The rule that made a pick, as stored in results."""

    kl_threshold: float | None
    """Maximum kl, in nats; None is no limit."""
    induce_threshold: float | None
    """Minimum induce, in nats; None is no limit."""
    prune_layer_fraction: float
    """Share of the last layers that was excluded, 0 to 1."""
    published: bool
    """Whether it is the published rule."""
    text: str
    """The rule in words."""


@dataclass(frozen=True, kw_only=True)
class PickShare:
    """How often a candidate is picked over resampled validation prompts."""

    position: int | None
    """Token position, as in `Candidate`; None for the resamples in which no candidate passes."""
    layer: int | None
    """Layer, as in `Candidate`; None for the resamples in which no candidate passes."""
    share: float
    """Share of the resamples, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What a pick rests on that was screened with rounded products (`interp.representations.confirming`)."""

    screened: int
    """Candidates that were scored with rounded products, most of them not in full."""
    confirmed: int
    """Candidates that were scored again with exact products, the pick among them."""
    margin: float
    """How many times the largest difference a candidate that was not confirmed may be off."""
    bypass: Measured
    """Difference of bypass between rounded and exact products, absolute, mean over prompts, in nats: the largest of the
    confirmed candidates."""
    induce: Measured
    """Difference of induce, likewise."""
    kl: Measured
    """Difference of kl, likewise."""


class NothingSurvives(ValueError):
    """No candidate passes the filters; the message names the nearest misses."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The three filters; the defaults are the published ones."""

    kl_threshold: float = 0.1
    """Maximum kl, in nats."""
    induce_threshold: float = 0.0
    """Minimum induce, in nats."""
    prune_layer_fraction: float = 0.2
    """Share of the last layers that is excluded, 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("kl_threshold", "induce_threshold"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"{name} must be a number or infinite, got nan")
        if not 0 <= self.prune_layer_fraction <= 1:
            raise ValueError(f"prune_layer_fraction must lie within 0..1, got {self.prune_layer_fraction}")

    @property
    def published(self) -> bool:
        """Whether this is the published rule."""
        return self == Rule()

    def used(self, n_layers: int) -> RuleUsed:
        """The rule as stored in results."""
        bounds = (self.kl_threshold, self.induce_threshold)
        kl, induce = (bound if math.isfinite(bound) else None for bound in bounds)
        return RuleUsed(
            kl_threshold=kl,
            induce_threshold=induce,
            prune_layer_fraction=self.prune_layer_fraction,
            published=self.published,
            text=self.text(n_layers),
        )

    def first_late_layer(self, n_layers: int) -> int:
        """The first layer that is excluded."""
        return int(n_layers * (1 - self.prune_layer_fraction))

    def text(self, n_layers: int) -> str:
        """The rule in words."""
        return (
            f"lowest bypass with induce >= {self.induce_threshold:g}, KL <= {self.kl_threshold:g} and layer < "
            f"{self.first_late_layer(n_layers)}"
        )

    def reason(self, candidate: Candidate, *, n_layers: int) -> str | None:
        """Why the rule drops a candidate; None when it keeps it."""
        if candidate.layer >= self.first_late_layer(n_layers):
            return "too late a layer"
        if not all(map(math.isfinite, (candidate.bypass, candidate.induce, candidate.kl))):
            return "not finite"
        if candidate.kl > self.kl_threshold:
            return "kl too large"
        if candidate.induce < self.induce_threshold:
            return "induces too little"
        return None


def pick(
    scores: Any,
    *,
    n_layers: int,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
) -> Candidate:
    """The candidate with the lowest bypass score that passes the filters; ties go to the lower position, then layer.

    Args:
        scores: table with columns position, layer, bypass, induce, kl: candidates, dicts or a DataFrame.
        n_layers: number of the model's layers.
        kl_threshold: maximum kl, in nats.
        induce_threshold: minimum induce, in nats.
        prune_layer_fraction: share of the last layers that is excluded.

    Raises:
        NothingSurvives: no candidate passes; the message names the three nearest misses and what would admit each.
        ValueError: an empty table or a missing column.
    """
    rule = Rule(
        kl_threshold=kl_threshold,
        induce_threshold=induce_threshold,
        prune_layer_fraction=prune_layer_fraction,
    )
    table = _table(scores)
    passing = [c for c in table if rule.reason(c, n_layers=n_layers) is None]
    if not passing:
        raise NothingSurvives(_near_misses(table, rule, n_layers))
    return min(passing, key=lambda c: (c.bypass, c.position, c.layer))


def _near_misses(table: Sequence[Candidate], rule: Rule, n_layers: int) -> str:
    anything = Rule(
        kl_threshold=math.inf,
        induce_threshold=-math.inf,
        prune_layer_fraction=rule.prune_layer_fraction,
    )
    finite = [c for c in table if anything.reason(c, n_layers=n_layers) is None]
    near = sorted(
        finite,
        key=lambda c: max(c.kl - rule.kl_threshold, 0.0) + max(rule.induce_threshold - c.induce, 0.0),
    )[:3]
    shown = "; ".join(
        f"position {c.position} layer {c.layer} (bypass {c.bypass:.2f}, induce {c.induce:.2f}, kl {c.kl:.3f}) needs "
        + " and ".join(
            # Rounded outwards, so that the named option does admit the candidate.
            [f"kl_threshold={math.ceil(c.kl * 1e3) / 1e3:.3f}"] * (c.kl > rule.kl_threshold)
            + [f"induce_threshold={math.floor(c.induce * 1e3) / 1e3:.3f}"]
            * (c.induce < rule.induce_threshold)
        )
        for c in near
    )
    return (
        f"none of {len(table)} candidates has kl <= {rule.kl_threshold}, induce >= {rule.induce_threshold} and layer "
        f"< {rule.first_late_layer(n_layers)}; nearest: {shown or 'no finite score'}"
    )


def _table(scores: Any) -> list[Candidate]:
    given = scores.to_dict("records") if hasattr(scores, "to_dict") else scores
    rows: list[Mapping[str, Any]] = [r if isinstance(r, Mapping) else asdict(r) for r in given]
    if not rows:
        raise ValueError("the table of candidates is empty")
    columns = ("position", "layer", "bypass", "induce", "kl")
    for number, row in enumerate(rows):
        if missing := [c for c in columns if c not in row]:
            raise ValueError(f"row {number} of the table has no {missing[0]}; it needs {', '.join(columns)}")
    return [
        Candidate(
            position=int(r["position"]),
            layer=int(r["layer"]),
            **{c: math.nan if r[c] is None else float(r[c]) for c in columns[2:]},
        )
        for r in rows
    ]
