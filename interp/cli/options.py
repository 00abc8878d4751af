"""Shared parts of the commands: options, consoles, and exit codes after a user's mistake."""

import functools
import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from interp.display.cards import Shown
from interp.display.tables import Table, cell_text, folded, numeric_columns
from interp.models.sources import DTYPES, PRECISIONS, ModelSource

console = Console()
errors = Console(stderr=True)
_quiet = ContextVar("quiet", default=False)

EXIT_CODES = (
    "Exit codes: 0 done; 1 a fault of interp, with its traceback; 2 bad input, with one line on what is wrong and the "
    "remedy; 130 interrupted, 143 terminated: the same command continues."
)

MODEL_HELP = (
    "smollm2, smollm2-safe, smollm2-form, a Hub id (owner/name or owner/name@revision), folder or .gguf file"
)
_MODEL_OPTIONS = {
    "adapter": Annotated[
        str | None, typer.Option("--adapter", help="PEFT adapter on top: folder or Hub id.")
    ],
    "delta": Annotated[
        str | None, typer.Option("--delta", help="File with a sparse change of exactly these weights.")
    ],
    "revision": Annotated[
        str | None, typer.Option("--revision", help="Hub branch, tag or commit of the model.")
    ],
    "dtype": Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help=f"{', '.join(DTYPES)}; float32 on the CPU, the checkpoint's own on a GPU if not given.",
        ),
    ],
    "precision": Annotated[
        str | None,
        typer.Option(
            "--precision",
            help=f"{' or '.join(PRECISIONS)}: fast multiplies a float32 model's matrices in bfloat16; exact if not "
            "given.",
        ),
    ],
    "device": Annotated[
        str | None,
        typer.Option("--device", help="cpu, cuda, cuda:1, ...; CUDA where there is one if not given."),
    ],
    "chat_template": Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            help="A Jinja file, or plain (for base models); the tokenizer's own if not given.",
        ),
    ],
    "date": Annotated[
        str | None,
        typer.Option(
            "--date",
            help="Date that the chat template shows, such as 2026-01-31; today if not given, where it shows one.",
        ),
    ],
    "thinking": Annotated[
        bool | None,
        typer.Option(
            "--enable-thinking/--no-thinking",
            help="Whether the model thinks before it answers; as its chat template says if not given.",
        ),
    ],
    "batch_size": Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Prompts in one pass at most; what fits the device's memory if not given.",
        ),
    ],
}
_STORE_OPTION = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Activation store, a folder or s3://bucket/prefix: what it has is not computed again; none for none. "
        "Experiments use runs/store (or $INTERP_STORE) if not given, other commands none.",
    ),
]
PromptsOption = Annotated[
    str,
    typer.Option(
        "--prompts",
        "-p",
        help="builtin, named sets (advbench+alpaca; interp data ls), a folder, or harmful=FILE,harmless=FILE (files or "
        "hub:owner/name).",
    ),
]
ColumnOption = Annotated[str | None, typer.Option(help="Text column of the prompt files.")]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Of random directions and of splits that are cut here.")
]
JudgesOption = Annotated[
    str | None,
    typer.Option(
        "--judges",
        help="Judges of every reply, with commas between them: arditi, zhao, normalised, latent, or NAME=MODEL "
        "(`interp judge --help`).",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Processes to share the work among, each with the model and its own GPU or share of the threads "
        "(needs the extra scale); this process if not given.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Ray cluster to run the workers on: auto, or host:port of one that this machine belongs to.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def takes_model(
    *,
    default: str = "smollm2-safe",
    flags: tuple[str, ...] = ("--model", "-m"),
    help: str = f"{MODEL_HELP}.",
    without: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in place of its parameter `model: ModelSource`, the options that say which model to load.

    Args:
        default: name of the model when the first option is not given; the command itself decides about "".
        flags: names of the option for the model's name.
        help: help of that option.
        without: fields of `ModelSource`, or `store`, that this command has no option for.
    """
    named = Annotated[str, typer.Option(*flags, help=help, show_default=bool(default))]
    options = {"name": (default, named), **{name: (None, kind) for name, kind in _MODEL_OPTIONS.items()}}
    options = {name: option for name, option in options.items() if name not in without}
    further = {} if "store" in without else {"store": (None, _STORE_OPTION)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            store = given.pop("store", None) if further else None
            with _through(store):
                command(model=ModelSource(**{name: given.pop(name) for name in options}), **given)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == "model":
                parameters += [
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
                    for name, (value, kind) in (options | further).items()
                ]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        # Typer reads a command's options from its signature.
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


@contextmanager
def _through(store: str | None) -> Iterator[None]:
    """Collect through this store, where one is given."""
    if store is None:
        yield
        return
    with user_errors():
        from interp.engine.stored_activations import using_store

        with using_store(store):
            yield


def set_quiet(quiet: bool) -> None:
    """Whether this command draws no progress and says nothing on the side."""
    _quiet.set(quiet)


def shows_progress() -> bool:
    """Whether progress is drawn: on a terminal, and not after `--quiet`."""
    return sys.stderr.isatty() and not _quiet.get()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Say on standard error what is being done meanwhile, unless after `--quiet`."""
    if _quiet.get():
        yield
        return
    with errors.status(text):
        yield


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems and containers send it before they kill."""


def _terminate(number: int, frame: Any) -> None:  # noqa: ARG001 (a signal handler's signature)
    raise Terminated


@contextmanager
def user_errors() -> Iterator[None]:
    """End with one line and exit code 2 after a user's mistake; bugs keep their traceback.

    After an interrupt the line says how to continue; the exit code is 130, 143 after SIGTERM.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        errors.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as interrupt:
        errors.print("interrupted; finished stages are kept, the same command continues")
        raise typer.Exit(143 if isinstance(interrupt, Terminated) else 130) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def check_output_file(path: Path, *suffixes: str) -> None:
    """Find whether a file can be written here, before what goes into it is computed.

    Raises:
        ValueError: a folder of this name, an unknown ending, or no permission.
    """
    from interp.storage.run_folders import check_writable

    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file")
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"unknown target {path.name!r}; use {' or '.join(suffixes)}")
    check_writable(path)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))  # noqa: T201 (the command's output)


def print_lines(*lines: str) -> None:
    """Print lines unchanged: no wrapping, no colours, no markup."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_findings(source: str, column: str | None, score: Callable[[Iterator[str]], Iterable[Any]]) -> None:
    """Print what a detector finds in each text of a file, or of standard input (`-`), as it comes: a JSON line each.

    Lines are texts or JSON objects. A table is read whole: its header is no text, and a cell may hold several lines.
    """
    from interp.data.files import ends_as_data, prompt_lines
    from interp.detectors.detector import json_lines

    if ends_as_data(source) and not source.lower().endswith((".jsonl", ".txt")):
        from interp.data.prompts import read_prompts

        for line in json_lines(score(iter(read_prompts(source, column=column).texts))):
            print(line, flush=True)  # noqa: T201 (the command's output)
        return
    with sys.stdin if source == "-" else Path(source).open(encoding="utf-8-sig") as stream:
        for line in json_lines(score(prompt_lines(stream, source, column=column))):
            print(line, flush=True)  # noqa: T201 (the command's output)


def print_table(table: Table, *, title: str | None = None) -> None:
    """Print a table with its title, or another one: text left, numbers right, wide ones in parts."""
    from rich.table import Table as Grid

    title = table.title if title is None else title
    for number, part in enumerate(folded(table, console.width)):
        grid = Grid(title=escape(title) if number == 0 else None, title_justify="left")
        for name, right in zip(part.header, numeric_columns(part), strict=True):
            grid.add_column(escape(str(name)), justify="right" if right else "left")
        for row in part.rows:
            grid.add_row(*(escape(cell_text(cell)) for cell in row))
        console.print(grid)


def print_card(shown: Shown) -> None:
    """Print an object's card, as in a Python session."""
    print_lines(repr(shown))
