"""The system slot on published chat templates, against prefixes typed by hand."""

import pytest

from interp.models.system_slots import system_slot
from tests.chat_templates import GEMMA, PUBLISHED, Published
from tests.conftest import PROMPTS, make_tokenizer
from tests.models.test_tokens import published_tokenizer, text_of

TEXT = "You assist people kindly. Be safe!"


@pytest.mark.parametrize("entry", [e for e in PUBLISHED if e.system_prefix], ids=lambda entry: entry.name)
def test_the_slot_holds_the_system_message_and_nothing_else(entry: Published) -> None:
    slot = system_slot(published_tokenizer(entry), PROMPTS, TEXT, template_options=entry.options)
    assert entry.system_prefix is not None
    before, after = entry.system_prefix.split("{system}")
    for row, ids in enumerate(slot.tokens.ids):
        assert text_of(slot.tokens, ids[: slot.start]) == before
        assert text_of(slot.tokens, ids[slot.start : slot.stop]) == TEXT
        assert text_of(slot.tokens, ids[slot.stop : slot.tokens.starts[row]]) == after
    filled = slot.filled(range(1000, 1000 + len(slot)))
    assert filled.ids[2][slot.start : slot.stop] == tuple(range(1000, 1000 + len(slot)))
    assert filled.ids[2][slot.stop :] == slot.tokens.ids[2][slot.stop :] and filled.ends == slot.tokens.ends


@pytest.mark.parametrize("entry", [e for e in PUBLISHED if not e.system_prefix], ids=lambda entry: entry.name)
def test_a_template_without_a_system_slot_is_refused(entry: Published) -> None:
    with pytest.raises(
        ValueError, match="the chat template has no system slot, where a safety prompt stands; load"
    ):
        system_slot(published_tokenizer(entry), PROMPTS, TEXT, template_options=entry.options)


def test_a_conversation_has_the_same_slot_and_mistakes_are_named() -> None:
    tokenizer = make_tokenizer()
    chat = [
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": TEXT},
            {"role": "user", "content": "A"},
        ]
    ]
    assert system_slot(tokenizer, chat, TEXT).start == system_slot(tokenizer, "Hi", TEXT).start
    with pytest.raises(ValueError, match="tokens already"):
        system_slot(tokenizer, system_slot(tokenizer, "Hi", TEXT).tokens, TEXT)
    with pytest.raises(ValueError, match="no token of its own"):
        system_slot(tokenizer, "Hi", " ")
    rewriting = make_tokenizer(
        "{% for m in messages %}{{ m['content'] | upper if m['role'] == 'system' else m['content'] }}\n{% endfor %}"
    )
    with pytest.raises(ValueError, match="rewrites the system message: it shows 'YOU ASSIST"):
        system_slot(rewriting, "Hi", TEXT)
    assert "raise_exception" in GEMMA  # control: the refused ones refuse by themselves
