"""Files of policy optimisation: the record of a finished run, and the state that a killed one continues from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.storage.atomic_files import write_file
from interp.storage.stages import StageCache
from interp.storage.typed_json import from_json, to_json
from interp.training.policy_config import OptimisedPolicy, PolicyConfig, UpdateRecord

_RECORD = "policy.json"


def policy_key(
    model: ChatModel,
    prompts: ChatTokens,
    references: Sequence[Sequence[int]],
    config: PolicyConfig,
    start: str | Path | None,
) -> str:
    """Hash of what a run's weights depend on, but for the reward, which is a function."""
    facts = {
        "weights": model.weights_hash,
        "prompts": prompts.ids,
        "references": [list(ids) for ids in references],
        "config": {name: value for name, value in asdict(config).items() if name != "save_every"},
        "start": None if start is None else str(start),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class _Records(NamedTuple):
    """Content of the records that stand beside a trainer's state."""

    records: tuple[UpdateRecord, ...]


def write_records(folder: Path, records: Sequence[UpdateRecord]) -> None:
    """Keep the records so far beside a trainer's state."""
    write_file(folder / _RECORD, to_json(_Records(tuple(records)), _Records))


def read_records(folder: Path) -> list[UpdateRecord]:
    """The records beside a trainer's state."""
    return list(from_json(_Records, (folder / _RECORD).read_bytes(), source=str(folder / _RECORD)).records)


class _Stored(NamedTuple):
    """Content of a record's file."""

    key: str
    records: tuple[UpdateRecord, ...]
    collapsed: str | None


def read_policy(out: Path, key: str) -> OptimisedPolicy | None:
    """The finished run in a folder, if it has this key."""
    if not (out / _RECORD).is_file():
        return None
    stored = from_json(_Stored, (out / _RECORD).read_bytes(), source=str(out / _RECORD))
    if stored.key != key:
        return None
    return OptimisedPolicy(folder=out, records=stored.records, collapsed=stored.collapsed)


def write_policy(
    out: Path, key: str, records: Sequence[UpdateRecord], collapsed: str | None
) -> OptimisedPolicy:
    """Write the record of a run whose weights are in the folder."""
    write_file(out / _RECORD, to_json(_Stored(key, tuple(records), collapsed), _Stored))
    return OptimisedPolicy(folder=out, records=tuple(records), collapsed=collapsed)


def save_state(
    cache: StageCache,
    trained: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    records: Sequence[UpdateRecord],
    micro_batch: int,
) -> None:
    """Write weights, optimiser and records as one file, which is either all there or not."""
    state = optimiser.state_dict()["state"]
    moments = {f"adam.{i}.{name}": value for i, part in state.items() for name, value in part.items()}
    weights = {f"weight.{name}": value.detach() for name, value in trained.items()}
    text = torch.frombuffer(bytearray(to_json(tuple(records), tuple[UpdateRecord, ...])), dtype=torch.uint8)
    cache.put("state", {**weights, **moments, "records": text, "micro": torch.tensor(micro_batch)})


class Resumed(NamedTuple):
    """Where a killed run continues."""

    records: list[UpdateRecord]
    micro_batch: int


def load_state(
    cache: StageCache, trained: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> Resumed | None:
    """Put stored weights and optimiser back; None where nothing is stored."""
    stored: Mapping[str, Tensor] | None = cache.get("state") if "state" in cache else None
    if stored is None:
        return None
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        kind, _, rest = name.partition(".")
        if kind == "weight":
            trained[rest].data.copy_(value)
        elif kind == "adam":
            number, _, field = rest.partition(".")
            state.setdefault(int(number), {})[field] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    text = bytes(stored["records"].tolist())
    records = from_json(tuple[UpdateRecord, ...], text, source=str(cache.folder))
    return Resumed(list(records), int(stored["micro"]))
