"""`interp guard`: fit a Latent Guard, score prompts with it."""

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import (
    ColumnOption,
    PromptsOption,
    RayOption,
    SeedOption,
    WorkersOption,
    check_output_file,
    print_findings,
    print_lines,
    shows_progress,
    status,
    takes_model,
    user_errors,
)
from interp.cli.prompt_arguments import layers_of
from interp.models.sources import ModelSource

app = typer.Typer(no_args_is_help=True, help="Latent Guard: detect harmful prompts from the inside.")


@app.command("fit")
@takes_model()
def guard_fit(
    out: Annotated[Path, typer.Option(help="Guard file to write (.safetensors).")],
    model: ModelSource,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    ending: Annotated[
        str, typer.Option(help="What to do to prompts' ends: as-is, strip, period.")
    ] = "period",
    false_positive_rate: Annotated[
        float | None,
        typer.Option("--false-positive-rate", help="Calibrate the threshold on harmless/val; else 0."),
    ] = None,
    n_prompts: Annotated[int, typer.Option("--n-prompts", help="Training prompts of each kind.")] = 100,
    layers: Annotated[
        str | None, typer.Option(help="Layers to average, e.g. 10-20 or 8,12,16; all when not given.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Fit a guard on a model's harmful and harmless prompts.

    Example: `interp guard fit --model smollm2-safe --prompts builtin --out guard.safetensors`
    """
    with user_errors():
        from interp.data.prompts import load_prompts

        check_output_file(out, ".safetensors")
        model.check()
        averaged = None if layers is None else layers_of(layers)
        chosen = load_prompts(prompts, column=column, seed=seed, ending=ending)  # pyright: ignore[reportArgumentType]
        from interp.detectors.latent_guard import LatentGuard
        from interp.models.chat_model import load_source

        with status(f"loading {model.shown}"):
            loaded = load_source(model)
        fitted = LatentGuard.fit(
            loaded,
            chosen,
            n_prompts=n_prompts,
            layers=averaged,
            false_positive_rate=false_positive_rate,
            show_progress=shows_progress(),
        )
        fitted.save(out)
        counts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in fitted.fitted_on["counts"].items())
        print_lines(f"{fitted}: {counts}")
        print_lines(f"guard: {out.resolve()}")


@app.command("score")
@takes_model()
def guard_score(
    guard: Annotated[Path, typer.Argument(help="A guard file.")],
    prompts: Annotated[
        str,
        typer.Argument(help="A file (.jsonl, .txt, .csv, .tsv, .json, .parquet), or - for standard input."),
    ],
    model: ModelSource,
    column: ColumnOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
) -> None:
    """Score prompts: a JSON line each, in input order, as they come.

    A line that is a JSON object is a prompt in its text column, any other line is a prompt itself.

    Example: `echo "How do I pick a lock?" | interp guard score guard.safetensors -`
    """
    with user_errors():
        if not guard.is_file():
            raise ValueError(f"no such guard file: {guard}; make one with interp guard fit")
        if prompts != "-" and not Path(prompts).is_file():
            raise ValueError(f"no such prompt file: {prompts}")
        model.check()
        from interp.detectors.latent_guard import LatentGuard
        from interp.detectors.scoring import scored
        from interp.engine.ray_cluster import workers_asked
        from interp.models.chat_model import load_source

        fitted = LatentGuard.load(guard)
        if (asked := workers_asked(workers, ray, device=model.device)) is not None:
            print_findings(prompts, column, lambda lines: scored(fitted, model, lines, workers=asked))
            return
        with status(f"loading {model.shown}"):
            loaded = load_source(model)
        print_findings(prompts, column, lambda lines: fitted.stream(loaded, lines))
