"""The `interp` command: one file per command group, assembled here.

Imports of torch and the models happen inside the commands: `interp --help` answers at once.
"""

import logging
from typing import Annotated

import typer
from rich.logging import RichHandler

from interp.cli import (
    activations,
    data,
    detect,
    evaluating,
    experiments,
    exporting,
    guard,
    judging,
    planning,
    planting,
    runs,
    steering,
    store,
    tracking,
)
from interp.cli.options import EXIT_CODES, errors, print_lines, set_quiet

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Find, steer and track harmfulness and refusal inside chat models.",
    epilog=EXIT_CODES,
)


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version as installed_version

        print_lines(f"interp {installed_version('interp-workbench')}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Results and errors only: no progress, no warnings.")
    ] = False,
    version: Annotated[  # noqa: ARG001 (its callback prints it)
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Set up logging for every command."""
    set_quiet(quiet)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False, show_time=False)],
    )
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.getLogger("interp").setLevel(level)


app.command()(experiments.demo)
app.command("list")(experiments.list_experiments)
app.command()(experiments.run)
app.command()(planning.plan)
app.command()(experiments.plot)
app.add_typer(runs.app, name="runs")
app.command()(steering.tokens)
app.command()(steering.steer)
app.command()(activations.collect)
app.command()(activations.directions)
app.command()(exporting.export)
app.add_typer(data.app, name="data")
app.command("eval")(evaluating.evaluate)
app.add_typer(guard.app, name="guard")
app.add_typer(detect.app, name="detect")
app.add_typer(store.app, name="store")
app.command()(judging.judge)
app.command("track")(tracking.track_series)
app.command("train-safe")(tracking.train_safe)
app.command()(planting.plant)
