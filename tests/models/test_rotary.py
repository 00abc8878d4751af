"""Rotary frequencies by length, against fresh modules of transformers that see one sequence each."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.models.chat_model import ChatModel
from tests.families import CHANGING_ROPE, COVERED, build


@pytest.fixture(scope="module", params=sorted(CHANGING_ROPE))
def changing(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    return ChatModel(build(*CHANGING_ROPE[request.param]), tokenizer, name=request.param)


@pytest.mark.parametrize("family", sorted(COVERED))
def test_frequencies_of_ordinary_models_are_constant(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    rotary = ChatModel(build(*COVERED[family]), tokenizer, name=family).rotary
    assert not rotary.vary and rotary.alike([1, 10_000])
    assert rotary.exist == (family != "gpt2")


def test_the_limit_is_found_by_calling_the_modules(changing: ChatModel) -> None:
    rotary = changing.rotary
    assert rotary.vary and rotary.alike([1, 20, 64]) and not rotary.alike([64, 65])
    assert rotary.alike([65, 66]) == (changing.name == "longrope")  # dynamic NTK changes with every token
    assert rotary.never_settle == (changing.name != "longrope")


@torch.no_grad()
def test_every_row_gets_the_frequencies_of_its_own_length(changing: ChatModel) -> None:
    untouched = copy.deepcopy(changing.hf.base_model)
    lengths = [90, 12, 66]
    rows = [torch.arange(1, n + 1)[None] * 7 % 250 for n in lengths]
    for row, length in zip(rows, lengths, strict=True):
        expected = copy.deepcopy(untouched)(row, use_cache=False)[0]
        with changing.rotary.at([length]):
            got = changing.decoder(row, use_cache=False)[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    # The first tokens alone, as the tokens of each of the three sequences.
    ids, positions = rows[1][:, :12].expand(3, -1), torch.arange(12)[None].expand(3, -1)
    with changing.rotary.at(lengths):
        together = changing.decoder(ids, position_ids=positions, use_cache=False)[0]
    for row, length in enumerate(lengths):
        with changing.rotary.at([length]):
            alone = changing.decoder(ids[:1], position_ids=positions[:1], use_cache=False)[0]
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).norm() > 1e-3 * together[1].norm()  # control: the length matters


@torch.no_grad()
def test_passes_of_others_are_as_before(changing: ChatModel) -> None:
    ids = torch.arange(1, 41)[None]
    before = changing.decoder(ids, use_cache=False)[0]
    with changing.rotary.at([200]):
        inside = changing.decoder(ids, use_cache=False)[0]
    assert not torch.equal(inside, before)
    assert torch.equal(changing.decoder(ids, use_cache=False)[0], before)
