"""`interp eval`: a task of Inspect on a steered model, by Inspect's own runner."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.options import JsonOption, print_json, print_lines, print_table, status, user_errors
from interp.display.tables import Table

OWN = ("refusal", "choices")
"""Tasks of interp, which need no file."""


def evaluate(
    task: Annotated[
        str, typer.Argument(help="refusal, choices, or any task that Inspect knows: a file, or package/task.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A model of interp, with options after ?: smollm2-safe?direction=F&coefficient=-1.",
        ),
    ] = "smollm2-safe",
    arguments: Annotated[
        list[str] | None, typer.Option("-T", help="An argument of the task, name=value; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Length of replies.")] = 64,
    log_dir: Annotated[Path, typer.Option("--log-dir", help="Folder of logs.")] = Path("logs"),
    json_output: JsonOption = False,
) -> None:
    """Run a task with Inspect and print its rates; the log opens in `inspect view`.

    Example: `interp eval refusal -T kind=harmful --model "smollm2-safe?direction=refusal.safetensors&ablate=1"`
    """
    with user_errors():
        try:
            import inspect_ai
        except ImportError as error:
            raise ValueError("interp eval needs Inspect: pip install 'interp-workbench[eval]'") from error
        from interp.cli import inspect_registry
        from interp.evaluation.inspect_bridge import parse_model_name, steering
        from interp.evaluation.inspect_logs import read_rates
        from interp.models.sources import ModelSource

        name, options = parse_model_name(model)
        ModelSource(name, adapter=options.get("adapter"), revision=options.get("revision")).check()
        steering(options)
        own = task.removeprefix("interp/")
        given = dict(_argument(item) for item in arguments or [])
        chosen: Any = task
        if own in OWN:
            try:
                chosen, given = getattr(inspect_registry, own)(**given), {}
            except TypeError as error:  # an argument that the task does not have
                raise ValueError(f"{own}: {error}") from None
        with status(f"evaluating {task}"):
            try:
                (log,) = inspect_ai.eval(
                    chosen,
                    model=f"interp/{model}",
                    task_args=given,
                    limit=limit,
                    max_tokens=max_tokens,
                    log_dir=str(log_dir),
                    display="none",
                )
            except Exception as error:  # Inspect's own class of what a user did wrong is private
                if type(error).__name__ != "PrerequisiteError":
                    raise
                raise ValueError(
                    f"{task}: {str(error).removeprefix('Error: ')} Give {', '.join(OWN)}, a file of tasks, or "
                    "package/task"
                ) from None
        if log.status != "success":
            message = "" if log.error is None else f": {log.error.message}"
            raise ValueError(f"{task} ended with status {log.status}{message}; its log is {log.location}")
        rates = read_rates(log)
        if json_output:
            values = {
                name: {"value": e.value, "n": e.n, "low": e.low, "high": e.high, "missing": e.missing}
                for name, e in rates.items()
            }
            print_json({"task": task, "model": f"interp/{model}", "log": log.location, "scores": values})
            return
        rows = [[name, estimate, estimate.missing] for name, estimate in rates.items()]
        print_table(
            Table(header=["scorer", "mean", "not scored"], rows=rows), title=f"{task}, interp/{model}"
        )
        print_lines(f"log: {log.location}")


def _argument(item: str) -> tuple[str, Any]:
    name, equals, text = item.partition("=")
    if not equals:
        raise ValueError(f"-T {item!r}: give name=value")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text
