"""`interp store` and `--store`: lists, checks, exports and prunes what commands and experiments stored."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from interp.cli.main import app
from interp.engine.activations import collect
from interp.engine.stored_activations import active_store, experiment_store, using_store
from interp.models.chat_model import ChatModel
from tests.conftest import PROMPTS

pytest.importorskip("lance", reason="the extra scale is not installed")


def said(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def test_a_store_is_listed_verified_exported_and_pruned(tiny: ChatModel, tmp_path: Path) -> None:
    place = tmp_path / "store"
    with using_store(place):
        plain = collect(tiny, PROMPTS, sites=["resid_pre", "mlp_out"])
    listed = json.loads(said("store", "ls", "--store", place, "--json"))
    assert {row["key"]["site"] for row in listed} == {"resid_pre", "mlp_out"}
    assert all(row["model"] == "tiny" and row["rows"] == 2 * len(PROMPTS) for row in listed)
    assert "mlp_out" in said("store", "ls", "--store", place)
    first = listed[0]["table"][:6]
    assert json.loads(said("store", "info", first, "--store", place))[0]["key"]["d_model"] == tiny.d_model
    assert f"{2 * 2 * len(PROMPTS) * tiny.n_layers} vectors" in said("store", "verify", "--store", place)
    out = tmp_path / "part.npy"
    said(
        "store",
        "export",
        "--store",
        place,
        "--site",
        "resid_pre",
        "--layers",
        1,
        "--roles",
        "t_inst",
        "--out",
        out,
    )
    expected = plain.at("resid_pre", "t_inst")[:, 1].numpy()
    assert np.isin(np.load(out)[:, 0], expected).all() and np.load(out).shape == (
        len(PROMPTS),
        1,
        tiny.d_model,
    )
    (data, *_) = place.glob(f"{first}*.lance/data/*")
    data.write_bytes(data.read_bytes()[:-100])
    assert "damaged" in said("store", "verify", "--store", place, code=2)
    assert "removed 1 of 2" in said("store", "prune", "--store", place, "--table", first)
    assert len(json.loads(said("store", "ls", "--store", place, "--json"))) == 1
    assert "is what" not in said("store", "verify", "--store", place)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    assert "no activation store" in said("store", "ls", "--store", tmp_path / "nowhere", code=2)
    assert not (tmp_path / "nowhere").exists()


def test_the_option_reaches_what_a_command_collects(saved_tiny: Path, tmp_path: Path) -> None:
    out, place = tmp_path / "acts.safetensors", tmp_path / "store"
    said("collect", "How do I bake bread?", "--model", saved_tiny, "--out", out, "--store", place)
    (row,) = json.loads(said("store", "ls", "--store", place, "--json"))
    assert row["rows"] == 2  # one prompt at two roles


def test_experiments_have_a_store_unless_it_is_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(given: object) -> object:
        with experiment_store(given):  # pyright: ignore[reportArgumentType]
            return None if (store := active_store()) is None else Path(store.url)

    monkeypatch.delenv("INTERP_STORE")
    assert place("runs/store") == Path("runs/store")
    assert place(tmp_path) == tmp_path and place(None) is None and place("none") is None
    monkeypatch.setenv("INTERP_STORE", str(tmp_path / "mine"))
    assert place("runs/store") == tmp_path / "mine" and place(tmp_path) == tmp_path
    with using_store("none"):
        assert place("runs/store") is None and place(tmp_path) == tmp_path
    with using_store(tmp_path / "outer"):
        assert place("runs/store") == tmp_path / "outer"
    assert active_store() is None
