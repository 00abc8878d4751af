"""Directions and ablations as files of other tools: `export`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import (
    MODEL_HELP,
    check_output_file,
    print_lines,
    status,
    takes_model,
    user_errors,
)
from interp.models.sources import ModelSource
from interp.storage.paths import expanded

if TYPE_CHECKING:
    from interp.directions import Direction

Target = Literal["safetensors", "gguf", "peft", "hf"]


@takes_model(default="", help=f"For --to hf and peft: {MODEL_HELP}; the direction's own if not given.")
def export(
    direction: Annotated[Path, typer.Argument(help="A direction file, or a run folder that holds one.")],
    model: ModelSource,
    out: Annotated[
        Path, typer.Option("--out", help="File (.safetensors, .gguf) or folder (hf, peft) to write.")
    ],
    to: Annotated[
        Target | None,
        typer.Option(
            help="safetensors: our format; gguf: a llama.cpp control vector, which adds the direction; hf: the model "
            "with the direction removed from its weights, in the dtype of --dtype; peft: the same as a LoRA of rank "
            "one. As the ending of --out says if not given."
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="GGUF architecture of the model; read from the direction's model if bundled."),
    ] = None,
    coefficient: Annotated[float, typer.Option(help="Baked into a control vector.")] = 1.0,
    layer: Annotated[int | None, typer.Option(help="Which layer, where the file holds several.")] = None,
) -> None:
    """Write a direction as a file, or its ablation as a model or an adapter, each compared with hooks before it counts.

    Example: `interp export runs/demo --to hf --out no-refusal`, which `transformers` loads as a folder

    A control vector: `interp export runs/demo/refusal.safetensors --out refusal.gguf --architecture llama`
    """
    with user_errors():
        target = _target(out, to)
        removes = target in ("hf", "peft")
        for option, given, wanted in (
            ("--model and its options", model != ModelSource(""), removes),
            ("--coefficient", coefficient != 1.0, target == "gguf"),
            ("--architecture", architecture is not None, target == "gguf"),
        ):
            if given and not wanted:
                kinds = "hf and peft" if option.startswith("--model") else "gguf"
                raise ValueError(f"{option} belong to --to {kinds}, not to {target}; leave them out")
        if not removes:
            check_output_file(out, f".{target}")
        source = _direction_file(direction)
        from interp.storage.control_vectors import write_control_vector
        from interp.storage.direction_files import read_direction, write_direction

        found = read_direction(source, layer=layer)
        if layer not in (None, found.layer):
            raise ValueError(f"{source} holds the direction of layer {found.layer} alone; leave --layer out")
        if removes:
            _export_ablation(found, _model_of(found, model), out, adapter=target == "peft")
        elif target == "gguf":
            bundled = str(found.provenance.get("model", "")).startswith("smollm2")
            name = architecture or ("llama" if bundled else None)
            if name is None:
                raise ValueError(
                    "a control vector names its architecture; give --architecture (e.g. llama, qwen2)"
                )
            write_control_vector(out, found, architecture=name, coefficient=coefficient)
            print_lines(f"{found} -> {out}")
        else:
            write_direction(out, found)
            print_lines(f"{found} -> {out}")


def _target(out: Path, to: Target | None) -> Target:
    if to is not None:
        return to
    if out.suffix == ".safetensors":
        return "safetensors"
    if out.suffix == ".gguf":
        return "gguf"
    raise ValueError(
        f"unknown target {out.name!r}; use .safetensors or .gguf, or --to hf or --to peft with a folder"
    )


def _direction_file(given: Path) -> Path:
    """A file as it is; of a run folder its refusal direction, or its only direction.

    Raises:
        ValueError: no such file, or a folder with several directions and none of refusal.
    """
    place = expanded(given)
    if not place.is_dir():
        if not place.exists():
            raise ValueError(f"no such direction file: {given}")
        return place
    files = sorted(path for path in place.glob("*.safetensors") if path.name != "tensors.safetensors")
    named = [path for path in files if path.name == "refusal.safetensors"] or files
    if len(named) != 1:
        what = f"several: {', '.join(path.name for path in named)}" if named else "none"
        raise ValueError(f"no such direction file: {given} is a folder with {what}; name a file")
    return named[0]


def _model_of(direction: "Direction", given: ModelSource) -> ModelSource:
    """The model that was named, or the one that the direction was read in, with the options that were given."""
    if given.name:
        return given
    known = direction.provenance
    if not known.get("model"):
        raise ValueError("the direction does not say which model it is of; give --model")
    own = {"adapter": known.get("adapter"), "revision": known.get("revision")}
    kept = {name: value for name, value in own.items() if getattr(given, name) is None}
    return replace(given, name=str(known["model"]), **kept)


def _export_ablation(direction: "Direction", model: ModelSource, out: Path, *, adapter: bool) -> None:
    from interp.storage.run_folders import check_writable

    model.check()
    check_writable(out)
    from interp.engine.model_exports import check_export_target, save_ablated_model, save_ablation_adapter
    from interp.models.chat_model import load_source

    check_export_target(out)
    with status(f"loading {model.shown}"):
        loaded = load_source(model)
    what = "adapter" if adapter else "model"
    with status(f"writing the {what} and comparing it with hooks"):
        save = save_ablation_adapter if adapter else save_ablated_model
        exported = save(loaded, direction, out)
    print_lines(
        f"{loaded.name} without {direction.sign} (layer {direction.layer}, {direction.position}): "
        f"{exported.n_matrices} parameters changed; logits differ from those under hooks by "
        f"{exported.difference:.1g} of their size (rounding: up to {exported.tolerance:.1g})",
        *(f"note: {note}" for note in exported.notes),
        f"{what}: {exported.folder.resolve()}",
    )
