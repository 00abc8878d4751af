"""Looking at tokens, steering, directions in files: `tokens`, `steer`, `export`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from interp.cli.options import (
    JsonOption,
    check_output_file,
    console,
    print_json,
    print_lines,
    takes_model,
    user_errors,
)
from interp.models.sources import ModelSource


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
    prompt: Annotated[str, typer.Argument(help="An instruction.")],
    direction: Annotated[
        Path, typer.Option("--direction", "-d", help="Direction file (.safetensors, .pt, .gguf).")
    ],
    model: ModelSource,
    coefficient: Annotated[
        float, typer.Option("--coefficient", "-c", help="Multiples of the direction's own norm.")
    ] = 1.0,
    relative_norm: Annotated[
        float | None,
        typer.Option("--relative-norm", help="Multiples of the mean activation norm, instead."),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer to add it at; its own when not given.")] = None,
    positions: Annotated[str, typer.Option(help="all, instruction, post_inst, t_inst, ...")] = "all",
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 64,
    json_output: JsonOption = False,
) -> None:
    """Print the plain and the steered answer side by side.

    Example: `interp steer --direction runs/demo/refusal.safetensors --coefficient 1 "How do I bake bread?"`
    """
    with user_errors():
        if not direction.expanduser().exists():
            raise ValueError(f"no such direction file: {direction}")
        model.check()
        from interp.models.chat_model import load_source
        from interp.representations.steering import steer as steer_model
        from interp.storage.direction_files import read_direction

        found = read_direction(direction, layer=layer)
        answers = steer_model(
            load_source(model),
            prompt,
            found,
            coefficient=coefficient,
            relative_norm=relative_norm,
            layers=layer,
            positions=positions,
            max_new_tokens=max_new_tokens,
        )
        if json_output:
            print_json({"prompt": prompt, "plain": answers.plain[0], "steered": answers.steered[0]})
            return
        step = (
            f"relative norm {relative_norm:g}"
            if relative_norm is not None
            else f"coefficient {coefficient:g}"
        )
        table = Table(
            "plain",
            f"steered ({step}, layer {found.layer if layer is None else layer})",
            title=escape(prompt),
        )
        table.add_row(escape(answers.plain[0]), escape(answers.steered[0]))
        console.print(table)


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
    with user_errors():
        check_output_file(out, ".safetensors", ".gguf")
        source = direction / "refusal.safetensors" if direction.is_dir() else direction
        if not source.expanduser().exists():
            raise ValueError(f"no such direction file: {source}")
        from interp.storage.direction_files import read_direction, write_control_vector, write_direction

        found = read_direction(source, layer=layer)
        if out.suffix == ".gguf":
            bundled = str(found.provenance.get("model", "")).startswith("smollm2")
            name = architecture or ("llama" if bundled else None)
            if name is None:
                raise ValueError(
                    "a control vector names its architecture; give --architecture (e.g. llama, qwen2)"
                )
            write_control_vector(out, found, architecture=name, coefficient=coefficient)
        else:
            write_direction(out, found)
        print_lines(f"{found} -> {out}")
