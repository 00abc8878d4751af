"""Suffixes found by search: the package is asked rightly, named when it is absent, and leaves no trace."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interp.data.suffix_search import find_suffixes
from interp.models.chat_model import ChatModel
from tests.conftest import prompts_of


def test_suffixes_are_searched_with_the_package_and_named_when_it_is_absent(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    with pytest.raises(ValueError, match="needs the nanogcg package: pip install nanogcg, or give a file"):
        find_suffixes(tiny, prompts_of(["Hi"]))
    asked: list[Any] = []

    def search(_hf: Any, _tokenizer: Any, message: str, target: str, config: Any) -> SimpleNamespace:
        asked.append((message, target, config.num_steps))
        torch.rand(1)
        return SimpleNamespace(best_string="! ! {request}")

    package = SimpleNamespace(GCGConfig=lambda **settings: SimpleNamespace(**settings), run=search)
    monkeypatch.setitem(sys.modules, "nanogcg", package)
    before = torch.get_rng_state()
    found = find_suffixes(tiny, prompts_of(["Hi"]), steps=3)
    assert asked == [("Hi {optim_str}", "Sure, here is", 3)]
    assert found[0].wrap("Other") == "Other ! !"
    assert torch.equal(before, torch.get_rng_state())  # the caller's random numbers are as they were
