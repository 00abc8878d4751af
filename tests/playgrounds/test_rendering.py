"""Sentences, colours and tables of the playground."""

import pytest
import torch

from interp.directions import Direction
from interp.playgrounds.rendering import (
    addition_sentence,
    answer_html,
    colour,
    count,
    picture_html,
    probabilities_html,
    strips_html,
)
from interp.representations.token_traces import Setting

WAY = Direction(vector=torch.ones(32), layer=17, position="t_inst", mean_activation_norm=10.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"coefficient": 3.0}, "3 × the norm of refusal added at layer 17, at all tokens"),
        (
            {"coefficient": -0.5, "layer": 2, "positions": ["t_inst", -1]},
            "0.5 × the norm of refusal subtracted at layer 2, at t_inst and token -1",
        ),
        (
            {"relative_norm": 0.5, "positions": "instruction", "new_tokens": 1},
            "0.5 × the mean activation norm added along refusal at layer 17, at the instruction and the first 1 token "
            "of the answer",
        ),
        (
            {"relative_norm": -2.0, "new_tokens": "none"},
            "2 × the mean activation norm added against refusal at layer 17, at all tokens of the prompt",
        ),
        (
            {"positions": "t_inst", "new_tokens": "all"},
            "1 × the norm of refusal added at layer 17, at t_inst and all tokens of the answer",
        ),
        ({"coefficient": 0.0}, "nothing added: the amount is 0"),
    ],
)
def test_what_was_added_is_a_sentence(options: dict, sentence: str) -> None:
    assert addition_sentence(Setting(prompt="Hi", direction=WAY, **options), "refusal") == sentence


def test_tokens_are_counted() -> None:
    assert [count(n) for n in (0, 1, 12)] == ["0 tokens", "1 token", "12 tokens"]


def test_rows_that_read_zero_in_every_answer_are_dropped() -> None:
    table = {
        "A": {"plain": 0.9, "steered": 0.0001},
        "B": {"plain": 0.0004, "steered": 0.0004},
        "C": {"plain": 0.0, "steered": 0.0006},
    }
    drawn = probabilities_html(table, ["plain", "steered"])
    assert ">A</td>" in drawn and ">C</td>" in drawn and ">B</td>" not in drawn


def test_earlier_turns_stand_above_the_answer() -> None:
    earlier = [{"role": "user", "content": "<Hi>"}, {"role": "assistant", "content": "Hello"}]
    drawn = answer_html("plain", None, earlier=earlier, message="And?")
    assert drawn.index("&lt;Hi&gt;") < drawn.index("Hello") < drawn.index("And?") < drawn.index("<p ")
    assert "And?" not in answer_html(
        "plain", None, message="And?"
    )  # one turn: the prompt stands above already


def test_a_picture_without_answers_says_what_to_do() -> None:
    assert "run this cell" in picture_html([], "", "", prompt="", status="")
    assert "<b>x</b>" in picture_html(["<b>x</b>"], "", "", prompt="<", status="Done")


def test_colours_diverge_from_white() -> None:
    assert colour(0.0, 5.0) == "#FFFFFF"
    assert colour(9.0, 5.0) == colour(5.0, 5.0) != colour(2.0, 5.0)
    red, blue = (
        tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (colour(5.0, 5.0), colour(-5.0, 5.0))
    )
    assert red[0] > red[2] and blue[2] > blue[0]
    assert colour(1.0, 0.0) == "#FFFFFF"
    assert strips_html({}, ["a"]).count("interp-token") == 0
