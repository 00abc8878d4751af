"""Series of checkpoints: `track`; the bundled model's adapter: `train-safe`."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.judging import print_judgements
from interp.cli.options import (
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
    shows_progress,
    takes_model,
    user_errors,
)
from interp.cli.prompt_arguments import names_of
from interp.models.sources import ModelSource

if TYPE_CHECKING:
    from interp.tracking.spec import TrackingSpec


@takes_model(
    default="",
    flags=("--base",),
    help="Model that adapters belong to; the one each names when not given.",
    without=("adapter", "revision", "delta"),  # a checkpoint is an adapter, or says @revision
)
def track_series(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Folders (checkpoint-* inside: all of them, by step), adapters, Hub ids, owner/name@rev,rev."
        ),
    ],
    model: ModelSource,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/track"),
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
    knowledge: Annotated[
        str | None,
        typer.Option(
            help="Also measure accuracy on these multiple-choice questions: builtin, safelawbench, a file."
        ),
    ] = None,
    seed: SeedOption = 0,
    judges: JudgesOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure behaviour, beliefs, directions, compression and KL along a series of checkpoints.

    Example: `interp track runs/sft --base smollm2 --corpus news=news.jsonl --out runs/track`

    Two checkpoints at a time: `interp track runs/sft --base smollm2 --workers 2`
    """
    with user_errors():
        from interp.data.corpora import read_corpus
        from interp.data.prompts import load_prompts
        from interp.evaluation.judges.loading import check_names
        from interp.storage.run_folders import check_target
        from interp.tracking.checkpoints import find_checkpoints

        check_target(out)
        chosen_judges = names_of(judges or "")
        check_names(chosen_judges)
        files = _corpus_files(corpus or [])
        chosen = load_prompts(prompts, column=column, seed=seed, ending=ending)  # pyright: ignore[reportArgumentType]
        corpora = {name: read_corpus(name, path) for name, path in files.items()} or None
        asked = [replace(model, name=checkpoint) for checkpoint in checkpoints]
        find_checkpoints(asked, base=model.name or None)  # before torch is loaded
        from interp.engine.ray_cluster import workers_asked
        from interp.tracking.tracker import track

        trajectory = track(
            asked,
            _spec(knowledge, prompts=chosen, corpora=corpora, n=n, seed=seed),
            base=model.name or None,
            reference=None if reference is None else replace(model, name=reference),
            out=out,
            judges=chosen_judges,
            workers=workers_asked(workers, ray, device=model.device),
            show_progress=shows_progress(),
        )
        if json_output:
            from interp.storage.run_folders import stored_json

            print_json(stored_json(out))
            return
        print_judgements(trajectory.record.judgements)
        for line in trajectory.verdicts():
            print_lines(line)
        print_lines(f"report: {(out / 'report.html').resolve()}")


def _corpus_files(items: list[str]) -> dict[str, str]:
    """Files of corpora by name."""
    files = {name: path for name, _, path in (item.partition("=") for item in items)}
    if not all(name and path for name, path in files.items()):
        raise ValueError(f"--corpus takes NAME=FILE, got {', '.join(items)}")
    return files


def _spec(knowledge: str | None, **settings: Any) -> "TrackingSpec":
    """The default measures, and accuracy on multiple-choice questions where some are asked."""
    from interp.tracking.records import DEFAULT_GROUPS
    from interp.tracking.spec import TrackingSpec

    if knowledge is None:
        return TrackingSpec(measures=DEFAULT_GROUPS, **settings)
    return TrackingSpec(measures=(*DEFAULT_GROUPS, "knowledge"), questions=knowledge, **settings)


def train_safe(
    out: Annotated[Path, typer.Option(help="Adapter folder to write.")] = Path("runs/smollm2-safe"),
    seed: SeedOption = 0,
) -> None:
    """Rebuild the safety adapter of smollm2-safe on the builtin training split, measure it, write its model card.

    Example: `interp train-safe --out runs/smollm2-safe` (about half an hour on two cores)
    """
    with user_errors():
        from interp.data.prompts import load_prompts
        from interp.models.chat_model import load
        from interp.training.safety_adapter import RECIPE, calibrate, train_safety_adapter, write_model_card

        logging.getLogger("interp").setLevel(logging.INFO)
        prompts = load_prompts("builtin")
        train_safety_adapter(load("smollm2"), prompts, out=out, config=replace(RECIPE, seed=seed))
        calibrate("smollm2", prompts, out=out)
        write_model_card(load("smollm2"), load("smollm2", adapter=str(out)), prompts, out=out)
        console.print((out / "README.md").read_text(), markup=False)
