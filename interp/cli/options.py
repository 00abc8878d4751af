"""Shared parts of the commands: options, consoles, and exit codes after a user's mistake."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from interp.display.cards import Shown, Table

console = Console()
errors = Console(stderr=True)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="smollm2, smollm2-safe, a Hub id, a folder or a .gguf file.")
]
AdapterOption = Annotated[str | None, typer.Option(help="PEFT adapter on top: folder or Hub id.")]
PromptsOption = Annotated[
    str,
    typer.Option(
        "--prompts", "-p", help="builtin, a folder, or harmful=FILE,harmless=FILE (files or hub:owner/name)."
    ),
]
ColumnOption = Annotated[str | None, typer.Option(help="Text column of the prompt files.")]
SeedOption = Annotated[int, typer.Option(help="Of random directions and of splits that are cut here.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def user_errors() -> Iterator[None]:
    """End with one line and exit code 2 after a user's mistake, 130 after an interrupt; bugs keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        errors.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished stages are kept, the same command continues")
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))  # noqa: T201 (the command's output)


def print_lines(*lines: str) -> None:
    """Print lines unchanged: no wrapping, no colours, no markup."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_table(table: Table, *, title: str) -> None:
    """Print a table with its title."""
    from rich.table import Table as Grid

    grid = Grid(*map(str, table.header), title=escape(title), title_justify="left")
    for row in table.rows:
        grid.add_row(*(escape(str(cell)) for cell in row))
    console.print(grid)


def print_card(shown: Shown) -> None:
    """Print an object's card, as in a Python session."""
    print_lines(repr(shown))
