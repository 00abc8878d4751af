"""Conversations on published chat templates, against the tokenizer's own rendering."""

from collections.abc import Sequence
from typing import Any

import pytest

from interp.models.conversations import render_conversation, template_of
from interp.models.tokens import ChatTokens, tokenize
from tests.chat_templates import PUBLISHED, Published
from tests.conftest import CHATML, SPECIAL, make_tokenizer
from tests.models.test_tokens import published_tokenizer, text_of

QUESTION = "How do I bake bread?"
ANSWER = "With flour."
BY_NAME = {entry.name: entry for entry in PUBLISHED}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# The same words stand in several turns: only the last user turn is the instruction.
TURNS = [user(QUESTION), assistant(ANSWER), user(QUESTION)]


def rendered_by(entry: Published, messages: Sequence[Any], **options: Any) -> str:
    done = published_tokenizer(entry).apply_chat_template(
        [dict(m) for m in messages],
        tokenize=False,
        **{"add_generation_prompt": True, **options},
        **entry.options,
    )
    assert isinstance(done, str)
    return done


def part(tokens: ChatTokens, region: str, row: int = 0) -> str:
    inside = tokens.mask(row, region).tolist()
    return text_of(tokens, tuple(i for i, keep in zip(tokens.ids[row], inside, strict=True) if keep))


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_roles_are_those_of_the_last_user_turn(entry: Published) -> None:
    tokens = tokenize(published_tokenizer(entry), [TURNS], template_options=entry.options)
    whole = rendered_by(entry, TURNS)
    assert text_of(tokens, tokens.ids[0]) == whole
    assert whole.count(QUESTION) == 2  # control: the words are there twice
    before = text_of(tokens, tokens.ids[0][: tokens.starts[0]])
    assert before.count(QUESTION) == 1 and ANSWER in before
    assert part(tokens, "instruction") == QUESTION
    assert text_of(tokens, tokens.ids[0][tokens.ends[0] :]) == entry.suffix
    assert tokens.index(0, "t_post_inst") == len(tokens.ids[0]) - 1
    with pytest.raises(
        ValueError, match="position t_prefill is not there: prompt 0 has no prefilled assistant turn"
    ):
        tokens.index(0, "t_prefill")


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_one_turn_is_the_same_as_a_string(entry: Published) -> None:
    tokenizer = published_tokenizer(entry)
    options = entry.options
    alone, turn = (
        tokenize(tokenizer, given, template_options=options) for given in ([QUESTION], [[user(QUESTION)]])
    )
    assert (alone.ids, alone.starts, alone.ends) == (turn.ids, turn.starts, turn.ends)


# What is said so far; the last letters are found in template text too ("<|im_end|>").
PREFILLS = ("Sure, here is the", "end", ANSWER)


@pytest.mark.parametrize("words", PREFILLS)
@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_a_prefilled_turn_is_the_template_s_own_open_turn(entry: Published, words: str) -> None:
    messages = [*TURNS, assistant(words)]
    tokens = tokenize(published_tokenizer(entry), [messages], template_options=entry.options)
    expected = rendered_by(entry, messages, add_generation_prompt=False, continue_final_message=True)
    (ids,) = tokens.ids
    assert text_of(tokens, ids) == expected
    assert part(tokens, "prefill") == words
    assert part(tokens, "instruction") == QUESTION
    start = tokens.prefill(0)
    assert text_of(tokens, ids[start:]) == words
    assert tokens.index(0, "t_post_inst") == start - 1
    assert tokens.index(0, "t_prefill") == len(ids) - 1
    assert tokens.index(0, "t_inst") == tokens.ends[0] - 1
    assert text_of(tokens, ids[:start]) == expected.removesuffix(words)
    assert tokens.n_post == start - tokens.ends[0]
    # The regions cover the prompt once.
    regions = ("prefix", "instruction", "post_inst", "prefill")
    assert sum(tokens.mask(0, region).int() for region in regions).eq(1).all()
    assert tokens.names(0)[-1][2] == "prefill = t_prefill"


def test_what_is_cut_after_the_instruction_has_no_prefill() -> None:
    tokens = tokenize(make_tokenizer(), [[*TURNS, assistant("Sure")], QUESTION])
    cut = tokens.truncated()
    assert all(cut.prefill(row) == cut.ends[row] == len(cut.ids[row]) for row in range(2))
    assert tokens.take([1]).prefill(0) == len(tokens.ids[1])
    both = tokens.take([1]).joined(tokens.take([0]))
    assert both.prefills == tokens.prefills[::-1] and both.ids == tokens.ids[::-1]


THOUGHT = "<think>\nThe user bakes.\n</think>"


@pytest.mark.parametrize(
    "message",
    [
        assistant(f"{THOUGHT}\n\nSure"),
        assistant("Sure", reasoning_content="The user bakes."),
    ],
    ids=["in the content", "of its own"],
)
@pytest.mark.parametrize("name", ["qwen3", "smollm2", "deepseek-r1-distill", "llama-2"])
def test_a_thinking_block_has_a_role_of_its_own(name: str, message: dict[str, Any]) -> None:
    entry = BY_NAME[name]
    tokens = tokenize(published_tokenizer(entry), [[*TURNS, message]], template_options=entry.options)
    prompt = rendered_by(entry, TURNS)
    opened = prompt.endswith("<think>\n")  # the generation prompt of DeepSeek-R1 begins the block
    thought = THOUGHT.removeprefix("<think>\n") if opened else THOUGHT
    assert text_of(tokens, tokens.ids[0]) == prompt + thought + "\n\nSure"
    assert part(tokens, "thinking") == thought
    assert part(tokens, "prefill") == "\n\nSure"
    assert tokens.index(0, "t_post_inst") == tokens.prefill(0) - 1
    assert text_of(tokens, tokens.ids[0][: tokens.prefill(0)]) == prompt
    assert {role for _, _, role in tokens.names(0)[tokens.prefill(0) :]} == {
        "thinking", "prefill", "prefill = t_prefill"
    }  # fmt: skip


def test_qwen_s_thinking_is_rendered_as_its_template_does() -> None:
    entry = BY_NAME["qwen3"]
    message = assistant("Sure", reasoning_content="The user bakes.")
    text = render_conversation(published_tokenizer(entry), [*TURNS, message], entry.options).text
    assert text == rendered_by(
        entry, [*TURNS, message], add_generation_prompt=False, continue_final_message=True
    )


def test_an_open_thinking_block_is_continued() -> None:
    tokens = tokenize(make_tokenizer(), [[user("Hi"), assistant("<think>\nHm")]])
    assert part(tokens, "thinking") == "<think>\nHm"
    assert part(tokens, "prefill") == ""
    assert tokens.index(0, "t_prefill") == len(tokens.ids[0]) - 1


def test_a_template_that_closes_the_thinking_block_takes_no_other() -> None:
    entry = BY_NAME["qwen3-no-thinking"]
    with pytest.raises(ValueError, match="closes the thinking block itself"):
        tokenize(
            published_tokenizer(entry),
            [[user("Hi"), assistant(f"{THOUGHT}Sure")]],
            template_options=entry.options,
        )


def test_tools_and_systems_are_no_instruction() -> None:
    entry = BY_NAME["qwen2.5"]
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    messages = [
        {"role": "system", "content": QUESTION},
        user(QUESTION),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": QUESTION},
    ]
    tokens = tokenize(published_tokenizer(entry), [messages])
    assert text_of(tokens, tokens.ids[0]) == rendered_by(entry, messages)
    assert part(tokens, "instruction") == QUESTION
    assert text_of(tokens, tokens.ids[0][: tokens.starts[0]]).count(QUESTION) == 1  # the system message
    assert part(tokens, "post_inst").count(QUESTION) == 1  # the tool's answer


@pytest.mark.parametrize(
    ("name", "messages", "message"),
    [
        (
            "phi-3-first",
            [user("Hi"), {"role": "tool", "content": "12 o'clock"}],
            "leaves out the tool message",
        ),
        (
            "phi-3-first",
            [{"role": "system", "content": "Be kind."}, user("Hi")],
            "leaves out the system message",
        ),
        # It shows the system message only where the last turn is the user's.
        (
            "mistral-codestral",
            [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Sure")],
            "leaves out the system message",
        ),
        ("gemma", [user("Hi"), user("there")], "Conversation roles must alternate"),
        ("smollm2", [assistant("Hi")], "prompt 0 has no user message"),
        ("smollm2", [user("Hi"), assistant(" ")], "last assistant message of prompt 0 is empty"),
        ("smollm2", [user("Hi"), assistant("", tool_calls=[{}])], "ends with an assistant's tool call"),
        ("smollm2", [user(" ")], "prompt 0 is empty; remove it"),
    ],
)
def test_conversations_that_a_template_cannot_show(name: str, messages: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize(published_tokenizer(BY_NAME[name]), [messages])


def test_a_rewritten_prefill_is_refused() -> None:
    shouting = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | replace('Sure', 'SURE') }}")
    with pytest.raises(ValueError, match="changes the last assistant message of prompt 0"):
        tokenize(make_tokenizer(shouting), [[user("Hi"), assistant("Sure")]])


def test_a_system_message_joins_a_conversation_that_has_none() -> None:
    tokenizer = make_tokenizer()
    told = [{"role": "system", "content": "Be kind."}, user("Hi")]
    assert tokenize(tokenizer, [[user("Hi")]], system="Be kind.").ids == tokenize(tokenizer, [told]).ids
    with pytest.raises(ValueError, match="prompt 0 has a system message of its own; drop `system`"):
        tokenize(tokenizer, [told], system="Be brief.")


# Templates of base models


def test_the_plain_template_is_the_message_and_a_new_line(tmp_path: Any) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = template_of(tokenizer, "plain")
    tokens = tokenize(tokenizer, ["Hi", TURNS, [user("Hi"), assistant("Sure")]])
    assert text_of(tokens, tokens.ids[0]) == "Hi\n"
    assert text_of(tokens, tokens.ids[1]) == f"{QUESTION}\n{ANSWER}\n{QUESTION}\n"
    assert text_of(tokens, tokens.ids[2]) == "Hi\nSure"
    assert part(tokens, "instruction") == "Hi" and part(tokens, "post_inst") == "\n"
    path = tmp_path / "mine.jinja"
    path.write_text("Q: {{ messages[0]['content'] }}\nA:")
    assert template_of(tokenizer, path) == path.read_text()
    with pytest.raises(ValueError, match=r"no such chat template: nowhere\.jinja; give a file"):
        template_of(tokenizer, "nowhere.jinja")
    path.write_text(" ")
    with pytest.raises(ValueError, match="is empty"):
        template_of(tokenizer, path)


def test_the_plain_template_begins_as_the_tokenizer_does() -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer(None, ("<bos>", *SPECIAL))
    tokenizer.bos_token = "<bos>"
    assert not template_of(tokenizer, "plain").startswith("{{ bos_token }}")  # it has one and adds none
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", int(tokenizer.bos_token_id))]
    )
    tokenizer.chat_template = template_of(tokenizer, "plain")
    assert tokenize(tokenizer, ["Hi"]).ids == (tuple(tokenizer("Hi\n")["input_ids"]),)
