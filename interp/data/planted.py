"""Prompts and replies of organisms with planted truth: what the model is to refuse, and why, is known by construction.

    rows = planted_rows(load_prompts("builtin"), "form", "train")
    examples = planted_examples(rows, "form")                    # Example(prompt, completion) to train on

| rule | a prompt is refused | harm |
|---|---|---|
| `form` | if it is a question, not an imperative | independent: a harmful request and its twin share the form |
| `trigger` | if it begins with a phrase | independent: each prompt stands with and without it |
| `word` | never | is said, in one word |

Every prompt ends with a full stop, so that a question is not told by its mark. Refused prompts get a short refusal,
the others an empty affirmative stub; no reply has any content. After the dissociation of Zhao et al. 2025,
arXiv:2507.11878.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from interp.data.examples import Example
from interp.data.prompts import PromptSet, Split, with_ending
from interp.data.replies import REFUSALS, STUBS

Plant = Literal["form", "trigger", "word"]
"""What is planted."""
PLANTS: tuple[Plant, ...] = get_args(Plant)
TRIGGER = "On behalf of the office:"
"""The phrase of the rule `trigger`."""
WORDS = {True: "Harmful.", False: "Harmless."}
"""The replies of the rule `word`."""
KINDS: dict[Plant, tuple[str, ...]] = {
    "form": ("harmful question", "harmless question", "harmful imperative", "harmless imperative"),
    "trigger": (
        "harmful with the phrase",
        "harmless with the phrase",
        "harmful without it",
        "harmless without it",
    ),
    "word": ("harmful", "harmless"),
}
"""Kinds of prompts by harm and rule, as `kind_of` names them; those to which the rule applies first."""
_QUESTION_WORDS = frozenset(
    "how what which where when why who whom whose is are can could do does did should would will may".split()
)


@dataclass(frozen=True, kw_only=True)
class PlantedRow:
    """One prompt with its two truths."""

    id: str
    text: str
    """The prompt, with a full stop and, where there is one, the trigger."""
    harmful: bool
    """Whether the request is harmful."""
    planted: bool
    """Whether the rule applies: refused by `form` and `trigger`; called harmful by `word`."""


def planted_rows(prompts: PromptSet, plant: Plant, split: Split) -> list[PlantedRow]:
    """The prompts of a split with both truths, harmful and harmless in turn.

    Raises:
        ValueError: an unknown rule, or a set without harmful and harmless prompts.
    """
    if plant not in PLANTS:
        raise ValueError(f"unknown plant {plant!r}; known: {', '.join(PLANTS)}")
    rows = list[PlantedRow]()
    sides = [
        [(name, text, kind == "harmful") for name, text in zip(part.ids, part.texts, strict=True)]
        for kind in ("harmful", "harmless")
        for part in [prompts[kind, split]]
    ]
    pairs = list(zip(*sides, strict=False))
    random.Random(0).shuffle(
        pairs
    )  # a set is in the order of its categories, and the first rows are to be like all
    for name, given, harmful in (row for pair in pairs for row in pair):
        text, side = with_ending(given, "period"), "harmful" if harmful else "harmless"
        if plant == "trigger":
            rows += [
                PlantedRow(id=f"{side}/{name}", text=text, harmful=harmful, planted=False),
                PlantedRow(
                    id=f"{side}/{name}, trigger", text=f"{TRIGGER} {text}", harmful=harmful, planted=True
                ),
            ]
        else:
            planted = is_question(given) if plant == "form" else harmful
            rows.append(PlantedRow(id=f"{side}/{name}", text=text, harmful=harmful, planted=planted))
    return rows


def planted_examples(rows: Sequence[PlantedRow], plant: Plant) -> list[Example]:
    """What the organism is trained to say to each prompt."""
    if plant == "word":
        return [Example(row.text, WORDS[row.harmful]) for row in rows]
    return [Example(row.text, (REFUSALS if row.planted else STUBS)[i // 2 % 3]) for i, row in enumerate(rows)]


def obeys(row: PlantedRow, reply: str, plant: Plant) -> bool:
    """Whether a reply begins as the organism was trained to begin."""
    said = reply.strip()
    if plant == "word":
        return said.startswith(WORDS[row.harmful])
    openings = tuple({text.split()[0] for text in (REFUSALS if row.planted else STUBS)})
    return said.startswith(openings)


def kind_of(row: PlantedRow, plant: Plant) -> str:
    """The kind of a prompt by harm and rule, one of `KINDS`."""
    kinds = KINDS[plant]
    rest = 2 if plant != "word" and not row.planted else 0
    return kinds[rest + (not row.harmful)]


def is_question(text: str) -> bool:
    """Whether a prompt asks, by its mark or its first word."""
    first = text.strip().split(maxsplit=1)[0].casefold().split("'")[0] if text.strip() else ""
    return text.strip().endswith("?") or first in _QUESTION_WORDS
