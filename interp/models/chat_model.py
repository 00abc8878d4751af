"""A chat model with named places to read and write: `load`, `ChatModel`, sites.

Sites carry TransformerLens names, `blocks.{layer}.hook_{site}`:

    resid_pre --+--> attention --> attn_out --+--> mlp --> mlp_out --+--> resid_post
                +----------------------------(+) resid_mid ---------(+)

`attn_out` and `mlp_out` are what is really added to the residual stream: where a family normalises a module's
output before adding it (Gemma 2 and 3, OLMo 2), they are the normalised output. No family is known by name. The
blocks and their parts are found by structure, and a forward pass of a few tokens proves that
resid_post = resid_pre + attn_out + mlp_out in every block; a model for which this fails is refused.

    model = interp.load("smollm2-safe")
    model.n_layers, model.d_model          # 30, 576
    model.site("resid_pre", 12)            # 'blocks.12.hook_resid_pre'
"""

import copy
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from threading import RLock, get_ident
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.display.cards import Card, Shown
from interp.models.loading import BUNDLED_MODELS, adapter_digest, load_checkpoint, merged_adapter

logger = logging.getLogger(__name__)

Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
SITES: tuple[Site, ...] = get_args(Site)

Edit = Callable[[Tensor], Tensor | None]
"""Sees a site's value, shape [batch, pos, d_model]; returns its replacement, or None to leave it."""

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "block_sparse_moe", "feed_forward")
_POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "w2")
_PROBE_TOKENS = 4


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
    """Axis of length d_model that lies along the residual stream."""


class ChatModel(Shown):
    """A Hugging Face causal LM with its tokenizer and named sites.

    Args:
        hf: the model; used as it is, never changed.
        tokenizer: a fast tokenizer, whose chat template is the prompt format.
        name: how results refer to it.
        source: what `load` takes to get it again; the name when None.

    Raises:
        ValueError: slow tokenizer, or a model whose blocks write to the residual stream in a way that the sites
            do not cover.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        revision: str | None = None,
        adapter: str | None = None,
        source: str | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{name}: positions need character offsets, which only fast tokenizers give; "
                f"got {type(tokenizer).__name__}"
            )
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.adapter = adapter
        self.source = source or name
        # Held by passes that change how the model as a whole computes, so that a pass in another thread waits.
        self.lock = RLock()
        self.blocks = _find_blocks(hf, name)
        self.d_model: int = hf.get_input_embeddings().weight.shape[1]  # pyright: ignore[reportAssignmentType, reportCallIssue, reportIndexIssue, reportAttributeAccessIssue]
        self.is_parallel = self._check_residual_stream()

    def __repr__(self) -> str:
        adapter = f" + {self.adapter}" if self.adapter and self.name not in BUNDLED_MODELS else ""
        size = f"{self.n_layers} layers, d_model {self.d_model}"
        return f"ChatModel({self.name}{adapter}: {size}, {self.dtype}, {self.device})"

    def _card(self) -> Card:
        return Card(
            title=f"ChatModel {self.name}",
            facts={
                "adapter": Path(self.adapter).name if self.adapter else "none",
                "layers": f"{self.n_layers}, counted from 0",
                "d_model": self.d_model,
                "parameters": f"{sum(p.numel() for p in self.hf.parameters()) / 1e6:,.1f} M",
                "runs in": f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
                "architecture": type(self.hf).__name__,
                "sites": f"{self.site('resid_pre', 0)} … {self.site('mlp_out', self.n_layers - 1)}",
            },
        )

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Device of the input embedding."""
        return self.hf.get_input_embeddings().weight.device  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations."""
        return self.hf.dtype

    @property
    def decoder(self) -> nn.Module:
        """The model without its unembedding: same call, returns final hidden states."""
        return self.hf.base_model

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over the name, shape, dtype and 1,024 evenly spaced values of every parameter.

        Cheap on any size, and any fine-tuning step changes it.
        """
        digest = hashlib.sha256()
        for name, parameter in self.hf.named_parameters():
            flat = parameter.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 1024)].to("cpu", torch.float32)
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def template_hash(self) -> str | None:
        """SHA-256 of the chat template; None when the tokenizer has none."""
        template = self.tokenizer.chat_template
        return None if template is None else hashlib.sha256(str(template).encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """What identifies this model in a result."""
        return {
            "model": self.name,
            "revision": self.revision,
            "weights_hash": self.weights_hash,
            "adapter": self.adapter if self.name not in BUNDLED_MODELS else None,
            "adapter_hash": adapter_digest(self.adapter),
            "template_hash": self.template_hash,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }

    def layer(self, layer: int, *, upper: int | None = None) -> int:
        """Resolve a possibly negative layer to 0..n_layers-1.

        Raises:
            ValueError: out of range.
        """
        n_layers = self.n_layers if upper is None else upper
        if not -n_layers <= layer < n_layers:
            raise ValueError(
                f"layer must be in 0..{n_layers - 1}, got {layer}; {self.name} has {self.n_layers} layers"
            )
        return layer % n_layers

    def site(self, site: Site, layer: int) -> str:
        """TransformerLens name of a site, e.g. `blocks.12.hook_resid_pre`.

        Raises:
            ValueError: unknown site, or `resid_mid` in a model whose attention and MLP run in parallel.
        """
        if site not in SITES:
            raise ValueError(f"unknown site {site!r}; known: {', '.join(SITES)}")
        if site == "resid_mid" and self.is_parallel:
            raise ValueError(f"{self.name} runs attention and MLP in parallel: it has no resid_mid")
        return f"blocks.{self.layer(layer)}.hook_{site}"

    @contextmanager
    def hooks(self, edits: list[tuple[Site, int, Edit]]) -> Iterator[None]:
        """Call each edit at its (site, layer) in every forward pass inside the context, in the order given.

        An edit that only reads returns None. Edits see the passes of the thread that made the context and no
        other's, so that answers steered in the background leave a notebook's cells alone. All hooks are gone when the
        context exits, also by an exception.
        """
        with ExitStack() as stack:
            for site, layer, edit in edits:
                self.site(site, layer)
                here = in_this_thread(edit, lambda _: None)
                for handle in self._register(site, self.blocks[self.layer(layer)], here):
                    stack.callback(handle.remove)
            yield

    def _register(self, site: Site, block: Block, edit: Edit) -> list[Any]:
        after = partial(_edit_output, edit)
        if site == "resid_pre":
            return [block.module.register_forward_pre_hook(partial(_edit_input, edit), with_kwargs=True)]
        if site == "resid_post":
            return [block.module.register_forward_hook(after)]
        if site == "attn_out":
            return [block.attn_writer.register_forward_hook(after)]
        if site == "mlp_out":
            return [block.mlp_writer.register_forward_hook(after)]
        # resid_mid exists in no module's signature that all families share. It is resid_pre + attn_out, so an edit
        # of it is an edit of attn_out: new attn_out = edit(mid) - resid_pre.
        entering: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering[:] = [args[0] if args else kwargs["hidden_states"]]

        def through_attention(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            def on_mid(attn_out: Tensor) -> Tensor | None:
                new = edit(entering[0] + attn_out)
                return None if new is None else new - entering[0]

            return _edit_output(on_mid, module, args, output)

        return [
            block.module.register_forward_pre_hook(keep, with_kwargs=True),
            block.attn_writer.register_forward_hook(through_attention),
        ]

    # no_grad, not inference_mode: a buffer that a model makes in its first pass must be usable in training.
    @torch.no_grad()
    def _check_residual_stream(self) -> bool:
        """Prove the residual identity in every block; return whether attention and MLP run in parallel."""
        seen: dict[tuple[str, int], Tensor] = {}
        kind = f"{type(self.hf).__name__} ({self.name})"

        def keep(place: tuple[Site, int], value: Tensor) -> None:
            seen[place] = value.detach().float()

        def read(site: Site, layer: int) -> tuple[Site, int, Edit]:
            return site, layer, partial(keep, (site, layer))

        vocabulary = self.hf.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue, reportCallIssue]
        ids = torch.arange(1, _PROBE_TOKENS + 1, device=self.device)[None] * 97 % vocabulary  # pyright: ignore[reportOperatorIssue]
        self.is_parallel = False
        sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        with self.hooks([read(site, layer) for layer in range(self.n_layers) for site in sites]):
            self.decoder(ids, use_cache=False)
        tolerance = 1e-3 if self.dtype == torch.float32 else 3e-2
        for layer in range(self.n_layers):
            if any((site, layer) not in seen for site in sites):
                raise ValueError(
                    f"{kind}: attention or MLP of block {layer} never ran; interp does not cover it"
                )
            pre, attn, mlp, post = (seen[site, layer] for site in sites)
            if pre.shape != attn.shape or pre.shape != mlp.shape:
                raise ValueError(f"{kind}: outputs of block {layer} do not have the residual stream's shape")
            gap = ((pre + attn + mlp - post).norm() / (post - pre).norm()).item()
            if not gap < tolerance:
                raise ValueError(
                    f"{kind}: block {layer} does not add attention and MLP output to the residual stream as they are "
                    f"(relative gap {gap:.2g}); interp only covers models where "
                    "resid_post = resid_pre + attn_out + mlp_out"
                )
        # Parallel blocks: the MLP does not see the attention's output.
        with_attention = seen["mlp_out", 0]
        with self.hooks([("attn_out", 0, lambda value: value * 3.0), read("mlp_out", 0)]):
            self.decoder(ids, use_cache=False)
        return bool(torch.allclose(with_attention, seen["mlp_out", 0], rtol=1e-6, atol=0.0))

    @cached_property
    def writers(self) -> list[Writer]:
        """Every parameter that writes to the residual stream, biases included.

        Source: Arditi et al. 2024, arXiv:2406.11717, "weight orthogonalization": embeddings, attention output and
        MLP output matrices.

        Raises:
            ValueError: the stream is written through a norm or by a module that is not recognised.
        """
        found = [
            Writer(module, "weight", 1)
            for module in self.decoder.modules()
            if isinstance(module, nn.Embedding) and module.embedding_dim == self.d_model
        ]
        for number, block in enumerate(self.blocks):
            if block.attn_writer is not block.attention or block.mlp_writer is not block.mlp:
                raise ValueError(
                    f"{self.name} normalises attention and MLP outputs before adding them to the residual stream, so "
                    "no weight edit equals the ablation; use the hooks"
                )
            for part, label in ((block.attention, "attention"), (block.mlp, "MLP")):
                writers = self._projections(part)
                if not writers:
                    raise ValueError(
                        f"{self.name}: no output projection found in the {label} of block {number}"
                    )
                found += writers
        return found

    def _projections(self, part: nn.Module) -> list[Writer]:
        found = []
        for name, child in part.named_modules():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in _PROJECTIONS and isinstance(getattr(child, "weight", None), Tensor):
                weight: Tensor = child.weight  # pyright: ignore[reportAssignmentType]
                # Conv1D of GPT-2 stores [d_in, d_out], Linear [d_out, d_in].
                found.append(Writer(child, "weight", 0 if isinstance(child, nn.Linear) else weight.ndim - 1))
                if isinstance(getattr(child, "bias", None), Tensor):
                    found.append(Writer(child, "bias", 0))
            elif isinstance(getattr(child, "down_proj", None), nn.Parameter):  # stacked experts
                found.append(Writer(child, "down_proj", 1))
        return found

    @cached_property
    def bridge(self) -> Any:
        """A `TransformerBridge` over a second module tree that shares this model's parameters.

        Booted at first use (TransformerLens takes seconds to import). Booting rewrites the tree that it is given and
        forces eager attention, which is why it gets its own; tensors are shared, so memory does not double.
        """
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        shared = {id(t): t for t in (*self.hf.parameters(), *self.hf.buffers())}
        twin = copy.deepcopy(self.hf, memo=shared)  # pyright: ignore[reportArgumentType]
        # The bridge edits the tokenizer it is given, and loads it again from where it came: hand it one of its own, in
        # a folder that lives as long as this model.
        self._bridge_folder = tempfile.TemporaryDirectory(prefix="interp-tokenizer-")
        self.tokenizer.save_pretrained(self._bridge_folder.name)
        tokenizer = AutoTokenizer.from_pretrained(self._bridge_folder.name)
        return TransformerBridge.boot_transformers(
            self.name, hf_model=twin, tokenizer=tokenizer, dtype=self.dtype, device=str(self.device)
        )


def load(
    name: str = "smollm2-safe",
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load a chat model by bundled name, Hub id, folder or `.gguf` file, optionally with a PEFT adapter.

    Args:
        name: `smollm2`, `smollm2-safe`, `owner/model`, a folder, or a `.gguf` file.
        adapter: PEFT folder or Hub id, merged into the weights.
        revision: Hub branch, tag or commit.
        dtype: float32 on CPU and the checkpoint's own on GPU unless given.
        device: CUDA when there is one, else CPU, unless given.
        trust_remote_code: run Python code that the checkpoint brings. Off unless asked for.

    Raises:
        ValueError: the name cannot be resolved, the files cannot be read, the adapter belongs to another model, or
            the architecture is not covered; the message says how to mend it.
    """
    found = load_checkpoint(
        str(name),
        adapter=adapter,
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    return ChatModel(
        found.hf,
        found.tokenizer,
        name=found.name,
        revision=found.revision,
        adapter=found.adapter,
        source=str(Path(name).resolve()) if name not in BUNDLED_MODELS and Path(name).exists() else name,
    )


@contextmanager
def with_adapter(model: ChatModel, adapter: str) -> Iterator[ChatModel]:
    """The model with a PEFT adapter merged in, on the same weights in memory; `model` itself again afterwards.

    Raises:
        ValueError: no such adapter, unreadable, or made for another model.
    """
    with merged_adapter(model.hf, str(adapter), shown=model.name):
        yield ChatModel(
            model.hf,
            model.tokenizer,
            name=model.name,
            revision=model.revision,
            adapter=str(adapter),
            source=model.source,
        )


def _edit_input(edit: Edit, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        new = edit(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    new = edit(kwargs["hidden_states"])
    return None if new is None else (args, {**kwargs, "hidden_states": new})


def _edit_output(edit: Edit, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    value = output[0] if isinstance(output, tuple) else output
    new = edit(value)
    if new is None:
        return None
    return (new, *output[1:]) if isinstance(output, tuple) else new


def in_this_thread(here: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """What calls `here` in the thread that made it and `elsewhere` in every other."""
    owner = get_ident()
    return lambda *args, **options: (here if get_ident() == owner else elsewhere)(*args, **options)


def _find_blocks(hf: PreTrainedModel, name: str) -> list[Block]:
    n_layers = hf.config.get_text_config().num_hidden_layers
    kind = f"{type(hf).__name__} ({name})"
    for module in hf.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            blocks = [_block(child) for child in module]
            if all(blocks):
                return [block for block in blocks if block]
    raise ValueError(
        f"{kind}: no list of {n_layers} decoder blocks, each with an attention ({', '.join(_ATTENTION)}) and an MLP "
        f"({', '.join(_MLP)}); interp does not cover this architecture"
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
