"""Control vectors of llama.cpp: what is written, read and refused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from interp.storage.control_vectors import write_control_vector
from interp.storage.direction_files import read_direction
from tests.storage.test_direction_files import layers, make


def foreign(
    path: Path, vectors: Mapping[str, np.ndarray], *, kind: str = "controlvector", **options: Any
) -> Path:
    """A control vector as other tools write it."""
    writer = gguf.GGUFWriter(str(path), kind)
    for name, values in vectors.items():
        writer.add_tensor(name, values, **options)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_control_vector_round_trip(tmp_path: Path) -> None:
    written = make(site="resid_pre", layer=5)
    path = tmp_path / "new" / "refusal.gguf"
    assert write_control_vector(path, written, architecture="qwen2", coefficient=-2.5) == path
    assert [p.name for p in path.parent.iterdir()] == ["refusal.gguf"]
    reader = gguf.GGUFReader(str(path))
    assert [tensor.name for tensor in reader.tensors] == [
        "direction.4"
    ]  # resid_pre 5 is the output of block 4
    np.testing.assert_array_equal(reader.tensors[0].data, -2.5 * written.vector.numpy())
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "qwen2"
    found = read_direction(path)
    assert (found.layer, found.site, found.kind) == (5, "resid_pre", "imported")
    assert torch.equal(found.vector, -2.5 * written.vector)


def test_control_vector_of_several_layers(tmp_path: Path) -> None:
    path, table = tmp_path / "repeng.gguf", layers(4)
    foreign(path, {f"direction.{number}": table[number].numpy() for number in (1, 2, 3)})
    for number in (1, 2, 3):
        assert torch.equal(read_direction(path, layer=number + 1).vector, table[number])
    for wrong in (None, 1, 5):
        with pytest.raises(ValueError, match=rf"has layers 2\.\.4; say which, got layer={wrong}"):
            read_direction(path, layer=wrong)


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_that_llama_cpp_cannot_reach(layer: int, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"at layer {layer} cannot be a control vector.*first layer it reaches is 2"
    ):
        write_control_vector(tmp_path / "x.gguf", make(site="resid_pre", layer=layer), architecture="llama")
    write_control_vector(tmp_path / "ok.gguf", make(site="resid_pre", layer=2), architecture="llama")
    assert [p.name for p in tmp_path.iterdir()] == ["ok.gguf"]


@pytest.mark.parametrize("site", ["resid_mid", "attn_out", "mlp_out"])
def test_sites_that_a_control_vector_cannot_express(site: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"acts on the residual stream between blocks, not at {site}"):
        write_control_vector(tmp_path / "x.gguf", make(site=site), architecture="llama")
    assert list(tmp_path.iterdir()) == []


def test_failed_writing_leaves_the_old_control_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_control_vector(tmp_path / "x.gguf", make(site="resid_pre"), architecture="llama")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_control_vector(path, make(site="resid_pre", layer=9), architecture="llama")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_gguf_that_is_no_control_vector(tmp_path: Path) -> None:
    path = foreign(
        tmp_path / "model.gguf", {"token_embd.weight": np.zeros((4, 16), np.float32)}, kind="llama"
    )
    with pytest.raises(ValueError, match=r"holds no direction\.N tensors; it is not a control vector"):
        read_direction(path, layer=2)


VECTOR = np.arange(1, 17, dtype=np.float32)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"direction.0": VECTOR}, r"'direction\.0' in it is not direction\.1 or later"),
        ({"direction.1": VECTOR, "direction.x": VECTOR}, r"'direction\.x' in it is not direction\.1"),
        ({"direction.1": VECTOR, "output.weight": VECTOR}, r"'output\.weight' in it is not direction\.1"),
        ({"direction.1": VECTOR, "direction.2": VECTOR[:8]}, r"not vectors of one length"),
        ({"direction.1": VECTOR[None]}, r"not vectors of one length"),
        ({"direction.1": VECTOR.astype(np.int32)}, r"holds direction\.1 as I32, not as floats"),
        ({"direction.1": 0 * VECTOR}, r"the vector of layer 2 is zero, which is no direction"),
        ({}, r"holds no direction\.N tensors"),
    ],
)
def test_contents_that_are_no_control_vector(
    vectors: Mapping[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    path = foreign(tmp_path / "x.gguf", {"direction.1": VECTOR})
    assert torch.equal(read_direction(path, layer=2).vector, torch.from_numpy(VECTOR))  # control
    foreign(path, vectors)
    with pytest.raises(ValueError, match=rf"x\.gguf.*{message}"):
        read_direction(path, layer=2)


def test_packed_values_are_not_read_as_numbers(tmp_path: Path) -> None:
    packed = gguf.quantize(np.tile(VECTOR, 2), gguf.GGMLQuantizationType.Q8_0)
    path = foreign(tmp_path / "x.gguf", {"direction.1": packed}, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(ValueError, match=r"holds direction\.1 as Q8_0, not as floats"):
        read_direction(path, layer=2)
    half = foreign(tmp_path / "half.gguf", {"direction.1": VECTOR.astype(np.float16)})
    assert torch.equal(read_direction(half).vector, torch.from_numpy(VECTOR))


@pytest.mark.parametrize("change", [lambda data: data + bytes(64), lambda data: data[:-4]])
def test_bytes_too_many_or_too_few_are_seen(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.gguf", {"direction.1": VECTOR, "direction.2": VECTOR})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.gguf"):
        read_direction(path, layer=2)


def test_a_number_changed_in_a_file_of_ours_is_seen(tmp_path: Path) -> None:
    written = make(site="resid_pre", layer=5)
    path = write_control_vector(tmp_path / "x.gguf", written, architecture="llama")
    data = bytearray(path.read_bytes())
    at = data.index(written.vector.numpy().tobytes()[:8])
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"x\.gguf is damaged \(its content is not what was written\)"):
        read_direction(path)


@pytest.mark.parametrize("coefficient", [0.0, float("nan"), float("inf")])
def test_a_control_vector_that_adds_nothing_or_no_number_is_not_written(
    coefficient: float, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a control vector adds a finite vector that is not zero"):
        write_control_vector(
            tmp_path / "x.gguf", make(site="resid_pre"), architecture="llama", coefficient=coefficient
        )
    assert list(tmp_path.iterdir()) == []
