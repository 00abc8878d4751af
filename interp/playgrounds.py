"""The steering playground: plain and steered answers side by side as they are generated, in a notebook cell.

    interp.playground(model)                                   # finds harmfulness and refusal directions first
    interp.playground(model, {"mine": "mine.safetensors"})     # or with your own directions

Answers are generated in a background thread, so that the notebook stays usable and Stop works between two tokens. Every
token of prompt and answer is coloured by its projection on each direction, with the values in its hover text. The code
that it shows reproduces the steered answer.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any

try:
    import ipywidgets as widgets
except ModuleNotFoundError as error:
    raise ImportError("the playground needs ipywidgets: pip install 'interp-workbench[notebook]'") from error

from interp.data.prompts import load_prompts
from interp.directions import Direction
from interp.display.errors import error_line
from interp.display.token_strips import StripToken, strip_html
from interp.engine.interventions import Intervention, NewTokens
from interp.models.chat_model import ChatModel
from interp.models.tokens import REGIONS, Positions
from interp.representations.steering import find_directions
from interp.representations.token_traces import Answer, Setting, TracedToken, likely_tokens, trace
from interp.storage.atomic_files import write_file
from interp.storage.direction_files import direction_bytes, read_direction

logger = logging.getLogger(__name__)

Directions = (
    Direction | str | Path | Mapping[str, "Direction | str | Path"] | Sequence["Direction | str | Path"]
)
POSITIVE, NEGATIVE, UNKNOWN = (213, 94, 0), (0, 114, 178), "#EEEEEE"
_DRAW_EVERY = 0.1


def playground(
    model: ChatModel,
    directions: Directions | None = None,
    *,
    prompt: str = "How do I bake bread?",
    folder: str | Path = "runs/playground",
) -> "Playground":
    """A playground for one model, displayed as the last line of a cell.

    Args:
        directions: a `Direction`, a direction file, or several, optionally by name. None computes those of
            `find_directions` on the builtin prompts, a pass over 128 prompts.
        folder: folder to which directions without a file are written when their code is shown.

    Raises:
        ValueError: no directions, or one that cannot be read or does not fit the model.
    """
    found: Directions = find_directions(model, load_prompts("builtin")) if directions is None else directions
    return Playground(model, named_directions(model, found), prompt=prompt, folder=Path(folder))


def named_directions(model: ChatModel, directions: Directions) -> dict[str, Direction]:
    """Directions by name, read from files where necessary.

    Raises:
        ValueError: none, one that cannot be read, or one of another width than the model's.
    """
    if isinstance(directions, (Direction, str, Path)):
        directions = [directions]
    if not isinstance(directions, Mapping):
        directions = {_name(entry, i): entry for i, entry in enumerate(directions)}
    if not directions:
        raise ValueError("a playground needs at least one direction; leave them out to have two found")
    named = {
        name: entry if isinstance(entry, Direction) else read_direction(entry)
        for name, entry in directions.items()
    }
    for direction in named.values():
        direction.check_width(model.d_model, model.name)
        model.layer(direction.layer)
    return named


class Playground(widgets.VBox):
    """The widget returned by `playground`; its controls are attributes, so that code can also set them."""

    def __init__(
        self, model: ChatModel, directions: Mapping[str, Direction], *, prompt: str, folder: Path
    ) -> None:
        last = list(directions)[-1]  # of harmfulness and refusal: refusal
        wide, half = widgets.Layout(width="98%"), widgets.Layout(width="49%")
        self.prompt = widgets.Textarea(value=prompt, rows=2, layout=wide, placeholder="a prompt")
        self.direction = widgets.Dropdown(options=list(directions), value=last, description="direction")
        self.layer = widgets.IntSlider(
            value=directions[last].layer, min=0, max=model.n_layers - 1, description="layer"
        )
        self.unit = widgets.ToggleButtons(
            options=["coefficient", "relative_norm"], style={"button_width": "8em"}
        )
        self.unit.tooltips = ["times the direction's own norm", "times the mean activation norm there"]
        self.amount = widgets.FloatSlider(value=1.0, min=-5, max=5, step=0.1, description="amount")
        places = [*REGIONS, "t_inst", "post_inst", "t_post_inst"]
        self.positions = widgets.Combobox(
            value="all", options=places, description="positions", ensure_option=False
        )
        self.new_tokens = widgets.Combobox(
            value="default", options=["default", "none", "all", "1", "4"], description="new tokens"
        )
        self.max_new_tokens = widgets.IntSlider(value=48, min=1, max=256, description="length")
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.code_button = widgets.Button(description="Code", icon="code", tooltip="Python for this answer")
        self.status = widgets.HTML()
        self.error = widgets.HTML()
        self.plain, self.steered = widgets.HTML(layout=half), widgets.HTML(layout=half)
        self.strips, self.probabilities = widgets.HTML(layout=wide), widgets.HTML(layout=wide)
        self.code = widgets.Textarea(rows=15, layout=widgets.Layout(width="98%", display="none"))
        self.answers: dict[str, Answer] = {}
        self._model, self._directions, self._folder = model, dict(directions), folder
        self._kept: dict[tuple[str, int], Answer] = {}
        self._worker: threading.Thread | None = None
        self._halt = threading.Event()
        self._step = ""
        self.run_button.on_click(lambda _: self.run())
        self.stop_button.on_click(lambda _: self.stop())
        self.code_button.on_click(lambda _: self.show_code())
        self.direction.observe(self._take_layer, names="value")
        super().__init__(
            [
                self.prompt,
                widgets.HBox([self.direction, self.layer, self.unit, self.amount], layout=_WRAP),
                widgets.HBox([self.positions, self.new_tokens, self.max_new_tokens], layout=_WRAP),
                widgets.HBox([self.run_button, self.stop_button, self.code_button, self.status], layout=_WRAP),
                self.error,
                widgets.HBox([self.plain, self.steered]),
                self.strips,
                self.probabilities,
                self.code,
            ]
        )  # fmt: skip

    def setting(self) -> Setting:
        """The settings given by the controls.

        Raises:
            ValueError: an empty prompt, or positions or new tokens that are neither names nor numbers.
        """
        if not self.prompt.value.strip():
            raise ValueError("the prompt is empty; type one")
        relative = self.unit.value == "relative_norm"
        return Setting(
            prompt=self.prompt.value,
            direction=self._directions[str(self.direction.value)],
            coefficient=1.0 if relative else self.amount.value,
            relative_norm=self.amount.value if relative else None,
            layer=self.layer.value,
            positions=read_positions(self.positions.value),
            new_tokens=read_new_tokens(self.new_tokens.value),
            max_new_tokens=self.max_new_tokens.value,
        )

    def run(self) -> None:
        """Start generating both answers, after stopping any that are in progress."""
        self.stop()
        self.error.value = ""
        try:
            setting = self.setting()
            arms: dict[str, list[Intervention]] = {"plain": [], "steered": [setting.intervention()]}
        except ValueError as error:
            self._fail(error)
            return
        before, self._halt = self._worker, threading.Event()
        arguments = (setting, arms, self._halt, before)
        self._worker = threading.Thread(target=self._work, args=arguments, daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """Stop generating after the current token."""
        self._halt.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the answers are complete, for at most `timeout` seconds."""
        if self._worker is not None:
            self._worker.join(timeout)

    def show_code(self) -> None:
        """Show Python code that reproduces the steered answer; a direction without a file is written to one."""
        self.error.value = ""
        try:
            setting = self.setting()
            data = direction_bytes(setting.direction)
            name = f"{self.direction.value}-{hashlib.sha256(data).hexdigest()[:8]}.safetensors"
            path = (self._folder / name).resolve()
            if not path.is_file():
                write_file(path, data)
            self.code.value = setting.code(self._model, str(path))
            self.code.layout.display = None
        except (ValueError, OSError) as error:
            self._fail(error)

    def _take_layer(self, change: Mapping[str, Any]) -> None:
        self.layer.value = self._directions[change["new"]].layer

    def _work(
        self,
        setting: Setting,
        arms: Mapping[str, list[Intervention]],
        halt: threading.Event,
        before: threading.Thread | None,
    ) -> None:
        if before is not None:
            before.join()
        self.run_button.disabled, self.stop_button.disabled = True, False
        begun, self.answers = time.monotonic(), {}
        self._step = (
            f"{self.amount.value:g} {self.unit.value} of {self.direction.value} at layer {setting.layer}"
        )
        try:
            for arm, interventions in arms.items():
                self._answer(arm, setting, interventions, halt)
            self._draw()
            made = sum(len(answer.tokens) for answer in self.answers.values())
            outcome = "stopped" if halt.is_set() else "done"
            self.status.value = f"{outcome}: {made} tokens in {time.monotonic() - begun:.1f} s"
        except Exception as error:
            self._fail(error)
        finally:
            self.run_button.disabled, self.stop_button.disabled = False, True

    def _answer(
        self, arm: str, setting: Setting, interventions: list[Intervention], halt: threading.Event
    ) -> None:
        key = (setting.prompt, setting.max_new_tokens)
        if arm == "plain" and key in self._kept:
            self.answers[arm] = self._kept[key]
            return
        drawn = 0.0
        answers = trace(
            self._model,
            setting.prompt,
            self._directions,
            interventions=interventions,
            max_new_tokens=setting.max_new_tokens,
        )
        with closing(answers):  # pyright: ignore[reportArgumentType]
            for answer in answers:
                self.answers[arm] = answer
                self.status.value = f"{arm} answer, token {len(answer.tokens)}"
                if time.monotonic() - drawn > _DRAW_EVERY:
                    self._draw()
                    drawn = time.monotonic()
                if halt.is_set():
                    return
        if arm == "plain":
            self._kept = {key: self.answers[arm]}

    def _draw(self) -> None:
        for arm, panel in (("plain", self.plain), ("steered", self.steered)):
            panel.value = answer_html(arm, self.answers.get(arm), note=self._step if arm == "steered" else "")
        self.strips.value = strips_html(self.answers, list(self._directions))
        self.probabilities.value = probabilities_html(
            likely_tokens(self._model, self.answers), list(self.answers)
        )

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, (ValueError, OSError)):
            logger.error("the playground failed", exc_info=error)
        self.status.value = ""
        self.error.value = f'<p style="color:#B00020"><b>{escape(error_line(error))}</b></p>'


_WRAP = widgets.Layout(flex_flow="row wrap")


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


def answer_html(arm: str, answer: Answer | None, *, note: str = "") -> str:
    """Render one answer with its name and a note."""
    body = "" if answer is None else escape(answer.text)
    end = "" if answer is None or answer.finished else " …"
    return (
        f'<div class="interp-answer interp-{arm}" style="padding-right:1em"><b>{arm}</b> '
        f'<span style="opacity:.7">{escape(note)}</span>'
        f'<p style="white-space:pre-wrap;line-height:1.4;min-height:6em">{body}{end}</p></div>'
    )


def strips_html(answers: Mapping[str, Answer], directions: Sequence[str]) -> str:
    """Render for each direction the tokens of every prompt and answer, coloured by their projection."""
    rows = []
    for name in directions:
        largest = _scale(answers, name)
        rows.append(f'<p style="margin:.6em 0 0"><b>projection on {escape(name)}</b> {_legend(largest)}</p>')
        for arm, answer in answers.items():
            tokens = [*answer.prompt, *answer.tokens]
            strip = strip_html([_strip_token(token, name, largest) for token in tokens])
            rows.append(f'<div style="display:flex"><span style="min-width:5em">{arm}</span>{strip}</div>')
    return "".join(rows)


def probabilities_html(probabilities: Mapping[str, Mapping[str, float]], arms: Sequence[str]) -> str:
    """Render the likeliest first tokens, with a bar for each answer."""
    head = "".join(f'<th style="text-align:left">{arm}</th>' for arm in arms)
    rows = []
    for token, by in probabilities.items():
        cells = "".join(
            '<td style="min-width:14em;text-align:left"><span style="display:inline-block;height:.8em;'
            f'background:{colour};width:{9 * by[arm]:.2f}em"></span> {by[arm]:.3f}</td>'
            for arm, colour in zip(arms, ("#0072B2", "#D55E00"), strict=False)
        )
        shown = escape(token.replace("\n", "↵"))
        rows.append(
            f'<tr><td style="font-family:monospace;white-space:pre;text-align:left">{shown}</td>{cells}</tr>'
        )
    if not rows:
        return ""
    return (
        '<p style="margin:.6em 0 0"><b>probability of the first token</b></p>'
        f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    )


def colour(value: float, largest: float) -> str:
    """A colour from white at zero to orange at `largest` and blue at its negative, clipped beyond."""
    share = max(-1.0, min(1.0, value / largest if largest else 0.0))
    end = POSITIVE if share > 0 else NEGATIVE
    red, green, blue = (round(255 + (part - 255) * 0.75 * abs(share)) for part in end)
    return f"#{red:02X}{green:02X}{blue:02X}"


def _strip_token(token: TracedToken, name: str, largest: float) -> StripToken:
    if name not in token.projections:
        return StripToken(text=token.text, colour=UNKNOWN, hover=f"{token.role}: not run through the model")
    along, cosine = token.projections[name], token.cosines[name]
    return StripToken(
        text=token.text,
        colour=colour(along, largest),
        hover=f"{token.role}: projection {along:.2f}, cosine {cosine:.3f}",
        marked=token.role == "t_inst" or token.role.endswith("t_post_inst"),
    )


def _scale(answers: Mapping[str, Answer], name: str) -> float:
    """Largest projection, without the template's first tokens, whose activations can have a far larger norm."""
    tokens = [
        t for answer in answers.values() for t in (*answer.prompt, *answer.tokens) if t.role != "prefix"
    ]
    return max((abs(t.projections[name]) for t in tokens if name in t.projections), default=1.0)


def _legend(largest: float) -> str:
    stops = ", ".join(colour(share * largest, largest) for share in (-1, 0, 1))
    return (
        f'<span style="opacity:.7">{-largest:.0f} <span style="display:inline-block;width:6em;height:.7em;'
        f'background:linear-gradient(90deg, {stops})"></span> {largest:.0f}; framed: t_inst and t_post_inst</span>'
    )


def _name(entry: Direction | str | Path, i: int) -> str:
    return f"{entry.position} {i + 1}" if isinstance(entry, Direction) else Path(entry).stem
