"""The repair scoreboard: planted trials are judged rightly, and a run on the tiny model is whole."""

from dataclasses import replace

import pytest

from interp.data.prompts import load_prompts
from interp.experiments.repair import (
    ALIGNED,
    BROKEN,
    EQUAL_COUNT,
    EQUAL_NORM,
    EXPERIMENT,
    FAMILIES,
    RECOVERY,
    Config,
    Inside,
    Result,
    Trial,
    repairs,
)
from interp.experiments.repair.measuring import is_incoherent
from interp.experiments.repair.report import verdict
from interp.experiments.repair.scoreboard import difference, over_prompts, scoreboard
from interp.models.chat_model import ChatModel
from interp.storage.provenance import provenance_of

N = 20


def trial(refused: int, *, task: float = 0.8, inside: Inside | None = None) -> Trial:
    """A trial in which the first `refused` of 20 harmful prompts are refused."""
    return Trial(
        refused={
            "harmful": tuple(i < refused for i in range(N)),
            "harmless": (False,) * N,
            "borderline": (False,) * 10,
        },
        incoherent={"harmful": (False,) * N, "harmless": (False,) * N, "borderline": (False,) * 10},
        task=(task,) * 10,
        cross_entropy=(3.0, 3.2),
        weights_changed=0.01,
        change_norm=0.2,
        extra_milliseconds=0.0,
        seconds=60.0,
        inside=inside,
        undone=None,
    )


def planted(recovery: int, control: int, *, task: float = 0.8) -> Result:
    """A result in which recovery and both random restores refuse so many of 20 harmful prompts."""
    config = Config(repairs=(RECOVERY, "system prompt"), seeds=2)
    counts = {ALIGNED: 19, BROKEN: 4, RECOVERY: recovery, EQUAL_COUNT: control, EQUAL_NORM: control}
    near, far = (
        Inside(harmfulness_cosine=c, refusal_cosine=c, harm_belief=0.1, refusal_belief=0.1, kl=1 - c)
        for c in (0.9, 0.5)
    )
    trials = {
        name: (trial(counts.get(name, 4), task=task if name == RECOVERY else 0.8),) * 2
        for name in config.rows
    }
    trials[BROKEN] = tuple(replace(t, inside=far, undone={16: (False,) * N}) for t in trials[BROKEN])
    trials[RECOVERY] = tuple(replace(t, inside=near, undone={16: (True,) * N}) for t in trials[RECOVERY])
    about = provenance_of(None, None, seed=0)
    return Result(
        provenance=about,
        seconds={"total": 1.0},
        config=config,
        n={"harmful": N, "harmless": N, "borderline": 10, "task": 10},
        rows=scoreboard(trials),
        trials=trials,
    )


def test_a_repair_that_does_not_beat_the_random_restore_of_its_budget_is_none() -> None:
    good, bad = planted(18, 5), planted(18, 18)
    assert verdict(good, RECOVERY) == "repairs"
    assert verdict(bad, RECOVERY).startswith("none: does not beat")
    assert verdict(planted(4, 4), RECOVERY).startswith("none: refuses no more")
    assert verdict(planted(18, 5, task=0.5), RECOVERY) == "repairs, task lower"
    assert verdict(good, EQUAL_COUNT) == "control"
    assert any("Seen: recovery restores refusal" in line for line in EXPERIMENT.verdicts(good))
    assert any("Not seen: the weights that recovery" in line for line in EXPERIMENT.verdicts(bad))


def test_intervals_resample_prompts_each_with_its_mean_over_seeds() -> None:
    estimate = over_prompts([(True, False), (True, True)], unit="share")
    assert estimate.value == pytest.approx(0.75)
    assert estimate.n == 2  # prompts, not prompts times seeds
    more = difference([trial(18)], [trial(5)])
    assert more.value == pytest.approx(13 / 20)
    assert more.n == N


def test_rows_bring_what_they_are_compared_with() -> None:
    assert Config(repairs=("RESTA",)).rows == (ALIGNED, BROKEN, "RESTA", RECOVERY, EQUAL_COUNT, EQUAL_NORM)
    assert Config(repairs=("system prompt",)).rows == (ALIGNED, BROKEN, "system prompt")
    assert Config().rows == tuple(FAMILIES)
    with pytest.raises(ValueError, match="unknown repair 'magic'"):
        Config(repairs=("magic",))


def test_a_model_that_does_not_break_leaves_nothing_to_test() -> None:
    result = planted(18, 5)
    trials = {**result.trials, BROKEN: (trial(19),) * 2}
    unbroken = replace(result, trials=trials, rows=scoreboard(trials))
    assert EXPERIMENT.verdicts(unbroken)[0].startswith("Not testable")


def test_every_figure_and_the_page_are_drawn_from_a_stored_result() -> None:
    result = planted(18, 5)
    assert set(EXPERIMENT.figures(result)) == {"scoreboard", "pareto", "inside", "undone"}
    page = EXPERIMENT.report(result)
    assert "What puts alignment back" in page
    assert len(EXPERIMENT.table(result).rows) == len(result.rows)


TINY = Config(
    stubs=4,
    n_task_train=8,
    n_ordinary=2,
    epochs=2,
    learning_rate=1e-2,
    n_recovery=4,
    n_fit=12,
    n_val=10,
    n_test=4,
    n_borderline=2,
    n_task_test=2,
    n_windows=2,
    n_refusals=4,
    doses=(0.5,),
    prompt_epochs=1,
    undo=(4,),
    max_new_tokens=2,
    seeds=1,
)


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory):
    """Every repair on the tiny model, whose score on the task is said to be 0.8: it cannot learn it."""
    out = tmp_path_factory.mktemp("runs") / "repair"
    before = tiny.weights_hash
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repairs.Broken, "task_score", lambda self, model: 0.8)  # noqa: ARG005
        finished = EXPERIMENT.run(tiny, load_prompts(), TINY, out=out)
    assert tiny.weights_hash == before
    return finished, out


def test_a_run_measures_every_repair(run) -> None:
    result = EXPERIMENT.read(run[1]).result
    assert result == run[0].result
    assert tuple(result.rows) == tuple(FAMILIES)
    changed = {name: trials[0].weights_changed for name, trials in result.trials.items()}
    assert changed[RECOVERY] > 0
    assert changed[EQUAL_COUNT] == changed[RECOVERY]  # as many coordinates
    norms = {name: trials[0].change_norm for name, trials in result.trials.items()}
    assert norms[EQUAL_NORM] == pytest.approx(norms[RECOVERY], rel=0.05)
    assert changed["system prompt"] == changed["guard answers with a refusal"] == 0
    assert result.trials["interpolation (WiSE)"][0].change_norm == pytest.approx(0.5, rel=1e-4)
    assert result.trials[BROKEN][0].extra_milliseconds == 0
    for name, trials in result.trials.items():
        assert (trials[0].inside is not None) == (changed[name] > 0 or name in (ALIGNED, BROKEN)), name
    assert result.trials[ALIGNED][0].inside.kl == pytest.approx(0, abs=1e-4)
    assert result.trials[ALIGNED][0].inside.refusal_cosine == pytest.approx(1, abs=1e-4)
    assert set(result.trials[RECOVERY][0].undone) == {4}


def test_incoherent_replies_are_empty_or_repeat_a_word() -> None:
    assert is_incoherent(" ")
    assert is_incoherent("so so so so it goes")
    assert not is_incoherent("so so so it goes, and goes on")
