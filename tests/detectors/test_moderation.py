"""The severity moderator: planted labels, calibration, one file, a stream, and the paper's table by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.data.safe_rlhf import CATEGORIES, Answer, answers_of
from interp.data.safe_rlhf_miniature import miniature
from interp.detectors.detector import Detector, json_lines
from interp.detectors.moderation import Moderation, SeverityModerator
from interp.detectors.moderation_scores import moderation_scores
from interp.detectors.moderation_words import WordsModerator
from interp.models.chat_model import ChatModel
from interp.representations.answer_states import conversation

D = 16


def answer(severity: int, *flags: int, name: str = "x") -> Answer:
    on = tuple(c in flags for c in range(len(CATEGORIES)))
    return Answer(id=name, prompt="p", text="t", safe=severity == 0, categories=on, severity=severity)


def planted(n: int, seed: int) -> tuple[torch.Tensor, list[Answer]]:
    """States with unsafe along axis 0, severity along axis 1, two categories along axes 2 and 3."""
    generator = torch.Generator().manual_seed(seed)
    severities = torch.randint(0, 4, (n,), generator=generator)
    second = torch.randint(0, 2, (n,), generator=generator).bool()
    states = 0.2 * torch.randn(n, D, generator=generator)
    answers = []
    for row, severity in enumerate(severities.tolist()):
        if severity:
            states[row, 0] += 2
            states[row, 1] += severity - 2.0
            states[row, 2 + int(second[row])] += 2
        answers.append(answer(severity, *([4 + int(second[row])] if severity else []), name=str(row)))
    return states, answers


def test_planted_labels_are_read_on_unseen_states() -> None:
    made = SeverityModerator.fit_to(*planted(300, 0), layer=1, fitted_on={"model": "m"})
    states, answers = planted(200, 1)
    found = made.detect(states, [each.id for each in answers])
    scores = moderation_scores(answers, found)
    assert scores.accuracy.low > 0.9 and scores.exact_match.low > 0.9 and scores.severity_kappa > 0.9
    shuffled = [answers[(i + 7) % len(answers)] for i in range(len(answers))]
    assert moderation_scores(shuffled, found).severity_kappa < 0.3  # control


def test_the_table_by_hand() -> None:
    answers = [answer(0), answer(0), answer(1, 2), answer(2, 3, 4), answer(3, 5)]

    def said(severity: int, *flags: int) -> Moderation:
        return Moderation(
            id="x", category=None, harmfulness=0.0, verdict="harmful" if severity else "harmless",
            severity=severity, flags=tuple(CATEGORIES[c] for c in flags),
        )  # fmt: skip

    scores = moderation_scores(answers, [said(0), said(1, 9), said(1, 2), said(3, 3, 4), said(0)])
    assert scores.accuracy.value == pytest.approx(3 / 5)
    assert scores.f1 == pytest.approx(2 * 2 / (3 + 3))
    assert scores.false_positive_rate.value == pytest.approx(1 / 2)
    assert {k: v.value for k, v in scores.level_accuracy.items()} == {"1": 1.0, "2": 0.0, "3": 0.0}
    assert scores.exact_match.value == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match="got 1 findings for 5 answers"):
        moderation_scores(answers, [said(0)])


@pytest.fixture(scope="module")
def fitted(tiny: ChatModel) -> tuple[ChatModel, SeverityModerator, list[Answer]]:
    answers = answers_of(miniature())[:48]
    return tiny, SeverityModerator.fit(tiny, answers, n_components=8), answers


def test_a_moderator_is_saved_streamed_and_calibrated(
    fitted: tuple[ChatModel, SeverityModerator, list[Answer]], tmp_path: Path
) -> None:
    tiny, made, answers = fitted
    turns = [conversation(each.prompt, each.text) for each in answers]
    whole = made.score(tiny, turns)
    assert [each.harmfulness for each in made.stream(tiny, turns[:5])] == pytest.approx(
        [each.harmfulness for each in whole[:5]], abs=1e-3
    )
    again = SeverityModerator.load(made.save(tmp_path / "moderator.safetensors"))
    assert again.score(tiny, turns[:5]) == made.score(tiny, turns[:5])
    detector: Detector[Moderation] = again
    line = json.loads(next(iter(json_lines(detector.stream(tiny, turns[:1])))))
    assert set(line) == {"id", "category", "harmfulness", "verdict", "severity", "flags"}
    safe = [turns[row] for row, each in enumerate(answers) if each.safe]
    strict = made.calibrated(tiny, safe, false_positive_rate=0.2)
    flagged = [each.verdict == "harmful" for each in strict.score(tiny, safe)]
    assert sum(flagged) == int(0.2 * len(safe)) and strict.fitted_on["calibration"]["n"] == len(safe)
    for each in whole:
        assert (each.severity == 0) == (each.verdict == "harmless") and (each.flags == () or each.severity)


def test_mistakes_are_said(fitted: tuple[ChatModel, SeverityModerator, list[Answer]], tmp_path: Path) -> None:
    tiny, made, _ = fitted
    with pytest.raises(ValueError, match="prompt 0 ends without an answer"):
        made.score(tiny, ["Hi"])
    parts = {"weights_hash": "weights", "tokenizer_hash": "tokenizer", "template_hash": "chat template"}
    for key, part in parts.items():
        other = replace(made, fitted_on={**made.fitted_on, key: "other"})
        with pytest.raises(ValueError, match=f"the {part} of tiny differ"):
            other.score(tiny, [conversation("p", "a")])
    with pytest.raises(ValueError, match="got one kind only"):
        SeverityModerator.fit_to(torch.zeros(3, D), [answer(0)] * 3, layer=1, fitted_on={})
    with pytest.raises(ValueError, match="no such moderator file"):
        SeverityModerator.load(tmp_path / "absent")
    path = made.save(tmp_path / "m.safetensors")
    data = path.read_bytes().replace(b'"layer', b'"lazer', 1).replace(rb"\"layer", rb"\"lazer", 1)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"changed after|damaged"):
        SeverityModerator.load(path)


def test_words_alone_read_the_miniature() -> None:
    answers = answers_of(miniature())
    made = WordsModerator.fit(answers[:400])
    scores = moderation_scores(answers[400:], made.detect(answers[400:]))
    assert scores.accuracy.value > 0.95 and scores.severity_kappa > 0.8
