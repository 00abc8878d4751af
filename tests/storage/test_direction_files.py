"""Direction files: ours and other tools', and what is refused."""

import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.directions import Direction
from interp.storage.direction_files import (
    as_direction,
    direction_bytes,
    read_direction,
    read_direction_evaluations,
    read_published_tensor,
    write_direction,
)


def make(**changes: object) -> Direction:
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    settings = {
        "vector": vector,
        "layer": 5,
        "position": "post_inst[-2]",
        "site": "resid_mid",
        "sign": "refused - complied",
        "kind": "probe",
        "mean_activation_norm": 12.345678901234567,
        "provenance": {"model": "tiny", "prompts": {"name": "builtin", "hash": "ab"}, "seed": 0, "note": "é"},
    }
    return Direction(**{**settings, **changes})


def layers(n: int, d_model: int = 16) -> Tensor:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(1))


def rewrite(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the metadata of a direction file."""
    with safe_open(str(path), framework="pt") as stream:
        metadata, vector = dict(stream.metadata()), stream.get_tensor("direction")
    change(metadata)
    save_file({"direction": vector}, path, metadata)


# Ours


@pytest.mark.parametrize(
    "changes", [{}, {"mean_activation_norm": None, "provenance": {}, "layer": 0}, {"vector": torch.zeros(16)}]
)
def test_round_trip_of_every_field(changes: dict[str, object], tmp_path: Path) -> None:
    written = make(**changes)
    path = tmp_path / "new" / "refusal.safetensors"
    assert write_direction(path, written) == path
    found = read_direction(path)
    assert torch.equal(found.vector, written.vector)
    for field in fields(Direction):
        if field.name != "vector":
            assert getattr(found, field.name) == getattr(written, field.name), field.name
    assert len(path.read_bytes()) == len(direction_bytes(written))  # the header's order is not fixed
    assert [p.name for p in path.parent.iterdir()] == ["refusal.safetensors"]


def test_half_precision_is_kept_in_float32(tmp_path: Path) -> None:
    vector = make().vector.bfloat16()
    found = read_direction(write_direction(tmp_path / "d.safetensors", make(vector=vector)))
    assert found.vector.dtype == torch.float32
    assert torch.equal(found.vector, vector.float())


def test_file_can_be_read_without_us(tmp_path: Path) -> None:
    path = write_direction(tmp_path / "d.safetensors", make())
    with safe_open(str(path), framework="pt") as stream:
        metadata = stream.metadata()
        assert torch.equal(stream.get_tensor("direction"), make().vector)
    assert (metadata["format"], metadata["format_version"]) == ("interp-direction", "2")
    assert float(metadata["norm"]) == pytest.approx(make().vector.norm().item())
    assert json.loads(metadata["provenance"])["prompts"]["hash"] == "ab"


def test_newer_format_is_refused(tmp_path: Path) -> None:
    path = write_direction(tmp_path / "d.safetensors", make())
    rewrite(path, lambda metadata: metadata.update(format_version="2"))
    assert read_direction(path).layer == 5  # control: the rewriting itself does no harm
    rewrite(path, lambda metadata: metadata.update(format_version="3"))
    with pytest.raises(ValueError, match=r"has format_version 3, this interp reads up to 2; upgrade interp"):
        read_direction(path)


def test_a_file_of_ours_without_its_hash_is_refused_unless_it_is_of_the_first_format(tmp_path: Path) -> None:
    path = write_direction(tmp_path / "d.safetensors", make())
    rewrite(path, lambda metadata: metadata.pop("sha256"))
    with pytest.raises(ValueError, match=r"d\.safetensors is damaged \(no sha256 in it\)"):
        read_direction(path)
    rewrite(path, lambda metadata: metadata.update(format_version="1"))
    assert read_direction(path).layer == 5
    rewrite(path, lambda metadata: metadata.update(format_version="0"))
    with pytest.raises(ValueError, match=r"d\.safetensors is damaged \(format_version '0'\)"):
        read_direction(path)


# The refusal-direction repository


def test_direction_pt_with_metadata(tmp_path: Path) -> None:
    vector = make().vector.double()
    torch.save(vector, tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -2, "layer": 7}))
    found = read_direction(tmp_path / "direction.pt")
    assert (found.layer, found.position, found.site, found.kind) == (7, "-2", "resid_pre", "imported")
    assert found.vector.dtype == torch.float32
    torch.testing.assert_close(found.vector, make().vector)
    assert found.provenance == {"file": "direction.pt"}


def test_direction_pt_without_metadata_needs_its_layer(tmp_path: Path) -> None:
    torch.save(make().vector, tmp_path / "direction.pt")
    with pytest.raises(
        ValueError, match=r"one vector and no direction_metadata\.json beside it; say its layer"
    ):
        read_direction(tmp_path / "direction.pt")
    assert read_direction(tmp_path / "direction.pt", layer=3).layer == 3


@pytest.mark.parametrize(("position", "name"), [(-1, "-1"), (-3, "-3"), (0, "-3"), (2, "-1")])
def test_mean_diffs(position: int, name: str, tmp_path: Path) -> None:
    table = torch.stack([layers(4), 2 * layers(4), 3 * layers(4)])
    torch.save(table, tmp_path / "mean_diffs.pt")
    found = read_direction(tmp_path / "mean_diffs.pt", layer=2, position=position)
    assert torch.equal(found.vector, table[position, 2])
    assert (found.layer, found.position) == (2, name)


@pytest.mark.parametrize("position", [None, 3, -4])
def test_mean_diffs_position_out_of_range(position: int | None, tmp_path: Path) -> None:
    torch.save(torch.ones(3, 4, 16), tmp_path / "mean_diffs.pt")
    with pytest.raises(ValueError, match=rf"has 3 positions; say which, got position={position}"):
        read_direction(tmp_path / "mean_diffs.pt", layer=2, position=position)


@pytest.mark.parametrize("layer", [None, 4, -1])
@pytest.mark.parametrize("shape", [(3, 4, 16), (4, 16)])
def test_layer_out_of_range(shape: tuple[int, ...], layer: int | None, tmp_path: Path) -> None:
    torch.save(torch.ones(shape), tmp_path / "mean_diffs.pt")
    with pytest.raises(ValueError, match=rf"has layers 0\.\.3; say which, got layer={layer}"):
        read_direction(tmp_path / "mean_diffs.pt", layer=layer, position=-1)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensor_of_layers(suffix: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"directions{suffix}", layers(4)
    if suffix == ".pt":
        torch.save(table, path)
    else:
        save_file({"directions": table}, path)
    found = read_direction(path, layer=3)
    assert torch.equal(found.vector, table[3])
    assert (found.layer, found.kind) == (3, "imported")


def test_shapes_and_containers_that_are_no_direction(tmp_path: Path) -> None:
    torch.save(torch.ones(1, 2, 3, 4), tmp_path / "four.pt")
    with pytest.raises(ValueError, match=r"has shape \(1, 2, 3, 4\); expected \[d_model\]"):
        read_direction(tmp_path / "four.pt")
    torch.save({"a": torch.ones(3)}, tmp_path / "dict.pt")
    with pytest.raises(ValueError, match=r"holds a dict, not a tensor"):
        read_direction(tmp_path / "dict.pt")
    save_file({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 tensors and no interp metadata"):
        read_direction(tmp_path / "two.safetensors")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_pickled_code_is_not_run(how: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "direction.pt", tmp_path / "was-here"
    if how == "torch.save":
        torch.save(Trap(marker), path)
    else:
        path.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(ValueError, match=r"cannot read .*direction\.pt as weights-only"):
        read_direction(path, layer=0)
    assert not marker.exists()
    if how == "torch.save":  # control: the trap is one
        torch.load(path, weights_only=False)
        assert marker.exists()


# Whatever the format


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.pt"])
def test_rubbish_is_refused_with_the_file_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"certainly not a direction")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_direction(tmp_path / name, layer=2)


def test_unknown_suffix_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"unknown kind of direction file; known: \.safetensors, \.pt, \.gguf"
    ):
        read_direction(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"no such direction file: .*absent\.pt"):
        read_direction(tmp_path / "absent.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["ours", ".pt", ".gguf"])
def test_values_that_are_not_finite_are_refused(kind: str, value: float, tmp_path: Path) -> None:
    bad = make().vector.clone()
    bad[3] = value
    if kind == "ours":
        path = write_direction(tmp_path / "d.safetensors", make())
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata()
        save_file({"direction": bad}, path, metadata)
    elif kind == ".pt":
        path = tmp_path / "d.pt"
        torch.save(torch.stack([bad] * 3), path)
    else:
        path = tmp_path / "d.gguf"
        writer = gguf.GGUFWriter(str(path), "controlvector")
        writer.add_tensor("direction.1", bad.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        read_direction(path, layer=2)


def test_published_evaluations_become_the_table_that_pick_takes(tmp_path: Path) -> None:
    from interp.representations.selection import pick

    path = tmp_path / "direction_evaluations.json"
    rows = [
        {"position": -1, "layer": 3, "refusal_score": -2.0, "steering_score": 1.0, "kl_div_score": 0.05},
        {"position": -2, "layer": 4, "refusal_score": -9.0, "steering_score": 1.0, "kl_div_score": 0.5},
        {
            "position": -3,
            "layer": 5,
            "refusal_score": float("nan"),
            "steering_score": 1.0,
            "kl_div_score": 0.0,
        },
    ]
    path.write_text(json.dumps(rows))
    table = read_direction_evaluations(path)
    assert table[0] == {"position": -1, "layer": 3, "bypass": -2.0, "induce": 1.0, "kl": 0.05}
    found = pick(table, n_layers=10)
    assert (found.position, found.layer) == (-1, 3)
    del rows[1]["steering_score"]
    path.write_text(json.dumps(rows))
    with pytest.raises(
        ValueError, match=r"direction_evaluations\.json is damaged \(1\.steering_score: field req"
    ):
        read_direction_evaluations(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=r"is damaged \(invalid JSON"):
        read_direction_evaluations(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="should be a valid array"):
        read_direction_evaluations(path)
    with pytest.raises(ValueError, match="no such file"):
        read_direction_evaluations(tmp_path / "absent.json")


def test_published_tensors_open_safely_and_contiguous(tmp_path: Path) -> None:
    wide = torch.randn(5, 7 * 8).half()
    torch.save(wide[:, ::7], tmp_path / "view")
    torch.save(wide.numpy()[:, :8], tmp_path / "numpy")
    found = read_published_tensor(tmp_path / "view")
    assert found.is_contiguous()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wide[:, ::7].float())
    torch.testing.assert_close(read_published_tensor(tmp_path / "numpy"), wide[:, :8].float())
    torch.save({"a": wide}, tmp_path / "dict")
    with pytest.raises(ValueError, match="holds a dict, not a tensor"):
        read_published_tensor(tmp_path / "dict")
    with pytest.raises(ValueError, match="no such file"):
        read_published_tensor(tmp_path / "absent")

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save(Evil(), tmp_path / "evil")
    with pytest.raises(ValueError, match="as weights-only"):
        read_published_tensor(tmp_path / "evil")


def test_numbers_in_any_form_are_a_direction_and_others_are_not() -> None:
    values = np.array([1.0, -2.0, 3.0])
    for given in (values, values.astype(">f4"), values.astype(object), values.astype(np.int8), [1, -2.0, 3]):
        assert torch.equal(torch.as_tensor(as_direction(given)), torch.tensor([1.0, -2.0, 3.0]))
    # Once the real part, ones and zeros, and the numbers under the mask.
    masked = np.ma.masked_array(values, mask=[True, False, False])
    for wrong in (values + 1j, values > 0, masked):
        with pytest.raises(ValueError, match="a direction is a Direction, a tensor, a numpy vector"):
            as_direction(wrong)
