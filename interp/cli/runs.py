"""`interp runs`: list stored runs, show one, compare two."""

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.options import JsonOption, print_card, print_json, user_errors

app = typer.Typer(no_args_is_help=True, help="Stored runs: list them, show one, compare two.")


@app.command("ls")
def list_runs(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders to look in; runs/ and figures/ here and up to two folders above if none."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List stored runs, newest first: folder, experiment, model, prompts, date, headline.

    Example: `interp runs ls figures`
    """
    with user_errors():
        from interp.experiments.running import runs

        found = runs(*(places or ()))
        if json_output:
            header = found.table.header
            print_json([dict(zip(header, row, strict=True)) for row in found.table.rows])
            return
        print_card(found)


@app.command("show")
def show_run(
    folder: Annotated[Path, typer.Argument(help="A run folder.")], json_output: JsonOption = False
) -> None:
    """Show one stored run: what was asked, the main numbers, what the data say.

    Example: `interp runs show figures/demo`
    """
    with user_errors():
        from interp.experiments.running import open_run
        from interp.storage.run_folders import stored_json

        stored = open_run(folder)
        if json_output:
            print_json(stored_json(folder))
            return
        print_card(stored)


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder.")],
    second: Annotated[Path, typer.Argument(help="Another run of the same experiment.")],
    json_output: JsonOption = False,
) -> None:
    """Compare two runs: what differs in model, prompts and settings, and in the results with their intervals.

    Example: `interp runs compare figures/demo figures/demo-qwen2.5-coder-0.5b`
    """
    with user_errors():
        from interp.experiments.comparing import compare_runs

        found = compare_runs(first, second)
        if json_output:
            payload: dict[str, Any] = {"settings": found.settings, "results": found.results}
            print_json(payload)
            return
        print_card(found)
