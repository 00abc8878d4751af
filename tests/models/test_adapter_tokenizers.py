"""The tokenizer and template beside an adapter are those that prompts are rendered with."""

import logging
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from interp.models.adapted_models import with_adapter
from interp.models.chat_model import load
from interp.models.tokens import tokenize
from tests.conftest import CHATML, make_tokenizer, tiny_config
from tests.models.test_loading import make_adapter

ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture
def adapter(saved_tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    make_adapter(folder, AutoModelForCausalLM.from_pretrained(saved_tiny))
    return folder


def rendered(model) -> str:
    return model.tokenizer.decode(tokenize(model.tokenizer, ["Hi"]).ids[0])


def test_own_template_is_used(saved_tiny: Path, adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tokenizer(ZEPHYR).save_pretrained(adapter)
    expected = "<|user|>\nHi<|im_end|>\n<|assistant|>\n"
    with caplog.at_level(logging.WARNING, logger="interp"):
        model = load(str(saved_tiny), adapter=str(adapter))
    assert rendered(model) == expected
    assert "rendered with the chat template of adapter" in caplog.text
    assert model.template_hash != load(str(saved_tiny)).template_hash
    base = load(str(saved_tiny))
    with with_adapter(base, str(adapter)) as tuned:
        assert rendered(tuned) == expected
    assert rendered(base).startswith("<|im_start|>user")  # the base keeps its own


def test_template_that_was_asked_for_goes_first(saved_tiny: Path, adapter: Path) -> None:
    make_tokenizer(ZEPHYR).save_pretrained(adapter)
    plain = load(str(saved_tiny), adapter=str(adapter), chat_template="plain")
    assert rendered(plain) == "Hi\n"
    base = load(str(saved_tiny), chat_template="plain")
    with with_adapter(base, str(adapter)) as tuned:
        assert rendered(tuned) == "Hi\n"


def test_template_file_alone_is_used(saved_tiny: Path, adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text(ZEPHYR)
    assert rendered(load(str(saved_tiny), adapter=str(adapter))).startswith("<|user|>")


def test_tokenizer_of_the_base_stays_where_there_is_no_other(saved_tiny: Path, adapter: Path) -> None:
    base = load(str(saved_tiny))
    with with_adapter(base, str(adapter)) as tuned:
        assert tuned.tokenizer is base.tokenizer
    make_tokenizer(None).save_pretrained(adapter)  # the same tokens without a template
    assert load(str(saved_tiny), adapter=str(adapter)).tokenizer.chat_template == CHATML


def test_added_tokens_that_the_model_has_embeddings_for(saved_tiny: Path, adapter: Path) -> None:
    own = make_tokenizer(ZEPHYR)
    own.add_special_tokens({"additional_special_tokens": ["<|user|>"]}, replace_extra_special_tokens=False)
    own.save_pretrained(adapter)
    model = load(str(saved_tiny), adapter=str(adapter))
    ids = tokenize(model.tokenizer, ["Hi"]).ids[0]
    assert ids[0] == own.convert_tokens_to_ids("<|user|>")
    assert ids[0] < tiny_config().vocab_size


def test_tokenizer_that_does_not_fit_is_refused(saved_tiny: Path, adapter: Path) -> None:
    own = make_tokenizer(ZEPHYR)
    own.add_tokens([f"<new{i}>" for i in range(60)])
    own.save_pretrained(adapter)
    with pytest.raises(
        ValueError, match=r"adds \d+ tokens that the model has no embedding for, first '<new\d+>'"
    ):
        load(str(saved_tiny), adapter=str(adapter))
    make_tokenizer(ZEPHYR, special=("<pad>", "<bos>", "<eos>")).save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"gives 3 tokens of the base model another id or none"):
        load(str(saved_tiny), adapter=str(adapter))
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read the tokenizer of adapter .*adapter"):
        load(str(saved_tiny), adapter=str(adapter))
