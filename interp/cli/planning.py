"""What a run would cost, before anything is loaded: `plan`."""

from typing import Annotated

import typer
from rich.table import Table

from interp.cli.experiments import settings_given
from interp.cli.options import (
    ColumnOption,
    JsonOption,
    PromptsOption,
    console,
    print_json,
    print_lines,
    status,
    takes_model,
    user_errors,
)
from interp.models.sources import ModelSource


@takes_model(without=("adapter", "delta", "thinking", "batch_size"))
def plan(
    experiment: Annotated[str, typer.Argument(help="collect, or one of `interp list` that has a plan.")],
    model: ModelSource,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the experiment, name=value; may be repeated."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's speeds again (ten seconds).")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Tokens, passes, memory, disk and time of a run, before anything is loaded.

    Of the model only its configuration and tokenizer are read. Speeds are measured at the first plan on a machine and
    kept in the cache folder. Times are of an otherwise idle machine, without loading, and at most: what the run
    decides itself, such as the end of a reply, is counted at its bound, which is said.

    Example: `interp plan refusal-direction --model smollm2-safe --set sweep=exhaustive`, or
    `interp plan track --model smollm2 --set checkpoints=12`
    """
    with user_errors():
        from interp.engine.machine_speed import is_measured
        from interp.experiments.plans import plan_settings, planned

        settings = settings_given(plan_settings(experiment), given or [])
        known = is_measured(dtype=model.dtype or "float32", device=model.device or "cpu")
        with status("planning" if known and not measure else "measuring this machine, once"):
            found = planned(
                experiment, model=model, prompts=prompts, column=column, settings=settings, again=measure
            )
        seconds, total = found.seconds, found.work
        if json_output:
            print_json(
                {
                    "experiment": experiment,
                    "model": found.model,
                    "dtype": found.dtype,
                    "weights": found.size.weights,
                    "read_tokens": total.run_tokens - total.gradient_tokens,
                    "decoded_tokens": total.decoded_tokens,
                    "gradient_tokens": total.gradient_tokens,
                    "passes": found.passes,
                    "memory_bytes": found.memory_bytes,
                    "disk_bytes": total.stored_bytes,
                    "seconds": {**seconds, "total": sum(seconds.values())},
                    "speed": {
                        "reading": found.speed.reading,
                        "decoding": found.speed.decoding,
                        "training": found.speed.training,
                    },
                    "bounds": found.bounds,
                }
            )
            return
        table = Table(
            "stage", "tokens read", "tokens written", "seconds", title=f"{experiment}, {found.model}"
        )
        for name, work in found.stages.items():
            table.add_row(name, f"{work.run_tokens:,}", f"{work.decoded_tokens:,}", f"{seconds[name]:,.0f}")
        table.add_row(
            "total", f"{total.run_tokens:,}", f"{total.decoded_tokens:,}", f"{sum(seconds.values()):,.0f}"
        )
        console.print(table)
        print_lines(
            f"{found.size.weights / 1e6:,.0f}M weights in {found.dtype}; {found.passes:,} passes; memory "
            f"{found.memory_bytes / 1e9:,.1f} GB, disk {total.stored_bytes / 1e6:,.1f} MB",
            f"at {found.speed.reading / 1e9:,.0f} GFLOP/s reading, {found.speed.decoding / 1e9:,.0f} decoding and "
            f"{(found.speed.training or found.speed.reading) / 1e9:,.0f} training, as measured on this machine",
            f"counted at its bound: {found.bounds}",
        )
