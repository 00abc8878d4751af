"""Tracking: nothing is measured twice, nothing is lost, and what cannot be measured is skipped by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import interp.tracking.checkpoint_parts
from interp.cli.main import app
from interp.data.prompt_sets import PromptSet
from interp.data.prompts import load_prompts
from interp.models.chat_model import ChatModel, load
from interp.models.sources import ADAPTER_FOLDERS
from interp.storage.stages import StageCache
from interp.tracking.checkpoint_parts import block_weights, weight_change
from interp.tracking.measures import measure
from interp.tracking.records import Measurement
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import track
from interp.tracking.trajectory import Trajectory
from tests.tracking.conftest import SMALL


def test_the_reference_differs_from_itself_in_nothing_and_later_checkpoints_do(
    tracked: tuple[Trajectory, Path],
) -> None:
    trajectory, _ = tracked
    here = {c.step: index for index, c in enumerate(trajectory.checkpoints)}
    for measure_name, same in (
        ("cosine_harmfulness", 1.0),
        ("cosine_control_refusal", 1.0),
        ("shift_refusal", 0.0),
        ("bits_per_byte_change", 0.0),
        ("kl_from_reference", 0.0),
        ("kl_to_reference", 0.0),
        ("weight_change", 0.0),
    ):
        values: Any = trajectory.of(measure_name)
        at = {step: values[values["index"] == index]["value"].to_numpy() for step, index in here.items()}
        # float16 distributions leave 1e-6 nats; sums of float32 differ in another order
        assert np.allclose(at[0], same, atol=2e-5), measure_name
        assert (np.abs(at[16] - same) > np.abs(at[8] - same) * 0.9).mean() > 0.5, measure_name
        assert np.abs(at[16] - same).max() > 1e-3, measure_name
    learned = trajectory.of("bits_per_byte_change", "affirmations")["value"].to_list()
    assert learned[2] < learned[1] < -0.1  # it was trained on "Sure!"


def test_weight_change_is_exact(tiny: ChatModel, tmp_path: Path, saved_tiny: Path) -> None:
    cache = StageCache(tmp_path / "parts", {})
    cache.put("weights", block_weights(tiny))
    other = load(str(saved_tiny))
    with torch.no_grad():
        for parameter in other.blocks[1].module.parameters():
            parameter.mul_(1.25)
    with cache.open_tensors("weights") as reference:
        rows = weight_change(other, reference)
    assert [row.layer for row in rows] == [0, 1, 2, None]
    values = [row.estimate.value for row in rows]
    assert values[:3] == pytest.approx([0.0, 0.25, 0.0])
    squares = [
        sum(float(p.detach().double().square().sum()) for p in b.module.parameters()) for b in tiny.blocks
    ]
    assert values[3] == pytest.approx(0.25 * (squares[1] / sum(squares)) ** 0.5)


class Killed(BaseException):
    pass


def test_a_killed_run_continues_and_a_longer_series_measures_only_what_is_new(
    tuned: Path, saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def counting(model: ChatModel, *rest: object) -> list[Measurement]:
        if len(measured) == 1 and "killed" not in measured:
            measured.append("killed")
            raise Killed
        measured.append(str(model.adapter))
        return measure(model, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(interp.tracking.checkpoint_parts, "measure", counting)
    spec = TrackingSpec(measures=("guard", "kl", "weights"), **{**SMALL, "n_fit": 4})
    first = [tuned / "checkpoint-0", tuned / "checkpoint-8"]
    options = {"base": str(saved_tiny), "out": tmp_path / "run"}
    with pytest.raises(Killed):
        track(first, spec, **options)
    assert not (tmp_path / "run").exists()
    killed = track(first, spec, **options)
    assert [Path(name).name for name in measured] == ["checkpoint-0", "killed", "checkpoint-8"]
    assert not (tmp_path / "run.parts").exists()
    whole = track([*first, tuned / "checkpoint-16"], spec, **options)
    assert [Path(name).name for name in measured[3:]] == ["checkpoint-16"]
    assert whole.frame[whole.frame["index"] < 2].equals(killed.frame)
    plain = track([*first, tuned / "checkpoint-16"], spec, base=str(saved_tiny))
    assert np.allclose(
        plain.frame["value"].fillna(0).to_numpy(), whole.frame["value"].fillna(0).to_numpy(), atol=1e-6
    )
    track([*first, tuned / "checkpoint-16"], spec, **options)
    assert len(measured) == 7  # the last was only read
    track(first, replace(spec, n=2), **options)
    assert len(measured) == 9  # another spec measures all again


def test_bad_checkpoints_are_named_and_skipped_and_the_rest_is_measured(
    tuned: Path, saved_tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for number, count in enumerate((0, 8, 8, 8, 8, 8, 16)):
        shutil.copytree(tuned / f"checkpoint-{count}", run / f"checkpoint-{number}")
    weights = run / "checkpoint-1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (run / "checkpoint-2" / "adapter_config.json").write_text('{"peft_type": "LORA", ')
    shapes = load_file(run / "checkpoint-3" / "adapter_model.safetensors")
    save_file(
        {k: v[:, :-1].contiguous() for k, v in shapes.items()},
        run / "checkpoint-3" / "adapter_model.safetensors",
    )
    damaged = {k: v * float("nan") for k, v in shapes.items()}
    save_file(damaged, run / "checkpoint-4" / "adapter_model.safetensors")
    (run / "checkpoint-5" / "adapter_model.safetensors").unlink()
    spec = TrackingSpec(measures=("guard",), **{**SMALL, "n_fit": 4})
    trajectory = track(run, spec, base=str(saved_tiny), out=tmp_path / "out")
    assert list(trajectory.skipped) == [f"run/checkpoint-{number}" for number in (1, 2, 3, 4, 5)]
    reasons = list(trajectory.skipped.values())
    assert all("checkpoint-" in reason or "nan" in reason.lower() for reason in reasons), reasons
    assert "cannot read adapter" in reasons[0] and "tensors differ" in reasons[2]
    assert set(trajectory.of("guard_auroc")["step"]) == {0, 6}
    assert "run/checkpoint-1 was skipped" in "\n".join(trajectory.verdicts())
    assert "run/checkpoint-1" in (tmp_path / "out" / "report.html").read_text()
    whole = tmp_path / "whole"  # full checkpoints: one truncated, one with a tensor missing, one wider
    for name in ("a", "b", "c", "d"):
        shutil.copytree(saved_tiny, whole / f"checkpoint-{'abcd'.index(name)}")
    file = whole / "checkpoint-1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    tensors = load_file(whole / "checkpoint-2" / "model.safetensors")
    tensors.pop(sorted(tensors)[3])
    save_file(tensors, whole / "checkpoint-2" / "model.safetensors", {"format": "pt"})
    config = json.loads((whole / "checkpoint-3" / "config.json").read_text())
    (whole / "checkpoint-3" / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    trajectory = track(whole, replace(spec, measures=("guard", "weights")))
    assert len(trajectory.skipped) == 3 and len(trajectory.of("guard_auroc")) == 1
    assert "1 tensors are missing" in list(trajectory.skipped.values())[1]


def test_a_model_of_another_shape_is_skipped(saved_tiny: Path, tmp_path: Path, spec: TrackingSpec) -> None:
    other = tmp_path / "deep"
    shutil.copytree(saved_tiny, other)
    config = json.loads((other / "config.json").read_text())
    config.pop("layer_types", None)
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    weights = load_file(other / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.2." not in name}
    save_file(kept, other / "model.safetensors", metadata={"format": "pt"})
    trajectory = track([saved_tiny, other], replace(spec, measures=("guard",), n_fit=4))
    assert "n_layers is 2, at the reference 3" in trajectory.skipped["deep"]


def test_a_live_model_is_measured_and_a_reference_can_be_named(
    tiny: ChatModel, tuned: Path, saved_tiny: Path, spec: TrackingSpec
) -> None:
    small = replace(spec, measures=("shift",), n_fit=4)
    live = track([tiny, tuned / "checkpoint-8"], small, base=str(saved_tiny))
    assert np.allclose(live.of("shift_refusal").query("index == 0")["value"], 0, atol=1e-5)
    named = track(tuned, small, base=str(saved_tiny), reference="sft/checkpoint-16")
    assert named.reference.label == "sft/checkpoint-16"
    assert np.allclose(named.of("shift_refusal").query("index == 2")["value"], 0, atol=1e-5)
    with pytest.raises(ValueError, match=r"stands for 3 checkpoints; name one of sft/checkpoint-0"):
        track(tuned, small, base=str(saved_tiny), reference=tuned)


def test_when_nothing_can_be_measured_the_first_reason_is_given(tmp_path: Path, spec: TrackingSpec) -> None:
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"no checkpoint can be the reference; run/checkpoint-1: .*no config.json"
    ):
        track(tmp_path / "run", spec)
    with pytest.raises(ValueError, match="no such checkpoint"):
        track("runs/no/where", spec, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # a mistake leaves nothing behind


def test_the_command_tracks_plots_and_refuses(tuned: Path, saved_tiny: Path, tmp_path: Path) -> None:
    out, runner = tmp_path / "run", CliRunner()
    corpus = tmp_path / "news.txt"
    corpus.write_text("Rain fell over the hills all night. " * 8)
    files = []
    for kind in ("harmful", "harmless"):
        file = tmp_path / f"{kind}.txt"
        file.write_text("\n".join(load_prompts("builtin")[kind, "train"].first(12).texts))  # pyright: ignore[reportArgumentType]
        files.append(f"{kind}={file}")
    arguments = [
        "track",
        str(tuned / "checkpoint-0"),
        str(tuned / "checkpoint-16"),
        "--base",
        str(saved_tiny),
    ]
    arguments += ["--out", str(out), "-n", "2", "--corpus", f"news={corpus}", "--prompts", ",".join(files)]
    arguments += ["--judges", "arditi,zhao"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "KL(reference || last)" in done.output and "report.html" in done.output
    assert "refused, by arm and judge" in done.output and "refused, agreement" in done.output
    assert list(dict.fromkeys(Trajectory.load(out).of("bits_per_byte")["prompts"])) == ["news"]
    done = runner.invoke(app, [*arguments, "--json"])
    assert json.loads(done.stdout)["experiment"] == "track"
    (out / "report.html").unlink()
    assert runner.invoke(app, ["plot", str(out)]).exit_code == 0
    assert (out / "report.html").is_file()
    for wrong, said in (
        (["track", "runs/no/where"], "no such checkpoint"),
        (["track", str(tuned), "--corpus", "news"], "--corpus takes NAME=FILE"),
    ):
        done = runner.invoke(app, wrong)
        assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output


@pytest.mark.checkpoint
def test_taking_the_safety_adapter_off_shows_in_behaviour_and_representation() -> None:
    builtin = load_prompts("builtin")
    spec = TrackingSpec(
        prompts=PromptSet("builtin", builtin.parts),
        measures=("refusal", "shift", "compression"),
        n=8,
        n_fit=10,
        n_documents=1,
        max_new_tokens=5,
    )
    series = [str(ADAPTER_FOLDERS["smollm2-safe"]), "smollm2"]
    trajectory = track(series, spec, base="smollm2")
    harmful: Any = trajectory.of("refusal_rate", "harmful")
    assert harmful["low"][0] > harmful["high"][1]
    harmless: Any = trajectory.of("refusal_rate", "harmless")
    assert harmless["high"][0] < 0.5  # control
    moved, control = (
        cast(Any, trajectory.of(f"shift_{name}refusal", "harmful")) for name in ("", "control_")
    )
    assert moved["high"][1] < -0.2 and abs(control["value"][1]) < abs(moved["value"][1]) / 2
    refusals: Any = trajectory.of("bits_per_byte_change", "refusals")
    assert refusals["low"][1] > 0
