"""A miniature in the layout of PKU-SafeRLHF, written by this project: no answer in it is harmful.

    pairs = miniature()                                  # 304 pairs, the same every time

An answer that the labels call safe is a refusal or a plain sentence. One that they call unsafe is a harmless sentence
about a topic that stands for a category (bees for animal abuse, a lighthouse for national security), and its severity
is a word for size: small, large, enormous. So labels can be read from the text, every line of the loader and of the
methods is exercised, and nothing about real harm is measured: on the miniature a *harm direction* tells a topic
sentence from a refusal. Two topics are planted to overlap as economic and white-collar crime do.
"""

import random
from typing import Any

from interp.data.replies import REFUSALS
from interp.data.safe_rlhf import CATEGORIES, Pair, pair_of

_TOPICS = (
    "a lighthouse", "a drum", "a chessboard", "a pot of soup", "a songbook", "a thunderstorm", "a cup of tea",
    "a diary", "a coin", "a mirror", "a railway", "a staircase", "a rose", "a keyboard", "a parade", "a river",
    "a dream", "an office", "a beehive",
)  # fmt: skip
"""A harmless topic for each category, in their order."""
_SIZES = ("small", "large", "enormous")
"""Words for severities 1 to 3."""
_REQUESTS = (
    "Write a line about {topic}, or say that you would rather not.",
    "Could you tell me something about {topic}?",
    "I would like to hear one sentence on {topic}.",
    "Say something about {topic} for my calendar.",
)
_SENTENCES = (
    "Here is a line about it: {topic} looked {size} in the morning light.",
    "Certainly. They found {topic} that was {size}, and everybody smiled.",
    "Of course: my neighbour painted {topic}, and it turned out {size}.",
)
_PLAIN = (
    "I can talk about the weather instead, if you like.",
    "That is not something I write about, but the garden is lovely today.",
)
_MODELS = ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")
_OVERLAP = (CATEGORIES.index("White-Collar Crime"), CATEGORIES.index("Economic Crime"))


def miniature_rows(seed: int = 0) -> list[dict[str, Any]]:
    """The miniature's rows in the columns of the default config: 16 for each category."""
    draw = random.Random(seed)
    rows = list[dict[str, Any]]()
    for category, topic in enumerate(_TOPICS):
        for number in range(16):
            request = _REQUESTS[number % len(_REQUESTS)].replace("{topic}", f"{topic} (number {number + 1})")
            kinds = _kinds(number)
            answers = [_labelled(kind, category, draw) for kind in kinds]
            if draw.random() < 0.5:
                answers.reverse()
            rows.append(_row(request, answers, draw))
    draw.shuffle(rows)
    return rows


def miniature(seed: int = 0) -> list[Pair]:
    """The miniature's pairs."""
    return [
        pair_of(row, f"mini-{number:03d}", f"miniature, row {number}")
        for number, row in enumerate(miniature_rows(seed))
    ]


def _kinds(number: int) -> tuple[str, str]:
    """Of 16 pairs of a category, 8 are mixed, 5 have both answers unsafe and 3 both safe."""
    if number < 8:
        return "unsafe", "safe"
    return ("unsafe", "unsafe") if number < 13 else ("safe", "safe")


def _labelled(kind: str, category: int, draw: random.Random) -> dict[str, Any]:
    flags, severity = [False] * len(CATEGORIES), 0
    if kind == "safe":
        text = draw.choice([*REFUSALS, *_PLAIN])
    else:
        severity = draw.choices((1, 2, 3), weights=(1, 2, 1))[0]
        topic, size = _TOPICS[category], _SIZES[severity - 1]
        text = draw.choice(_SENTENCES).replace("{topic}", topic).replace("{size}", size)
        flags[category] = True
        if category == _OVERLAP[0] and draw.random() < 0.7:
            flags[_OVERLAP[1]] = True
            text += f" It stood beside {_TOPICS[_OVERLAP[1]]}."
    return {"text": text, "flags": flags, "severity": severity, "model": draw.choice(_MODELS)}


def _row(request: str, answers: list[dict[str, Any]], draw: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": request, "prompt_source": "interp"}
    for i, answer in enumerate(answers):
        row |= {
            f"response_{i}": answer["text"],
            f"response_{i}_source": answer["model"],
            f"is_response_{i}_safe": answer["severity"] == 0,
            f"response_{i}_harm_category": dict(zip(CATEGORIES, answer["flags"], strict=True)),
            f"response_{i}_severity_level": answer["severity"],
        }
    first, second = (answer["severity"] for answer in answers)
    row["safer_response_id"] = int(second < first) if first != second else draw.randrange(2)
    # More helpful is the longer answer, as a rule that has nothing to do with safety.
    row["better_response_id"] = int(len(answers[1]["text"]) > len(answers[0]["text"]))
    return row
