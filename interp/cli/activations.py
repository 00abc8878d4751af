"""Activations and directions in files: `collect`, `directions`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from interp.cli.options import (
    ColumnOption,
    JsonOption,
    RayOption,
    SeedOption,
    WorkersOption,
    check_output_file,
    console,
    print_json,
    print_lines,
    shows_progress,
    status,
    takes_model,
    user_errors,
)
from interp.cli.prompt_arguments import PROMPTS_HELP, layers_of, names_of, prompts_of
from interp.models.sources import ModelSource
from interp.storage.run_folders import check_writable

if TYPE_CHECKING:
    from interp.data.prompt_sets import Prompts
    from interp.representations.contrasts import FittedDirection


ContrastOption = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        "-p",
        help="Harmful and harmless prompts, builtin if none are given: builtin, a folder, or "
        "harmful=FILE,harmless=FILE.",
    ),
]


@takes_model()
def collect(
    prompts: Annotated[str, typer.Argument(help=PROMPTS_HELP)],
    model: ModelSource,
    out: Annotated[Path, typer.Option(help="File to write (.safetensors).")],
    sites: Annotated[
        str, typer.Option(help="resid_pre, resid_mid, resid_post, attn_out, mlp_out; several with commas.")
    ] = "resid_pre",
    layers: Annotated[
        str | None, typer.Option(help="Such as 10-20, 8,12,16 or -1; all if not given.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="t_inst, t_post_inst, post_inst, post_inst[k], -1, ...; several with commas.")
    ] = "t_inst,t_post_inst",
    format: Annotated[Literal["safetensors"], typer.Option(help="Kind of file.")] = "safetensors",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    column: ColumnOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write the activations of prompts to a file, a tensor [prompt, layer, role, d_model] for each site.

    Only one batch is held in memory. Ids, categories and provenance are in the file's metadata; in Python,
    `interp.read_activations("acts.safetensors")` reads all of it back.

    Example: `interp collect prompts.jsonl --layers 10-20 --positions t_inst,t_post_inst --out acts.safetensors`
    """
    with user_errors():
        check_output_file(out, f".{format}")
        chosen = None if layers is None else layers_of(layers)
        given = prompts_of(prompts, column=column)
        model.check()
        from interp.engine.activation_files import store_activations
        from interp.engine.ray_cluster import workers_asked
        from interp.engine.shared_collecting import store_shared
        from interp.models.chat_model import load_source
        from interp.models.sites import SITES
        from interp.models.tokens import tokenize

        if unknown := [site for site in names_of(sites) if site not in SITES]:
            raise ValueError(f"unknown site {unknown[0]!r}; known: {', '.join(SITES)}")
        options: dict[str, Any] = {
            "sites": names_of(sites),
            "layers": chosen,
            "positions": names_of(positions),
            "show_progress": shows_progress(),
        }
        if (asked := workers_asked(workers, ray, device=model.device)) is not None:
            stored = store_shared(model, given, out, workers=asked, system=system, **options)
        else:
            with status(f"loading {model.shown}"):
                loaded = load_source(model)
            stored = store_activations(
                loaded, tokenize(loaded.tokenizer, given, system=system), out, **options
            )
        if json_output:
            facts = {
                "sites": stored.sites,
                "shape": stored.shape,
                "layers": stored.layers,
                "roles": stored.roles,
            }
            print_json({"path": str(stored.path), "bytes": stored.size, **facts})
            return
        n_prompts, n_layers, n_roles, d_model = stored.shape
        print_lines(
            f"{', '.join(stored.sites)}: {n_prompts} prompts, {n_layers} layers, {n_roles} roles "
            f"({', '.join(stored.roles)}), d_model {d_model}, {stored.size / 1e6:,.1f} MB",
            f"activations: {out.resolve()}",
        )


@takes_model()
def directions(
    model: ModelSource,
    prompts: ContrastOption = None,
    positive: Annotated[
        str | None,
        typer.Option(help="Prompts of one side of a contrast of your own, a file or hub:owner/name."),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="Prompts of its other side.")] = None,
    column: ColumnOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the direction files.")] = Path("runs/directions"),
    layer: Annotated[
        int | None, typer.Option(help="Layer to read; at three fifths of the depth if not given.")
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(help="Token roles of a contrast of your own, t_inst,t_post_inst if not given."),
    ] = None,
    ending: Annotated[str, typer.Option(help="What to do to prompts' ends: as-is, strip, period.")] = "as-is",
    n_prompts: Annotated[
        int, typer.Option("--n-prompts", min=1, help="Prompts of each kind to fit on, at most.")
    ] = 64,
    n_test: Annotated[
        int, typer.Option("--n-test", min=1, help="Held-out prompts of each kind, at most.")
    ] = 60,
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Fit directions, differences in means, and print how well each separates held-out prompts.

    Of harmful and harmless prompts: harmfulness, read at t_inst, and refusal, at t_post_inst. Of --positive and
    --negative: one direction for each of --positions; a quarter of the prompts is held out.

    Example: `interp directions --model smollm2-safe --prompts builtin --out runs/directions`

    A contrast of your own: `interp directions --positive polite.txt --negative rude.txt --out runs/politeness`
    """
    with user_errors():
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; give a folder")
        check_writable(out)
        contrast = (
            _own_contrast(positive, negative, prompts, column, ending, positions, seed)
            if positive is not None or negative is not None
            else _harm_contrast(prompts or "builtin", column, ending, positions, seed)
        )
        model.check()
        from interp.models.chat_model import load_source
        from interp.representations.contrasts import fit_directions
        from interp.storage.direction_files import write_direction

        with status(f"loading {model.shown}"):
            loaded = load_source(model)
        fitted = fit_directions(
            loaded,
            contrast.positive.first(n_prompts),
            contrast.negative.first(n_prompts),
            held_out=(contrast.held_out[0].first(n_test), contrast.held_out[1].first(n_test)),
            layer=layer,
            positions=tuple(contrast.positions),
            sign=contrast.sign,
            provenance={**contrast.provenance, "seed": seed},
            seed=seed,
            show_progress=shows_progress(),
        )
        named = {contrast.names.get(role, role): found for role, found in fitted.items()}
        files = {
            name: write_direction(out / f"{name}.safetensors", found.direction)
            for name, found in named.items()
        }
        if json_output:
            print_json([_facts(name, found, files[name]) for name, found in named.items()])
            return
        _print_fitted(named, title=f"{contrast.sign}, {loaded.name}")
        print_lines(*(f"{name}: {file.resolve()}" for name, file in files.items()))


class _Contrast(NamedTuple):
    """Prompts of two sides to fit on and held out, and what to call what comes out."""

    positive: "Prompts"
    negative: "Prompts"
    held_out: "tuple[Prompts, Prompts]"
    positions: list[str]
    names: dict[str, str]
    sign: str
    provenance: dict[str, Any]


def _harm_contrast(
    prompts: str, column: str | None, ending: str, positions: str | None, seed: int
) -> _Contrast:
    from interp.data.prompts import load_prompts

    if positions is not None:
        raise ValueError(
            "--positions belongs to --positive and --negative: harmfulness is read at t_inst, refusal at t_post_inst"
        )
    loaded = load_prompts(prompts, column=column, seed=seed, ending=ending)  # pyright: ignore[reportArgumentType]
    return _Contrast(
        loaded["harmful", "train"],
        loaded["harmless", "train"],
        (loaded["harmful", "test"], loaded["harmless", "test"]),
        ["t_inst", "t_post_inst"],
        {"t_inst": "harmfulness", "t_post_inst": "refusal"},
        "harmful - harmless",
        {"prompts": loaded.provenance},
    )


def _own_contrast(
    positive: str | None,
    negative: str | None,
    prompts: str | None,
    column: str | None,
    ending: str,
    positions: str | None,
    seed: int,
) -> _Contrast:
    from interp.data.prompt_sets import with_held_out
    from interp.data.prompts import read_prompts

    if positive is None or negative is None:
        raise ValueError("a contrast has two sides: give --positive and --negative")
    if prompts is not None:
        raise ValueError("give --prompts, or --positive and --negative, not both")
    sides = [
        with_held_out(read_prompts(file, column=column).with_ending(ending), seed=seed)  # pyright: ignore[reportArgumentType]
        for file in (positive, negative)
    ]
    name = f"{Path(positive).name},{Path(negative).name}"
    return _Contrast(
        sides[0][0],
        sides[1][0],
        (sides[0][1], sides[1][1]),
        names_of(positions or "t_inst,t_post_inst"),
        {},
        "positive - negative",
        {"prompts": {"name": name, "ending": ending}},
    )


def _facts(name: str, found: "FittedDirection", file: Path) -> dict[str, Any]:
    direction, auroc = found.direction, found.auroc
    return {
        "name": name,
        "path": str(file),
        "layer": direction.layer,
        "position": direction.position,
        "norm": direction.norm,
        "mean_activation_norm": direction.mean_activation_norm,
        "auroc": {"value": auroc.value, "n": auroc.n, "low": auroc.low, "high": auroc.high},
        "n_held_out": list(found.n_held_out),
    }


def _print_fitted(named: "dict[str, FittedDirection]", *, title: str) -> None:
    table = Table("direction", "layer", "read at", "norm", "AUROC, held out", title=escape(title))
    for name, found in named.items():
        direction = found.direction
        share = direction.norm / (direction.mean_activation_norm or 1)
        n_positive, n_negative = found.n_held_out
        table.add_row(
            escape(name),
            str(direction.layer),
            escape(direction.position),
            f"{direction.norm:.3g} ({share:.2f} of the mean activation)",
            f"{found.auroc}, n = {n_positive} + {n_negative}",
        )
    console.print(table)
