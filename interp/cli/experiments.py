"""Running, listing and drawing experiments: `demo`, `list`, `run`, `plot`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from interp.cli.options import (
    AdapterOption,
    ColumnOption,
    JsonOption,
    ModelOption,
    PromptsOption,
    SeedOption,
    console,
    errors,
    print_json,
    print_lines,
    print_table,
    user_errors,
)
from interp.experiments import EXPERIMENTS


def demo(
    model: ModelOption = "smollm2-safe",
    adapter: AdapterOption = None,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Where refusal and harmfulness live in a model, and what happens when they are steered.

    Example: `interp demo --model Qwen/Qwen2.5-0.5B-Instruct --out runs/qwen`
    """
    _run_experiment("demo", model, adapter, prompts, column, out, seed, json_output)


def list_experiments(json_output: JsonOption = False) -> None:
    """List the experiments, bundled models and prompt sets.

    Example: `interp list`
    """
    from interp.experiments.running import experiment
    from interp.models.loading import BUNDLED_MODELS

    found = {name: experiment(name).summary for name in EXPERIMENTS}
    prompts = {
        "builtin": "600 matched pairs in ten harm categories; 60 borderline-safe test prompts, 150 to train on"
    }
    if json_output:
        print_json({"experiments": found, "models": BUNDLED_MODELS, "prompts": prompts})
        return
    for title, entries in (("experiments", found), ("models", BUNDLED_MODELS), ("prompt sets", prompts)):
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, summary in entries.items():
            table.add_row(f"[bold]{name}[/]", summary)
        console.print(table)


def run(
    experiment: Annotated[str, typer.Argument(help="One of `interp list`.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="smollm2, smollm2-safe, a Hub id, a folder, a .gguf file; the experiment's default if not given.",
        ),
    ] = None,
    adapter: AdapterOption = None,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/EXPERIMENT when not given.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the experiment, name=value; may be repeated."),
    ] = None,
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Run an experiment; run again with the same --out, it continues where it was stopped.

    Example: `interp run refusal-direction --model smollm2-safe --set kl_threshold=0.5 --out runs/refusal`
    """
    target = out or Path("runs") / experiment
    _run_experiment(experiment, model, adapter, prompts, column, target, seed, json_output, settings)


def plot(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    png: Annotated[
        Path | None, typer.Option(help="Also write PNG files to this folder (needs kaleido and a Chrome).")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Also write an HTML file per figure to this folder; they load Plotly from its CDN."
        ),
    ] = None,
) -> None:
    """Draw the figures and report of a stored run again, without a model.

    Example: `interp plot runs/demo --png figures/demo --html figures/demo`
    """
    with user_errors():
        from interp.experiments.running import open_run
        from interp.storage.atomic_files import write_file

        stored = open_run(folder)
        for name, figure in stored.figures().items():
            write_file(folder / "figures" / f"{name}.json", str(figure.to_json()).encode())
            if png is not None:
                write_file(png / f"{name}.png", _png(figure))
            if html is not None:
                write_file(html / f"{name}.html", figure.to_html(include_plotlyjs="cdn").encode())
        write_file(folder / "report.html", stored.report().encode())
        print_lines(f"report: {(folder / 'report.html').resolve()}")


def _png(figure: Any) -> bytes:
    try:
        return figure.to_image(format="png", scale=2)
    except Exception as error:  # kaleido's own classes, which do not exist without kaleido
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot draw a PNG ({reason}); pip install 'interp-workbench[notebook]' and install Chrome or Chromium"
        ) from error


def _settings(kind: Any, given: list[str]) -> dict[str, Any]:
    """Parse `name=value` settings; a value is JSON where it parses as JSON, else text."""
    found: dict[str, Any] = {}
    known = [name for name in kind.__dataclass_fields__ if name != "seed"]
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set {item!r}: give name=value, name one of {', '.join(known)}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _run_experiment(
    name: str,
    model: str | None,
    adapter: str | None,
    prompts: str,
    column: str | None,
    out: Path,
    seed: int,
    as_json: bool,
    settings: list[str] | None = None,
) -> None:
    with user_errors():
        from interp.experiments.running import experiment

        chosen = experiment(name)
        config = chosen.configure({**_settings(chosen.config, settings or []), "seed": seed})
        if chosen.default_model is None:
            if model is not None:
                raise ValueError(f"{name} needs no model, got --model {model}; leave it out")
            finished = chosen.run(config=config, out=out, show_progress=sys.stderr.isatty())
        else:
            from interp.data.prompts import load_prompts
            from interp.models.chat_model import load

            loaded_prompts = load_prompts(prompts, column=column, seed=seed)
            with errors.status(f"loading {model or chosen.default_model}"):
                loaded = load(model or chosen.default_model, adapter=adapter)
            finished = chosen.run(loaded, loaded_prompts, config, out=out, show_progress=sys.stderr.isatty())
        if as_json:
            print_json(json.loads((out / "result.json").read_text(encoding="utf-8")))
            return
        shown = chosen.table(finished.result)
        print_table(shown, title=f"{shown.title}, {finished.provenance.model_name}, 95% intervals")
        print_lines(*finished.verdicts())
        print_lines(f"report: {(out / 'report.html').resolve()}")
