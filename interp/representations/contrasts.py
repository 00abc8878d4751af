"""Directions of any contrast, with how well they separate prompts that they were not fitted on.

    fitted = fit_direction(model, polite, rude, held_out=(more_polite, more_rude), position="t_post_inst")
    fitted.direction, fitted.auroc

A high AUROC says that the contrast can be read off there, not that the model uses it: that takes an intervention, with
a random direction as control. Sets that differ in length, topic or ending are separated by that as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interp.directions import Direction, check_difference, difference_in_means, mean_norm, project
from interp.engine.activations import collect
from interp.models.chat_model import ChatModel
from interp.models.tokens import PromptInput, as_tokens
from interp.stats import Estimate, auroc
from interp.storage.provenance import library_versions


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedDirection:
    """A direction and its AUROC on held-out prompts."""

    direction: Direction
    """Difference in means, positive minus negative."""
    auroc: Estimate
    """AUROC of held-out positive against negative prompts by their projection on the direction; 0.5 is chance."""
    n_held_out: tuple[int, int]
    """Number of held-out positive and negative prompts."""


def fit_directions(
    model: ChatModel,
    positive: PromptInput,
    negative: PromptInput,
    *,
    held_out: tuple[PromptInput, PromptInput],
    layer: int | None = None,
    positions: tuple[str, ...] = ("t_post_inst",),
    sign: str = "positive - negative",
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, FittedDirection]:
    """Differences in means at one layer, one for each token role, by role.

    Source: Arditi et al. 2024, arXiv:2406.11717, section 2.3, for any two sets of prompts.

    Args:
        held_out: positive and negative prompts that the directions are not fitted on.
        layer: layer whose `resid_pre` is read; at three fifths of the depth when None.
        positions: token roles to read.
        sign: names of the two sets.
        provenance: further facts to store with the directions.
        seed: seed of the bootstrap of the AUROC's interval.
        show_progress: draw a progress bar.

    Raises:
        ValueError: a layer out of range, an unknown role, no prompts on one side, or sides that do not differ.
    """
    selected = model.layer(3 * model.n_layers // 5 if layer is None else layer)
    parts = [as_tokens(model.tokenizer, prompts) for prompts in (positive, negative, *held_out)]
    # One pass over all four lists, which share a template and often more.
    together = parts[0].joined(parts[1]).joined(parts[2]).joined(parts[3])
    acts = collect(model, together, layers=selected, positions=positions, show_progress=show_progress)
    fit_positive, fit_negative, test_positive, test_negative = (
        acts["resid_pre"][:, 0].float().split([len(part) for part in parts])
    )
    about = {
        **model.provenance,
        **dict(provenance or {}),
        "fitted_on": {
            name: part.identity.provenance
            for name, part in zip(("positive", "negative"), parts, strict=False)
        },
        "versions": library_versions(),
    }
    vectors = difference_in_means(fit_positive, fit_negative)
    norms = mean_norm(torch.cat([fit_positive, fit_negative]))
    fitted: dict[str, FittedDirection] = {}
    for k, role in enumerate(acts.roles):
        check_difference(vectors[k], norms[k].item(), f"layer {selected}, {role}")
        scores = [project(side[:, k], vectors[k]) for side in (test_positive, test_negative)]
        estimate = auroc(scores[0], scores[1], seed=seed)
        direction = Direction(
            vector=vectors[k],
            layer=selected,
            position=role,
            sign=sign,
            mean_activation_norm=norms[k].item(),
            provenance={
                **about,
                "held_out_auroc": {
                    "value": estimate.value,
                    "n": estimate.n,
                    "low": estimate.low,
                    "high": estimate.high,
                },
            },
        )
        fitted[role] = FittedDirection(
            direction=direction, auroc=estimate, n_held_out=(len(scores[0]), len(scores[1]))
        )
    return fitted
