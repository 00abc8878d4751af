"""`interp data`: named public data sets, their files on this machine, and how much two of them overlap."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import (
    JsonOption,
    print_card,
    print_json,
    print_lines,
    print_table,
    status,
    user_errors,
)
from interp.display.tables import Table

app = typer.Typer(
    no_args_is_help=True,
    help="Named public data sets: list them, download them, check them, see how much they overlap.",
)
_Names = Annotated[list[str], typer.Argument(help="Names of `interp data ls`.")]


@app.command("ls")
def list_sets(
    kind: Annotated[
        str | None,
        typer.Option(help="Only harmful, harmless, borderline, jailbreak, preference or multiple choice."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List the named sets: kind, rows, licence, whether their revision is pinned and their files are on this machine.

    Example: `interp data ls --kind harmful`
    """
    with user_errors():
        from interp.data.downloads import here
        from interp.data.registry import SET_KINDS, known_sets

        if kind is not None and kind not in SET_KINDS:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join(SET_KINDS)}")
        found = [entry for entry in known_sets().values() if kind in (None, entry.kind)]
        if json_output:
            print_json([{**entry.model_dump(mode="json"), "here": here(entry)} for entry in found])
            return
        rows = [
            [
                entry.name,
                entry.kind,
                "" if entry.rows is None else entry.rows,
                entry.licence + (" (not commercial)" if entry.non_commercial else ""),
                "yes" if entry.revision else "no",
                "yes" if here(entry) else "no",
            ]
            for entry in found
        ]
        header = ["name", "kind", "rows", "licence", "pinned", "here"]
        print_table(Table(header=header, rows=rows), title="named data sets, for --prompts a+b")


@app.command("show")
def show_set(
    name: Annotated[str, typer.Argument(help="A name of `interp data ls`.")], json_output: JsonOption = False
) -> None:
    """Show one set: revision, licence, columns, parts, how its prompts end, what to cite.

    Example: `interp data show xstest`
    """
    with user_errors():
        from interp.data.downloads import how_to_get, located
        from interp.data.registry import data_set
        from interp.display.cards import Card

        found = data_set(name)
        files = located(found)
        if json_output:
            payload = {part.label: [str(file) for file in of] for part, of in (files or {}).items()}
            print_json({**found.model_dump(mode="json"), "files": payload})
            return
        rows = [
            [
                part.label,
                "not recorded" if part.rows is None else part.rows,
                ", ".join(part.download) or "not recorded",
                ", ".join(str(file) for file in files[part]) if files and part in files else "not here",
            ]
            for part in found.parts
        ]
        columns = {role: names for role, names in found.columns.model_dump().items() if names}
        card = Card(
            title=f"{found.name}: {found.title}",
            facts={
                "kind": found.kind,
                "source": found.source,
                "Hub id": found.hub or "none",
                "licence": found.licence + (", not for commercial use" if found.non_commercial else ""),
                "columns": "; ".join(f"{role}: {' or '.join(names)}" for role, names in columns.items()),
                "prompts end": found.ends or "not recorded; `interp data check` measures it",
                "cite": found.citation,
            },
            tables=[Table(header=["part", "rows", "published file", "here"], rows=rows)],
            notes=[] if files else [how_to_get(found)],
        )
        print_lines(card.text())


@app.command("fetch")
def fetch_sets(
    names: _Names,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A folder or file that was downloaded by hand, to be copied into the cache."
        ),
    ] = None,
) -> None:
    """Download sets at their pinned revision, or take files that were downloaded by hand.

    Example: `interp data fetch xstest --from ~/Downloads/xstest_prompts.csv`
    """
    with user_errors():
        from interp.data.downloads import adopt, checked_files, fetch, located, offered
        from interp.data.named_prompts import check_readable
        from interp.data.registry import data_set

        chosen = [data_set(name) for name in names]
        if source is not None and len(chosen) > 1:
            raise ValueError("--from holds the files of one set; give one name")
        for found in chosen:
            with status(f"fetching {found.name}"):
                if source is not None:  # before anything is copied or recorded
                    check_readable(found, offered(found, source))
                files = fetch(found) if source is None else adopt(found, source)
                if source is None:
                    check_readable(found, located(found) or {})
            checked_files(found)
            print_lines(*(f"{found.name}: {file}" for file in files))


@app.command("check")
def check_sets(
    names: _Names,
    record: Annotated[
        bool, typer.Option("--record", help="Take the files as they are now for those of the first use.")
    ] = False,
    threshold: Annotated[
        float, typer.Option(help="Jaccard index of 5-grams from which two prompts are nearly the same.")
    ] = 0.7,
    json_output: JsonOption = False,
) -> None:
    """Check files by hash and rows, measure how prompts end, and count prompts that two sets have in common.

    Example: `interp data check advbench harmbench alpaca`
    """
    with user_errors():
        from interp.data.downloads import located
        from interp.data.downloads import record as record_hashes
        from interp.data.named_prompts import all_prompts
        from interp.data.overlaps import overlap
        from interp.data.registry import data_set
        from interp.data.set_checks import check_set

        chosen = [data_set(name) for name in dict.fromkeys(names)]
        for found in chosen if record else ():
            if files := located(found):
                record_hashes(found, files)
        checked = [check_set(found) for found in chosen]
        lists = [prompts for found in chosen for prompts in all_prompts(found)]
        found_pairs = [
            overlap(first, second, threshold=threshold)
            for row, first in enumerate(lists)
            for second in lists[row + 1 :]
        ]
        if json_output:
            pairs = [{key: value for key, value in asdict(o).items() if key != "pairs"} for o in found_pairs]
            print_json({"sets": [asdict(entry) for entry in checked], "overlaps": pairs})
            return
        for entry in checked:
            print_card(entry)
        common = [each for each in found_pairs if each.exact + each.near]
        if common:
            header = ["prompts of", "in", "of so many", "the same", "nearly"]
            rows = [[o.second, o.first, o.n_second, o.exact, o.near] for o in common]
            print_table(
                Table(header=header, rows=rows), title=f"overlap, Jaccard index {threshold:g} of 5-grams"
            )
        if rest := len(found_pairs) - len(common):
            pairs = f"{'the other ' if common else ''}{rest} pairs of parts"
            print_lines(f"no prompt in common, at a Jaccard index of {threshold:g}: {pairs}")
