"""`interp plan`: a table or JSON, before anything is loaded."""

import json
from pathlib import Path

import pytest

from interp.engine.machine_speed import _key
from tests.cli.commands import passed, refused
from tests.test_imports import loaded_after


@pytest.fixture
def measured(tmp_path: Path) -> None:
    """Speeds of this machine in the cache folder, as a measurement leaves them."""
    (tmp_path / "cache").mkdir()
    speeds = {_key("float32", "cpu"): {"reading": 1e9, "decoding": 5e8, "training": 1e9}}
    (tmp_path / "cache" / "machine-speed.json").write_text(json.dumps(speeds))


@pytest.mark.usefixtures("measured")
def test_a_plan_is_a_table_or_json(saved_tiny: Path) -> None:
    shown = passed("plan", "demo", "--model", saved_tiny, "--set", "n_test=10")
    assert "generate" in shown and "GFLOP/s reading" in shown
    found = json.loads(passed("plan", "demo", "--model", saved_tiny, "--set", "n_test=10", "--json"))
    stages = found["seconds"]
    assert abs(sum(v for k, v in stages.items() if k != "total") - stages["total"]) < 1e-9
    assert found["decoded_tokens"] == (5 * 30 + 10) * 19
    assert found["speed"] == {"reading": 1e9, "decoding": 5e8, "training": 1e9}
    assert found["bounds"] == "replies at full length"


@pytest.mark.usefixtures("measured")
def test_a_plan_says_what_it_took_at_its_bound(saved_tiny: Path) -> None:
    shown = passed("plan", "recovery", "--model", saved_tiny, "--set", "n_recovery=8")
    assert "fine-tune" in shown and "counted as rolling back" in " ".join(shown.split())
    found = json.loads(passed("plan", "recovery", "--model", saved_tiny, "--json"))
    assert found["gradient_tokens"] > 10_000 and "rolling back" in found["bounds"]


@pytest.mark.usefixtures("measured")
def test_a_plan_loads_no_model_library(saved_tiny: Path) -> None:
    code = f"""
from typer.testing import CliRunner
from interp.cli.main import app
for name, stage in (("refusal-direction", "random directions"), ("repair", "attack"), ("machine-text", "lens")):
    result = CliRunner().invoke(app, ["plan", name, "--model", {str(saved_tiny)!r}])
    assert result.exit_code == 0 and stage in result.output, result.output
"""
    assert loaded_after(code, "torch", "transformers", "safetensors") == set()


@pytest.mark.usefixtures("measured")
def test_mistakes_are_one_line(saved_tiny: Path, tmp_path: Path) -> None:
    said = refused("plan", "elasticity-theory", "--model", saved_tiny)
    assert "no plan for elasticity-theory: it needs neither a model nor prompts" in said
    assert "unknown experiment" in refused("plan", "nothing")
    assert "give name=value" in refused("plan", "demo", "--set", "x")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused("plan", "demo", "--model", tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('["a"]')
    assert "is damaged" in refused("plan", "demo", "--model", tmp_path / "empty")
