"""Resistance on a tiny model, and its statements on planted losses."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.experiments import resistance
from interp.experiments.resistance_report import gap, overall
from interp.models import ChatModel
from interp.prompts import load_prompts
from interp.results import load_result

SMALL = resistance.Config(
    slices=2, slice_size=4, n_targets=8, max_new_tokens=4, seeds=2, batch_size=4, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def finished(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("resistance") / "run"
    return out, resistance.run(tiny, load_prompts("builtin"), SMALL, out=out).numbers


def test_every_pair_has_both_arms_and_training_lowers_their_loss(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    rows = finished[1]["rows"]
    assert {(r["seed"], r["pair"], r["arm"]) for r in rows} == {
        (s, p, a) for s in (0, 1) for p in ("1-2",) for a in ("forward", "inverse")
    }
    assert np.mean([r["final"] - r["before"] for r in rows]) < 0
    for r in rows:
        assert r["excess"] == pytest.approx(r["final"] - r["self_entropy"])
    # The arms fit different targets, so their self-entropies differ.
    own = {r["arm"]: r["self_entropy"] for r in rows if r["seed"] == 0}
    assert own["forward"] != own["inverse"]


def test_the_run_is_stored_and_drawn(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    numbers = load_result(out).numbers
    drawn = resistance.figures(numbers)
    assert [t.name for t in drawn["losses"].data] == [
        "inverse, final", "forward, final", "inverse, excess", "forward, excess",
    ]  # fmt: skip
    assert len(drawn["gaps"].data[0].x) == 2  # the pair and the mean of pairs
    assert "0.1719" in (out / "report.html").read_text() or "0.172" in (out / "report.html").read_text()
    assert "not a disposition" in (out / "report.html").read_text()


def planted(numbers: dict[str, Any], *, pull: float, entropy: float) -> dict[str, Any]:
    """Losses with a planted excess gap and a planted difference in the targets' entropy, over eight seeds."""
    found = copy.deepcopy(numbers)
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(8):
        for pair in ("1-2", "2-3", "1-3"):
            shared = generator.normal() * 0.2
            for arm in ("forward", "inverse"):
                forward = arm == "forward"
                own = 1.0 + shared + entropy * forward
                excess = 0.3 + pull * forward + 0.01 * generator.normal()
                rows.append(
                    {
                        "seed": seed, "pair": pair, "arm": arm, "self_entropy": own, "excess": excess,
                        "final": own + excess, "before": own + 0.5, "before_excess": 0.5 + 0.01 * generator.normal(),
                    }
                )  # fmt: skip
    found["rows"] = rows
    return found


def test_planted_resistance_is_found_and_entropy_alone_is_not_it(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    pulled = planted(finished[1], pull=0.05, entropy=0.0)
    found = overall(pulled, "excess")
    assert found.difference.low <= 0.05 <= found.difference.high
    assert gap(pulled, "1-3", "excess").p_value < 0.01
    assert (
        sum(
            "consistent with resistance;" in line and "not con" not in line
            for line in resistance.verdicts(pulled)
        )
        == 2
    )
    confounded = planted(finished[1], pull=0.0, entropy=0.1)
    assert overall(confounded, "final").difference.positive
    assert not overall(confounded, "excess").difference.positive
    assert "The gap in final loss is not there in excess loss" in resistance.verdicts(confounded)[-1]


def test_wrong_settings_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match=r"slices and seeds must be 2 or more, got 1 and 5"):
        resistance.Config(slices=1)
    with pytest.raises(ValueError, match=r"slice_size must be a multiple of batch_size = 8, got 9"):
        resistance.Config(slice_size=9)
    with pytest.raises(ValueError, match=r"3 slices of 8000 need 24000 examples, the task has \d+"):
        resistance.run(tiny, load_prompts("builtin"), resistance.Config(slice_size=8000))
