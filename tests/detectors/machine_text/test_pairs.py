"""Pairs share their beginning and their length, and the machine's half is what the model generates."""

import pytest

from interp.detectors.machine_text.pairs import make_pairs, plain_prompts
from interp.engine.generation import generate
from interp.engine.interventions import Add
from interp.models.chat_model import ChatModel
from tests.conftest import prompts_of
from tests.engine.vectors import vector

HUMAN = prompts_of(
    (
        "The river rose in the night, and by morning the lower road was gone.",
        "Four of the seven keys were found, but none of them fitted the lock.",
        "Too short.",
        "Nobody had asked for the bridge, and nobody thanked them for it.",
    )
)


def test_pairs_begin_alike_and_are_as_long_as_each_other(tiny: ChatModel) -> None:
    pairs = make_pairs(tiny, HUMAN, length=40, prefix_tokens=12, temperature=0)
    assert pairs.dropped[-1:] == ("p2",) or "p2" in pairs.dropped
    starts = [tuple(tiny.tokenizer(text)["input_ids"][:12]) for text in HUMAN.texts]
    written = generate(tiny, plain_prompts(tiny, [starts[i] for i in (0, 1, 3)]), max_new_tokens=28)
    by_id = dict(zip(("p0", "p1", "p3"), written.ids, strict=True))
    assert len(pairs) >= 2 and pairs.human.ids == pairs.machine.ids
    for name, human, machine, n in zip(
        pairs.human.ids, pairs.human.texts, pairs.machine.texts, pairs.lengths, strict=True
    ):
        assert HUMAN.texts[int(name[1])].startswith(human) and len(human) == n <= 40
        assert machine[:12] == human[:12]
        own = [i for i in by_id[name] if i not in tiny.tokenizer.all_special_ids]
        assert machine[12:] == tiny.tokenizer.decode(own)[: len(machine) - 12]
    assert "continued by tiny" in pairs.machine.source and "pairs of human" in repr(pairs)


def test_decodings_and_steering_change_the_machines_half_alone(tiny: ChatModel) -> None:
    def machine(**options: object) -> tuple[str, ...]:
        return make_pairs(tiny, HUMAN, length=40, prefix_tokens=12, **options).machine.texts  # pyright: ignore

    sampled = machine(seed=1)
    assert machine(seed=1) == sampled != machine(seed=2)
    assert machine(temperature=1.0, top_p=1e-6) == machine(temperature=0)
    assert machine(temperature=0, interventions=[Add(vector(), coefficient=4, layers=1)]) != machine(
        temperature=0
    )


def test_what_gives_no_pair_is_said(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="no text of test has more than 100 tokens"):
        make_pairs(tiny, HUMAN, prefix_tokens=100, length=150)
    with pytest.raises(ValueError, match="prefix_tokens must lie between 0 and length 20, got 30"):
        make_pairs(tiny, HUMAN, length=20)
    with pytest.raises(ValueError, match="top_p must lie above 0 and be at most 1"):
        make_pairs(tiny, HUMAN, length=40, prefix_tokens=12, top_p=1.5)
