"""Rebound's tables, verdicts and page, from a stored result alone."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from interp.display.cards import Table
from interp.display.page import Section, html_report
from interp.experiments.rebound import ModelResult, Result
from interp.experiments.rebound.analysis import directions, lost_per_example, slope_ratios
from interp.experiments.rebound.curves import kl_curves
from interp.experiments.rebound.figures import direction_label, figures, reverse_stage
from interp.stats import over_seeds
from interp.tracking.rebound import GroupStatistics

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


def rate_table(result: Result) -> Table:
    """Start, slopes, half-life, knee, time constants and return, by model and N+."""
    rows = [
        [
            name,
            str(n_plus) if n_plus else "0 (control)",
            group.start.rounded(),
            group.initial_slope.rounded(factor=100),
            group.late_slope.rounded(factor=100),
            group.half_life.rounded(0),
            group.knee.rounded(0),
            group.tau.rounded(0),
            group.tau_fitted_floor.rounded(0),
            group.return_by_score.rounded(0),
            _return_by_kl(group),
        ]
        for name, model in result.models.items()
        for n_plus, group in model.statistics.groups.items()
    ]
    header = ["model", "N+", "S(0)", "initial slope per 100", "late slope per 100", "half-life", "knee"]
    header += ["tau (floor at base)", "tau (fitted floor)", "N- to base score"]
    header.append(f"N- to KL {result.config.kl_threshold:g}")
    return Table(header=header, rows=rows, title="decay curves by number of positive examples")


def kl_table(result: Result) -> Table:
    """Form of table 3: KL after alignment and negatives until it is below the threshold; published values beside."""
    rows = []
    for name, model in result.models.items():
        kl = kl_curves(model.points)
        for n_plus, group in model.statistics.groups.items():
            start = over_seeds([curve[0] for curve in kl[n_plus]])
            rows.append([name, str(n_plus), start.rounded(3), _return_by_kl(group)])
    rows += [
        [f"{name} (published)", str(n_plus), f"{kl:.2f}", str(count)]
        for name, by in PUBLISHED.items()
        for n_plus, (kl, count) in by.items()
    ]
    return Table(header=["model", "N+", "KL to base after alignment", "negatives to return by KL"], rows=rows)


def ratio_table(model: ModelResult) -> Table:
    """Slope ratios by N+ and N-, or that they are not resolved."""
    rows: list[list[Any]] = [
        [
            point.n_plus,
            point.n_minus,
            round(point.n_minus / point.n_plus, 2),
            point.change_a.rounded(3),
            point.change_p.rounded(4),
            point.ratio.rounded(1) if point.ratio.measurable else "not resolved",
        ]
        for point in slope_ratios(model.points)
    ]
    return Table(
        header=["N+", "N-", "l", "change of gamma, positives (bits/byte)", "change of gamma, prose", "R"],
        rows=rows,
    )


def lost_table(model: ModelResult) -> Table:
    """Share of the projection lost per negative example, by direction and N+."""
    rows = [
        [
            direction_label(direction),
            str(n_plus),
            lost.rounded(factor=100) if lost.measurable else "not resolved",
        ]
        for direction, by in lost_per_example(model.points).items()
        for n_plus, lost in by.items()
    ]
    return Table(
        header=["direction", "N+", "lost per example at first (% of the alignment's shift)"], rows=rows
    )


def _return_by_kl(group: GroupStatistics) -> str:
    return "none" if group.return_by_kl is None else group.return_by_kl.rounded(0)


def verdicts(result: Result) -> list[str]:
    """Verdicts on the claims, in words that follow from the intervals."""
    return [sentence for name, model in result.models.items() for sentence in _verdicts(name, model, result)]


def _verdicts(name: str, model: ModelResult, result: Result) -> list[str]:
    statistics, groups = model.statistics, model.statistics.aligned.values()
    trends = statistics.trends
    floor = "its level before alignment" if statistics.tau_floor == "base" else "a fitted floor"
    returns = [group.return_by_kl for group in groups if group.return_by_kl is not None]
    by_kl = sum(back.n for back in returns)
    total = by_kl + sum(back.missing for back in returns)
    by_score = sum(group.return_by_score.n for group in groups)
    return [
        f"{name}: {statistics.verdict} ({reverse_stage(result)}); {statistics.why}.",
        f"{name}: per factor e of N+ the initial decline changes by "
        f"{trends.steepness.rounded(factor=100)} and the late one by {trends.late_steepness.rounded(factor=100)} of "
        f"score (0 to 1) per 100 negatives, log tau (towards {floor}) by {trends.log_tau.rounded()}.",
        f"{name}: of {total} aligned curves {by_score} come back to the score before alignment, {by_kl} to KL "
        f"{statistics.kl_threshold:g} of the model before alignment.",
    ]


def report(result: Result) -> str:
    """The page."""
    charts, about, config = figures(result), result.provenance, result.config
    notes = [*about.notes, WORDING]
    if config.seeds < 3:
        notes.append(f"{config.seeds} seed(s): intervals over seeds are missing or very wide.")
    first, last = next(iter(result.models.values())).statistics.initial_range
    sections = [
        Section(
            title="What was found",
            text=[
                *verdicts(result),
                f"Initial slope: N- from {first:g} to {last:g}. Intervals: Student's t over {config.seeds} "
                "seeds; curves that have no such number, for instance because they never come back, are counted "
                "as missing.",
            ],
            notes=notes,
            tables=[rate_table(result)],
            figures=[charts["decay_curves"], charts["time_constants"]],
        ),
        Section(
            title="Back at the model before alignment?",
            text=[
                "KL is taken on the checkpoint's own samples; table 3 of the paper does not say on which, or which way."
            ],
            tables=[kl_table(result)],
            figures=[charts["kl"]],
        ),
        *_inside_sections(result, charts),
        Section(
            title="The same grid in other forms",
            text=[
                "Read along N+, this is still alignment first and negatives after; the paper's figure 8 trains on "
                "negatives first: the task builtin-reversed, or swap the task's two files."
            ],
            figures=[
                *(figure for name, figure in charts.items() if name.startswith("heat_map")),
                charts["by_positives"],
            ],
        ),
    ]
    sizes = ", ".join(map(str, config.positives))
    lead = (
        f"{result.task.name}; N+ {sizes}; {config.seeds} seeds; {reverse_stage(result)}; LoRA rank "
        f"{config.rank}, learning rate {config.learning_rate:g}; {result.seconds['total']:.0f} s on "
        f"{about.device}."
    )
    return html_report(
        "Rebound after alignment",
        lead,
        sections,
        about,
        paper="2406.06144",
        next_steps=[
            (
                "See whether training back is easier than onwards",
                "interp run resistance --out runs/resistance",
            ),
        ],
    )


def _inside_sections(result: Result, drawn: Mapping[str, go.Figure]) -> list[Section]:
    """A section a model on its directions and compression rates."""
    sections = []
    for number, (name, model) in enumerate(result.models.items()):
        suffix = f"_{number}" if len(result.models) > 1 else ""
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
                figures=[drawn[key] for key in (f"representation{suffix}", f"rates{suffix}") if key in drawn],
                tables=[*([lost_table(model)] if directions(model.points) else []), ratio_table(model)],
            )
        )
    return sections
