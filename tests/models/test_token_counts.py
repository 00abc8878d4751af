"""Token ids without torch against those that a run uses."""

import json
from pathlib import Path

import pytest

from interp.models.chat_model import ChatModel
from interp.models.sources import ModelSource
from interp.models.token_counts import TokenCounter, model_files
from interp.models.tokens import tokenize
from tests.chat_templates import PUBLISHED, Published
from tests.conftest import PROMPTS
from tests.models.test_tokens import published_tokenizer


def test_ids_are_those_of_a_run(saved_tiny: Path, tiny: ChatModel) -> None:
    source = ModelSource(str(saved_tiny))
    counter = TokenCounter.read(model_files(source), source)
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    assert counter.ids(PROMPTS) == [tuple(row) for row in tokens.ids]
    assert counter.ids([PROMPTS[2], PROMPTS[0], PROMPTS[2]]) == [tuple(tokens.ids[i]) for i in (2, 0, 2)]
    assert counter.n_post() == tokens.n_post


@pytest.mark.parametrize("entry", [e for e in PUBLISHED if not e.options], ids=lambda entry: entry.name)
def test_ids_are_those_of_a_run_in_published_templates(entry: Published, tmp_path: Path) -> None:
    tokenizer = published_tokenizer(entry)
    tokenizer.save_pretrained(tmp_path)
    counter = TokenCounter.read(tmp_path, ModelSource(str(tmp_path)))
    texts = ["How do I bake bread?", "Hi", "  a\n{{ messages }}"]
    assert counter.ids(texts) == [tuple(row) for row in tokenize(tokenizer, texts).ids]


def test_a_template_reaches_nothing_of_python(saved_tiny: Path, tmp_path: Path) -> None:
    written = tmp_path / "written"
    for number, hostile in enumerate(
        (
            "{{ messages.__class__.__mro__[1].__subclasses__() }}",
            f"{{{{ cycler.__init__.__globals__.os.system('touch {written}') }}}}",
            "{{ raise_exception('no such role') }}",
            "{% if %}",
        )
    ):
        template = tmp_path / f"{number}.jinja"
        template.write_text(hostile)
        source = ModelSource(str(saved_tiny), chat_template=str(template))
        with pytest.raises(ValueError, match="the chat template cannot be rendered: ") as caught:
            TokenCounter.read(saved_tiny, source).ids(["Hi"])
        assert "\n" not in str(caught.value)
    assert not written.exists()


def test_what_is_missing_is_named(saved_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        TokenCounter.read(tmp_path, ModelSource(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        TokenCounter.read(tmp_path, ModelSource(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_bytes((saved_tiny / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    with pytest.raises(ValueError, match="has no chat template; give --chat-template"):
        TokenCounter.read(tmp_path, ModelSource(str(tmp_path)))
    plain = TokenCounter.read(tmp_path, ModelSource(str(tmp_path), chat_template="plain"))
    assert len(plain.ids(["Hi"])[0]) == 3  # a token a byte, and the end of the line
