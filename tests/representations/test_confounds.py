"""The leak check on contrasts whose leak is planted."""

import logging

import pytest

from interp.data.prompts import Ending, Prompts
from interp.models.chat_model import ChatModel
from interp.representations.confounds import THRESHOLD, leak_check

TOPICS = ("bread", "rain", "a river", "the moon", "old maps", "tea", "bees", "chess", "a violin", "snow")


def prompts(opening: str, ends: str, n: int = 20) -> Prompts:
    """Prompts that end with these characters in turn ("-": bare)."""
    texts = tuple(
        f"{opening} {TOPICS[i % len(TOPICS)]}{ends[i % len(ends)]}".removesuffix("-") for i in range(n)
    )
    return Prompts(texts, tuple(map(str, range(n))), (None,) * n, source=opening)


def contrast(harmful: str, harmless: str, ending: Ending = "as-is") -> dict[str, tuple[Prompts, Prompts]]:
    return {
        "train": (
            prompts("Tell me about", harmful).with_ending(ending),
            prompts("Explain", harmless).with_ending(ending),
        ),
        "held_out": (
            prompts("Say a word on", harmful).with_ending(ending),
            prompts("What about", harmless).with_ending(ending),
        ),
    }


def test_a_planted_leak_is_found_and_warned_of(tiny: ChatModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="interp.representations.confounds"):
        found = leak_check(tiny, **contrast(".", "?"), label="planted")
    assert found.last_token.value == 1.0
    assert found.last_token.n == 40
    assert found.embedding["t_inst"].value > 0.95
    # Every prompt ends in the same template token, so its embedding tells nothing.
    assert found.embedding["t_post_inst"].value == 0.5
    assert found.worst == 1.0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "leak check of planted" in message
    assert "AUROC 1.00 (last token 1.00)" in message
    assert "ending='period'" in message


def test_equal_endings_leak_nothing(tiny: ChatModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="interp.representations.confounds"):
        found = leak_check(tiny, **contrast(".", "?", ending="period"))
    assert found.last_token.value == 0.5
    assert {role: rate.value for role, rate in found.embedding.items()} == {"t_inst": 0.5, "t_post_inst": 0.5}
    assert found.worst == 0.5
    assert not caplog.records


def test_a_partial_leak_has_the_auroc_of_its_shares(tiny: ChatModel) -> None:
    found = leak_check(tiny, **contrast("...?", ".???"))
    # 3/4 against 1/4 full stops: P(harmful above) + P(tie) / 2
    expected = 0.75 * 0.75 + (2 * 0.75 * 0.25) / 2
    assert found.last_token.value == pytest.approx(expected)
    assert found.embedding["t_inst"].value == pytest.approx(expected)
    assert found.worst > THRESHOLD


def test_a_last_token_never_seen_in_training_says_nothing(tiny: ChatModel) -> None:
    # Of unequal sizes, so that smoothing alone would favour one side.
    train = prompts("Tell me about", ".?", n=30), prompts("Explain", ".?", n=10)
    held_out = prompts("Say a word on", "!"), prompts("What about", ".")
    assert leak_check(tiny, train=train, held_out=held_out).last_token.value == 0.5
