"""Resistance on a tiny model, and its statements on planted losses."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.data.prompts import load_prompts
from interp.data.tasks import load_task
from interp.experiments.resistance import run as resistance
from interp.experiments.resistance.report import gap, kl_table, overall
from interp.models.chat_model import ChatModel, with_adapter
from interp.models.tokens import tokenize
from interp.storage.untyped import Parts, load_result

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
    assert [t.name for t in drawn["kl_change"].data] == ["inverse", "forward"]
    assert drawn["kl_change"].data[1].y[0] == pytest.approx(
        np.mean([r["kl_change"] for r in numbers["rows"] if r["arm"] == "forward"])
    )
    page = (out / "report.html").read_text()
    assert "0.4568" in page and "does not define its KL change" in page
    assert "0.1719" in (out / "report.html").read_text() or "0.172" in (out / "report.html").read_text()
    assert "not a disposition" in (out / "report.html").read_text()


def test_the_kl_change_is_from_start_to_trained_on_the_answers_of_both(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms: dict[str, tuple[Path, Path, list[list[str]]]] = {}
    plain = resistance._kl_change

    def watched(base: Any, start: Path, trained: Path, task: Any, answers: Any) -> float:
        found = plain(base, start, trained, task, answers)
        assert plain(base, start, start, task, answers) == pytest.approx(0, abs=1e-4)  # control; float16
        texts = [pair for each in answers for pair in zip(task.prompts, each, strict=True)]
        logs: dict[Path, list[torch.Tensor]] = {
            start: [],
            trained: [],
        }  # the definition, by plain forward passes
        for adapter, into in logs.items():
            with with_adapter(base, str(adapter)) as model, torch.no_grad():
                for prompt, answer in texts:
                    ids = base.tokenizer(answer, add_special_tokens=False)["input_ids"]
                    first = tokenize(base.tokenizer, [prompt]).ids[0]
                    logits = model.hf(torch.tensor([[*first, *ids]])).logits[0, len(first) - 1 : -1]
                    into.append(logits.double().log_softmax(-1))
        p, q = (torch.cat(rows) for rows in logs.values())
        expected = (p.exp() * (p - q)).sum(-1).mean().item()
        assert found == pytest.approx(expected, rel=0.02)  # float16
        arms[trained.name.split("-")[0]] = (start, trained, answers)
        return found

    monkeypatch.setattr(resistance, "_kl_change", watched)
    config = dataclasses.replace(SMALL, n_targets=4)
    parts = Parts(tmp_path / "run", {})
    rows = resistance.one_seed(
        tiny, load_task("builtin", load_prompts("builtin"), n_eval=4), config, parts, 0
    )
    assert min(r["kl_change"] for r in rows) > 1e-3
    forward, inverse = arms["forward"], arms["inverse"]
    assert forward[2] == inverse[2] and len(forward[2]) == 2  # the same tokens for both arms
    assert [arm[0].name for arm in (forward, inverse)] == ["checkpoint-4", "checkpoint-8"]


def planted(numbers: dict[str, Any], *, pull: float, entropy: float, moved: float = 0.0) -> dict[str, Any]:
    """Losses with a planted excess gap, difference in the targets' entropy and in KL change, over eight seeds."""
    found = copy.deepcopy(numbers)
    generator, other = np.random.default_rng(0), np.random.default_rng(1)
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
                        "kl_change": 0.3 + shared**2 + moved * forward + 0.01 * other.normal(),
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
    there = copy.deepcopy(pulled)
    for row in there["rows"]:
        row["before_excess"] += 0.05 * (row["arm"] == "forward")
    said = resistance.verdicts(there)
    assert sum("inverse ends lower, but training did not make the gap;" in line for line in said) == 2
    assert said[2].startswith("Training did not resolvably change the gap")
    assert resistance.verdicts(pulled)[2].startswith("Training widened the gap between the arms: by 0.05")
    confounded = planted(finished[1], pull=0.0, entropy=0.1)
    assert overall(confounded, "final").difference.positive
    assert not overall(confounded, "excess").difference.positive
    assert "The gap in final loss is not there in excess loss" in resistance.verdicts(confounded)[3]


def test_a_planted_kl_change_is_said_either_way_or_not_resolved(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    for moved, reading in (
        (0.1, "further forward than inverse"),
        (-0.1, "further inverse than forward"),
        (0.0, "KL change: not resolved"),
    ):
        numbers = planted(finished[1], pull=0.0, entropy=0.0, moved=moved)
        said = resistance.verdicts(numbers)[-1]
        assert reading in said and "0.4568 forward, 0.2796 inverse" in said
        difference = overall(numbers, "kl_change").difference
        assert difference.low <= moved <= difference.high
        table = kl_table(numbers)
        assert [row[1] for row in table.rows] == ["1-2", "2-3", "1-3", "mean of pairs", "1-2"]
        assert all(len(row) == len(table.header) for row in table.rows)


def test_a_run_stored_without_the_kl_change_still_opens() -> None:
    stored = interp.open_run(Path(interp.__file__).parent.parent / "figures" / "resistance")
    numbers = copy.deepcopy(stored.numbers)
    for row in numbers["rows"]:
        row.pop("kl_change", None)  # as versions before it stored
    assert set(resistance.figures(numbers)) == {"losses", "gaps"}
    assert not any("KL change" in line for line in resistance.verdicts(numbers))
    assert "KL change" not in resistance.report(numbers)
    assert "KL(start" not in resistance.report(numbers)


def test_wrong_settings_are_refused(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match=r"slices and seeds must be 2 or more, got 1 and 5"):
        resistance.Config(slices=1)
    with pytest.raises(ValueError, match=r"slice_size must be a multiple of batch_size = 8, got 9"):
        resistance.Config(slice_size=9)
    with pytest.raises(ValueError, match=r"3 slices of 8000 need 24000 examples, the task has \d+"):
        resistance.run(tiny, load_prompts("builtin"), resistance.Config(slice_size=8000))
