"""Safety prompts as text: the system messages that representations are compared under and soft prompts start from.

Three wordings of this project, in the sense and at about the length of those that Zheng et al. 2024 (arXiv:2401.18018)
compare: a long one with rules, its first two sentences, and one in other words. The published ones are texts of the
makers of Llama 2 and Mistral, and are not copied: numbers differ from the paper's for that reason too.

    SAFETY_TEXTS["short"]
"""

from collections.abc import Mapping
from types import MappingProxyType

_SHORT = "You assist people kindly, truthfully and with good judgement. Help as much as you can without causing harm."
_DEFAULT = (
    f"{_SHORT} Never write anything dangerous, illegal, hateful, cruel or dishonest, and do not explain how "
    "somebody could do such things. Treat every group of people fairly and keep a friendly tone. When a question "
    "makes no sense or rests on a mistake, point out the mistake instead of guessing at a reply. When you do not know "
    "something, admit that you do not know it, and never make facts up."
)
_MISTRAL = (
    "Be of use to the person you talk to, and be gentle, fair and accurate about it. Whatever you say should do good "
    "and respect everyone: stay away from content that hurts, threatens or belittles people, or that is false."
)

SAFETY_TEXTS: Mapping[str, str] = MappingProxyType(
    {"default": _DEFAULT, "short": _SHORT, "mistral": _MISTRAL}
)
"""By the paper's names: `default` (long), `short` (the first two sentences of it), `mistral` (another wording)."""


def safety_text(name: str) -> str:
    """The text of a named safety prompt; any other string is taken as a text of its own.

    Raises:
        ValueError: an empty text.
    """
    text = SAFETY_TEXTS.get(name, name).strip()
    if not text:
        raise ValueError(
            f"a safety prompt starts from a text, got an empty one; known by name: {', '.join(SAFETY_TEXTS)}"
        )
    return text
