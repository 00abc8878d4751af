"""Models as files that other tools load: as they are, without a direction, or a rank-one PEFT adapter that removes it.

    save_model(model, "as-it-is")
    save_ablated_model(model, direction, "no-refusal")        # AutoModelForCausalLM.from_pretrained("no-refusal")
    save_ablation_adapter(model, direction, "adapter")        # PeftModel.from_pretrained(base, "adapter")

The latter two subtract u (u^T W) from every matrix W that writes to the residual stream, embeddings included (Arditi
et al. 2024, arXiv:2406.11717, "weight orthogonalization"). In the model the difference is in the weights, and
embeddings that were tied are stored apart, since only the input embedding changes. In the adapter it is the product of
B = -u and A = u^T W, which is exact at rank one. What was written is loaded again. An ablation's logits on a few tokens
are compared with those under hooks, and a whole model's weights with those in memory: a difference is an error, and
nothing is left behind.
"""

import copy
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from interp.directions import Direction, unit
from interp.engine.applying import apply, prepare
from interp.engine.interventions import Ablate
from interp.engine.weight_edits import edited_weights
from interp.models.architecture import Writer
from interp.models.chat_model import ChatModel
from interp.models.loading import load_checkpoint
from interp.models.logit_checks import probe_logits, probe_tokens, relative_difference, tolerance_of
from interp.models.model_copies import shared_copy
from interp.models.snapshots import Snapshot
from interp.models.weight_hashes import WeightHash
from interp.storage.atomic_files import write_tensors
from interp.storage.direction_files import DirectionInput, as_direction
from interp.storage.paths import expanded
from interp.storage.provenance import library_versions
from interp.storage.run_folders import replacing_folder

RECORD = "interp_export.json"
"""File in an exported folder: direction, model, and how far its logits are from those under hooks."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written folder."""

    folder: Path
    """Where it is."""
    difference: float
    """Size of the difference between its logits and those under hooks, relative to the latter."""
    tolerance: float
    """Largest difference that counts as rounding in this dtype."""
    n_matrices: int
    """Number of parameters that the ablation changes."""
    notes: tuple[str, ...] = ()
    """What a user of the folder has to know."""


@torch.no_grad()
def save_ablated_model(model: ChatModel, direction: DirectionInput, folder: str | Path) -> Exported:
    """Write the model with a direction removed from its weights, and its tokenizer, as a folder for transformers.

    Weights are stored in the dtype that the model was loaded in. The proof loads them once more beside the model.

    Raises:
        ValueError: a folder that is not empty, too little space, a zero direction, a model whose stream is not written
            by matrices alone, or a written model whose logits are not those under hooks.
        OSError: the disk is full or not writable.
    """
    folder, ablation = expanded(folder), _ablation(model, direction)
    head: Any = model.hf.get_output_embeddings()
    tied = head is not None and head.weight is model.embedding.weight
    size = sum(weight.numel() * weight.element_size() for weight in model.hf.parameters())
    check_export_target(folder, size + tied * model.embedding.weight.numel() * model.dtype.itemsize)
    with replacing_folder(folder) as draft:
        with model.lock, edited_weights(model, ablation), _untied(model) if tied else nullcontext():
            _save(model, draft)
            model.tokenizer.save_pretrained(draft)
            written = load_checkpoint(str(draft), dtype=model.dtype, device=str(model.device)).hf
            _check_equal(written, model)
        tolerance = tolerance_of(model.hf)  # weights are rounded to this dtype
        with _in_float32(model):
            ids = probe_tokens(model.hf)
            logits = probe_logits(written.to(model.dtype), ids)  # pyright: ignore[reportArgumentType]
            difference = relative_difference(logits, _hooked(model, ablation, ids))
        exported = Exported(
            folder=folder,
            difference=difference,
            tolerance=tolerance,
            n_matrices=len(model.writers),
            notes=("input and output embeddings are stored apart, as only the input changes",)
            if tied
            else (),
        )
        _finish(draft, exported, model, direction)
    return exported


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A written folder that holds the weights as they were in memory."""

    folder: Path
    """Where it is."""
    weights_hash: str
    """`weights_hash` of the model that was written, and of the one that the folder loads as in the same dtype."""


@torch.no_grad()
def save_model(model: ChatModel, folder: str | Path, *, about: Mapping[str, Any] | None = None) -> SavedModel:
    """Write the model as it is in memory, and its tokenizer, as a folder for transformers.

    What was written is loaded again and must have the same weights, by their hash.

    Args:
        about: how the weights were made, for the record beside them.

    Raises:
        ValueError: a folder that is not empty, too little space, or weights that do not come back as they were.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    folder, digest = expanded(folder), model.weights_hash
    check_export_target(
        folder, sum(weight.numel() * weight.element_size() for weight in model.hf.parameters())
    )
    with replacing_folder(folder) as draft:
        with model.lock:
            _save(model, draft)
        model.tokenizer.save_pretrained(draft)
        written = load_checkpoint(str(draft), dtype=model.dtype, device=str(model.device)).hf
        _check_equal(written, model)
        if (found := WeightHash().of(written)) != digest:
            raise ValueError(
                f"the weights of {model.name} do not come back as they were written ({digest[:12]}, read "
                f"{found[:12]}); nothing is kept"
            )
        record = {
            "model": model.provenance,
            "weights_hash": digest,
            "about": dict(about or {}),
            "versions": library_versions(),
        }
        (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for file in draft.iterdir():  # weights are written private
            file.chmod(0o644)
    return SavedModel(folder=folder, weights_hash=digest)


@torch.no_grad()
def save_ablation_adapter(model: ChatModel, direction: DirectionInput, folder: str | Path) -> Exported:
    """Write the ablation of a direction as a LoRA adapter of rank one on the model as it is loaded.

    Raises:
        ValueError: a folder that is not empty, a zero direction, a parameter that writes to the residual stream and
            that an adapter of PEFT cannot change (a bias, stacked experts; the message lists them), or a written
            adapter whose logits are not those under hooks.
        OSError: the disk is full or not writable.
    """
    from peft import LoraConfig, PeftModel

    folder, ablation = expanded(folder), _ablation(model, direction)
    names: dict[nn.Module, str] = {module: name for name, module in model.hf.named_modules()}
    _check_adaptable(model, names)
    u = unit(ablation.direction.double()).to(model.device)
    tensors: dict[str, Tensor] = {}
    for writer in model.writers:
        tensors |= _rank_one(writer, u, f"base_model.model.{names[writer.module]}")
    check_export_target(folder, sum(tensor.numel() * 4 for tensor in tensors.values()))
    head: Any = model.hf.get_output_embeddings()
    tied = head is not None and head.weight is model.embedding.weight
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=1,
        lora_alpha=1,
        target_modules=[names[writer.module] for writer in model.writers],
        base_model_name_or_path=model.source,
        inference_mode=True,
    )
    notes = (
        "keep it attached in PEFT, whose merge into tied embeddings would change the output embedding too; interp.load "
        "and --to hf take them apart",
    )
    with replacing_folder(folder) as draft:
        config.save_pretrained(str(draft))
        write_tensors(draft / "adapter_model.safetensors", tensors)
        with _in_float32(model):
            ids = probe_tokens(model.hf)
            with warnings.catch_warnings():
                # Of merging into tied embeddings, of the name of the base, and of names that PEFT calls.
                warnings.simplefilter("ignore")
                adapted = PeftModel.from_pretrained(shared_copy(model.hf), str(draft)).eval()
                logits = probe_logits(adapted, ids)
            exported = Exported(
                folder=folder,
                difference=relative_difference(logits, _hooked(model, ablation, ids)),
                tolerance=tolerance_of(model.hf),
                n_matrices=len(model.writers),
                notes=notes if tied else (),
            )
        _finish(draft, exported, model, direction)
    return exported


def check_export_target(folder: Path, size: int = 0) -> None:
    """Find whether a folder could be written here, before it is computed.

    Args:
        size: bytes that it will take.

    Raises:
        ValueError: a file of this name, a folder that is not empty, or too little space.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if size > (free := shutil.disk_usage(parent).free):
        raise ValueError(
            f"{folder} would take {size / 1e9:,.1f} GB, and {parent} has {free / 1e9:,.1f} GB free"
        )


def _ablation(model: ChatModel, direction: DirectionInput) -> Ablate:
    ablation = Ablate(direction)
    if ablation.direction.norm().item() == 0:
        raise ValueError("the direction is zero, so there is nothing to remove")
    prepare(model, ablation)  # finds a direction of another width
    return ablation


def _hooked(model: ChatModel, ablation: Ablate, ids: Tensor) -> Float[Tensor, "pos d_vocab"]:
    with apply(model, [ablation]):
        return probe_logits(model.hf, ids)


@contextmanager
def _untied(model: ChatModel) -> Iterator[None]:
    """Inside the context, the model's configuration says that its embeddings are two."""
    before = model.hf.config
    untied = copy.deepcopy(before)
    untied.tie_word_embeddings = False
    untied.get_text_config().tie_word_embeddings = False
    model.hf.config = untied
    try:
        yield
    finally:
        model.hf.config = before


def _save(model: ChatModel, folder: Path) -> None:
    from transformers.utils import logging as transformers_logging

    before, shown = model.hf.config, transformers_logging.is_progress_bar_enabled()
    model.hf.config = copy.deepcopy(before)  # saving writes dtype and architecture into it
    transformers_logging.disable_progress_bar()
    try:
        model.hf.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {folder}: {error}") from error
    finally:
        model.hf.config = before
        if shown:
            transformers_logging.enable_progress_bar()


def _check_adaptable(model: ChatModel, names: dict[nn.Module, str]) -> None:
    left_out = [
        f"{names[writer.module]}.{writer.parameter}"
        for writer in model.writers
        if writer.parameter != "weight" or not isinstance(writer.module, (nn.Linear, nn.Embedding))
    ]
    if left_out:
        raise ValueError(
            f"a rank-one adapter of {model.name} would leave out {len(left_out)} parameters that write to the residual "
            f"stream and that it cannot change (biases, stacked experts, Conv1D), first {left_out[0]}; save the whole "
            "model with --to hf"
        )


def _rank_one(writer: Writer, u: Float[Tensor, " d_model"], name: str) -> dict[str, Tensor]:
    """The two factors of -u (u^T W), by their names in an adapter file, in float32."""
    weight: Tensor = writer.module.weight.detach()  # pyright: ignore[reportAssignmentType, reportCallIssue]
    # Row by row in float64, as a float64 copy of an embedding is large.
    along = torch.cat([chunk.double() @ u for chunk in weight.movedim(writer.axis, -1).split(4096)])  # [d_in]
    a, b = along[None].float(), -u[:, None].float()
    if isinstance(writer.module, nn.Embedding):
        return {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


@contextmanager
def _in_float32(model: ChatModel) -> Iterator[None]:
    """Inside the context, half-precision weights are float32 where memory allows, so that little passes for rounding.

    Afterwards the weights are what they were, each trainable or frozen as before.
    """
    with model.lock:
        before = Snapshot(model.hf)
        try:
            if before.is_half and before.is_plain and before.fits_in_float32():
                before.work_on_copies(in_float32=True)
            yield
        finally:
            before.restore_weights()


def _check_equal(written: nn.Module, model: ChatModel) -> None:
    """Refuse a written model whose weights are not, bit for bit, those that were edited."""
    stored, edited = written.state_dict(), model.hf.state_dict()
    wrong = stored.keys() ^ edited.keys() or {
        name for name, value in stored.items() if not torch.equal(value, edited[name])
    }
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights of {model.name} do not come back as they were written, first {min(wrong)}; nothing "
            "is kept"
        )


def _finish(draft: Path, exported: Exported, model: ChatModel, direction: DirectionInput) -> None:
    """Refuse a folder that is not what the hooks compute; write down what it is."""
    if not exported.difference <= exported.tolerance:
        raise ValueError(
            f"the written files do not compute what the hooks do on {model.name}: logits differ by "
            f"{exported.difference:.2g} of their size, more than rounding ({exported.tolerance:.2g}); nothing is kept"
        )
    given = as_direction(direction)
    about: dict[str, Any] = {}
    if isinstance(given, Direction):
        about = {
            "layer": given.layer,
            "position": given.position,
            "site": given.site,
            "sign": given.sign,
            "kind": given.kind,
            "norm": given.norm,
            "provenance": dict(given.provenance),
        }
    record = {
        "removed_direction": about,
        "model": model.provenance,
        "logits_against_hooks": {
            "relative_difference": exported.difference,
            "tolerance": exported.tolerance,
        },
        "changed_parameters": exported.n_matrices,
        "notes": list(exported.notes),
        "versions": library_versions(),
    }
    (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for file in draft.iterdir():  # weights are written private
        file.chmod(0o644)
