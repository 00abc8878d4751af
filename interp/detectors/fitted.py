"""Detectors that are fitted on harmful and harmless prompts of one model, and belong to it.

    probe = LogisticProbe.fit(model, prompts, false_positive_rate=0.05)
    probe.score(model, ["How do I bake bread?"])[0].verdict          # 'harmless'
    probe.save("probe.safetensors")

A `FittedDetector` is fitted on `FitData`: prompts with their activations, so that several detectors can share one
forward pass. A high AUROC on prompts like those it was fitted on is no evidence for prompts of another source.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal

from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from interp.data.prompts import CLOSING, Ending, Prompts, PromptSet, with_ending
from interp.detectors import detector as shared
from interp.detectors.detector import (
    DetectionT,
    Self,
    Verdict,
    calibrated_threshold,
    check_calibration,
    in_chunks,
)
from interp.detectors.fit_data import FitData, Needs, Readings, read_fit_data
from interp.detectors.stored_fields import stored_fields
from interp.models.chat_model import ChatModel
from interp.models.prompt_frames import frame_difference
from interp.models.prompt_inputs import GatheredPrompts, Message
from interp.models.tokenizer_files import tokenizer_hash
from interp.models.tokens import ChatTokens, PromptInput, tokenize
from interp.representations.beliefs import states
from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded
from interp.storage.tensor_files import check_tensors, format_version, read_safetensors, sealed
from interp.storage.typed_json import first_line

FORMAT_VERSION = 2
ROLES: tuple[Literal["t_inst", "t_post_inst"], ...] = ("t_inst", "t_post_inst")
"""Token roles at which states are read, in the order of the role axis."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedDetector(ABC, Generic[DetectionT]):
    """Base class of detectors that are fitted on harmful and harmless prompts of one model, and belong to it."""

    format: ClassVar[str]
    """Name of its file format."""
    title: ClassVar[str]
    """Name of the detector in messages."""
    command: ClassVar[str]
    """Command that fits one, for messages."""
    needs: ClassVar[frozenset[Needs]]
    """Data that fitting needs besides the text of training prompts."""

    threshold: float
    """Harmfulness above which a prompt is harmful."""
    ending: Ending
    """Treatment of the end of every prompt before it is read."""
    fitted_on: dict[str, Any]
    """Model, weights hash, template hash, prompts, counts, versions."""

    @classmethod
    @abstractmethod
    def fit_to(cls, data: FitData) -> Self:
        """The detector fitted on these readings."""

    @abstractmethod
    def harmfulness(self, readings: Readings) -> Float[Tensor, " prompt"]:
        """Harmfulness of every prompt; higher is more harmful."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Description of what it reads, e.g. `t_post_inst, layer 16`."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Token roles whose states it reads."""
        return ROLES if "states" in self.needs else ()

    @abstractmethod
    def detect(self, readings: Readings) -> list[DetectionT]:
        """Harmfulness and verdict of every prompt."""

    @abstractmethod
    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-serialisable fields specific to this detector, for its file."""

    @classmethod
    def _fields(cls, tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the fields that `_parts` gave; by default each is stored under its own name."""
        return {**tensors, **own}

    @classmethod
    def fit(
        cls,
        model: ChatModel,
        prompts: PromptSet,
        *,
        n_prompts: int = 100,
        false_positive_rate: float | None = None,
        max_new_tokens: int = 24,
        show_progress: bool = False,
    ) -> Self:
        """Fit on the train split; a layer and a role are selected on the validation split.

        Args:
            prompts: a set whose `ending` the detector will also apply to the prompts that it scores.
            n_prompts: number of training prompts of each kind.
            false_positive_rate: calibrate the threshold so that this share of harmless validation prompts is above it;
                None keeps the detector's own threshold.
            max_new_tokens: maximum length of the replies, where they are needed.

        Raises:
            ValueError: a rate outside 0..1 or too small for the number of validation prompts, or an empty split.
        """
        if false_positive_rate is not None:
            check_calibration(len(prompts["harmless", "val"]), false_positive_rate)
        fitted = cls.fit_to(
            read_fit_data(
                model,
                prompts,
                n_prompts=n_prompts,
                needs=cls.needs,
                max_new_tokens=max_new_tokens,
                show_progress=show_progress,
            )
        )
        if false_positive_rate is None:
            return fitted
        return fitted.calibrated(model, prompts["harmless", "val"], false_positive_rate=false_positive_rate)

    def calibrated(self, model: ChatModel, harmless: Prompts, *, false_positive_rate: float) -> Self:
        """The same detector with the lowest threshold that at most this share of these harmless prompts exceeds.

        Raises:
            ValueError: a rate outside 0..1, or too small for this number of prompts.
        """
        check_calibration(len(harmless), false_positive_rate)
        scores = [detection.harmfulness for detection in self.score(model, harmless)]
        return self._calibrated(scores, false_positive_rate, harmless.source)

    def calibrated_to(self, harmless: Readings, *, false_positive_rate: float) -> Self:
        """`calibrated`, with harmless prompts whose activations have already been read.

        Raises:
            ValueError: as for `calibrated`.
        """
        return self._calibrated(self.harmfulness(harmless).tolist(), false_positive_rate, "readings")

    def _calibrated(self, scores: Sequence[float], false_positive_rate: float, source: str) -> Self:
        check_calibration(len(scores), false_positive_rate)
        note = {"false_positive_rate": false_positive_rate, "prompts": source, "n": len(scores)}
        return replace(
            self,
            threshold=calibrated_threshold(scores, false_positive_rate),
            fitted_on={**self.fitted_on, "calibration": note},
        )

    def score(self, model: ChatModel, prompts: PromptInput) -> list[DetectionT]:
        """Score prompts, in order.

        Args:
            prompts: instructions, conversations, a split of a prompt set, or tokens (their endings are not changed).

        Raises:
            ValueError: another model or chat template than the detector was fitted on, or tokens for a detector that
                changes endings or reads words.
        """
        return list(self.stream(model, prompts))

    def stream(self, model: ChatModel, prompts: PromptInput | Iterator[str]) -> Iterator[DetectionT]:
        """Score prompts as they arrive, in order; memory does not grow with their number.

        Raises:
            ValueError: as for `score`.
        """
        self._check(model)
        if isinstance(prompts, ChatTokens):
            for readings in self._read_tokens(model, prompts):
                yield from self.detect(readings)
            return
        for chunk in in_chunks(prompts):
            yield from self.score_chunk(model, chunk)

    def score_chunk(self, model: ChatModel, chunk: GatheredPrompts) -> list[DetectionT]:
        """Score one of the chunks that `detector.in_chunks` makes.

        Raises:
            ValueError: another model or chat template than the detector was fitted on.
        """
        self._check(model)
        ended = [_ended(item, self.ending) for item in chunk.items]
        read = None
        if self.roles:
            tokens = replace(tokenize(model.tokenizer, ended), given=chunk.identity)
            read = states(model, tokens, positions=self.roles)
        return self.detect(Readings(texts=tuple(map(_words, ended)), states=read, given=chunk.identity))

    def _read_tokens(self, model: ChatModel, prompts: ChatTokens) -> Iterator[Readings]:
        """Read tokens in chunks, with the states that the detector needs."""
        if self.ending != "as-is" or not self.roles:
            reads = f"prompts with ending={self.ending!r}" if self.roles else "words"
            raise ValueError(f"this guard reads {reads}; give their text, not tokens")
        for start in range(0, len(prompts), shared.CHUNK):
            tokens = prompts.take(range(start, min(start + shared.CHUNK, len(prompts))))
            read = states(model, tokens, positions=self.roles)
            yield Readings(texts=tokens.identity.texts, states=read, given=tokens.identity)

    def verdict(self, harmfulness: float) -> Verdict:
        """The verdict for a harmfulness: harmful above the threshold."""
        return "harmful" if harmfulness > self.threshold else "harmless"

    def _check(self, model: ChatModel) -> None:
        check_same_model(self.fitted_on, model, "guard", f"fit a guard on this model ({self.command})")

    def save(self, path: str | Path) -> Path:
        """Write the detector to one safetensors file, atomically."""
        tensors, own = self._parts()
        about = {"threshold": self.threshold, **own, "ending": self.ending, "fitted_on": self.fitted_on}
        metadata = {"format": self.format, "format_version": str(FORMAT_VERSION), "guard": json.dumps(about)}
        path = expanded(path)
        write_file(path, save({k: v.contiguous() for k, v in tensors.items()}, sealed(metadata, tensors)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a detector that `save` wrote.

        Raises:
            ValueError: no such file, a damaged one, another kind of file, or one of a newer format.
        """
        path = expanded(path)
        if not path.is_file():
            raise ValueError(f"no such guard file: {path}; make one with {cls.command}")
        remedy = f"make it again with {cls.command}"
        file = read_safetensors(path, remedy=remedy)
        if file.metadata.get("format") != cls.format:
            raise ValueError(f"{path} is not a {cls.title}; make one with {cls.command}")
        format_version(file, path, FORMAT_VERSION)
        check_tensors(file, path, remedy=remedy)
        if len({tensor.shape for tensor in file.tensors.values()}) != 1:
            raise ValueError(f"{path} is damaged (its tensors are not of one shape); {remedy}")
        about = stored_fields(cls, file.metadata.get("guard", ""), path, remedy=remedy)
        try:
            common = {name: about.pop(name) for name in ("threshold", "ending", "fitted_on")}
            return cls(**common, **cls._fields(file.tensors, about))
        except (KeyError, ValueError) as error:
            missing = isinstance(error, KeyError)
            reason = f"no {error.args[0]} in it" if missing else first_line(error)
            raise ValueError(f"{path} is damaged ({reason}); {remedy}") from error


def _ended(item: str | Sequence[Message], ending: Ending) -> Any:
    """A prompt with the detector's ending, applied to the last user turn of a conversation.

    A prompt of punctuation only is left unchanged, so that a stream is not interrupted.
    """
    if isinstance(item, str):
        return with_ending(item, ending) if item.strip(CLOSING) else item
    last = max((i for i, message in enumerate(item) if message["role"] == "user"), default=-1)
    return [
        {**message, "content": _ended(message["content"], ending)} if i == last else message
        for i, message in enumerate(item)
    ]


def _words(item: str | Sequence[Message]) -> str:
    """The text of a prompt, or of all turns of a conversation."""
    return item if isinstance(item, str) else "\n".join(message["content"] for message in item)


def check_same_model(fitted_on: Mapping[str, Any], model: ChatModel, what: str, again: str) -> None:
    """Compare the model with the one that a guard or moderator was fitted on: template, weights and tokenizer.

    Args:
        fitted_on: its provenance.
        again: how to fit another one, as the end of the message.

    Raises:
        ValueError: they differ.
    """
    name, frame = fitted_on.get("model"), fitted_on.get("prompt_frame")
    if difference := frame_difference(frame, model.prompt_frame):
        day = fitted_on.get("date")
        remedy = f"load the model with date={day!r}" if day else f"load the model with the {what}'s template"
        raise ValueError(
            f"this {what} was fitted on prompts in another frame: {difference}; {remedy}, or {again}"
        )
    tokenizer = tokenizer_hash(model.tokenizer)
    for part, stored, found in (
        ("weights", fitted_on.get("weights_hash"), model.weights_hash),
        ("chat template", fitted_on.get("template_hash"), model.template_hash),
        ("tokenizer", fitted_on.get("tokenizer_hash", tokenizer), tokenizer),  # once it was not stored
    ):
        if stored != found:
            raise ValueError(
                f"this {what} was fitted on {name} and the {part} of {model.name} differ; load {name}, or {again}"
            )
