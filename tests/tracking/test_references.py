"""The reference: layers by separation, and read back as it was kept."""

from pathlib import Path

import torch

from interp.models.chat_model import ChatModel
from interp.storage.stages import StageCache
from interp.tracking.references import best_layer, fit_reference, keep_reference
from interp.tracking.spec import Reference, TrackingSpec


def test_layers_are_chosen_by_separation() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(40, 6, 8, generator=generator) for _ in range(2))
    positive[:, 3, 0] += 4.0
    directions = positive.mean(0) - negative.mean(0)
    assert best_layer(directions, positive, negative) == 3


def test_a_kept_reference_is_read_back_as_it_was_fitted(
    tiny: ChatModel, spec: TrackingSpec, tmp_path: Path
) -> None:
    cache, fitted = StageCache(tmp_path / "parts", spec.key), []

    def fit() -> Reference:
        fitted.append(fit_reference(tiny, spec))
        return fitted[-1]

    kept, again = (keep_reference(cache, "reference", fit) for _ in range(2))
    assert len(fitted) == 1
    for reference in (kept, again):
        assert reference.facts == fitted[0].facts and reference.axes == fitted[0].axes
        assert reference.model == fitted[0].model and reference.samples == fitted[0].samples
        assert reference.tensors.keys() == fitted[0].tensors.keys()
        for name, tensor in fitted[0].tensors.items():
            assert torch.equal(reference.tensors[name], tensor), name
    assert {"harm/positive", "train/harmfulness", "bits/prose", "log_probs/harmful"} <= kept.tensors.keys()
