"""Sparse changes of weights: what is written comes back, applies to its own base alone, and proves itself."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import interp
from interp.engine.model_exports import save_model
from interp.models.adapted_models import copy_with_delta, with_delta
from interp.models.chat_model import ChatModel, load_source
from interp.models.sources import ModelSource
from interp.models.weight_deltas import (
    WeightChange,
    WeightDelta,
    apply_delta,
    put_changes,
    read_delta,
    with_changes,
    write_delta,
)
from interp.storage.tensor_files import sealed
from tests.conftest import tiny_config
from tests.storage.test_run_folders import small_disk

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight")


def change_of(model: ChatModel, *, every: int = 25) -> WeightDelta:
    """A delta of every 25th weight of two matrices."""
    weights = dict(model.hf.named_parameters())
    changes = {}
    for name in NAMES:
        indices = torch.arange(3, weights[name].numel(), every)
        values = torch.randn(len(indices), generator=torch.Generator().manual_seed(1))
        changes[name] = WeightChange(indices=indices, values=values.to(weights[name].dtype))
    before = model.weights_hash
    undo = put_changes(weights, changes)
    after = model.weights_hash
    put_changes(weights, undo)
    return WeightDelta(
        changes=changes, base_hash=before, result_hash=after, base=model.name, provenance={"seed": 1}
    )


@pytest.fixture
def model(saved_tiny: Path) -> ChatModel:
    return interp.load(saved_tiny)


def values(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.hf.named_parameters()}


# Written and read


def test_what_is_written_comes_back(model: ChatModel, tmp_path: Path) -> None:
    delta = change_of(model)
    assert write_delta(tmp_path / "d.safetensors", delta) == tmp_path / "d.safetensors"
    found = read_delta(tmp_path / "d.safetensors")
    assert found.changes.keys() == delta.changes.keys()
    for name, change in delta.changes.items():
        assert torch.equal(found.changes[name].indices, change.indices)
        assert torch.equal(found.changes[name].values, change.values)
    assert (found.base_hash, found.result_hash) == (delta.base_hash, delta.result_hash)
    assert (found.base, found.provenance) == (delta.base, {"seed": 1})
    assert found.n_changed == delta.n_changed > 100
    with safe_open(str(tmp_path / "d.safetensors"), framework="pt") as stream:  # as others would read it
        gaps = stream.get_tensor(f"{NAMES[0]}.gaps")
        assert torch.equal(gaps.long().cumsum(0), delta.changes[NAMES[0]].indices)
        assert gaps.dtype == torch.uint8 and stream.metadata()["format_version"] == "1"


@pytest.mark.parametrize(
    ("indices", "dtype"),
    [
        ([0, 255, 300], torch.uint8),
        ([0, 256], torch.uint16),
        ([65535], torch.uint16),
        ([7, 65544], torch.int32),
        ([2**31], torch.int64),
        ([0], torch.uint8),
        ([], torch.uint8),
    ],
)
def test_gaps_are_stored_in_the_smallest_type_that_holds_them(
    indices: list[int], dtype: torch.dtype, tmp_path: Path
) -> None:
    change = WeightChange(indices=torch.tensor(indices, dtype=torch.long), values=torch.ones(len(indices)))
    write_delta(tmp_path / "d", WeightDelta(changes={"w": change}, base_hash="a", result_hash="b"))
    with safe_open(str(tmp_path / "d"), framework="pt") as stream:
        assert stream.get_tensor("w.gaps").dtype == dtype
    assert read_delta(tmp_path / "d").changes["w"].indices.tolist() == indices


def test_at_the_budget_of_recovery_the_file_is_under_5_percent_of_the_model(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """20 steps of 0.002 of the blocks' weights, at random places of the lower two thirds."""
    torch.manual_seed(0)
    config = tiny_config(hidden_size=128, intermediate_size=512, num_hidden_layers=6, vocab_size=3000)
    model = ChatModel(AutoModelForCausalLM.from_config(config).float(), tokenizer, name="small")
    in_blocks = sum(w.numel() for block in model.blocks for w in block.module.parameters())
    lower = {n: w for n, w in model.hf.named_parameters() if ".mlp." in n and int(n.split(".")[2]) < 4}
    share = 20 * 0.002 * in_blocks / sum(w.numel() for w in lower.values())
    changes, generator = {}, torch.Generator().manual_seed(0)
    for name, weight in lower.items():
        indices = (torch.rand(weight.numel(), generator=generator) < share).nonzero()[:, 0]
        changes[name] = WeightChange(indices=indices, values=torch.ones(len(indices)))
    delta = WeightDelta(changes=changes, base_hash="a" * 64, result_hash="b" * 64)
    size = write_delta(tmp_path / "d.safetensors", delta).stat().st_size
    assert delta.n_changed == pytest.approx(0.04 * in_blocks, rel=0.02)
    assert size < 0.05 * sum(w.numel() * 4 for w in model.hf.parameters())


# Applied


def test_load_applies_a_delta_and_so_do_a_context_and_a_copy(
    model: ChatModel, saved_tiny: Path, tmp_path: Path
) -> None:
    delta, before = change_of(model), values(model)
    path = write_delta(tmp_path / "d.safetensors", delta)
    loaded = interp.load(saved_tiny, delta=path)
    copied = copy_with_delta(model, delta)
    with with_delta(model, delta) as changed:
        assert changed is model and model.weights_hash == delta.result_hash
        inside = values(model)
    for other in (loaded, copied):
        assert other.weights_hash == delta.result_hash
        assert all(torch.equal(value, inside[name]) for name, value in values(other).items())
    for name, value in inside.items():
        mask = torch.zeros(value.numel(), dtype=torch.bool)
        if name in NAMES:
            mask[delta.changes[name].indices] = True
            assert torch.equal(value.flatten()[mask], delta.changes[name].values)
        assert torch.equal(value.flatten()[~mask], before[name].flatten()[~mask])
    assert model.weights_hash == delta.base_hash
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())
    assert copied.embedding.weight is model.embedding.weight
    assert loaded.provenance["delta"] == str(path) and model.provenance["delta"] is None
    assert (
        "in memory" != loaded.files_hash != interp.load(saved_tiny).files_hash
    )  # the delta is one of its files
    assert load_source(ModelSource(str(saved_tiny), delta=str(path))).weights_hash == delta.result_hash


def test_changed_copies_leave_the_weights_alone_whatever_their_layout() -> None:
    plain = torch.arange(12.0).view(3, 4)
    weights = {"rows": plain.clone(), "columns": plain.T.clone().T, "other": plain.clone()}
    change = WeightChange(indices=torch.tensor([1, 6, 11]), values=torch.tensor([-1.0, -2.0, -3.0]))
    copies = with_changes(weights, {"rows": change, "columns": change})
    expected = torch.tensor([[0.0, -1, 2, 3], [4, 5, -2, 7], [8, 9, 10, -3]])
    assert copies.keys() == {"rows", "columns"}
    assert all(torch.equal(copy, expected) for copy in copies.values())
    assert all(torch.equal(weight, plain) for weight in weights.values())


def test_the_context_restores_after_an_exception_and_finds_other_changes(model: ChatModel) -> None:
    delta = change_of(model)
    with pytest.raises(KeyError), with_delta(model, delta):
        raise KeyError("stop")
    assert model.weights_hash == delta.base_hash
    with (
        pytest.raises(RuntimeError, match="are not what they were before the delta"),
        with_delta(model, delta),
    ):
        with torch.no_grad():
            model.embedding.weight[0] += 1


def test_a_base_of_other_weights_is_refused_and_unchanged(
    model: ChatModel, saved_tiny: Path, tmp_path: Path
) -> None:
    delta = change_of(model)
    path = write_delta(tmp_path / "d.safetensors", delta)
    other = interp.load(saved_tiny)
    with torch.no_grad():
        other.blocks[2].mlp.down_proj.weight[0, 0] += 1  # pyright: ignore
    digest = other.weights_hash
    with pytest.raises(
        ValueError, match=r"the delta is not of these weights: it was made for tiny-checkpoint.* \("
    ):
        apply_delta(other.hf, delta, shown="other")
    with pytest.raises(ValueError, match="not of these weights"):
        copy_with_delta(other, delta)
    assert other.weights_hash == digest
    other.hf.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="the delta is not of these weights"):
        interp.load(tmp_path / "other", delta=path)


def test_another_dtype_is_refused_by_its_name(model: ChatModel, saved_tiny: Path, tmp_path: Path) -> None:
    path = write_delta(tmp_path / "d.safetensors", change_of(model))
    with pytest.raises(
        ValueError, match=r"float32 values, and .* has bfloat16 weights; load with dtype='float32'"
    ):
        interp.load(saved_tiny, dtype="bfloat16", delta=path)
    half = interp.load(saved_tiny, dtype="bfloat16")
    path = write_delta(tmp_path / "half.safetensors", change_of(half))
    assert interp.load(saved_tiny, dtype="bfloat16", delta=path).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="load with dtype='bfloat16'"):
        interp.load(saved_tiny, delta=path)


def test_names_and_places_that_the_model_does_not_have_are_refused(model: ChatModel) -> None:
    change = WeightChange(indices=torch.tensor([10**9]), values=torch.ones(1))
    delta = WeightDelta(changes={NAMES[0]: change}, base_hash=model.weights_hash, result_hash="b")
    with pytest.raises(ValueError, match=r"has 2048 values, and the delta changes number 1000000000"):
        apply_delta(model.hf, delta, shown="tiny")
    with pytest.raises(ValueError, match="tiny has no nowhere"):
        apply_delta(model.hf, replace(delta, changes={"nowhere": change}), shown="tiny")
    with pytest.raises(ValueError, match="ascending"):
        WeightChange(indices=torch.tensor([3, 3]), values=torch.ones(2))


def test_a_result_that_is_not_the_stored_one_is_undone(model: ChatModel) -> None:
    delta, digest = change_of(model), model.weights_hash
    with pytest.raises(ValueError, match="does not give the weights that it was made for"):
        apply_delta(model.hf, replace(delta, result_hash="0" * 64), shown="tiny")
    assert model.weights_hash == digest


# Files


def spoiled(change: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> Callable[[Path], None]:
    """Rewrites a file with other content and a seal that fits."""

    def rewrite(path: Path) -> None:
        with safe_open(str(path), framework="pt") as stream:
            metadata = dict(stream.metadata())
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        change(tensors, metadata)
        sealed_again = sealed({k: v for k, v in metadata.items() if k != "sha256"}, tensors)
        save_file(tensors, path, metadata=metadata if "sha256" not in metadata else sealed_again)

    return rewrite


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


GAPS, VALUES = f"{NAMES[0]}.gaps", f"{NAMES[0]}.values"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"is damaged \(its content is not what was written\)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "is damaged"),
        (lambda path: path.write_bytes(b"x" * 100), "is not a safetensors file or is damaged"),
        (lambda path: path.unlink(), "no such weight delta"),
        (lambda path: save_file({"w": torch.ones(1)}, path), "no weight delta"),
        (spoiled(lambda _, m: m.update(format_version="2")), "format_version 2, this interp reads up to 1"),
        (spoiled(lambda _, m: m.update(about="{")), "metadata are no JSON"),
        (spoiled(lambda _, m: m.update(about=json.dumps({"base": 3}))), "base_hash"),
        (spoiled(lambda _, m: m.pop("sha256")), "no hash of its content"),
        (spoiled(lambda t, _: t.pop(VALUES)), "no gaps and values of one length"),
        (spoiled(lambda t, _: t.update({GAPS: t[GAPS][1:]})), "no gaps and values of one length"),
        (spoiled(lambda t, _: t.update({GAPS: t[GAPS].float()})), r"holds torch.float32 and torch.float32"),
        (spoiled(lambda t, _: t.update({GAPS: torch.zeros_like(t[GAPS])})), "must be ascending"),
        (spoiled(lambda t, _: t[VALUES].fill_(torch.nan)), "NaN or infinite"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name(
    model: ChatModel, saved_tiny: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    path = write_delta(tmp_path / "d.safetensors", change_of(model))
    damage(path)
    with pytest.raises(ValueError, match=message) as raised:
        interp.load(saved_tiny, delta=path)
    assert str(path) in str(raised.value)


def test_a_disk_that_fills_leaves_nothing_half_written(model: ChatModel, tmp_path: Path) -> None:
    delta = change_of(model, every=1)
    with small_disk(8192), pytest.raises(OSError, match=re.escape("cannot write")):
        write_delta(tmp_path / "new.safetensors", delta)
    assert list(tmp_path.iterdir()) == []
    path = write_delta(tmp_path / "old.safetensors", change_of(model))
    before = path.read_bytes()
    with small_disk(8192), pytest.raises(OSError, match=re.escape("cannot write")):
        write_delta(path, delta)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with small_disk(50_000), with_delta(model, delta), pytest.raises(OSError):
        save_model(model, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_folder_is_the_model_in_memory(model: ChatModel, tmp_path: Path) -> None:
    delta = change_of(model)
    with with_delta(model, delta):
        saved = save_model(model, tmp_path / "folder", about={"why": "test"})
    assert saved.weights_hash == delta.result_hash == interp.load(tmp_path / "folder").weights_hash
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    ids = torch.tensor([[5, 9, 40]])
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, copy_with_delta(model, delta).hf(ids).logits)
    record = json.loads((tmp_path / "folder" / "interp_export.json").read_text())
    assert record["about"] == {"why": "test"} and record["weights_hash"] == saved.weights_hash
    with pytest.raises(ValueError, match="is not empty"):
        save_model(model, tmp_path / "folder")


def test_mistakes_in_the_arguments_of_load_are_named(model: ChatModel, saved_tiny: Path) -> None:
    with pytest.raises(ValueError, match="no such weight delta: nowhere"):
        interp.load(saved_tiny, delta="nowhere")
    with pytest.raises(ValueError, match="delta belong to loading a checkpoint"):
        interp.load(model.hf, tokenizer=model.tokenizer, delta="nowhere")
