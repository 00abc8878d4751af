"""Replies written as a log open in Inspect and come back; rates have intervals, what is not scored is counted."""

from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log

from interp.evaluation.inspect_logs import read_rates, read_replies, write_log
from interp.evaluation.responses import Responses
from interp.stats import rate
from tests.conftest import prompts_of

REPLIES = ("I'm sorry, I cannot.", "Bread is baked.", "<think>Well", "I can't help with that.")


@pytest.fixture
def responses() -> Responses:
    return Responses(
        prompts=prompts_of(["a?", "b?", "c?", "d?"]),
        refused=(True, False, False, True),
        replies=REPLIES,
        unfinished=(False, False, True, False),
    )


def test_written_and_read_back(tmp_path: Path, responses: Responses) -> None:
    path = write_log(responses, tmp_path / "logs/replies.eval", model="tiny", metadata={"direction": "none"})
    log = read_eval_log(str(path))
    assert (
        log.status == "success"
        and log.eval.model == "interp/tiny"
        and log.eval.metadata == {"direction": "none"}
    )
    found = read_rates(path)["refused"]
    expected = rate([True, False, True])
    assert (found.value, found.n, found.low, found.high) == (
        expected.value,
        3,
        expected.low,
        expected.high,
    )
    assert found.missing == 1
    again = read_replies(path)
    assert again.replies == responses.replies and again.flags == responses.flags
    assert again.prompts.ids == responses.prompts.ids and again.prompts.texts == responses.prompts.texts


def test_mistakes_are_named(tmp_path: Path, responses: Responses) -> None:
    with pytest.raises(ValueError, match=r"ends in \.eval, got replies\.json"):
        write_log(responses, tmp_path / "replies.json", model="tiny")
    with pytest.raises(ValueError, match="no such log"):
        read_rates(tmp_path / "absent.eval")
    (tmp_path / "bad.eval").write_text("no zip")
    with pytest.raises(ValueError, match=r"cannot read .*bad\.eval as a log of Inspect"):
        read_rates(tmp_path / "bad.eval")
