"""The hash of the weights follows them: every byte, however it was changed, and nothing else."""

import copy

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
