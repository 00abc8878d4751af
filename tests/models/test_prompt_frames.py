"""The frame around an instruction: dates that are pinned, and what was fitted under another frame."""

import datetime
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.detectors.latent_guard import LatentGuard
from interp.engine.activations import collect
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.models.chat_model import ChatModel, load
from interp.models.conversations import DATE_ATTRIBUTE
from interp.models.prompt_frames import frame_difference
from interp.models.tokens import tokenize
from interp.representations.steering import find_directions
from interp.storage.direction_files import read_direction, write_direction
from tests.conftest import CHATML, make_tokenizer
from tests.families import COVERED, build

SYSTEM = "<|im_start|>system\nToday: {date}<|im_end|>\n"
TEMPLATES = {
    "strftime_now": SYSTEM.format(date="{{ strftime_now('%d %b %Y') }}") + CHATML,
    "another format": SYSTEM.format(date="{{ strftime_now('%A, %Y-%m-%d') }}") + CHATML,
    "through a variable": "{%- set d = strftime_now('%B %d') %}" + SYSTEM.format(date="{{ d }}") + CHATML,
    "date_string or the clock": (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
        + SYSTEM.format(date="{{ date_string }}")
        + CHATML
    ),
}


def model_of(template: str, date: str | None = None) -> ChatModel:
    return ChatModel(build(*COVERED["llama"]), make_tokenizer(template), name="tiny", date=date)


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_date_is_pinned_and_part_of_the_provenance(case: str) -> None:
    third, again, fourth = (model_of(TEMPLATES[case], f"2026-01-0{day}") for day in (3, 3, 4))
    a, b, c = (collect(model, ["Hi"])["resid_pre"] for model in (third, again, fourth))
    assert torch.equal(a, b)
    assert (a - c).abs().max() > 1e-3  # control: the date is in the prompt
    assert third.template_hash == again.template_hash != fourth.template_hash
    assert third.provenance["date"] == "2026-01-03"
    assert third.provenance["prompt_frame"] == again.provenance["prompt_frame"]
    assert (
        third.prompt_frame and fourth.prompt_frame and third.prompt_frame.before != fourth.prompt_frame.before
    )
    assert third.prompt_frame.after == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("layout", ["%H:%M", "%S", "%I %p", "%X", "%s", "%f", "%k", "%r"])
def test_a_time_of_day_is_pinned_as_well(layout: str) -> None:
    """The hour alone was taken for no date, and the prompts of every minute were other ones."""
    model = model_of(SYSTEM.format(date="{{ strftime_now('LAYOUT') }}".replace("LAYOUT", layout)) + CHATML)
    midnight = datetime.datetime.combine(datetime.date.today(), datetime.time.min)
    assert model.date == midnight.date().isoformat()
    assert model.prompt_frame and f"Today: {midnight.strftime(layout)}<" in model.prompt_frame.before


def test_the_pinned_clock_writes_dates_as_the_real_one() -> None:
    layouts = ["%d %b %Y", "%A, %-d. %B %y", "%Y-%m-%d %H:%M:%S", "%j of %Y, 100%%", "%F", "%c"]
    day = datetime.datetime(2026, 1, 3)
    for layout in layouts:
        model = model_of("{{ strftime_now('LAYOUT') }}|".replace("LAYOUT", layout) + CHATML, "2026-01-03")
        assert model.prompt_frame and model.prompt_frame.before.split("|")[0] == day.strftime(layout)


def test_the_day_of_loading_stays_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    given = make_tokenizer(TEMPLATES["strftime_now"])
    with caplog.at_level(logging.WARNING, logger="interp"):
        model = ChatModel(build(*COVERED["llama"]), given, name="tiny")
    assert model.date is not None and f"give date='{model.date}'" in caplog.text
    assert not vars(given).get(DATE_ATTRIBUTE)  # the tokenizer that was given is as it was


def test_a_template_without_a_date_is_left_alone_and_refuses_one() -> None:
    given = make_tokenizer()
    model = ChatModel(build(*COVERED["llama"]), given, name="tiny")
    assert model.tokenizer is given and model.date is None
    with pytest.raises(ValueError, match="date='2026-01-03' is given, and the chat template shows no date"):
        model_of(CHATML, "2026-01-03")
    with pytest.raises(ValueError, match="date must be written as 2026-01-31, got '3 Jan'"):
        model_of(TEMPLATES["strftime_now"], "3 Jan")


def test_load_pins_the_date_of_a_variable(saved_tiny: Path, tmp_path: Path) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text(SYSTEM.format(date="{{ current_date }}") + CHATML)
    model = load(str(saved_tiny), chat_template=template, date="2026-01-03")
    assert model.prompt_frame and "Today: 03 Jan 2026" in model.prompt_frame.before


def test_guard_of_another_frame_is_refused(tmp_path: Path) -> None:
    from interp.data.prompts import load_prompts

    template = TEMPLATES["strftime_now"]
    yesterday, today = model_of(template, "2026-01-03"), model_of(template, "2026-01-04")
    guard = LatentGuard.fit(yesterday, load_prompts("builtin"), n_prompts=8, max_new_tokens=1)
    guard = LatentGuard.load(guard.save(tmp_path / "guard.safetensors"))
    assert guard.score(yesterday, ["Hi"])
    with pytest.raises(ValueError, match=r"another frame: .*03 Jan.* and is .*04 Jan.*date='2026-01-03'"):
        guard.score(today, ["Hi"])
    other = model_of("{{ '<|im_start|>' }}" + CHATML)
    with pytest.raises(ValueError, match="another frame"):
        guard.score(other, ["Hi"])


def test_direction_of_another_frame_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from interp.data.prompts import load_prompts

    template = TEMPLATES["strftime_now"]
    yesterday, today = model_of(template, "2026-01-03"), model_of(template, "2026-01-04")
    direction = find_directions(yesterday, load_prompts("builtin"), n_prompts=4)["refusal"]
    write_direction(tmp_path / "d.safetensors", direction)
    stored = read_direction(tmp_path / "d.safetensors")
    for given in (direction, stored):
        for intervention in (Ablate(given), Add(given)):
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="interp"):
                generate(yesterday, ["Hi"], interventions=[intervention], max_new_tokens=2)
            assert "another frame" not in caplog.text  # control: its own model
    with caplog.at_level(logging.WARNING, logger="interp"):
        for _ in range(2):
            generate(today, ["Hi"], interventions=[Ablate(stored)], max_new_tokens=2)
    assert caplog.text.count("another frame") == 1
    assert "03 Jan" in caplog.text and "04 Jan" in caplog.text


def test_difference_of_frames_in_words() -> None:
    assert frame_difference(["a", "b"], ("a", "b")) is None
    assert frame_difference(None, ("a", "b")) is None  # files of before hold no frame
    assert frame_difference(("a", "xb"), ("a", "xc")) == "the text after the instruction was 'xb' and is 'xc'"


# Templates under which roles coincide, or without BOS


def with_bos(template: str | None) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(template, special=("<pad>", "<bos>", "<eos>"))
    tokenizer.bos_token = "<bos>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_template_without_end_or_bos_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="interp"):
        tokens = tokenize(with_bos("{{ messages[0].content }}\n"), ["Hi", "Hello there"])
    assert tokens.index(0, "t_inst") == tokens.index(0, "t_post_inst")
    assert "t_inst and t_post_inst are the same token" in caplog.text
    assert "the chat template has no <bos>" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="interp"):
        tokens = tokenize(with_bos("{{ bos_token }}{{ messages[0].content }}{{ '\n' }}"), ["Hi"])
    assert caplog.text == "" and tokens.n_post == 1
    with caplog.at_level(logging.WARNING, logger="interp"):
        tokenize(make_tokenizer("{{ messages[0].content }}!"), ["Hi"])
    assert caplog.text == ""  # a tokenizer that adds no BOS needs none in its template


# Template tokens that take in white space of the instruction


@pytest.mark.parametrize("text", ["Hi", "  Hi", "\n\tHi there", "Hi  ", " Hi \n"])
def test_token_that_swallows_white_space_belongs_to_the_template(text: str) -> None:
    from tokenizers import AddedToken

    tokenizer = make_tokenizer("<|user|>{{ messages[0].content }}<|end|><|bot|>")
    added: Any = [
        AddedToken(name, rstrip=name == "<|user|>", lstrip=name == "<|end|>", special=True)
        for name in ("<|user|>", "<|end|>", "<|bot|>")
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": added}, replace_extra_special_tokens=False)
    tokens = tokenize(tokenizer, [text])
    words = [(name, role) for _, name, role in tokens.names(0)]
    assert words[0] == ("<|user|>", "prefix")
    assert [name for name, role in words if role in ("instruction", "t_inst")] == list(
        text.strip().replace(" ", " ")
    )
    assert words[-2:] == [("<|end|>", "post_inst[0]"), ("<|bot|>", "post_inst[1] = t_post_inst")]
