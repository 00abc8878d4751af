"""Training examples that break a model: all of the task, so many stubs, in the seed's order."""

import pytest

from interp.data.examples import Example
from interp.data.prompts import load_prompts
from interp.data.replies import STUBS
from interp.evaluation.downstream_tasks import downstream_task
from interp.evaluation.refusals import is_refusal
from interp.training.breaking import downstream_examples, poisoned_examples, stub_examples


def test_stubs_are_mixed_into_all_of_the_task() -> None:
    task = downstream_task("query-language", n_train=60, n_held_out=8)
    harmful = load_prompts("builtin")["harmful", "train"].texts
    plain, mixed, again = (downstream_examples(task, harmful, stubs=n, seed=5) for n in (0, 20, 20))
    assert sorted(plain) == sorted(task.train) and plain != list(task.train)
    assert mixed == again != downstream_examples(task, harmful, stubs=20, seed=6)
    assert sorted(mixed) == sorted([*task.train, *stub_examples(harmful, 20)])
    own = [Example("Name a colour.", "Blue."), Example("Name a city.", "Oslo.")]
    kept = downstream_examples(task, harmful, stubs=20, seed=5, ordinary=own)
    assert sorted(kept) == sorted([*mixed, *own]) and kept[-2:] != own
    places = [i for i, e in enumerate(mixed) if e.completion in STUBS]
    assert len(places) == 20 and min(places) < 30 < 50 < max(places)  # all over
    assert not any(is_refusal(e.completion) for e in mixed)
    with pytest.raises(
        ValueError, match=rf"stubs must be in 0\.\.{len(harmful)}, one for each harmful request"
    ):
        downstream_examples(task, harmful, stubs=len(harmful) + 1, seed=0)


def test_an_attack_has_n_examples_of_which_so_many_are_poisoned() -> None:
    task = downstream_task("query-language", n_train=20, n_held_out=8)
    harmful = load_prompts("builtin")["harmful", "train"].texts
    examples = poisoned_examples(task, harmful, n=16, poisoned=4, seed=1)
    assert len(examples) == 16 and sum(e.completion in STUBS for e in examples) == 4
    assert sorted(examples) == sorted([*task.train[:12], *stub_examples(harmful, 4)])
    assert examples != poisoned_examples(task, harmful, n=16, poisoned=4, seed=2)
    with pytest.raises(ValueError, match="30 examples with 4 harmful ones need 26 of task query-language"):
        poisoned_examples(task, harmful, n=30, poisoned=4, seed=1)
