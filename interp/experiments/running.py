"""Runs of experiments from Python: open a stored one, without a model, or run one.

interp.open_run("runs/demo").figures()["refusal_rates"]
interp.run("refusal-direction", settings={"kl_threshold": 1.0})      # stored where it is, computed where not
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.display.cards import Card, Shown, result_card
from interp.experiments import EXPERIMENTS, REPORTS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

Source = Literal["stored", "computed"]
_PLACES = ("runs", "figures")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Run(Shown):
    """A finished run, read from its folder."""

    numbers: "dict[str, Any]"
    """Contents of `result.json`."""
    tensors: "dict[str, Tensor]"
    """Contents of `tensors.safetensors`; empty where only numbers were kept."""
    folder: Path
    """Where it was read from."""

    @property
    def experiment(self) -> Any:
        """The experiment's module."""
        return report_module(str(self.numbers.get("experiment")))

    def figures(self) -> "dict[str, go.Figure]":
        """Every figure by name, drawn from the stored numbers."""
        return self.experiment.figures(self.numbers)

    def table(self) -> "pd.DataFrame":
        """The main numbers."""
        import pandas as pd

        shown = self.experiment.rate_table(self.numbers)
        return pd.DataFrame(shown.rows, columns=list(shown.header))

    def verdicts(self) -> list[str]:
        """What the data say, claim by claim."""
        return self.experiment.verdicts(self.numbers)

    def _card(self) -> Card:
        card = result_card(self.numbers, self.experiment)
        return Card(
            title=card.title,
            facts={**card.facts, "read from": os.path.relpath(self.folder)},
            tables=card.tables,
            notes=card.notes,
        )


def open_run(folder: str | Path) -> Run:
    """Read a run folder; needs no model.

    Raises:
        ValueError: not a run folder, damaged, of another format, or of an experiment that is not known here.
    """
    from interp.storage.run_folders import load_result

    stored = load_result(folder)
    report_module(str(stored.numbers.get("experiment")))
    return Run(numbers=stored.numbers, tensors=stored.tensors, folder=Path(folder))


def run(
    experiment: str,
    *,
    source: Source = "stored",
    model: str | None = None,
    prompts: str = "builtin",
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    show_progress: bool = True,
) -> Run:
    """A run of an experiment: the stored one, or one computed now.

    Args:
        experiment: a name of `interp list`.
        source: `stored` opens the run that `find_run` finds and computes only where there is none; `computed` always
            computes, or goes on where an earlier one was stopped.
        model: a name that `interp.load` takes, or the experiment's own choice; only loaded when something is computed.
        settings: of the experiment's `Config`, by name.
        out: run folder; `runs/<experiment>` where not given.

    Raises:
        ValueError: unknown experiment, source or setting.
    """
    module = experiment_module(experiment)
    if source not in ("stored", "computed"):
        raise ValueError(f"source must be 'stored' or 'computed', got {source!r}")
    found = find_run(experiment, out=out)
    if source == "stored" and found is not None:
        return open_run(found)
    from interp.data.prompts import load_prompts
    from interp.models.chat_model import load

    target = Path("runs") / experiment if out is None else Path(out)
    known = module.Config.__dataclass_fields__
    if unknown := [name for name in settings or {} if name not in known]:
        raise ValueError(f"{experiment} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    config = module.Config(**(settings or {}))
    chosen = model or getattr(module, "DEFAULT_MODEL", "smollm2-safe")
    if chosen is None:
        module.run(config, out=target, show_progress=show_progress)
    else:
        module.run(load(chosen), load_prompts(prompts), config, out=target, show_progress=show_progress)
    return open_run(target)


def find_run(experiment: str, *, out: str | Path | None = None) -> Path | None:
    """Folder of a stored run: `out`, else `runs/` or `figures/` here or up to two folders above; None where none is."""
    here = Path.cwd()
    places = (
        [base / place / experiment for base in (here, *list(here.parents)[:2]) for place in _PLACES]
        if out is None
        else [Path(out)]
    )
    return next((place for place in places if (place / "result.json").is_file()), None)


def experiment_module(name: str) -> Any:
    """An experiment's module.

    Raises:
        ValueError: unknown name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    return import_module(EXPERIMENTS[name])


def report_module(name: str) -> Any:
    """The module that draws a stored run: an experiment's, or the one of another kind of run (`REPORTS`).

    Raises:
        ValueError: unknown name.
    """
    return import_module(REPORTS[name]) if name in REPORTS else experiment_module(name)
