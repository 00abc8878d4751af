"""One intervention expressed as an edit of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from interp.engine.applying import apply, layers_of, prepare
from interp.engine.interventions import Ablate, Add, new_token_limit, without_direction
from interp.models.architecture import Writer
from interp.models.chat_model import ChatModel
from interp.models.logit_checks import explained_by_rounding, probe_logits, probe_tokens, relative_difference
from interp.models.snapshots import Snapshot


@contextmanager
def edited_weights(model: ChatModel, intervention: Ablate | Add) -> Iterator[None]:
    """Express one intervention as an edit of the weights, for as long as the context lasts.

    Ablation: W <- W - u (u^T W) for every matrix that writes to the residual stream, biases alike (weight
    orthogonalization). Addition at layer l: c v is added to the bias of the MLP output of block l - 1. The edited
    parameters are new tensors and the original ones are put back afterwards, so restoration is exact; with tied
    embeddings only the input embedding is edited. Before the context begins, the edit is compared with the hooks on the
    logits of a few tokens, and refused where they differ beyond rounding. `model.bridge` shares the original tensors
    and does not see the edit.

    Source: Arditi et al. 2024, arXiv:2406.11717, "weight orthogonalization".

    Raises:
        ValueError: an intervention that is not on all layers (ablation), all positions and all generated tokens; a
            model that writes to its stream through a norm, by quantised weights, or not only by the matrices known
            here.
    """
    if intervention.positions != "all" or new_token_limit(intervention) is not None:
        raise ValueError("a weight edit acts at every position and step; use hooks for a limited one")
    _check_expressible(model, intervention)
    with model.lock:
        _check_against_hooks(model, intervention)
    with _edited(model, prepare(model, intervention)):
        yield


def _check_expressible(model: ChatModel, intervention: Ablate | Add) -> None:
    if getattr(model.hf, "hf_quantizer", None) is not None:
        raise ValueError(
            f"{model.name} is quantised, so its weights cannot be edited exactly; load it unquantised, or use hooks"
        )
    if isinstance(intervention, Ablate) and (
        intervention.layers is not None or set(intervention.sites) != {"resid_pre", "attn_out", "mlp_out"}
    ):
        raise ValueError("weight orthogonalisation acts at every layer and site; use hooks for chosen ones")


@contextmanager
def _edited(model: ChatModel, intervention: Ablate | Add) -> Iterator[None]:
    if isinstance(intervention, Ablate):
        changes = [(w, _orthogonalised(w, intervention.direction)) for w in model.writers]
    else:
        changes = [_bias_change(model, intervention, layer) for layer in layers_of(model, intervention)]
    originals = [(w.module, w.parameter, getattr(w.module, w.parameter)) for w, _ in changes]
    try:
        for writer, value in changes:
            setattr(writer.module, writer.parameter, nn.Parameter(value, requires_grad=False))
        yield
    finally:
        for module, name, old in originals:
            setattr(module, name, old)


def _check_against_hooks(model: ChatModel, intervention: Ablate | Add) -> None:
    """Compare the edited weights with the hooks on the logits of a few tokens.

    Half-precision models are compared in float32, where memory allows, so that a small part that the edit misses does
    not pass for rounding.
    """
    before = Snapshot(model.hf)
    try:
        if before.is_half and before.is_plain and before.fits_in_float32():
            before.work_on_copies(in_float32=True)
        ids, prepared = probe_tokens(model.hf), prepare(model, intervention)
        with _edited(model, prepared):
            edited = probe_logits(model.hf, ids)
        with apply(model, [intervention]):
            hooked = probe_logits(model.hf, ids)
        gap = relative_difference(edited, hooked)
        same = explained_by_rounding(gap, model.hf, ids)
    finally:
        before.restore_weights()
    if not same:
        raise ValueError(
            f"editing the known weights of {model.name} is not what the hooks compute: logits differ by {gap:.2g} of "
            "their size, so something else writes to its residual stream (a norm after the embedding, a module that "
            "was not recognised); use hooks"
        )


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
