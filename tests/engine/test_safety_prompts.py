"""The artefact: files, the model that it belongs to, the prompts that it stands in, its nearest tokens, PEFT."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import interp
from interp.engine.generation import generate, stream
from interp.engine.log_probs import next_token_log_probs
from interp.engine.safety_prompts import SafetyPrompt
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.steering import steer
from interp.storage.direction_files import write_direction
from tests.conftest import PROMPTS, make_tokenizer, tiny_config
from tests.storage.test_run_folders import small_disk

TEXT = "Be kind."


def trained(model: ChatModel, seed: int = 0) -> SafetyPrompt:
    start = SafetyPrompt.from_text(model, TEXT)
    noise = torch.randn(start.embeddings.shape, generator=torch.Generator().manual_seed(seed))
    return replace(start, embeddings=start.embeddings + noise, provenance={"objective": "dro", "n": 3})


def another(**changes: object) -> ChatModel:
    torch.manual_seed(1)
    return ChatModel(
        AutoModelForCausalLM.from_config(tiny_config(**changes)).float(), make_tokenizer(), name="other"
    )


def test_a_file_gives_back_what_was_saved(tiny: ChatModel, tmp_path: Path) -> None:
    prompt = trained(tiny)
    path = prompt.save(tmp_path / "prompt.safetensors")
    found = SafetyPrompt.read(path)
    assert torch.equal(found.embeddings, prompt.embeddings)
    for name in ("text", "model", "weights_hash", "template_hash", "provenance"):
        assert getattr(found, name) == getattr(prompt, name)
    assert list(load_file(path)) == ["soft_prompt"]
    assert generate(tiny, PROMPTS[0], safety_prompt=found, max_new_tokens=4).ids == (
        generate(tiny, PROMPTS[0], safety_prompt=prompt, max_new_tokens=4).ids
    )
    assert "SafetyPrompt(tiny: 8 embeddings" in repr(found) and interp.SafetyPrompt is SafetyPrompt


def test_a_path_with_a_tilde_is_written_where_it_is_read(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    path = trained(tiny).save("~/prompt.safetensors")
    assert path == tmp_path / "home" / "prompt.safetensors" and path.is_file()
    assert SafetyPrompt.read("~/prompt.safetensors").text == TEXT
    direction = interp.Direction(vector=torch.ones(32), layer=1, position="t_inst")
    assert write_direction("~/direction.safetensors", direction).parent == tmp_path / "home"
    assert [child.name for child in tmp_path.iterdir()] == ["home"]


def test_a_full_disk_leaves_the_older_file(tiny: ChatModel, tmp_path: Path) -> None:
    path = trained(tiny).save(tmp_path / "prompt.safetensors")
    before = path.read_bytes()
    with small_disk(len(before) - 100), pytest.raises(OSError, match=r"cannot write .*prompt.safetensors"):
        trained(tiny, seed=1).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_damaged_and_foreign_files_are_refused(tiny: ChatModel, tmp_path: Path) -> None:
    prompt = trained(tiny)
    path = prompt.save(tmp_path / "prompt.safetensors")
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="no such safety-prompt file"):
        SafetyPrompt.read(tmp_path / "absent")
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="damaged"):
        SafetyPrompt.read(path)
    path.write_bytes(whole[:-4] + b"\x00\x00\x80?")
    with pytest.raises(ValueError, match="content is not what was written"):
        SafetyPrompt.read(path)
    path.write_bytes(whole.replace(b'"format_version":"1"', b'"format_version":"7"'))
    with pytest.raises(ValueError, match="format_version 7"):
        SafetyPrompt.read(path)
    save_file({"soft_prompt": prompt.embeddings}, path)
    with pytest.raises(ValueError, match="is no safety prompt of interp"):
        SafetyPrompt.read(path)
    with pytest.raises(ValueError, match="NaN"):
        replace(prompt, embeddings=prompt.embeddings * torch.nan)


def test_another_model_is_refused_unless_it_is_moved_there(tiny: ChatModel) -> None:
    prompt, other = trained(tiny), another()
    with pytest.raises(ValueError, match=r"trained on tiny and the weights of other differ; load tiny"):
        generate(other, "Hi", safety_prompt=prompt)
    with pytest.raises(
        ValueError, match=r"has d_model 32, but other has 64: it was trained on another model \(tiny\)"
    ):
        prompt.check(another(hidden_size=64))
    moved = prompt.moved_to(other)
    assert moved.provenance["trained_on"]["model"] == "tiny" and moved.model == "other"
    assert generate(other, "Hi", safety_prompt=moved, max_new_tokens=2).ids
    template = str(tiny.tokenizer.chat_template)
    changed = ChatModel(tiny.hf, make_tokenizer(template.replace("assistant", "helper")), name="tiny")
    with pytest.raises(ValueError, match="the chat template of tiny differ"):
        prompt.check(changed)
    without = ChatModel(
        tiny.hf, make_tokenizer("{{ messages[0]['content'] if messages | length == 1 else 1 / 0 }}"), name="x"
    )
    with pytest.raises(ValueError, match="no system slot"):
        SafetyPrompt.from_text(without, TEXT)


def test_the_untrained_prompt_is_the_text(tiny: ChatModel) -> None:
    prompt = SafetyPrompt.from_text(tiny, TEXT)
    plain = tokenize(tiny.tokenizer, PROMPTS, system=TEXT)
    with prompt.standing_in(tiny, PROMPTS) as tokens:
        found = next_token_log_probs(tiny, tokens)
    torch.testing.assert_close(found, next_token_log_probs(tiny, plain), rtol=1e-4, atol=1e-5)
    assert tokens.identity.texts == PROMPTS and tokens.ends == plain.ends


def test_generate_stream_and_steer_take_it(tiny: ChatModel) -> None:
    prompt = trained(tiny)
    found = generate(tiny, PROMPTS, safety_prompt=prompt, max_new_tokens=5)
    with prompt.standing_in(tiny, PROMPTS) as tokens:
        assert generate(tiny, tokens, max_new_tokens=5).ids == found.ids
    assert found.ids != generate(tiny, PROMPTS, max_new_tokens=5).ids  # control
    ids = [step.ids[0] for step in stream(tiny, PROMPTS[1], safety_prompt=prompt, max_new_tokens=5)]
    assert tuple(ids) == generate(tiny, PROMPTS[1], safety_prompt=prompt, max_new_tokens=5).ids[0]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))
    answers = steer(
        tiny, PROMPTS[1], direction, layers=1, coefficient=9.0, max_new_tokens=5, safety_prompt=prompt
    )
    assert answers.plain == generate(tiny, PROMPTS[1], safety_prompt=prompt, max_new_tokens=5).texts
    assert answers.steered != answers.plain


def test_nearest_tokens_are_those_of_the_text_before_training(tiny: ChatModel) -> None:
    start = SafetyPrompt.from_text(tiny, TEXT)
    nearest = start.nearest_tokens(tiny, n=2)
    assert "".join(near[0].text for near in nearest) == TEXT
    assert all(1 - 1e-5 < near[0].cosine < 1 + 1e-5 and near[1].cosine < 0.99 for near in nearest)
    for n in (0, 10_000):
        with pytest.raises(ValueError, match=rf"n must be in 1..\d+, the vocabulary of tiny, got {n}"):
            start.nearest_tokens(tiny, n=n)
    far = replace(start, embeddings=2 * start.embeddings).nearest_tokens(tiny)
    norms = start.embeddings.norm(dim=-1)
    assert [row[0].distance for row in far] == pytest.approx(norms.tolist(), rel=1e-3)


def test_peft_export_where_the_slot_begins_the_prompt_and_only_there(tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"stands before the whole prompt, and this safety prompt behind '<\|im_start"
    ):
        trained(tiny).save_peft(tiny, tmp_path / "adapter")
    from peft import PeftModel

    plain = ChatModel(
        tiny.hf, make_tokenizer("{% for m in messages %}{{ m['content'] }}\n{% endfor %}"), name="plain"
    )
    prompt = trained(plain)
    folder = prompt.save_peft(plain, tmp_path / "adapter")
    slot = prompt.slot(plain, PROMPTS[0])
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(tiny_config()).float()
    fresh.load_state_dict(tiny.hf.state_dict())
    adapted = PeftModel.from_pretrained(fresh, str(folder)).eval()
    rest = torch.tensor([slot.tokens.ids[0][slot.stop :]])
    with torch.no_grad():
        found = adapted(input_ids=rest, attention_mask=torch.ones_like(rest)).logits[0, -1].log_softmax(-1)
    with prompt.standing_in(plain, PROMPTS[0]) as tokens:
        expected = next_token_log_probs(plain, tokens)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
