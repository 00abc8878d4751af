"""GGUF files: converted once to the same model, refused when damaged, and nothing left behind by what fails."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from interp.models import gguf as conversion
from interp.models.chat_model import ChatModel
from interp.models.gguf import cache_folder, convert_gguf
from interp.models.loading import load_checkpoint
from tests.conftest import CHATML
from tests.models.gguf_files import F32, U32, write_model

pytestmark = pytest.mark.usefixtures("cache")

IDS = torch.tensor([[72, 101, 108, 108, 111, 3, 250]])


def write_gguf(path: Path, model: ChatModel) -> Path:
    """The tiny model as llama.cpp's converter would write it, unquantised."""
    rope = {
        "rope.dimension_count": (model.hf.config.head_dim, U32),
        "rope.freq_base": (10000.0, F32),
        "vocab_size": (model.hf.config.vocab_size, U32),
    }
    return write_model(path, "llama", model.hf, rope)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


def test_gguf_converts_to_the_same_model_once(
    tiny: ChatModel, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny)
    found = load_checkpoint(str(path))
    # The file holds the same float32 numbers.
    torch.testing.assert_close(logits(found.hf), logits(tiny.hf), rtol=0, atol=1e-6)
    assert found.tokenizer("Hé\n")["input_ids"] == tiny.tokenizer("Hé\n")["input_ids"]
    assert found.tokenizer.chat_template == CHATML
    assert len(list(cache.iterdir())) == 1

    def again(*_: object) -> None:
        raise AssertionError("converted a second time")

    monkeypatch.setattr(conversion, "_dequantise", again)
    assert torch.equal(logits(load_checkpoint(str(path)).hf), logits(found.hf))


@pytest.mark.parametrize("kept", [50, 3000, 0.5, 0.99])
def test_truncated_gguf_is_refused_and_leaves_nothing(
    kept: float, tiny: ChatModel, tmp_path: Path, cache: Path
) -> None:
    data = write_gguf(tmp_path / "whole.gguf", tiny).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(
        ValueError, match=r"cannot read .*cut\.gguf as GGUF .*truncated or damaged, download it again"
    ):
        load_checkpoint(str(path))
    assert contents(cache) == []


def test_file_that_is_not_gguf(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"is not a GGUF file \(it does not start with 'GGUF'\)"):
        load_checkpoint(str(path))
    with pytest.raises(ValueError, match=r"no such GGUF file: .*absent\.gguf"):
        load_checkpoint(str(tmp_path / "absent.gguf"))
    assert contents(cache) == []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path]]:
    """A file that passes for GGUF, and the list of folders it was converted into by a cheap writer."""
    path, calls = tmp_path / "fake.gguf", []
    path.write_bytes(b"GGUF and then some")

    def write(_: Path, folder: Path) -> None:
        calls.append(folder)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"the weights")

    monkeypatch.setattr(conversion, "_dequantise", write)
    return path, calls


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_conversion_that_fails_midway_leaves_nothing(
    failure: BaseException, fake: tuple[Path, list[Path]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = fake
    write: Callable[[Path, Path], None] = conversion._dequantise

    def write_part(source: Path, folder: Path) -> None:
        write(source, folder)
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_dequantise", write_part)
        with pytest.raises(type(failure)):
            convert_gguf(path)
    assert len(calls) == 1
    assert contents(cache) == []
    assert (convert_gguf(path) / "model.safetensors").read_bytes() == b"the weights"


def test_full_disk_in_safetensors_is_an_oserror(
    tiny: ChatModel, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny)

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left"):
        convert_gguf(path)
    assert contents(cache) == []


@pytest.mark.parametrize(
    "damage", ["flipped byte", "truncated", "no record", "no weights", "record is no JSON"]
)
def test_damaged_copy_is_found_and_made_anew(
    damage: str, fake: tuple[Path, list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    path, calls = fake
    folder = convert_gguf(path)
    assert convert_gguf(path) == folder
    assert len(calls) == 1  # control: an intact copy is used as it is
    weights, record = folder / "model.safetensors", folder / "interp-conversion.json"
    if damage == "flipped byte":
        weights.write_bytes(b"thE weights")
    elif damage == "truncated":
        weights.write_bytes(b"the wei")
    elif damage == "no record":
        record.unlink()
    elif damage == "no weights":
        weights.unlink()
    else:
        record.write_text("{")
    with caplog.at_level(logging.WARNING, logger="interp"):
        assert convert_gguf(path) == folder
    assert "is damaged; converting" in caplog.text
    assert weights.read_bytes() == b"the weights"
    assert len(calls) == 2
    convert_gguf(path)
    assert len(calls) == 2


def test_another_file_of_the_same_name_gets_its_own_copy(fake: tuple[Path, list[Path]]) -> None:
    path, calls = fake
    first = convert_gguf(path)
    path.write_bytes(b"GGUF and other numbers")
    assert convert_gguf(path) != first
    assert len(calls) == 2


def test_cache_folder_follows_the_environment(
    fake: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = fake
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "elsewhere"))
    assert convert_gguf(path).parent == tmp_path / "elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("INTERP_CACHE", "~/models")
    assert cache_folder() == tmp_path / "home" / "models"
    monkeypatch.delenv("INTERP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "interp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "interp"
