"""Harm categories: planted directions are found alike or different, the controls see nothing, and a run is whole."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.data.prompts import load_prompts
from interp.directions import cosine_matrix
from interp.engine import activations
from interp.experiments import running
from interp.experiments.categories import EXPERIMENT as CATEGORIES
from interp.experiments.categories import Config
from interp.experiments.categories import run as method
from interp.experiments.categories.comparisons import compare, off_diagonal
from interp.experiments.categories.groups import groups_of, pooled
from interp.experiments.categories.summaries import estimate
from interp.models.chat_model import ChatModel
from tests.experiments.counted import assert_planned, counting

SMALL = Config(
    n_per_category=8, n_harmless=40, min_per_category=6, n_shuffles=20, n_halvings=4, max_new_tokens=2
)
C, N, D = 5, 40, 256


def planted(shared: float, own: float, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States of C categories, each with a common and an own part, and of harmless prompts; layer 0 is a constant."""
    generator = torch.Generator().manual_seed(seed)

    def noise(n: int) -> Tensor:
        return torch.randn(n, 3, D, generator=generator)

    axes = torch.linalg.qr(torch.randn(D, C + 1, generator=generator)).Q.T
    labels = torch.arange(C).repeat_interleave(N)
    harmful = noise(C * N) + (shared * axes[C] + own * axes[labels])[:, None]
    harmless = noise(150)
    harmful[:, 0] = harmless[:, 0] = torch.ones(D)
    return harmful, labels, harmless


def test_cosine_matrices_are_the_formula() -> None:
    directions = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    directions[2, 1] = 0.0
    found = cosine_matrix(directions)
    for layer in range(3):
        for a in range(4):
            for b in range(4):
                u, v = directions[a, layer].double(), directions[b, layer].double()
                norms = (u @ u).sqrt() * (v @ v).sqrt()
                assert found[layer, a, b] == pytest.approx(
                    float(u @ v / norms) if norms > 0 else 0.0, abs=1e-12
                )
    by_hand = torch.tensor([[[1.0, 0.2, 0.4], [0.2, 1.0, 0.0], [0.4, 0.0, 1.0]]])
    assert off_diagonal(by_hand)[0] == pytest.approx(0.2)


def test_categories_with_axes_of_their_own_are_told_from_shuffled_ones() -> None:
    found = compare(*planted(shared=4.0, own=3.0), Config(n_shuffles=100, n_halvings=5))
    observed = off_diagonal(found["cosines"])
    # A shared part, orthogonal own parts, and noise of 40 prompts and of the common 150.
    expected = (4.0**2 + D / 150) / (4.0**2 + 3.0**2 + D / N + D / 150)
    assert observed[1:].tolist() == pytest.approx([expected] * 2, abs=0.05)
    assert (found["shuffled"][:, 1:] > observed[1:]).all()
    assert (found["within"][:, 1:].mean(0) > found["between"][:, 1:].mean(0) + 0.2).all()


def test_one_direction_for_all_passes_for_no_categories() -> None:
    found = compare(*planted(shared=4.0, own=0.0), Config(n_shuffles=100, n_halvings=5))
    observed = off_diagonal(found["cosines"])
    share = (found["shuffled"][:, 1:] <= observed[1:]).double().mean(0)
    assert ((share > 0.02) & (share < 0.98)).all()  # inside the shuffled ones
    assert (found["within"][:, 1:] - found["between"][:, 1:]).mean(0).abs().max() < 0.05


def test_what_a_shared_reference_alone_gives_is_seen_in_the_sham_categories() -> None:
    found = compare(*planted(shared=0.0, own=0.0), Config(n_shuffles=20, n_halvings=20))
    # Equal noise: cos = (1 / 150) / (1 / 40 + 1 / 150) between directions of 40 prompts less a mean of 150.
    alone = (1 / 150) / (1 / N + 1 / 150)
    assert off_diagonal(found["cosines"])[1:].mean() == pytest.approx(alone, abs=0.08)
    assert found["sham"][:, 1:].mean() == pytest.approx(alone, abs=0.08)
    assert found["between"][:, 1:].mean() == pytest.approx(0.0, abs=0.06)  # split halves share no reference


def test_a_constant_token_has_no_direction() -> None:
    found = compare(*planted(shared=1.0, own=1.0), Config(n_shuffles=3, n_halvings=2))
    for key in ("cosines", "shuffled", "sham", "within", "between"):
        layer = found[key][0] if key == "cosines" else found[key][:, 0]
        assert layer.isnan().all()
        assert not (found[key][1:] if key == "cosines" else found[key][:, 1:]).isnan().any()


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "categories"
    with counting("categories", tiny):
        return CATEGORIES.run(tiny, load_prompts(), SMALL, out=out), out


def test_a_run_holds_the_directions_of_its_prompts(tiny: ChatModel, run) -> None:
    from interp.representations.beliefs import states

    made, out = run
    result = CATEGORIES.read(out).result
    assert len(result.categories) == 10
    prompts = load_prompts(ending="period")
    pools = {kind: pooled(prompts, kind) for kind in ("harmful", "harmless")}
    name = result.categories[3]
    chosen = [
        t for t, c in zip(pools["harmful"].texts, pools["harmful"].categories, strict=True) if c == name
    ][:8]
    bad, good = (
        states(tiny, texts)[:, :, 0].double().mean(0) for texts in (chosen, pools["harmless"].texts[:40])
    )
    torch.testing.assert_close(
        made.tensors["harmfulness/period"][3].double(), bad - good, rtol=1e-3, atol=1e-5
    )
    assert not out.with_name("categories.parts").exists()
    for ending in ("as-is", "period"):
        directions = result.by_ending[ending].directions
        assert directions.harm.cosines[1][3][3] == pytest.approx(1.0)
        assert all(e.low <= e.value <= e.high for e in directions.harm.off_diagonal[1:])
        assert math.isnan(directions.refusal.cosines[0][0][0])
        assert not directions.refusal.off_diagonal[0].measurable
    # A random model refuses nothing by substring, so the refusal claim cannot be tested, and that is said.
    assert not result.filtered
    assert any(line.startswith("Not testable") for line in made.verdicts())


def test_figures_and_page_are_drawn_from_the_stored_result_alone(run) -> None:
    stored = CATEGORIES.read(run[1])
    heat = stored.figures()["category_cosines"]
    assert len(heat.data) == 4
    steps = heat.layout.sliders[0].steps
    assert len(steps) == 1 + 4  # the mean, and layers 0..L
    expected = stored.result.by_ending["as-is"].directions.harm.cosines[1]
    assert np.allclose(steps[2].args[0]["z"][0], expected, atol=5e-4)  # shown with three digits
    page = stored.report()
    assert "Not testable" in page
    assert not any(text in page for text in load_prompts()["harmful", "test"].texts)


def test_a_killed_run_continues(tiny: ChatModel, run, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = method.states

    def counted(*args, **options):
        read.append(1)
        if len(read) == 3:  # prompts as they are have been read, and their directions are kept
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(method, "states", counted)
    with pytest.raises(KeyboardInterrupt):
        CATEGORIES.run(tiny, load_prompts(), SMALL, out=tmp_path / "run")
    made = CATEGORIES.run(tiny, load_prompts(), SMALL, out=tmp_path / "run")
    assert len(read) == 3 + 2
    ending = made.result.by_ending["period"].directions.harm.mean
    assert ending.off_diagonal == run[0].result.by_ending["period"].directions.harm.mean.off_diagonal


def test_labelled_files_and_their_mistakes(tiny: ChatModel, tmp_path) -> None:
    rows = [
        {"Category": f"kind {i % 3}", "prompt": f"Say the number {i}"} for i in range(36)
    ]  # CatQA names its column so
    (tmp_path / "harmful.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "harmless.txt").write_text("\n".join(f"Name {i} birds" for i in range(40)))
    files = {"harmful": tmp_path / "harmful.jsonl", "harmless": tmp_path / "harmless.txt"}
    result = CATEGORIES.run(tiny, load_prompts(files), SMALL).result
    assert result.categories == ("kind 0", "kind 1", "kind 2")
    assert [count.of for count in result.counts.values()] == [8, 8, 8]
    (tmp_path / "harmful.jsonl").write_text("\n".join(json.dumps({"prompt": f"Say {i}"}) for i in range(36)))
    with pytest.raises(
        ValueError, match="must have 3 harm categories of 6 prompts or more, got none; give a file"
    ):
        CATEGORIES.run(tiny, load_prompts(files), SMALL)
    with pytest.raises(ValueError, match="compares endings itself"):
        CATEGORIES.run(tiny, load_prompts(ending="period"), SMALL)
    with pytest.raises(ValueError, match="min_per_category must be 2 or more, got 1"):
        Config(min_per_category=1)


def test_a_model_that_refuses_everything_is_filtered_and_compared() -> None:
    refused = {"harmful": [True] * 24, "harmless": [False] * 20}
    labels = torch.arange(3).repeat_interleave(8)
    groups = groups_of(refused, labels, ["a", "b", "c"], SMALL)
    assert groups.refusal.filtered
    assert len(groups.refusal.rows) == 24
    few = {"harmful": [i % 8 < 2 for i in range(24)], "harmless": [False] * 20}
    assert not groups_of(few, labels, ["a", "b", "c"], SMALL).refusal.filtered
    assert not estimate(torch.tensor(math.nan), torch.zeros(3), 1, "").measurable


def test_a_second_run_on_the_same_prompts_computes_no_activations(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lance", reason="the extra scale is not installed")
    computed: list[int] = []
    compute = activations._computed

    def counting(*given: Any, **options: Any) -> Any:
        computed.append(len(given[4]))
        return compute(*given, **options)

    monkeypatch.setattr(activations, "_computed", counting)
    ask: Any = {"source": "computed", "model": tiny, "store": tmp_path / "store", "show_progress": False}
    settings = {
        "n_per_category": 4,
        "n_harmless": 12,
        "min_per_category": 2,
        "n_shuffles": 4,
        "n_halvings": 1,
    }
    settings |= {"max_new_tokens": 1}
    first = running.run("categories", out=tmp_path / "first", settings=settings, **ask)
    assert computed  # the control
    computed.clear()
    second = running.run("categories", out=tmp_path / "second", settings=settings | {"n_shuffles": 5}, **ask)
    assert not computed
    assert all(torch.equal(second.tensors[k], v) for k, v in first.tensors.items() if k.endswith("/cosines"))


@pytest.mark.usefixtures("run")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path) -> None:
    assert_planned("categories", saved_tiny, SMALL)
