"""Figures of the watermark: z without the mark, z against tokens, and power."""

import math

import plotly.graph_objects as go

from interp.display.charts import (
    Style,
    estimates_line,
    finish,
    line,
    named,
    ordered,
    panels,
    reference_line,
)
from interp.experiments.machine_text import Z_THRESHOLD, Result
from interp.experiments.machine_text.results import Unmarked

_NORMAL = Style("#000000", "dash")


def _looks(result: Result) -> dict[str, Style]:
    marks = result.watermarks
    strengths = dict(zip(marks.marked, ordered(len(marks.marked)), strict=True))
    return {f"delta {delta}": look for delta, look in strengths.items()} | named(list(marks.unmarked))


def null_figure(result: Result) -> go.Figure:
    """z of texts that do not know the key, over keys where they were measured, beside the standard normal."""
    marks, looks = result.watermarks, _looks(result)
    titles = [_null_title(name, one) for name, one in marks.unmarked.items()]
    figure = panels(titles, columns=2, width=380, height=240, x_title="z", y_title="density", gap=30)
    grid = [-4 + 0.1 * k for k in range(81)]
    normal = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in grid]
    for column, (name, one) in enumerate(marks.unmarked.items(), start=1):
        x, density = _density(one)
        figure.add_bar(
            x=x,
            y=density,
            width=x[1] - x[0],
            marker_color=looks[name].colour,
            opacity=0.7,
            name=name,
            showlegend=False,
            row=1,
            col=column,
        )
        traces = line("standard normal", normal, _NORMAL, x=grid, markers=False, in_legend=column == 1)
        figure.add_traces(traces, rows=1, cols=column)
    figure.update_xaxes(range=[-4.5, 4.5])
    measured = all(one.keys is not None for one in marks.unmarked.values())
    over = "over keys" if measured else "over texts; several keys were not measured"
    return finish(
        figure,
        title="The watermark's z of texts without the mark",
        note=f"{result.provenance.model_name}; the part after the first {result.config.prefix_tokens} tokens, distinct "
        f"n-grams, gamma {result.config.gamma:g}; 95% intervals {over}",
    )


def _null_title(name: str, one: Unmarked) -> str:
    if one.keys is None:
        return f"{name} ({len(one.z)} texts, one key): mean {one.mean.rounded(2)}, variance {one.variance.rounded(2)}"
    return (
        f"{name} ({len(one.z)} texts, {len(one.keys.means)} keys): mean {one.keys.mean.rounded(2)}, "
        f"SD {one.keys.deviation.rounded(2)}"
    )


def _density(one: Unmarked) -> tuple[list[float], list[float]]:
    """Middles of bins of z, and the density in each."""
    if one.keys is not None:
        counts, width = list(one.keys.histogram), 0.25
    else:  # of one key: few values, wide bins
        width = 0.5
        counts = [0] * 24
        for z in one.z:
            counts[min(max(int((z + 6) // width), 0), 23)] += 1
    return [-6 + width * (k + 0.5) for k in range(len(counts))], [n / sum(counts) / width for n in counts]


def along_figure(result: Result) -> go.Figure:
    """Mean z against written tokens, by strength, beside texts without the mark."""
    marks, looks = result.watermarks, _looks(result)
    figure = panels(x_title="written tokens", y_title="mean z")
    for delta, one in marks.marked.items():
        name = f"delta {delta}"
        figure.add_traces(
            estimates_line(f"{name} (n = {len(one.z)})", one.along, looks[name], x=list(marks.tokens))
        )
    for name, one in marks.unmarked.items():
        figure.add_traces(
            estimates_line(f"{name} (n = {len(one.z)})", one.along, looks[name], x=list(marks.tokens))
        )
    reference_line(figure, y=Z_THRESHOLD, name=f"z = {Z_THRESHOLD:g}")
    return finish(
        figure,
        title="The watermark's z against written tokens",
        note=f"{result.provenance.model_name}; green share {result.config.gamma:g} without the mark; distinct n-grams; "
        "95% bands over texts",
    )


def power_figure(result: Result) -> go.Figure:
    """Share of marked texts with z above 4 against written tokens, and what the theorem says."""
    marks, looks = result.watermarks, _looks(result)
    figure = panels(x_title="written tokens", y_title=f"texts with z above {Z_THRESHOLD:g}")
    for delta, one in marks.marked.items():
        look, x = looks[f"delta {delta}"], list(marks.tokens)
        name = f"delta {delta} (n = {len(one.z)})"
        figure.add_traces(estimates_line(name, one.power, look, x=x, within=(0.0, 1.0)))
        thin = Style(look.colour, "dot", look.symbol, look.pattern)
        figure.add_traces(
            line(f"delta {delta}, theorem 4.2", one.expected, thin, x=x, markers=False, width=1)
        )
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    return finish(
        figure,
        title="Marked texts found",
        note=f"{result.provenance.model_name}; with the key; the theorem's lower bound in the normal approximation, "
        "with the texts' own spike entropy; 95% intervals (Wilson)",
    )
