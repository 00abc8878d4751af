"""A trajectory: the same measurements along a series of checkpoints, as a tidy table with provenance.

One row is one number: checkpoint, index, step, measure, prompts (a kind, or a corpus), layer, value, n, low, high,
status. `low` and `high` are the 95% interval, equal to the value where it is exact (`weight_change`). A checkpoint that
could not be measured has one row, measure `checkpoint`, whose status names the reason.

    trajectory = Trajectory.load("runs/track")
    trajectory.of("refusal_rate", "harmful")[["step", "value", "low", "high"]]
    trajectory.figures()["trajectory"].show()
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.display.cards import Card, Shown
from interp.evaluation.judges.pages import with_judgements
from interp.evaluation.judges.records import judgement_lines
from interp.storage.paths import expanded
from interp.storage.provenance import ModelProvenance, Provenance, provenance_of
from interp.storage.run_folders import read_header, read_result, write_run
from interp.tracking.figures import figures
from interp.tracking.judged_replies import series_judgements
from interp.tracking.records import CheckpointRecord, Cost, ReferenceRecord, TrackRecord
from interp.tracking.report import NAME, SUMMARY, rate_table, report, verdicts
from interp.tracking.spec import TrackingSpec

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
"""Columns of the table, in this order."""
_WHOLE = ("index", "step", "layer", "n")
_READ = (NAME, "trajectory")
"""Experiments whose runs are a `TrackRecord`."""


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Shown):
    """Measurements along a series of checkpoints."""

    record: TrackRecord
    """The stored record."""
    folder: Path | None = None
    """Folder that it was read from; None for one that is not stored."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The tidy table, one row per value, with columns `COLUMNS`."""
        return as_frame(table_rows(self.record))

    @property
    def checkpoints(self) -> tuple[CheckpointRecord, ...]:
        """Every checkpoint of the series, in order."""
        return self.record.checkpoints

    @property
    def reference(self) -> ReferenceRecord:
        """The checkpoint that all others are compared with."""
        return self.record.reference

    @property
    def provenance(self) -> Provenance:
        """Model of the reference, prompts, seed and library versions."""
        return self.record.provenance

    @property
    def step_unit(self) -> str:
        """Unit of `step`."""
        return self.record.step_unit

    @property
    def cost(self) -> Cost | None:
        """Cost of measuring a live run; None for saved checkpoints."""
        return self.record.cost

    @property
    def skipped(self) -> dict[str, str]:
        """Labels of checkpoints that could not be measured, with the reason."""
        return {c.label: c.status for c in self.checkpoints if not c.measured}

    def of(self, measure: str, prompts: str | None = None, *, layer: int | None = None) -> pd.DataFrame:
        """The rows of one measure that have a value.

        Raises:
            ValueError: no such measure or prompts in this trajectory.
        """
        rows: Any = self.frame[self.frame["measure"] == measure]
        if rows.empty:
            known = ", ".join(sorted(set(self.frame["measure"]) - {"checkpoint"}))
            raise ValueError(f"no measure {measure!r} in this trajectory; it has {known}")
        if prompts is not None:
            known = ", ".join(dict.fromkeys(rows["prompts"].astype(str)))
            rows = rows[rows["prompts"] == prompts]
            if rows.empty:
                raise ValueError(f"no {measure} of {prompts!r}; there is {known}")
        if layer is not None:
            rows = rows[rows["layer"] == layer]
        return rows[rows["status"] == "ok"].reset_index(drop=True)

    def figures(self) -> dict[str, go.Figure]:
        """All figures by name."""
        return figures(self.record)

    def verdicts(self) -> list[str]:
        """Statements on what changed from the reference to the last checkpoint, as the intervals allow."""
        found = self.record.judgements
        return verdicts(self.record) + ([] if found is None else judgement_lines(found))

    def save(self, folder: str | Path, *, drawn: bool = True) -> Path:
        """Write the run folder atomically: result, `trajectory.csv`, and with `drawn` the figures and the report."""
        return write_run(
            folder,
            NAME,
            self.record,
            figures=self.figures() if drawn else None,
            report=with_judgements(report(self.record), self.record.judgements) if drawn else None,
            files={"trajectory.csv": as_csv(self.record)},
        )

    def _card(self) -> Card:
        about = self.provenance
        facts = {
            "model": about.model_name,
            "prompts": about.prompts_name,
            "took": f"{self.record.seconds['total']:.0f} s on {about.device}",
            "read from": None if self.folder is None else os.path.relpath(self.folder),
        }
        return Card(
            title=f"{NAME}: {SUMMARY}",
            facts={name: value for name, value in facts.items() if value},
            tables=[rate_table(self.record)],
            notes=[*self.verdicts(), "figures() draws every figure; .frame holds every number."],
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Trajectory":
        """Read a run folder.

        Raises:
            ValueError: no run folder, damaged, or of another experiment.
        """
        header = read_header(folder)
        if header.experiment not in _READ:
            raise ValueError(
                f"{folder} holds a run of {header.experiment}, not a trajectory; give the --out of interp track"
            )
        return cls(read_result(header, TrackRecord), expanded(folder))


def assemble(
    checkpoints: Sequence[CheckpointRecord],
    reference: ReferenceRecord,
    model: ModelProvenance | None,
    spec: TrackingSpec,
    *,
    step_unit: str = "step",
    cost: Cost | None = None,
) -> TrackRecord:
    """Assemble the record of these measurements.

    Args:
        model: provenance of the reference's model.
        cost: cost of measuring a live run.
    """
    return TrackRecord(
        provenance=replace(provenance_of(None, spec.measured_prompts, seed=spec.seed), model=model),
        seconds={"total": round(sum(checkpoint.seconds for checkpoint in checkpoints), 2)},
        settings=spec.settings,
        corpora=spec.corpora_provenance,
        step_unit=step_unit,
        checkpoints=tuple(checkpoints),
        reference=reference,
        cost=cost,
        judgements=series_judgements(checkpoints),
    )


def table_rows(record: TrackRecord) -> list[dict[str, Any]]:
    """Every value as a row with the columns `COLUMNS`, checkpoint by checkpoint."""
    rows: list[dict[str, Any]] = []
    for index, checkpoint in enumerate(record.checkpoints):
        place = {"checkpoint": checkpoint.label, "index": index, "step": checkpoint.step}
        if not checkpoint.measured:
            rows.append({**place, "measure": "checkpoint", "n": 0, "status": checkpoint.status})
        for row in checkpoint.all_rows:
            number = row.estimate
            rows.append(
                {
                    **place,
                    "measure": row.measure,
                    "prompts": row.prompts,
                    "layer": row.layer,
                    "value": number.value,
                    "n": number.n,
                    "low": number.low,
                    "high": number.high,
                    "status": row.status,
                }
            )
    return rows


def as_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the tidy table; integer columns stay integers where values are missing."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    for column in _WHOLE:
        frame[column] = frame[column].astype("Int64")
    for column in ("value", "low", "high"):
        frame[column] = frame[column].astype("float64")
    return frame


def as_csv(record: TrackRecord) -> bytes:
    """The tidy table as the file `trajectory.csv` of a run folder."""
    return as_frame(table_rows(record)).to_csv(index=False).encode()
