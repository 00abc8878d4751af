"""The endings experiment: exchanged endings are those of the other set, planted ones leak, equal ones do not."""

from collections import Counter
from typing import Any

import pytest
import torch

from interp.data.prompt_sets import Kind, Prompts
from interp.data.prompts import load_prompts
from interp.directions import cosine, difference_in_means
from interp.experiments.endings import EXPERIMENT, PLANTED, TREATMENTS, Cell, Config
from interp.experiments.endings.run import closing, treated
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from tests.conftest import prompts_of

SMALL = Config(n_train=16, n_test=12, n_shuffles=4, n_resamples=20)


def test_closing_marks() -> None:
    assert [closing(text) for text in ("A.", "B?! ", "C", "Use 2.0", "为什么？")] == [".", "?!", "", "", "？"]


def test_treatments_change_endings_and_nothing_else() -> None:
    parts: dict[Kind, Prompts] = {
        "harmful": prompts_of([f"bad {i}" for i in range(40)]),
        "harmless": prompts_of([f"good {i}." for i in range(30)]),
    }
    swapped = treated(parts, "swapped", seed=0)
    assert all(text.endswith(".") for text in swapped["harmful"].texts)
    assert not any(text.endswith(".") for text in swapped["harmless"].texts)
    asked = treated(parts, "question", seed=0)
    assert all(text.endswith("?") for part in asked.values() for text in part.texts)
    for treatment in TREATMENTS:
        for kind, part in treated(parts, treatment, seed=0).items():
            assert [t.rstrip(".?") for t in part.texts] == [t.rstrip(".?") for t in parts[kind].texts]
            assert part.ids == parts[kind].ids
    mixed: dict[Kind, Prompts] = {
        "harmful": parts["harmful"],
        "harmless": prompts_of(["a.", "b?", "c?", "d?"] * 25),
    }
    counts = Counter(closing(text) for text in treated(mixed, "swapped", seed=3)["harmful"].texts)
    assert counts["?"] > counts["."] > 0  # drawn as often as they are there


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("endings") / "run"
    finished = EXPERIMENT.run(tiny, load_prompts(), SMALL, out=folder)
    stored = EXPERIMENT.read(folder)
    assert stored.result == finished.result
    return stored


def test_planted_endings_leak_until_endings_are_equal(run: Any) -> None:
    cells: dict[str, Cell] = run.result.models["tiny"].cells[PLANTED]
    assert cells["as-is"].leak.value > 0.95
    for treatment in ("strip", "period", "question"):
        # Equal endings: one token for all with a mark, letters of words without.
        assert cells[treatment].leak.value < 0.75
    assert cells["period"].leak.value == cells["question"].leak.value == 0.5
    assert cells["as-is"].guard.value > 0.95  # of a random model: it reads the mark and nothing else
    assert cells["swapped"].guard.value < 0.1  # and is led astray by it
    assert set(run.result.models["tiny"].cells) == {"builtin", PLANTED}


def test_numbers_are_those_of_the_formula(run: Any, tiny: ChatModel) -> None:
    prompts = load_prompts()
    bad, good = (
        states(tiny, prompts[kind, "train"].first(16).with_ending("period"))
        for kind in ("harmful", "harmless")
    )
    cell = run.result.models["tiny"].cells["builtin"]["period"]
    layer = run.result.models["tiny"].layer
    axes = [difference_in_means(bad[:, layer, role], good[:, layer, role]) for role in (0, 1)]
    assert cell.cosine.value == pytest.approx(float(cosine(*axes)), abs=1e-5)
    assert cell.cosines[layer] == pytest.approx(cell.cosine.value, abs=1e-6)
    assert len(cell.cosines) == tiny.n_layers + 1 and cell.cosine.n == 32
    assert cell.cosine.low <= cell.cosine.value <= cell.cosine.high
    assert cell.cosine_shuffled[0] <= cell.cosine_shuffled[1]
    assert cell.transfer.keys() == {PLANTED} and torch.isfinite(torch.tensor(cell.guard.value))


def test_figures_tables_and_page_are_drawn_from_the_stored_numbers_alone(run: Any) -> None:
    drawn = run.figures()
    assert set(drawn) == {"endings_builtin", "endings_planted_endings", "cosine_layers", "transfer"}
    models = [trace for trace in drawn["endings_builtin"].data if trace.name == "tiny"]
    assert len(models) == 3  # a panel a measure
    assert len(run.table()) == 10
    assert any("positive control" in line for line in run.verdicts())
    page = run.report()
    assert not any(text in page for text in load_prompts()["harmful", "test"].texts[:12])


def test_mistakes_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="the set builtin is given twice"):
        EXPERIMENT.run(tiny, load_prompts(), Config(sets=("builtin",)))
    with pytest.raises(ValueError, match="changes endings itself; load builtin with ending='as-is'"):
        EXPERIMENT.run(tiny, load_prompts(ending="period"), SMALL)
    with pytest.raises(ValueError, match="no such folder"):
        EXPERIMENT.run(tiny, load_prompts(), Config(models=("./absent",)))
