"""Adapters merged into weights, each merge compared with what the attached adapter computes.

    merge_adapter(hf, "runs/sft", shown="smollm2")             # for good
    with merged_adapter(hf, "runs/sft", shown="smollm2"): ...  # for a context; hf's own weights again afterwards

Not every adapter can be written into weights: some depend on the input, some have biases where the base has none, some
start from random numbers that their file does not hold. No list of methods decides it. Before a merge is used,
the logits of a few tokens are compared between the attached adapter and the merged weights, and where anything could
be drawn at random, between two attachments under different seeds; a difference beyond rounding is refused.

Half-precision weights are merged and compared in float32 and rounded once at the end, where memory allows.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.models.adapters import attach_adapter, method_name, quiet_peft, stored_tensors
from interp.models.logit_checks import (
    PROBE_TOKENS,
    explained_by_rounding,
    probe_logits,
    probe_tokens,
    relative_difference,
    tolerance_of,
)
from interp.models.snapshots import Snapshot
from interp.models.weight_checks import check_finite
from interp.models.weight_hashes import WeightHash
from interp.storage.typed_json import first_line

logger = logging.getLogger(__name__)

_LOST = 0.1
"""Share of an adapter's effect that rounding the merged weights may lose without a warning."""
_REMEDY = "interp measures models whose adapter can be written into their weights"


def merge_adapter(hf: PreTrainedModel, adapter: str, *, shown: str) -> None:
    """Merge a PEFT adapter into the weights of `hf`; after an error `hf` is what it was.

    Raises:
        ValueError: as `attach_adapter`, or an adapter whose merge is not what it computes.
    """
    before = Snapshot(hf)
    devices = [hf.device] if hf.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            _merge(hf, adapter, before, shown)
    except BaseException:
        before.restore()
        raise


@contextmanager
def merged_adapter(hf: PreTrainedModel, adapter: str, *, shown: str) -> Iterator[None]:
    """`hf` with an adapter merged into its weights; its own modules and weights again, bit for bit, when the context
    exits, each trainable or frozen as it was.

    Holds the weights that the adapter changes twice, so that many adapters can take turns on one loaded base.

    Raises:
        ValueError: as `merge_adapter`.
        RuntimeError: the weights are not those of before; the code inside the context changed them.
    """
    before, hashes = Snapshot(hf), WeightHash()
    digest = hashes.of(hf)
    try:
        merge_adapter(hf, adapter, shown=shown)
        yield
    finally:
        before.restore()
    if hashes.of(hf) != digest:
        raise RuntimeError(
            f"the weights of {shown} are not what they were before adapter {adapter}: code that ran with the adapter "
            "changed weights that the adapter does not; load the model again"
        )


class _Attached(NamedTuple):
    """An attached adapter and what it computes."""

    model: Any
    ids: Tensor
    base: Tensor
    """Logits of the model without the adapter."""
    logits: Tensor


def _merge(hf: PreTrainedModel, adapter: str, before: Snapshot, shown: str) -> None:
    in_float32 = before.is_half and before.is_plain and before.fits_in_float32()
    attached = _attached(hf, adapter, before, shown, in_float32=in_float32)
    adapted = attached.model
    what = f"adapter {adapter} ({method_name(adapted.peft_config['default'])})"
    shared = _untie(hf, before)
    try:
        with quiet_peft():
            merged = adapted.merge_and_unload()
    except Exception as error:  # whichever class of errors a method has for what cannot be merged
        raise ValueError(
            f"{what} cannot be merged into the weights of {shown}: {first_line(error)}; {_REMEDY}"
        ) from error
    if merged is not hf:
        raise ValueError(f"{what} makes a {type(merged).__name__} of {shown}, not other weights; {_REMEDY}")
    vars(hf).pop("peft_config", None)
    _tie_again(hf, shared)
    try:
        check_finite(hf)
    except ValueError as error:
        raise ValueError(f"{what} merged into {shown}: {error}; save the adapter again") from error
    after = probe_logits(hf, attached.ids)
    gap = relative_difference(after, attached.logits)
    if not explained_by_rounding(gap, hf, attached.ids):
        raise ValueError(
            f"{what} merged into the weights of {shown} is not what the adapter computes: logits differ by {gap:.2g} "
            f"of their size; {_REMEDY}"
        )
    if in_float32:
        before.round()
        first = len(attached.base)
        rounded = probe_logits(hf, attached.ids[:, :first])
        lost = (rounded - after[:first]).norm().item() / max(
            (after[:first] - attached.base).norm().item(), 1e-9
        )
        if lost > _LOST:
            logger.warning(
                "%s changes %s so little that rounding to half precision loses %.0f%% of it; load with dtype='float32'",
                what,
                shown,
                100 * min(lost, 1.0),
            )
    before.settle()


def _attached(
    hf: PreTrainedModel, adapter: str, before: Snapshot, shown: str, *, in_float32: bool
) -> _Attached:
    """The adapter on copies of the weights, proved not to depend on random numbers that its file does not hold."""
    first = _attach(hf, adapter, before, shown, seed=1, in_float32=in_float32)
    if not _may_be_random(first.model, before):
        return first
    second = _attach(hf, adapter, before, shown, seed=2, in_float32=in_float32)
    gap = relative_difference(first.logits, second.logits)
    if not gap <= tolerance_of(hf):
        method = method_name(second.model.peft_config["default"])
        raise ValueError(
            f"adapter {adapter} ({method}) starts from random numbers that its file does not hold: attached twice to "
            f"{shown}, it gives logits that differ by {gap:.2g} of their size; save it as a plain LoRA "
            "(PEFT: path_initial_model_for_weight_conversion) or merge it where it was trained"
        )
    return second


def _attach(
    hf: PreTrainedModel, adapter: str, before: Snapshot, shown: str, *, seed: int, in_float32: bool
) -> _Attached:
    before.restore()
    before.work_on_copies(in_float32=in_float32)
    torch.manual_seed(seed)
    ids = probe_tokens(hf)
    base = probe_logits(hf, ids)
    adapted = attach_adapter(hf, adapter, shown=shown).eval()
    named = _named_tokens(adapted.peft_config["default"], hf)
    if named:
        ids = torch.cat([ids, torch.tensor([named], device=ids.device)], dim=1)
    try:
        logits = probe_logits(adapted, ids)
    except Exception as error:  # a method that needs more than tokens, such as task numbers
        raise ValueError(
            f"adapter {adapter} ({method_name(adapted.peft_config['default'])}) on {shown} does not run on tokens "
            f"alone: {first_line(error)}; {_REMEDY}"
        ) from error
    return _Attached(adapted, ids, base, logits)


def _may_be_random(adapted: Any, before: Snapshot) -> bool:
    """Whether anything that an attached adapter computes with is neither in its file nor in the base weights."""
    own = {id(tensor) for tensor in (*adapted.parameters(), *adapted.buffers())} - before.tensor_ids
    return len(own) != len(stored_tensors(adapted)) or before.is_written()


def _named_tokens(config: Any, hf: PreTrainedModel) -> list[int]:
    """Tokens that an adapter trains by number, of which the first few are compared as well."""
    embedding: Any = hf.get_input_embeddings()
    tokens: list[int] = []
    for field in ("token_indices", "trainable_token_indices"):
        value = getattr(config, field, None) or []
        for group in value.values() if isinstance(value, dict) else [value]:
            tokens += [int(token) for token in group]
    inside = [token for token in dict.fromkeys(tokens) if 0 <= token < embedding.weight.shape[0]]
    return inside[:PROBE_TOKENS]


_Places = list[tuple[nn.Module, str]]


def _untie(hf: PreTrainedModel, before: Snapshot) -> list[_Places]:
    """Give every module that shares a base weight a copy of its own, so that a merge into one does not reach the
    others; the places that shared one."""
    places: dict[int, _Places] = {}
    for module in hf.modules():
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) in before.tensor_ids:
                places.setdefault(id(weight), []).append((module, name))
    shared = [group for group in places.values() if len(group) > 1]
    for group in shared:
        for module, name in group[1:]:
            weight = getattr(module, name)
            setattr(module, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))
    return shared


def _tie_again(hf: PreTrainedModel, shared: list[_Places]) -> None:
    """Share again what is equal after the merge, and say in the configuration where embeddings are no longer tied."""
    for (first, first_name), *others in shared:
        weight = getattr(first, first_name)
        for module, name in others:
            if torch.equal(getattr(module, name), weight):
                setattr(module, name, weight)
    read: Any = hf.get_input_embeddings()
    written: Any = hf.get_output_embeddings()
    if written is not None and read.weight is not written.weight:
        for config in (hf.config, hf.config.get_text_config()):
            config.tie_word_embeddings = False
