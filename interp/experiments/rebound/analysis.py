"""What rebound's stored rows say of the representation and of the slope ratio; numbers in, numbers out."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.stats import Estimate, fitted_slope, over_seeds, ratio_of_means
from interp.tracking.rebound import initial_range

# The representation side


def axes(model: Mapping[str, Any]) -> list[str]:
    """Names of the directions that were followed; controls last."""
    names = list(model["rows"][0]["representation"]) if model["rows"] else []
    return sorted(names, key=lambda name: name.startswith("control"))


def representation(model: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Axis → N+ → a row per N-: share of the alignment's shift that is left, or why there is none.

    The shift is (checkpoint - base) along the direction fitted at the aligned model; its share left is the mean over
    prompts and seeds over the same mean at N- = 0 (Fieller's interval; it treats the two means as independent, so it
    is wide).
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for axis in axes(model):
        for n_plus in sorted({r["n_plus"] for r in model["rows"]} - {0}):
            table = found.setdefault(axis, {}).setdefault(str(n_plus), [])
            for n_minus in sorted({r["n_minus"] for r in model["rows"]}):
                here = [r for r in model["rows"] if (r["n_plus"], r["n_minus"]) == (n_plus, n_minus)]
                now, start = (
                    [v for r in here for v in r["representation"][axis][key]]
                    for key in ("since_base", "at_aligned")
                )
                ratio = ratio_of_means(now, start)
                table.append(
                    {
                        "n_minus": n_minus,
                        "share": {k: None if v != v else v for k, v in ratio.as_dict().items()},
                        "shift": {k: None if v != v else v for k, v in over_seeds(now).as_dict().items()},
                    }
                )
    return found


def lost_per_example(model: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Axis → N+ → share of the projection lost per negative example over the initial range; over seeds.

    Only where the alignment's own shift is resolved; otherwise the estimate is empty and counts its seeds as missing.
    """
    found: dict[str, dict[str, Estimate]] = {}
    table = representation(model)
    for axis, by in table.items():
        for n_plus, entries in by.items():
            mine = [r for r in model["rows"] if str(r["n_plus"]) == n_plus]
            seeds = sorted({r["seed"] for r in mine})
            values = []
            for seed in seeds:
                rows = sorted((r for r in mine if r["seed"] == seed), key=lambda r: r["n_minus"])
                doses = [r["n_minus"] for r in rows]
                _, last = initial_range(doses)
                now = [float(np.mean(r["representation"][axis]["since_base"])) for r in rows]
                kept = [(d, 1 - v / now[0]) for d, v in zip(doses, now, strict=True) if d <= last and now[0]]
                resolved = entries[0]["share"]["value"] is not None
                values.append(
                    fitted_slope(*zip(*kept, strict=True)).value if resolved and len(kept) > 1 else math.nan
                )
            found.setdefault(axis, {})[n_plus] = over_seeds(values)
    return found


# Slope ratio


def slope_ratio_rows(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """R(l) = change of gamma on held-out positives / on prose, paired by document, pooled over seeds."""
    rows = model["rows"]
    found = []
    for n_plus in sorted({r["n_plus"] for r in rows} - {0}):
        for n_minus in sorted({r["n_minus"] for r in rows} - {0}):
            changes: dict[str, list[float]] = {"positive": [], "prose": []}
            for r in rows:
                if (r["n_plus"], r["n_minus"]) != (n_plus, n_minus):
                    continue
                start = next(
                    s for s in rows if (s["n_plus"], s["n_minus"], s["seed"]) == (n_plus, 0, r["seed"])
                )
                for name, into in changes.items():
                    into += np.subtract(r["bits_per_byte"][name], start["bits_per_byte"][name]).tolist()
            ratio = ratio_of_means(changes["positive"], changes["prose"])
            found.append(
                {
                    "n_plus": n_plus,
                    "n_minus": n_minus,
                    "change_a": over_seeds(changes["positive"]).as_dict(),
                    "change_p": over_seeds(changes["prose"]).as_dict(),
                    "ratio": {k: None if v != v else v for k, v in ratio.as_dict().items()},
                }
            )
    return found
