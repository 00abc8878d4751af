"""`interp store`: what an activation store holds, whether it is sound, what it will take, parts of it as files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.options import (
    JsonOption,
    print_json,
    print_lines,
    print_table,
    status,
    takes_model,
    user_errors,
)
from interp.cli.prompt_arguments import layers_of, names_of
from interp.display.tables import Table
from interp.models.sources import ModelSource

if TYPE_CHECKING:
    from interp.storage.activation_store import ActivationStore, StoredTable

app = typer.Typer(
    no_args_is_help=True, help="Activation stores, with completions: list, check, prune and export them."
)
StoreOption = Annotated[str, typer.Option("--store", help="The store: a folder, or s3://bucket/prefix.")]
TableArgument = Annotated[
    str, typer.Argument(help="A table, or the beginning of its name; all if not given.")
]
_DEFAULT = "runs/store"


@app.command("ls")
def list_tables(store: StoreOption = _DEFAULT, json_output: JsonOption = False) -> None:
    """List the tables of a store: model, site or completions, dtype, rows, size.

    Example: `interp store ls --store runs/store`
    """
    with user_errors():
        tables = list(_open(store).tables())
        if json_output:
            print_json([_facts(stored) for stored in tables])
            return
        rows = [
            [
                stored.id[:8],
                stored.about.get("model", ""),
                stored.content.key.site,
                stored.content.key.dtype,
                "yes" if stored.content.key.interventions else "",
                stored.content.rows,
                f"{stored.content.size / 1e6:,.1f} MB",
                stored.about["made"][:10],
            ]
            for stored in tables
        ]
        header = ["table", "model", "site", "dtype", "interventions", "rows", "size", "made"]
        total = sum(stored.content.size for stored in tables)
        print_table(Table(header=header, rows=rows), title=f"{store}, {total / 1e6:,.1f} MB")


@app.command("info")
def info(table: TableArgument = "", store: StoreOption = _DEFAULT) -> None:
    """Show all that determines the activations or completions of a table, as JSON.

    Example: `interp store info 3fa2`
    """
    with user_errors():
        tables = list(_open(store).tables(table))
        if not tables:
            raise ValueError(f"{store} has no table {table!r}; `interp store ls` lists them")
        print_json([_facts(stored) for stored in tables])


@app.command("estimate")
@takes_model(without=("store",))
def estimate(
    model: ModelSource,
    n_prompts: Annotated[int, typer.Option("--n-prompts", "-n", min=1, help="Number of prompts.")],
    layers: Annotated[str | None, typer.Option(help="Such as 10-20 or 8,12,16; all if not given.")] = None,
    n_roles: Annotated[int, typer.Option(min=1, help="Tokens of each prompt that are read.")] = 2,
    n_sites: Annotated[int, typer.Option(min=1, help="Sites that are read.")] = 1,
) -> None:
    """Say how much space the activations of so many prompts take, before anything is computed.

    Example: `interp store estimate -n 100000 --layers 10-20 --dtype bfloat16`
    """
    with user_errors():
        chosen = None if layers is None else layers_of(layers)
        from interp.models.chat_model import load_source
        from interp.storage.activation_store import estimated_bytes

        with status(f"loading {model.shown}"):
            loaded = load_source(model)
        n_layers, dtype = len(loaded.layer_list(chosen)), str(loaded.dtype).removeprefix("torch.")
        size = estimated_bytes(n_prompts, n_layers, n_roles, loaded.d_model, dtype=dtype, n_sites=n_sites)
        print_lines(
            f"{size / 1e9:,.2f} GB: {n_prompts} prompts x {n_layers} layers x {n_roles} roles x {n_sites} sites x "
            f"{loaded.d_model} numbers in {dtype}, {size / n_prompts / 1e3:,.1f} kB a prompt"
        )


@app.command("verify")
def verify(table: TableArgument = "", store: StoreOption = _DEFAULT) -> None:
    """Read everything and compare it with its hashes.

    What is damaged is never served: collecting or completing the same prompts computes it again.

    Example: `interp store verify`
    """
    with user_errors():
        found = _open(store).verify(table)
        if found.damaged:
            first = found.damaged[0]
            where = "" if first.layer is None else f", layer {first.layer}"
            raise ValueError(
                f"{len(found.damaged)} places of {store} are damaged, the first in table {first.table[:8]}, fragment "
                f"{first.fragment}, row {first.place}{where}; collecting or completing the prompts again replaces them"
            )
        print_lines(f"{found.cells} vectors and completions of {store} are what was written")


@app.command("prune")
def prune(
    store: StoreOption = _DEFAULT,
    table: Annotated[
        list[str] | None, typer.Option("--table", help="Remove this table; may be repeated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Remove the tables that were made with this model.")
    ] = None,
) -> None:
    """Remove tables; without any named, only join small writes and remove what killed runs left.

    Example: `interp store prune --model smollm2`
    """
    with user_errors():
        opened = _open(store)
        listed = list(opened.tables())
        doomed = {s.id: s for s in listed if model is not None and s.about.get("model") == model}
        for name in table or ():
            fitting = [s for s in listed if s.id.startswith(name)]
            if len(fitting) != 1:
                raise ValueError(
                    f"{len(fitting)} tables of {store} begin with {name!r}; `interp store ls` lists them"
                )
            doomed |= {s.id: s for s in fitting}
        if model is not None and not doomed:
            raise ValueError(f"{store} has no table of {model!r}; `interp store ls` lists them")
        for name in doomed:
            opened.remove(name)
        opened.compact()
        freed = sum(s.content.size for s in doomed.values())
        print_lines(f"removed {len(doomed)} of {len(listed)} tables ({freed / 1e6:,.1f} MB) from {store}")


@app.command("export")
def export(
    out: Annotated[
        Path,
        typer.Option(help="File (.safetensors, .npy, .parquet), or a folder for a data set of `datasets`."),
    ],
    table: Annotated[str, typer.Argument(help="A table, or the beginning of its name.")] = "",
    store: StoreOption = _DEFAULT,
    layers: Annotated[str | None, typer.Option(help="Such as 10-20 or 8,12,16; all if not given.")] = None,
    roles: Annotated[str | None, typer.Option(help="Such as t_inst,t_post_inst; all if not given.")] = None,
    site: Annotated[str | None, typer.Option(help="Such as resid_pre, where several are stored.")] = None,
) -> None:
    """Write a part of a store as a file of another tool.

    Example: `interp store export --layers 12 --roles t_post_inst --out layer12.safetensors`
    """
    with user_errors():
        opened = _open(store)
        from interp.storage.store_slices import select

        chosen = None if layers is None else list(_numbers(layers))
        part = select(
            opened,
            table=table,
            site=site,
            layers=chosen,
            roles=None if roles is None else names_of(roles),
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".safetensors":
            part.to_safetensors(out)
        elif out.suffix == ".npy":
            import numpy as np

            np.save(out, part.values())
        elif out.suffix == ".parquet":
            part.to_pandas().to_parquet(out)
        elif not out.suffix:
            part.to_datasets().save_to_disk(str(out))
        else:
            raise ValueError(f"unknown target {out.name!r}; use .safetensors, .npy, .parquet or a folder")
        print_lines(f"{len(part)} rows x {len(part.layers)} layers: {out.resolve()}")


def _numbers(layers: str) -> Any:
    given: Any = layers_of(layers)
    return [given] if isinstance(given, int) else given


def _open(store: str) -> "ActivationStore":
    from interp.storage.activation_store import ActivationStore

    return ActivationStore(store)


def _facts(stored: "StoredTable") -> dict[str, Any]:
    return {"table": stored.id, **stored.about, **asdict(stored.content)}
