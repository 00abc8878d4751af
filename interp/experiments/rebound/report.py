"""Rebound's figures, tables and page, drawn from its stored numbers alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.charts import COLOURS, CONTROL_COLOUR, DASHES, THEME, intervals
from interp.display.page import Section, Table, html_report, notes_on
from interp.experiments.rebound.analysis import (
    axes,
    lost_per_example,
    representation,
    slope_ratio_rows,
)
from interp.stats import over_seeds
from interp.tracking.decay_figures import decline_panels, heat_map

WORDING = (
    "Consistent or not consistent with rebound: an asymmetry of optimisation under these data and this optimiser. "
    "It is no disposition of a model, differs from alignment faking, and proves no elasticity. A score that "
    "crosses its level before alignment is not a return; that needs KL or a compression rate."
)
PUBLISHED = {
    "Llama2-7B": {1000: (0.21, 961), 2000: (0.22, 844), 5000: (0.26, 801), 10000: (0.27, 729)},
    "Gemma-2B": {1000: (0.18, 923), 2000: (0.21, 853), 5000: (0.24, 709), 10000: (0.25, 598)},
}
"""Ji et al. 2025, table 3: N+ → (KL to base after alignment, unsafe examples until KL < 0.01)."""


def shown(entry: Mapping[str, Any], digits: int = 2, factor: int | float = 1) -> str:
    """A stored estimate with its interval and what is missing."""
    missing = f" ({entry['missing']} missing)" if entry.get("missing") else ""
    if not _known(entry["value"]):
        return f"none{missing}"
    text = f"{entry['value'] * factor:.{digits}f}"
    if _known(entry["low"]):
        text += f" [{entry['low'] * factor:.{digits}f}, {entry['high'] * factor:.{digits}f}]"
    return text + missing


def reverse_stage(numbers: Mapping[str, Any]) -> str:
    """Algorithm of the reverse stage, as in "reverse stage by SFT"; runs stored before there was a choice used SFT."""
    return f"reverse stage by {numbers['provenance']['config'].get('reverse', 'sft').upper()}"


def _known(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)


# Figures


def _axis_label(axis: str) -> str:
    return axis.replace("control_", "control of ")


def figures(numbers: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure, from stored numbers."""
    models: Mapping[str, Any] = numbers["models"]
    doses = numbers["provenance"]["config"]["negatives"]
    label = _score_label(numbers)
    drawn = {
        "decline": decline_panels(
            {n: {"doses": doses, "curves": m["curves"], "base": m["base"]} for n, m in models.items()},
            title=f"Behaviour under negatives (form of figures 4 to 6), {reverse_stage(numbers)}; shaded: SD over "
            "seeds",
            y_title=label,
        ),
        "kl": decline_panels(
            {n: {"doses": doses, "curves": m["kl"], "base": None} for n, m in models.items()},
            title="Distance to the model before alignment; shaded: SD over seeds",
            y_title="KL(checkpoint || base), nats per token",
            y_range=None,
        ),
        "by_positives": decline_panels(
            {
                n: {"doses": _positives(m), "curves": _transposed(m), "base": m["base"]}
                for n, m in models.items()
            },
            title="The same against positive examples, a line per N-",
            y_title=label,
            x_title="positive examples N+",
            series_title="N-",
        ),
        "time_constants": _time_constants(models),
    }
    for number, (name, model) in enumerate(models.items()):
        suffix = f"_{number}" if len(models) > 1 else ""
        drawn[f"heat_map{suffix}"] = heat_map(
            doses,
            model["curves"],
            title=f"Score by N+ and N- (form of figure 7), {name}, {reverse_stage(numbers)}",
            score=label,
        )
        drawn[f"rates{suffix}"] = decline_panels(
            {
                f"held-out {corpus}": {"doses": doses, "curves": _rate_curves(model, corpus), "base": None}
                for corpus in ("positive", "negative", "prose")
            },
            title=f"Compression rates, lower is a better fit, {name}; shaded: SD over seeds",
            y_title="gamma, bits per byte",
            y_range=None,
        )
        if axes(model):
            drawn[f"representation{suffix}"] = _representation(model, name)
    return drawn


def _score_label(numbers: Mapping[str, Any]) -> str:
    spec = numbers["provenance"]["config"]["scorer"]
    return "refusal rate" if spec == "refusal" else f"share of replies, {spec}"


def _positives(model: Mapping[str, Any]) -> list[int]:
    return sorted({r["n_plus"] for r in model["rows"]})


def _transposed(model: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    by = {(r["n_plus"], r["seed"], r["n_minus"]): r["score"] for r in model["rows"]}
    seeds = sorted({seed for _, seed, _ in by})
    return {
        f"{n_minus} ": [[by[n, s, n_minus] for n in _positives(model)] for s in seeds]
        for n_minus in sorted({m for _, _, m in by})
    }


def _rate_curves(model: Mapping[str, Any], corpus: str) -> dict[str, list[list[float]]]:
    """N+ → mean bits per byte of the held-out documents [seed][dose]."""
    by = {
        (r["n_plus"], r["seed"], r["n_minus"]): float(np.mean(r["bits_per_byte"][corpus]))
        for r in model["rows"]
    }
    seeds, doses = (sorted({key[i] for key in by}) for i in (1, 2))
    return {str(n): [[by[n, s, d] for d in doses] for s in seeds] for n in _positives(model)}


def _time_constants(models: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    for number, (name, model) in enumerate(models.items()):
        key = "tau" if model["summary"]["tau_floor"] == "base" else "tau_free"
        groups = {n: g[key] for n, g in model["summary"]["groups"].items() if float(n) > 0}
        kept = {n: e for n, e in groups.items() if _known(e["value"])}
        entries = [
            {**e, **{k: e["value"] for k in ("low", "high") if not _known(e[k])}} for e in kept.values()
        ]
        floor = "floor at base" if key == "tau" else "fitted floor"
        figure.add_scatter(
            x=list(kept),
            y=[e["value"] for e in entries],
            error_y=intervals(entries),
            mode="markers+lines",
            name=f"{name} ({floor}; {sum(e['missing'] for e in groups.values())} curves without)",
            line={"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)]},
            marker={"size": 9},
        )
    figure.update_layout(
        template=THEME,
        title="Time constant of the decline, t intervals over seeds; rebound would let it fall",
        xaxis={"title": "positive examples N+", "type": "category"},
        yaxis={"title": "tau (negative examples)", "type": "log"},
        showlegend=True,
    )
    return figure


def _representation(model: Mapping[str, Any], name: str) -> go.Figure:
    table = representation(model)
    pluses = sorted({int(n) for by in table.values() for n in by})
    figure = make_subplots(
        cols=len(pluses),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[f"N+ = {n}" for n in pluses],
    )
    for number, (axis, by) in enumerate(table.items()):
        control = axis.startswith("control")
        colour = CONTROL_COLOUR if control else COLOURS[number % len(COLOURS)]
        for column, n_plus in enumerate(pluses, start=1):
            entries = by[str(n_plus)]
            shifts = [
                {**e["shift"], **{k: e["shift"]["value"] for k in ("low", "high") if e["shift"][k] is None}}
                for e in entries
            ]
            figure.add_scatter(
                x=[e["n_minus"] for e in entries],
                y=[s["value"] for s in shifts],
                error_y={**intervals(shifts), "color": colour},
                name=_axis_label(axis),
                legendgroup=axis,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2},
                hovertemplate=f"{axis}, N- %{{x}}: %{{y:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.add_hline(y=0, line={"color": "#666", "dash": "dash", "width": 1})
    figure.update_xaxes(title="negative examples N-")
    figure.update_yaxes(title="shift since base (lengths of the direction)", row=1, col=1)
    figure.update_layout(
        template=THEME,
        title=f"What alignment moved inside, and what is lost, {name}",
        width=max(860, 420 * len(pluses)),
        margin={"t": 90},
    )
    return figure


# Tables, verdicts, page


def rate_table(numbers: Mapping[str, Any]) -> Table:
    """Start, slopes, half-life, knee, time constants and return, by model and N+."""
    rows = []
    for name, model in numbers["models"].items():
        for n_plus, g in model["summary"]["groups"].items():
            rows.append(
                [
                    name,
                    f"{n_plus} (control)" if n_plus == "0" else n_plus,
                    shown(g["start"]),
                    shown(g["initial_slope"], 2, 100),
                    shown(g["late_slope"], 2, 100),
                    shown(g["half_life"], 0),
                    shown(g["knee"], 0),
                    shown(g["tau"], 0),
                    shown(g["tau_free"], 0),
                    shown(g["n_eps_score"], 0),
                    shown(g["n_eps_kl"], 0),
                ]
            )
    threshold = numbers["provenance"]["config"]["kl_threshold"]
    header = ["model", "N+", "S(0)", "initial slope per 100", "late slope per 100", "half-life", "knee"]
    header += ["tau (floor at base)", "tau (fitted floor)", "N- to base score", f"N- to KL {threshold:g}"]
    return Table(header=header, rows=rows, title="decline by number of positive examples")


def kl_table(numbers: Mapping[str, Any]) -> Table:
    """Form of table 3: KL after alignment and negatives until it is below the threshold; published values beside."""
    rows: list[list[Any]] = []
    for name, model in numbers["models"].items():
        for n_plus, g in model["summary"]["groups"].items():
            start = over_seeds([curve[0] for curve in model["kl"][n_plus]]).as_dict()
            rows.append([name, n_plus, shown(start, 3), shown(g["n_eps_kl"], 0)])
    rows += [
        [f"{name} (published)", str(n), f"{kl:.2f}", str(count)]
        for name, by in PUBLISHED.items()
        for n, (kl, count) in by.items()
    ]
    return Table(header=["model", "N+", "KL to base after alignment", "negatives to return by KL"], rows=rows)


def ratio_table(model: Mapping[str, Any]) -> Table:
    """Slope ratios by N+ and N-, or that they are not resolved."""
    rows = []
    for r in slope_ratio_rows(model):
        entry = r["ratio"]
        rows.append(
            [
                r["n_plus"],
                r["n_minus"],
                round(r["n_minus"] / r["n_plus"], 2),
                shown(r["change_a"], 3),
                shown(r["change_p"], 4),
                shown(entry, 1) if entry["value"] is not None else "not resolved",
            ]
        )
    return Table(
        header=["N+", "N-", "l", "change of gamma, positives (bits/byte)", "change of gamma, prose", "R"],
        rows=rows,
    )


def lost_table(model: Mapping[str, Any]) -> Table:
    """Share of the projection lost per negative example, by direction and N+."""
    rows = [
        [_axis_label(axis), n_plus, shown(e.as_dict(), 2, 100) if _known(e.value) else "not resolved"]
        for axis, by in lost_per_example(model).items()
        for n_plus, e in by.items()
    ]
    return Table(
        header=["direction", "N+", "lost per example at first (% of the alignment's shift)"], rows=rows
    )


def verdicts(numbers: Mapping[str, Any]) -> list[str]:
    """What the data say, in words that follow from the intervals."""
    said = []
    for name, model in numbers["models"].items():
        summary = model["summary"]
        said.append(f"{name}: {summary['verdict']} ({reverse_stage(numbers)}); {summary['why']}.")
        floor = "its level before alignment" if summary["tau_floor"] == "base" else "a fitted floor"
        trend = summary["trends"]
        said.append(
            f"{name}: per factor e of N+ the initial decline changes by {shown(trend['steepness'], 2, 100)} and "
            f"the late one by {shown(trend['late_steepness'], 2, 100)} of score (0 to 1) per 100 negatives, log tau "
            f"(towards {floor}) by {shown(trend['log_tau'])}."
        )
        returned = {n: g["n_eps_kl"] for n, g in summary["groups"].items() if float(n) > 0}
        back = sum(e["n"] for e in returned.values())
        total = back + sum(e["missing"] for e in returned.values())
        score = sum(g["n_eps_score"]["n"] for n, g in summary["groups"].items() if float(n) > 0)
        said.append(
            f"{name}: of {total} aligned curves {score} come back to the score before alignment, {back} to KL "
            f"{summary['kl_threshold']:g} of the model before alignment."
        )
    return said


def report(numbers: Mapping[str, Any]) -> str:
    """The page."""
    drawn = figures(numbers)
    where, config = numbers["provenance"], numbers["provenance"]["config"]
    notes = [*notes_on({**where, "model": next(iter(numbers["models"]))}), WORDING]
    if config["seeds"] < 3:
        notes.append(f"{config['seeds']} seed(s): intervals over seeds are missing or very wide.")
    first, last = next(iter(numbers["models"].values()))["summary"]["initial_range"]
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(numbers),
                f"Initial slope: N- from {first:g} to {last:g}. Intervals: Student's t over {config['seeds']} "
                "seeds; curves that have no such number, for instance because they never come back, are counted "
                "as missing.",
            ],
            notes=notes,
            tables=[rate_table(numbers)],
            figures=[drawn["decline"], drawn["time_constants"]],
        ),
        Section(
            title="Back at the model before alignment?",
            text=[
                "KL is taken on the checkpoint's own samples; table 3 of the paper does not say on which, or which way."
            ],
            tables=[kl_table(numbers)],
            figures=[drawn["kl"]],
        ),
        *_insides(numbers, drawn),
        Section(
            title="The same grid in other forms",
            text=[
                "Read along N+, this is still alignment first and negatives after; the paper's figure 8 trains on "
                "negatives first: the task builtin-reversed, or swap the task's two files."
            ],
            figures=[
                *(f for n, f in drawn.items() if n.startswith("heat_map")),
                drawn["by_positives"],
            ],
        ),
    ]
    sizes = ", ".join(map(str, config["positives"]))
    lead = (
        f"{numbers['task']['name']}; N+ {sizes}; {config['seeds']} seeds; {reverse_stage(numbers)}; LoRA rank "
        f"{config['rank']}, learning rate {config['learning_rate']:g}; {numbers['seconds']['total']:.0f} s on "
        f"{where['device']}."
    )
    return html_report("Rebound after alignment", lead, sections, where)


def _insides(numbers: Mapping[str, Any], drawn: Mapping[str, go.Figure]) -> Sequence[Section]:
    sections = []
    for number, (name, model) in enumerate(numbers["models"].items()):
        suffix = f"_{number}" if len(numbers["models"]) > 1 else ""
        sections.append(
            Section(
                title=f"Inside and in code lengths, {name}",
                text=[
                    "Directions are fitted at each aligned model (N- = 0). Projected is the shift of the "
                    "activations on held-out harmful prompts since the model before alignment; grey are "
                    "directions that have nothing to do with safety, at the same place. Bars: t intervals over "
                    "prompts and seeds. The table gives the share of the alignment's own shift that one negative "
                    "example takes away at first; where that shift does not differ from 0 there is no share.",
                    "R compares paired changes of compression rate since N- = 0, on held-out positive examples "
                    "and on prose. How much text the model was pre-trained on is not known here, so k is not, and "
                    "R stands against no line. Where the change on prose does not differ from 0, R is not "
                    "resolved.",
                ],
                figures=[drawn[n] for n in (f"representation{suffix}", f"rates{suffix}") if n in drawn],
                tables=[*([lost_table(model)] if axes(model) else []), ratio_table(model)],
            )
        )
    return sections
