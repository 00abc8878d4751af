"""Tracking over workers: the record of one process to the bit, also when a node is lost on the way."""

from dataclasses import replace
from pathlib import Path

import pytest

from interp.engine.ray_cluster import Workers
from interp.models.chat_model import ChatModel
from interp.storage.stages import StageCache
from interp.tracking.records import TrackRecord
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import track
from tests.tracking.conftest import SMALL
from tests.two_nodes import TwoNodes


def values(record: TrackRecord) -> list[object]:
    """Everything that was measured, without how long it took."""
    return [replace(checkpoint, seconds=0.0) for checkpoint in record.checkpoints]


def test_a_model_in_memory_cannot_be_sent_to_workers(
    tiny: ChatModel, tuned: Path, saved_tiny: Path, spec: TrackingSpec, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"^tiny is a model in this process's memory, which workers cannot load"
    ):
        track([tiny, tuned / "checkpoint-8"], spec, base=str(saved_tiny), workers=Workers(count=2), out=out)
    with pytest.raises(ValueError, match=r"^the base tiny is a model in this process's memory"):
        track(tuned, spec, base=tiny, workers=Workers(count=2), out=out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.checkpoint
def test_two_nodes_of_which_one_is_lost_give_the_record_of_one_process(
    tuned: Path, saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: TwoNodes
) -> None:
    spec = TrackingSpec(measures=("refusal", "guard", "kl", "weights"), **{**SMALL, "n_fit": 4})
    series = [tuned / "checkpoint-0", tuned / "checkpoint-8", tuned / "checkpoint-16", saved_tiny]
    alone = track(series, spec, base=str(saved_tiny))
    stored = []
    put = StageCache.put

    def losing(cache: StageCache, name: str, *rest: object) -> None:
        put(cache, name, *rest)
        stored.append(name)
        if len([each for each in stored if each.startswith("rows")]) == 1 and name.startswith("rows"):
            nodes.lose_second()

    monkeypatch.setattr(StageCache, "put", losing)
    workers = Workers(address=nodes.address)
    shared = track(series, spec, base=str(saved_tiny), workers=workers, out=tmp_path / "out")
    assert values(shared.record) == values(alone.record)
    assert len([name for name in stored if name.startswith("rows")]) == 4
    assert len([name for name in stored if name.startswith("weights")]) == 0  # they stay with the workers
    assert not (tmp_path / "out.parts").exists()
