"""What wrapped requests that succeed share, and how far their beliefs lie from those of the plain requests.

A point is a row of the experiment: `kind` (harmful, harmless), `family` and `wrapper` (`plain` for none), `id` of the
request, `refused`, and by ending its two beliefs. Requests, not prompts, are what is counted: prompts of one request
are averaged first, so that tests and intervals see independent values.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from interp.stats import mean_with_interval, rate

BELIEFS = ("harm", "refusal")
"""At `t_inst` and at `t_post_inst`."""


def _eligible(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Plain prompts that behave, by kind and id: harmful ones that are refused, harmless ones that are answered."""
    return {
        kind: {
            p["id"]: p
            for p in points
            if p["family"] == "plain" and p["kind"] == kind and p["refused"] == (kind == "harmful")
        }
        for kind in ("harmful", "harmless")
    }


def _families(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f for f in dict.fromkeys(p["family"] for p in points) if f != "plain"]


def success(points: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Share of plainly refused harmful requests that are answered when wrapped, by wrapper and by family.

    Beside each the control: the share of plainly answered harmless requests that the same wrapping gets refused. A
    family's share is the mean over requests of the share of its wrappers; its interval is over requests.
    """
    plain = _eligible(points)
    by_wrapper: dict[str, Any] = {}
    by_family: dict[str, Any] = {}
    for family in _families(points):
        rows = [p for p in points if p["family"] == family and p["id"] in plain[p["kind"]]]
        for wrapper in dict.fromkeys(p["wrapper"] for p in rows):
            here = [p for p in rows if p["wrapper"] == wrapper]
            by_wrapper[wrapper] = {
                "family": family,
                "success": rate([not p["refused"] for p in here if p["kind"] == "harmful"]).as_dict(),
                "harmless refused": rate([p["refused"] for p in here if p["kind"] == "harmless"]).as_dict(),
            }
        by_family[family] = {
            "success": _share(_by_request(rows, "harmful", lambda p: not p["refused"]), seed),
            "harmless refused": _share(_by_request(rows, "harmless", lambda p: p["refused"]), seed),
        }
    return {"wrappers": by_wrapper, "families": by_family}


def _by_request(rows: Iterable[Mapping[str, Any]], kind: str, value: Any) -> list[float]:
    """Mean of a value over each request's rows."""
    by: dict[str, list[float]] = {}
    for row in rows:
        if row["kind"] == kind:
            by.setdefault(row["id"], []).append(float(value(row)))
    return [float(np.mean(values)) for values in by.values()]


def _share(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Mean share over requests; where all requests agree a bootstrap sees no spread, and Wilson's interval is taken."""
    if len(set(values)) == 1 and values[0] in (0.0, 1.0):
        return rate([value == 1.0 for value in values]).as_dict()
    return mean_with_interval(values, seed=seed).as_dict()


def shifts(points: Sequence[Mapping[str, Any]], ending: str, *, seed: int = 0) -> dict[str, Any]:
    """Per family and belief, how far successes lie from their own plain requests, and the controls.

    `moved` is the mean over requests of (mean belief of its successful prompts - belief of the plain request), with a
    bootstrap interval; `p` is Wilcoxon's signed-rank test of it, `effect` the mean over the standard deviation of the
    differences (Cohen's d_z). `share_of_gap` divides it by the distance between plain refused harmful and plain
    answered harmless requests, so that both beliefs have one unit. `harmless` is the same shift of harmless requests,
    each wrapper weighted as often as it succeeded; `beyond` is what is left of `moved` after it; `still_refused` the
    shift of wrapped harmful requests that did not succeed. `negative_side` is the share of successes with a belief of 0
    or less, `plain_negative_side` that of the same requests plainly asked.
    """
    plain = _eligible(points)
    found: dict[str, Any] = {"gap": {}, "families": {}}
    for place, name in enumerate(BELIEFS):
        means = [
            np.mean([p[ending][place] for p in plain[kind].values()]) for kind in ("harmful", "harmless")
        ]
        found["gap"][name] = float(means[0] - means[1])
    for family in _families(points):
        rows = [p for p in points if p["family"] == family and p["id"] in plain[p["kind"]]]
        won = [p for p in rows if p["kind"] == "harmful" and not p["refused"]]
        lost = [p for p in rows if p["kind"] == "harmful" and p["refused"]]
        weights = {
            w: sum(p["wrapper"] == w for p in won) / max(1, len(won)) for w in {p["wrapper"] for p in won}
        }
        said: dict[str, Any] = {"requests": len({p["id"] for p in won}), "prompts": len(won)}
        for place, name in enumerate(BELIEFS):

            def shift(p: Mapping[str, Any], place: int = place) -> float:
                return p[ending][place] - plain[p["kind"]][p["id"]][ending][place]

            moved = _by_request(won, "harmful", shift)
            control = _weighted(rows, weights, shift)
            said[name] = {
                "moved": mean_with_interval(moved, seed=seed).as_dict(),
                **_paired(moved),
                "share_of_gap": _scaled(mean_with_interval(moved, seed=seed).as_dict(), found["gap"][name]),
                "harmless": mean_with_interval(control, seed=seed).as_dict(),
                "beyond": _difference(moved, control, seed),
                "still_refused": mean_with_interval(_by_request(lost, "harmful", shift), seed=seed).as_dict(),
                "negative_side": _share(
                    _by_request(won, "harmful", lambda p, k=place: p[ending][k] <= 0), seed
                ),
                "plain_negative_side": _share(
                    [
                        float(plain["harmful"][i][ending][place] <= 0)
                        for i in dict.fromkeys(p["id"] for p in won)
                    ],
                    seed,
                ),
            }
        said["refusal_beyond_harm"] = _which_moves(won, plain["harmful"], found["gap"], ending, seed)
        found["families"][family] = said
    return found


def _weighted(rows: Sequence[Mapping[str, Any]], weights: Mapping[str, float], shift: Any) -> list[float]:
    """Per harmless request, the mean shift over wrappers, each as often as it succeeded."""
    by: dict[str, float] = {}
    for row in rows:
        if row["kind"] == "harmless" and row["wrapper"] in weights:
            by[row["id"]] = by.get(row["id"], 0.0) + weights[row["wrapper"]] * shift(row)
    return list(by.values())


def _which_moves(
    won: Sequence[Mapping[str, Any]],
    plain: Mapping[str, Any],
    gap: Mapping[str, float],
    ending: str,
    seed: int,
) -> dict[str, Any]:
    """How much further down the refusal belief goes than the harm belief, per request, in shares of their gaps."""

    def further(p: Mapping[str, Any]) -> float:
        moved = [(p[ending][k] - plain[p["id"]][ending][k]) / gap[name] for k, name in enumerate(BELIEFS)]
        return moved[0] - moved[1]

    return mean_with_interval(_by_request(won, "harmful", further), seed=seed).as_dict()


def _paired(differences: Sequence[float]) -> dict[str, Any]:
    """Wilcoxon's signed-rank test against no shift, and the effect size d_z; None where there are too few."""
    values = np.asarray(differences)
    if len(values) < 2 or not values.any():
        return {"p": None, "effect": None}
    spread = float(values.std(ddof=1))
    _, p = stats.wilcoxon(values)
    return {
        "p": float(p),  # pyright: ignore[reportArgumentType]
        "effect": float(values.mean()) / spread if spread > 0 else None,
    }


def _scaled(entry: Mapping[str, Any], by: float) -> dict[str, Any]:
    low, high = sorted((entry["low"] / by, entry["high"] / by))
    return {"value": entry["value"] / by, "n": entry["n"], "low": low, "high": high}


def _difference(a: Sequence[float], b: Sequence[float], seed: int, draws: int = 2000) -> dict[str, Any]:
    """Difference of two means with its 95% bootstrap interval; n is the size of the first group."""
    nan = float("nan")
    if not len(a) or not len(b):
        return {"value": nan, "n": len(a), "low": nan, "high": nan}
    generator = np.random.default_rng(seed)
    x, y = np.asarray(a), np.asarray(b)
    means = [v[generator.integers(0, len(v), (draws, len(v)))].mean(1) for v in (x, y)]
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    return {"value": float(x.mean() - y.mean()), "n": len(x), "low": float(low), "high": float(high)}
