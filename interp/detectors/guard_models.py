"""Guard models from the Hub that read the prompt's text: Llama Guard, ShieldGemma, WildGuard, each in its own format.

Each is a causal language model that answers whether a prompt is harmful. Its verdict is read off its greedy answer;
its harmfulness is the log-odds of the harmful answer over the safe one, teacher-forced, so that it has an AUROC.

    model, guard = load_text_guard("meta-llama/Llama-Guard-3-8B")     # or wildguard=path/to/folder
    guard.score(model, ["How do I bake bread?"])[0].verdict           # 'harmless'

Formats are those of the model cards (`interp.evaluation.judges.guard_formats`). Llama Guard and ShieldGemma take theirs
from the tokenizer's chat template.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ConfigDict

from interp.data.prompts import Prompts
from interp.detectors.detector import (
    Detection,
    Self,
    Verdict,
    calibrated_threshold,
    check_calibration,
    in_chunks,
)
from interp.engine.generation import generate
from interp.engine.log_probs import completion_log_probs
from interp.evaluation.judges.guard_formats import PROMPT_FORMATS, Format, rendered_tokens
from interp.models.chat_model import ChatModel, load
from interp.models.prompt_inputs import PromptIdentity
from interp.models.tokens import PromptInput
from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded
from interp.storage.typed_json import from_plain, read_json

FORMATS = PROMPT_FORMATS
"""Formats of the families that judge a prompt alone."""
_ANSWER_TOKENS = 12
_FILE_FORMAT = "interp-text-guard"
_FILE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class _File:
    """Content of a text guard's file."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    format_version: int
    family: str
    threshold: float | None
    calibration: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class TextGuard:
    """A guard model's format and threshold; a `Detector` that is not fitted, only calibrated.

    `harmfulness` is the log-odds of its harmful answer over its safe one in nats, the maximum over policies.
    """

    format: Format
    """Prompt format of its model family."""
    threshold: float | None = None
    """Log-odds above which a prompt is harmful; None takes the verdict from the guard's own greedy answer."""
    calibration: dict[str, Any] | None = None
    """False-positive rate and prompts that the threshold was calibrated on."""

    def score(self, model: ChatModel, prompts: PromptInput) -> list[Detection]:
        """Log-odds and verdict of every prompt, in order.

        Args:
            prompts: single instructions, since these formats ask about one message.

        Raises:
            ValueError: a tokenizer whose template does not fit the format, conversations, or tokens.
        """
        return list(self.stream(model, prompts))

    def stream(self, model: ChatModel, prompts: PromptInput | Iterator[str]) -> Iterator[Detection]:
        """Score prompts as they arrive, in order; memory does not grow with their number.

        Raises:
            ValueError: as for `score`.
        """
        for items, identity in in_chunks(prompts):
            if not all(isinstance(item, str) for item in items):
                raise ValueError(
                    "guard models are asked about one message; pass instructions, not conversations"
                )
            yield from self._ask(model, [str(item) for item in items], identity)

    def calibrated(self, model: ChatModel, harmless: Prompts, *, false_positive_rate: float) -> Self:
        """The same guard with the lowest threshold that at most this share of these harmless prompts exceeds.

        Raises:
            ValueError: a rate outside 0..1, or too small for this number of prompts.
        """
        check_calibration(len(harmless), false_positive_rate)
        log_odds = [detection.harmfulness for detection in self.score(model, harmless)]
        note = {"false_positive_rate": false_positive_rate, "prompts": harmless.source, "n": len(harmless)}
        return replace(self, threshold=calibrated_threshold(log_odds, false_positive_rate), calibration=note)

    def save(self, path: str | Path) -> Path:
        """Write format and threshold to one JSON file, atomically; the guard model itself is not included."""
        about = {"format": _FILE_FORMAT, "format_version": _FILE_VERSION, "family": self.format.name}
        about |= {"threshold": self.threshold, "calibration": self.calibration}
        path = expanded(path)
        write_file(path, json.dumps(about, indent=1).encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a guard that `save` wrote.

        Raises:
            ValueError: no such file, a damaged one, another kind of file, or one of a newer format.
        """
        path = expanded(path)
        if not path.is_file():
            raise ValueError(f"no such guard file: {path}; make one with TextGuard.save")
        remedy = "make one with TextGuard.save"
        about = read_json(path, dict[str, Any], remedy=remedy)
        if about.get("format") != _FILE_FORMAT:
            raise ValueError(f"{path} is not a text guard; {remedy}")
        stored = from_plain(_File, about, source=str(path))
        if stored.format_version > _FILE_VERSION or stored.family not in FORMATS:
            raise ValueError(
                f"{path} has format_version {stored.format_version} and family {stored.family!r}, this interp "
                f"reads up to {_FILE_VERSION} and {', '.join(FORMATS)}; upgrade interp"
            )
        return cls(format=FORMATS[stored.family], threshold=stored.threshold, calibration=stored.calibration)

    def _ask(self, model: ChatModel, prompts: Sequence[str], identity: PromptIdentity) -> list[Detection]:
        tokenizer: Any = model.tokenizer
        asked = [self.format.render(tokenizer, prompt) for prompt in prompts]
        tokens = rendered_tokens(tokenizer, [text for texts in asked for text in texts])
        odds = [0.0] * len(tokens)
        for answer, sign in ((self.format.harmful, 1.0), (self.format.safe, -1.0)):
            ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
            for i, scores in enumerate(completion_log_probs(model, tokens, [ids] * len(tokens))):
                odds[i] += sign * float(scores.double().sum())
        answers = generate(model, tokens, max_new_tokens=_ANSWER_TOKENS).texts
        detections, start = [], 0
        for name, category, texts in zip(identity.ids, identity.categories, asked, strict=True):
            rows = range(start, start + len(texts))
            start += len(texts)
            log_odds = max(odds[row] for row in rows)
            verdict = self._verdict(log_odds, [self.format.reads(answers[row]) for row in rows])
            detections.append(Detection(id=name, category=category, harmfulness=log_odds, verdict=verdict))
        return detections

    def _verdict(self, log_odds: float, answers: Sequence[bool | None]) -> Verdict | None:
        """The verdict by threshold, or by the answers: harmful by any policy, None where an answer was not parsed."""
        if self.threshold is not None:
            return "harmful" if log_odds > self.threshold else "harmless"
        return "harmful" if True in answers else None if None in answers else "harmless"


class LoadedGuard(NamedTuple):
    """A guard model with its format and threshold."""

    model: ChatModel
    guard: TextGuard


def load_text_guard(
    name: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
) -> LoadedGuard:
    """Load a guard model by Hub id or folder; its format follows from the name, or is given as `FORMAT=name`.

    Raises:
        ValueError: the format cannot be told from the name, or the model cannot be loaded.
    """
    given, equals, rest = name.partition("=")
    path = rest if equals else name
    flat = re.sub(r"[^a-z0-9]", "", path.lower())
    kind = given if equals else next((k for k in FORMATS if k.replace("-", "") in flat), "")
    if kind not in FORMATS:
        raise ValueError(
            f"cannot tell the format of guard model {name!r}; give FORMAT=name, FORMAT one of {', '.join(FORMATS)}"
        )
    return LoadedGuard(
        load(path, revision=revision, dtype=dtype, device=device), TextGuard(format=FORMATS[kind])
    )
