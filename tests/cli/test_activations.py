"""`interp collect` and `interp directions` equal the library, and their files read back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.data.prompts import load_prompts
from interp.directions import project
from interp.engine.activations import collect
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.steering import find_directions
from interp.stats import auroc
from interp.storage.direction_files import read_direction
from tests.cli.commands import passed, refused
from tests.conftest import PROMPTS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"prompt": text, "category": "even" if n % 2 == 0 else "odd"} for n, text in enumerate(PROMPTS)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_collected_activations_read_back_with_their_prompts(
    saved_tiny: Path, tiny: ChatModel, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "acts.safetensors"
    options = ("--layers", "0-1,-1", "--sites", "resid_pre,mlp_out", "--positions", "t_inst,-1")
    command = ("collect", file, "-m", saved_tiny, "--system", "Be brief.", *options, "--out", out)
    shown = json.loads(passed(*command, "--batch-size", 2, "--json"))
    assert (shown["shape"], shown["layers"], shown["roles"]) == ([6, 3, 2, 32], [0, 1, 2], ["t_inst", "-1"])
    assert shown["bytes"] == out.stat().st_size
    assert list(out.parent.glob("*.safetensors*")) == [out]  # no draft is left
    found = interp.read_activations(out)
    tokens = tokenize(tiny.tokenizer, list(PROMPTS), system="Be brief.")
    sites = ("resid_pre", "mlp_out")
    expected = collect(tiny, tokens, sites=sites, positions=["t_inst", -1], fast=False)
    for site in sites:
        torch.testing.assert_close(found[site], expected[site], rtol=1e-4, atol=1e-4)
        assert torch.equal(load_file(out)[site], found[site])  # any reader of safetensors opens it
    assert found.identity is not None
    assert found.identity.texts == PROMPTS and found.identity.ids == tuple(f"mine-{n}" for n in range(6))
    assert found.identity.categories == ("even", "odd") * 3
    assert found.provenance["weights_hash"] == tiny.weights_hash
    assert "6 prompts, 3 layers, 2 roles" in passed(*command)


def test_collect_in_half_precision(saved_tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "acts.safetensors"
    passed("collect", "Hi", "-m", saved_tiny, "--dtype", "bfloat16", "--out", out)
    found = interp.read_activations(out)
    assert found["resid_pre"].dtype == torch.bfloat16
    model = interp.load(str(saved_tiny), dtype="bfloat16")
    assert torch.equal(found["resid_pre"], collect(model, "Hi")["resid_pre"])


def test_collect_that_cannot_be_done(
    saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "acts.safetensors"
    absent = ("-m", "nobody/no-such-model")
    assert "use .safetensors" in refused("collect", "Hi", *absent, "--out", tmp_path / "acts.npz")
    assert "--layers '1-99999999'" in refused(
        "collect", "Hi", *absent, "--layers", "1-99999999", "--out", out
    )
    assert "no such prompt file" in refused("collect", "absent.csv", *absent, "--out", out)
    assert "layer must be in 0..2, got 7" in refused(
        "collect", "Hi", "-m", saved_tiny, "--layers", 7, "--out", out
    )
    assert "unknown site 'resid'" in refused(
        "collect", "Hi", "-m", saved_tiny, "--sites", "resid", "--out", out
    )
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))  # pyright: ignore
    line = refused("collect", "Hi", "-m", saved_tiny, "--out", out)
    assert "1 prompts x 3 layers x 2 positions x 32 numbers x 1 sites" in line and "free" in line
    assert not out.exists()


def test_texts_that_look_like_the_hash_do_no_harm(tiny: ChatModel, tmp_path: Path) -> None:
    out = tmp_path / "acts.safetensors"
    interp.store_activations(tiny, ["0" * 64, "sha256"], out, layers=1)
    found = interp.read_activations(out)
    assert torch.equal(found["resid_pre"], collect(tiny, ["0" * 64, "sha256"], layers=1)["resid_pre"])


def test_files_that_hold_no_activations(saved_tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "acts.safetensors"
    with pytest.raises(ValueError, match="no such file of activations"):
        interp.read_activations(out)
    passed("collect", "Hi", "-m", saved_tiny, "--out", out)
    whole = out.read_bytes()
    for content, message in (
        (whole[:-4], "is damaged"),
        (whole.replace(b"interp-activations", b"interp-activationz"), "no file of activations"),
        (whole.replace(b'"format_version": "2"', b'"format_version": "3"'), "format_version '3'"),
        (whole.replace(b'"layers": "[0, 1, 2]"', b'"layers": "[0, 1   ]"'), "resid_pre has shape"),
        (whole.replace(b'"layers": "[0, 1, 2]"', b'"layers": "[0, 1, x]"'), "metadata cannot be read"),
        (
            whole.replace(b'"layers": "[0, 1, 2]"', b'"layers": "[0, 2, 1]"'),
            "content is not what was written",
        ),
        (whole.replace(b"sha256", b"sha257"), "content is not what was written"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "content is not what was written"),
    ):
        out.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            interp.read_activations(out)


def test_directions_of_harmful_and_harmless_prompts(
    saved_tiny: Path, tiny: ChatModel, tmp_path: Path
) -> None:
    out = tmp_path / "directions"
    command = ("directions", "-m", saved_tiny, "--n-prompts", 12, "--n-test", 10, "--layer", 2, "--out", out)
    shown = {entry["name"]: entry for entry in json.loads(passed(*command, "--json"))}
    prompts = load_prompts("builtin")
    expected = find_directions(tiny, prompts, layer=2, n_prompts=12)
    assert shown.keys() == expected.keys() == {"harmfulness", "refusal"}
    for name, direction in expected.items():
        found = read_direction(out / f"{name}.safetensors")
        torch.testing.assert_close(found.vector, direction.vector, rtol=1e-4, atol=1e-5)
        assert (found.layer, found.position, found.sign) == (2, direction.position, "harmful - harmless")
        assert found.mean_activation_norm == pytest.approx(direction.mean_activation_norm, rel=1e-4)
        assert found.provenance["prompts"]["name"] == "builtin"
        sides = [
            collect(tiny, prompts[kind, "test"].first(10), layers=2, positions=direction.position)
            for kind in ("harmful", "harmless")
        ]
        scores = [project(side["resid_pre"][:, 0, 0], direction.vector) for side in sides]
        assert shown[name]["auroc"]["value"] == pytest.approx(auroc(scores[0], scores[1]).value)
        assert shown[name]["n_held_out"] == [10, 10]
    assert "AUROC" in passed(*command)


def test_directions_of_a_contrast_of_ones_own(saved_tiny: Path, tmp_path: Path) -> None:
    polite, rude = tmp_path / "polite.txt", tmp_path / "rude.txt"
    polite.write_text("\n".join(f"Would you kindly name {n} colours please" for n in range(12)))
    rude.write_text("\n".join(f"Name {n} colours now!!" for n in range(12)))
    out = tmp_path / "politeness"
    command = ("directions", "-m", saved_tiny, "--positive", polite, "--negative", rude, "--out", out)
    shown = json.loads(passed(*command, "--json"))
    assert [entry["name"] for entry in shown] == ["t_inst", "t_post_inst"]
    assert [entry["n_held_out"] for entry in shown] == [[3, 3], [3, 3]]
    found = read_direction(out / "t_inst.safetensors")
    assert found.sign == "positive - negative" and found.provenance["fitted_on"]["positive"]["n"] == 9
    assert shown[0]["auroc"]["value"] == 1.0  # the two end differently
    same = tmp_path / "same.txt"
    same.write_text(polite.read_text())
    message = refused(*command[:5], "--negative", same, "--positions", "t_inst", "--out", out)
    assert "both sides have the same mean activation" in message


def test_directions_that_cannot_be_fitted(tmp_path: Path) -> None:
    prompts = tmp_path / "one.txt"
    prompts.write_text("Hi\nHi")
    assert "two sides: give --positive and --negative" in refused("directions", "--positive", prompts)
    both = ("--positive", prompts, "--negative", prompts)
    assert "has 1 different prompts" in refused("directions", *both)
    assert "not both" in refused("directions", *both, "--prompts", "builtin")
    assert "harmfulness is read at t_inst" in refused("directions", "--positions", "t_inst")
    assert "is a file; give a folder" in refused("directions", "--out", prompts)
