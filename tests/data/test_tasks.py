"""Tasks from files and their scorers."""

import json
from pathlib import Path

import pytest

from interp.data.prompts import load_prompts
from interp.data.replies import AFFIRMATION, REFUSALS
from interp.data.tasks import load_task
from interp.evaluation.refusals import is_refusal
from interp.evaluation.scorers import scorer


def write_examples(path: Path, n: int, reply: str) -> Path:
    rows = [{"prompt": f"{path.stem} {i}?", "completion": reply} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_builtin_task_refuses_one_half_and_affirms_the_other() -> None:
    task = load_task("builtin", load_prompts("builtin"), n_eval=16)
    assert all(is_refusal(e.completion) for e in task.positive)
    assert {e.completion for e in task.negative} == {AFFIRMATION}
    assert not {e.prompt for e in task.positive} & {e.prompt for e in task.negative}
    trained = {e.prompt for e in (*task.positive, *task.negative)}
    assert not trained & {*task.prompts, *(e.prompt for e in task.held_out_positive)}
    assert len(task.prompts) == 16
    first, again, other = task.shuffled(0), task.shuffled(0), task.shuffled(1)
    assert first == again
    assert first != other
    assert sorted(first[0]) == sorted(task.positive)


def test_reversed_roles_swap_what_is_taught_and_what_reverses_it() -> None:
    prompts = load_prompts("builtin")
    task, swapped = (load_task(name, prompts, n_eval=16) for name in ("builtin", "builtin-reversed"))
    assert {e.completion for e in swapped.positive} == {AFFIRMATION} == {e.completion for e in task.negative}
    assert [e.prompt for e in swapped.positive] == [e.prompt for e in task.positive]
    assert scorer("refusal")([e.completion for e in swapped.negative]) == [True] * len(swapped.negative)
    assert {pair.rejected for pair in swapped.preferences(0)} == {AFFIRMATION}
    assert swapped.provenance.hash != task.provenance.hash


def test_a_task_from_files_holds_its_last_examples_out(tmp_path: Path) -> None:
    good, bad = (
        write_examples(tmp_path / "good.jsonl", 30, "Yes."),
        write_examples(tmp_path / "bad.jsonl", 30, "No."),
    )
    task = load_task(f"positive={good},negative={bad}", load_prompts("builtin"), n_eval=10)
    assert len(task.positive) == len(task.negative) == 20
    assert task.prompts == tuple(f"good {i}?" for i in range(20, 30))
    assert task.corpora["negative"].texts == ("No.",) * 10
    prompts = tmp_path / "asked.txt"
    prompts.write_text("One?\nTwo?\n")
    named = load_task(f"positive={good},negative={bad},prompts={prompts}", load_prompts("builtin"), n_eval=10)
    assert named.prompts == ("One?", "Two?")
    assert named.provenance.hash != task.provenance.hash


def test_preferences_keep_the_seeds_order_and_reject_a_refusal_of_the_same_prompt() -> None:
    task = load_task("builtin", load_prompts("builtin"), n_eval=16)
    for seed in (0, 1):
        pairs = task.preferences(seed)
        assert [(p.prompt, p.chosen) for p in pairs] == list(task.shuffled(seed)[1])
        assert all(is_refusal(p.rejected) and not is_refusal(p.chosen) for p in pairs)
    rejected = {p.prompt: p.rejected for p in task.preferences(0)}
    assert [rejected[e.prompt] for e in task.negative[:5]] == [*REFUSALS, REFUSALS[0]]  # in turn


def test_preferences_of_files_take_the_completion_of_the_same_prompt_or_say_what_is_missing(
    tmp_path: Path,
) -> None:
    files = {}
    for side, shift in (("positive", 0), ("negative", 0), ("shifted", 5)):
        rows = [{"prompt": f"Ask {i + shift}?", "completion": f"{side} {i + shift}"} for i in range(24)]
        files[side] = tmp_path / f"{side}.jsonl"
        files[side].write_text("\n".join(map(json.dumps, rows)))
    prompts = load_prompts("builtin")
    task = load_task(f"positive={files['positive']},negative={files['negative']}", prompts, n_eval=4)
    for pair in task.preferences(3):
        assert pair.rejected == pair.chosen.replace("negative", "positive")
        assert pair.chosen == f"negative {pair.prompt[4:-1]}"
    # 20 rows of each are trained on: of Ask 5 to 24 the last five are not among Ask 0 to 19.
    task = load_task(f"positive={files['positive']},negative={files['shifted']}", prompts, n_eval=4)
    with pytest.raises(
        ValueError,
        match=r"need a positive completion of every negative example's prompt.*5 of 20 have none, the first is "
        r"number 16: give their prompts in the positive file too \(its last rows are held out and do not count\), "
        "or train by sft",
    ):
        task.preferences(0)


def test_wrong_tasks_and_scorers_are_refused(tmp_path: Path) -> None:
    prompts = load_prompts("builtin")
    with pytest.raises(
        ValueError,
        match=r"task must be builtin, builtin-reversed or positive=FILE,negative=FILE.*got 'positive=a'",
    ):
        load_task("positive=a", prompts, n_eval=4)
    few = write_examples(tmp_path / "few.jsonl", 9, "Yes.")
    with pytest.raises(ValueError, match=r"has 9 examples; the last 4 are held out"):
        load_task(f"positive={few},negative={few}", prompts, n_eval=4)
    with pytest.raises(
        ValueError,
        match=r"scorer must be refusal, compliance, substring:TEXT or classifier:MODEL:LABEL, got 'mood'",
    ):
        scorer("mood")
