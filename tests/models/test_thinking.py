"""Thoughts and answers, in the marks of several families."""

import pytest

from interp.models.chat_model import load
from interp.models.conversations import with_thinking
from interp.models.thinking import MARKS, opens_thought, separated


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_every_kind_of_mark(opening: str, closing: str) -> None:
    whole = separated(f"{opening}\nI cannot see it.\nNo.\n{closing}\n\nMix flour.")
    assert whole == ("I cannot see it.\nNo.", "Mix flour.", True)
    assert separated(f"{opening}\nI cannot see") == ("I cannot see", "", False)
    assert separated("I cannot see", opened=True) == ("I cannot see", "", False)
    assert separated(f"{opening}\n\n{closing}\n\nMix flour.") == ("", "Mix flour.", True)
    assert opens_thought(f"<|assistant|>{opening}\n") and not opens_thought(f"{opening}\n\n{closing}\n\n")
    if opening != MARKS[-1][0]:  # plain words, which only count where the opening ones were said
        assert separated(f"I cannot see it.\n{closing}\nMix flour.") == (
            "I cannot see it.",
            "Mix flour.",
            True,
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mix flour.", (None, "Mix flour.", True)),
        (" Mix flour.\n", (None, " Mix flour.\n", True)),  # a reply without a thought is left as it is
        ("", (None, "", True)),
        ("Write <think> before a thought.", (None, "Write <think> before a thought.", True)),
        ("<think>a</think>One <think> is a tag.", ("a", "One <think> is a tag.", True)),
        ("<think>a</think>One.\n<think>b</think>Two.", ("a\nb", "One.\nTwo.", True)),
        ("<think>a</think>One.\n<think>b", ("a\nb", "One.", True)),
        ("<think>a</think>\n<think>b", ("a\nb", "", False)),
        ("<think>a</think><answer>One.</answer>", ("a", "One.", True)),
        ("Sure.\n<think>\nI cannot see", ("I cannot see", "Sure.", True)),
        ("\ufeff\n<think>I cannot", ("I cannot", "", False)),
        ("Write\n`<think>` before a thought.", (None, "Write\n`<think>` before a thought.", True)),
        ("analysisWe see. I cannot", ("We see. I cannot", "", False)),
        ("analysis of it: I cannot", (None, "analysis of it: I cannot", True)),
        ("analysisThe user asks.assistantfinalI can’t help.", ("The user asks.", "I can’t help.", True)),
        (
            "<|channel|>analysis<|message|>Asks.<|end|><|start|>assistant<|channel|>final<|message|>No.",
            ("Asks.", "No.", True),
        ),
    ],
)
def test_forms_of_replies(text: str, expected: tuple[str | None, str, bool]) -> None:
    assert separated(text) == expected


SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}off{% else %}on{% endif %}"


def test_thinking_is_switched_in_the_template(saved_tiny, tmp_path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}" + SWITCH + ":{{ m.content }}\n{% endfor %}")
    hashes = set()
    for thinking, word in ((None, "on"), (True, "on"), (False, "off")):
        model = load(str(saved_tiny), chat_template=template, thinking=thinking)
        rendered = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert str(rendered).startswith(f"{word}:")
        hashes.add(model.template_hash)
        hf, tokenizer = model.hf, load(str(saved_tiny), chat_template=template).tokenizer
        again = load(
            hf, tokenizer=tokenizer, thinking=thinking
        )  # loaded already: the same prompt, the same provenance
        assert (again.template_hash, again.thinking) == (model.template_hash, model.thinking)
        assert tokenizer.chat_template == template.read_text()
    assert len(hashes) == 3  # part of what identifies a result
    with pytest.raises(ValueError, match="no switch for thinking"):
        load(str(saved_tiny), thinking=False)
    assert with_thinking({"default": SWITCH}, False)["default"].endswith(SWITCH)
    assert with_thinking("{{ thinking }}", True).startswith("{%- set thinking = true -%}")
    with pytest.raises(ValueError, match="no switch"):
        with_thinking("{{ message.thinking }}<thinking>", True)
