"""Collecting over workers: the file of one process, to the byte."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.engine import activations, shared_collecting
from interp.engine.activations import activation_batches, planned_batches
from interp.engine.reads import requested
from interp.engine.shared_collecting import grouped
from interp.models.chat_model import ChatModel
from tests.cli.commands import passed, refused
from tests.two_nodes import TwoNodes

TEXTS = tuple(f"What is {n} times {n * n}{' then' * (n % 9)}?" for n in range(40))


@torch.no_grad()
@pytest.mark.parametrize("path", ["fast", "plain"])
def test_planned_passes_give_what_all_passes_give(
    tiny: ChatModel, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = replace(activations.PassBudget.for_(tiny), packed_tokens=200, plain_rows=6)
    monkeypatch.setattr(type(budget), "for_", lambda _model: budget)
    if path == "plain":
        monkeypatch.setattr(activations, "fast_path_agrees", lambda *_: False)
    tokens, request = requested(tiny, TEXTS, ("resid_pre", "mlp_out"), None, ("t_inst", "t_post_inst"))
    whole = list(activation_batches(tiny, tokens, request))
    planned = planned_batches(tiny, tokens, request)
    assert [rows for rows, _ in whole] == planned and len(planned) > 3
    for number in (2, 0):  # in another order, each in a call of its own
        ((rows, batch),) = activation_batches(tiny, tokens, request, planned=[planned[number]])
        assert rows == planned[number]
        assert all(torch.equal(value, whole[number][1][site]) for site, value in batch.items())


def test_parts_hold_all_passes_within_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [list(range(start, start + 4)) for start in range(0, 40, 4)]
    monkeypatch.setattr(shared_collecting, "_PART_BYTES", 100)
    parts = list(grouped(batches, bytes_a_row=10))
    assert [rows for part in parts for rows in part] == batches
    assert [len(part) for part in parts] == [2] * 5  # 80 bytes each
    assert [len(part) for part in grouped(batches, bytes_a_row=1000)] == [1] * 10
    monkeypatch.setattr(shared_collecting, "_PART_PASSES", 3)
    assert [len(part) for part in grouped(batches, bytes_a_row=1)] == [3, 3, 3, 1]
    assert list(grouped([], bytes_a_row=1)) == []


def test_mistakes_are_found_before_workers_start(saved_tiny: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hi")
    options = (
        "collect",
        prompts,
        "--model",
        saved_tiny,
        "--out",
        tmp_path / "acts.safetensors",
        "--workers",
        0,
    )
    assert "workers must be 1 or more, got 0" in refused(*options)


@pytest.mark.checkpoint
def test_two_nodes_write_the_file_of_one_process(saved_tiny: Path, tmp_path: Path, nodes: TwoNodes) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"What is {n} times {n * n}{' then' * (n % 9)}?" for n in range(500)))
    files: dict[str, Any] = {name: tmp_path / f"{name}.safetensors" for name in ("alone", "shared")}
    options = (
        "collect",
        prompts,
        "--model",
        saved_tiny,
        "--sites",
        "resid_pre,mlp_out",
        "--system",
        "Be brief.",
    )
    passed(*options, "--out", files["alone"])
    said = passed(*options, "--out", files["shared"], "--ray", nodes.address)
    assert "500 prompts, 3 layers, 2 roles" in said
    assert files["shared"].read_bytes() == files["alone"].read_bytes()
    wrong = ("--layers", "7", "--out", tmp_path / "wrong.safetensors", "--ray", nodes.address)
    assert "layer" in refused(*options, *wrong) and not (tmp_path / "wrong.safetensors").exists()
