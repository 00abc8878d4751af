"""A calibrated detector of machine-written text: one score, one threshold, and how far its verdicts reach.

    detector = MachineTextDetector(score="fast_detect_gpt").calibrated(model, human, false_positive_rate=0.01)
    detector.score(model, texts)[0].verdict              # 'machine', 'human', 'too short', ...
    detector = MachineTextDetector.fit(model, human, machine)      # chooses the score by AUROC

Every verdict carries the set of human texts that the threshold was calibrated on, their number n, the smallest
false-positive rate that n texts can tell (1/n), and the lengths and scripts for which it holds. A text outside them is
said to be so and is called neither human nor machine-written: scores grow with length, and a model that knows little of
a language finds everything in it unlikely.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from interp.data.prompts import Prompts
from interp.detectors.detector import (
    Finding,
    Self,
    calibrated_threshold,
    check_calibration,
    in_chunks,
    true_positive_rate,
)
from interp.detectors.machine_text.reading import MIN_TOKENS, score_texts
from interp.detectors.machine_text.scores import SCORES
from interp.display.cards import Card, Shown
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import GatheredPrompts, PromptIdentity
from interp.models.tokenizer_files import tokenizer_hash
from interp.models.tokens import ChatTokens, PromptInput
from interp.stats import auroc, rate
from interp.storage.sealed_json import read_sealed, write_sealed
from interp.storage.typed_json import from_plain

CAVEAT = (
    "A score is no proof of authorship: it compares this text with human texts of the calibration set, and errs more "
    "often on paraphrased and mixed text and on writers whose language is plain, such as those who learnt it late."
)
Verdict = Literal[
    "machine", "human", "too short", "too long", "other script", "not measurable", "not calibrated"
]
_FILE_FORMAT = "interp-machine-text-detector"
_FILE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The human texts that a threshold was calibrated on, and what it can tell."""

    source: str
    """Name of the set."""
    hash: str
    """SHA-256 of its texts, in order."""
    n: int
    """Number of texts with a score."""
    false_positive_rate: float
    """Share of human texts that may be called machine-written."""
    smallest_rate: float
    """The smallest false-positive rate that n texts can tell, 1/n."""
    above_low: float
    """Lower end of the 95% interval (Wilson) of the share of such texts above the threshold."""
    above_high: float
    """Its upper end: what the false-positive rate may be."""
    min_tokens: int
    """Tokens of the shortest text."""
    max_tokens: int
    """Tokens of the longest text."""
    scripts: tuple[str, ...]
    """Scripts of the texts, such as LATIN."""


@dataclass(frozen=True, kw_only=True)
class MachineTextFinding(Finding):
    """The detector's output for one text, with how far it reaches."""

    score_name: str
    """Name of the score, as in `interp.detectors.machine_text.scores.SCORES`."""
    score: float | None
    """The score, with the sign by which machine-written text is expected to be higher; None where undefined."""
    threshold: float | None
    """Score above which the verdict is machine; None before calibration."""
    n_tokens: int
    """Tokens of the text."""
    verdict: Verdict
    """machine or human where the calibration covers the text; else what keeps it from being judged."""
    calibration: Calibration | None
    """What the threshold was calibrated on."""
    caveat: str = CAVEAT
    """What a score is not."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """Content of a detector's file."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    score: str
    threshold: float | None
    calibration: Calibration | None
    fitted_on: dict[str, Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class MachineTextDetector(Shown):
    """One score with a threshold; a `Detector` of machine-written text."""

    score_name: str = "fast_detect_gpt"
    """Name of the score, one of `interp.detectors.machine_text.scores.SCORES`."""
    threshold: float | None = None
    """Score above which a text is called machine-written, in the sign of `oriented`; None before calibration."""
    calibration: Calibration | None = None
    """What it was calibrated on."""
    fitted_on: dict[str, Any] = field(default_factory=dict)
    """Model, reference and, where it was fitted, the AUROC of every score."""

    def __post_init__(self) -> None:
        if self.score_name not in SCORES:
            raise ValueError(f"unknown score {self.score_name!r}; known: {', '.join(SCORES)}")
        if (self.threshold is None) != (self.calibration is None):
            raise ValueError("a threshold comes with its calibration; make it with calibrated")

    @classmethod
    def fit(
        cls,
        model: ChatModel,
        human: Prompts,
        machine: Prompts,
        *,
        reference: ChatModel | None = None,
        score_name: str | None = None,
        false_positive_rate: float = 0.01,
    ) -> Self:
        """Choose the score that separates best, and calibrate it on human texts that did not choose it.

        The best score is chosen on the first half of the human texts; the second half calibrates. With a score that is
        named, all of them do. The AUROCs are of the texts that chose, hence optimistic for the chosen one.

        Args:
            reference: a second model with the same tokenizer, for Binoculars and two-model Fast-DetectGPT.
            score_name: a score of `SCORES`; None chooses.

        Raises:
            ValueError: too few texts for the rate, an unknown score, or texts that cannot be scored.
        """
        half = len(human) // 2 if score_name is None else 0
        chooses = human.first(half) if half else human
        calibrates = human.take(list(range(half, len(human))))
        check_calibration(len(calibrates), false_positive_rate, of="human texts")
        if len(chooses) == 0 or len(machine) == 0:
            raise ValueError(
                f"fitting needs texts of both kinds, got {len(chooses)} human, {len(machine)} machine"
            )
        written = score_texts(model, machine.texts, reference=reference)
        by_people = score_texts(model, chooses.texts, reference=reference)
        quality: dict[str, Any] = {}
        for name in by_people[0].values:
            sides = [
                [s.oriented(name) for s in side if math.isfinite(s[name])] for side in (written, by_people)
            ]
            if all(sides):
                area, hits = (
                    auroc(*sides),
                    true_positive_rate(*sides, false_positive_rate=false_positive_rate),
                )
                quality[name] = {"value": area.value, "low": area.low, "high": area.high}
                # None where too few human texts chose for this rate.
                quality[name]["true_positive_rate"] = hits.value if hits.measurable else None
        chosen = score_name or max(quality, key=lambda name: quality[name]["value"])
        about = {
            "auroc": quality,
            "human": {"source": chooses.source, "hash": chooses.hash, "n": len(chooses)},
            "machine": {"source": machine.source, "hash": machine.hash, "n": len(machine)},
        }
        return cls(score_name=chosen, fitted_on=about).calibrated(
            model, calibrates, false_positive_rate=false_positive_rate, reference=reference
        )

    def calibrated(
        self,
        model: ChatModel,
        human: Prompts,
        *,
        false_positive_rate: float,
        reference: ChatModel | None = None,
    ) -> Self:
        """The same detector with the lowest threshold that at most this share of these human texts exceeds.

        Raises:
            ValueError: a rate outside 0..1 or too small for this number of texts, or texts that cannot be scored.
        """
        check_calibration(len(human), false_positive_rate, of="human texts")
        scores = score_texts(model, human.texts, reference=reference)
        values = [s.oriented(self.score_name) for s in scores]
        finite = [value for value in values if math.isfinite(value)]
        check_calibration(len(finite), false_positive_rate, of="human texts with a score")
        threshold = calibrated_threshold(finite, false_positive_rate)
        above = rate([value > threshold for value in finite])
        lengths = _lengths(model, human.texts)
        return replace(
            self,
            threshold=threshold,
            calibration=Calibration(
                source=human.source,
                hash=human.hash,
                n=len(finite),
                false_positive_rate=false_positive_rate,
                smallest_rate=1 / len(finite),
                above_low=above.low,
                above_high=above.high,
                min_tokens=min(lengths),
                max_tokens=max(lengths),
                scripts=tuple(sorted({script_of(text) for text in human.texts})),
            ),
            fitted_on={**self.fitted_on, **_models(model, reference)},
        )

    def score(
        self, model: ChatModel, texts: PromptInput, *, reference: ChatModel | None = None
    ) -> list[MachineTextFinding]:
        """Score and verdict of every text, in order.

        Args:
            texts: strings, with ids where they come as `Prompts` or a pandas Series.

        Raises:
            ValueError: another model or reference than it was calibrated with, conversations, or tokens.
        """
        return list(self.stream(model, texts, reference=reference))

    def stream(
        self,
        model: ChatModel,
        texts: PromptInput | Iterator[str],
        *,
        reference: ChatModel | None = None,
    ) -> Iterator[MachineTextFinding]:
        """Score texts as they arrive, in order; memory does not grow with their number.

        Raises:
            ValueError: as for `score`.
        """
        if isinstance(texts, ChatTokens):
            raise ValueError("this detector reads texts; give strings, not tokens")
        self._check(model, reference)
        for chunk in in_chunks(texts):
            yield from self.score_chunk(model, chunk, reference=reference)

    def score_chunk(
        self, model: ChatModel, chunk: GatheredPrompts, *, reference: ChatModel | None = None
    ) -> list[MachineTextFinding]:
        """Score one of the chunks that `detector.in_chunks` makes.

        Raises:
            ValueError: as for `score`.
        """
        self._check(model, reference)
        if not all(isinstance(item, str) for item in chunk.items):
            raise ValueError("this detector reads texts; give strings, not conversations")
        texts = [str(item) for item in chunk.items]
        return list(self._judge(model, texts, chunk.identity, reference))

    def _judge(
        self,
        model: ChatModel,
        texts: Sequence[str],
        identity: PromptIdentity,
        reference: ChatModel | None,
    ) -> Iterator[MachineTextFinding]:
        lengths = _lengths(model, texts)
        long = [row for row, length in enumerate(lengths) if length >= MIN_TOKENS]
        found = score_texts(model, [texts[row] for row in long], reference=reference)
        scores = dict(zip(long, (s.oriented(self.score_name) for s in found), strict=True))
        for row, length in enumerate(lengths):
            value = scores.get(row, math.nan)
            yield MachineTextFinding(
                id=identity.ids[row],
                category=identity.categories[row],
                score_name=self.score_name,
                score=value if math.isfinite(value) else None,
                threshold=self.threshold,
                n_tokens=length,
                verdict=self.verdict(value, n_tokens=length, script=script_of(texts[row])),
                calibration=self.calibration,
            )

    def verdict(self, value: int | float, *, n_tokens: int, script: str) -> Verdict:
        """The verdict on a score: machine or human only where the calibration covers such a text."""
        known = self.calibration
        if n_tokens < (MIN_TOKENS if known is None else known.min_tokens):
            return "too short"
        if known is None or self.threshold is None:
            return "not calibrated"
        if n_tokens > known.max_tokens:
            return "too long"
        if script not in known.scripts:
            return "other script"
        if not math.isfinite(value):
            return "not measurable"
        return "machine" if value > self.threshold else "human"

    def _check(self, model: ChatModel, reference: ChatModel | None) -> None:
        for name, given in _models(model, reference).items():
            stored = self.fitted_on.get(name, given)
            ours, theirs = given or {}, stored or {}
            # Detectors of before knew no tokenizer.
            differs = [what for key, what in _SAME.items() if theirs.get(key, ours.get(key)) != ours.get(key)]
            if (stored is None) == (given is None) and not differs:
                continue
            wanted = "no reference model" if stored is None else f"{stored['model']} as {name}"
            got = "none" if given is None else f"{given['model']}, whose {(*differs, 'weights differ')[0]}"
            raise ValueError(
                f"this detector was calibrated with {wanted}, got {got}; load that model, or calibrate for this one"
            )

    def save(self, path: str | Path) -> Path:
        """Write the detector to one JSON file, atomically; the models themselves are not included."""
        about = {
            "score": self.score_name,
            "threshold": self.threshold,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "fitted_on": self.fitted_on,
        }
        return write_sealed(path, _FILE_FORMAT, _FILE_VERSION, about)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a detector that `save` wrote.

        Raises:
            ValueError: no such file, a damaged one, another kind of file, or one of a newer format.
        """
        remedy = "make one with interp detect fit"
        about = read_sealed(
            path, _FILE_FORMAT, _FILE_VERSION, what="a detector of machine-written text", remedy=remedy
        )
        stored = from_plain(_File, about, source=str(path))
        try:
            return cls(
                score_name=stored.score,
                threshold=stored.threshold,
                calibration=stored.calibration,
                fitted_on=stored.fitted_on,
            )
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); {remedy}") from error

    def _card(self) -> Card:
        known = self.calibration
        facts: dict[str, Any] = {"model": (self.fitted_on.get("model") or {}).get("model", "not given")}
        if known is not None and self.threshold is not None:
            facts |= {
                "machine when": f"{SCORES[self.score_name].title} (signed) > {self.threshold:.4g}",
                "calibrated on": f"{known.n} texts of {known.source}",
                "false positives": f"at most {known.false_positive_rate:.2%} of them; the rate may be up to "
                f"{known.above_high:.2%}, and below {known.smallest_rate:.2%} cannot be told",
                "covers": f"{known.min_tokens} to {known.max_tokens} tokens, {', '.join(known.scripts)}",
            }
        return Card(
            title=f"Detector of machine-written text by {SCORES[self.score_name].title}",
            facts=facts,
            notes=[CAVEAT]
            if known is not None
            else ["Not calibrated: it gives scores and no verdict.", CAVEAT],
        )


def script_of(text: str) -> str:
    """Script of most of a text's letters, as Unicode names it: LATIN, CYRILLIC, CJK, ...; `none` without letters."""
    letters = [char for char in text[:4000] if char.isalpha()]
    names = Counter(unicodedata.name(char, "unknown").split(" ")[0].split("-")[0] for char in letters)
    return names.most_common(1)[0][0] if names else "none"


def _lengths(model: ChatModel, texts: Sequence[str]) -> list[int]:
    rows = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [len(row) for row in rows]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]


_SAME = {"weights_hash": "weights differ", "tokenizer_hash": "tokenizer differs"}
"""What a model has in common with the one of the calibration, and what is said where it has not."""


def _models(model: ChatModel, reference: ChatModel | None) -> dict[str, dict[str, Any] | None]:
    return {"model": _facts(model), "reference": None if reference is None else _facts(reference)}


def _facts(model: ChatModel) -> dict[str, Any]:
    hashes = {"weights_hash": model.weights_hash, "tokenizer_hash": tokenizer_hash(model.tokenizer)}
    return {"model": model.name, **hashes}
