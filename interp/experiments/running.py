"""Runs of experiments from Python: list, open and compare stored ones, or run one.

    interp.runs()                                                    # every stored run, newest first
    interp.open_run("figures/demo").figures()["refusal_rates"]
    interp.run("refusal-direction", settings={"kl_threshold": 1.0})  # opened where it is stored, computed where not

A stored run answers only the question that was asked: experiment, model, prompts and every setting must be those of the
request. Settings that a request does not name are the defaults.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.display.cards import Card, Shown, Table
from interp.experiments import EXPERIMENTS
from interp.experiments.definition import Experiment, Run
from interp.experiments.requests import Request
from interp.models.sources import ModelSource
from interp.storage.paths import expanded
from interp.storage.run_folders import read_header, result_file

if TYPE_CHECKING:
    from interp.data.prompts import PromptSet
    from interp.engine.ray_cluster import Workers
    from interp.models.chat_model import ChatModel
    from interp.storage.activation_store import ActivationStore

logger = logging.getLogger(__name__)

Source = Literal["any", "stored", "computed"]
_PLACES = ("runs", "figures")


def experiment(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        ValueError: unknown name.
    """
    if not isinstance(name, str) or name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    return import_module(EXPERIMENTS[name]).EXPERIMENT


def open_run(folder: str | Path) -> Run[Any]:
    """Read a run folder; needs no model.

    Raises:
        ValueError: not a run folder, damaged, of another format, or of an experiment that is not known here.
    """
    header = read_header(folder)
    if header.experiment not in EXPERIMENTS:
        raise ValueError(
            f"{header.path} is a run of {header.experiment!r}, which this interp does not know; it has "
            f"{', '.join(EXPERIMENTS)}"
        )
    return experiment(header.experiment).open(header)


def run(
    name: str,
    *,
    source: Source = "any",
    model: "str | Path | ModelSource | ChatModel | None" = None,
    adapter: str | None = None,
    prompts: "str | Path | Mapping[str, Any] | PromptSet" = "builtin",
    settings: Mapping[str, Any] | None = None,
    judges: Sequence[str] = (),
    out: str | Path | None = None,
    store: "ActivationStore | str | Path | None" = "runs/store",
    workers: "Workers | None" = None,
    show_progress: bool = True,
) -> Run[Any]:
    """A run of an experiment: the stored one that answers exactly this question, or one computed now.

    Args:
        name: a name of `interp list`.
        source: `any` opens a stored run of the same request and computes where there is none; `stored` never computes;
            `computed` always does, or continues an interrupted one.
        model: a name as `interp.load` takes it, a `ModelSource` (with revision, dtype, device, chat template), or a
            loaded model; the experiment's own choice when None.
        adapter: PEFT adapter, with a model given by name.
        prompts: what `interp.load_prompts` takes, or a loaded set.
        settings: of the experiment's `Config`, by name; the others have their defaults.
        judges: names of judges (`interp.evaluation.judges.loading`) that also judge every reply of the run.
        out: run folder to look in and to write to; when None, looks through `runs/` and `figures/` here and up to two
            folders above, and writes to `runs/<name>`.
        store: activation store, or where it is; None for none. By default that of `interp.using_store` or of the
            environment (`INTERP_STORE`) where one is said.
        workers: processes that share the run's parts (`interp.engine.ray`), for an experiment that has any.

    Raises:
        ValueError: unknown experiment, source or setting; or `source="stored"` and no stored run answers the question:
            the message says what differs.
    """
    asked = request(name, model=model, adapter=adapter, prompts=prompts, settings=settings, judges=judges)
    if source not in ("any", "stored", "computed"):
        raise ValueError(f"source must be 'any', 'stored' or 'computed', got {source!r}")
    if source != "computed":
        near: list[str] = []
        for stored in _candidates(name, out):
            if not (differs := asked.differences(stored)):
                return stored
            near.append(f"{stored.folder}: {'; '.join(differs[:4])}")
        if source == "stored":
            seen = (
                f" The nearest are {' | '.join(near[:3])}" if near else " There is none of this experiment."
            )
            raise ValueError(f"no stored run of {name} was asked this.{seen}")
        if near:
            logger.info("no stored run was asked this (%s); computing", " | ".join(near[:3]))
    target = Path("runs") / name if out is None else expanded(out)
    return compute(asked, out=target, store=store, workers=workers, show_progress=show_progress)


def request(
    name: str,
    *,
    model: "str | Path | ModelSource | ChatModel | None" = None,
    adapter: str | None = None,
    prompts: "str | Path | Mapping[str, Any] | PromptSet" = "builtin",
    settings: Mapping[str, Any] | None = None,
    judges: Sequence[str] = (),
) -> Request:
    """What is asked of an experiment; nothing is loaded.

    Raises:
        ValueError: unknown experiment, a setting that it does not have, or a model that it does not need.
    """
    found = experiment(name)
    config = found.configure(settings)
    if found.default_model is None:
        if model is not None or adapter is not None:
            raise ValueError(
                f"{name} needs no model, got {adapter if model is None else model}; leave it out"
            )
        return Request(experiment=found, config=config, model=None, prompts=None, judges=tuple(judges))
    chosen = found.default_model if model is None else model
    if isinstance(chosen, (str, Path)):
        chosen = ModelSource(str(chosen), adapter)
    elif adapter is not None:
        raise ValueError("adapter= goes with a model given by name; a loaded model has its adapter already")
    if not isinstance(chosen, ModelSource) and not hasattr(chosen, "provenance"):
        raise ValueError(
            f"model must be a name, a folder or what interp.load gives, got {type(chosen).__name__}; load it: "
            "interp.load(model, tokenizer=...)"
        )
    if isinstance(chosen, ModelSource) and not chosen.name:
        chosen = replace(chosen, name=found.default_model)
    return Request(experiment=found, config=config, model=chosen, prompts=prompts, judges=tuple(judges))


def compute(
    asked: Request,
    *,
    out: Path,
    store: "ActivationStore | str | Path | None" = "runs/store",
    workers: "Workers | None" = None,
    show_progress: bool = False,
) -> Run[Any]:
    """Load what is asked for by name and run the experiment."""
    asked.check(out)
    if workers is not None:
        asked.experiment.check_workers(asked.judges)
    from interp.engine.stored_activations import experiment_store

    with experiment_store(store):  # a place that is none is refused before anything is loaded
        ready: Any = asked.loaded()
        return asked.experiment.run(
            ready.model,
            ready.prompts,
            asked.config,
            out=out,
            judges=asked.judges,
            workers=workers,
            show_progress=show_progress,
        )


class StoredRuns(Shown):
    """Stored runs, newest first, as a table; a sequence of `Run`."""

    def __init__(self, found: Sequence[Run[Any]], unreadable: Mapping[Path, str]) -> None:
        self._runs = tuple(found)
        self.unreadable = dict(unreadable)
        """Run folders that cannot be read, and why."""

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: int) -> Run[Any]:
        return self._runs[index]

    def __iter__(self) -> Iterator[Run[Any]]:
        return iter(self._runs)

    @property
    def table(self) -> Table:
        """Folder, experiment, model, prompts, date and headline of each."""
        return Table(
            header=["folder", "experiment", "model", "prompts", "date", "headline"],
            rows=[
                [
                    str(r.folder),
                    r.experiment.name,
                    r.provenance.model_name,
                    "" if r.provenance.prompts is None else r.provenance.prompts.name,
                    r.provenance.created[:10],
                    next(iter(r.verdicts()), ""),
                ]
                for r in self._runs
            ],
        )

    def _card(self) -> Card:
        notes = [f"{folder} cannot be read: {why}" for folder, why in self.unreadable.items()]
        return Card(title=f"{len(self)} stored runs", tables=[self.table], notes=notes)


def runs(*places: str | Path) -> StoredRuns:
    """Stored runs below these folders, newest first.

    Args:
        places: `runs/` and `figures/` here and up to two folders above when none is given.

    Raises:
        ValueError: a place that is no folder.
    """
    if missing := [place for place in places if not expanded(place).is_dir()]:
        raise ValueError(
            f"no such folder: {missing[0]}; give folders that hold runs, or none for runs/ and figures/"
        )
    found: list[Run[Any]] = []
    unreadable: dict[Path, str] = {}
    for folder in _run_folders([expanded(place) for place in places] if places else _places()):
        try:
            stored = open_run(folder)
            stored.verdicts()  # a run that cannot be drawn is listed as unreadable
            found.append(stored)
        except ValueError as error:
            unreadable[folder] = str(error)
    found.sort(key=lambda r: r.provenance.created, reverse=True)
    return StoredRuns(found, unreadable)


def _places() -> list[Path]:
    here = Path.cwd()
    return [base / place for base in (here, *list(here.parents)[:2]) for place in _PLACES]


def _run_folders(places: Sequence[Path]) -> list[Path]:
    """Run folders among these and directly inside them."""
    found = [f for place in places for f in (place, *(sorted(place.iterdir()) if place.is_dir() else ()))]
    return [folder for folder in dict.fromkeys(found) if result_file(folder) is not None]


def _candidates(name: str, out: str | Path | None) -> Iterator[Run[Any]]:
    """Stored runs of an experiment; those that cannot be read are logged and skipped."""
    for folder in _run_folders(_places() if out is None else [expanded(out)]):
        try:
            header = read_header(folder)
            if header.experiment == name:
                yield experiment(name).open(header)
        except ValueError as error:
            logger.warning("%s", error)
