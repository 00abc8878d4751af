"""The `interp` command: one file per command group, assembled here.

Imports of torch and the models happen inside the commands: `interp --help` answers at once.
"""

import logging
from typing import Annotated

import typer
from rich.logging import RichHandler

from interp.cli import experiments, guard, runs, steering, tracking
from interp.cli.options import errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Find, steer and track harmfulness and refusal inside chat models.",
)


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")] = False,
) -> None:
    """Set up logging for every command."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False, show_time=False)],
    )
    logging.getLogger("interp").setLevel(logging.INFO if verbose else logging.WARNING)


app.command()(experiments.demo)
app.command("list")(experiments.list_experiments)
app.command()(experiments.run)
app.command()(experiments.plot)
app.add_typer(runs.app, name="runs")
app.command()(steering.tokens)
app.command()(steering.steer)
app.command()(steering.export)
app.add_typer(guard.app, name="guard")
app.command("track")(tracking.track_series)
app.command("train-safe")(tracking.train_safe)
