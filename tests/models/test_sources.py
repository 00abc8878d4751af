"""What `load` is asked for: checked before anything is loaded, and identified by its files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interp.models.chat_model import ChatModel, load, load_source
from interp.models.sources import ModelSource, split_revision
from interp.models.tokens import tokenize
from interp.storage.paths import expanded
from interp.storage.provenance import IN_MEMORY

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(saved_tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in saved_tiny.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


# load(chat_template=...), load(dtype=...), load("name@revision")


def test_a_chat_template_of_a_file_or_plain_replaces_the_tokenizers_own(
    saved_tiny: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for message in messages %}<<{{ message['content'] }}>>{% endfor %}go:")
    own, plain, mine = (load(str(saved_tiny), chat_template=given) for given in (None, "plain", file))
    shown = [model.tokenizer.decode(tokenize(model.tokenizer, ["Hi"]).ids[0]) for model in (own, plain, mine)]
    assert shown[0] not in shown[1:]
    assert shown[1].endswith("Hi\n") and shown[2] == "<<Hi>>go:"
    assert mine.tokenizer.chat_template == file.read_text()
    assert [m.provenance["chat_template"] for m in (own, plain, mine)] == [None, "plain", str(file)]
    assert len({model.template_hash for model in (own, plain, mine)}) == 3


def test_a_chat_template_that_is_not_there_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    for given, message in (("nowhere.jinja", "no such chat template: nowhere.jinja"), ("empty", "is empty")):
        path = tmp_path / given
        if given == "empty":
            path.write_text("  \n")
        with pytest.raises(
            ValueError, match=message
        ):  # the model is not there either, and was not looked for
            load("nobody/no-such-model", chat_template=path if given == "empty" else given)


@pytest.mark.parametrize("dtype", ["float32", torch.float32, None])
def test_a_dtype_by_name_or_by_torch_is_what_the_model_runs_in(
    saved_tiny: Path, dtype: torch.dtype | str | None
) -> None:
    model = load(str(saved_tiny), dtype=dtype)
    assert {p.dtype for p in model.hf.parameters()} == {torch.float32}
    assert model.provenance["dtype"] == "float32"


def test_half_precision_is_what_the_weights_are_rounded_to(saved_tiny: Path, tiny: ChatModel) -> None:
    half = load(str(saved_tiny), dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.provenance["dtype"] == "bfloat16"
    for ours, theirs in zip(half.hf.parameters(), tiny.hf.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16))


def test_an_unknown_dtype_is_refused_with_the_known_ones(saved_tiny: Path) -> None:
    for dtype in ("float8", torch.float64):
        with pytest.raises(ValueError, match=r"dtype must be float32, bfloat16, float16, got 'float(8|64)'"):
            load(str(saved_tiny), dtype=dtype)


def test_a_revision_in_the_name_is_the_revision() -> None:
    assert split_revision("owner/name@abc") == ("owner/name", "abc")
    assert split_revision("owner/name") == ("owner/name", None)
    asked = ModelSource("owner/name@abc")
    assert (asked.source, asked.revision_asked(), asked.shown) == ("owner/name", "abc", "owner/name")
    assert ModelSource("owner/name", revision="abc").revision_asked() == "abc"
    with pytest.raises(ValueError, match="the name says revision abc and revision='def'; give one of them"):
        load("owner/name@abc", revision="def")
    for name, what in (("owner/name@", "revision"), ("@abc", "name")):
        with pytest.raises(ValueError, match=f"{name} has an empty {what}; write owner/name@revision"):
            load(name)
    with pytest.raises(ValueError, match="hf download owner/name`"):  # looked for without the revision
        load("owner/name@abc")


def test_a_model_on_this_machine_has_no_revision_and_every_model_a_name(saved_tiny: Path) -> None:
    for local in (str(saved_tiny), "smollm2"):
        with pytest.raises(
            ValueError, match=r"is on this machine and has no revisions, got 'main'; leave the"
        ):
            ModelSource(local, revision="main").check()
    for empty in ("", " "):
        with pytest.raises(ValueError, match=r"the model's name is empty; give smollm2"):
            load(empty)
    with pytest.raises(ValueError, match="device 'meta' holds no numbers; give cpu"):
        load(str(saved_tiny), device="meta")


def test_an_at_sign_in_a_path_is_no_revision(folder: Path) -> None:
    strange = folder.rename(folder.with_name("run@3"))
    assert split_revision(str(strange)) == (str(strange), None)
    model = load(str(strange))
    assert (model.name, model.revision) == ("run@3", None)


def test_a_source_loads_as_load_does(saved_tiny: Path) -> None:
    model = load_source(ModelSource(str(saved_tiny), dtype="bfloat16", chat_template="plain", batch_size=3))
    assert (model.dtype, model.chat_template, model.batch_size) == (torch.bfloat16, "plain", 3)


# Files


def test_the_hash_of_files_follows_their_contents_not_their_place(folder: Path, saved_tiny: Path) -> None:
    def found(place: Path) -> str | None:
        files = ModelSource(str(place)).files()
        return files and files.hash

    assert found(folder) == found(saved_tiny) == load(str(folder)).files_hash
    (folder / "trainer_state.json").write_text("{}")
    assert found(folder) == found(saved_tiny)  # no loader reads it
    weights = folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert found(folder) != found(saved_tiny)
    assert ModelSource("nobody/no-such-model").files() is None


def test_a_model_that_was_changed_in_memory_is_not_what_its_files_hold(folder: Path) -> None:
    model = load(str(folder))
    assert model.files_hash != IN_MEMORY  # control
    with torch.no_grad():
        next(model.hf.parameters()).add_(1.0)
    assert model.files_hash == IN_MEMORY
    other = load(str(folder))
    other.tokenizer.chat_template = "{{ messages[-1].content }}"
    assert other.files_hash == IN_MEMORY
    third = load(str(folder))
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert third.files_hash == IN_MEMORY  # overwritten since
    assert ChatModel(third.hf, third.tokenizer, name="made here").files_hash == IN_MEMORY


# No network


def test_an_unknown_name_without_a_network_is_one_line_without_retries_or_transformer_lens() -> None:
    code = """
import interp, sys
try:
    interp.load("nobody/no-such-model")
except ValueError as error:
    print(error)
assert "transformer_lens" not in sys.modules, "takes seconds to import, and only a bridge needs it"
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert done.stdout.count("\n") == 1 and "model 'nobody/no-such-model' is not bundled" in done.stdout
    assert "Retrying" not in done.stderr and done.stderr.count("\n") <= 1, done.stderr


def test_tokenizer_of_an_adapter_and_all_shards_count_as_files(saved_tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    asked = ModelSource(str(saved_tiny), adapter=str(folder))
    before = asked.files()
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    after = asked.files()
    assert before is not None and after is not None and before.hash != after.hash
    shards = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for shard in shards:
        shard.write_bytes(b"GGUF")
    found = ModelSource(str(shards[0])).files()
    assert found is not None and [stamp[0] for stamp in found.stamps] == shards


def test_date_is_checked_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="date must be written as 2026-01-31, got 'today'"):
        ModelSource(date="today").check()


def test_the_folder_of_a_user_who_is_not_there_is_not_there() -> None:
    for given in (ModelSource("~nobody-of-this-name/model"), ModelSource("~nobody-of-this-name")):
        with pytest.raises(ValueError, match=r"no such folder or \.gguf file: ~nobody-of-this-name"):
            given.check()
    assert expanded("~") == Path.home() and expanded("~nobody-of-this-name/x") == Path(
        "~nobody-of-this-name/x"
    )
