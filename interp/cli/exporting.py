"""Directions in other forms: `export`."""

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import check_output_file, print_lines, user_errors


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
