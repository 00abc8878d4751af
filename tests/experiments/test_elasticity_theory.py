"""The theorem in models that can be computed: closed forms to 1%, and what training in stages does to them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp.cli.main import app
from interp.experiments.elasticity_theory import EXPERIMENT, Config
from interp.experiments.elasticity_theory import models as theory
from interp.experiments.elasticity_theory import run as method
from interp.experiments.elasticity_theory.analysis import exponent_dose, transformer_ratios
from interp.experiments.elasticity_theory.joint_optima import log_linear, token_tree
from interp.experiments.elasticity_theory.results import TransformerRow
from interp.experiments.elasticity_theory.sequential_training import sequential
from interp.experiments.elasticity_theory.transformer import (
    CONTINUATION,
    PREFIX,
    Sizes,
    grammars,
    held_out,
    life_cycle,
    pretraining,
    tiny_transformer,
    train,
)

SMALL = Config(
    pretraining_examples=(500, 2_000, 8_000),
    positives=(500, 1000, 2000),
    negatives=(0, 100, 200, 400),
    runs=3,
    transformer_pretraining=(64, 128),
    transformer_positives=(50, 100),
    transformer_negatives=(0, 25, 50),
    transformer_runs=2,
)


@pytest.mark.parametrize("k", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_mixture_follows_its_closed_form(k: float, share: float) -> None:
    sources = theory.pareto_sources(np.random.default_rng(0), share=share)
    for fraction in (1e-3, 0.5, 0.9, 1.2):
        l = fraction * share / (1 - share)  # noqa: E741 (the theorem's name)
        a, p = theory.local_slopes(sources, k, l)
        assert a == pytest.approx(1 / (k + 1 + l), rel=0.01)
        assert a / p == pytest.approx(-(share * k + l) / (share - (1 - share) * l), rel=0.01)
        assert (p < 0) == (fraction < 1)  # the sign claim ends at the pole


def test_published_check_values_of_the_closed_form() -> None:
    for k, share, l, expected in (  # noqa: E741 (the theorem's name)
        (10, 0.3, 0.001, -10.03),
        (100, 0.3, 0.001, -100.24),
        (100, 0.1, 0.05, -182.73),
        (1000, 0.1, 1 / 18, -2001.1),
    ):
        assert theory.slope_ratio(k, l, share) == pytest.approx(expected, rel=5e-4)  # printed digits


def test_code_length_is_blocks_times_entropy() -> None:
    uniform = np.full(16, 1 / 16)
    assert theory.ideal_code_length(uniform, depth=4, length=12) == 3 * 4
    assert theory.ideal_code_length(uniform, depth=2, length=5) == 3 * 2
    certain = np.eye(16)[3]
    assert theory.ideal_code_length(certain, depth=4, length=12) == 0
    with pytest.raises(ValueError, match="depth must be at most 4, the tree's own, got 5"):
        theory.prune(uniform, 5)
    leaves = theory.tree_source(np.random.default_rng(0), 6)
    assert leaves.sum() == pytest.approx(1)
    assert theory.prune(leaves, 2) == pytest.approx(leaves.reshape(4, 16).sum(1))


def test_the_token_tree_gives_minus_k_at_every_depth_and_samples_scatter_around_slope_one() -> None:
    found = token_tree(Config())
    assert found.largest_error < 0.01
    for depth in (4, 8):
        slope = found.slopes[depth].ratio
        assert slope.low <= 1 <= slope.high
        assert slope.low > 0.5  # control: not just a wide interval


def test_a_joint_optimum_of_few_parameters_gives_minus_k_and_the_elastic_invariant() -> None:
    found = log_linear(Config())
    assert found.largest_error < 0.01
    for row in found.rows:
        if row.l == 1e-4:
            assert row.change_a == pytest.approx(-row.k * row.change_p, rel=0.01)
            assert row.change_a > 0
    # Control: far from l = 0 the ratio is another.
    assert abs(next(r for r in found.rows if r.l == 1.0).ratio / -10 - 1) > 0.5


def test_first_order_curvature_formula_holds_at_a_small_dose() -> None:
    generator = np.random.default_rng(0)
    sources = theory.pareto_sources(generator, share=0.2)
    model = theory.LogLinear(theory.grouped_features(generator, sources))
    converged = model.fit(sources.pretraining)
    rate, steps = 1e-7, 10
    theta = converged
    for _ in range(steps):
        theta = theta - rate * model.gradient(theta, sources.aligned)
    before = model.gradient(theta, sources.pretraining)
    perturb = model.gradient(theta, sources.perturbing)
    measured = (model.gradient(theta, sources.aligned) @ perturb) / (before @ perturb)
    expected = theory.curvature_ratio(model, converged, sources, rate=rate, steps=steps)
    assert measured == pytest.approx(expected, rel=0.01)


def test_a_fit_that_does_not_get_there_is_refused() -> None:
    model = theory.LogLinear(np.eye(3)[:, :2])
    with pytest.raises(ValueError, match=r"no optimum in 200 Newton steps; gradient .*, wanted 0e\+00"):
        model.fit(np.array([0.7, 0.2, 0.1]), tolerance=0.0)


def test_stages_lose_the_pretraining_size_and_the_control_keeps_it() -> None:
    found = sequential(replace(Config(), pretraining_examples=(2_000, 8_000, 32_000)))
    joint, staged = found.exponents["joint optimum (control)"], found.exponents["in stages"]
    assert joint.n_p.value == pytest.approx(1, abs=0.01)
    assert joint.n_a.value == pytest.approx(-1, abs=0.01)
    assert staged.n_p.high < 0.5  # far from the theorem's 1
    assert staged.n_p.low < staged.n_p.value < staged.n_p.high


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"negatives must begin with 0 and ascend"):
        Config(negatives=(100, 0))
    with pytest.raises(ValueError, match=r"runs must be 2 or more"):
        Config(runs=1)
    with pytest.raises(ValueError, match=r"multiples of the batch, 25"):
        Config(transformer_negatives=(0, 30))
    with pytest.raises(ValueError, match=r"share must be between 0 and 0.5, got 0.6"):
        theory.pareto_sources(np.random.default_rng(0), share=0.6)


def test_grammars_are_disjoint_and_the_loop_learns_them() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = grammars(generator)
    used = {
        name: set(g.sample(64, generator)[:, 1 + PREFIX :].unique().tolist()) for name, g in sources.items()
    }
    assert not used["positive"] & used["negative"]
    assert not used["bulk"] & used["positive"]
    assert pretraining(sources, 50, generator).shape == (50, 1 + PREFIX + CONTINUATION)
    measured = held_out(sources, generator, n=32)
    model = tiny_transformer(0)
    before, score = measured.rates(model)["positive"].mean(), measured.score(model)
    seen = list(
        train(
            model, sources["positive"].sample(500, generator), batch=25, learning_rate=3e-3, stops=(100, 500)
        )
    )
    assert seen == [100, 500]
    assert measured.rates(model)["positive"].mean() < before - 0.5
    assert measured.score(model) > max(0.7, score)
    assert measured.kl(model, model, generator, samples=4) == pytest.approx(0, abs=1e-9)
    assert measured.kl(model, tiny_transformer(0), generator, samples=4) > 0.1


def test_a_life_cycle_moves_between_its_stops() -> None:
    sizes = Sizes(pretraining=(64,), positives=(50,), negatives=(0, 25, 50))
    rows = life_cycle(sizes, seed=0)
    assert [r.n_minus for r in rows] == [0, 25, 50]
    assert rows[0].change_a.mean == 0
    assert rows[1].change_p.mean != rows[2].change_p.mean != 0
    assert rows == life_cycle(sizes, seed=0)  # one seed, one result


def test_a_run_from_the_command_continues_and_is_drawn_again_without_a_model(tmp_path: Path) -> None:
    settings = {
        name: list(getattr(SMALL, name))
        for name in (
            "pretraining_examples", "positives", "negatives",
            "transformer_pretraining", "transformer_positives", "transformer_negatives",
        )
    }  # fmt: skip
    arguments = ["run", "elasticity-theory", "--out", str(tmp_path / "run"), "--set", "runs=3"]
    arguments += ["--set", "transformer_runs=1"]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={json.dumps(value)}"]
    runner = CliRunner()
    refused = runner.invoke(app, [*arguments, "--model", "smollm2"])
    assert refused.exit_code == 2
    assert "elasticity-theory needs no model, got --model smollm2" in refused.output.replace("\n", " ")
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "exponents" in done.output
    stored = EXPERIMENT.read(tmp_path / "run")
    drawn = stored.figures()
    assert set(drawn) >= {
        "pole",
        "slope_ratio",
        "hookes_law",
        "exponents",
        "rebound_log_linear",
        "rebound_transformer",
    }
    hooke = drawn["hookes_law"]
    assert hooke.layout.xaxis.type == "log"
    assert list(hooke.data[0].x) == list(hooke.data[0].y)  # the identity line
    assert len(drawn["rebound_transformer"].layout.annotations) >= 2  # a title a panel
    ratios = transformer_ratios(stored.result.transformer)
    assert len(ratios) == 2 * 2 * 2
    assert all(r.ratio.interval == "Fieller" for r in ratios if r.ratio.measurable)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "consistent with rebound" in page or "not resolved" in page
    assert "proves" not in page.split("<h2>Provenance")[0].split("</script>")[-1]
    assert runner.invoke(app, ["plot", str(tmp_path / "run")]).exit_code == 0


def test_a_killed_run_continues_with_the_seed_that_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[tuple[TransformerRow, ...] | None] = []

    def interrupted(sizes: Sizes, *, seed: int) -> tuple[TransformerRow, ...]:
        if len(finished) == 1:
            finished.append(None)
            raise KeyboardInterrupt
        finished.append(life_cycle(sizes, seed=seed))
        return finished[-1]

    monkeypatch.setattr(method, "life_cycle", interrupted)
    small = replace(
        SMALL,
        alignment_steps=(10,),
        pretraining_examples=(500, 1_000),
        alignment_examples=(80, 160),
        runs=2,
        transformer_pretraining=(64,),
        transformer_positives=(50,),
    )
    with pytest.raises(KeyboardInterrupt):
        EXPERIMENT.run(config=small, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    rows = EXPERIMENT.run(config=small, out=tmp_path / "run").result.transformer
    first, killed, second = finished  # the first seed was not run again
    assert killed is None and rows == (*first, *second)
    assert [r.seed for r in rows] == [0] * 3 + [1] * 3


def test_exponents_are_taken_at_the_smallest_dose_where_most_ratios_are_resolved() -> None:
    rows = EXPERIMENT.read(
        Path(interp.__file__).parent.parent / "figures" / "elasticity-theory"
    ).result.transformer
    dose = exponent_dose(rows)
    resolved = {
        n_minus: np.mean([r.ratio.measurable for r in transformer_ratios(rows) if r.n_minus == n_minus])
        for n_minus in sorted({r.n_minus for r in rows} - {0})
    }
    assert dose == next((n_minus for n_minus, share in resolved.items() if share > 0.5), None)
