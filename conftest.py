"""Code blocks of the README and the pages are tests: Python is run, what it printed is compared, commands are parsed.

A `text` block behind a `python` block is what that block prints; `...` in it stands for anything. A `console` block
holds commands: each `$ interp ...` must be one that the command line accepts, each `$ make ...` a target.
"""

import doctest
import os
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from tests import type_checks

type_checks.install()  # before anything of the package is imported
ROOT = Path(__file__).parent
if "PYTEST_XDIST_WORKER" in os.environ:  # workers with two threads each hold each other up
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "INTERP_STORE", "none"
)  # experiments in tests count their passes, and leave nothing here
_PRINTED = "printed_by_the_block_before"


class _Run(PythonEvaluator):
    """Runs a block and keeps what it prints for the block behind it."""

    def __call__(self, example: Example) -> None:
        with redirect_stdout(StringIO()) as printed:
            super().__call__(example)
        example.namespace[_PRINTED] = printed.getvalue()


def compare(example: Example) -> str | None:
    """What a `text` block has in common with what was printed; None is equality."""
    printed = example.namespace.pop(_PRINTED, None)
    if printed is None:
        return None  # text that no block printed, such as a diagram
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if doctest.OutputChecker().check_output(example.parsed.rstrip() + "\n", printed.rstrip() + "\n", flags):
        return None
    return f"the page says\n{example.parsed}\nand the block prints\n{printed}"


def parse_commands(example: Example) -> str | None:
    """The first command of a `console` block that is not accepted, and why."""
    for line in re.findall(r"^\$ (.*)$", str(example.parsed), flags=re.MULTILINE):
        for command in line.split(" | "):
            words = shlex.split(command, comments=True)
            problem = None
            if words[0] == "interp":
                problem = _refused_by_the_command(words[1:])
            elif words[0] == "make":
                problem = _no_target(words[1:])
            if problem:
                return f"{command}: {problem}"
    return None


def _refused_by_the_command(words: list[str]) -> str | None:
    from typer.main import get_command

    from interp.cli.main import app

    command: Any = get_command(app)
    name = "interp"
    while words and words[0] in getattr(command, "commands", {}):
        name, command, words = words[0], command.commands[words[0]], words[1:]
    if hasattr(command, "commands") and words and not words[0].startswith("-"):
        return f"no command {words[0]}; there are {', '.join(command.commands)}"
    if {"--help", "--version"} & set(words):
        return None
    try:
        command.make_context(name, list(words))
    except Exception as error:  # click's own, which Typer may have under another name
        return str(error) or type(error).__name__
    return None


def _no_target(words: list[str]) -> str | None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    missing = [word for word in words if "=" not in word and word not in targets]
    return f"no target {', '.join(missing)}" if missing else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Blocks that follow a fine-tune on the bundled model take half a minute: `make test-slow` runs them."""
    for item in items:
        example = getattr(item, "example", None)
        if example is not None and example.path.endswith("README.md"):
            section = example.document.text[: example.start].rpartition("\n## ")[2].partition("\n")[0]
            if section == "Track a fine-tune":
                item.add_marker("checkpoint")


def _here(_namespace: dict[str, object]) -> None:
    os.chdir(ROOT)


pytest_collect_file = Sybil(
    parsers=[
        CodeBlockParser("python", _Run()),
        CodeBlockParser("text", compare),
        CodeBlockParser("console", parse_commands),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/findings/*.md"],
    setup=_here,
).pytest()
