"""The hash of the weights follows them: every byte, however it was changed, and nothing else."""

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.models import weight_hashes
from interp.models.chat_model import ChatModel
from tests.families import COVERED, build


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*COVERED["llama"]), tokenizer, name="llama")


@torch.no_grad()
def test_one_number_anywhere_changes_it_and_the_old_one_back_restores_it(model: ChatModel) -> None:
    before = model.weights_hash
    assert ChatModel(copy.deepcopy(model.hf), model.tokenizer, name="copy").weights_hash == before
    weight = model.blocks[1].mlp.down_proj.weight
    for place in ((0, 0), (17, 33), (31, 63)):
        old = weight[place].item()
        weight[place] = old + 1e-3
        assert model.weights_hash != before
        weight[place] = old
        assert model.weights_hash == before


def test_an_optimiser_step_changes_it(model: ChatModel) -> None:
    before = model.weights_hash
    optimiser = torch.optim.SGD([model.blocks[0].mlp.up_proj.weight], lr=1e-6)
    model.hf(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    optimiser.step()
    assert model.weights_hash != before


def test_what_bypasses_versions_is_seen_where_it_touches_many_values(model: ChatModel) -> None:
    hashes = {model.weights_hash}
    weight = model.blocks[0].mlp.up_proj.weight
    weight.data.mul_(1.001)  # as adapters are merged
    hashes.add(model.weights_hash)
    array = weight.detach().numpy()
    array *= 1.001
    hashes.add(model.weights_hash)
    weight.data = weight.data * 1.001
    hashes.add(model.weights_hash)
    assert len(hashes) == 4


@torch.no_grad()
def test_only_what_changed_is_hashed_again(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    own = weight_hashes._digest
    monkeypatch.setattr(
        weight_hashes, "_digest", lambda name, value: (hashed.append(name), own(name, value))[1]
    )
    first = model.weights_hash
    assert len(hashed) == len(list(model.hf.parameters()))
    hashed.clear()
    assert model.weights_hash == first and not hashed
    model.blocks[2].mlp.up_proj.weight.add_(1.0)
    assert model.weights_hash != first
    assert hashed == ["model.layers.2.mlp.up_proj.weight"]


def test_dtype_counts_and_large_tensors_are_hashed_in_chunks(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.weights_hash
    monkeypatch.setattr(weight_hashes, "_CHUNK", 100)
    again = ChatModel(model.hf, model.tokenizer, name="again")
    assert again.weights_hash == before
    model.hf.to(torch.bfloat16)
    assert again.weights_hash != before


def test_widths_are_those_of_the_embedding(model: ChatModel) -> None:
    assert (model.d_vocab, model.d_model) == tuple(model.embedding.weight.shape) == (300, 32)
    ids = torch.tensor([[5, 6]])
    assert torch.equal(model.embedding(ids), model.hf.get_input_embeddings()(ids))


@pytest.mark.parametrize("how", ["data", "numpy", "bytes", "storage"])
def test_every_single_row_of_an_embedding_counts(model: ChatModel, how: str) -> None:
    """Writes that bypass torch's version numbers: one row, of which only one number by its last bit."""
    weight = model.embedding.weight
    hashes = {model.weights_hash}
    rows = range(0, 300, 7)
    for row in rows:
        if how == "data":
            weight.data[row, 3] += 1e-3
        elif how == "numpy":
            weight.detach().numpy()[row] *= 1.5
        elif how == "bytes":
            weight.detach().view(torch.int32).numpy()[row, 3] ^= 1
        else:
            torch.tensor([], dtype=torch.float32).set_(weight.untyped_storage())[row * 32 + 31] = row  # pyright: ignore
        hashes.add(model.weights_hash)
    assert len(hashes) == len(rows) + 1


def test_rows_that_change_places_or_signs_count(model: ChatModel) -> None:
    weight = model.embedding.weight
    hashes = {model.weights_hash}
    weight.data[[5, 200]] = weight.data[[200, 5]]
    hashes.add(model.weights_hash)
    weight.data[7] *= -1
    hashes.add(model.weights_hash)
    weight.data[8, [2, 3]] = weight.data[8, [3, 2]]
    hashes.add(model.weights_hash)
    assert len(hashes) == 4
    assert ChatModel(model.hf, model.tokenizer, name="again").weights_hash == model.weights_hash


def test_the_same_bytes_as_another_dtype_are_another_model(model: ChatModel) -> None:
    model.hf.to(torch.float16)  # pyright: ignore
    before = model.weights_hash
    weight = model.blocks[0].mlp.up_proj.weight
    weight.data = weight.data.view(torch.bfloat16)  # pyright: ignore
    assert model.weights_hash != before
    weight.data = weight.data.view(torch.float16)  # pyright: ignore
    assert model.weights_hash == before


def test_tied_and_separate_embeddings_differ_and_both_halves_count(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    kind, settings = COVERED["llama"]
    tied = ChatModel(build(kind, {**settings, "tie_word_embeddings": True}), tokenizer, name="tied")
    before = tied.weights_hash
    head = tied.hf.get_output_embeddings()
    head.weight.data[9, 9] += 1  # pyright: ignore
    assert tied.weights_hash != before
    head.weight.data[9, 9] -= 1  # pyright: ignore
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # pyright: ignore
    untied = tied.weights_hash
    head.weight.data[9, 9] += 1  # pyright: ignore
    assert len({untied, tied.weights_hash, before}) == 3


@pytest.mark.parametrize("family", sorted(COVERED))
def test_frequencies_of_the_configuration_are_not_counted_twice(family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hf: Any = build(*COVERED[family])
        assert list(weight_hashes._edited_frequencies(hf.to(dtype))) == []


def test_buffers_count_where_they_matter(model: ChatModel) -> None:
    """Rotary frequencies that were edited and buffers of the file; not a cache of the last pass."""
    before = model.weights_hash
    rotary = model.hf.base_model.rotary_emb  # pyright: ignore
    rotary.inv_freq[1] *= 1.01  # pyright: ignore
    edited = model.weights_hash
    rotary.inv_freq[1] /= 1.01  # pyright: ignore
    model.hf.register_buffer("scratch", torch.ones(3), persistent=False)
    assert model.weights_hash == before != edited
    model.hf.register_buffer("kept", torch.ones(3))
    assert model.weights_hash != before


def test_the_checksum_on_a_gpu_sees_what_the_one_on_the_cpu_sees() -> None:
    """Its arithmetic, run here: every byte and every place counts, odd lengths and offsets too."""
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    before = weight_hashes._checksum_on_device(values)
    for place in range(0, 1001, 50):
        changed = values.clone()
        changed.view(torch.int16)[place] ^= 1
        assert weight_hashes._checksum_on_device(changed) != before
        assert weight_hashes._checksum_on_device(-changed) != weight_hashes._checksum_on_device(changed)
    moved = values.clone()
    moved[[3, 900]] = moved[[900, 3]]
    assert weight_hashes._checksum_on_device(moved) != before
    assert weight_hashes._checksum_on_device(torch.cat([values[:1], values])[1:]) == before


def test_the_factors_of_a_checksum_are_drawn_once_for_a_device() -> None:
    """A 7B model has 291 weights, and drawing four million numbers for each took seconds a check."""
    device = torch.device("cpu")
    assert weight_hashes._factors(device) is weight_hashes._factors(device)
    assert (weight_hashes._factors(device) % 2 != 0).all()
