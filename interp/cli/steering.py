"""Looking at tokens and steering: `tokens`, `steer`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from interp.cli.options import (
    ColumnOption,
    JsonOption,
    console,
    print_json,
    shows_progress,
    status,
    takes_model,
    user_errors,
)
from interp.cli.prompt_arguments import PROMPTS_HELP, is_prompt_file, new_tokens_of, prompts_of
from interp.models.sources import ModelSource
from interp.storage.paths import expanded

if TYPE_CHECKING:
    from interp.representations.steering import Steered


CoefficientOption = Annotated[
    list[float] | None,
    typer.Option(
        "--coefficient",
        "-c",
        help="Multiples of the direction's own norm, 1 if not given; once for each direction, in their order.",
    ),
]
RelativeNormOption = Annotated[
    list[float] | None,
    typer.Option(
        "--relative-norm",
        help="Multiples of the mean activation norm, instead; once for each direction, in their order.",
    ),
]
NewTokensOption = Annotated[
    str | None,
    typer.Option(
        "--new-tokens",
        help="Generated tokens that are steered: none, all or a number; all if --positions is all, else none.",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(help="0 is greedy; above, tokens are sampled, with the same seed for both answers."),
]
LayersOption = Annotated[
    list[int] | None,
    typer.Option(help="Layer to add it at, its own if not given; once for each direction, in their order."),
]
DirectionsOption = Annotated[
    list[Path],
    typer.Option(
        "--direction", "-d", help="Direction file (.safetensors, .pt, .gguf); repeat it to add several."
    ),
]


@takes_model()
def tokens(
    prompt: Annotated[str, typer.Argument(help="An instruction.")],
    model: ModelSource,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Print the tokens of a chat prompt with their roles.

    Example: `interp tokens "How do I pick a lock?" --model smollm2`
    """
    with user_errors():
        model.check()
        from interp.models.chat_model import load_source
        from interp.models.tokens import tokenize

        rows = tokenize(load_source(model).tokenizer, [prompt], system=system).names(0)
        if json_output:
            named = [
                {"index": i, "id": token, "text": text, "role": role}
                for i, (token, text, role) in enumerate(rows)
            ]
            print_json(named)
            return
        table = Table("index", "from end", "id", "token", "role")
        for i, (token, text, role) in enumerate(rows):
            style = None if role in ("prefix", "instruction") else "bold"
            table.add_row(
                str(i), str(i - len(rows)), str(token), escape(repr(text)), escape(role), style=style
            )
        console.print(table)


@takes_model()
def steer(
    prompts: Annotated[str, typer.Argument(help=PROMPTS_HELP)],
    direction: DirectionsOption,
    model: ModelSource,
    coefficient: CoefficientOption = None,
    relative_norm: RelativeNormOption = None,
    layer: LayersOption = None,
    positions: Annotated[str, typer.Option(help="all, instruction, post_inst, t_inst, ...")] = "all",
    new_tokens: NewTokensOption = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    column: ColumnOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 64,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    json_output: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: an object for an instruction, a list of them for a file."),
    ] = False,
) -> None:
    """Print the plain and the steered answers side by side.

    Example: `interp steer "How do I bake bread?" -d runs/demo/refusal.safetensors -c 1`

    Two directions at once: `interp steer prompts.jsonl -d refusal.safetensors -c -1 -d harmfulness.safetensors -c 2`
    """
    with user_errors():
        amounts = _amounts(direction, coefficient, relative_norm, layer)
        steered_tokens = new_tokens_of(new_tokens)
        given = prompts_of(prompts, column=column)
        model.check()
        from interp.engine.interventions import Add
        from interp.models.chat_model import load_source
        from interp.models.tokens import tokenize
        from interp.representations.steering import steer_with
        from interp.storage.direction_files import read_direction

        directions = [read_direction(amount.file, layer=amount.layer) for amount in amounts]
        adds = [
            Add(
                found,
                coefficient=amount.coefficient,
                relative_norm=amount.relative_norm,
                layers=amount.layer,
                positions=positions,
                new_tokens=steered_tokens,  # pyright: ignore[reportArgumentType]
            )
            for amount, found in zip(amounts, directions, strict=True)
        ]
        with status(f"loading {model.shown}"):
            loaded = load_source(model)
        for found in directions:
            found.check_width(loaded.d_model, loaded.name)
        answers = steer_with(
            loaded,
            tokenize(loaded.tokenizer, given, system=system),
            adds,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            show_progress=shows_progress(),
        )
        labels = [
            amount.shown(found.layer, named=len(amounts) > 1)
            for amount, found in zip(amounts, directions, strict=True)
        ]
        _print_answers(
            answers, f"steered ({'; '.join(labels)})", several=is_prompt_file(prompts), as_json=json_output
        )


def _print_answers(answers: "Steered", label: str, *, several: bool, as_json: bool) -> None:
    """One prompt's answers, or a row for each of several."""
    rows = list(zip(answers.prompts, answers.plain, answers.steered, strict=True))
    keys = ("id", "prompt", "plain", "steered")
    if as_json and several:
        ids = answers.identity.ids
        print_json([dict(zip(keys, (name, *row), strict=True)) for name, row in zip(ids, rows, strict=True)])
    elif as_json:
        print_json(dict(zip(keys[1:], rows[0], strict=True)))
    elif several:
        table = Table("prompt", "plain", label, show_lines=True)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    else:
        table = Table("plain", label, title=escape(answers.prompts[0]))
        table.add_row(*map(escape, rows[0][1:]))
        console.print(table)


class _Amount(NamedTuple):
    """One direction of a command, and how much of it is added where."""

    file: Path
    coefficient: float
    relative_norm: float | None
    layer: int | None

    def shown(self, own_layer: int, *, named: bool) -> str:
        """The amount in words, with the name of the file where there are several."""
        step = (
            f"coefficient {self.coefficient:g}"
            if self.relative_norm is None
            else f"relative norm {self.relative_norm:g}"
        )
        place = f"{step}, layer {own_layer if self.layer is None else self.layer}"
        return f"{self.file.stem}: {place}" if named else place


def _amounts(
    files: list[Path],
    coefficients: list[float] | None,
    relative_norms: list[float] | None,
    layers: list[int] | None,
) -> list[_Amount]:
    """Match repeated options with the directions that they belong to, by their order.

    Raises:
        ValueError: no such file, an amount missing or too many, a value that is not finite, or both kinds of amount.
    """
    for file in files:
        if not expanded(file).exists():
            raise ValueError(f"no such direction file: {file}")
    if coefficients and relative_norms:
        raise ValueError("give --coefficient or --relative-norm, not both")
    matched: dict[str, list[Any]] = {}
    for option, values in (
        ("--coefficient", coefficients),
        ("--relative-norm", relative_norms),
        ("--layer", layers),
    ):
        if values and len(values) != len(files):
            raise ValueError(
                f"got {len(files)} --direction and {len(values)} {option}; give {option} once for each direction, in "
                "their order, or leave it out"
            )
        if not all(math.isfinite(value) for value in values or ()):
            raise ValueError(f"{option} must be finite, got {values}")
        matched[option] = list(values or [1.0 if option == "--coefficient" else None] * len(files))
    return [
        _Amount(file, *rest) for file, rest in zip(files, zip(*matched.values(), strict=True), strict=True)
    ]
