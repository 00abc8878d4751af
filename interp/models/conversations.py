"""Conversations rendered with the tokenizer's template, with the positions of the last instruction and the prefill.

    system | user | assistant | tool | ... | user: INSTRUCTION | assistant: <think> ... </think> PREFILL

The instruction is the message of the last user turn. Its position is found by rendering the same conversation once more
with a sentinel in its place, so that the same words in an earlier turn, or template text inside the instruction, are
not mistaken for it. A conversation that ends with an assistant's message is left open for the model to continue: the
message is its prefill, rendered as the template renders an assistant's turn. A thinking block at its beginning, as
`<think>...` in the content or as `reasoning_content`, is inserted unchanged after the generation prompt, since many
templates drop or rewrite it; without a closing tag the model continues thinking.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from interp.models.prompt_inputs import Message
from interp.models.sources import PLAIN, read_template
from interp.models.template_bounds import check_length, check_template

# Sentinels that replace a message to find the template text around it; plain letters, which no template alters.
_SENTINEL = "INSTRUCTIONSENTINELQJXKZ"
_END = "PREFILLSENTINELQJXKZ"

THINKING_TAGS = ("<think>", "</think>")
"""Opening and closing tag of a thinking block."""
_REASONING = ("reasoning_content", "reasoning", "thinking")

"""Name of the template for base models: each message on a line of its own."""
_PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"

NO_SYSTEM_SLOT = (
    "the chat template has no system slot, where a safety prompt stands; load the model with chat_template= a template "
    "that takes a system message, or take another model"
)

DATE_ATTRIBUTE = "interp_template_date"
"""Attribute of a tokenizer that holds the `TemplateDate` of its template, where it is pinned."""

Options = Mapping[str, Any] | None
"""Variables for the chat template, such as `{"enable_thinking": False}`."""


class TemplateDate(NamedTuple):
    """A date on which a tokenizer's template is rendered (`interp.models.prompt_frames`)."""

    iso: str
    """The date, ISO 8601."""
    prelude: str
    """Template text that goes before the template and defines its clock."""
    options: Mapping[str, Any]
    """Variables of the template that hold the date."""


class RenderedPrompt(NamedTuple):
    """A rendered prompt with the character positions of its parts."""

    text: str
    instruction: tuple[int, int]
    """Character span of the last user turn's message."""
    thinking: tuple[int, int] | None
    """Character span of the thinking block in the prefilled turn, tags included; None without one."""
    prefill: int
    """First character of the prefilled turn; the length of the text without one."""


def render_instructions(
    tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], system: str | None, options: Options
) -> list[RenderedPrompt]:
    """Render each instruction as a conversation of one turn.

    Raises:
        ValueError: as for `render_conversation`.
    """

    def messages(text: str) -> list[Message]:
        first = [] if system is None else [{"role": "system", "content": system}]
        return [*first, {"role": "user", "content": text}]

    before, after = _around(lambda text: _render(tokenizer, messages(text), options))
    if system is not None:
        _check_nothing_left_out(messages(_SENTINEL), lambda m: _render(tokenizer, m, options))
    rendered = []
    for row, text in enumerate(instructions):
        whole = _render(tokenizer, messages(text), options)
        rendered.append(RenderedPrompt(whole, _find(text, whole, before, after, row), None, len(whole)))
    return rendered


def render_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The rendered text before and after a single instruction.

    Raises:
        ValueError: as for `render_conversation`.
    """
    return _around(lambda text: _render(tokenizer, [{"role": "user", "content": text}], None))


def before_system(tokenizer: PreTrainedTokenizerBase, options: Options = None) -> str:
    """The rendered text before a system message.

    Raises:
        ValueError: no chat template, or one that rejects, hides, rewrites or repeats system messages.
    """
    turns: list[Message] = [{"role": "system", "content": _END}, {"role": "user", "content": _SENTINEL}]
    try:
        whole = _render(tokenizer, turns, options)
    except ValueError as error:
        if not tokenizer.chat_template:
            raise
        raise ValueError(f"{NO_SYSTEM_SLOT} ({error})") from None
    if whole.count(_END) != 1:
        raise ValueError(f"{NO_SYSTEM_SLOT} (it shows a system message {whole.count(_END)} times)")
    return whole.split(_END)[0]


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: Options, *, row: int = 0
) -> RenderedPrompt:
    """Render a conversation up to the point where the model continues it.

    Args:
        row: index of the prompt in messages.

    Raises:
        ValueError: no user turn, no chat template, one that rejects or drops a message, or one that hides or
            rewrites the instruction or the prefill.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise ValueError(f"prompt {row} has no user message; its roles are those of the last user turn")
    final = messages[-1] if messages[-1]["role"] == "assistant" else None
    head, words = list(messages), ""
    if final is not None:
        head, words = head[:-1], _words(final, row)
    thinks = words.lstrip().startswith(THINKING_TAGS[0])
    instruction = str(messages[users[-1]]["content"])

    def prompt(turns: Sequence[Message]) -> str:
        """The rendered text before the assistant's own words."""
        if final is None or thinks:
            return _render(tokenizer, turns, options)
        return _open(tokenizer, turns, "", options)

    def with_text(text: str) -> list[Message]:
        return [{**m, "content": text} if i == users[-1] else m for i, m in enumerate(head)]

    before, after = _around(lambda text: prompt(with_text(text)))
    whole = prompt(head)
    span = _find(instruction, whole, before, after, row)
    _check_nothing_left_out(head, prompt)
    if final is None:
        return RenderedPrompt(whole, span, None, len(whole))
    if thinks:
        return _with_thinking(whole, span, words.lstrip(), after)
    opened = _open(tokenizer, head, words, options)
    for kept in (words, words.lstrip()):
        if opened == whole + kept:
            return RenderedPrompt(opened, span, None, len(whole))
    raise ValueError(
        f"the chat template changes the last assistant message of prompt {row}; its tokens have no roles under this "
        "template"
    )


class TokenPlaces(NamedTuple):
    """Token positions of the parts of a rendered prompt."""

    start: int
    """First token of the instruction."""
    end: int
    """First token after the instruction."""
    prefill: int
    """First token of the prefilled turn; the number of tokens without one."""
    thinking: tuple[int, int]
    """Token span of its thinking block; an empty span at the end without one."""


def token_places(offsets: Sequence[tuple[int, int]], prompt: RenderedPrompt) -> TokenPlaces:
    """Find the tokens of the parts of a prompt from the characters that each token covers."""
    begin, finish = prompt.instruction
    # Tokenizers that trim their offsets (GPT-2) give a token of spaces zero width, at the end of the spaces.
    covering = [i for i, (a, b) in enumerate(offsets) if b > begin and (a < finish or b == finish)]
    # A token of the template that takes in white space of the instruction (Phi-3's `<|user|>`) belongs to the template.
    reaching_out = [i for i in covering if offsets[i][0] < begin or offsets[i][1] > finish]
    spaces = {i for i in reaching_out if not _instruction_in(offsets[i], prompt).strip()}
    inside = [i for i in covering if i not in spaces] or covering
    # A token that straddles the instruction's end contains template characters: it is t_inst only if the instruction
    # has no other token.
    whole = [i for i in inside if offsets[i][1] <= finish]
    end = (whole or inside)[-1] + 1
    own = [i for i, (_, b) in enumerate(offsets) if b > prompt.prefill]
    prefill = max(end, own[0]) if own else len(offsets)
    thinking = (len(offsets), len(offsets))
    if prompt.thinking is not None:
        thoughts = [i for i in own if offsets[i][0] < prompt.thinking[1]]
        thinking = (prefill, thoughts[-1] + 1)
    return TokenPlaces(inside[0], end, prefill, thinking)


def _instruction_in(offsets: tuple[int, int], prompt: RenderedPrompt) -> str:
    """What a token covers of the instruction."""
    (start, stop), (begin, finish) = offsets, prompt.instruction
    return prompt.text[max(start, begin) : min(stop, finish)]


def template_of(tokenizer: PreTrainedTokenizerBase, given: str | Path) -> str:
    """The chat template of a name or a file.

    Args:
        given: `plain`, or a file with a Jinja template.

    Raises:
        ValueError: no such file, or an empty one.
    """
    if (template := read_template(given)) is None:
        # Templates contain their own BOS; base models trained with one work badly without it.
        special = list(tokenizer("")["input_ids"])  # pyright: ignore[reportArgumentType]
        adds = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in special
        return ("{{ bos_token }}" if adds else "") + _PLAIN_TEMPLATE
    return template


_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which chat templates switch thinking."""


def with_thinking(template: Any, thinking: bool) -> Any:
    """The chat template (or each of several by name) with thinking switched on or off.

    Raises:
        ValueError: a template without such a switch.
    """
    if isinstance(template, Mapping):
        return {name: with_thinking(one, thinking) for name, one in template.items()}
    # As a variable: not an attribute, a key or text.
    used = [name for name in _SWITCHES if re.search(rf"(?<![\w.'\"<\[/]){name}(?![\w'\">:])", template or "")]
    if not used:
        raise ValueError(
            f"the chat template has no switch for thinking ({' or '.join(_SWITCHES)}); load the model without one"
        )
    return f"{{%- set {used[0]} = {str(thinking).lower()} -%}}{template}"


def _words(final: Message, row: int) -> str:
    """The assistant's words so far, including its thinking."""
    if final.get("tool_calls"):
        raise ValueError(
            f"prompt {row} ends with an assistant's tool call, which cannot be continued; add the tool's message"
        )
    content = final.get("content") or ""
    reasoning = next((final[key] for key in _REASONING if final.get(key)), None)
    if reasoning is not None:
        opening, closing = THINKING_TAGS
        content = f"{opening}\n{reasoning}" + (f"\n{closing}\n\n{content}" if content else "")
    if not content.strip():
        raise ValueError(f"the last assistant message of prompt {row} is empty; leave it out")
    return content


def _with_thinking(whole: str, span: tuple[int, int], words: str, after: str) -> RenderedPrompt:
    opening, closing = THINKING_TAGS
    if after.rstrip().endswith(closing):
        raise ValueError(
            "the chat template closes the thinking block itself; leave it out of the last assistant message, or "
            "change the template's options"
        )
    if after.rstrip().endswith(opening):  # the generation prompt opens the thinking block
        words = words.removeprefix(opening)
        words = words.removeprefix("\n") if after.endswith("\n") else words
    end = words.find(closing)
    end = len(words) if end < 0 else end + len(closing)
    start = len(whole)
    return RenderedPrompt(whole + words, span, (start, start + end), start)


def _around(render: Callable[[str], str]) -> tuple[str, str]:
    """The rendered text before and after the instruction."""
    whole = render(_SENTINEL)
    if whole.count(_SENTINEL) != 1:
        raise ValueError(
            f"the chat template shows the instruction {whole.count(_SENTINEL)} times instead of once, so its "
            "tokens have no roles; use a template that passes the user message through"
        )
    before, after = whole.split(_SENTINEL)
    return before, after


def _check_nothing_left_out(messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> None:
    """Raise a ValueError where a template silently drops a message, as Phi-3's first one drops system messages."""
    whole = render(messages)
    for i, message in enumerate(messages):
        content = message.get("content") or ""
        if not content.strip() or content.strip() in whole:
            continue
        changed = [*messages[:i], {**message, "content": f"{_END} {content}"}, *messages[i + 1 :]]
        if render(changed) != whole:
            continue
        role = message["role"]
        remedy = "drop `system`" if role == "system" else "leave it out"
        raise ValueError(
            f"the chat template leaves out the {role} message; this template has no {role} role, {remedy}"
        )


def _open(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], words: str, options: Options
) -> str:
    """Render the conversation with an open assistant turn that begins with these words."""
    turn: Message = {"role": "assistant", "content": words + _END}
    whole = _render(tokenizer, [*messages, turn], options, add_generation_prompt=False)
    if whole.count(_END) != 1:
        raise ValueError(
            "the chat template does not show the last assistant message, so that it cannot be continued; leave it out"
        )
    return whole.split(_END)[0]


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    options: Options,
    *,
    add_generation_prompt: bool = True,
) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template, as base models have none; load it "
            f"with chat_template={PLAIN!r} (each message on a line of its own) or chat_template=FILE"
        )
    date: TemplateDate | None = getattr(tokenizer, DATE_ATTRIBUTE, None)
    variables = {**(date.options if date else {}), **(options or {})}
    template = tokenizer.chat_template
    if isinstance(template, str):
        special = tokenizer.special_tokens_map.items()
        check_template(template, tuple(sorted((name, str(token)) for name, token in special)))
    try:
        if date is not None:
            variables["chat_template"] = date.prelude + str(tokenizer.get_chat_template())
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except Exception as error:  # Jinja's own errors and the template's raise_exception
        roles = {message["role"] for message in messages}
        hint = "; this template has no system role, drop `system`" if "system" in roles else ""
        if "tool" in roles:
            hint = "; it may have no tool role"
        raise ValueError(f"the chat template failed: {error}{hint}") from error
    assert isinstance(rendered, str)
    check_length(rendered)
    return rendered


def _find(text: str, whole: str, before: str, after: str, row: int) -> tuple[int, int]:
    if not text.strip():
        raise ValueError(f"prompt {row} is empty; remove it")
    # Some templates trim the message (Llama 2 and 3, Gemma; Llama 2 with a system message only its end): trimmed white
    # space does not count as rewriting.
    for kept in (text, text.strip(), text.rstrip(), text.lstrip()):
        if whole == before + kept + after:
            return len(before), len(before) + len(kept)
    raise ValueError(
        f"the chat template changes the instruction of prompt {row} or puts other text around it than around other "
        "prompts; its tokens have no roles under this template"
    )
