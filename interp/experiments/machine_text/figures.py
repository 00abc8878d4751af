"""Figures of the study of machine-written text, drawn from a stored result alone."""

import math
from bisect import bisect_right
from collections.abc import Sequence

import plotly.graph_objects as go

from interp.display.charts import (
    COLOURS,
    CONTROL,
    Style,
    area,
    bar_marker,
    estimates_line,
    finish,
    line,
    panels,
    points,
    reference_line,
    style,
)
from interp.experiments.machine_text import (
    ARMS,
    ENTROPY,
    FAST,
    LIKELIHOOD,
    LOG_RANK,
    ORDER,
    PLAIN,
    UNCHANGED,
    Result,
)
from interp.experiments.machine_text.mark_figures import along_figure, null_figure, power_figure
from interp.stats import Estimate

HUMAN_LOOK = Style("#117733", "dash", "square-open", "/")
MACHINE_LOOK = Style("#AA4499", "solid", "circle", "")
"""Looks of human and of machine-written texts."""
LOOKS = {
    FAST: Style(COLOURS[0], "solid", "circle", ""),
    LOG_RANK: Style(COLOURS[1], "dash", "square", "/"),
    LIKELIHOOD: Style(COLOURS[2], "dot", "diamond", "."),
    ENTROPY: Style(COLOURS[3], "dashdot", "triangle-up", "x"),
}
"""Looks of the detectors of the published order."""
_BINS = 24


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure, from the stored result."""
    return {
        "detectors": _detectors(result),
        "scores": _scores(result),
        "roc": _roc(result),
        "lengths": _lengths(result),
        "attacks": _attacks(result),
        "lens": _lens(result),
        "directions": _directions(result),
        "interventions": _interventions(result),
        "watermark_null": null_figure(result),
        "watermark_along": along_figure(result),
        "watermark_power": power_figure(result),
    }


def about(result: Result) -> str:
    """The model, and what was scored."""
    config = result.config
    n = len(result.detectors[FAST].human)
    return (
        f"{result.provenance.model_name} on its own text; {n} pairs of {config.length} tokens, of which the first "
        f"{config.prefix_tokens} are the human text's"
    )


def _rate(result: Result) -> str:
    return f"{100 * result.config.false_positive_rate:g}%"


def _detectors(result: Result) -> go.Figure:
    """AUROC and rate found of every detector, best first."""
    found = sorted(result.detectors.items(), key=lambda item: -item[1].auroc.value)
    n_most = max(len(one.human) for _, one in found)
    names = [
        name if len(one.human) == n_most else f"{name} (n = {len(one.human)})"
        for name, one in found
        if one.auroc.measurable
    ]
    shown = [one for _, one in found if one.auroc.measurable]
    figure = panels(
        ["AUROC", f"found at {_rate(result)} false positives"],
        columns=2,
        width=330,
        height=30 + 26 * len(names),
    )
    figure.add_trace(
        points("AUROC", names, [one.auroc for one in shown], MACHINE_LOOK, horizontal=True, in_legend=False),
        row=1,
        col=1,
    )
    rates = [(name, one.found) for name, one in zip(names, shown, strict=True) if one.found.measurable]
    figure.add_trace(
        points(
            "found",
            [name for name, _ in rates],
            [one for _, one in rates],
            MACHINE_LOOK,
            horizontal=True,
            in_legend=False,
        ),
        row=1,
        col=2,
    )
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    figure.update_xaxes(range=[-0.03, 1.03], tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_xaxes(tickformat=".0%", row=1, col=2)
    figure.add_vline(x=0.5, line={"color": "#555", "dash": "dash", "width": 1.2}, row=1, col=1)  # pyright: ignore[reportArgumentType]
    return finish(
        figure,
        title="How well each detector tells the model's own text from human text",
        note=f"{about(result)}; machine-written is expected to score higher, below 0.5 it scores lower; 95% intervals; "
        "not drawn on the right: detectors with too few human texts for that rate",
    )


def _scores(result: Result) -> go.Figure:
    """Histograms of both kinds of texts under the four detectors of the published order."""
    titles = [f"{name}, AUROC {result.detectors[name].auroc}" for name in ORDER]
    figure = panels(titles, columns=2, width=380, height=210, y_title="texts", shared_y="no", gap_below=12)
    for place, name in enumerate(ORDER):
        one = result.detectors[name]
        values = [value for value in (*one.human, *one.machine) if math.isfinite(value)]
        low, high = min(values), max(values)
        width = (high - low) / _BINS or 1.0
        for label, scores, look in (
            ("human", one.human, HUMAN_LOOK),
            ("machine-written", one.machine, MACHINE_LOOK),
        ):
            figure.add_histogram(
                x=[value for value in scores if math.isfinite(value)],
                xbins={"start": low, "end": high + width, "size": width},
                name=label,
                legendgroup=label,
                showlegend=place == 0,
                opacity=0.6,
                marker=bar_marker(look),
                row=place // 2 + 1,
                col=place % 2 + 1,
            )
    figure.update_layout(barmode="overlay")
    return finish(
        figure,
        title="Scores of human and machine-written texts",
        note=f"{about(result)}; scores have the sign by which machine-written text is expected to be higher",
    )


def roc_points(machine: Sequence[float], human: Sequence[float]) -> tuple[list[float], list[float]]:
    """False-positive rates from 1/n to 1, and the share of machine-written texts above their thresholds."""
    negatives = sorted((v for v in human if math.isfinite(v)), reverse=True)
    positives = sorted(v for v in machine if math.isfinite(v))
    n, x, y = len(negatives), list[float](), list[float]()
    for count in range(1, n + 1):
        # At most `count` human texts are above the next one, and all texts are above minus infinity.
        limit = negatives[count] if count < n else -math.inf
        x.append(count / n)
        y.append((len(positives) - bisect_right(positives, limit)) / len(positives))
    return x, y


def _roc(result: Result) -> go.Figure:
    """ROC on a logarithmic axis of false positives, from the smallest rate that the human texts can tell."""
    figure = panels(x_title="false-positive rate", y_title="machine-written texts found", height=380)
    n = len(result.detectors[FAST].human)
    for name in ORDER:
        one = result.detectors[name]
        x, y = roc_points(one.machine, one.human)
        figure.add_traces(line(f"{name}: {one.auroc.value:.2f}", y, LOOKS[name], x=x, markers=False))
    grid = [10 ** (-k / 20) for k in range(round(20 * math.log10(n)) + 1)]
    figure.add_traces(line("chance: 0.50", grid, CONTROL, x=grid, markers=False, width=1.2))
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if t >= 1 / n - 1e-9]
    figure.update_xaxes(type="log", range=[math.log10(1 / n), 0], tickvals=ticks, tickformat="~%")
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    return finish(
        figure,
        title="What is found at which rate of false positives",
        note=f"{about(result)}; the smallest rate that {n} human texts can tell is 1/{n}; AUROC in the legend",
    )


def _lengths(result: Result) -> go.Figure:
    """AUROC by length."""
    figure = panels(x_title="tokens of the text", y_title="AUROC")
    lengths = list(result.config.lengths)
    for name in ORDER:
        figure.add_traces(
            estimates_line(name, result.lengths[name], LOOKS[name], x=lengths, within=(0.0, 1.0))
        )
    reference_line(figure, y=0.5, name="chance")
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_xaxes(tickvals=lengths)
    return finish(
        figure,
        title="AUROC against length",
        note=f"{about(result)}, so that up to there both texts of a pair are the same; 95% bands",
    )


def _attacks(result: Result) -> go.Figure:
    """AUROC and rate found of every detector under every attack."""
    names = [name for name in result.lengths if name in result.attacks[UNCHANGED].auroc]
    names = [*ORDER, *(name for name in names if name not in ORDER)]
    labels = [f"{attack} (n = {one.n})" for attack, one in result.attacks.items()]
    figure = panels(
        ["AUROC", f"found at the threshold of {_rate(result)} false positives"],
        columns=2,
        width=max(72 * len(names), 330),
        height=34 * len(labels),
    )
    for column, entries in enumerate(
        (
            [[one.auroc[name] for name in names] for one in result.attacks.values()],
            [[one.found[name] for name in names] for one in result.attacks.values()],
        ),
        start=1,
    ):
        figure.add_heatmap(
            z=[[e.value if e.measurable else None for e in row] for row in entries],
            x=[_folded(name) for name in names],
            y=labels,
            customdata=[[[e.low, e.high, e.n] for e in row] for row in entries],
            texttemplate="%{z:.2f}" if column == 1 else "%{z:.0%}",
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="%{x}, %{y}: %{z:.3f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}], n = %{customdata[2]}"
            "<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(
        coloraxis={
            "colorscale": "PiYG",
            "cmin": 0,
            "cmid": 0.5,
            "cmax": 1,
            "colorbar": {"tickvals": [0, 0.5, 1]},
        }
    )
    return finish(
        figure,
        title="Detectors under attack",
        note=f"{about(result)}; texts are compared with their human twins cut to the same lengths; thresholds are "
        "those of the human texts of full length",
        right=90,
    )


def _folded(name: str) -> str:
    """A detector's name on lines of a word or two."""
    return (
        name.replace(", ", ",<br>")
        .replace("-DetectGPT", "-<br>DetectGPT")
        .replace("intrinsic ", "intrinsic<br>")
    )


def _lens(result: Result) -> go.Figure:
    """AUROC by depth through the logit lens."""
    depths = list(result.lens)
    figure = panels(x_title="blocks run", y_title="AUROC")
    for name in ORDER:
        entries = [result.lens[depth][name] for depth in depths]
        figure.add_traces(estimates_line(name, entries, LOOKS[name], x=depths, within=(0.0, 1.0)))
    reference_line(figure, y=0.5, name="chance")
    figure.update_yaxes(range=[-0.03, 1.03])
    return finish(
        figure,
        title="Where in the model its own text shows: AUROC through the logit lens",
        note=f"{result.provenance.model_name}; {result.config.n_lens} pairs; next-token distributions read from the "
        "stream after each number of blocks; 95% bands",
    )


def _directions(result: Result) -> go.Figure:
    """The machine-text direction by layer: held-out AUROC beside shuffled labels, cosines beside chance."""
    at = [one.layer for one in result.directions]
    figure = panels(
        ["held-out AUROC of projections", "cosine with the machine-text direction"],
        columns=2,
        width=400,
        height=290,
        x_title="layer (input of the block)",
        shared_y="no",
        gap=60,
    )
    shuffled = [one.shuffled for one in result.directions]
    figure.add_trace(
        area("shuffled labels: 95%", at, [e.low for e in shuffled], [e.high for e in shuffled]), row=1, col=1
    )
    entries = [one.auroc for one in result.directions]
    traces = estimates_line("machine-text direction", entries, MACHINE_LOOK, x=at, within=(0.0, 1.0))
    figure.add_traces(traces, rows=1, cols=1)
    for name in ("refusal", "harmfulness"):
        chance = [getattr(one, f"chance_{name}") for one in result.directions]
        look = style(name)
        label = f"{name}: shuffled labels, 95%"
        for sign in (1, -1):
            figure.add_traces(
                line(
                    label,
                    [sign * value for value in chance],
                    Style(look.colour, "dot", look.symbol, look.pattern),
                    x=at,
                    markers=False,
                    width=1.2,
                    in_legend=sign > 0,
                ),
                rows=1,
                cols=2,
            )
        values = [getattr(one, name) for one in result.directions]
        figure.add_traces(line(f"{name} direction", values, look, x=at), rows=1, cols=2)
    figure.update_yaxes(range=[-0.03, 1.03], row=1, col=1)
    figure.update_yaxes(range=[-1.03, 1.03], row=1, col=2)
    figure.add_hline(y=0.5, line={"color": "#555", "dash": "dash", "width": 1.2}, row=1, col=1)  # pyright: ignore[reportArgumentType]
    figure.add_hline(y=0, line={"color": "#555", "dash": "dash", "width": 1.2}, row=1, col=2)  # pyright: ignore[reportArgumentType]
    return finish(
        figure,
        title="A direction of machine-written text, by layer",
        note=f"{result.provenance.model_name}; difference in means of written tokens, machine-written less human, "
        f"fitted on half of the pairs and tried on the other; {result.config.n_shuffles} directions between "
        "shuffled labels",
    )


def _interventions(result: Result) -> go.Figure:
    """Change of the scores of new text under every intervention, paired by prompt."""
    names = [name for name in ARMS if name != PLAIN]
    figure = panels(
        list(ORDER),
        columns=4,
        width=190,
        height=40 + 32 * len(names),
        x_title="change (SD of human texts)",
        gap=20,
    )
    for column, detector in enumerate(ORDER, start=1):
        for control in (False, True):
            rows = [name for name in names if ("(control)" in name) == control]
            entries: list[Estimate] = [result.arms[name].change[detector] for name in rows]
            look = CONTROL if control else MACHINE_LOOK
            label = "random direction (control)" if control else "direction"
            trace = points(label, rows, entries, look, horizontal=True, in_legend=column == 1)
            figure.add_trace(trace, row=1, col=column)
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    reference_line(figure, x=0)
    config = result.config
    return finish(
        figure,
        title="What interventions while writing do to the scores of the text",
        note=f"{result.provenance.model_name}; {result.arms[PLAIN].n} texts, scored without intervention, each less "
        f"the text of the same beginning written without one; layer {result.layer}, dose {config.dose:g} lengths for "
        "the machine-text direction, 1 for refusal; 95% intervals",
    )
