"""Every tensor of a GGUF file against the model that was loaded from it.

transformers drops tensors for which it has no parameter, and leaves parameters for which there is no tensor at random
numbers; both are refused here, and the values of all others are compared with the file's.
"""

from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor that divides the frequencies of the rotation; part of the configuration, not a parameter."""


def rope_factors(tensors: Sequence[gguf.ReaderTensor]) -> np.ndarray | None:
    """Values of `rope_freqs.weight`; None where the file has none."""
    for tensor in tensors:
        if tensor.name == ROPE_FACTORS:
            return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64).reshape(-1)
    return None


def check_tensors(
    tensors: Sequence[gguf.ReaderTensor], architecture: str, settings: dict[str, Any], hf: PreTrainedModel
) -> None:
    """Check that the model has every tensor of the file, with the file's values.

    Args:
        settings: what transformers reads from the file, which its conversion of the tensors depends on.

    Raises:
        ValueError: tensors that the model has no place for, values that are not finite, or other values in the model.
    """
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=settings)
    places = get_gguf_hf_weights_map(hf, processor)
    unused = sorted(tensor.name for tensor in tensors if tensor.name not in {*places, ROPE_FACTORS})
    if unused:
        raise ValueError(
            f"{len(unused)} tensors have no place in {type(hf).__name__}, first {unused[0]}, and would be left out"
        )
    weights = hf.state_dict()
    several: dict[str, dict[str, Tensor]] = {"tensors": {}}
    for tensor in tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if not np.isfinite(values).all():
            raise ValueError(f"{tensor.name} holds NaN or infinite values; download the file again")
        converted = processor.process(
            weights=values,
            name=tensor.name,
            tensor_key_mapping=places,
            parsed_parameters=several,
        )
        if converted.name in places:
            _compare(
                tensor.name, places[converted.name], torch.from_numpy(np.copy(converted.weights)), weights
            )
    for place, value in several["tensors"].items():  # written by several tensors, such as stacked experts
        _compare(place, place, value, weights)


def _compare(name: str, place: str, value: Tensor, weights: dict[str, Tensor]) -> None:
    loaded = weights.get(place)
    if loaded is None or loaded.shape != value.shape or not torch.equal(loaded.float(), value.float()):
        raise ValueError(
            f"the values of {name} are not those of {place} in the model that transformers made of it"
        )
