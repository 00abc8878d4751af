"""Speeds of the machine: measured by the engine, kept, and measured again where what is kept is damaged."""

from pathlib import Path

import pytest

from interp.engine import machine_speed as module
from interp.engine.machine_speed import is_measured, machine_speed


@pytest.mark.filterwarnings("ignore")
def test_speeds_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_LAYERS", 1)
    monkeypatch.setattr(module, "_STEPS", (1, 3))
    assert not is_measured(dtype="float32", device="cpu")
    first = machine_speed()
    assert 1e8 < first.decoding and 1e8 < first.reading < 1e14  # of a processor
    assert first.training is not None and 1e8 < first.training < 1e14
    assert is_measured(dtype="float32", device="cpu") and not is_measured(dtype="bfloat16", device="cpu")
    monkeypatch.setattr(module, "measure_speed", lambda **_: pytest.fail("measured twice"))
    assert machine_speed() == first
    assert [path.name for path in tmp_path.iterdir()] == ["machine-speed.json"]
    old = '{"x": {"reading": 1.0, "decoding": 1.0}}'  # before training was measured
    for damage in ("{", '{"x": {"reading": "fast"}}', "[]", old):
        (tmp_path / "machine-speed.json").write_text(damage)
        assert not is_measured(dtype="float32", device="cpu")
