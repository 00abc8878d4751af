"""Figures of what detectors of machine-written text see; each takes a result and returns a plotly figure."""

import math

import plotly.graph_objects as go

from interp.detectors.machine_text.gltr import GltrView
from interp.detectors.machine_text.rank_strips import BUCKET_NAMES
from interp.detectors.machine_text.watermark_detection import WatermarkEvidence
from interp.display.charts import finish, line, named, panels, reference_line
from interp.display.styles import COLOURS

_STRONG = ("#2E7D32", "#F9A825", "#D84315", "#6A1B9A")
"""The colours of the strip, dark enough for bars."""


def gltr_figure(view: GltrView) -> go.Figure:
    """Three histograms over a text's tokens: rank buckets, probability ratios, entropies of the ten likeliest."""
    titles = ("rank", "probability / that of the likeliest", "entropy of the ten likeliest (nats)")
    figure = panels(titles, columns=3, width=230, height=240, y_title="tokens", shared_y="no")
    counts = [int((view.buckets == bucket).sum()) for bucket in range(len(BUCKET_NAMES))]
    figure.add_bar(x=list(BUCKET_NAMES), y=counts, marker_color=list(_STRONG), name=titles[0], row=1, col=1)
    for column, (values, end, bins) in enumerate(
        ((view.ratios, 1.0, 10), (view.top_entropies, math.log(10), 8)), start=2
    ):
        figure.add_histogram(
            x=values.tolist(),
            # A ratio of 1 belongs to the last bin.
            xbins={"start": 0, "end": end * (1 + 1e-6), "size": end * (1 + 1e-6) / bins},
            marker_color=COLOURS[0],
            name=titles[column - 1],
            row=1,
            col=column,
        )
    return finish(figure, title=f"{len(view)} tokens under {view.model}", legend=False)


def watermark_figure(evidence: WatermarkEvidence, *, threshold: float = 4.0) -> go.Figure:
    """z against the number of scored tokens, with the threshold."""
    figure = panels(x_title="scored tokens", y_title="z")
    x = list(range(1, evidence.n_scored + 1))
    figure.add_traces(line("z", list(evidence.z_along), named(["z"])["z"], x=x))
    reference_line(figure, y=threshold, name=f"z = {threshold:g}")
    return finish(figure, title=f"{evidence.n_green} of {evidence.n_scored} tokens are green")
