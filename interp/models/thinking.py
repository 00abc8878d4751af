"""Replies of models that think before they answer: the thought apart from the answer.

Models mark a thought in many ways; a completion may hold both marks, only the closing one (the template opened the
thought), or only the opening one (the completion was cut while the model was thinking, and there is no answer yet).

    separated("<think>An easy one.</think> Plato.")      # thought 'An easy one.', answer 'Plato.'
    separated("<think>Let me see").finished                # False: it has no answer
"""

import re
from functools import cache
from typing import NamedTuple

MARKS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM, Nemotron, SmolLM3, ...
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<unused94>thought", "<unused95>"),  # MedGemma
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    ("Here is my thought process:", "Here is my response:"),  # Granite 3
)
"""Opening and closing marks of thoughts, as they are written with special tokens."""
_WRAPPED = re.compile(
    r"^\s*(?:<answer>|<response>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)(.*?)"
    r"(?:</answer>|</response>|<\|end_of_solution\|>|<\|END_RESPONSE\|>|$)",
    re.DOTALL,
)
_HARMONY = re.compile(r"^analysis(?P<thought>.*?)assistantfinal(?P<answer>.*)$", re.DOTALL)
"""A reply of gpt-oss whose special tokens were left out when it was decoded."""
_UNFINISHED_HARMONY = re.compile(r"^analysis(?P<thought>[A-Z\"'].*)$", re.DOTALL)
"""The same, cut while the model was thinking: no answer begins with this word and a capital without a space."""
_BLANK = " \t\r\n\f\v\u200b\u200e\u2060\ufeff"
"""White space and invisible characters that may stand before a mark."""
_BETWEEN = re.compile(r"(?:<\|end\|>)?(?:<\|start\|>assistant)?$")
"""What gpt-oss writes between thought and answer."""


class SeparatedReply(NamedTuple):
    """A reply in two parts."""

    thought: str | None
    """The model's thinking, without its marks; None for a reply without any."""
    answer: str
    """What comes after the thought, or the whole reply; empty while the thought is unfinished."""
    finished: bool
    """Whether the thought has ended; True for a reply without one."""


def separated(text: str, *, opened: bool = False) -> SeparatedReply:
    """The thought and the answer of a reply.

    Args:
        opened: the prompt ends inside a thought.
    """
    if match := _HARMONY.match(text):
        return SeparatedReply(match["thought"].strip(), match["answer"].strip(), True)
    if match := _UNFINISHED_HARMONY.match(text):
        return SeparatedReply(match["thought"].strip(), "", False)
    first = _first_thought(text, opened)
    if first is None:
        return SeparatedReply(None, text, True)
    before, thought, rest, (opening, closing) = first
    thoughts, answers, ended = [thought], [before], rest is not None
    # Some models think again between the parts of an answer; a mark inside a line is a word of the answer.
    again = _begins_a_line(opening)
    while rest:
        match = again.search(rest)
        answers.append(rest if match is None else rest[: match.start()])
        inside, mark, rest = ("", "", "") if match is None else rest[match.end() :].partition(closing)
        thoughts.append(inside)
        ended = match is None or bool(mark)
    answer = "".join(answers).strip()
    if wrapped := _WRAPPED.match(answer):
        answer = wrapped[1].strip()
    kept = "\n".join(part.strip() for part in thoughts if part.strip())
    return SeparatedReply(kept, answer, ended or bool(answer))


def opens_thought(text: str) -> bool:
    """Whether text before a reply, such as a generation prompt, ends inside a thought."""
    return any(text.rfind(opening) > text.rfind(closing) for opening, closing in MARKS)


def _first_thought(text: str, opened: bool) -> tuple[str, str, str | None, tuple[str, str]] | None:
    """What stands before the first thought, the thought, what follows it (None where it has not ended), and its marks;
    None without a thought."""
    start = text.lstrip(_BLANK)
    for opening, closing in MARKS:
        if start.startswith(opening):
            inside, mark, rest = start.removeprefix(opening).partition(closing)
            return "", _BETWEEN.sub("", inside), rest if mark else None, (opening, closing)
    # Granite's closing mark is plain words, which count only behind its opening one.
    ends = [(text.find(closing), (opening, closing)) for opening, closing in MARKS[:-1] if closing in text]
    if ends:
        at, marks = min(ends)
        return "", _BETWEEN.sub("", text[:at]), text[at + len(marks[1]) :], marks
    if opened:
        return "", text, None, MARKS[0]
    # An opening mark that begins a later line and is never closed: a mark inside a line is a word of the answer.
    begun = [(match.start(), marks) for marks in MARKS if (match := _begins_a_line(marks[0]).search(text))]
    if begun:
        at, marks = min(begun)
        return text[:at], text[at:].lstrip(_BLANK).removeprefix(marks[0]), None, marks
    return None


@cache
def _begins_a_line(mark: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*{re.escape(mark)}", re.MULTILINE)
