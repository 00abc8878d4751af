"""Collecting over workers: the file of one process, to the byte."""

import copy
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
from interp.storage.activation_store import ActivationStore
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


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_through_a_store_are_those_of_one_process_and_none_is_run_twice(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = ChatModel(copy.deepcopy(tiny.hf).to(dtype), tiny.tokenizer, name="tiny")
    budget = replace(activations.PassBudget.for_(model), packed_tokens=200, plain_rows=6)
    monkeypatch.setattr(type(budget), "for_", lambda _model: budget)
    tokens, request = requested(model, TEXTS, ("resid_pre", "mlp_out"), None, ("t_inst", "t_post_inst"))
    planned = planned_batches(model, tokens, request)
    whole = {
        row: [value[k] for value in batch.values()]
        for rows, batch in activation_batches(model, tokens, request)
        for k, row in enumerate(rows)
    }
    asked: list[list[int]] = []
    passes = shared_collecting._passes
    monkeypatch.setattr(
        shared_collecting, "_passes", lambda opened, some: asked.extend(some) or passes(opened, some)
    )

    def part(some: list[list[int]]) -> dict[int, list[torch.Tensor]]:
        store = ActivationStore(tmp_path / "store")  # as another process opens it
        opened = shared_collecting._Opened(model=model, tokens=tokens, request=request, store=store)
        return {
            row: [value[k] for value in batch.values()]
            for rows, batch in shared_collecting._run(opened, some)
            for k, row in enumerate(rows)
        }

    for first, second in ((planned[:2], planned[2:]), (planned, [])):  # the second time all of it is there
        asked.clear()
        read = part(first) | part(second)
        assert read.keys() == whole.keys()
        assert all(torch.equal(a, b) for row in whole for a, b in zip(read[row], whole[row], strict=True))
        assert sorted(asked) == (sorted(planned) if second else [])


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
    store = ("--store", tmp_path / "store")
    for _ in range(2):  # both workers write to one store at once; then both read from it
        passed(*options, *store, "--out", files["shared"], "--ray", nodes.address)
        assert files["shared"].read_bytes() == files["alone"].read_bytes()
    found = ActivationStore(tmp_path / "store").verify()
    assert found.cells == 500 * 2 * 2 * 3 and not found.damaged  # each row once
    wrong = ("--layers", "7", "--out", tmp_path / "wrong.safetensors", "--ray", nodes.address)
    assert "layer" in refused(*options, *wrong) and not (tmp_path / "wrong.safetensors").exists()
