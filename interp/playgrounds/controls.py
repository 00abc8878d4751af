"""The playground's controls: labels, help, layout, and how typed positions and new tokens are parsed."""

from collections.abc import Mapping

import ipywidgets as widgets

from interp.directions import Direction
from interp.engine.interventions import NewTokens
from interp.models.tokens import REGIONS, Positions

HELP = {
    "direction": "what is added; projections are shown on all of them",
    "layer": "layer whose input it is added to",
    "unit": "coefficient: × the direction's own norm; relative norm: × the mean activation norm there",
    "amount": "below 0 steers the opposite way, 0 adds nothing",
    "positions": "prompt tokens it is added at: all, instruction, t_inst, post_inst[0], -1; several with commas",
    "new_tokens": "answer tokens it is added at: none, a number (the first n), all; default: all if positions are "
    "all, else none",
    "max_new_tokens": "tokens at which an answer is cut",
    "chat": "the next message continues, each column with its own answers; an empty one answers the last again",
    "safety": "whether the trained safety prompt stands in the system slot, in every column",
}
"""One line for each control, shown under it and as its tooltip."""
_LABELS = {"unit": "", "max_new_tokens": "length", "new_tokens": "new tokens"}
_WIDE = "98%"


class Controls(widgets.VBox):
    """Prompt, settings and buttons, each an attribute, so that code can also set them."""

    def __init__(
        self, directions: Mapping[str, Direction], *, n_layers: int, prompt: str, safety: bool = False
    ) -> None:
        last = list(directions)[-1]  # of harmfulness and refusal: refusal
        self.prompt = widgets.Textarea(
            value=prompt, rows=2, layout=widgets.Layout(width=_WIDE), placeholder="a prompt"
        )
        self.direction = widgets.Dropdown(options=list(directions), value=last)
        self.layer = widgets.IntSlider(value=directions[last].layer, min=0, max=n_layers - 1)
        self.unit = widgets.ToggleButtons(
            options=[("coefficient", "coefficient"), ("relative norm", "relative_norm")],
            style={"button_width": "8.4em"},
        )
        self.unit.tooltips = ["times the direction's own norm", "times the mean activation norm there"]
        self.amount = widgets.FloatSlider(value=1.0, min=-5, max=5, step=0.1)
        places = [*REGIONS, "t_inst", "post_inst", "t_post_inst"]
        self.positions = widgets.Combobox(value="all", options=places, ensure_option=False)
        self.new_tokens = widgets.Combobox(value="default", options=["default", "none", "all", "1", "4"])
        self.max_new_tokens = widgets.IntSlider(value=48, min=1, max=256)
        self.chat = widgets.Checkbox(value=False, description="keep the conversation", indent=False)
        self.chat.tooltip, self.chat.layout.width = HELP["chat"], _WIDE
        self.safety = widgets.Checkbox(
            value=safety, description="safety prompt", indent=False, disabled=not safety
        )
        self.safety.tooltip, self.safety.layout.width = HELP["safety"], _WIDE
        self.run_button = _button("Run", "play", "generate all answers", button_style="primary")
        self.stop_button = _button("Stop", "stop", "end all answers after the current token", disabled=True)
        self.keep_button = _button(
            "Keep", "bookmark", "keep the steered answer and its settings beside the next one", disabled=True
        )
        self.drop_button = _button("Drop", "times", "drop the answer that is kept", disabled=True)
        self.new_button = _button("Start over", "refresh", "forget the conversation", disabled=True)
        self.code_button = _button("Code", "code", "Python that gives the steered answer")
        self.status, self.error = widgets.HTML(), widgets.HTML()
        super().__init__([self.prompt, self._grid(), self._buttons(), self.error])

    def _grid(self) -> widgets.GridBox:
        """Settings in columns of equal width: four beside each other in a notebook of 950 px or more."""
        cells = [
            *(self._cell(name) for name in ("direction", "layer", "unit", "amount")),
            *(self._cell(name) for name in ("positions", "new_tokens", "max_new_tokens")),
            widgets.VBox([self.chat, _help("chat")]),
        ]
        if not self.safety.disabled:
            cells.append(widgets.VBox([self.safety, _help("safety")]))
        layout = widgets.Layout(
            grid_template_columns="repeat(auto-fit, minmax(232px, 1fr))",
            grid_gap="2px 10px",
            max_width="1100px",
            width=_WIDE,
        )
        return widgets.GridBox(cells, layout=layout)

    def _cell(self, name: str) -> widgets.VBox:
        control = getattr(self, name)
        control.description, control.tooltip = _LABELS.get(name, name), HELP[name]
        control.style.description_width = "initial"
        control.layout.width = _WIDE
        return widgets.VBox([control, _help(name)])

    def _buttons(self) -> widgets.HBox:
        buttons = (
            *(self.run_button, self.stop_button, self.keep_button, self.drop_button),
            *(self.new_button, self.code_button),
        )
        for button in buttons:
            button.layout = widgets.Layout(width="8em", flex="0 0 auto")
        self.status.layout = widgets.Layout(flex="1 1 auto", min_width="12em")
        return widgets.HBox([*buttons, self.status], layout=widgets.Layout(width=_WIDE))


def _button(
    name: str, icon: str, tooltip: str, *, button_style: str = "", disabled: bool = False
) -> widgets.Button:
    return widgets.Button(
        description=name, icon=icon, tooltip=tooltip, button_style=button_style, disabled=disabled
    )


def _help(name: str) -> widgets.HTML:
    return widgets.HTML(
        f'<div class="interp-help" style="font-size:11px;line-height:1.3;opacity:.7">{HELP[name]}</div>',
        layout=widgets.Layout(width=_WIDE),
    )


def read_positions(text: str) -> Positions:
    """Parse positions: names or negative indices from the prompt's end, separated by commas.

    Raises:
        ValueError: nothing was typed.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError("positions are empty; give all, instruction, t_inst, post_inst[0], -1, ...")
    read = [int(part) if part.lstrip("-").isdigit() else part for part in parts]
    return read[0] if len(read) == 1 else read


def read_new_tokens(text: str) -> NewTokens:
    """Parse which generated tokens are acted on: default, none, all, or the first n.

    Raises:
        ValueError: anything else.
    """
    text = text.strip()
    if text == "default":
        return None
    if text == "none" or text == "all":
        return text
    if text.isdigit():
        return int(text)
    raise ValueError(f"new tokens must be default, none, all or a number, got {text!r}")
