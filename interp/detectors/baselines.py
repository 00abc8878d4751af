"""Baselines for the Latent Guard: a logistic probe, the refusal direction, words alone, a random direction.

Each is fitted on training prompts; layer and role, where it has any, are selected on validation prompts.

    WordsDetector.fit(model, prompts).score(model, ["How do I bake bread?"])[0].harmfulness
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from interp.data.prompt_sets import PAIRED_KINDS
from interp.detectors.detector import Detection, Self
from interp.detectors.fit_data import FitData, Needs, Readings
from interp.detectors.fitted import ROLES, FittedDetector
from interp.directions import difference_in_means, project, random_direction
from interp.stats import auroc

MIN_BEHAVING = 8
"""Minimum refused harmful, and answered harmless, training prompts; below it the refusal direction uses all
prompts."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Baseline(FittedDetector[Detection]):
    """A detector whose only output is harmfulness and the verdict."""

    def __repr__(self) -> str:
        model = self.fitted_on.get("model")
        return f"{type(self).__name__}({model}, {self.where}, ending {self.ending}, threshold {self.threshold:.4g})"

    def detect(self, readings: Readings) -> list[Detection]:
        """Harmfulness and verdict of every prompt."""
        return [
            Detection(id=name, category=category, harmfulness=value, verdict=self.verdict(value))
            for name, category, value in zip(
                readings.identity.ids,
                readings.identity.categories,
                self.harmfulness(readings).tolist(),
                strict=True,
            )
        ]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _AtOnePlace(_Baseline):
    """A detector that reads one layer at one role."""

    layer: Annotated[int, Field(ge=0, lt=10_000)]
    """Layer it reads, 0..L as `interp.representations.beliefs` counts them."""
    role: Annotated[int, Field(ge=0, le=1)]
    """Token role it reads: 0 for `t_inst`, 1 for `t_post_inst`."""

    @property
    def where(self) -> str:
        """Description of the token role and layer that it reads."""
        return f"{ROLES[self.role]}, layer {self.layer}"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LogisticProbe(_AtOnePlace):
    """Logistic regression on standardised states; layer and role are selected by validation AUROC, then log-loss."""

    format: ClassVar[str] = "interp-logistic-probe"
    title: ClassVar[str] = "logistic probe"
    command: ClassVar[str] = "LogisticProbe.fit"
    needs: ClassVar[frozenset[Needs]] = frozenset({"states", "validation"})

    mean: Float[Tensor, " d_model"]
    """Mean of the training states, float64."""
    scale: Float[Tensor, " d_model"]
    """Standard deviation of the training states, float64."""
    weights: Float[Tensor, " d_model"]
    """Log-odds per unit of each standardised state."""
    intercept: float
    """Log-odds at the mean state."""

    @classmethod
    def fit_to(cls, data: FitData) -> Self:
        """The probe at the best layer and role; its default threshold is even odds."""
        held_out = {kind: data.validation[kind].every_layer for kind in PAIRED_KINDS}
        n_harmful = len(held_out["harmful"])
        labels = [kind == "harmful" for kind in PAIRED_KINDS for _ in range(len(held_out[kind]))]
        _, n_layers, n_roles, _ = held_out["harmful"].shape

        def quality(probe: Self) -> tuple[float, float]:
            states = torch.cat([held_out[kind][:, probe.layer, probe.role] for kind in PAIRED_KINDS])
            log_odds = probe.log_odds(states)
            separation = auroc(log_odds[:n_harmful], log_odds[n_harmful:], resamples=0).value
            return separation, -log_loss(labels, log_odds.sigmoid().numpy())

        probes = (cls._fit_at(data, layer, role) for layer in range(n_layers) for role in range(n_roles))
        return max(probes, key=quality)

    @classmethod
    def _fit_at(cls, data: FitData, layer: int, role: int) -> Self:
        parts = [data.train[kind].at(layer, role) for kind in PAIRED_KINDS]
        labels = [
            kind == "harmful"
            for kind, part in zip(PAIRED_KINDS, parts, strict=True)
            for _ in range(len(part))
        ]
        scaler, regression = StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)
        make_pipeline(scaler, regression).fit(torch.cat(parts).double().cpu().numpy(), labels)
        return cls(
            threshold=0.0,
            ending=data.ending,
            fitted_on=dict(data.fitted_on),
            layer=layer,
            role=role,
            mean=torch.from_numpy(np.asarray(scaler.mean_)),
            scale=torch.from_numpy(np.asarray(scaler.scale_)),
            weights=torch.from_numpy(regression.coef_[0].copy()),
            intercept=float(np.asarray(regression.intercept_)[0]),
        )

    def log_odds(self, states: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
        """Log-odds of harmful over harmless for these states."""
        return ((states.double().cpu() - self.mean) / self.scale) @ self.weights + self.intercept

    def harmfulness(self, readings: Readings) -> Float[Tensor, " prompt"]:
        """Log-odds of harmful over harmless."""
        return self.log_odds(readings.at(self.layer, self.role))

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"mean": self.mean, "scale": self.scale, "weights": self.weights}
        return tensors, {"intercept": self.intercept, "layer": self.layer, "role": self.role}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Projection(_AtOnePlace):
    """Projection on one direction; its default threshold is halfway between the training means."""

    direction: Float[Tensor, " d_model"]
    """Direction towards harmful prompts; its norm does not matter."""
    note: str = ""
    """Caveat on how it was fitted; empty where there is none."""

    @property
    def where(self) -> str:
        """Description of the token role and layer that it reads, with the note."""
        return f"{super().where}{self.note}"

    def harmfulness(self, readings: Readings) -> Float[Tensor, " prompt"]:
        """Projection of every prompt on the unit direction, in units of the states."""
        return _length(readings.at(self.layer, self.role), self.direction)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"direction": self.direction}, {"layer": self.layer, "role": self.role, "note": self.note}

    @classmethod
    @abstractmethod
    def fit_to(cls, data: FitData) -> Self:
        """The detector fitted on these readings."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RefusalDirection(_Projection):
    """Mean of refused harmful minus answered harmless prompts at `t_post_inst`, at the layer of best validation AUROC.

    Source: Arditi et al. 2024, arXiv:2406.11717, section 2.3; there it is used to steer, not to detect.
    """

    format: ClassVar[str] = "interp-refusal-direction-detector"
    title: ClassVar[str] = "refusal direction detector"
    command: ClassVar[str] = "RefusalDirection.fit"
    needs: ClassVar[frozenset[Needs]] = frozenset({"states", "validation", "replies"})

    @classmethod
    def fit_to(cls, data: FitData) -> Self:
        """The direction from refused and answered prompts, or from all where a kind has fewer than `MIN_BEHAVING`."""
        behaving = data.behaving(MIN_BEHAVING)
        train = {
            kind: data.train[kind].every_layer[:, :, 1]
            if behaving is None
            else data.train[kind].every_layer[behaving[kind]][:, :, 1]
            for kind in PAIRED_KINDS
        }
        by_layer = difference_in_means(train["harmful"].float(), train["harmless"].float())

        def separation(layer: int) -> float:
            lengths = [_length(data.validation[kind].at(layer, 1), by_layer[layer]) for kind in PAIRED_KINDS]
            return auroc(*lengths, resamples=0).value

        layer = max(range(len(by_layer)), key=separation)
        means = [float(_length(train[kind][:, layer], by_layer[layer]).mean()) for kind in PAIRED_KINDS]
        return cls(
            threshold=sum(means) / 2,
            ending=data.ending,
            fitted_on=dict(data.fitted_on),
            layer=layer,
            role=1,
            direction=by_layer[layer],
            note="" if behaving else ", of all prompts: too few behave",
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RandomDirection(_Projection):
    """The control: a random direction at the probe's layer and role, signed towards harmful prompts."""

    format: ClassVar[str] = "interp-random-direction-detector"
    title: ClassVar[str] = "random direction detector"
    command: ClassVar[str] = "RandomDirection.fit"
    needs: ClassVar[frozenset[Needs]] = frozenset({"states", "validation"})

    @classmethod
    def fit_to(cls, data: FitData, *, seed: int = 0, place: tuple[int, int] | None = None) -> Self:
        """A random direction with this seed.

        Without fixing the sign, half of all draws would be below chance, unlike a fitted detector on its training data.

        Args:
            place: layer and role; those of a logistic probe fitted on the same data when None.
        """
        if place is None:
            probe = LogisticProbe.fit_to(data)
            place = probe.layer, probe.role
        train = [data.train[kind].at(*place).float() for kind in PAIRED_KINDS]
        direction = random_direction(train[0][0], seed=seed)
        means = [float(_length(part, direction).mean()) for part in train]
        sign = 1.0 if means[0] >= means[1] else -1.0
        return cls(
            threshold=sign * sum(means) / 2,
            ending=data.ending,
            fitted_on=dict(data.fitted_on),
            layer=place[0],
            role=place[1],
            direction=sign * direction,
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class WordsDetector(_Baseline):
    """Logistic regression on TF-IDF of words and word pairs: how separable the text is without any model."""

    format: ClassVar[str] = "interp-words-detector"
    title: ClassVar[str] = "words detector"
    command: ClassVar[str] = "WordsDetector.fit"
    needs: ClassVar[frozenset[Needs]] = frozenset()

    vocabulary: tuple[str, ...]
    """Words and word pairs of the training prompts."""
    idf: Float[Tensor, " term"]
    """Inverse document frequency of each term, float64."""
    weights: Float[Tensor, " term"]
    """Log-odds per unit of each term's TF-IDF."""
    intercept: float
    """Log-odds of a prompt without a known word."""

    @classmethod
    def fit_to(cls, data: FitData) -> Self:
        """The detector fitted on the training texts; its default threshold is even odds."""
        vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        regression = LogisticRegression(C=10.0, max_iter=2000)
        texts = [text for kind in PAIRED_KINDS for text in data.train[kind].texts]
        labels = [kind == "harmful" for kind in PAIRED_KINDS for _ in data.train[kind].texts]
        make_pipeline(vectoriser, regression).fit(texts, labels)
        return cls(
            threshold=0.0,
            ending=data.ending,
            fitted_on=dict(data.fitted_on),
            vocabulary=tuple(map(str, vectoriser.get_feature_names_out())),
            idf=torch.from_numpy(np.asarray(vectoriser.idf_).copy()),
            weights=torch.from_numpy(regression.coef_[0].copy()),
            intercept=float(np.asarray(regression.intercept_)[0]),
        )

    @property
    def where(self) -> str:
        """Description of what it reads."""
        return "words and pairs of words"

    def harmfulness(self, readings: Readings) -> Float[Tensor, " prompt"]:
        """Log-odds of harmful over harmless."""
        vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=list(self.vocabulary))
        vectoriser.idf_ = self.idf.numpy()
        terms = vectoriser.transform(readings.texts)
        return torch.from_numpy(np.asarray(terms @ self.weights.numpy()) + self.intercept)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"idf": self.idf, "weights": self.weights}
        return tensors, {"vocabulary": self.vocabulary, "intercept": self.intercept}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Any]:
        return {**tensors, **own, "vocabulary": tuple(own["vocabulary"])}


def _length(
    states: Float[Tensor, "prompt d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " prompt"]:
    """Projection of states on the unit direction, float32."""
    values = states.float()
    return project(values, direction.expand_as(values))
