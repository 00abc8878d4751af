"""Figures, tables and page of the elasticity theory, drawn from its stored numbers alone."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
from interp.display.page import Section, Table, html_report
from interp.stats import Estimate, exponents, ratio_of_means
from interp.tracking.decay_figures import SYMBOLS, decline_panels, hookes_law, slope_ratios
from interp.tracking.rebound import summarise

CAVEAT = (
    "The largest model here has 100 thousand parameters and learns artificial grammars. What holds or fails here is "
    "about the argument, not about language models."
)


def shown(entry: Mapping[str, Any], digits: int = 2) -> str:
    """A stored estimate with its interval and what is missing."""
    if entry["value"] is None:
        return "none" if not entry.get("missing") else f"none ({entry['missing']} missing)"
    text = f"{entry['value']:.{digits}f}"
    if entry["low"] is not None:
        text += f" [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
    return text + (f" ({entry['missing']} missing)" if entry.get("missing") else "")


# What the transformer's rows hold


def transformer_curves(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By N_p: doses, score curves and KL curves by N+, base score by seed."""
    rows = numbers["transformer"]["rows"]
    found: dict[str, dict[str, Any]] = {}
    for n_p in sorted({r["n_p"] for r in rows}):
        here = [r for r in rows if r["n_p"] == n_p]
        seeds, doses, pluses = (sorted({r[key] for r in here}) for key in ("seed", "n_minus", "n_plus"))
        by = {(r["n_plus"], r["seed"], r["n_minus"]): r for r in here}

        def curves(
            key: str, *, by: Any = by, seeds: Any = seeds, doses: Any = doses, pluses: Any = pluses
        ) -> Any:
            return {str(n): [[by[n, s, d][key] for d in doses] for s in seeds] for n in pluses}

        found[str(n_p)] = {
            "doses": doses,
            "curves": curves("score"),
            "kl": curves("kl"),
            "base": [by[pluses[0], s, 0]["base_score"] for s in seeds],
        }
    return found


def transformer_ratios(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Slope ratio of every (N_p, N+, N- > 0): over seeds, from paired changes on held-out sequences.

    The change at a seed is a mean over its held-out sequences; the interval is Fieller's over seeds, which hold every
    other source of noise as well.
    """
    rows = numbers["transformer"]["rows"]
    found = []
    for n_p, n_plus, n_minus in sorted({(r["n_p"], r["n_plus"], r["n_minus"]) for r in rows if r["n_minus"]}):
        here = [r for r in rows if (r["n_p"], r["n_plus"], r["n_minus"]) == (n_p, n_plus, n_minus)]
        ratio = ratio_of_means([r["change_a"]["mean"] for r in here], [r["change_p"]["mean"] for r in here])
        found.append(
            {
                "n_p": n_p,
                "n_plus": n_plus,
                "n_minus": n_minus,
                "k": n_p / n_plus,
                "l": n_minus / n_plus,
                "ratio": _plain(ratio),
            }
        )
    return found


def _plain(ratio: Estimate) -> dict[str, Any]:
    values = ratio.as_dict()
    return {key: None if value != value else value for key, value in values.items()}


def exponent_dose(numbers: Mapping[str, Any]) -> int | None:
    """The smallest N- at which more than half of the slope ratios are resolved: the theorem is about small l."""
    ratios = transformer_ratios(numbers)
    for dose in sorted({r["n_minus"] for r in ratios}):
        here = [r["ratio"]["value"] is not None for r in ratios if r["n_minus"] == dose]
        if sum(here) > len(here) / 2:
            return dose
    return None


def transformer_exponents(numbers: Mapping[str, Any], dose: int) -> dict[str, Estimate]:
    """Exponents of |R| in N_p and N_a at this N-, one point a seed; empty where a size does not vary."""
    here = [r for r in numbers["transformer"]["rows"] if r["n_minus"] == dose and r["change_p"]["mean"]]
    if len({r["n_p"] for r in here}) < 2 or len({r["n_plus"] for r in here}) < 2:
        return {}
    return exponents(
        {"n_p": [r["n_p"] for r in here], "n_a": [r["n_plus"] for r in here]},
        [r["change_a"]["mean"] / r["change_p"]["mean"] for r in here],
    )


# Figures


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure, from stored numbers."""
    drawn = {
        "pole": _pole(numbers),
        "slope_ratio": _slope_ratio(numbers),
        "hookes_law": _hooke(numbers),
        "exponents": _exponents(numbers),
        "rebound_log_linear": decline_panels(
            {
                "log-linear": {
                    "doses": numbers["rebound"]["negatives"],
                    "curves": {n: c["scores"] for n, c in numbers["rebound"]["curves"].items()},
                    "base": numbers["rebound"]["base_score"],
                }
            },
            title="Decline under negative examples, log-linear model (E5; form of figure 4)",
            y_title="share of aligned behaviour",
        ),
    }
    curves = transformer_curves(numbers)
    if curves:
        drawn["rebound_transformer"] = decline_panels(
            {f"pre-trained on {int(n):,} sequences": panel for n, panel in curves.items()},
            title="Decline under negative examples, tiny transformer (E6; form of figure 6)",
            y_title="P(positive continuation)",
        )
        drawn["transformer_slope_ratio"] = slope_ratios(
            [{**row, "series": f"N- = {row['n_minus']}"} for row in transformer_ratios(numbers)],
            title="Slope ratio against size ratio, tiny transformer (E6)",
            x_title="k = N_p / N+",
        )
    return drawn


def _pole(numbers: Mapping[str, Any]) -> go.Figure:
    rows = numbers["mixture"]["rows"]
    figure = go.Figure()
    number = 0
    for share in sorted({r["share"] for r in rows}):
        for k in (min(r["k"] for r in rows), max(r["k"] for r in rows)):
            here = [r for r in rows if r["share"] == share and r["k"] == k]
            name = f"k = {k:g}, s = {share:g}"
            sides = [[r for r in here if (r["l_over_pole"] < 1) is below] for below in (True, False)]
            figure.add_scatter(
                x=[*(r["l_over_pole"] for r in sides[0]), None, *(r["l_over_pole"] for r in sides[1])],
                y=[*(abs(r["closed_ratio"]) / k for r in sides[0]), None]
                + [abs(r["closed_ratio"]) / k for r in sides[1]],
                mode="lines",
                name=f"{name}, closed form",
                line={"color": COLOURS[number], "dash": DASHES[number], "width": 1.5},
            )
            figure.add_scatter(
                x=[r["l_over_pole"] for r in here],
                y=[abs(r["ratio"]) / k for r in here],
                mode="markers",
                name=f"{name}, measured",
                marker={
                    "color": COLOURS[number],
                    "size": 6 + 3 * number,
                    "symbol": f"{SYMBOLS[number]}-open",
                },
            )
            number += 1
    figure.add_vline(x=1, line={"color": "#666", "width": 1}, annotation={"text": "pole l* = s / (1 - s)"})
    figure.update_layout(
        template=THEME,
        title="Slope ratio of the mixture up to its pole and beyond (E1)",
        height=600,
        margin={"b": 190},
        legend={"y": -0.2},
        xaxis={"title": "l / l*"},
        yaxis={"title": "|R| / k", "type": "log", "dtick": "D2"},
    )
    return figure


def _slope_ratio(numbers: Mapping[str, Any]) -> go.Figure:
    def point(value: float) -> dict[str, Any]:
        return {"value": value, "low": None, "high": None}

    rows = [
        {"series": "E1 mixture, l = 0.001 l*", "k": r["k"], "ratio": point(r["ratio"])}
        for r in numbers["mixture"]["rows"]
        if r["l_over_pole"] == 1e-3
    ]
    for depth in sorted({r["depth"] for r in numbers["token_tree"]["rows"]}):
        rows += [
            {"series": f"E2 token tree, depth {depth}, sampled", "k": r["k"], "ratio": point(r["ratio"])}
            for r in numbers["token_tree"]["rows"]
            if r["depth"] == depth
        ]
    rows += [
        {"series": "E3 log-linear, l = 0.0001", "k": r["k"], "ratio": point(r["ratio"])}
        for r in numbers["log_linear"]["rows"]
        if r["l"] == 1e-4
    ]
    rows += [
        {"series": "E4 log-linear in stages", "k": r["n_p"] / r["n_a"], "ratio": point(r["ratio"])}
        for r in numbers["sequential"]["staged"]
    ]
    return slope_ratios(rows, title="Slope ratio against size ratio: joint optima (E1-E3) and stages (E4)")


def _hooke(numbers: Mapping[str, Any]) -> go.Figure:
    series: dict[str, list[tuple[float, float]]] = {}
    mixture = [r for r in numbers["mixture"]["rows"] if r["l_over_pole"] <= 0.01]
    series["E1 mixture, per unit of l"] = [(-r["k"] * r["slope_p"], r["slope_a"]) for r in mixture]
    series["E2 token tree, sampled"] = [
        (-r["k"] * r["change_p"], r["change_a"]) for r in numbers["token_tree"]["rows"]
    ]
    series["E3 log-linear, l up to 0.1"] = [
        (-r["k"] * r["change_p"], r["change_a"]) for r in numbers["log_linear"]["rows"] if r["l"] <= 0.1
    ]
    rows = [r for r in numbers["transformer"]["rows"] if r["n_minus"]]
    if rows:
        series["E6 transformer in stages"] = [
            (-r["n_p"] / r["n_plus"] * r["change_p"]["mean"], r["change_a"]["mean"]) for r in rows
        ]
    return hookes_law(
        series,
        title="Hooke's law: |D_a| and |D_p| times their change of rate",
        unit="per |D_a|, nats or bits",
    )


PREDICTIONS = {
    "n_p": {"theorem": 1.0, "curvature": 0.0},
    "n_a": {"theorem": -1.0, "curvature": -1.0},
}


def all_exponents(numbers: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Series → factor → exponent of |R|."""
    found = {name: dict(both) for name, both in numbers["sequential"]["exponents"].items()}
    dose = exponent_dose(numbers)
    live = {} if dose is None else transformer_exponents(numbers, dose)
    if live:
        found[f"tiny transformer in stages, N- = {dose}"] = {n: _finite(e) for n, e in live.items()}
    return {
        f"log-linear, {name}" if name in numbers["sequential"]["exponents"] else name: both
        for name, both in found.items()
    }


def _finite(estimate: Estimate) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in estimate.as_dict().items()}


def _exponents(numbers: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    labels = {"n_p": "pre-training size N_p", "n_a": "alignment size N_a"}
    for number, (name, both) in enumerate(all_exponents(numbers).items()):
        entries = [both[factor] for factor in labels]
        figure.add_scatter(
            x=[i + 0.08 * (number - 1) for i in range(2)],
            y=[e["value"] for e in entries],
            error_y=intervals(
                [{k: e["value"] if e[k] is None else e[k] for k in ("value", "low", "high")} for e in entries]
            ),
            mode="markers",
            name=name,
            marker={
                "size": 11,
                "color": CONTROL_COLOUR if "control" in name else COLOURS[number % len(COLOURS)],
                "symbol": ("circle", "square", "diamond")[number % 3],
            },
        )
    for account, dash, offset in (("theorem", "dash", -0.3), ("curvature", "dot", -0.3)):
        for i, factor in enumerate(labels):
            level = PREDICTIONS[factor][account]
            figure.add_scatter(
                x=[i + offset, i - offset],
                y=[level, level],
                mode="lines",
                line={"color": "#444", "dash": dash, "width": 1.5},
                name=f"{account} predicts",
                showlegend=i == 0,
                legendgroup=account,
            )
    figure.update_layout(
        template=THEME,
        title="What the slope ratio depends on (E4, E6)",
        xaxis={"tickvals": [0, 1], "ticktext": list(labels.values()), "range": [-0.5, 1.5]},
        yaxis={"title": "exponent: d log|R| / d log N"},
        legend={"y": -0.15},
    )
    return figure


# Tables, verdicts, page


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """The slopes and exponents that the theory is judged by."""
    error = {
        name: f"{numbers[name]['largest_error']:.1e}" for name in ("mixture", "token_tree", "log_linear")
    }
    rows = [
        ["E1 mixture", "slope of log|R| in log k", "1", shown(numbers["mixture"]["slope"], 4)],
        ["E1 mixture", "largest error of R against the closed form", "0", error["mixture"]],
        ["E3 log-linear", "slope of log|R| in log k", "1", shown(numbers["log_linear"]["slope"], 4)],
        ["E3 log-linear", "largest error of R against -k, l = 0.0001", "0", error["log_linear"]],
        ["E2 token tree", "largest error of R against -k, expected counts", "0", error["token_tree"]],
    ]  # fmt: skip
    predicted = {"ratio": "1", "held_out_ratio": "1", "change_a": "-1", "change_p": "-2"}
    label = {
        "ratio": "log|R|, sampled, on the counts",
        "held_out_ratio": "log|R|, sampled, on the sources",
        "change_a": "log change of gamma_a",
        "change_p": "log change of gamma_p",
    }
    for depth, slopes in numbers["token_tree"]["slopes"].items():
        rows += [
            [f"E2 token tree, depth {depth}", f"slope of {label[key]} in log k", value, shown(slopes[key])]
            for key, value in predicted.items()
        ]
    for name, both in all_exponents(numbers).items():
        for factor, text in (("n_p", "N_p"), ("n_a", "N_a")):
            wanted = PREDICTIONS[factor]
            rows.append(
                [
                    f"E{6 if 'transformer' in name else 4} {name}",
                    f"d log|R| / d log {text}",
                    f"{wanted['theorem']:g} theorem, {wanted['curvature']:g} curvature",
                    shown(both[factor]),
                ]
            )
    header = ["experiment", "quantity", "expected", "measured"]
    return Table(header=header, rows=rows, title="exponents and errors")


def rebound_summaries(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Statistics and verdict of every set of decline curves."""
    live = numbers["rebound"]
    found = {
        "E5 log-linear": summarise(
            live["negatives"],
            {n: c["scores"] for n, c in live["curves"].items()},
            base=live["base_score"],
            kl={n: c["kl"] for n, c in live["curves"].items()},
        )
    }
    for n_p, panel in transformer_curves(numbers).items():
        found[f"E6 transformer, N_p = {int(n_p):,}"] = summarise(
            panel["doses"], panel["curves"], base=panel["base"], kl=panel["kl"]
        )
    return found


def rebound_table(numbers: Mapping[str, Any]) -> Table:
    """Start, slopes, time constant and return of every curve."""
    rows = []
    for name, summary in numbers["summaries"].items():
        for n_plus, g in summary["groups"].items():
            rows.append(
                [
                    name,
                    int(float(n_plus)),
                    _show(g["start"], 3),
                    _show(g["initial_slope"], 2, 1000),
                    _show(g["late_slope"], 2, 1000),
                    _show(g["half_life"], 0),
                    _show(g["tau"], 0),
                    _show(g["tau_free"], 0),
                    _show(g["n_eps_score"], 0),
                    _show(g["n_eps_kl"], 0),
                ]
            )
    return Table(
        header=[
            "model", "N+", "S(0)", "initial slope, 1/1000", "late slope, 1/1000", "half-life",
            "tau (floor at base)", "tau (fitted floor)",
            "N- to base score", "N- to KL 0.01",
        ],
        rows=rows,
    )  # fmt: skip


def _show(entry: Mapping[str, Any], digits: int, factor: int | float = 1) -> str:
    scaled = {
        key: None if entry[key] is None or entry[key] != entry[key] else entry[key] * factor
        for key in ("value", "low", "high")
    }
    return shown({**scaled, "missing": entry.get("missing", 0)}, digits)


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, in words that follow from the intervals."""
    errors = [numbers[name]["largest_error"] for name in ("mixture", "token_tree", "log_linear")]
    said = [
        f"At a joint optimum R = -k: {'holds' if max(errors) < 0.01 else 'fails'} to "
        f"{100 * max(errors):.2g}% (E1 closed form, E2 expected counts, E3 fitted)."
    ]
    for name, both in all_exponents(numbers).items():
        p, a = both["n_p"], both["n_a"]
        if p["low"] is None or a["low"] is None:
            said.append(f"{name}: too few points for exponents with intervals.")
            continue
        theorem, curvature = (
            # A computed control has next to no interval; 0.02 is far from either account.
            p["low"] - 0.02 <= PREDICTIONS["n_p"][account] <= p["high"] + 0.02
            for account in ("theorem", "curvature")
        )
        reading = {
            (True, False): "N_p matters as the theorem says, against the curvature account",
            (False, True): "no dependence on N_p, as the curvature account says and against the theorem",
            (True, True): "not resolved between the theorem and the curvature account",
            (False, False): "N_p's exponent is neither the theorem's nor the curvature account's",
        }[theorem, curvature]
        both_say = a["low"] - 0.02 <= -1 <= a["high"] + 0.02
        said.append(
            f"{name}: |R| ~ N_p^{shown(p)} N_a^{shown(a)}; {reading}; N_a's exponent "
            f"{'is' if both_say else 'is not'} the -1 of both (of curvature only to first order in the dose)."
        )
    said += [f"{name}: {s['verdict']}; {s['why']}." for name, s in numbers["summaries"].items()]
    ratios = transformer_ratios(numbers)
    if ratios:
        unresolved = sum(r["ratio"]["value"] is None for r in ratios)
        said.append(
            f"E6: {unresolved} of {len(ratios)} slope ratios are not resolved (the interval of the change of gamma_p "
            "covers 0); "
            + (
                "at no N- are most of them, so no exponents are given."
                if exponent_dose(numbers) is None
                else f"exponents are taken at the smallest N- where most of them are, {exponent_dose(numbers)}."
            )
        )
    return said


def report(numbers: Mapping[str, Any]) -> str:
    """The page."""
    drawn = figures(numbers)
    seconds = numbers["seconds"]
    sections = [
        Section(
            title="What was found", text=verdicts(numbers), notes=[CAVEAT], tables=[rate_table(numbers)]
        ),
        Section(
            title="Joint optima: where the -k comes from (E1 to E3)",
            text=[
                "Theorem 4.2 of Ji et al. 2025: as perturbation data grows by l |D_a|, the compression rate of "
                "the alignment data rises k = |D_p| / |D_a| times as fast as that of the pre-training data falls. "
                "At any joint optimum the gradients balance, so this holds for every model class at l = 0; |D| "
                "times the change of rate is then equal for both sets, which is the Hooke's-law reading.",
                "For the mixture with disjoint supports the ratio grows with l and diverges at l* = s / (1 - s); "
                "beyond it both rates rise and the theorem's signs fail. 'l << 1' means l << l*.",
            ],
            figures=[drawn["slope_ratio"], drawn["pole"], drawn["hookes_law"]],
        ),
        Section(
            title="Training in stages: theorem or curvature (E4, E6)",
            text=[
                "Real pipelines train in stages and end at no joint optimum. If the ratio came from the theorem, it "
                "would grow as N_p and fall as N_a; if from curvature around a converged model, it would not know N_p. "
                "The joint optimum at the same sizes is the control.",
                "Points where the change of gamma_p is not resolved say nothing of a ratio and are not drawn.",
            ],
            figures=[drawn[n] for n in ("exponents", "transformer_slope_ratio") if n in drawn],
            tables=[_converged_table(numbers)],
        ),
        Section(
            title="Does more alignment return sooner? (E5, E6)",
            text=[
                "Rebound means: with more positive examples the score falls faster at first and slower later. A "
                "higher start falls faster at an equal time constant, so tau is fitted, with the floor at the "
                "score before alignment and with a fitted one. 'Returned' needs KL to the model before alignment, "
                "not only the score. Shaded: SD over seeds. Intervals: Student's t over seeds; a curve without "
                "such a number is counted as missing.",
            ],
            figures=[drawn[n] for n in ("rebound_log_linear", "rebound_transformer") if n in drawn],
            tables=[rebound_table(numbers)],
        ),
    ]  # fmt: skip
    fast = sum(v for k, v in seconds.items() if k not in ("total", "transformer"))
    lead = (
        f"Ji et al. 2025, arXiv:2406.06144, where it can be computed. E1 to E5 took {fast:.0f} s, the transformer "
        f"{seconds.get('transformer', 0):.0f} s."
    )
    return html_report(
        "Alignment elasticity: the theorem and its limits", lead, sections, numbers["provenance"]
    )


def _converged_table(numbers: Mapping[str, Any]) -> Table:
    rows = [
        [r["steps"], r["ratio"], r["ratio"] * r["steps"], r["first_order"]]
        for r in numbers["sequential"]["converged"]
    ]
    return Table(
        header=["alignment steps T_a", "R", "R x T_a", "R to first order in T_a (curvature)"], rows=rows
    )
