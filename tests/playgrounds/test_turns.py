"""Conversations of the playground's columns."""

import pytest
import torch

from interp.directions import Direction
from interp.models.prompt_inputs import Conversation
from interp.playgrounds.turns import Column, Turns
from interp.representations.token_traces import Answer, Setting


def answer(text: str) -> Answer:
    return Answer(text=text, prompt=(), tokens=(), next_log_probs=torch.zeros(2), finished=True)


def contents(prompt: str | Conversation) -> list[str]:
    assert not isinstance(prompt, str)
    return [str(turn["content"]) for turn in prompt]


def test_each_column_has_its_own_earlier_turns() -> None:
    first = Turns().advance("one", {}, [])
    assert first.prompt("plain") == "one"
    answers = {"plain": answer("p"), "steered": answer("s")}
    second = first.advance("two", answers, list(answers))
    assert contents(second.prompt("plain")) == ["one", "p", "two"]
    assert contents(second.prompt("steered")) == ["one", "s", "two"]
    assert second.keeping().prompt("kept") == second.prompt("steered")
    assert second.advance(" ", answers, list(answers)) is second  # the last message again
    with pytest.raises(ValueError, match="no steered answer to continue from"):
        second.advance("three", {"plain": answer("p")}, ["plain", "steered"])
    with pytest.raises(ValueError, match="the prompt is empty"):
        Turns().advance("", {}, [])


def test_columns_are_equal_when_their_answers_are() -> None:
    way = Direction(vector=torch.ones(4), layer=1, position="t_inst")
    setting = Setting(prompt="Hi", direction=way, coefficient=2.0)
    steered, kept = (Column(name=name, setting=setting) for name in ("steered", "kept"))
    assert steered.key == kept.key
    assert kept.key != Column(name="plain", setting=setting).key
    assert kept.asking("Ho").key != kept.key
    assert Column(name="plain", setting=setting).interventions == [] != kept.interventions
