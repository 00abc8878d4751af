"""The steering playground: plain and steered answers side by side as they are generated, in a notebook cell.

    interp.playground(model)                                   # finds harmfulness and refusal directions first
    interp.playground(model, {"mine": "mine.safetensors"})     # or with your own directions

Answers are generated in a background thread, so that the notebook stays usable and Stop works between two tokens. Every
token of prompt and answer is coloured by its projection on each direction, with the values in its hover text. The code
that it shows reproduces the steered answer. Keep puts a steered answer beside those of other settings. Where no kernel
runs, a stored notebook shows a static picture of the last answers.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

try:
    import ipywidgets as widgets
    from IPython.display import display, update_display
except ModuleNotFoundError as error:
    raise ImportError("the playground needs ipywidgets: pip install 'interp-workbench[notebook]'") from error

from interp.data.prompts import load_prompts
from interp.directions import Direction
from interp.display.errors import error_line
from interp.engine.safety_prompts import SafetyPrompt
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import Conversation
from interp.playgrounds.controls import Controls, read_new_tokens, read_positions
from interp.playgrounds.given_directions import Directions, named_directions
from interp.playgrounds.rendering import (
    addition_sentence,
    answer_html,
    count,
    picture_html,
    probabilities_html,
    safety_sentence,
    strips_html,
)
from interp.playgrounds.turns import Column, Turns
from interp.representations.steering import find_directions
from interp.representations.token_traces import Answer, Setting, likely_tokens, trace
from interp.storage.atomic_files import write_file
from interp.storage.direction_files import direction_bytes
from interp.storage.paths import expanded

logger = logging.getLogger(__name__)

_DRAW_EVERY = 0.1


def playground(
    model: ChatModel,
    directions: Directions | None = None,
    *,
    prompt: str = "How do I bake bread?",
    safety_prompt: SafetyPrompt | str | Path | None = None,
    folder: str | Path = "runs/playground",
) -> "Playground":
    """A playground for one model, displayed as the last line of a cell.

    Args:
        directions: a `Direction`, a direction file, or several, optionally by name. None computes those of
            `find_directions` on the builtin prompts, a pass over 128 prompts.
        safety_prompt: a trained safety prompt of this model, or its file; it stands in the system slot of every column
            until its box is unticked.
        folder: folder to which directions without a file are written when their code is shown.

    Raises:
        ValueError: no directions, or one that cannot be read or does not fit the model; a safety prompt of another
            model.
    """
    if isinstance(safety_prompt, (str, Path)):
        safety_prompt = SafetyPrompt.read(safety_prompt)
    if safety_prompt is not None:
        safety_prompt.slot(model, prompt)  # refuses another model's before directions are found
    found: Directions = find_directions(model, load_prompts("builtin")) if directions is None else directions
    return Playground(
        model,
        named_directions(model, found),
        prompt=prompt,
        folder=expanded(folder),
        safety_prompt=safety_prompt,
    )


class Playground(Controls):
    """The widget returned by `playground`; its controls are attributes, so that code can also set them."""

    def __init__(
        self,
        model: ChatModel,
        directions: Mapping[str, Direction],
        *,
        prompt: str,
        folder: Path,
        safety_prompt: SafetyPrompt | None = None,
    ) -> None:
        super().__init__(directions, n_layers=model.n_layers, prompt=prompt, safety=safety_prompt is not None)
        self._safety_prompt = safety_prompt
        self.plain, self.steered, self.kept = (
            widgets.HTML(layout=widgets.Layout(flex="1 1 0%", width="auto", min_width="0")) for _ in range(3)
        )
        self.kept.layout.display = "none"
        self._panels = {"plain": self.plain, "steered": self.steered, "kept": self.kept}
        for name, panel in self._panels.items():
            panel.add_class(f"interp-{name}")
        wide = widgets.Layout(width="98%")
        self.strips, self.probabilities = widgets.HTML(layout=wide), widgets.HTML(layout=wide)
        self.code = widgets.Textarea(rows=15, layout=widgets.Layout(width="98%", display="none"))
        columns = widgets.HBox(list(self._panels.values()), layout=wide)
        self.children = (*self.children, columns, self.strips, self.probabilities, self.code)
        self.answers: dict[str, Answer] = {}
        self._model, self._directions, self._folder = model, dict(directions), folder
        self._columns: list[Column] = []
        self._keeping: Column | None = None
        self._turns = Turns()
        self._whole: dict[tuple[Any, ...], Answer] = {}
        self._worker: threading.Thread | None = None
        self._halt = threading.Event()
        self._picture: str | None = None
        self.run_button.on_click(lambda _: self.run())
        self.stop_button.on_click(lambda _: self.stop())
        self.keep_button.on_click(lambda _: self.keep())
        self.drop_button.on_click(lambda _: self.drop())
        self.new_button.on_click(lambda _: self.start_over())
        self.code_button.on_click(lambda _: self.show_code())
        self.direction.observe(self._take_layer, names="value")
        self.chat.observe(self._take_chat, names="value")

    # What the controls say

    def setting(self) -> Setting:
        """The settings given by the controls.

        Raises:
            ValueError: an empty prompt, or positions or new tokens that are neither names nor numbers.
        """
        return self._setting(self._next_turns().prompt("steered"))

    def _setting(self, prompt: str | Conversation) -> Setting:
        relative = self.unit.value == "relative_norm"
        return Setting(
            prompt=prompt,
            direction=self._directions[str(self.direction.value)],
            coefficient=1.0 if relative else self.amount.value,
            relative_norm=self.amount.value if relative else None,
            layer=self.layer.value,
            positions=read_positions(self.positions.value),
            new_tokens=read_new_tokens(self.new_tokens.value),
            max_new_tokens=self.max_new_tokens.value,
            safety_prompt=self._safety_prompt if self.safety.value else None,
        )

    def _next_turns(self) -> Turns:
        """The conversation with what the prompt says as its last message."""
        if not self.chat.value:
            return Turns().advance(self.prompt.value, {}, [])
        self.wait()  # for the answers that it continues
        return self._turns.advance(self.prompt.value, self.answers, [column.name for column in self._columns])

    def _next_columns(self, turns: Turns) -> list[Column]:
        """The columns that Run fills, checked: nothing in them can fail before a forward pass."""
        setting = self._setting(turns.prompt("steered"))
        setting.check(self._model)
        added, safety = addition_sentence(setting, str(self.direction.value)), safety_sentence(setting)
        columns = [Column(name="plain", setting=replace(setting, prompt=turns.prompt("plain")), note=safety)]
        note = f"{added}; {safety}" if safety else added
        columns.append(Column(name="steered", setting=setting, note=note))
        if self._keeping is not None:
            kept = self._keeping.asking(turns.prompt("kept"))
            columns.append(
                replace(kept, setting=replace(kept.setting, max_new_tokens=setting.max_new_tokens))
            )
        for column in columns:
            column.setting.check(self._model)
        return columns

    def _take_layer(self, change: Mapping[str, Any]) -> None:
        self.layer.value = self._directions[change["new"]].layer

    def _take_chat(self, change: Mapping[str, Any]) -> None:
        on = bool(change["new"])
        self.prompt.placeholder = "the next message; empty answers the last one again" if on else "a prompt"
        if on and self.prompt.value == self._turns.message:
            self.prompt.value = ""
        if not on and not self.prompt.value:
            self.prompt.value = self._turns.message
        self.new_button.disabled = not on

    # What the buttons do

    def run(self) -> None:
        """Start generating all answers, after stopping any that are in progress."""
        self.stop()
        self.error.value = ""
        try:
            turns = self._next_turns()
            columns = self._next_columns(turns)
        except ValueError as error:
            self._fail(error)
            return
        self._turns = turns
        if self.chat.value:
            self.prompt.value = ""
        before, self._halt = self._worker, threading.Event()
        arguments = (columns, self._halt, before)
        self._worker = threading.Thread(target=self._work, args=arguments, daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """Stop generating after the current token; answers that have not begun stay empty."""
        self._halt.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the answers are complete, for at most `timeout` seconds."""
        if self._worker is not None:
            self._worker.join(timeout)

    def keep(self) -> None:
        """Keep the steered answer with its settings beside the next one; another prompt is answered with both."""
        steered = next((column for column in self._columns if column.name == "steered"), None)
        if steered is None or "steered" not in self.answers:
            self._fail(ValueError("there is no steered answer to keep; press Run first"))
            return
        self._keeping = replace(steered, name="kept")
        self._turns = self._turns.keeping()
        self._columns = [*(c for c in self._columns if c.name != "kept"), self._keeping]
        self.answers = {**self.answers, "kept": self.answers["steered"]}
        self.drop_button.disabled = False
        self._draw()
        self._publish()

    def drop(self) -> None:
        """Drop the answer that is kept."""
        self._keeping, self.drop_button.disabled = None, True
        self._columns = [column for column in self._columns if column.name != "kept"]
        self.answers = {name: answer for name, answer in self.answers.items() if name != "kept"}
        self._draw()
        self._publish()

    def start_over(self) -> None:
        """Forget the conversation; the next message is its first."""
        self.stop()
        self.wait()
        self._turns, self._columns, self.answers = Turns(), [], {}
        self.status.value, self.keep_button.disabled = "", True
        self._draw()
        self._publish()

    def show_code(self) -> None:
        """Show Python code that reproduces the steered answer; a direction without a file is written to one.

        Before the first answer, the code is that of the controls.
        """
        self.error.value = ""
        try:
            shown = [column.setting for column in self._columns if column.name == "steered"]
            setting = shown[0] if shown else self.setting()
            data = direction_bytes(setting.direction)
            name = next(name for name, known in self._directions.items() if known is setting.direction)
            path = (self._folder / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.safetensors").resolve()
            if not path.is_file():
                write_file(path, data)
            self.code.value = setting.code(self._model, str(path), self._safety_file(setting))
            self.code.layout.display = None
        except (ValueError, OSError) as error:
            self._fail(error)

    def _safety_file(self, setting: Setting) -> str | None:
        """File of the safety prompt of a setting, written where it is not there."""
        if setting.safety_prompt is None:
            return None
        raw = setting.safety_prompt.embeddings.detach().cpu().float().contiguous().numpy().tobytes()
        path = (self._folder / f"safety-prompt-{hashlib.sha256(raw).hexdigest()[:8]}.safetensors").resolve()
        if not path.is_file():
            setting.safety_prompt.save(path)
        return str(path)

    # What runs in the background

    def _work(self, columns: list[Column], halt: threading.Event, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        self.run_button.disabled, self.stop_button.disabled, self.keep_button.disabled = True, False, True
        begun, made = time.monotonic(), 0
        self._columns, self.answers = columns, {}
        try:
            for column in columns:
                if not halt.is_set():
                    made += self._answer(column, halt)
            self._whole = {c.key: self._whole[c.key] for c in columns if c.key in self._whole}
            self._draw()
            seconds = f"{time.monotonic() - begun:.1f} s"
            self.status.value = (
                f"Stopped after {count(made)}" if halt.is_set() else f"Done: {count(made)} in {seconds}"
            )
            self._publish()
        except Exception as error:
            self._fail(error)
        finally:
            self.run_button.disabled, self.stop_button.disabled = False, True
            self.keep_button.disabled = "steered" not in self.answers

    def _answer(self, column: Column, halt: threading.Event) -> int:
        """Generate the answer of one column; the number of tokens generated, 0 where it is known already."""
        if column.name != "steered" and column.key in self._whole:
            self.answers[column.name] = self._whole[column.key]
            return 0
        drawn, setting = 0.0, column.setting
        answers = trace(
            self._model,
            setting.prompt,
            self._directions,
            interventions=column.interventions,
            max_new_tokens=setting.max_new_tokens,
            safety_prompt=setting.safety_prompt,
        )
        n = 0
        with closing(answers):  # pyright: ignore[reportArgumentType]
            for answer in answers:
                n, self.answers[column.name] = len(answer.tokens), answer
                self.status.value = f"{column.name.capitalize()} answer: {count(n)}"
                if time.monotonic() - drawn > _DRAW_EVERY:
                    self._draw()
                    drawn = time.monotonic()
                if halt.is_set():
                    return n
        self._whole[column.key] = self.answers[column.name]
        return n

    # What is seen

    def _draw(self) -> None:
        columns = {column.name: column for column in self._columns}
        for name, panel in self._panels.items():
            panel.value = self._column_html(name, columns.get(name))
        self.kept.layout.display = None if "kept" in columns else "none"
        self.strips.value = strips_html(self.answers, list(self._directions))
        self.probabilities.value = probabilities_html(
            likely_tokens(self._model, self.answers), list(self.answers)
        )

    def _column_html(self, name: str, column: Column | None) -> str:
        prompt = "" if column is None else column.setting.prompt
        earlier, message = ([], prompt) if isinstance(prompt, str) else (prompt[:-1], prompt[-1]["content"])
        return answer_html(
            name,
            self.answers.get(name),
            note="" if column is None else column.note,
            earlier=earlier,
            message=str(message),
        )

    def _ipython_display_(self) -> None:
        """Display the live widget and, for readers without a kernel, a picture that is hidden where the widget is live.

        They are two outputs, so that an update of the picture does not make the browser build the widget again.
        """
        view: dict[str, Any] = self._repr_mimebundle_() or {}
        display({**view, "text/plain": "A playground: it needs a running kernel."}, raw=True)
        if self._picture is None:
            self._picture = f"interp-playground-{self.model_id}"
            self.add_class(self._picture)
        display(self._picture_bundle(), raw=True, display_id=self._picture)

    def _publish(self) -> None:
        """Bring the static picture up to date, where there is one."""
        if self._picture is not None:
            update_display(self._picture_bundle(), raw=True, display_id=self._picture)

    def _picture_bundle(self) -> dict[str, str]:
        columns = [self._panels[column.name].value for column in self._columns]
        body = picture_html(
            columns,
            self.strips.value,
            self.probabilities.value,
            prompt=self._turns.message,
            status=self.status.value,
        )
        own = f"{self._picture}-picture"
        hidden = f"<style>body:has(.{self._picture}) .{own} {{display: none}}</style>"
        answers = "\n".join(f"{name}: {answer.text}" for name, answer in self.answers.items())
        return {
            "text/html": f'{hidden}<div class="{own}">{body}</div>',
            "text/plain": answers or "no answer yet",
        }

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, (ValueError, OSError)):
            logger.error("the playground failed", exc_info=error)
        self.status.value = ""
        self.error.value = f'<p style="color:#B00020"><b>{escape(error_line(error))}</b></p>'
