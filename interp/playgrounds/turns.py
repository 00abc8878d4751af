"""The playground's columns and the conversation that each of them has had.

A column is a way of answering: plain, steered, or a steered setting that is kept for comparison. With the conversation
kept, a new message ends the turn before it, and each column continues with its own earlier answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interp.engine.interventions import Intervention
from interp.models.prompt_inputs import Conversation, Message
from interp.representations.token_traces import Answer, Setting


@dataclass(frozen=True, eq=False, kw_only=True)
class Column:
    """One column: how its answer to the present message is made."""

    name: str
    """`plain`, `steered` or `kept`."""
    setting: Setting
    """Settings, with this column's own conversation as the prompt."""
    note: str = ""
    """What is added, as a sentence."""

    @property
    def interventions(self) -> list[Intervention]:
        """What acts on the model while the answer is made."""
        return [] if self.name == "plain" else [self.setting.intervention()]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two columns whose answers are equal, whatever they are called."""
        if self.name == "plain":
            return (
                "plain",
                repr(self.setting.prompt),
                self.setting.max_new_tokens,
                id(self.setting.safety_prompt),
            )
        s = self.setting
        where = (s.layer, repr(s.positions), s.new_tokens, s.coefficient, s.relative_norm)
        return (id(s.direction), *where, repr(s.prompt), s.max_new_tokens, id(s.safety_prompt))

    def asking(self, prompt: str | Conversation) -> "Column":
        """The same column with another prompt."""
        return replace(self, setting=replace(self.setting, prompt=prompt))


@dataclass(kw_only=True)
class Turns:
    """A conversation in several columns: earlier turns of each, and the message that is answered now."""

    earlier: dict[str, tuple[Message, ...]] = field(default_factory=dict)
    """Turns before the present one, by column."""
    message: str = ""
    """The present message; empty before the first."""

    def advance(self, message: str, answers: Mapping[str, Answer], columns: Sequence[str]) -> "Turns":
        """The conversation with the present turn ended and this message next; an empty one is the last one again.

        Raises:
            ValueError: no message, or a column without an answer to the present one.
        """
        if not message.strip():
            if not self.message:
                raise ValueError("the prompt is empty; type one")
            return self
        if not self.message:
            return Turns(message=message)
        missing = [name for name in columns if name not in answers]
        if missing:
            raise ValueError(
                f"the last message has no {missing[0]} answer to continue from; leave the prompt empty to answer it "
                "again, or press Start over"
            )
        asked: Message = {"role": "user", "content": self.message}
        earlier = {
            name: (*self.earlier.get(name, ()), asked, {"role": "assistant", "content": answers[name].text})
            for name in columns
        }
        return Turns(earlier=earlier, message=message)

    def prompt(self, column: str) -> str | Conversation:
        """What a column answers: the message, or its conversation that ends with it."""
        earlier = self.earlier.get(column, ())
        return [*earlier, {"role": "user", "content": self.message}] if earlier else self.message

    def keeping(self) -> "Turns":
        """The conversation with the steered column's turns for the kept one as well."""
        steered = self.earlier.get("steered", ())
        return replace(self, earlier={**self.earlier, "kept": steered} if steered else self.earlier)
