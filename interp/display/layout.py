"""The layout of every figure: theme, panels of a given size, and room for titles, ticks and legend.

A figure is built in two steps. `panels` (or `go.Figure()`) makes plot areas of a size in pixels; `finish` measures the
texts, wraps titles, and gives every side the margin that it needs, so that nothing lies over anything else.

    figure = panels(["prompts as they are", "all ended by a full stop"], columns=2, x_title="layer")
    figure.add_traces(line("harmful", values, style("harmful")), rows=1, cols=1)
    finish(figure, title="Refusal by layer", note="smollm2-safe; bands: 95% intervals")
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.display.styles import COLOURS, REFERENCE_COLOUR

TITLE_SIZE, NOTE_SIZE, TEXT_SIZE, TICK_SIZE = 18, 13, 14, 13
_LINE = 1.35
"""Height of a line of text in sizes of its font."""
_WIDE, _NARROW = "mwMWABCDEFGHKNOPQRSUVXYZ%@—", "iljtfrI.,:;'|()[]! -"
_RIGHT = 26

THEME = go.layout.Template(
    layout=go.Layout(
        font={"family": "Helvetica, Arial, sans-serif", "size": TEXT_SIZE, "color": "#222"},
        colorway=COLOURS,
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis={
            "showgrid": False,
            "linecolor": "#444",
            "ticks": "outside",
            "zeroline": False,
            "tickfont": {"size": TICK_SIZE},
            "title": {"standoff": 8, "font": {"size": TEXT_SIZE}},
        },
        yaxis={
            "gridcolor": "#E6E6E6",
            "linecolor": "#444",
            "ticks": "outside",
            "zeroline": False,
            "tickfont": {"size": TICK_SIZE},
            "title": {"standoff": 10, "font": {"size": TEXT_SIZE}},
            "automargin": True,
        },
        legend={
            "orientation": "h",
            "font": {"size": TICK_SIZE},
            "traceorder": "normal",
            "bgcolor": "rgba(0,0,0,0)",
        },
        margin={"l": 80, "r": _RIGHT, "t": 60, "b": 120},
        width=860,
        height=500,
    )
)


def text_width(text: str, size: float | int) -> float:
    """Width of a line of text in pixels, rather too wide than too narrow; markup does not count."""
    plain = re.sub(r"</?[a-z][^>]*>", "", text)
    units = sum(0.8 if c in _WIDE else 0.33 if c in _NARROW else 0.58 for c in plain)
    return float(units * size)


def wrapped(text: str, width: float | int, size: float | int) -> str:
    """The text in lines of at most `width` pixels; breaks that it has stay."""
    lines = list[str]()
    for part in text.split("<br>"):
        mean = text_width(part, size) / max(len(part), 1)
        room = max(int(width / max(mean, 1)), 8)
        lines += textwrap.wrap(part, room, break_long_words=False, break_on_hyphens=False) or [""]
    return "<br>".join(lines)


def panels(
    titles: Sequence[str] = ("",),
    *,
    columns: int = 1,
    width: int = 740,
    height: int = 340,
    x_title: str | None = None,
    y_title: str | None = None,
    shared_y: Literal["all", "rows", "no"] = "all",
    x_on_every_row: bool = False,
    gap: int = 34,
    gap_below: int = 0,
) -> go.Figure:
    """Plot areas of `width` x `height` pixels, one per title, filled row by row; `finish` adds the margins.

    Args:
        titles: titles of the panels; they are wrapped to the panel's width.
        x_title: title of the x axes: below the lowest panel of each column, or below each panel.
        y_title: title of the y axis of the first panel of each row.
        shared_y: which panels share one range; `all` but the first of a row have no tick labels then.
        gap: pixels between columns, beyond tick labels where y is not shared.
        gap_below: further pixels between rows, for x tick labels.
    """
    rows = math.ceil(len(titles) / columns)
    shown = [wrapped(title, width, TEXT_SIZE) for title in titles]
    lines = max(title.count("<br>") + 1 for title in shown) if any(titles) else 0
    if rows == columns == 1 and not any(titles):
        figure = go.Figure()
    else:
        between = lines * TEXT_SIZE * _LINE + 42 + (x_on_every_row * 28) + gap_below
        full_width = columns * width + (columns - 1) * gap
        full_height = rows * height + (rows - 1) * between
        figure = make_subplots(
            rows=rows,
            cols=columns,
            subplot_titles=shown if lines else None,
            horizontal_spacing=gap / full_width if columns > 1 else 0,
            vertical_spacing=between / full_height if rows > 1 else 0,
            shared_yaxes={"all": "all", "rows": "rows", "no": False}[shared_y],  # pyright: ignore[reportArgumentType]
        )
        figure.update_annotations(font={"size": TEXT_SIZE}, yshift=4)
        width, height = int(full_width), int(full_height)
    figure.update_layout(
        template=THEME,
        width=width,
        height=height,
        meta={"panel_title_lines": lines},
    )
    if x_title is not None:
        figure.update_xaxes(title=x_title)
        if not x_on_every_row and rows > 1:
            for place in range(len(titles) - columns):
                figure.update_xaxes(title=None, row=place // columns + 1, col=place % columns + 1)
    if y_title is not None:
        first_column: dict[str, Any] = {"col": 1} if columns > 1 else {}
        figure.update_yaxes(title=y_title, **first_column)
    return figure


def finish(
    figure: go.Figure,
    *,
    title: str,
    note: str = "",
    left: int | None = None,
    right: int = _RIGHT,
    below: int = 0,
    legend: bool | None = None,
) -> go.Figure:
    """Give a figure its title, a note under it, its legend below, and margins that hold them.

    Args:
        title: what is shown, in a few words.
        note: model, numbers of prompts, what bands are; smaller, under the title.
        left: left margin in pixels; measured from the tick labels when None.
        below: further pixels under the plot, e.g. for a slider.
        legend: whether there is one; when more than one trace has a name in it if None.
    """
    meta = dict(layout_of(figure).meta or {"panel_title_lines": 0})
    plot_width, plot_height = layout_of(figure).width or 740, layout_of(figure).height or 340
    left = _left_margin(figure) if left is None else left
    width = plot_width + left + right
    menu = max(
        (text_width(button.label, 12) + 60 for m in layout_of(figure).updatemenus for button in m.buttons),
        default=0,
    )
    head, head_height = _heading(title, note, width - 30 - menu)
    marks = any(a.yref == "paper" and a.y == 1 and a.name == "mark" for a in layout_of(figure).annotations)
    top = head_height + meta["panel_title_lines"] * TEXT_SIZE * _LINE + 18 + 20 * marks
    ticks = _tick_height(figure, plot_width)
    has_title = any(layout_of(figure)[_key(axis)].title.text for axis in _axes(figure, "x"))
    foot = ticks + has_title * (TEXT_SIZE * _LINE + 12)
    names = _legend_names(figure)
    shown = len(names) > 1 if legend is None else legend
    rows = _legend_rows(names, left + plot_width) if shown else 0
    bottom = foot + 14 + rows * 21 + below
    height = top + plot_height + bottom
    figure.update_layout(
        template=THEME,
        title={
            "text": head,
            "font": {"size": TITLE_SIZE},
            "x": 14 / width,
            "xref": "container",
            "xanchor": "left",
            "y": 1 - 26 / height,
            "yref": "container",
            "yanchor": "top",
        },
        width=round(width),
        height=round(height),
        margin={"l": left, "r": right, "t": round(top), "b": round(bottom)},
        showlegend=shown,
        meta=None,
    )
    figure.update_layout(
        updatemenus=[{"y": 1 + (top - 10) / plot_height} for _ in layout_of(figure).updatemenus]
    )
    if shown:
        figure.update_layout(
            legend={
                "x": -(left - 12) / plot_width,
                "xanchor": "left",
                "y": -(foot + 10) / plot_height,
                "yanchor": "top",
            }
        )
    return figure


def reference_line(
    figure: go.Figure, *, y: float | int | None = None, x: float | int | None = None, name: str | None = None
) -> None:
    """A thin dashed line across every panel, in the legend where it has a name."""
    line = {"color": REFERENCE_COLOUR, "dash": "dash", "width": 1.2}
    place: dict[str, Any] = {"row": "all", "col": "all"} if _has_panels(figure) else {}
    named: dict[str, Any] = {} if name is None else {"name": name, "showlegend": True, "legendgroup": name}
    before = len(layout_of(figure).shapes)
    if y is not None:
        figure.add_hline(y=y, line=line, layer="below", **named, **place)
    if x is not None:
        figure.add_vline(x=x, line=line, layer="below", **named, **place)
    for shape in layout_of(figure).shapes[before + 1 :]:
        shape.showlegend = False


def mark(figure: go.Figure, x: float | int, text: str) -> None:
    """A thin vertical line with its label above the plot area; for figures of one panel."""
    figure.add_vline(x=x, line={"color": REFERENCE_COLOUR, "width": 1.2}, layer="below")
    figure.add_annotation(
        x=x,
        y=1,
        yref="paper",
        yanchor="bottom",
        text=text,
        showarrow=False,
        font={"size": TICK_SIZE},
        name="mark",
    )


def selector(
    figure: go.Figure, choices: Mapping[str, Mapping[str, Any]], traces: Sequence[int], *, active: int = 0
) -> None:
    """A menu at the top right of the figure.

    Args:
        choices: what each choice restyles: property, and its value for each of the traces.
        traces: indices of the traces that are restyled.
        active: number of the choice that is drawn at first.
    """
    buttons = [
        {"label": name, "method": "restyle", "args": [dict(change), list(traces)]}
        for name, change in choices.items()
    ]
    figure.update_layout(
        updatemenus=[
            {
                "buttons": buttons,
                "active": active,
                "x": 1,
                "xanchor": "right",
                "yanchor": "top",
                "pad": {"t": 0, "b": 0},
                "font": {"size": 12},
                "bgcolor": "white",
            }
        ]
    )


def layout_of(figure: go.Figure) -> Any:
    """The layout; Plotly's own type says less."""
    return figure.layout


def without_heading(figure: go.Figure) -> tuple[go.Figure, str, str]:
    """A copy of a finished figure without its title and note and the room for them, and both as plain text."""
    text = layout_of(figure).title.text or ""
    head, *rest = text.split("<br><span", 1)
    note = re.sub(r"<[^>]*>", " ", f"<span{rest[0]}") if rest else ""
    title = " ".join(re.sub(r"<br>", " ", head).split())
    bare = go.Figure(figure)
    layout = layout_of(bare)
    if text and layout.title.yref == "container":
        room = (text.count("<br>") + 1) * TITLE_SIZE * _LINE - 40 * bool(layout.updatemenus)
        top = round(max(layout.margin.t - max(room, 0), 24))
        bare.update_layout(height=round(layout.height - layout.margin.t + top), margin={"t": top})
        plot = layout.height - layout.margin.t - layout.margin.b
        bare.update_layout(updatemenus=[{"y": 1 + (top - 4) / plot} for _ in layout.updatemenus])
    return bare.update_layout(title=None), title, " ".join(note.split())


def traces_of(figure: go.Figure) -> list[Any]:
    """The traces; Plotly's own type says less."""
    return list(figure.data)


def _has_panels(figure: go.Figure) -> bool:
    return figure._grid_ref is not None  # pyright: ignore[reportAttributeAccessIssue] (no public accessor)


def _heading(title: str, note: str, width: float | int) -> tuple[str, float]:
    """Title and note as one text, and its height in pixels."""
    head = wrapped(title, width, TITLE_SIZE)
    height = 14 + (head.count("<br>") + 1) * TITLE_SIZE * _LINE
    if note:
        small = wrapped(note, width, NOTE_SIZE)
        for part in small.split("<br>"):
            head += f'<br><span style="font-size:{NOTE_SIZE}px;color:#555">{part}</span>'
            height += TITLE_SIZE * _LINE  # a line of smaller letters is as high as the title's
    return head, height


def _legend_names(figure: go.Figure) -> list[str]:
    """What stands in the first legend, once each."""
    names = [
        trace.name
        for trace in traces_of(figure)
        if trace.name
        and trace.showlegend is not False
        and trace.visible is not False
        and (getattr(trace, "legend", None) or "legend") == "legend"
        and trace.type != "heatmap"
    ]
    return list(dict.fromkeys(names)) + [s.name for s in layout_of(figure).shapes if s.showlegend]


def _legend_rows(names: Sequence[str], width: float | int) -> int:
    """Rows of a horizontal legend: one if all fit side by side, else columns as wide as the widest."""
    widths = [text_width(name, TICK_SIZE) + 48 for name in names]
    if sum(widths) <= width:
        return 1
    lines = max(name.count("<br>") + 1 for name in names)
    return math.ceil(len(names) / max(1, int(width // max(widths)))) * lines


def _labels(figure: go.Figure, letter: Literal["x", "y"], axis: str) -> list[str]:
    """Category labels of an axis, by its short name: those given as ticks, or the traces' texts."""
    layout = layout_of(figure)[_key(axis)]
    if layout.ticktext is not None:
        return list(layout.ticktext)
    texts = list[str]()
    for trace in traces_of(figure):
        if (getattr(trace, f"{letter}axis", None) or letter) != axis:
            continue
        texts += [v for v in (getattr(trace, letter, None) or ()) if isinstance(v, str)]
        if trace.type == "violin" and letter == "y":
            texts.append(trace.name)
    return list(dict.fromkeys(texts))


def _axes(figure: go.Figure, letter: Literal["x", "y"]) -> list[str]:
    names = [key for key in layout_of(figure).to_plotly_json() if key.startswith(f"{letter}axis")]
    return [f"{letter}{name[5:]}" for name in names] or [letter]


def _key(axis: str) -> str:
    """The layout's key of an axis: `x2` → `xaxis2`."""
    return f"{axis[0]}axis{axis[1:]}"


def _left_margin(figure: go.Figure) -> int:
    """Room for the y tick labels and the title of the first column."""
    texts = [text for axis in _axes(figure, "y")[:1] for text in _labels(figure, "y", axis)]
    widest = max((text_width(part, TICK_SIZE) for text in texts for part in text.split("<br>")), default=38)
    titled = any(layout_of(figure)[_key(axis)].title.text for axis in _axes(figure, "y"))
    return round(widest + 24 + titled * 30)


def _tick_height(figure: go.Figure, plot_width: float | int) -> float:
    """Height of the x tick labels; categories that do not fit side by side are slanted."""
    tallest = 18.0 + 6
    for axis in _axes(figure, "x"):
        texts = _labels(figure, "x", axis)
        if not texts:
            continue
        layout = layout_of(figure)[_key(axis)]
        start, end = layout.domain or (0, 1)
        slot = plot_width * (end - start) / len(texts)
        widest = max(text_width(part, TICK_SIZE) for text in texts for part in text.split("<br>"))
        lines = max(text.count("<br>") + 1 for text in texts)
        if widest <= slot:
            layout.tickangle = 0
            tallest = max(tallest, lines * TICK_SIZE * _LINE + 8)
        else:
            layout.tickangle = -40
            tallest = max(tallest, widest * math.sin(math.radians(40)) + 18)
    return tallest
