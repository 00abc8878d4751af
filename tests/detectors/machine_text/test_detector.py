"""A detector's verdicts carry their calibration, and stop where it stops."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.data.prompts import Prompts
from interp.detectors import detector as shared
from interp.detectors.detector import Detector, json_lines
from interp.detectors.machine_text.detector import (
    CAVEAT,
    MachineTextDetector,
    MachineTextFinding,
    script_of,
)
from interp.detectors.machine_text.pairs import plain_prompts
from interp.detectors.machine_text.reading import score_texts
from interp.engine.generation import generate
from interp.models.chat_model import ChatModel
from interp.storage.sealed_json import write_sealed
from tests.conftest import make_tokenizer, prompts_of, tiny_config

WORDS = "the river rose in night and by morning lower road was gone four keys none fitted lock".split()


def human(n: int, *, seed: int = 0) -> Prompts:
    """Latin texts of 25 to 45 tokens."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(n):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=generator).tolist()]
        texts.append(" ".join(words)[: 25 + int(torch.randint(20, (1,), generator=generator))])
    return prompts_of(texts)


@pytest.fixture(scope="module")
def machine(tiny: ChatModel) -> Prompts:
    """Text that the model wrote itself."""
    written = generate(
        tiny, plain_prompts(tiny, [[65 + i] for i in range(16)]), max_new_tokens=30, temperature=0.7
    )
    texts = [text for text in written.texts if len(text) > 8]
    return replace(prompts_of(texts), source="tiny's own")


@pytest.fixture(scope="module")
def fitted(tiny: ChatModel) -> MachineTextDetector:
    return MachineTextDetector().calibrated(tiny, human(40), false_positive_rate=0.1)


def test_calibration_flags_the_share_that_was_asked_and_says_what_it_can_tell(
    tiny: ChatModel, fitted: MachineTextDetector
) -> None:
    found = fitted.score(tiny, human(40))
    assert sum(f.verdict == "machine" for f in found) == 4
    assert {f.verdict for f in found} == {"machine", "human"}
    expected = [s.oriented("fast_detect_gpt") for s in score_texts(tiny, human(40).texts)]
    assert [f.score for f in found] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    known = found[0].calibration
    assert known is not None and known == fitted.calibration
    assert (known.n, known.smallest_rate, known.false_positive_rate) == (40, 1 / 40, 0.1)
    assert known.above_low < 0.1 < known.above_high < 0.25  # Wilson, 4 of 40
    assert (known.source, known.scripts) == ("test", ("LATIN",))
    assert 25 <= known.min_tokens < known.max_tokens <= 45
    assert "no proof of authorship" in found[0].caveat and CAVEAT in " ".join(repr(fitted).split())


def test_texts_that_the_calibration_does_not_cover_are_not_called_human(
    tiny: ChatModel, fitted: MachineTextDetector
) -> None:
    covered = human(1, seed=3).texts[0]
    texts = ["", "x", "too short", covered * 5, "Ночью река поднялась, к", covered]
    verdicts = [found.verdict for found in fitted.score(tiny, texts)]
    assert verdicts[:5] == ["too short", "too short", "too short", "too long", "other script"]
    assert verdicts[5] in ("human", "machine")
    assert fitted.score(tiny, [""])[0].score is None
    plain = MachineTextDetector(score_name="lrr").score(tiny, [covered])[0]
    assert plain.verdict == "not calibrated" and plain.score is not None and plain.calibration is None
    # The dimension of a text of 40 tokens is undefined.
    flat = replace(fitted, score_name="intrinsic_dimension").score(tiny, [covered])[0]
    assert flat.verdict == "not measurable" and flat.score is None


def test_a_detector_does_what_every_detector_does(
    tiny: ChatModel, fitted: MachineTextDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_protocol: Detector[MachineTextFinding] = fitted
    whole = list(as_protocol.score(tiny, human(12)))
    assert [f.id for f in whole] == [f"p{i}" for i in range(12)]
    again = MachineTextDetector.load(fitted.save(tmp_path / "detector.json"))
    assert again == fitted and list(again.score(tiny, human(12))) == whole
    monkeypatch.setattr(shared, "CHUNK", 5)
    taken: list[str] = []

    def arriving() -> Iterator[str]:
        for text in human(12).texts:
            taken.append(text)
            yield text

    stream = fitted.stream(tiny, arriving())
    first = next(stream)
    assert len(taken) == 5  # no further than asked
    rest = [first, *stream]
    assert [f.score for f in rest] == pytest.approx([f.score for f in whole], rel=1e-3, abs=1e-4)
    rows = [json.loads(line) for line in json_lines(rest)]
    assert rows == [json.loads(json.dumps(asdict(f))) for f in rest]
    assert rows[0]["calibration"]["n"] == 40 and "no proof" in rows[0]["caveat"]


def test_fitting_chooses_the_best_score_on_texts_that_do_not_calibrate(
    tiny: ChatModel, machine: Prompts
) -> None:
    fitted = MachineTextDetector.fit(tiny, human(60), machine, false_positive_rate=0.1)
    quality = fitted.fitted_on["auroc"]
    assert fitted.score_name == max(quality, key=lambda name: quality[name]["value"])
    assert quality[fitted.score_name]["value"] > 0.9  # a model knows its own text
    assert quality[fitted.score_name]["true_positive_rate"] > 0.5
    assert quality["perplexity"] == quality["likelihood"]  # a monotone map
    assert quality["entropy"]["value"] != quality["likelihood"]["value"]
    assert fitted.calibration is not None and fitted.calibration.n == 30
    assert fitted.fitted_on["human"]["n"] == 30 and fitted.fitted_on["machine"]["n"] == len(machine)
    named = MachineTextDetector.fit(tiny, human(30), machine, score_name="log_rank", false_positive_rate=0.1)
    assert named.score_name == "log_rank" and named.calibration is not None and named.calibration.n == 30


def test_a_pair_of_models_is_calibrated_and_asked_for(tiny: ChatModel, fitted: MachineTextDetector) -> None:
    torch.manual_seed(9)
    base = ChatModel(AutoModelForCausalLM.from_config(tiny_config()).float(), tiny.tokenizer, name="base")
    pair = MachineTextDetector(score_name="binoculars").calibrated(
        tiny, human(20), false_positive_rate=0.1, reference=base
    )
    assert {f.verdict for f in pair.score(tiny, human(20), reference=base)} <= {"human", "machine"}
    with pytest.raises(ValueError, match="calibrated with base as reference, got none"):
        pair.score(tiny, human(2))
    with pytest.raises(
        ValueError, match="calibrated with no reference model, got base, whose weights differ"
    ):
        fitted.score(tiny, human(2), reference=base)
    with pytest.raises(ValueError, match="calibrated with tiny as model, got base, whose weights differ"):
        fitted.score(base, human(2))
    renumbered = make_tokenizer()
    renumbered.add_tokens(["the river"])  # the same weights read other tokens
    again = ChatModel(tiny.hf, renumbered, name="tiny")
    with pytest.raises(ValueError, match="got tiny, whose tokenizer differs"):
        fitted.score(again, human(2))
    with pytest.raises(ValueError, match="'binoculars'; it needs a reference model"):
        MachineTextDetector(score_name="binoculars").calibrated(tiny, human(20), false_positive_rate=0.1)


def test_mistakes_are_named(tiny: ChatModel, fitted: MachineTextDetector, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"20 human texts cannot tell a false-positive rate of 0\.01"):
        MachineTextDetector().calibrated(tiny, human(20), false_positive_rate=0.01)
    with pytest.raises(ValueError, match="unknown score 'curvature'; known: likelihood"):
        MachineTextDetector(score_name="curvature")
    with pytest.raises(ValueError, match="give strings, not conversations"):
        fitted.score(tiny, [[{"role": "user", "content": "Hi"}]])
    with pytest.raises(ValueError, match="no such file of a detector"):
        MachineTextDetector.load(tmp_path / "absent.json")
    about = json.loads(fitted.save(tmp_path / "detector.json").read_text())
    about = {key: about[key] for key in ("score", "threshold", "calibration", "fitted_on")}
    for changes, message in (
        ({"threshold": None}, "is damaged .a threshold comes with its calibration"),
        ({"score": "x"}, "is damaged .unknown score 'x'"),
        ({"calibration": 3}, "calibration"),
    ):
        write_sealed(tmp_path / "bad.json", "interp-machine-text-detector", 1, {**about, **changes})
        with pytest.raises(ValueError, match=message):
            MachineTextDetector.load(tmp_path / "bad.json")


def test_scripts_are_told_by_most_letters() -> None:
    for text, script in (
        ("A plain text, with π in it.", "LATIN"),
        ("Ночью река", "CYRILLIC"),
        ("夜里河水", "CJK"),
        ("12 + 3 = 15", "none"),
    ):
        assert script_of(text) == script
