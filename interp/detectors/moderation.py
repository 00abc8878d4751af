"""Severity-sensitive moderation: a detector that reads a prompt with its answer in a model's own forward pass.

    moderator = SeverityModerator.fit(model, answers)
    found = moderator.score(model, [conversation(prompt, answer)])[0]
    found.verdict, found.severity, found.flags                         # 'harmful', 2, ('Violence',)

It reads the residual stream at the last token of the answer at one layer: a logistic regression for unsafe, an ordinal
one (`interp.representations.ordinal`) for severity 1 to 3, and one logistic regression for each harm category, all on
the same principal components. Severity is 0 where the answer is called safe. Threshold and flags are those of even odds
until calibrated; a calibration moves the threshold of unsafe, and no other.

After the moderation of Ji et al. 2025, arXiv:2406.15513, which fine-tunes a model instead.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from safetensors.torch import save
from torch import Tensor

from interp.data.safe_rlhf import CATEGORIES, Answer
from interp.detectors.detector import (
    Detection,
    Self,
    calibrated_threshold,
    check_calibration,
    in_chunks,
)
from interp.detectors.fitted import check_same_model
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import gather_prompts
from interp.models.tokenizer_files import tokenizer_hash
from interp.models.tokens import ChatTokens, PromptInput, tokenize
from interp.representations.answer_states import conversation
from interp.representations.beliefs import states
from interp.representations.severity import Scaler, fitted_severity
from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded
from interp.storage.provenance import library_versions
from interp.storage.tensor_files import check_tensors, format_version, read_safetensors, sealed

FORMAT = "interp-severity-moderator"
FORMAT_VERSION = 1
_REMEDY = "make it again with SeverityModerator.fit"


@dataclass(frozen=True, kw_only=True)
class Moderation(Detection):
    """A moderator's output for one answer."""

    severity: int
    """0 none, 1 minor, 2 moderate, 3 severe."""
    flags: tuple[str, ...]
    """Harm categories; empty for an answer that is called safe."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SeverityModerator:
    """Moderation of answers by one model's states."""

    title: ClassVar[str] = "severity moderator"
    layer: int
    """Layer that is read, as `interp.representations.beliefs` counts them."""
    mean: Float[Tensor, " d_model"]
    """Mean state."""
    unsafe: Float[Tensor, " d_model"]
    """Weights of the log-odds of unsafe."""
    unsafe_bias: float
    severity: Float[Tensor, " d_model"]
    """Weights of the severity."""
    severity_thresholds: tuple[float, ...]
    """Ascending, between the levels of `severity_levels`."""
    severity_levels: tuple[int, ...]
    categories: Float[Tensor, "category d_model"]
    """Weights of the log-odds of each category."""
    category_biases: tuple[float, ...]
    threshold: float = 0.0
    """Log-odds above which an answer is unsafe."""
    fitted_on: dict[str, Any]
    """Model, weights hash, counts, versions."""

    @classmethod
    def fit(
        cls,
        model: ChatModel,
        answers: Sequence[Answer],
        *,
        layer: int | None = None,
        l2: float | int = 1.0,
        n_components: int = 64,
    ) -> Self:
        """Fit on labelled answers.

        Args:
            layer: 2/3 of the depth when None.
            l2: penalty of every regression.
            n_components: principal components of the states that the regressions see.

        Raises:
            ValueError: answers without text, of one kind only, or unsafe ones of one severity only.
        """
        chosen = model.layer_list(
            2 * model.n_layers // 3 if layer is None else layer, upper=model.n_layers + 1
        )[0]
        turns = [conversation(each.prompt, each.text) for each in answers]
        read = states(model, turns, layers=chosen, positions="t_prefill")[:, 0, 0]
        about = {
            **model.provenance,
            "tokenizer_hash": tokenizer_hash(model.tokenizer),
            "n": len(answers),
            "versions": library_versions(),
        }
        return cls.fit_to(read, answers, layer=chosen, l2=l2, n_components=n_components, fitted_on=about)

    @classmethod
    def fit_to(
        cls,
        read: Float[Tensor, "answer d_model"],
        answers: Sequence[Answer],
        *,
        layer: int,
        l2: float | int = 1.0,
        n_components: int = 64,
        fitted_on: Mapping[str, Any],
    ) -> Self:
        """`fit` on states that have already been read at this layer.

        Raises:
            ValueError: as for `fit`.
        """
        x = read.double().cpu().numpy()
        unsafe = np.array([not each.safe for each in answers])
        levels = np.array([each.severity for each in answers])
        if unsafe.all() or not unsafe.any():
            raise ValueError("a moderator is fitted on safe and unsafe answers; got one kind only")
        harmful = unsafe & (levels > 0)
        scale = Scaler.fitted(x, n_components)
        flags = np.array([each.categories for each in answers])
        weights = [_logistic(scale(x), flags[:, c], l2) for c in range(flags.shape[1])]
        odds, bias = _logistic(scale(x), unsafe, l2)
        severity_scale, ordinal = fitted_severity(
            x[harmful], levels[harmful], l2=l2, n_components=n_components
        )
        severity = (ordinal.weights / severity_scale.scale) @ severity_scale.components
        shift = float(severity @ (severity_scale.mean - scale.mean))
        return cls(
            layer=layer,
            mean=_tensor(scale.mean),
            unsafe=_tensor(_back(scale, odds)),
            unsafe_bias=bias,
            severity=_tensor(severity),
            severity_thresholds=tuple(float(t) + shift for t in ordinal.thresholds),
            severity_levels=ordinal.levels,
            categories=_tensor(np.stack([_back(scale, w) for w, _ in weights])),
            category_biases=tuple(b for _, b in weights),
            fitted_on={**fitted_on, "unsafe": int(unsafe.sum())},
        )

    def score(self, model: ChatModel, prompts: PromptInput) -> list[Moderation]:
        """Moderate answers, in order.

        Args:
            prompts: conversations that end with the assistant's answer (`answer_states.conversation`).

        Raises:
            ValueError: another model than the moderator was fitted on, or a conversation without an answer at its end.
        """
        return list(self.stream(model, prompts))

    def stream(self, model: ChatModel, prompts: PromptInput | Iterator[str]) -> Iterator[Moderation]:
        """Moderate answers as they arrive; memory does not grow with their number.

        Raises:
            ValueError: as for `score`.
        """
        check_same_model(self.fitted_on, model, "moderator", "fit a moderator on this one")
        if isinstance(prompts, ChatTokens):
            read = states(model, prompts, layers=self.layer, positions="t_prefill")[:, 0, 0]
            yield from self.detect(read, prompts.identity.ids)
            return
        for items, identity in in_chunks(prompts):
            for name, item in zip(identity.ids, items, strict=True):
                if isinstance(item, str) or item[-1]["role"] != "assistant":
                    raise ValueError(
                        f"prompt {name} ends without an answer; give prompt and answer as a conversation"
                    )
            turns: list[Any] = list(items)
            read = states(model, tokenize(model.tokenizer, turns), layers=self.layer, positions="t_prefill")
            yield from self.detect(read[:, 0, 0], identity.ids)

    def detect(self, read: Float[Tensor, "answer d_model"], ids: Sequence[str]) -> list[Moderation]:
        """Moderate answers whose states have already been read at this layer."""
        centred = read.double().cpu() - self.mean.double()
        odds = centred @ self.unsafe.double() + self.unsafe_bias
        level = centred @ self.severity.double()
        flagged = (
            centred @ self.categories.double().T + torch.tensor(self.category_biases, dtype=torch.float64) > 0
        )
        found = []
        for row, name in enumerate(ids):
            harmful = float(odds[row]) > self.threshold
            step = self._step(float(level[row]))
            found.append(
                Moderation(
                    id=name,
                    category=None,
                    harmfulness=float(odds[row]),
                    verdict="harmful" if harmful else "harmless",
                    severity=self.severity_levels[step] if harmful else 0,
                    flags=tuple(
                        c for c, on in zip(CATEGORIES, flagged[row].tolist(), strict=True) if on and harmful
                    ),
                )
            )
        return found

    def _step(self, level: float) -> int:
        """Index of the likeliest level."""
        below = 1 / (1 + np.exp(-(np.array(self.severity_thresholds) - level)))
        return int(np.diff(np.concatenate([[0.0], below, [1.0]])).argmax())

    def calibrated(self, model: ChatModel, harmless: PromptInput, *, false_positive_rate: float) -> Self:
        """The same moderator with the lowest threshold that at most this share of these safe answers exceeds.

        Raises:
            ValueError: a rate outside 0..1, or too small for this number of answers.
        """
        n = len(gather_prompts(harmless).items)
        check_calibration(n, false_positive_rate, of="safe answers")
        scores = [found.harmfulness for found in self.score(model, harmless)]
        note = {"false_positive_rate": false_positive_rate, "n": n}
        return replace(
            self,
            threshold=calibrated_threshold(scores, false_positive_rate),
            fitted_on={**self.fitted_on, "calibration": note},
        )

    def with_threshold(self, threshold: float | int) -> Self:
        """The same moderator with another threshold of unsafe, in log-odds."""
        return replace(self, threshold=float(threshold))

    def save(self, path: str | Path) -> Path:
        """Write the moderator to one safetensors file, atomically."""
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        about = {name: getattr(self, name) for name in _FIELDS}
        metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "moderator": json.dumps(about)}
        path = expanded(path)
        write_file(path, save(tensors, sealed(metadata, tensors)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a moderator that `save` wrote.

        Raises:
            ValueError: no such file, a damaged one, another kind of file, or one of a newer format.
        """
        path = expanded(path)
        if not path.is_file():
            raise ValueError(f"no such moderator file: {path}; {_REMEDY}")
        file = read_safetensors(path, remedy=_REMEDY)
        if file.metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a {cls.title}; {_REMEDY}")
        format_version(file, path, FORMAT_VERSION)
        check_tensors(file, path, remedy=_REMEDY)
        try:
            about = json.loads(file.metadata["moderator"])
            lists = {name: tuple(value) for name, value in about.items() if isinstance(value, list)}
            fields: dict[str, Any] = {**about, **lists, **{name: file.tensors[name] for name in _TENSORS}}
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); {_REMEDY}") from error


_TENSORS = ("mean", "unsafe", "severity", "categories")
_FIELDS = (
    "layer", "unsafe_bias", "severity_thresholds", "severity_levels", "category_biases", "threshold", "fitted_on",
)  # fmt: skip


def _logistic(
    x: Float[ndarray, "row component"], y: Any, l2: float | int
) -> tuple[Float[ndarray, " component"], float]:
    """Weights and bias of a logistic regression; a label that does not vary is always, or never, given."""
    from sklearn.linear_model import LogisticRegression

    if y.all() or not y.any():
        return np.zeros(x.shape[1]), 30.0 if y.all() else -30.0
    fitted = LogisticRegression(C=1 / l2, max_iter=2000).fit(x, y)
    return fitted.coef_[0], float(fitted.intercept_[0])


def _back(scale: Scaler, weights: Float[ndarray, " component"]) -> Float[ndarray, " d_model"]:
    return (weights / scale.scale) @ scale.components


def _tensor(values: Float[ndarray, "*axes"]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
