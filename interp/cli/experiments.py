"""Running, listing and drawing experiments: `demo`, `list`, `run`, `plot`."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from interp.cli.judging import print_judgements
from interp.cli.options import (
    MODEL_HELP,
    ColumnOption,
    JsonOption,
    JudgesOption,
    PromptsOption,
    RayOption,
    SeedOption,
    WorkersOption,
    console,
    print_json,
    print_lines,
    print_table,
    shows_progress,
    status,
    takes_model,
    user_errors,
)
from interp.cli.prompt_arguments import names_of
from interp.experiments import EXPERIMENTS, SUMMARIES
from interp.models.sources import BUNDLED_MODELS, ModelSource


@takes_model()
def demo(
    model: ModelSource,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    judges: JudgesOption = None,
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Where refusal and harmfulness live in a model, and what happens when they are steered.

    Example: `interp demo --model Qwen/Qwen2.5-0.5B-Instruct --out runs/qwen`
    """
    with user_errors():
        _run_experiment(
            "demo", model, prompts, column, out, {"seed": seed}, json_output, judges=names_of(judges or "")
        )


def list_experiments(json_output: JsonOption = False) -> None:
    """List the experiments, bundled models and prompt sets.

    Example: `interp list`
    """
    prompts = {
        "builtin": "600 matched pairs in ten harm categories; 60 borderline-safe test prompts, 150 to train on",
        "advbench+alpaca": "harmful and harmless prompts of named public sets, which `interp data ls` lists",
    }
    if json_output:
        print_json({"experiments": SUMMARIES, "models": BUNDLED_MODELS, "prompts": prompts})
        return
    for title, entries in (("experiments", SUMMARIES), ("models", BUNDLED_MODELS), ("prompt sets", prompts)):
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, summary in entries.items():
            table.add_row(f"[bold]{name}[/]", summary)
        console.print(table)


def _known_experiments(beginning: str) -> list[str]:
    return [name for name in EXPERIMENTS if name.startswith(beginning)]


@takes_model(
    default="", flags=("--model", "--aligned", "-m"), help=f"{MODEL_HELP}; the experiment's own if not given."
)
def run(
    experiment: Annotated[
        str, typer.Argument(help="One of `interp list`.", autocompletion=_known_experiments)
    ],
    model: ModelSource,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/EXPERIMENT when not given.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the experiment, name=value; may be repeated."),
    ] = None,
    finetuned: Annotated[
        str | None,
        typer.Option(
            help="The model that `recovery` recovers, beside the aligned one: a folder, an adapter or a Hub id."
        ),
    ] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="List the experiment's settings, and run nothing.")
    ] = False,
    source: Annotated[
        Literal["computed", "stored", "any"],
        typer.Option(
            help="computed; stored: only open a stored run of exactly this question, from --out or runs/ and "
            "figures/; any: open it where there is one, else compute."
        ),
    ] = "computed",
    judges: JudgesOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Run an experiment; run again with the same --out, it continues where it was stopped.

    Example: `interp run refusal-direction --model smollm2-safe --set kl_threshold=0.5 --out runs/refusal`
    """
    with user_errors():
        from interp.experiments.running import experiment as find_experiment
        from interp.experiments.settings import settings_of, settings_table

        kind = find_experiment(experiment).config
        if settings:
            if json_output:
                print_json([setting._asdict() for setting in settings_of(kind)])
            else:
                print_table(settings_table(kind), title=f"settings of {experiment}, for --set name=value")
            return
        _run_experiment(
            experiment,
            model,
            prompts,
            column,
            out,
            {
                **settings_given(kind, given or []),
                **({} if finetuned is None else {"finetuned": finetuned}),
                "seed": seed,
            },
            json_output,
            source,
            names_of(judges or ""),
            (workers, ray),
        )


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
        from interp.display import images  # plotly only where there is something to draw

        for name, figure in stored.figures().items():
            write_file(folder / "figures" / f"{name}.json", str(figure.to_json()).encode())
            if png is not None:
                write_file(png / f"{name}.png", images.png(figure))
            if html is not None:
                write_file(html / f"{name}.html", images.page(figure))
        write_file(folder / "report.html", stored.report().encode())
        print_lines(f"report: {(folder / 'report.html').resolve()}")


def settings_given(kind: Any, given: list[str]) -> dict[str, Any]:
    """Parse `name=value` settings; a value is JSON where it parses as JSON, else text."""
    found: dict[str, Any] = {}
    known = [name for name in kind.__dataclass_fields__ if name != "seed"]
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set {item!r}: give name=value, name one of {', '.join(known)}")
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            found[name] = text
    return found


def _run_experiment(
    name: str,
    model: ModelSource,
    prompts: str,
    column: str | None,
    out: Path | None,
    settings: dict[str, Any],
    as_json: bool,
    source: Literal["computed", "stored", "any"] = "computed",
    judges: Sequence[str] = (),
    shared: tuple[int | None, str | None] = (None, None),
) -> None:
    from interp.experiments.running import experiment, request, run

    chosen, target = experiment(name), out or Path("runs") / name
    needs = chosen.default_model is not None
    if not needs and model != ModelSource(""):
        raise ValueError(f"{name} needs no model, got {_given(model)}; leave it out")
    asked = request(name, model=model if needs else None, settings=settings, judges=judges)
    workers = None
    if shared != (None, None):
        from interp.engine.ray_cluster import workers_asked

        chosen.check_workers(judges)
        workers = workers_asked(*shared, device=model.device)
    if source == "computed":
        asked.check(target)
    loaded: Any = "builtin"
    if needs:
        from interp.data.prompts import load_prompts

        loaded = load_prompts(prompts, column=column, seed=asked.config.seed)
    with status(f"loading {asked.model.shown}") if isinstance(asked.model, ModelSource) else nullcontext():
        ready: Any = asked.loaded() if source == "computed" else asked
    finished = run(
        name,
        source=source,
        model=ready.model,
        prompts=loaded,
        settings=settings,
        judges=judges,
        out=target if source == "computed" else out,
        workers=workers,
        show_progress=shows_progress(),
    )
    if as_json:
        from interp.storage.run_folders import stored_json

        assert finished.folder is not None
        print_json(stored_json(finished.folder))
        return
    shown = chosen.table(finished.result)
    print_table(shown, title=f"{shown.title}, {finished.provenance.model_name}, 95% intervals")
    print_judgements(finished.result.judgements)
    print_lines(*finished.verdicts())
    assert finished.folder is not None
    print_lines(f"report: {(finished.folder / 'report.html').resolve()}")


def _given(model: ModelSource) -> str:
    """The options of a model that were given, as they are typed."""
    given = {f.name: getattr(model, f.name) for f in fields(model)}
    if model.thinking is not None:
        given["thinking"] = None
        given["enable-thinking" if model.thinking else "no-thinking"] = " "
    named = {
        "--model" if name == "name" else f"--{name.replace('_', '-')}": v for name, v in given.items() if v
    }
    return " ".join(f"{option} {value}".strip() for option, value in named.items())
