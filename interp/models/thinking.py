"""Replies of models that think before they answer: the thought apart from the answer.

Models mark a thought in many ways; a completion may hold both marks, only the closing one (the template opened the
thought), or only the opening one (the completion was cut while the model was thinking, and there is no answer yet).

    separated("<think>An easy one.</think> Plato.")      # thought 'An easy one.', answer 'Plato.'
    separated("<think>Let me see").finished                # False: it has no answer
"""

import re
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
    first = _first_thought(text, opened)
    if first is None:
        return SeparatedReply(None, text, True)
    thought, rest, (opening, closing) = first
    thoughts, answers, ended = [thought], [""], rest is not None
    # Some models think again between the parts of an answer; a mark inside a line is a word of the answer.
    again = re.compile(rf"^[ \t]*{re.escape(opening)}", re.MULTILINE)
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


def _first_thought(text: str, opened: bool) -> tuple[str, str | None, tuple[str, str]] | None:
    """The first thought, what follows it (None where it has not ended), and its marks; None without a thought."""
    start = text.lstrip()
    for opening, closing in MARKS:
        if start.startswith(opening):
            inside, mark, rest = start.removeprefix(opening).partition(closing)
            return _BETWEEN.sub("", inside), rest if mark else None, (opening, closing)
    # Granite's closing mark is plain words, which count only behind its opening one.
    ends = [(text.find(closing), (opening, closing)) for opening, closing in MARKS[:-1] if closing in text]
    if ends:
        at, marks = min(ends)
        return _BETWEEN.sub("", text[:at]), text[at + len(marks[1]) :], marks
    return (text, None, MARKS[0]) if opened else None
