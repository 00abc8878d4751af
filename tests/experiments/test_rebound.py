"""The rebound grid on a tiny model, and its statements on planted numbers."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from interp.cli.main import app
from interp.data.prompts import load_prompts
from interp.data.tasks import load_task
from interp.engine.log_probs import completion_log_probs
from interp.engine.ray_cluster import Workers
from interp.experiments.guard import EXPERIMENT as GUARD
from interp.experiments.rebound import EXPERIMENT as REBOUND
from interp.experiments.rebound import Behaviour, Config, ModelResult, Point, Result, Shift
from interp.experiments.rebound import run as method
from interp.experiments.rebound.analysis import lost_per_example, shifts_left, slope_ratios
from interp.experiments.rebound.curves import statistics
from interp.experiments.rebound.figures import figures
from interp.experiments.rebound.measurement import Measurement
from interp.experiments.rebound.report import rate_table, report, verdicts
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel, load
from interp.stats import Estimate
from interp.storage.typed_json import to_plain
from tests.experiments.counted import assert_planned, counting
from tests.two_nodes import TwoNodes

GRID = Config(
    positives=(0, 8),
    negatives=(0, 4, 8),
    seeds=1,
    batch_size=4,
    learning_rate=2e-2,
    n_eval=4,
    max_new_tokens=3,
    n_kl=3,
    n_documents=3,
    n_states=4,
    n_fit=16,
    scorer="substring:e",
)


@pytest.fixture(scope="module")
def finished(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("rebound") / "run"
    before = {name: value.clone() for name, value in tiny.hf.state_dict().items()}
    with counting("rebound", tiny):
        result = REBOUND.run(tiny, load_prompts("builtin"), GRID, out=out).result
    after = tiny.hf.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())  # the base is left as it was
    return out, result


def test_the_grid_is_whole_and_starts_where_it_should(finished: tuple[Path, Result]) -> None:
    model = finished[1].models["tiny"]
    assert {(p.n_plus, p.n_minus, p.seed) for p in model.points} == {
        (p, n, s) for p in (0, 8) for n in (0, 4, 8) for s in (0,)
    }
    start = [p for p in model.points if p.n_plus == p.n_minus == 0]
    assert all(p.score == p.base_score for p in start)
    assert all(abs(p.kl) < 1e-3 for p in start)  # float16 distributions
    aligned = [p for p in model.points if p.n_plus == 8]
    assert min(p.kl for p in aligned) > 0.01  # control: training moved the model
    ends = [np.mean(p.bits("negative")) for p in aligned if p.n_minus in (0, 8)]
    assert ends[1] < ends[0]  # negatives learned
    assert (model.provenance.model, finished[1].provenance.model_name) == ("tiny", "tiny")


def test_the_projection_starts_at_the_alignments_own_shift(finished: tuple[Path, Result]) -> None:
    points = finished[1].models["tiny"].points
    for point in points:
        if point.n_minus == 0:
            for shift in point.shifts.values():
                assert np.allclose(shift.since_base, shift.at_aligned, atol=1e-4)
    names = set(points[0].shifts)
    assert {"harmfulness", "refusal"} <= names
    assert any(name.startswith("control") for name in names)
    for by in shifts_left(points).values():
        for entries in by.values():
            share = entries[0].share
            assert not share.measurable or share.value == pytest.approx(1, abs=1e-3)


def test_figures_and_page_come_from_the_stored_run(finished: tuple[Path, Result]) -> None:
    out, made = finished
    stored = REBOUND.read(out)
    assert to_plain(stored.result) == to_plain(made)  # as plain values: NaN differs from itself
    drawn = stored.figures()
    assert set(drawn) == {
        "decay_curves",
        "kl",
        "by_positives",
        "time_constants",
        "heat_map",
        "rates",
        "representation",
    }
    assert [t.name for t in drawn["decay_curves"].data if t.mode == "lines+markers"] == [
        "0 positive examples (control)", "8 positive examples",
    ]  # fmt: skip
    assert [t.name for t in drawn["by_positives"].data if t.mode == "lines+markers"] == [
        "0 negative examples", "4 negative examples", "8 negative examples",
    ]  # fmt: skip
    assert list(drawn["heat_map"].data[0].x) == ["0", "4", "8"]
    page = (out / "report.html").read_text()
    assert "proves no elasticity" in page
    assert "961" in page  # the published count
    table = rate_table(stored.result)
    assert all(len(row) == len(table.header) for row in table.rows)
    assert not out.with_name("run.parts").exists()
    assert CliRunner().invoke(app, ["plot", str(out)]).exit_code == 0


def test_several_models_have_a_panel_each_and_a_killed_run_continues(
    saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "second"
    copied.symlink_to(saved_tiny)
    arguments = ["run", "rebound", "--model", str(saved_tiny), "--out", str(tmp_path / "run")]
    settings = {
        "models": [str(saved_tiny), str(copied)],
        "positives": [4], "negatives": [0, 4, 8], "seeds": 1, "batch_size": 4, "n_eval": 4, "max_new_tokens": 2,
        "n_kl": 2, "n_documents": 2, "n_states": 0,
    }  # fmt: skip
    for name, value in settings.items():
        arguments += ["--set", f"{name}={json.dumps(value)}"]
    calls = []
    plain = Measurement.point

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *args, **options)

    monkeypatch.setattr(Measurement, "point", interrupted)
    assert CliRunner().invoke(app, arguments).exit_code == 130
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(calls) == 3 + 6 - 2  # two finished points were not measured again
    result = REBOUND.read(tmp_path / "run").result
    assert list(result.models) == [str(saved_tiny), str(copied)]
    first, second = (model.points for model in result.models.values())
    assert first == second  # the same weights: what was kept is what is measured again
    assert len(figures(result)["decay_curves"].layout.annotations) >= 2


def test_the_reverse_stage_by_dpo_prefers_the_negative_completion(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(GRID, positives=(4,), n_states=0, n_documents=1, reverse="dpo")
    prompts = load_prompts("builtin")
    margins: list[float] = []
    plain = method.preference_tune

    def watched(model: ChatModel, pairs: Any, **options: Any) -> Any:
        assert pairs == load_task("builtin", prompts, n_eval=4).preferences(0)[:8]
        assert options["start"].name == "checkpoint-4"
        trained = plain(model, pairs, **options)
        for count in (0, 8):
            with with_adapter(model, str(trained.checkpoints[count])) as at:
                chosen, rejected = (
                    completion_log_probs(
                        at,
                        [pair.prompt for pair in pairs],
                        [at.tokenizer(pair[side], add_special_tokens=False)["input_ids"] for pair in pairs],
                    )
                    for side in (1, 2)
                )
            margins.append(float(sum(c.sum() - r.sum() for c, r in zip(chosen, rejected, strict=True))))
        return trained

    monkeypatch.setattr(method, "preference_tune", watched)
    result = REBOUND.run(tiny, prompts, config, out=tmp_path / "run").result
    assert margins[1] > margins[0] + 1  # nats; the supervised stage alone has no rejected completion
    assert result.config.reverse == "dpo"
    assert "(reverse stage by DPO)" in verdicts(result)[0]
    drawn = figures(result)
    for name in ("decay_curves", "heat_map"):
        assert "reverse stage by DPO" in drawn[name].layout.title.text
    assert "; reverse stage by DPO;" in (tmp_path / "run" / "report.html").read_text()


def test_what_cannot_be_reversed_is_said_before_anything_is_trained(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"rebound: reverse: .*'sft' or 'dpo', got 'ppo'"):
        REBOUND.configure({"reverse": "ppo"})
    for side in ("good", "bad"):
        rows = [{"prompt": f"{side} {i}?", "completion": side} for i in range(20)]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = f"positive={tmp_path / 'good.jsonl'},negative={tmp_path / 'bad.jsonl'}"
    config = dataclasses.replace(GRID, task=task, reverse="dpo")

    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(method, "fine_tune", trained)
    with pytest.raises(ValueError, match=r"16 of 16 have none, the first is number 1: give their prompts in"):
        REBOUND.run(tiny, load_prompts("builtin"), config)
    with pytest.raises(AssertionError, match="trained"):  # control: supervised, these files would do
        REBOUND.run(tiny, load_prompts("builtin"), dataclasses.replace(config, reverse="sft"))


def test_the_heat_map_prints_means_over_seeds_on_a_scale_that_grey_keeps(
    finished: tuple[Path, Result],
) -> None:
    result = planted(finished[1], {2: 80.0, 4: 40.0, 8: 20.0})
    (drawn,) = figures(result)["heat_map"].data
    scores = [p.score for p in result.models["tiny"].points if (p.n_plus, p.n_minus) == (4, 20)]
    at = list(drawn.y).index("4"), list(drawn.x).index("20")
    assert len(scores) == 4 and drawn.z[at[0]][at[1]] == pytest.approx(np.mean(scores))
    assert drawn.texttemplate == "%{z:.0%}"
    weights = (0.299, 0.587, 0.114)  # luma of red, green and blue
    grey = [
        sum(w * float(c) for w, c in zip(weights, re.findall(r"\d+", colour), strict=True))
        for _, colour in drawn.colorscale
    ]
    assert grey == sorted(grey, reverse=True) and grey[0] - grey[-1] > 150


DOSES = (0, 10, 20, 40, 80, 160)


def planted(result: Result, taus: dict[int, float]) -> Result:
    """The stored run with planted curves, projections and code lengths in place of the measured ones."""
    generator = np.random.default_rng(0)
    points = [
        planted_point(generator, n_plus, seed, dose, share=np.exp(-dose / taus[n_plus]) if n_plus else 0.0)
        for n_plus in (0, *taus)
        for seed in range(4)
        for dose in DOSES
    ]
    config = dataclasses.replace(result.config, positives=(0, *taus), negatives=DOSES, batch_size=1)
    model = ModelResult(
        provenance=result.models["tiny"].provenance,
        points=tuple(points),
        statistics=statistics(points, config),
    )
    return dataclasses.replace(result, config=config, models={"tiny": model})


def planted_point(
    generator: np.random.Generator, n_plus: int, seed: int, dose: int, *, share: float
) -> Point:
    noise = generator.normal(size=(3, 16))
    score = float(0.1 + (0.6 + 0.1 * np.log(max(n_plus, 1))) * share + 0.005 * noise[0, 0])
    prose = 2 - (0.05 * (1 - share) if n_plus == 2 else 0) + 0.002 * noise[1]
    refusal, topic = (share + 0.02 * noise[0], 1 + 0.02 * noise[1]), (noise[1], noise[2])
    return Point(
        seed=seed,
        n_plus=n_plus,
        n_minus=dose,
        behaviour=Behaviour(
            rate=Estimate(value=score, n=32),
            bits_per_byte={
                "positive": tuple((1 - share + 0.01 * noise[0]).tolist()),
                "negative": (1.0,) * 16,
                "prose": tuple(prose.tolist()),
            },
        ),
        kl=float(0.3 * share),
        shifts={
            name: Shift(layer=1, about="", since_base=tuple(now.tolist()), at_aligned=tuple(aligned.tolist()))
            for name, (now, aligned) in (("refusal", refusal), ("control (topic)", topic))
        },
        base_score=0.1,
    )


def test_planted_rebound_is_said_and_its_opposite_denied(finished: tuple[Path, Result]) -> None:
    faster = planted(finished[1], {2: 80.0, 4: 40.0, 8: 20.0})
    assert any("tiny: consistent with rebound" in line for line in verdicts(faster))
    tau = faster.models["tiny"].statistics.groups[4].tau
    assert tau.low <= 40 <= tau.high
    slower = planted(finished[1], {2: 20.0, 4: 40.0, 8: 80.0})
    assert any("tiny: not consistent with rebound" in line for line in verdicts(slower))
    assert "returned" not in report(slower).split("</script>")[-1].split("What was found")[0]


def test_planted_projections_and_ratios_are_recovered_or_not_resolved(
    finished: tuple[Path, Result],
) -> None:
    points = planted(finished[1], {2: 80.0, 4: 40.0, 8: 20.0}).models["tiny"].points
    lost = lost_per_example(points)
    expected = np.polyfit([0, 10], [0, 1 - np.exp(-10 / 40)], 1)[0]  # the range is the first tenth, 0 to 16
    assert lost["refusal"][4].low <= expected <= lost["refusal"][4].high
    assert not lost["control (topic)"][4].measurable  # what alignment did not move has no share to lose
    last = next(e for e in shifts_left(points)["refusal"][8] if e.n_minus == 20).share
    assert last.low <= np.exp(-1) <= last.high
    ratios = {(r.n_plus, r.n_minus): r.ratio for r in slope_ratios(points)}
    assert ratios[2, 160].measurable
    assert ratios[2, 160].low <= -20 <= ratios[2, 160].high
    assert not ratios[4, 160].measurable  # prose did not change


def test_wrong_grids_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match=r"negatives must ascend from 0, three or more, got \[8, 0\]"):
        Config(negatives=(8, 0))
    with pytest.raises(ValueError, match=r"positives must ascend and hold one above 0, got \[0\]"):
        Config(positives=(0,))
    with pytest.raises(ValueError, match=r"multiples of batch_size = 8, got 12"):
        Config(positives=(12,))
    big = Config(positives=(8000,))
    with pytest.raises(
        ValueError, match=r"positives go up to 8000, the task has \d+; give more or smaller counts"
    ):
        REBOUND.run(tiny, load_prompts("builtin"), big)


def test_the_model_at_hand_is_used_only_for_its_own_name(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(name: str, **options: Any) -> ChatModel:
        return ChatModel(tiny.hf, tiny.tokenizer, name=name, **options)

    class Loaded(Exception):
        """Stands for the model that would be loaded."""

    def load(name: str) -> ChatModel:
        raise Loaded(name)

    def train(*_: Any, **__: Any) -> None:
        raise RuntimeError("the model at hand is trained")

    monkeypatch.setattr(method, "load", load)
    monkeypatch.setattr(method, "fine_tune", train)
    prompts, config = load_prompts("builtin"), dataclasses.replace(GRID, models=("owner/model",))
    with pytest.raises(RuntimeError, match="at hand"):
        REBOUND.run(named("owner/model"), prompts, config)
    with pytest.raises(RuntimeError, match="at hand"):
        REBOUND.run(named("other"), prompts, dataclasses.replace(config, models=()))
    others = (
        named("other"),
        named("owner/model", revision="step1000"),
        named("owner/model", adapter="folder"),
    )
    for other in others:
        with pytest.raises(Loaded, match="owner/model"):
            REBOUND.run(other, prompts, config)
    with pytest.raises(Loaded, match="owner/model@step1000"):
        REBOUND.run(
            named("owner/model"), prompts, dataclasses.replace(config, models=("owner/model@step1000",))
        )


def test_workers_are_refused_where_they_cannot_help(tiny: ChatModel, tmp_path: Path) -> None:
    prompts = load_prompts("builtin")
    workers = Workers(count=2)
    with pytest.raises(ValueError, match=r"^tiny is in this process's memory alone, or was changed"):
        REBOUND.run(tiny, prompts, GRID, workers=workers, out=tmp_path / "out")
    with pytest.raises(ValueError, match="judges read the replies of one process"):
        REBOUND.run(tiny, prompts, GRID, workers=workers, judges=("arditi",))
    with pytest.raises(ValueError, match="guard runs in one process; leave workers out"):
        GUARD.run(tiny, prompts, workers=workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.checkpoint
def test_seeds_over_two_nodes_give_the_points_of_one_process(
    saved_tiny: Path, tmp_path: Path, nodes: TwoNodes
) -> None:
    prompts, model = load_prompts("builtin"), load(str(saved_tiny))
    config = dataclasses.replace(GRID, seeds=2, n_states=0)
    alone = REBOUND.run(model, prompts, config).result
    workers = Workers(address=nodes.address)
    shared = REBOUND.run(model, prompts, config, workers=workers, out=tmp_path / "out").result
    (here,), (there,) = alone.models.values(), shared.models.values()
    assert here.points == there.points and here.statistics == there.statistics


@pytest.mark.usefixtures("finished")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path) -> None:
    assert_planned("rebound", saved_tiny, GRID)
