"""One intervention expressed as an edit of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from interp.engine.applying import layers_of, prepare
from interp.engine.interventions import Ablate, Add, new_token_limit, without_direction
from interp.models.architecture import Writer
from interp.models.chat_model import ChatModel


@contextmanager
def edited_weights(model: ChatModel, intervention: Ablate | Add) -> Iterator[None]:
    """Express one intervention as an edit of the weights, for as long as the context lasts.

    Ablation: W <- W - u (u^T W) for every matrix that writes to the residual stream, biases alike (weight
    orthogonalization). Addition at layer l: c v is added to the bias of the MLP output of block l - 1. The edited
    parameters are new tensors and the original ones are put back afterwards, so restoration is exact; with tied
    embeddings only the input embedding is edited. `model.bridge` shares the original tensors and does not see the edit.

    Source: Arditi et al. 2024, arXiv:2406.11717, "weight orthogonalization".

    Raises:
        ValueError: an intervention that is not on all layers (ablation), all positions and all generated tokens; a
            model that writes to its stream through a norm, or not only by the matrices known here.
    """
    if intervention.positions != "all" or new_token_limit(intervention) is not None:
        raise ValueError("a weight edit acts at every position and step; use hooks for a limited one")
    intervention = prepare(model, intervention)
    if isinstance(intervention, Ablate):
        if intervention.layers is not None or set(intervention.sites) != {"resid_pre", "attn_out", "mlp_out"}:
            raise ValueError(
                "weight orthogonalisation acts at every layer and site; use hooks for chosen ones"
            )
        changes = [(w, _orthogonalised(w, intervention.direction)) for w in model.writers]
    else:
        changes = [_bias_change(model, intervention, layer) for layer in layers_of(model, intervention)]
    originals = [(w.module, w.parameter, getattr(w.module, w.parameter)) for w, _ in changes]
    try:
        for writer, value in changes:
            setattr(writer.module, writer.parameter, nn.Parameter(value, requires_grad=False))
        if isinstance(intervention, Ablate):
            _check_orthogonal(model, intervention.direction)
        yield
    finally:
        for module, name, old in originals:
            setattr(module, name, old)


def _orthogonalised(writer: Writer, u: Float[Tensor, " d_model"]) -> Tensor:
    weight = getattr(writer.module, writer.parameter).detach()
    return (
        without_direction(weight.movedim(writer.axis, -1), u.to(weight)).movedim(-1, writer.axis).contiguous()
    )


def _bias_change(model: ChatModel, addition: Add, layer: int) -> tuple[Writer, Tensor]:
    if addition.sites != ("resid_pre",):
        raise ValueError("only an addition at resid_pre can be a bias; use hooks")
    if layer == 0:
        raise ValueError("layer 0 reads the embedding, which no block's bias reaches; use hooks")
    inside = {id(module) for module in model.blocks[layer - 1].mlp.modules()}
    last = [w.module for w in model.writers if w.parameter == "weight" and id(w.module) in inside]
    if len(last) != 1 or not hasattr(last[0], "bias"):
        raise ValueError(
            f"the MLP of block {layer - 1} of {model.name} has no single output projection with a bias"
        )
    update = (addition.coefficient * addition.direction).to(last[0].weight)  # pyright: ignore[reportArgumentType, reportCallIssue]
    bias = last[0].bias
    return Writer(last[0], "bias", 0), update if bias is None else bias.detach() + update  # pyright: ignore[reportOperatorIssue, reportReturnType, reportCallIssue]


@torch.inference_mode()
def _check_orthogonal(model: ChatModel, u: Float[Tensor, " d_model"]) -> None:
    relative_sizes: list[float] = []

    def read(value: Tensor) -> None:
        along = einsum(value.float(), u.float(), "batch pos d_model, d_model -> batch pos")
        relative_sizes.append((along.abs().max() / value.float().norm(dim=-1).max()).item())

    with model.hooks([("resid_post", layer, read) for layer in range(model.n_layers)]):
        model.decoder(torch.arange(1, 5, device=model.device)[None], use_cache=False)
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    if max(relative_sizes) > tolerance:
        raise ValueError(
            f"editing the known weights of {model.name} leaves the direction in its residual stream (relative size "
            f"{max(relative_sizes):.1g}): something else writes there; use hooks"
        )
