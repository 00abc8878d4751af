"""Trajectories: which checkpoints, what is measured along them, what is never measured twice, what is skipped."""

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

import interp.tracking.tracker
from interp.cli.main import app
from interp.data.corpora import Corpus, read_corpus
from interp.data.examples import Example
from interp.data.prompts import Prompts, PromptSet, load_prompts
from interp.evaluation.compression import bits
from interp.models.chat_model import ChatModel, load
from interp.models.loading import ADAPTER_FOLDER
from interp.storage.untyped import load_result
from interp.tracking.measures import Row, as_records, measure
from interp.tracking.references import best_layer, contrasts, fit_reference
from interp.tracking.report import report
from interp.tracking.series import Shelf, find_checkpoints, step_unit
from interp.tracking.spec import Probe
from interp.tracking.tracker import track, weight_change
from interp.tracking.trajectory import Measured, Trajectory, assemble
from interp.training.finetune import TrainConfig, fine_tune

COUNTS = (0, 8, 16)
SMALL: dict[str, Any] = {"n": 3, "n_fit": 16, "n_documents": 2, "n_samples": 1, "max_new_tokens": 3}


@pytest.fixture(scope="session")
def probe() -> Probe:
    return Probe(**SMALL)


@pytest.fixture(scope="session")
def stages(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning run with checkpoints of the tiny model."""
    prompts = load_prompts("builtin")["harmful", "train"].first(16).texts
    config = TrainConfig(
        epochs=1.0, batch_size=8, learning_rate=2e-2, schedule="constant", warmup_steps=0, rank=4
    )
    out = tmp_path_factory.mktemp("tuned") / "sft"
    fine_tune(tiny, [Example(text, "Sure!") for text in prompts], out=out, config=config, checkpoints=COUNTS)
    return out


@pytest.fixture(scope="session")
def tracked(
    stages: Path, saved_tiny: Path, probe: Probe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trajectory, Path]:
    out = tmp_path_factory.mktemp("tracked") / "run"
    return track(stages, probe, base=str(saved_tiny), out=out), out


# Which checkpoints


def test_a_series_is_found_in_order_of_its_steps(stages: Path, tmp_path: Path) -> None:
    for step in (1000, 20, 300):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    found = find_checkpoints(tmp_path / "run")
    assert [c.step for c in found] == [20, 300, 1000] and step_unit(found) == "step"
    found = find_checkpoints(
        [stages, "owner/model@step1000,main", "smollm2", "o/m-step-50K-105b"], base="smollm2"
    )
    assert [c.step for c in found] == [*COUNTS, 1000, None, None, 50_000]
    assert [c.label for c in found][-4:] == [
        "owner/model@step1000",
        "owner/model@main",
        "smollm2",
        "o/m-step-50K-105b",
    ]
    assert found[0].source == "smollm2" and found[0].adapter == str(stages / "checkpoint-0")
    assert step_unit(found[:3]) == "training examples"
    twice = find_checkpoints([stages, stages], base="smollm2")
    assert len({c.label for c in twice}) == 6


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoints were given"):
        find_checkpoints([])
    with pytest.raises(ValueError, match=r"no such checkpoint: runs/no/where; give a folder"):
        find_checkpoints("runs/no/where")
    with pytest.raises(ValueError, match=r"is no checkpoint \(config.json\), no adapter"):
        find_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="empty revision"):
        find_checkpoints("owner/model@a,,b")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not name its base model; give base="):
        find_checkpoints(tmp_path)


def test_the_shelf_holds_one_base_and_swaps_adapters(stages: Path, saved_tiny: Path) -> None:
    shelf, loaded = Shelf(), []
    found = find_checkpoints([stages, saved_tiny], base=str(saved_tiny))
    plain = load(str(saved_tiny)).hf.state_dict()
    for checkpoint in found:
        with shelf.open(checkpoint) as model:
            loaded.append(model.hf)
            other = load(checkpoint.source, adapter=checkpoint.adapter).hf.state_dict()
            assert all(torch.equal(value, other[key]) for key, value in model.hf.state_dict().items())
    assert all(hf is loaded[0] for hf in loaded)
    assert all(torch.equal(value, plain[key]) for key, value in loaded[0].state_dict().items())


# What is measured


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
    assert again.frame.equals(frame) and again.numbers == trajectory.numbers
    stored = load_result(out).numbers
    assert stored["provenance"]["probe"]["n"] == SMALL["n"]
    assert (out / "trajectory.csv").read_text().count("\n") == len(frame) + 1


def test_the_reference_differs_from_itself_in_nothing_and_later_checkpoints_do(
    tracked: tuple[Trajectory, Path],
) -> None:
    trajectory, _ = tracked
    here = {c["step"]: c["index"] for c in trajectory.checkpoints}
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
    path = tmp_path / "weights.safetensors"
    save_file({k: v.detach().clone() for k, v in interp.tracking.tracker.block_weights(tiny).items()}, path)
    other = load(str(saved_tiny))
    with torch.no_grad():
        for parameter in other.blocks[1].module.parameters():
            parameter.mul_(1.25)
    rows = weight_change(other, path)
    assert [row.layer for row in rows] == [0, 1, 2, None]
    values = [row.rate.value for row in rows if row.rate]
    assert values[:3] == pytest.approx([0.0, 0.25, 0.0])
    squares = [sum(float(p.double().square().sum()) for p in b.module.parameters()) for b in tiny.blocks]
    assert values[3] == pytest.approx(0.25 * (squares[1] / sum(squares)) ** 0.5)


def test_bits_per_byte_is_the_cross_entropy_of_the_response_alone(tiny: ChatModel) -> None:
    corpus = Corpus("c", ("yes", "né"), ("How do I bake bread?", "Hi"))
    found = bits(tiny, corpus, n_documents=2)
    assert found.bytes.tolist() == [3, 3]
    for row, (prompt, text) in enumerate(zip(corpus.prompts or (), corpus.texts, strict=True)):
        messages = [{"role": "user", "content": prompt}]
        rendered = tiny.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = [tiny.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (rendered, text)]  # pyright: ignore[reportArgumentType]
        whole = torch.tensor([ids[0] + ids[1]])  # pyright: ignore[reportOperatorIssue]
        with torch.no_grad():
            logs = tiny.hf(whole).logits.double().log_softmax(-1)[0, :-1]
        scored = logs.gather(1, whole[0, 1:, None])[-3:].sum() / np.log(2)
        assert found.bits[row] == pytest.approx(-float(scored), rel=1e-5)


def test_a_planted_shift_is_found_along_its_direction_and_not_along_the_control(
    tiny: ChatModel, probe: Probe
) -> None:
    reference = fit_reference(tiny, probe)
    axis = reference.axis("harmfulness")
    vector = reference.direction(axis)
    embedding = tiny.blocks[axis.layer].module
    handle = embedding.register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0] - 0.5 * vector, *args[1:]), kwargs) if args else None,
        with_kwargs=True,
    )
    try:
        rows = measure(tiny, replace(probe, measures=("shift",)), reference)
    finally:
        handle.remove()
    found = {(row.measure, row.prompts): row.rate for row in rows}
    for kind in ("harmful", "harmless", "borderline"):
        moved, control = (found[f"shift_{name}harmfulness", kind] for name in ("", "control_"))
        assert moved is not None and control is not None
        assert moved.value == pytest.approx(-0.5, abs=1e-4)
        assert control.value == pytest.approx(0.0, abs=1e-4)


def test_layers_and_contrasts_are_chosen_by_separation() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(40, 6, 8, generator=generator) for _ in range(2))
    positive[:, 3, 0] += 4.0
    directions = positive.mean(0) - negative.mean(0)
    assert best_layer(directions, positive, negative) == 3
    builtin = load_prompts("builtin")
    harmful, harmless = (builtin[kind, "train"].first(64) for kind in ("harmful", "harmless"))
    for name, contrast in contrasts(harmful, harmless).items():
        for side in contrast:
            assert sum(row < 64 for row in side) * 2 == len(side), name  # as many harmful as harmless
        assert not set(contrast.positive) & set(contrast.negative)
    assert "question or instruction" in contrasts(harmful, harmless)
    few = Prompts(texts=("a",) * 5, ids=("x",) * 5, categories=(None,) * 5, source="few")
    assert contrasts(few, few) == {}


# Nothing twice, nothing lost


class Killed(BaseException):
    pass


def test_a_killed_run_continues_and_a_longer_series_measures_only_what_is_new(
    stages: Path, saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def counting(model: ChatModel, *rest: object) -> list[Row]:
        if len(measured) == 1 and "killed" not in measured:
            measured.append("killed")
            raise Killed
        measured.append(str(model.adapter))
        return measure(model, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(interp.tracking.tracker, "measure", counting)
    probe = Probe(measures=("guard", "kl", "weights"), **{**SMALL, "n_fit": 4})
    first = [stages / "checkpoint-0", stages / "checkpoint-8"]
    options = {"base": str(saved_tiny), "out": tmp_path / "run"}
    with pytest.raises(Killed):
        track(first, probe, **options)
    assert not (tmp_path / "run").exists()
    killed = track(first, probe, **options)
    assert [Path(name).name for name in measured] == ["checkpoint-0", "killed", "checkpoint-8"]
    assert not (tmp_path / "run.parts").exists()
    whole = track([*first, stages / "checkpoint-16"], probe, **options)
    assert [Path(name).name for name in measured[3:]] == ["checkpoint-16"]
    assert whole.frame[whole.frame["index"] < 2].equals(killed.frame)
    plain = track([*first, stages / "checkpoint-16"], probe, base=str(saved_tiny))
    assert np.allclose(
        plain.frame["value"].fillna(0).to_numpy(), whole.frame["value"].fillna(0).to_numpy(), atol=1e-6
    )
    track([*first, stages / "checkpoint-16"], probe, **options)
    assert len(measured) == 7  # the last was only read
    track(first, replace(probe, n=2), **options)
    assert len(measured) == 9  # another probe measures anew


def test_bad_checkpoints_are_named_and_skipped_and_the_rest_is_measured(
    stages: Path, saved_tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for number, count in enumerate((0, 8, 8, 8, 8, 8, 16)):
        shutil.copytree(stages / f"checkpoint-{count}", run / f"checkpoint-{number}")
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
    probe = Probe(measures=("guard",), **{**SMALL, "n_fit": 4})
    trajectory = track(run, probe, base=str(saved_tiny), out=tmp_path / "out")
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
    trajectory = track(whole, replace(probe, measures=("guard", "weights")))
    assert len(trajectory.skipped) == 3 and len(trajectory.of("guard_auroc")) == 1
    assert "1 tensors are missing" in list(trajectory.skipped.values())[1]


def test_a_model_of_another_shape_is_skipped(saved_tiny: Path, tmp_path: Path, probe: Probe) -> None:
    other = tmp_path / "deep"
    shutil.copytree(saved_tiny, other)
    config = json.loads((other / "config.json").read_text())
    config.pop("layer_types", None)
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    trajectory = track([saved_tiny, other], replace(probe, measures=("guard",), n_fit=4))
    assert "n_layers is 2, at the reference 3" in trajectory.skipped["deep"]


def test_a_live_model_is_measured_and_a_reference_can_be_named(
    tiny: ChatModel, stages: Path, saved_tiny: Path, probe: Probe
) -> None:
    small = replace(probe, measures=("shift",), n_fit=4)
    live = track([tiny, stages / "checkpoint-8"], small, base=str(saved_tiny))
    assert np.allclose(live.of("shift_refusal").query("index == 0")["value"], 0, atol=1e-5)
    named = track(stages, small, base=str(saved_tiny), reference="sft/checkpoint-16")
    assert named.reference["label"] == "sft/checkpoint-16"
    assert np.allclose(named.of("shift_refusal").query("index == 2")["value"], 0, atol=1e-5)
    with pytest.raises(ValueError, match=r"stands for 3 checkpoints; name one of sft/checkpoint-0"):
        track(stages, small, base=str(saved_tiny), reference=stages)


def test_when_nothing_can_be_measured_the_first_reason_is_given(tmp_path: Path, probe: Probe) -> None:
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"no checkpoint can be the reference; run/checkpoint-1: .*no config.json"
    ):
        track(tmp_path / "run", probe)


def test_settings_are_checked(tmp_path: Path, tracked: tuple[Trajectory, Path]) -> None:
    with pytest.raises(ValueError, match="n_fit must be 1 or more, got 0"):
        Probe(n_fit=0)
    with pytest.raises(ValueError, match=r"measures must be some of refusal, .*; got none"):
        Probe(measures=())
    with pytest.raises(ValueError, match="corpus x is empty or holds an empty text"):
        Corpus("x", ())
    with pytest.raises(ValueError, match="no such corpus file"):
        read_corpus("x", tmp_path / "no.txt")
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "Hi", "response": "Hello"}\n')
    assert read_corpus("x", rows) == Corpus("x", ("Hello",), ("Hi",))
    rows.write_text('{"text": "Plain"}\n')
    assert read_corpus("x", rows).prompts is None
    trajectory, _ = tracked
    with pytest.raises(ValueError, match=r"no measure 'loss' in this trajectory; it has .*guard_auroc"):
        trajectory.of("loss")
    with pytest.raises(ValueError, match="no refusal_rate of 'odd'; there is harmful, harmless, borderline"):
        trajectory.of("refusal_rate", "odd")


# What is shown


def planted(values: dict[str, list[float]], *, steps: list[int | None], half: float = 0.05) -> Trajectory:
    """A trajectory with these values and intervals of +- half."""
    series = []
    for index, step in enumerate(steps):
        rows = [
            {
                "measure": name.split("/")[0],
                "prompts": name.split("/")[1],
                "layer": None,
                "value": column[index],
                "n": 50,
                "low": column[index] - half,
                "high": column[index] + half,
                "status": "ok",
            }
            for name, column in values.items()
        ]
        series.append(Measured(label=f"c{index}", step=step, fingerprint=str(index), rows=tuple(rows)))
    facts = {"model": {"model": "planted"}, "label": "c0", "fingerprint": "0", "axes": {}, "filtered": True}
    rate = {"value": 0.5, "n": 1, "low": 0.4, "high": 0.6}
    facts["leak"] = {"last_token": rate, "embedding": {"t_inst": rate}, "threshold": 0.6}
    return assemble(series, facts, Probe(**SMALL))


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
    page = report(planted(names, steps=[0, 10]).numbers)
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
    assert all(list(trace.x) == list(COUNTS) for trace in main.data)  # pyright: ignore[reportAttributeAccessIssue]
    rate = trajectory.of("refusal_rate", "harmful")
    first = main.data[0]
    assert list(first.y) == rate["value"].to_list()  # pyright: ignore[reportAttributeAccessIssue]
    assert np.allclose(first.error_y.array, rate["high"] - rate["value"])  # pyright: ignore[reportAttributeAccessIssue]
    assert len(drawn["shift"].data) == 4 and len(drawn["kl"].data) == 4  # pyright: ignore[reportArgumentType]
    assert (out / "figures" / "trajectory.json").is_file()
    stages_twice = planted({"refusal_rate/harmful": [0.9, 0.5, 0.7]}, steps=[0, 10, 5])
    figure = stages_twice.figures()["trajectory"]  # steps that go back: checkpoints side by side
    assert list(figure.data[0].x) == [0, 1, 2]  # pyright: ignore[reportAttributeAccessIssue]
    assert list(figure.layout.xaxis3.ticktext) == ["c0", "c1", "c2"]  # pyright: ignore[reportAttributeAccessIssue]


def test_rows_that_are_not_finite_are_not_numbers() -> None:
    from interp.stats import rate

    record = as_records([Row("refusal_rate", "harmful", rate([]))])[0]
    assert record["value"] is None and record["status"] == "not measured: not finite"


def test_the_command_tracks_plots_and_refuses(stages: Path, saved_tiny: Path, tmp_path: Path) -> None:
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
        str(stages / "checkpoint-0"),
        str(stages / "checkpoint-16"),
        "--base",
        str(saved_tiny),
    ]
    arguments += ["--out", str(out), "-n", "2", "--corpus", f"news={corpus}", "--prompts", ",".join(files)]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "KL(reference || last)" in done.output and "report.html" in done.output
    assert list(dict.fromkeys(Trajectory.load(out).of("bits_per_byte")["prompts"])) == ["news"]
    done = runner.invoke(app, [*arguments, "--json"])
    assert json.loads(done.stdout)["experiment"] == "track"
    (out / "report.html").unlink()
    assert runner.invoke(app, ["plot", str(out)]).exit_code == 0
    assert (out / "report.html").is_file()
    for wrong, said in (
        (["track", "runs/no/where"], "no such checkpoint"),
        (["track", str(stages), "--corpus", "news"], "--corpus takes NAME=FILE"),
    ):
        done = runner.invoke(app, wrong)
        assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output


@pytest.mark.checkpoint
def test_taking_the_safety_adapter_off_shows_in_behaviour_and_representation() -> None:
    builtin = load_prompts("builtin")
    probe = Probe(
        prompts=PromptSet("builtin", builtin.parts),
        measures=("refusal", "shift", "compression"),
        n=8,
        n_fit=10,
        n_documents=1,
        max_new_tokens=5,
    )
    series = [str(ADAPTER_FOLDER), "smollm2"]
    trajectory = track(series, probe, base="smollm2")
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
