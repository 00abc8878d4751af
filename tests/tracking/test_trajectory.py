"""The tidy table, the figures and the statements of a trajectory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.evaluation.records import RefusalTokens
from interp.experiments.running import open_run
from interp.representations.records import LeakCheck
from interp.stats import Estimate
from interp.storage.provenance import ModelProvenance
from interp.storage.typed_json import to_plain
from interp.tracking.records import (
    CheckpointRecord,
    Measurement,
    ModelShape,
    ReferenceFacts,
    ReferenceRecord,
    TrackRecord,
)
from interp.tracking.report import report
from interp.tracking.spec import TrackingSpec
from interp.tracking.trajectory import Trajectory, assemble
from tests.tracking.conftest import COUNTS, SMALL


def planted(values: dict[str, list[float]], *, steps: list[int | None], half: float = 0.05) -> Trajectory:
    """A trajectory with these values and intervals of +- half."""
    checkpoints = []
    for index, step in enumerate(steps):
        rows = [
            Measurement(
                measure=name.split("/")[0],
                prompts=name.split("/")[1],
                layer=None,
                estimate=Estimate(
                    value=column[index], n=50, low=column[index] - half, high=column[index] + half
                ),
            )
            for name, column in values.items()
        ]
        checkpoints.append(
            CheckpointRecord(label=f"c{index}", step=step, fingerprint=str(index), rows=tuple(rows))
        )
    half_way = Estimate(value=0.5, n=1, low=0.4, high=0.6)
    facts = ReferenceFacts(
        shape=ModelShape(n_layers=2, d_model=8, vocabulary=256, template_hash=None),
        refusal_tokens=RefusalTokens(ids=(1,), texts=("I",), harmful_mass=(0.9,), harmless_mass=(0.1,)),
        refused=9,
        answered=9,
        filtered=True,
        leak=LeakCheck(last_token=half_way, embedding={"t_inst": half_way}),
        directions={},
    )
    model = ModelProvenance(
        model="planted",
        revision=None,
        weights_hash="0",
        adapter=None,
        adapter_hash=None,
        template_hash=None,
        n_layers=2,
        d_model=8,
        dtype="float32",
        device="cpu",
    )
    reference = ReferenceRecord(label="c0", fingerprint="0", facts=facts)
    return Trajectory(assemble(checkpoints, reference, model, TrackingSpec(**SMALL)))


def test_every_measure_has_rows_with_intervals(tracked: tuple[Trajectory, Path]) -> None:
    trajectory, out = tracked
    frame: Any = trajectory.frame
    assert list(dict.fromkeys(frame["step"])) == list(COUNTS) and not trajectory.skipped
    per_checkpoint = frame.groupby("index")["measure"].nunique()
    assert per_checkpoint.nunique() == 1 and per_checkpoint.iloc[0] == 21
    ok = frame[frame["status"] == "ok"]
    slack = 1e-9
    inside = (ok["low"] <= ok["value"] + slack) & (ok["value"] <= ok["high"] + slack)
    assert inside.all()
    assert (ok["n"] > 0).all()
    missing = frame[frame["status"] != "ok"]
    assert set(missing["measure"]) <= {"refusal_belief", "refusal_belief_reference"}
    assert missing["status"].str.contains("not measured: ").all()
    again = Trajectory.load(out)
    assert again.frame.equals(frame)
    assert to_plain(again.record, TrackRecord) == to_plain(trajectory.record, TrackRecord)
    assert again.record.settings.n == SMALL["n"]
    assert (out / "trajectory.csv").read_text().count("\n") == len(frame) + 1


def test_unknown_measures_and_prompts_are_named(tracked: tuple[Trajectory, Path]) -> None:
    trajectory, _ = tracked
    with pytest.raises(ValueError, match=r"no measure 'loss' in this trajectory; it has .*guard_auroc"):
        trajectory.of("loss")
    with pytest.raises(ValueError, match="no refusal_rate of 'odd'; there is harmful, harmless, borderline"):
        trajectory.of("refusal_rate", "odd")


def test_statements_follow_from_intervals() -> None:
    names = {"refusal_rate/harmful": [0.9, 0.5], "kl_from_reference/harmful": [0.0, 0.5]}
    names |= {"kl_from_reference/harmless": [0.0, 0.3], "shift_refusal/harmful": [0.0, -0.8]}
    names |= {"shift_control_refusal/harmful": [0.0, 0.1]}
    said = "\n".join(planted(names, steps=[0, 10]).verdicts())
    assert "refusal rate on harmful prompts fell" in said
    assert "along its control." in said and "is not within 0.01 of the reference" in said
    names |= {"refusal_rate/harmful": [0.9, 0.85], "shift_refusal/harmful": [0.0, -0.12]}
    names |= {"kl_from_reference/harmful": [0.0, -0.06], "kl_from_reference/harmless": [0.0, -0.06]}
    said = "\n".join(planted(names, steps=[0, 10]).verdicts())
    assert "did not change resolvably" in said
    assert "not resolvably further than along the control" in said and "is within 0.01" in said
    page = report(planted(names, steps=[0, 10]).record)
    assert "consistent with rebound takes a grid" in page and "proves" not in page
    assert "orders of magnitude" not in page


def test_figures_share_one_axis_and_mark_what_was_skipped(tracked: tuple[Trajectory, Path]) -> None:
    trajectory, out = tracked
    drawn = trajectory.figures()
    assert list(drawn) == ["trajectory", "shift", "compression", "kl", "weights"]
    main = drawn["trajectory"]
    assert {trace.yaxis for trace in main.data} == {"y", "y2", "y3"}  # pyright: ignore[reportAttributeAccessIssue]
    assert main.layout.xaxis.matches == main.layout.xaxis2.matches == "x3"  # pyright: ignore[reportAttributeAccessIssue]
    assert main.layout.xaxis3.title.text == "training examples of the checkpoint"  # pyright: ignore[reportAttributeAccessIssue]
    bands, lines = ([t for t in main.data if bool(t.fill) == filled] for filled in (True, False))  # pyright: ignore[reportAttributeAccessIssue]
    assert len(bands) == len(lines) and all(list(line.x) == list(COUNTS) for line in lines)
    rate = trajectory.of("refusal_rate", "harmful")
    assert list(lines[0].y) == rate["value"].to_list()
    assert np.allclose(bands[0].y[len(COUNTS) :], rate["low"][::-1])
    assert len(drawn["shift"].data) == 8 and len(drawn["kl"].data) == 8  # pyright: ignore[reportArgumentType]
    assert (out / "figures" / "trajectory.json").is_file()
    stages_twice = planted({"refusal_rate/harmful": [0.9, 0.5, 0.7]}, steps=[0, 10, 5])
    figure = stages_twice.figures()["trajectory"]  # steps that go back: checkpoints side by side
    assert list(figure.data[-1].x) == [0, 1, 2]  # pyright: ignore[reportAttributeAccessIssue]
    assert list(figure.layout.xaxis3.ticktext) == ["c0", "c1", "c2"]  # pyright: ignore[reportAttributeAccessIssue]


def test_other_runs_are_refused_and_both_experiments_are_read(
    tracked: tuple[Trajectory, Path], tmp_path: Path
) -> None:
    stored = open_run(tracked[1])
    assert stored.experiment.name == "track" and stored.result.config == tracked[0].record.settings
    assert Trajectory(stored.result).frame.equals(tracked[0].frame)
    assert stored.figures().keys() == tracked[0].figures().keys()
    assert "figures() draws every figure" in repr(tracked[0])
    figures = Path(__file__).parents[2] / "figures"
    assert len(Trajectory.load(figures / "trajectory").checkpoints) == 9
    with pytest.raises(ValueError, match="holds a run of demo, not a trajectory"):
        Trajectory.load(figures / "demo")
    with pytest.raises(ValueError, match="track is not run by its settings alone; use `interp track"):
        stored.experiment.run(out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
