"""A model's decoder blocks and the parameters that write to its residual stream, found by structure.

No architecture is known by name: the blocks are the only module list of the length given by the configuration, each
with an attention and an MLP among its children. `interp.models.residual_stream` checks the result.
"""

from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "block_sparse_moe", "feed_forward")
_POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
_RECURRENT = ("mamba", "ssm", "conv", "linear_attn", "recurrent", "temporal_block")
"""Names of a block's modules that mix tokens by other means than attention."""
_RECURRENT_CLASSES = ("mamba", "delta", "lightning", "recurrent", "retention", "rwkv")
"""Parts of the names of such modules' classes."""
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "w2")


class Block(NamedTuple):
    """One decoder block and the modules whose outputs it adds to the residual stream."""

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    attn_writer: nn.Module
    """Module whose output is `attn_out`: the attention, or the norm after it."""
    mlp_writer: nn.Module


class Writer(NamedTuple):
    """A parameter that writes to the residual stream."""

    module: nn.Module
    parameter: str
    axis: int
    """Axis of length d_model, along the residual stream."""


def find_blocks(hf: PreTrainedModel, name: str) -> list[Block]:
    """The decoder blocks, first to last.

    Raises:
        ValueError: no module list of the configured length whose blocks have an attention and an MLP, or blocks that
            mix tokens by other means.
    """
    n_layers = hf.config.get_text_config().num_hidden_layers
    _check_not_hybrid(hf, n_layers, name)
    for module in hf.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers > 0:
            blocks = [_block(child) for child in module]
            if all(blocks):
                return [block for block in blocks if block]
    raise ValueError(
        f"{type(hf).__name__} ({name}): no list of {n_layers} decoder blocks, each with an attention "
        f"({', '.join(_ATTENTION)}) and an MLP ({', '.join(_MLP)}); interp does not cover this architecture"
    )


def _check_not_hybrid(hf: PreTrainedModel, n_layers: int, name: str) -> None:
    for module in hf.modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        for number, block in enumerate(module):
            for child, part in block.named_children():
                kind = type(part).__name__.lower()
                if child in _RECURRENT or (
                    any(word in kind for word in _RECURRENT_CLASSES) and "norm" not in kind
                ):
                    raise ValueError(
                        f"{type(hf).__name__} ({name}): block {number} mixes tokens by {child} "
                        f"({type(part).__name__}); interp covers blocks of attention and MLP, not hybrid or recurrent "
                        "architectures"
                    )


def _block(module: nn.Module) -> Block | None:
    children = dict(module.named_children())
    attention = next((children[key] for key in _ATTENTION if key in children), None)
    mlp = next((children[key] for key in _MLP if key in children), None)
    if attention is None or mlp is None:
        return None
    for after_attention, after_mlp in _POST_NORMS:
        if after_attention in children and after_mlp in children:
            return Block(module, attention, mlp, children[after_attention], children[after_mlp])
    return Block(module, attention, mlp, attention, mlp)


def find_writers(decoder: nn.Module, blocks: list[Block], d_model: int, name: str) -> list[Writer]:
    """Every parameter that writes to the residual stream, biases included.

    Raises:
        ValueError: the stream is written through a norm, by quantised weights or by a module that is not recognised.
    """
    writers = [
        Writer(module, "weight", 1)
        for module in decoder.modules()
        if isinstance(module, nn.Embedding) and module.embedding_dim == d_model
    ]
    for number, block in enumerate(blocks):
        if block.attn_writer is not block.attention or block.mlp_writer is not block.mlp:
            raise ValueError(
                f"{name} normalises attention and MLP outputs before adding them to the residual stream, so "
                "no weight edit equals the ablation; use the hooks"
            )
        for part, label in ((block.attention, "attention"), (block.mlp, "MLP")):
            projections = _output_projections(part, d_model)
            if not projections:
                raise ValueError(f"{name}: no output projection found in the {label} of block {number}")
            writers += projections
    for writer in writers:
        _check_writer(writer, d_model, name)
    return writers


def _check_writer(writer: Writer, d_model: int, name: str) -> None:
    weight: Tensor = getattr(writer.module, writer.parameter)
    what = f"{writer.parameter} of {type(writer.module).__name__} in {name}"
    if not weight.is_floating_point() or weight.dtype.itemsize < 2 or type(weight) is not nn.Parameter:
        raise ValueError(
            f"{what} is stored quantised ({type(weight).__name__}, {str(weight.dtype).removeprefix('torch.')}), so it "
            "cannot be edited exactly; load the model unquantised, or use the hooks"
        )
    if weight.shape[writer.axis] != d_model:
        raise ValueError(
            f"{what} has the shape {list(weight.shape)}, without an axis of d_model {d_model} where it writes to the "
            "residual stream; use the hooks"
        )


def _output_projections(part: nn.Module, d_model: int) -> list[Writer]:
    writers = []
    for name, child in part.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in _PROJECTIONS and isinstance(getattr(child, "weight", None), Tensor):
            weight: Tensor = child.weight  # pyright: ignore[reportAssignmentType]
            # Conv1D of GPT-2 stores [d_in, d_out], Linear [d_out, d_in].
            writers.append(Writer(child, "weight", 0 if isinstance(child, nn.Linear) else weight.ndim - 1))
            if isinstance(getattr(child, "bias", None), Tensor):
                writers.append(Writer(child, "bias", 0))
        elif isinstance(getattr(child, "down_proj", None), nn.Parameter):  # stacked experts
            writers.append(Writer(child, "down_proj", _axis_of_experts(child, d_model)))
            if isinstance(getattr(child, "down_proj_bias", None), nn.Parameter):
                writers.append(Writer(child, "down_proj_bias", 1))
    return writers


def _axis_of_experts(experts: nn.Module, d_model: int) -> int:
    """Axis of d_model in stacked output matrices: 1 in [expert, d_model, d_mlp], 2 where they are stored transposed.

    The input matrices are stored in the same order and are twice as wide inside, which tells the two apart where
    d_mlp = d_model.
    """
    shape, into = tuple(experts.down_proj.shape), getattr(experts, "gate_up_proj", None)  # pyright: ignore
    if shape[1] == shape[2] and isinstance(into, nn.Parameter):
        return 2 if into.shape[1] == d_model else 1
    return 1 if shape[1] == d_model else 2
