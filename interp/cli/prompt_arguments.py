"""Prompts, layers and other lists as they are typed on a command line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from interp.models.layers import MAX_LAYERS
from interp.storage.paths import expanded

if TYPE_CHECKING:  # reading prompts needs no torch, printing help not even pandas
    from interp.data.prompt_sets import Prompts

PROMPTS_HELP = (
    "An instruction; a file with a prompt a row (.jsonl, .json, .csv, .tsv, .parquet, .txt, or hub:owner/name); "
    "data:NAME[:KIND] of `interp data ls`; or - for standard input, a prompt a line."
)


def is_prompt_file(argument: str) -> bool:
    """Whether an argument names a file or standard input rather than being an instruction itself.

    It does when it is `-`, `hub:...`, `data:...` in one word, an existing file with a known ending, or one word with a
    known ending.
    """
    from interp.data.files import SUFFIXES

    named = argument.startswith("data:") and len(argument.split()) == 1 and len(argument) > len("data:")
    if argument == "-" or argument.startswith("hub:") or named:
        return True
    if not argument.endswith(SUFFIXES):
        return False
    return len(argument.split()) == 1 or _is_there(argument, Path.is_file)


def _is_there(argument: str, check: Callable[[Path], bool]) -> bool:
    """Whether an argument is the path of such a thing; an instruction may be longer than any path."""
    try:
        return "\n" not in argument and check(expanded(argument))
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, no such user
        return False


def prompts_of(argument: str, *, column: str | None = None) -> "Prompts":
    """The prompts that an argument stands for, as `PROMPTS_HELP` says.

    Raises:
        ValueError: no such file, an unreadable one, or no prompts in it.
    """
    from interp.data.files import prompt_lines
    from interp.data.prompt_sets import as_prompts
    from interp.data.prompts import read_prompts

    if not is_prompt_file(argument):
        if column is not None:
            raise ValueError(
                f"--column {column} belongs to a prompt file; {argument!r:.60} is an instruction"
            )
        if "/" in argument and _is_there(argument, Path.is_dir):
            raise ValueError(f"{argument} is a folder; give an instruction or a file of prompts")
        return as_prompts([argument], source="command line")
    if argument != "-":
        return read_prompts(argument, column=column)
    lines = list(prompt_lines(sys.stdin, "standard input", column=column))
    if not lines:
        raise ValueError("standard input holds no prompts; give one a line")
    return as_prompts(lines, source="standard input")


def layers_of(text: str) -> list[int]:
    """Layers written as `8,12,16`, `10-20` or `-1`, of which negative ones count from the end.

    Raises:
        ValueError: not numbers, or a range that descends or goes too far.
    """
    layers: list[int] = []
    for item in text.split(","):
        # From the second character on, as the first may be a minus.
        _, dash, last = item.strip()[1:].partition("-")
        first = item.strip().removesuffix(dash + last)
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise ValueError(f"--layers {text!r}: give numbers or ranges, such as 8,12,16 or 10-20") from None
        if not low <= high <= MAX_LAYERS:
            raise ValueError(f"--layers {text!r}: a range ascends, to {MAX_LAYERS:,} at most; got {item}")
        layers += range(low, high + 1)
    return layers


def names_of(text: str) -> list[str]:
    """Names written with commas between them, e.g. sites or token roles."""
    return [name.strip() for name in text.split(",") if name.strip()]


def new_tokens_of(text: str | None) -> "str | int | None":
    """Generated tokens to act on: `none`, `all`, or a number of them.

    Raises:
        ValueError: anything else.
    """
    if text is None or text in ("none", "all"):
        return text
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise ValueError(f"--new-tokens must be none, all or a number of 0 or more, got {text!r}")
    return count
