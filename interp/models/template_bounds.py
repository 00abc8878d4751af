"""Chat templates that would fill the memory or never end: tried once on a short message, with every value measured.

A template is a program of anybody's making. Jinja's sandbox keeps it from the machine's files, but not from its memory:
`{{ 'x' * 10**10 }}`, nested loops and strings that double render as long as there is any. Here a template is run
before transformers compiles it, in the same environment, where products, powers, joined texts, results of filters and
methods, and what is rendered so far are refused beyond a length. Every turn of a loop and every call looks at the time,
so that loops in loops and macros that call themselves are refused as well (Jinja bounds a range alone).

What it is not: a limit on what the template does with longer conversations than the short message.
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jinja2.compiler import CodeGenerator
from jinja2.nodes import Call, Concat, EnvironmentAttribute, For
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

LONGEST = 10_000_000
"""Characters that a rendered conversation may have: several times the longest context of any model."""
MOST_SECONDS = 10.0
"""Processor time that a template may take over a short message; models' own take milliseconds."""


class _TooLong(Exception):
    """Raised inside a template whose text grows beyond `LONGEST`."""


class _TooSlow(Exception):
    """Raised inside a template that takes more than `MOST_SECONDS`."""


def check_length(text: str) -> None:
    """Raise a ValueError where a rendered conversation is longer than any context."""
    if len(text) > LONGEST:
        raise ValueError(_message(f"renders {len(text):,} characters"))


@lru_cache(maxsize=64)
def check_template(template: str, special_tokens: tuple[tuple[str, str], ...]) -> None:
    """Run a template on a short message; refuse one whose texts grow beyond `LONGEST`, or that takes `MOST_SECONDS`.

    What else goes wrong in it is left to the rendering itself.

    Args:
        special_tokens: the tokenizer's, by their names in templates.

    Raises:
        ValueError: a template that renders too much, or does not come to its end.
    """
    known = chat_template_utils._compile_jinja_template("").environment
    environment = _Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[type(part) for part in known.extensions.values()]
    )
    environment.filters |= {name: environment.measured(function) for name, function in known.filters.items()}
    environment.globals |= known.globals
    messages = [{"role": "user", "content": "a short message"}]
    rendered = 0
    try:
        for part in environment.from_string(template).generate(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **dict(special_tokens)
        ):
            rendered += len(part)
            if rendered > LONGEST:
                raise _TooLong
    except _TooLong:
        raise ValueError(_message("renders a text that grows without end")) from None
    except _TooSlow:
        raise ValueError(_message("loops without end", f"{MOST_SECONDS:g} s for a short message")) from None
    except Exception:  # of the template's own, which its rendering says
        return


def _message(does: str, limit: str = f"{LONGEST:,}") -> str:
    return f"the chat template {does}, and the limit is {limit}; take the model's own template, or give another one"


def _checked(value: Any) -> Any:
    if isinstance(value, (str, bytes, list, tuple)) and len(value) > LONGEST:
        raise _TooLong
    return value


def _check_numbers(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Refuse widths and counts, such as those of `center` and `indent`, and texts put in for each letter of another."""
    values = [*args, *options.values()]
    if any(isinstance(value, int) and abs(value) > LONGEST for value in values):
        raise _TooLong
    texts = [len(value) for value in values if isinstance(value, str)]
    if len(texts) > 2 and texts[0] * max(texts[1:]) > LONGEST * 100:  # replace: at most so much
        raise _TooLong


class _Code(CodeGenerator):
    def visit_For(self, node: For, frame: Any) -> None:
        node.iter = Call(EnvironmentAttribute("timed"), [node.iter], [], None, None).set_lineno(node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates, in which no value grows beyond `LONGEST` and loops end; for one rendering."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    code_generator_class = _Code

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._began = time.thread_time()

    def timed(self, values: Any) -> Iterator[Any]:
        """What a loop runs over, while there is time."""
        for value in values:
            self._go_on()
            yield value

    def measured(self, function: Any) -> Any:
        """A filter whose numbers and results are within bounds; its marks for Jinja stay."""

        def measured(*args: Any, **options: Any) -> Any:
            _check_numbers(args, options)
            self._go_on()
            return _checked(function(*args, **options))

        vars(measured).update(vars(function) if hasattr(function, "__dict__") else {})
        return measured

    def _go_on(self) -> None:
        if time.thread_time() - self._began > MOST_SECONDS:
            raise _TooSlow

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, bytes, list, tuple)) and isinstance(times, int):
                    if len(text) * times > LONGEST:
                        raise _TooLong
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > LONGEST:
                raise _TooLong
        self._go_on()
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return _checked(super().call_binop(context, operator, left, right))

    def joined(self, parts: tuple[Any, ...]) -> str:
        """`~`: the parts as text, one behind the other."""
        return _checked("".join(map(str, parts)))

    def call(self, context: Any, obj: Any, *args: Any, **options: Any) -> Any:  # pyright: ignore
        _check_numbers(args, options)
        self._go_on()
        return _checked(super().call(context, obj, *args, **options))


def _check_widths(layout: str) -> None:
    """Refuse a layout such as `%10000000000d`."""
    digits = "".join(char if char.isdigit() else " " for char in layout).split()
    if any(len(number) > 7 for number in digits):
        raise _TooLong
