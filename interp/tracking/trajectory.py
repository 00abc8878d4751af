"""A trajectory: the same measurements along a series of checkpoints, as a tidy table with provenance.

One row is one number: checkpoint, index, step, measure, prompts (a kind, or a corpus), layer, value, n, low, high,
status. `low` and `high` are the 95% interval, equal to the value where it is exact (`weight_change`). A checkpoint that
could not be measured has one row, measure `checkpoint`, whose status names the reason.

    trajectory = Trajectory.load("runs/track")
    trajectory.of("refusal_rate", "harmful")[["step", "value", "low", "high"]]
    trajectory.figures()["trajectory"].show()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from interp.display.cards import Card, Shown, result_card
from interp.storage.provenance import library_versions
from interp.storage.untyped import load_result, save_result
from interp.tracking import report as trajectory_report
from interp.tracking.report import NAME, figures, report, verdicts
from interp.tracking.spec import Probe

COLUMNS = (
    "checkpoint",
    "index",
    "step",
    "measure",
    "prompts",
    "layer",
    "value",
    "n",
    "low",
    "high",
    "status",
)
"""Of the table, in this order."""
_WHOLE = ("index", "step", "layer", "n")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Trajectory(Shown):
    """Measurements along a series of checkpoints."""

    frame: pd.DataFrame
    """One row a number, columns `COLUMNS`."""
    checkpoints: tuple[Mapping[str, Any], ...]
    """Label, step, fingerprint, status and seconds of each checkpoint, in order."""
    reference: Mapping[str, Any]
    """What the reference checkpoint fixed: its label, refusal tokens, axes with their layers, controls and AUROC."""
    provenance: Mapping[str, Any]
    """Model, prompts, probe, versions."""
    step_unit: str = "step"
    """What `step` counts."""
    cost: Mapping[str, float] | None = None
    """Of a live run: seconds of a measurement and of a training step, and the first in units of the second."""

    def of(self, measure: str, prompts: str | None = None, *, layer: int | None = None) -> pd.DataFrame:
        """The rows of one measure that have a value.

        Raises:
            ValueError: no such measure or prompts in this trajectory.
        """
        found: Any = self.frame[self.frame["measure"] == measure]
        if found.empty:
            known = ", ".join(sorted(set(self.frame["measure"]) - {"checkpoint"}))
            raise ValueError(f"no measure {measure!r} in this trajectory; it has {known}")
        if prompts is not None:
            known = ", ".join(dict.fromkeys(found["prompts"].astype(str)))
            found = found[found["prompts"] == prompts]
            if found.empty:
                raise ValueError(f"no {measure} of {prompts!r}; there is {known}")
        if layer is not None:
            found = found[found["layer"] == layer]
        return found[found["status"] == "ok"].reset_index(drop=True)

    @property
    def skipped(self) -> dict[str, str]:
        """Checkpoint → why it could not be measured."""
        rows: Any = self.frame[self.frame["measure"] == "checkpoint"]
        return dict(zip(rows["checkpoint"], rows["status"], strict=True))

    @property
    def numbers(self) -> dict[str, Any]:
        """As in `result.json`."""
        rows = self.frame.astype(object).where(self.frame.notna(), None)
        return {
            "experiment": NAME,
            "step_unit": self.step_unit,
            "checkpoints": [dict(entry) for entry in self.checkpoints],
            "reference": dict(self.reference),
            "cost": None if self.cost is None else dict(self.cost),
            "seconds": {"total": round(sum(entry["seconds"] for entry in self.checkpoints), 2)},
            "rows": rows.to_dict("records"),
            "provenance": dict(self.provenance),
        }

    def figures(self) -> dict[str, go.Figure]:
        """All figures by name."""
        return figures(self.numbers)

    def verdicts(self) -> list[str]:
        """What changed from the reference to the last checkpoint, in words that follow from the intervals."""
        return verdicts(self.numbers)

    def save(self, folder: str | Path, *, drawn: bool = True) -> Path:
        """Write the run folder atomically: result, `trajectory.csv`, and when drawn the figures and the report."""
        numbers = self.numbers
        return save_result(
            folder,
            numbers,
            figures=figures(numbers) if drawn else None,
            report=report(numbers) if drawn else None,
            files={"trajectory.csv": self.frame.to_csv(index=False).encode()},
        )

    def _card(self) -> Card:
        return result_card(self.numbers, trajectory_report)

    @classmethod
    def load(cls, folder: str | Path) -> "Trajectory":
        """Read a run folder.

        Raises:
            ValueError: no run folder, damaged, or of another experiment.
        """
        numbers = load_result(folder).numbers
        if numbers.get("experiment") != NAME:
            raise ValueError(
                f"{folder} holds a run of {numbers.get('experiment')}, not a trajectory; give the --out of interp track"
            )
        return cls(
            frame=as_frame(numbers["rows"]),
            checkpoints=tuple(numbers["checkpoints"]),
            reference=numbers["reference"],
            provenance=numbers["provenance"],
            step_unit=numbers["step_unit"],
            cost=numbers["cost"],
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of one checkpoint."""

    label: str
    step: int | None
    fingerprint: str
    """Changes with the checkpoint's content."""
    rows: tuple[Mapping[str, Any], ...]
    """As `probes.as_records` makes them; empty when it was skipped."""
    status: str = "ok"
    """Why it was skipped, otherwise."""
    seconds: float = 0.0
    """Of loading and measuring it."""


def assemble(
    series: Sequence[Measured],
    reference: Mapping[str, Any],
    probe: Probe,
    *,
    step_unit: str = "step",
    cost: Mapping[str, float] | None = None,
) -> Trajectory:
    """The trajectory of these measurements; `reference` is `Reference.facts` with its label and fingerprint."""
    records = []
    for index, found in enumerate(series):
        place = {"checkpoint": found.label, "index": index, "step": found.step}
        missing = {"measure": "checkpoint", "prompts": None, "layer": None, "n": 0, "status": found.status}
        rows = found.rows if found.status == "ok" else (missing,)
        records += [{**place, **row} for row in rows]
    facts = dict(reference)
    model = facts.pop("model")
    return Trajectory(
        frame=as_frame(records),
        checkpoints=tuple(
            {
                "label": found.label,
                "index": index,
                "step": found.step,
                "fingerprint": found.fingerprint,
                "status": found.status,
                "seconds": found.seconds,
            }
            for index, found in enumerate(series)
        ),
        reference=facts,
        provenance={
            **model,
            "prompts": probe.measured_prompts.provenance,
            "probe": probe.provenance,
            "seed": probe.seed,
            "versions": library_versions(),
            "threads": torch.get_num_threads(),
        },
        step_unit=step_unit,
        cost=cost,
    )


def as_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Records as the tidy table; whole numbers stay whole where some are missing."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in _WHOLE:
        frame[column] = frame[column].astype("Int64")
    for column in ("value", "low", "high"):
        frame[column] = frame[column].astype("float64")
    return frame
