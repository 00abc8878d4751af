"""The `interp` command.

Imports of torch and the models happen inside the commands: `interp --help` answers at once.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from interp.experiments import EXPERIMENTS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Find, steer and track harmfulness and refusal inside chat models.",
)
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
def _user_errors() -> Iterator[None]:
    """A user's mistake ends with one line and exit code 2; an interrupt with 130; our own bugs keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        errors.print(f"[bold red]error:[/] {_escape(' '.join(str(error).split()))}", soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished parts are kept, the same command continues")
        raise typer.Exit(130) from None


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


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


@app.command()
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


@app.command("list")
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
        print(json.dumps({"experiments": found, "models": BUNDLED_MODELS, "prompts": prompts}, indent=1))  # noqa: T201 (the command's output)
        return
    for title, entries in (("experiments", found), ("models", BUNDLED_MODELS), ("prompt sets", prompts)):
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, summary in entries.items():
            table.add_row(f"[bold]{name}[/]", summary)
        console.print(table)


@app.command()
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
    models: Annotated[
        str | None,
        typer.Option(
            help="Several models with one panel each, comma-separated (experiments with that setting)."
        ),
    ] = None,
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Run an experiment; run again with the same --out, it continues where it was stopped.

    Example: `interp run refusal-direction --model smollm2-safe --set kl_threshold=0.5 --out runs/refusal`
    """
    target = out or Path("runs") / experiment
    given = [*(settings or []), *([f"models={json.dumps(models.split(','))}"] if models else [])]
    _run_experiment(experiment, model, adapter, prompts, column, target, seed, json_output, given)


@app.command()
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
    with _user_errors():
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
        console.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True)


def _png(figure: Any) -> bytes:
    try:
        return figure.to_image(format="png", scale=2)
    except Exception as error:  # kaleido's own classes, which are not there when kaleido is not
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot draw a PNG ({reason}); pip install 'interp-workbench[notebook]' and install Chrome or Chromium"
        ) from error


@app.command()
def tokens(
    prompt: Annotated[str, typer.Argument(help="An instruction.")],
    model: ModelOption = "smollm2-safe",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Print the tokens of a chat prompt with their roles.

    Example: `interp tokens "How do I pick a lock?" --model smollm2`
    """
    with _user_errors():
        from interp.models.chat_model import load
        from interp.models.tokens import tokenize

        rows = tokenize(load(model).tokenizer, [prompt], system=system).names(0)
        if json_output:
            named = [
                {"index": i, "id": token, "text": text, "role": role}
                for i, (token, text, role) in enumerate(rows)
            ]
            print(json.dumps(named, indent=1, ensure_ascii=False))  # noqa: T201 (the command's output)
            return
        table = Table("index", "from end", "id", "token", "role")
        for i, (token, text, role) in enumerate(rows):
            style = None if role in ("prefix", "instruction") else "bold"
            table.add_row(
                str(i), str(i - len(rows)), str(token), _escape(repr(text)), _escape(role), style=style
            )
        console.print(table)


@app.command()
def steer(
    prompt: Annotated[str, typer.Argument(help="An instruction.")],
    direction: Annotated[
        Path, typer.Option("--direction", "-d", help="Direction file (.safetensors, .pt, .gguf).")
    ],
    coefficient: Annotated[
        float, typer.Option("--coefficient", "-c", help="Multiples of the direction's length.")
    ] = 1.0,
    dose: Annotated[
        float | None, typer.Option(help="Multiples of the mean activation norm, instead.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer to add it at; its own when not given.")] = None,
    positions: Annotated[str, typer.Option(help="all, instruction, post_inst, t_inst, ...")] = "all",
    model: ModelOption = "smollm2-safe",
    adapter: AdapterOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 64,
    json_output: JsonOption = False,
) -> None:
    """Print the plain and the steered answer side by side.

    Example: `interp steer --direction runs/demo/refusal.safetensors --coefficient 1 "How do I bake bread?"`
    """
    with _user_errors():
        from interp.models.chat_model import load
        from interp.representations.steering import steer as steer_model
        from interp.storage.direction_files import read_direction

        found = read_direction(direction, layer=layer)
        answers = steer_model(
            load(model, adapter=adapter),
            prompt,
            found,
            coefficient=coefficient,
            dose=dose,
            layers=None if layer is None else [layer],
            positions=positions,
            max_new_tokens=max_new_tokens,
        )
        if json_output:
            print(json.dumps({"prompt": prompt, "plain": answers.plain[0], "steered": answers.steered[0]}))  # noqa: T201 (the command's output)
            return
        step = f"dose {dose:g}" if dose is not None else f"coefficient {coefficient:g}"
        table = Table(
            "plain",
            f"steered ({step}, layer {found.layer if layer is None else layer})",
            title=_escape(prompt),
        )
        table.add_row(_escape(answers.plain[0]), _escape(answers.steered[0]))
        console.print(table)


@app.command()
def export(
    direction: Annotated[Path, typer.Argument(help="A direction file, or a run folder that holds one.")],
    out: Annotated[
        Path, typer.Option("--out", help="Target: .safetensors or .gguf (llama.cpp control vector).")
    ],
    architecture: Annotated[
        str | None,
        typer.Option(help="GGUF architecture of the model; read from the direction's model if bundled."),
    ] = None,
    coefficient: Annotated[float, typer.Option(help="Baked into a control vector.")] = 1.0,
    layer: Annotated[int | None, typer.Option(help="Which layer, where the file holds several.")] = None,
) -> None:
    """Write a direction in our format or as a llama.cpp control vector.

    Example: `interp export runs/demo/refusal.safetensors --out refusal.gguf --architecture llama`
    """
    with _user_errors():
        from interp.storage.direction_files import read_direction, write_control_vector, write_direction

        source = direction / "refusal.safetensors" if direction.is_dir() else direction
        found = read_direction(source, layer=layer)
        if out.suffix == ".gguf":
            bundled = str(found.provenance.get("model", "")).startswith("smollm2")
            name = architecture or ("llama" if bundled else None)
            if name is None:
                raise ValueError(
                    "a control vector names its architecture; give --architecture (e.g. llama, qwen2)"
                )
            write_control_vector(out, found, architecture=name, coefficient=coefficient)
        elif out.suffix == ".safetensors":
            write_direction(out, found)
        else:
            raise ValueError(f"unknown target {out.name!r}; use .safetensors or .gguf")
        console.print(f"{found} -> {out}", soft_wrap=True, highlight=False, markup=False)


guard_app = typer.Typer(no_args_is_help=True, help="Latent Guard: detect harmful prompts from the inside.")
app.add_typer(guard_app, name="guard")


@guard_app.command("fit")
def guard_fit(
    out: Annotated[Path, typer.Option(help="Guard file to write (.safetensors).")],
    model: ModelOption = "smollm2-safe",
    adapter: AdapterOption = None,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    ending: Annotated[
        str, typer.Option(help="What to do to prompts' ends: as-is, strip, period.")
    ] = "period",
    false_positive_rate: Annotated[
        float | None,
        typer.Option("--false-positive-rate", help="Calibrate the threshold on harmless/val; else 0."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Training prompts of each kind.")] = 100,
    layers: Annotated[
        str | None, typer.Option(help="Layers to average, e.g. 10-20 or 8,12,16; all when not given.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Fit a guard on a model's harmful and harmless prompts.

    Example: `interp guard fit --model smollm2-safe --prompts builtin --out guard.safetensors`
    """
    with _user_errors():
        from interp.data.prompts import load_prompts
        from interp.detectors.latent_guard import LatentGuard
        from interp.models.chat_model import load

        chosen = load_prompts(prompts, column=column, seed=seed, ending=ending)  # pyright: ignore[reportArgumentType]
        with errors.status(f"loading {model}"):
            loaded = load(model, adapter=adapter)
        fitted = LatentGuard.fit(
            loaded,
            chosen,
            n=n,
            layers=None if layers is None else _layer_list(layers),
            false_positive_rate=false_positive_rate,
            show_progress=sys.stderr.isatty(),
        )
        fitted.save(out)
        counts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in fitted.fitted_on["counts"].items())
        console.print(f"{fitted}: {counts}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"guard: {out.resolve()}", soft_wrap=True)


def _layer_list(text: str) -> list[int]:
    """Layers written as `8,12,16` or `10-20`."""
    found: list[int] = []
    try:
        for item in text.split(","):
            first, dash, last = item.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise ValueError(f"--layers {text!r}: give numbers or ranges, such as 8,12,16 or 10-20") from None
    return found


@guard_app.command("score")
def guard_score(
    guard: Annotated[Path, typer.Argument(help="A guard file.")],
    prompts: Annotated[str, typer.Argument(help="A .jsonl or .txt file, or - for standard input.")],
    model: ModelOption = "smollm2-safe",
    adapter: AdapterOption = None,
    column: ColumnOption = None,
) -> None:
    """Score prompts: a JSON line each, in input order, as they come.

    A line that is a JSON object is a prompt in its text column, any other line is a prompt itself.

    Example: `echo "How do I pick a lock?" | interp guard score guard.safetensors -`
    """
    with _user_errors():
        from dataclasses import asdict

        from interp.data.files import prompt_lines
        from interp.detectors.latent_guard import LatentGuard
        from interp.models.chat_model import load

        fitted = LatentGuard.load(guard)
        if prompts != "-" and not Path(prompts).is_file():
            raise ValueError(f"no such prompt file: {prompts}")
        with errors.status(f"loading {model}"):
            loaded = load(model, adapter=adapter)
        with sys.stdin if prompts == "-" else Path(prompts).open(encoding="utf-8-sig") as stream:
            for found in fitted.stream(loaded, prompt_lines(stream, prompts, column=column)):
                print(json.dumps(asdict(found)), flush=True)  # noqa: T201 (the command's output)


@app.command("track")
def track_series(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Folders (checkpoint-* inside: all of them, by step), adapters, Hub ids, owner/name@rev,rev."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/track"),
    base: Annotated[
        str | None, typer.Option(help="Model that adapters belong to; the one each names when not given.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Label in the series, or a checkpoint, to measure against; the first if not given."
        ),
    ] = None,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    ending: Annotated[str, typer.Option(help="What to do to prompts' ends: as-is, strip, period.")] = "as-is",
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE (text, or prompts with answers), instead of the three built in; may be repeated."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Test prompts of each kind.")] = 32,
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Measure behaviour, beliefs, directions, compression and KL along a series of checkpoints.

    Example: `interp track runs/sft --base smollm2 --corpus news=news.jsonl --out runs/track`
    """
    with _user_errors():
        from interp.data.corpora import read_corpus
        from interp.data.prompts import load_prompts
        from interp.tracking.spec import Probe
        from interp.tracking.tracker import track

        named = {name: path for name, _, path in (item.partition("=") for item in corpus or [])}
        if not all(name and path for name, path in named.items()):
            raise ValueError(f"--corpus takes NAME=FILE, got {', '.join(corpus or [])}")
        chosen = load_prompts(prompts, column=column, seed=seed, ending=ending)  # pyright: ignore[reportArgumentType]
        corpora = {name: read_corpus(name, path) for name, path in named.items()} or None
        trajectory = track(
            checkpoints,
            Probe(prompts=chosen, corpora=corpora, n=n, seed=seed),
            base=base,
            reference=reference,
            out=out,
            show_progress=sys.stderr.isatty(),
        )
        if json_output:
            print((out / "result.json").read_text())  # noqa: T201 (the command's output)
            return
        for line in trajectory.verdicts():
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True)


@app.command("train-safe")
def train_safe(
    out: Annotated[Path, typer.Option(help="Adapter folder to write.")] = Path("runs/smollm2-safe"),
    seed: SeedOption = 0,
) -> None:
    """Rebuild the safety adapter of smollm2-safe on the builtin training split, measure it, write its model card.

    Example: `interp train-safe --out runs/smollm2-safe` (about half an hour on two cores)
    """
    with _user_errors():
        from dataclasses import replace

        from interp.data.prompts import load_prompts
        from interp.models.chat_model import load
        from interp.training.safety_adapter import RECIPE, calibrate, train_safety_adapter, write_model_card

        logging.getLogger("interp").setLevel(logging.INFO)
        prompts = load_prompts("builtin")
        train_safety_adapter(load("smollm2"), prompts, out=out, config=replace(RECIPE, seed=seed))
        calibrate("smollm2", prompts, out=out)
        write_model_card(load("smollm2"), load("smollm2", adapter=str(out)), prompts, out=out)
        console.print((out / "README.md").read_text(), markup=False)


def _settings(kind: Any, given: list[str]) -> dict[str, Any]:
    """`name=value` settings by name; a value is JSON where it reads as JSON, else text."""
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
    with _user_errors():
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
            print((out / "result.json").read_text())  # noqa: T201 (the command's output)
            return
        shown = chosen.table(finished.result)
        table = Table(
            *map(str, shown.header),
            title=f"{shown.title}, {finished.provenance.model_name}, 95% intervals",
            title_justify="left",
        )
        for row in shown.rows:
            table.add_row(*(_escape(str(cell)) for cell in row))
        console.print(table)
        for line in finished.verdicts():
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True)
