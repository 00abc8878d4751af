"""A chat model with named sites to read and edit: `load`, `ChatModel`, sites.

Sites carry TransformerLens names, `blocks.{layer}.hook_{site}`:

    resid_pre --+--> attention --> attn_out --+--> mlp --> mlp_out --+--> resid_post
                +----------------------------(+) resid_mid ---------(+)

`attn_out` and `mlp_out` are the values added to the residual stream: where an architecture normalises a module's output
before adding it (Gemma 2 and 3, OLMo 2), they are the normalised output. No architecture is known by name. Blocks and
their parts are found by structure, and a forward pass of a few tokens checks that
resid_post = resid_pre + attn_out + mlp_out in every block; a model for which this fails is rejected.

    model = interp.load("smollm2-safe")
    model.n_layers, model.d_model          # 30, 576
    model.site("resid_pre", 12)            # 'blocks.12.hook_resid_pre'
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.display.cards import Card, Shown
from interp.models.architecture import Writer, find_blocks, find_writers
from interp.models.contexts import rotary_length, table_length
from interp.models.conversations import template_of, with_thinking
from interp.models.layers import Layers, check_layer, layer_list
from interp.models.loading import load_checkpoint
from interp.models.model_copies import boot_bridge, user_model
from interp.models.precision import Precision, usable_precision
from interp.models.prompt_frames import PromptFrame, dated, frame_of
from interp.models.residual_stream import runs_in_parallel
from interp.models.rotary import RotaryFrequencies
from interp.models.sites import SITES, Edit, Site, edited
from interp.models.sources import ModelSource, SourceFiles, adapter_digest, shown_adapter
from interp.models.threads import lock_of
from interp.models.weight_hashes import WeightHash, weight_states
from interp.storage.provenance import IN_MEMORY

__all__ = ["SITES", "ChatModel", "Edit", "Site", "load"]


class ChatModel(Shown):
    """A Hugging Face causal LM with its tokenizer and named sites.

    Args:
        hf: the model, which is never changed.
        tokenizer: a fast tokenizer, whose chat template is the prompt format.
        name: name in results.
        source: argument with which `load` loads it again; the name when None.
        chat_template: template passed to `load`, for provenance; None is the tokenizer's own.
        files: files that model and adapter were read from, for provenance.
        date: date that a template with a date shows, ISO 8601; today when None.
        thinking: whether the template has the model think before it answers, for provenance; None is its default.
        batch_size: prompts in one pass at most; None is what the device's memory allows.
        delta: file of a sparse change that was applied to the weights, for provenance.
        precision: of the engine's matrix products (`interp.models.precision`); `fast` is for float32 on the CPU.

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
        chat_template: str | None = None,
        files: SourceFiles | None = None,
        date: str | None = None,
        thinking: bool | None = None,
        batch_size: int | None = None,
        delta: str | None = None,
        precision: str = "exact",
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{name}: positions need character offsets, which only fast tokenizers give; "
                f"got {type(tokenizer).__name__}"
            )
        self.hf = hf.eval()
        self.tokenizer, self.date = dated(tokenizer, date)
        self.name = name
        self.revision = revision
        self.adapter = adapter
        self.source = source or name
        self.chat_template = chat_template
        # Held by passes that change how the whole model computes, so that passes in other threads wait.
        self.lock = lock_of(hf)
        self.blocks = find_blocks(hf, name)
        self.is_parallel = runs_in_parallel(hf, self.blocks, name)
        self.rotary = RotaryFrequencies(hf, self.decoder)
        self._positions = table_length(hf, self.blocks[0].module)
        self._weight_hash = WeightHash()
        self.thinking = thinking
        self.batch_size = batch_size
        self.delta = delta
        self.precision: Precision = usable_precision(precision, hf, name)
        # What `fast` costs on this model, once the engine has measured it (`interp.engine.precision_cost`).
        self.precision_cost: dict[str, float] | None = None
        self._files = files
        self._as_loaded = None if files is None else self._state()
        # Frames of directions that were warned of (`interp.models.prompt_frames`).
        self.strange_frames: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        adapter = f" + {shown}" if (shown := shown_adapter(self.name, self.adapter)) else ""
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
                "runs in": f"{str(self.dtype).removeprefix('torch.')} on {self.device}, {self.precision}",
                "architecture": type(self.hf).__name__,
                "sites": f"{self.site('resid_pre', 0)} … {self.site('mlp_out', self.n_layers - 1)}",
            },
        )

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding, which maps token ids to the input of the first block."""
        return self.hf.get_input_embeddings()  # pyright: ignore[reportReturnType]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.embedding.weight.shape[1]

    @property
    def d_vocab(self) -> int:
        """Number of rows of the input embedding; at least the number of tokens of the tokenizer."""
        return self.embedding.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the input embedding."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations."""
        return self.hf.dtype

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of a prompt with its completion; None for a model without a limit."""
        limits = [n for n in (self._positions, rotary_length(self.hf, self.rotary)) if n is not None]
        return min(limits, default=None)

    @property
    def decoder(self) -> nn.Module:
        """The model without its unembedding: called in the same way, it returns final hidden states."""
        return self.hf.base_model

    @property
    def normalises_attention(self) -> bool:
        """Whether a norm stands between attention and the residual stream, so that no head has an output there."""
        return any(block.attn_writer is not block.attention for block in self.blocks)

    @property
    def weights_hash(self) -> str:
        """SHA-256 over all current weights; unchanged tensors are not hashed again."""
        return self._weight_hash.of(self.hf)

    def _state(self) -> Any:
        return weight_states(self.hf), self.tokenizer.chat_template

    @property
    def files_hash(self) -> str:
        """SHA-256 of the files of model and adapter (of a commit's name, for those of the Hub); `in memory` once
        weights, chat template or files are not what they were when the model was loaded."""
        unchanged = self._files is not None and self._state() == self._as_loaded
        return (self._files.hash if unchanged and self._files else None) or IN_MEMORY

    @cached_property
    def template_hash(self) -> str | None:
        """SHA-256 of the chat template, and of its date where it shows one; None when the tokenizer has none."""
        if (template := self.tokenizer.chat_template) is None:
            return None
        return hashlib.sha256(f"{template}{self.date or ''}".encode()).hexdigest()

    @cached_property
    def prompt_frame(self) -> PromptFrame | None:
        """The rendered text around an instruction; None without a chat template."""
        return frame_of(self.tokenizer)

    @property
    def provenance(self) -> dict[str, Any]:
        """Fields that identify this model in a result."""
        return {
            "model": self.name,
            "revision": self.revision,
            "weights_hash": self.weights_hash,
            "files_hash": self.files_hash,
            "adapter": shown_adapter(self.name, self.adapter),
            "adapter_hash": adapter_digest(self.adapter),
            "delta": self.delta,
            "chat_template": self.chat_template,
            "thinking": self.thinking,
            "template_hash": self.template_hash,
            "prompt_frame": self.prompt_frame and tuple(self.prompt_frame),
            "date": self.date,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "precision": self.precision,
            "precision_cost": self.precision_cost,
        }

    def layer(self, layer: int, *, upper: int | None = None) -> int:
        """Resolve a possibly negative layer to 0..n_layers-1.

        Raises:
            ValueError: out of range.
        """
        last = self.n_layers if upper is None else upper
        return check_layer(layer, last, self.n_layers, of=self.name) % last

    def layer_list(self, layers: Layers, *, upper: int | None = None) -> tuple[int, ...]:
        """An int, a range, a list or None for all, as layers in 0..n_layers-1.

        Args:
            upper: number of layers, where it is not the number of blocks.

        Raises:
            ValueError: no layer, one that is not an integer, or one out of range.
        """
        return layer_list(layers, n_layers=self.n_layers if upper is None else upper, of=self.name)

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

        An edit that only reads returns None. Edits act only on passes of the thread that opened the context, so that
        steering in a background thread does not affect a notebook's cells. All hooks are removed when the context
        exits, also by an exception.
        """
        for site, layer, _ in edits:
            self.site(site, layer)
        with edited([(site, self.blocks[self.layer(layer)], edit) for site, layer, edit in edits]):
            yield

    @cached_property
    def writers(self) -> list[Writer]:
        """Every parameter that writes to the residual stream, biases included.

        Source: Arditi et al. 2024, arXiv:2406.11717, "weight orthogonalization": embeddings, attention output and
        MLP output matrices.

        Raises:
            ValueError: a norm or an unrecognised module writes to the residual stream.
        """
        return find_writers(self.decoder, self.blocks, self.d_model, self.name)

    @cached_property
    def bridge(self) -> Any:
        """A `TransformerBridge` over a second module tree that shares this model's parameters.

        Created on first use (TransformerLens takes seconds to import). Creating it rewrites the module tree and forces
        eager attention, so the bridge gets a tree of its own; tensors are shared, so memory does not double.
        """
        self._bridge_folder = tempfile.TemporaryDirectory(prefix="interp-tokenizer-")  # as long as this model
        folder = self._bridge_folder.name
        return boot_bridge(self.hf, self.tokenizer, name=self.name, device=self.device, folder=folder)


def load(
    name: str | Path | nn.Module = "smollm2-safe",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    chat_template: str | Path | None = None,
    date: str | None = None,
    thinking: bool | None = None,
    delta: str | Path | None = None,
    precision: Precision = "exact",
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load a chat model by bundled name, Hub id, folder or `.gguf` file, optionally with a PEFT adapter.

    Args:
        name: `smollm2`, `smollm2-safe`, `smollm2-form`, `owner/model`, `owner/model@revision`, a folder, a `.gguf`
            file, or a transformers model, which stays as it is: its weights are shared, not copied.
        tokenizer: of a model that is loaded already.
        adapter: PEFT folder or Hub id, merged into the weights; on top of the adapter that a bundled model has.
        revision: Hub branch, tag or commit.
        dtype: `float32`, `bfloat16` or `float16`; by default float32 on CPU and the checkpoint's own on GPU.
        device: by default CUDA if available, else CPU.
        chat_template: `plain` (each message on a line of its own) or a file with a Jinja template, for base models,
            whose tokenizers have none. With an adapter that has a template of its own, that is used by default.
        date: date that the chat template shows, where it shows one, such as `2026-01-31`; today when None.
        thinking: whether the model thinks before it answers; None leaves the template's own default.
        delta: file with a sparse change of exactly these weights, which proves itself by their hashes before and after.
        precision: `fast` multiplies a float32 model's matrices in bfloat16 where the CPU does that faster
            (`interp.models.precision`); what it costs on this model is measured at first use.
        trust_remote_code: run Python code from the checkpoint; off by default.

    Raises:
        ValueError: files, adapter or delta that cannot be read or do not fit; the message says how to fix it.
    """
    if isinstance(name, (str, Path)):
        if tokenizer is not None:
            raise ValueError("tokenizer= belongs to a model that is loaded already; a checkpoint has its own")
        source = ModelSource(
            str(name),
            adapter=adapter,
            revision=revision,
            dtype=None if dtype is None else str(dtype).removeprefix("torch."),
            device=None if device is None else str(device),
            chat_template=None if chat_template is None else str(chat_template),
            date=date,
            thinking=thinking,
            delta=None if delta is None else str(delta),
            precision=precision,
        )
        return load_source(source, trust_remote_code=trust_remote_code)
    given = {"adapter": adapter, "revision": revision, "dtype": dtype, "device": device, "delta": delta}
    copied = user_model(name, tokenizer, given, chat_template, thinking)
    return ChatModel(
        copied.hf,
        copied.tokenizer,
        name=copied.name,
        chat_template=None if chat_template is None else str(chat_template),
        date=date,
        thinking=thinking,
        precision=precision,
    )


def load_source(source: ModelSource, *, trust_remote_code: bool = False) -> ChatModel:
    """Load what a `ModelSource` names; raises as `load`."""
    source.check()  # a mistake in it is found before the model is loaded
    checkpoint = load_checkpoint(
        source.name,
        adapter=source.adapter,
        revision=source.revision,
        dtype=source.dtype,
        device=source.device,
        delta=source.delta,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = checkpoint.tokenizer
    if source.chat_template is not None:
        tokenizer.chat_template = template_of(tokenizer, source.chat_template)
    if source.thinking is not None:
        tokenizer.chat_template = with_thinking(tokenizer.chat_template, source.thinking)
    return ChatModel(
        checkpoint.hf,
        tokenizer,
        name=checkpoint.name,
        revision=checkpoint.revision,
        adapter=checkpoint.adapter,
        source=checkpoint.origin,
        chat_template=source.chat_template,
        files=checkpoint.files,
        date=source.date,
        thinking=source.thinking,
        batch_size=source.batch_size,
        delta=source.delta,
        precision=source.precision or "exact",
    )
