"""Latent Guard: harmful prompts detected from the model's activations, in the prompt's own forward pass.

A prompt's harmfulness is its belief at `t_inst` (`interp.representations.beliefs`): the mean over layers of its
cosine with the centre of harmful prompts minus that with the centre of harmless ones. Beside it stands the refusal
belief at `t_post_inst`. The verdict is harmful when harmfulness exceeds the threshold: 0 as published, or calibrated
to a false-positive rate.

A guard belongs to the model, template and prompt ending that it was fitted with, and rejects others. It can fail out of
domain (the paper's appendix H), since it depends on what it was fitted on: evaluate it on prompts of your own.

    guard = LatentGuard.fit(model, prompts)
    guard.score(model, ["How do I bake bread?"])[0].verdict        # 'harmless'
    guard.save("guard.safetensors")

Source: Zhao et al. 2025, arXiv:2507.11878, section 5 ("Latent Guard").
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from sklearn.metrics import roc_curve
from torch import Tensor

from interp.data.prompts import Prompts, PromptSet
from interp.detectors.detector import Detection, Self, check_calibration
from interp.detectors.fit_data import FitData, Needs, Readings
from interp.detectors.fitted import ROLES, FittedDetector
from interp.display.cards import Card, Shown, Table
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers
from interp.representations.beliefs import Centres, belief, fit_centres
from interp.stats import Estimate, auroc

logger = logging.getLogger(__name__)

MIN_BEHAVING = 4
"""Minimum refused harmful, and answered harmless, training prompts for a refusal belief."""


@dataclass(frozen=True, kw_only=True)
class GuardScore(Detection):
    """The guard's output for one prompt; harmfulness is the belief at `t_inst`, -2 to 2."""

    refusal: float | None
    """Belief at `t_post_inst`: above 0 the model is about to refuse. None where the guard has no refusal centres."""


@dataclass(frozen=True, kw_only=True)
class CategoryRoc:
    """ROC curve of a guard for one category of harmful prompts against harmless ones."""

    auroc: Estimate
    """Area under the curve, with its interval; higher is better."""
    false_positives: tuple[float, ...]
    """Share of harmless prompts flagged, ascending."""
    true_positives: tuple[float, ...]
    """Share of the category flagged at the same thresholds."""
    thresholds: tuple[float, ...]
    """Harmfulness at or above which a prompt is flagged."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentGuard(FittedDetector[GuardScore], Shown):
    """A fitted guard; apply it with `score`."""

    format: ClassVar[str] = "interp-latent-guard"
    title: ClassVar[str] = "Latent Guard"
    command: ClassVar[str] = "interp guard fit"
    needs: ClassVar[frozenset[Needs]] = frozenset({"states", "replies"})

    harm: Centres
    """Harmful and harmless centres at `t_inst`."""
    refusal: Centres | None
    """Refused and answered centres at `t_post_inst`; None when too few prompts were refused or answered."""
    layers: tuple[int, ...] | None
    """Layers averaged over, 0..L; None is all."""

    @classmethod
    def fit(
        cls,
        model: ChatModel,
        prompts: PromptSet,
        *,
        n_prompts: int = 100,
        layers: Layers = None,
        false_positive_rate: float | None = None,
        max_new_tokens: int = 24,
        show_progress: bool = False,
    ) -> Self:
        """Fit the centres on the train split.

        Harm centres use all prompts of a kind (the paper also widens its harmful pool, appendix B); refusal centres use
        harmful prompts that the model refuses and harmless ones that it answers, judged by its greedy replies.

        Args:
            prompts: a set whose `ending` the guard will also apply to the prompts that it scores.
            n_prompts: number of training prompts of each kind (100 in the paper).
            layers: layers to average, 0..L, as an int, a range or a list; None is all.
            false_positive_rate: calibrate the threshold so that this share of harmless validation prompts is above it;
                None is the published threshold of 0.

        Raises:
            ValueError: a rate outside 0..1 or too small for the number of validation prompts, a layer out of range, or
                an empty split.
        """
        averaged = None if layers is None else model.layer_list(layers, upper=model.n_layers + 1)
        if false_positive_rate is not None:
            check_calibration(len(prompts["harmless", "val"]), false_positive_rate)
        guard = super().fit(
            model, prompts, n_prompts=n_prompts, max_new_tokens=max_new_tokens, show_progress=show_progress
        )
        guard = replace(guard, layers=averaged)
        if false_positive_rate is None:
            return guard
        return guard.calibrated(model, prompts["harmless", "val"], false_positive_rate=false_positive_rate)

    @classmethod
    def fit_to(cls, data: FitData) -> Self:
        """The guard fitted on these readings; its threshold is the published 0."""
        behaving = data.behaving(MIN_BEHAVING)
        harmful, harmless = data.train["harmful"].every_layer, data.train["harmless"].every_layer
        if behaving is None:
            logger.warning(
                "%s: too few refused or answered prompts for a refusal belief (%s)",
                data.fitted_on.get("model"),
                data.fitted_on.get("counts"),
            )
        return cls(
            harm=fit_centres(harmful[:, :, 0], harmless[:, :, 0]),
            refusal=None
            if behaving is None
            else fit_centres(harmful[behaving["harmful"]][:, :, 1], harmless[behaving["harmless"]][:, :, 1]),
            threshold=0.0,
            layers=None,
            ending=data.ending,
            fitted_on=dict(data.fitted_on),
        )

    @property
    def where(self) -> str:
        """Description of the token role and layers that it reads."""
        return f"t_inst, {'all layers' if self.layers is None else f'layers {self.layers}'}"

    @property
    def roles(self) -> tuple[str, ...]:
        """Token roles that it reads; `t_post_inst` only where there is a refusal belief."""
        return ROLES[:1] if self.refusal is None else ROLES

    def harmfulness(self, readings: Readings) -> Float[Tensor, " prompt"]:
        """Belief at `t_inst`, -2 to 2."""
        return belief(self.harm.margin(readings.every_layer[:, :, 0]), self.layers)

    def detect(self, readings: Readings) -> list[GuardScore]:
        """Both beliefs and the verdict of every prompt."""
        refusal: list[float | None] = [None] * len(readings.texts)
        if self.refusal is not None:
            margin = self.refusal.margin(readings.every_layer[:, :, 1])
            refusal = list(belief(margin, self.layers).tolist())
        return [
            GuardScore(id=name, category=category, harmfulness=h, refusal=r, verdict=self.verdict(h))
            for name, category, h, r in zip(
                readings.identity.ids,
                readings.identity.categories,
                self.harmfulness(readings).tolist(),
                refusal,
                strict=True,
            )
        ]

    def roc(self, model: ChatModel, harmful: Prompts, harmless: Prompts) -> dict[str, CategoryRoc]:
        """ROC of each harm category against all harmless prompts, and of `all` harmful prompts.

        Raises:
            ValueError: as for `score`, or no prompts of a kind.
        """
        bad, good = (
            torch.tensor([s.harmfulness for s in self.score(model, part)], dtype=torch.float64)
            for part in (harmful, harmless)
        )
        rows: dict[str, list[int]] = {"all": list(range(len(harmful)))}
        for row, category in enumerate(harmful.categories):
            if category is not None:
                rows.setdefault(category, []).append(row)
        curves = {}
        for category, members in rows.items():
            labels = [1] * len(members) + [0] * len(good)
            false, true, thresholds = roc_curve(labels, torch.cat([bad[members], good]).numpy())
            curves[category] = CategoryRoc(
                auroc=auroc(bad[members], good),
                false_positives=tuple(false.tolist()),
                true_positives=tuple(true.tolist()),
                thresholds=tuple(thresholds.tolist()),
            )
        return curves

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"harm/positive": self.harm.positive, "harm/negative": self.harm.negative}
        if self.refusal is not None:
            tensors |= {"refusal/positive": self.refusal.positive, "refusal/negative": self.refusal.negative}
        return tensors, {"layers": self.layers}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Any]:
        def centres(belief: str) -> Centres:
            return Centres(positive=tensors[f"{belief}/positive"], negative=tensors[f"{belief}/negative"])

        layers, shape = own["layers"], tuple(tensors["harm/positive"].shape)
        if len(shape) != 2 or not all(0 <= layer < shape[0] for layer in layers or ()):
            raise ValueError(f"its centres have shape {shape}, its layers are {layers}")
        return {
            "harm": centres("harm"),
            "refusal": centres("refusal") if "refusal/positive" in tensors else None,
            "layers": None if layers is None else tuple(layers),
        }

    def __repr__(self) -> str:
        return (
            f"LatentGuard({self.fitted_on['model']}, prompts {(self.fitted_on.get('prompts') or {}).get('name')}, "
            f"ending {self.ending}, threshold {self.threshold:.4g})"
        )

    def _card(self) -> Card:
        about = self.fitted_on
        leak = about.get("leak_check", {}).get("last_token", {}).get("value")
        counts = [[name.replace("_", " "), n] for name, n in (about.get("counts") or {}).items()]
        layers = "all, averaged" if self.layers is None else ", ".join(map(str, self.layers))
        calibration = about.get("calibration")
        rule = (
            "as published"
            if calibration is None
            else f"at most {calibration['false_positive_rate']:.0%} of harmless"
        )
        return Card(
            title=f"Latent Guard for {about['model']}",
            facts={
                "fitted on": f"{(about.get('prompts') or {}).get('name')}, endings {self.ending}",
                "harmful when": f"harmfulness > {self.threshold:.3g} ({rule})",
                "layers": layers,
                "refusal belief": "yes"
                if self.refusal is not None
                else "no: too few prompts refused or answered",
                "leak of the last token": f"AUROC {leak:.2f}" if leak is not None else "not measured",
            },
            tables=[Table(header=["training prompts", "n"], rows=counts)],
        )
