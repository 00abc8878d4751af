"""Hidden states that vLLM wrote (`extract_hidden_states` with its example connector), as arrays.

A file holds `hidden_states` [token, layer, d_model] and `token_ids` [token] of one request. Which layers it has is said
in vLLM's settings (`eagle_aux_hidden_state_layer_ids`) and not in the file: layer l there is the residual stream before
block l, our `resid_pre` of l. A request whose prefill was cut into parts leaves a file for each part.

vLLM rounds by its own kernels, so that its states are never served for our passes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.storage.paths import expanded


class HiddenStates(NamedTuple):
    """Hidden states of one request."""

    tokens: tuple[int, ...]
    """Token ids."""
    values: Float[Tensor, "pos layer d_model"]
    """`resid_pre`, in the dtype of the file."""
    layers: tuple[int, ...]
    """What the layer axis counts."""


def read_vllm_states(path: str | Path, layers: Sequence[int]) -> HiddenStates:
    """The hidden states in a file of vLLM.

    Args:
        layers: the `eagle_aux_hidden_state_layer_ids` that vLLM was given.

    Raises:
        ValueError: no such file, not one of vLLM's, damaged, or of another number of layers.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no such file of hidden states: {path}")
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file or is damaged ({error})") from error
    if not {"hidden_states", "token_ids"} <= tensors.keys():
        raise ValueError(
            f"{path} holds {', '.join(tensors) or 'nothing'}; a file of vLLM holds hidden_states and token_ids"
        )
    values, tokens = tensors["hidden_states"], tensors["token_ids"].flatten()
    if values.ndim != 3 or values.shape[:2] != (len(tokens), len(layers)):
        raise ValueError(
            f"{path} has hidden_states of shape {list(values.shape)} for {len(tokens)} tokens and {len(layers)} "
            "layers; give the layer ids that vLLM was given"
        )
    return HiddenStates(tuple(tokens.tolist()), values, tuple(layers))
