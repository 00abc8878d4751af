"""One look for each meaning in the whole project: colour, dash, marker and bar pattern.

Colours alone never carry a distinction: meanings that stand in one figure differ in dash, marker or pattern as well, so
that a figure printed in grey still reads. The first colours are Okabe and Ito's, told apart by colour-blind readers.

    style("harmful").colour            # the same orange-red in every figure and notebook
    [s.colour for s in ordered(4)]     # four sizes or doses, from dark to light
"""

from collections.abc import Sequence
from typing import NamedTuple


class Style(NamedTuple):
    """How everything of one meaning is drawn."""

    colour: str
    """Colour of lines, markers and bars, as `#RRGGBB`."""
    dash: str = "solid"
    """Dash of lines."""
    symbol: str = "circle"
    """Marker of points and on lines."""
    pattern: str = ""
    """Hatching of bars."""


CONTROL_COLOUR = "#8C8C8C"
REFERENCE_COLOUR = "#555555"
"""Colour of reference lines: zero, chance, a limit."""
CONTROL = Style(CONTROL_COLOUR, "dot", "x", "x")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", ".", "x", "\\", "-", "+", "|")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")

PROMPTS = {
    "harmful": Style("#D55E00", "solid", "circle", ""),
    "harmless": Style("#0072B2", "dash", "square-open", "/"),
    "borderline": Style("#CC79A7", "dot", "diamond", "."),
}
"""Kinds of prompts."""
GROUPS = {
    "refused harmful": Style("#D55E00", "solid", "circle", ""),
    "accepted harmful": Style("#D55E00", "dash", "circle-open", "\\"),
    "refused harmless": Style("#0072B2", "solid", "square", "/"),
    "accepted harmless": Style("#0072B2", "dot", "square-open", "x"),
}
"""What the model does with which prompts: the colour is the prompt's, filled and solid where it refuses."""
DIRECTIONS = {
    "harmfulness": Style("#5D3A9B", "solid", "circle", ""),
    "refusal": Style("#009E73", "dash", "square", "/"),
    "control_harmfulness": Style(CONTROL_COLOUR, "dot", "circle-open", "x"),
    "control_refusal": Style(CONTROL_COLOUR, "dashdot", "square-open", "+"),
}
"""Directions and beliefs, and the random directions beside them."""
INTERVENTIONS = {
    "baseline": Style("#333333", "solid", "circle", ""),
    "ablation": Style("#E69F00", "dash", "diamond", "/"),
    "orthogonalized": Style("#7F6000", "longdash", "triangle-up", "\\"),
    "addition": Style("#009E73", "dash", "square", "/"),
    "harmfulness addition": Style("#5D3A9B", "solid", "circle", "\\"),
    "random ablation": Style(CONTROL_COLOUR, "dot", "x", "x"),
    "random addition": Style("#BDBDBD", "dashdot", "cross", "+"),
}
"""What is done to the model; an addition has the colour of the direction that is added."""
ENDINGS = {
    "as-is": Style("#56B4E9", "solid", "circle", ""),
    "strip": Style("#999933", "dot", "diamond", "."),
    "period": Style("#882255", "dash", "square", "/"),
}
"""How prompts end."""
ENDING_LABELS = {
    "as-is": "prompts as they are",
    "strip": "closing punctuation stripped",
    "period": "every prompt ended by a full stop",
}
"""Prompt endings in words."""
DETECTORS = {
    "Latent Guard": Style("#332288", "solid", "circle", ""),
    "refusal direction": Style("#009E73", "dash", "square", "/"),
    "logistic probe": Style("#CC6677", "dashdot", "diamond", "."),
    "TF-IDF": Style("#8C6D31", "longdash", "triangle-up", "\\"),
    "random direction (control)": Style(CONTROL_COLOUR, "dot", "x", "x"),
}
"""What flags prompts."""
TEXTS = {
    "prose": Style("#333333", "solid", "circle", ""),
    "refusals": Style("#009E73", "dash", "square", "/"),
    "affirmations": Style("#CC6677", "dot", "diamond", "."),
}
"""Corpora on which compression is measured."""
TRAINING = {
    "inverse": Style("#44AA99", "solid", "circle", ""),
    "forward": Style("#AA4499", "dash", "square", "/"),
}
"""Training towards an earlier and towards a later checkpoint."""
FAMILIES = {
    "template": Style("#44AA99", "solid", "triangle-up", ""),
    "persuasion": Style("#AA4499", "dash", "diamond", "/"),
    "random suffix": Style("#999933", "longdashdot", "star", "-"),
}
"""Families of jailbreaks."""
MEANINGS: dict[str, dict[str, Style]] = {
    "prompts": PROMPTS,
    "groups": GROUPS,
    "directions": DIRECTIONS,
    "interventions": INTERVENTIONS,
    "endings": ENDINGS,
    "detectors": DETECTORS,
    "texts": TEXTS,
    "training": TRAINING,
    "families": FAMILIES,
}
"""Every meaning that has a look of its own, by the kind of thing that it is."""

_RAMP = ("#2E1503", "#6B3F10", "#A56D1E", "#CFA03F", "#E3C879")
"""Dark to light, so that an order reads in grey as well."""
_OTHERS = ("#44AA99", "#AA4499", "#999933", "#CC6677", "#88CCEE", "#117733", "#B8860B")
"""Colours of things outside the table; none of them is a meaning that appears beside them."""


def style(meaning: str) -> Style:
    """The look of a meaning.

    Raises:
        KeyError: the table does not have it.
    """
    return next(group[meaning] for group in MEANINGS.values() if meaning in group)


def ordered(n: int) -> list[Style]:
    """Looks of n sizes, doses or positions, from dark to light."""
    return [Style(_at(i / max(n - 1, 1)), DASHES[i % 6], SYMBOLS[i % 8], PATTERNS[i % 8]) for i in range(n)]


def named(names: Sequence[str]) -> dict[str, Style]:
    """Looks of named series: that of the table where it has the name, else one of the remaining colours in turn."""
    known = {name: look for group in MEANINGS.values() for name, look in group.items()}
    looks, number = dict[str, Style](), 0
    for name in names:
        if name in known:
            looks[name] = known[name]
        else:
            looks[name] = Style(
                _OTHERS[number % 7], DASHES[number % 6], SYMBOLS[number % 8], PATTERNS[number % 8]
            )
            number += 1
    return looks


def translucent(colour: str, opacity: float) -> str:
    """A `#RRGGBB` colour as rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _at(share: float) -> str:
    """The colour at a share of the ramp."""
    place = share * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    mixed = [
        round(
            int(_RAMP[low][i : i + 2], 16) * (1 - place + low)
            + int(_RAMP[low + 1][i : i + 2], 16) * (place - low)
        )
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02X}" for part in mixed)
