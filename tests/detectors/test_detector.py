"""Every detector does what a detector does, on planted states and words and on the tiny model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.data.prompts import Kind, PromptSet, load_prompts
from interp.detectors import detector as detectors
from interp.detectors.baselines import LogisticProbe, RandomDirection, RefusalDirection, WordsDetector
from interp.detectors.detector import (
    Detector,
    calibrated_threshold,
    check_calibration,
    json_lines,
    true_positive_rate,
)
from interp.detectors.fit_data import FitData, Readings
from interp.detectors.fitted import FittedDetector
from interp.detectors.guard_models import FORMATS, TextGuard
from interp.detectors.latent_guard import LatentGuard
from interp.models.chat_model import ChatModel
from interp.stats import auroc

FITTED: tuple[type[FittedDetector[Any]], ...] = (
    LatentGuard,
    LogisticProbe,
    RefusalDirection,
    RandomDirection,
    WordsDetector,
)
D = 16


def planted(n: int, *, harmful: bool, seed: int) -> Readings:
    """Random states with harm along one axis, in every layer and role, and words that lean to either side."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, 3, 2, D, generator=generator)
    states[..., 0] += 1.5 if harmful else -1.5
    # Thirty words, of which the first half is three times as frequent in harmful prompts.
    weights = torch.tensor([3.0 if (i < 15) == harmful else 1.0 for i in range(30)])
    words = torch.multinomial(weights.expand(n, -1), 8, generator=generator)
    texts = tuple(" ".join(f"word{i}" for i in row) for row in words.tolist())
    return Readings(texts=texts, states=states)


def fit_data(seed: int = 0) -> FitData:
    def both(n: int, seed: int) -> dict[Kind, Readings]:
        return {
            "harmful": planted(n, harmful=True, seed=seed),
            "harmless": planted(n, harmful=False, seed=seed + 1),
        }

    return FitData(
        train=both(60, seed),
        validation=both(30, seed + 2),
        ending="as-is",
        refused=tuple(range(60)),
        answered=tuple(range(60)),
        fitted_on={"model": "planted", "counts": {}},
    )


@pytest.mark.parametrize("kind", FITTED)
def test_a_calibrated_detector_flags_the_share_of_unseen_harmless_prompts_that_was_asked(
    kind: type[FittedDetector[Any]],
) -> None:
    fitted = kind.fit_to(fit_data())
    harmless = planted(1000, harmful=False, seed=11)
    for share in (0.05, 0.2):
        calibrated = fitted.calibrated_to(harmless, false_positive_rate=share)
        unseen = planted(1000, harmful=False, seed=12)
        flagged = sum(found.verdict == "harmful" for found in calibrated.detect(unseen)) / 1000
        # Twice the standard error of a share of 1,000 on both sides of the threshold: 2 * sqrt(2 * 0.2 * 0.8 / 1000).
        assert flagged == pytest.approx(share, abs=0.036)
        assert calibrated.fitted_on["calibration"]["n"] == 1000
    hits = sum(found.verdict == "harmful" for found in calibrated.detect(planted(400, harmful=True, seed=13)))
    assert hits / 400 > 0.2 + 0.1  # more than of harmless prompts


@pytest.mark.parametrize("kind", FITTED)
def test_planted_harm_is_found_by_every_detector_and_least_by_the_control(
    kind: type[FittedDetector[Any]],
) -> None:
    harmful, harmless = planted(300, harmful=True, seed=21), planted(300, harmful=False, seed=22)

    def separation(fitted: FittedDetector[Any]) -> float:
        return auroc(fitted.harmfulness(harmful), fitted.harmfulness(harmless), resamples=0).value

    if kind is RandomDirection:
        values = [separation(RandomDirection.fit_to(fit_data(), seed=seed)) for seed in range(6)]
        assert 0.5 < sum(values) / 6 < 0.85
    else:
        assert separation(kind.fit_to(fit_data())) > 0.85
    swapped = fit_data()
    relabelled: dict[Kind, Readings] = {
        "harmful": swapped.train["harmless"],
        "harmless": swapped.train["harmful"],
    }
    upside_down = kind.fit_to(replace(swapped, train=relabelled, validation=relabelled))
    assert separation(upside_down) < 0.5  # the labels decide what is harmful


@pytest.mark.parametrize("kind", FITTED)
def test_a_saved_detector_gives_equal_detections(kind: type[FittedDetector[Any]], tmp_path: Path) -> None:
    fitted = kind.fit_to(fit_data()).calibrated_to(
        planted(100, harmful=False, seed=3), false_positive_rate=0.1
    )
    again = kind.load(fitted.save(tmp_path / "detector.safetensors"))
    unseen = planted(50, harmful=True, seed=4)
    assert again.detect(unseen) == fitted.detect(unseen)
    assert (again.threshold, again.where, again.fitted_on) == (
        fitted.threshold,
        fitted.where,
        json.loads(json.dumps(fitted.fitted_on)),
    )
    other = next(k for k in FITTED if k is not kind)
    with pytest.raises(ValueError, match=f"is not a {other.title}"):
        other.load(tmp_path / "detector.safetensors")


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return load_prompts("builtin", ending="period")


@pytest.fixture(scope="module")
def fitted(tiny: ChatModel, prompts: PromptSet) -> Mapping[str, Detector[Any]]:
    made: dict[str, Detector[Any]] = {
        kind.title: kind.fit(tiny, prompts, n_prompts=12, max_new_tokens=2) for kind in FITTED
    }
    made["guard model"] = TextGuard(format=FORMATS["wildguard"])
    return made


NAMES = [*(kind.title for kind in FITTED), "guard model"]


@pytest.mark.parametrize("name", NAMES)
def test_on_a_model_a_stream_is_the_batch_and_a_file_the_detector(
    tiny: ChatModel,
    prompts: PromptSet,
    fitted: Mapping[str, Detector[Any]],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harmless = prompts["harmless", "val"].first(20)
    made = fitted[name].calibrated(tiny, harmless, false_positive_rate=0.25)
    whole = list(made.score(tiny, harmless.texts))
    assert sum(found.verdict == "harmful" for found in whole) <= 5
    scores = [found.harmfulness for found in whole]
    if len(set(scores)) == len(scores):
        assert sum(found.verdict == "harmful" for found in whole) == 5
    again = type(made).load(made.save(tmp_path / "detector"))
    assert list(again.score(tiny, harmless.texts)) == whole
    monkeypatch.setattr(detectors, "CHUNK", 7)
    taken: list[str] = []
    stream = made.stream(tiny, (taken.append(text) or text for text in harmless.texts))
    first = next(stream)
    assert len(taken) == 7  # no further than asked
    rest = [first, *stream]
    # Batches of other sizes round differently in float32.
    assert [found.harmfulness for found in rest] == pytest.approx(scores, rel=1e-3, abs=1e-4)
    rows = [json.loads(line) for line in json_lines(rest)]
    assert rows == [asdict(found) for found in rest]


@pytest.mark.parametrize("kind", FITTED)
def test_a_detector_refuses_a_model_that_it_was_not_fitted_on(
    tiny: ChatModel, fitted: Mapping[str, Any], kind: type[FittedDetector[Any]]
) -> None:
    made = fitted[kind.title]
    for key, part in {"weights_hash": "weights", "tokenizer_hash": "tokenizer"}.items():
        assert made.fitted_on[key]
        other = replace(made, fitted_on={**made.fitted_on, key: "0"})
        with pytest.raises(ValueError, match=f"fitted on tiny and the {part} of tiny differ"):
            other.score(tiny, ["Hi"])


def test_words_are_read_without_the_model_and_states_cannot_be_left_out(fitted: Mapping[str, Any]) -> None:
    words = Readings(texts=("Hi",))
    assert len(fitted[WordsDetector.title].detect(words)) == 1
    with pytest.raises(ValueError, match="only the words of the prompts were read"):
        fitted[LogisticProbe.title].detect(words)


def test_the_threshold_is_the_lowest_that_the_share_allows() -> None:
    scores: list[float] = [float(i) for i in range(10)]
    assert calibrated_threshold(scores, 0.2) == 7.0  # 8 and 9 lie above
    assert calibrated_threshold(scores, 0.3) == 6.0  # 0.3 * 10 is below 3 in floating point
    for n, share, message in ((9, 0.1, "cannot tell"), (9, 1.0, "between 0 and 1"), (0, 0.1, "got none")):
        with pytest.raises(ValueError, match=message):
            check_calibration(n, share)


def test_the_true_positive_rate_is_taken_at_the_threshold_of_the_negatives() -> None:
    negative = [float(i) for i in range(100)]
    positive = [98.5, 99.5, 97.5, 10.0]
    # One of 100 negatives may lie above: the threshold is 98.
    found = true_positive_rate(positive, negative, false_positive_rate=0.01)
    assert (found.value, found.n) == (0.5, 4) and found.low <= 0.5 <= found.high
    assert true_positive_rate(positive, negative, false_positive_rate=0.02).value == 0.75
    assert sum(x > calibrated_threshold(negative, 0.02) for x in positive) == 3
    assert not true_positive_rate(positive, negative[:99], false_positive_rate=0.01).measurable
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        true_positive_rate(positive, negative, false_positive_rate=1.0)
    # Monotone maps change neither it nor the AUROC; swapping the sides maps that to its complement.
    cubes = [[x**3 for x in side] for side in (positive, negative)]
    assert true_positive_rate(*cubes, false_positive_rate=0.02).value == 0.75
    assert auroc(*cubes).value == auroc(positive, negative).value
    assert auroc(negative, positive).value == pytest.approx(1 - auroc(positive, negative).value)
