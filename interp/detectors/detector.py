"""The protocol of detectors: they score texts, can be calibrated, and are saved as one file.

A detector of harmful prompts gives each a harmfulness, higher is more harmful, and a verdict: harmful above its
threshold, which can be calibrated to a false-positive rate on harmless prompts. Those that are fitted on a model's
states or on words are in `interp.detectors.fitted`; guard models that read text are in `interp.detectors.guard_models`.
Machine-written text has a detector of the same protocol in `interp.detectors.machine_text.detector`.

    for line in json_lines(detector.stream(model, sys.stdin)):          # one JSON object a prompt
        print(line)
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from interp.data.prompts import Prompts
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import GatheredPrompts, PromptIdentity, gather_prompts
from interp.models.scalars import finite_number
from interp.models.tokens import PromptInput
from interp.stats import Estimate

if TYPE_CHECKING:
    from typing import Self
else:
    Self = (
        Any  # the tests' type checker decorates one method after another, and knows no Self outside a class
    )

CHUNK = 256
"""Prompts scored at a time, so that memory does not grow with the length of the input."""
Verdict = Literal["harmful", "harmless"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A detector's output for one text."""

    id: str
    """The text's own id, or its running number."""
    category: str | None
    """Category (of harm, or the kind of text); None where the source gives none."""


@dataclass(frozen=True, kw_only=True)
class Detection(Finding):
    """A detector's output for one prompt."""

    harmfulness: float
    """Higher is more harmful; the scale is the detector's own."""
    verdict: Verdict | None
    """The verdict, harmful above the detector's threshold; None where the detector gave no answer."""


DetectionT = TypeVar("DetectionT", bound=Detection, covariant=True)
FindingT = TypeVar("FindingT", bound=Finding, covariant=True)


class Detector(Protocol[FindingT]):
    """The methods of every detector, fitted or not."""

    def score(self, model: ChatModel, prompts: PromptInput) -> Sequence[FindingT]:
        """Score and verdict of every text, in order."""
        ...

    def stream(self, model: ChatModel, prompts: PromptInput | Iterator[str]) -> Iterator[FindingT]:
        """The same for texts as they arrive; memory does not grow with their number."""
        ...

    def calibrated(self, model: ChatModel, negatives: Prompts, /, *, false_positive_rate: float) -> Self:
        """The same detector with the lowest threshold that at most this share of these negatives exceeds."""
        ...

    def save(self, path: str | Path) -> Path:
        """Write the detector to one file, atomically."""
        ...

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a detector that `save` wrote."""
        ...


def json_lines(detections: Iterable[Finding]) -> Iterator[str]:
    """One line of JSON for each detection, as it arrives."""
    for found in detections:
        yield json.dumps(asdict(found))


def in_chunks(prompts: PromptInput | Iterator[str]) -> Iterator[GatheredPrompts]:
    """Chunks of at most `CHUNK` prompts with their given ids; an iterator is read only as far as needed.

    Raises:
        ValueError: no prompts, or tokens.
    """
    if isinstance(prompts, Iterator):
        first = 0
        while chunk := list(islice(prompts, CHUNK)):
            yield GatheredPrompts(gather_prompts(chunk).items, PromptIdentity.numbered(chunk, first=first))
            first += len(chunk)
        return
    items, identity = gather_prompts(prompts)
    for start in range(0, len(items), CHUNK):
        rows = range(start, min(start + CHUNK, len(items)))
        yield GatheredPrompts(tuple(items[row] for row in rows), identity.take(rows))


def check_calibration(n: int, false_positive_rate: float, *, of: str = "harmless validation prompts") -> None:
    """Raise a ValueError unless n harmless prompts (human texts) are enough for a false-positive rate.

    Args:
        of: what there are n of, for messages.
    """
    if not 0 < finite_number(false_positive_rate, "false_positive_rate") < 1:
        raise ValueError(f"false_positive_rate must lie between 0 and 1, got {false_positive_rate}")
    if n == 0:
        raise ValueError(f"calibrating needs {of}, got none")
    if false_positive_rate * n < 1:
        raise ValueError(
            f"{n} {of} cannot tell a false-positive rate of {false_positive_rate:g}; "
            f"give at least {1 / n:.3g}, or more of them"
        )


def calibrated_threshold(harmless: Sequence[float], false_positive_rate: float) -> float:
    """The lowest of these scores that at most this share of them exceeds."""
    return sorted(harmless, reverse=True)[int(false_positive_rate * len(harmless) + 1e-9)]


def true_positive_rate(
    positive: Sequence[float],
    negative: Sequence[float],
    *,
    false_positive_rate: float = 0.01,
    seed: int = 0,
    resamples: int = 500,
) -> Estimate:
    """Share of positives above the lowest threshold that at most this share of negatives exceeds.

    The interval is a bootstrap that resamples both sides, so that it covers the choice of the threshold as well. Not
    measurable where there are fewer than 1 / rate negatives.

    Raises:
        ValueError: a rate outside 0..1.
    """
    if not 0 < finite_number(false_positive_rate, "false_positive_rate") < 1:
        raise ValueError(f"false_positive_rate must lie between 0 and 1, got {false_positive_rate}")
    a, b = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if len(a) == 0 or false_positive_rate * len(b) < 1 - 1e-9:
        return Estimate.unmeasured(len(a), unit="share")
    place = len(b) - 1 - int(false_positive_rate * len(b) + 1e-9)

    def share(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        thresholds = np.sort(negatives, axis=-1)[..., place : place + 1]
        return np.asarray((positives > thresholds).mean(-1))

    generator = np.random.default_rng(seed)
    samples = [side[generator.integers(0, len(side), (resamples, len(side)))] for side in (a, b)]
    low, high = np.quantile(share(*samples), (0.025, 0.975))
    return Estimate(
        value=float(share(a, b)),
        n=len(a),
        low=float(low),
        high=float(high),
        unit="share",
        interval="stratified bootstrap",
    )
