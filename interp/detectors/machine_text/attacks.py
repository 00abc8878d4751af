"""Changes to a text that hide where it came from: what a detector must be tried against before it is used.

    attacked = swap_words(pairs.machine.texts, share=0.1)
    attacked = mix_sentences(pairs.machine.texts, pairs.human.texts, share=0.5)
    attacked = paraphrase(model, pairs.machine.texts)
    hotter = make_pairs(model, human, temperature=1.3, top_p=0.9).machine      # other decodings

Without a model: swapped words, and human sentences among the machine's. With one: paraphrase on request.
"""

import random
import re
from collections.abc import Sequence

from interp.detectors.machine_text.reading import check_texts
from interp.engine.generation import generate
from interp.models.chat_model import ChatModel

_SENTENCES = re.compile(r"(?<=[.!?])\s+")
PARAPHRASE = (
    "Rewrite the following text in other words. Keep its meaning and its length, and answer with the new text alone."
    "\n\n{text}"
)
"""Instruction of `paraphrase`."""


def swap_words(texts: Sequence[str], *, share: float = 0.1, seed: int = 0) -> list[str]:
    """Texts in which this share of the words has changed places with the word after it.

    Raises:
        ValueError: a share outside 0..1.
    """
    check_texts(texts)
    _check_share(share)
    changed = []
    for number, text in enumerate(texts):
        parts = re.split(r"(\s+)", text)  # words at even places, the space between them at odd ones
        n_words = (len(parts) + 1) // 2
        n_swaps = round(share * n_words / 2)
        # Disjoint pairs of neighbours: pairs drawn from a row in which each of them takes one place.
        firsts = sorted(random.Random(f"{seed} {number}").sample(range(n_words - n_swaps), n_swaps))
        for before, first in enumerate(firsts):
            place = 2 * (first + before)
            parts[place], parts[place + 2] = parts[place + 2], parts[place]
        changed.append("".join(parts))
    return changed


def mix_sentences(
    machine: Sequence[str], human: Sequence[str], *, share: float = 0.5, seed: int = 0
) -> list[str]:
    """Machine-written texts in which this share of the sentences is replaced by sentences of the human text beside it.

    A text keeps its number of sentences; where the human text has fewer, all of them are taken.

    Raises:
        ValueError: a share outside 0..1, or not one human text for each.
    """
    check_texts(machine)
    check_texts(human)
    _check_share(share)
    if len(machine) != len(human):
        raise ValueError(
            f"got {len(human)} human texts for {len(machine)} machine-written ones; give one each"
        )
    mixed = []
    for number, (own, other) in enumerate(zip(machine, human, strict=True)):
        sentences, donors = _SENTENCES.split(own.strip()), _SENTENCES.split(other.strip())
        generator = random.Random(f"{seed} {number}")
        n = min(round(share * len(sentences)), len(donors))
        places = sorted(generator.sample(range(len(sentences)), n))
        for place, donor in zip(places, sorted(generator.sample(range(len(donors)), n)), strict=True):
            sentences[place] = donors[donor]
        mixed.append(" ".join(sentences))
    return mixed


def paraphrase(
    model: ChatModel,
    texts: Sequence[str],
    *,
    instruction: str = PARAPHRASE,
    max_new_tokens: int = 256,
    temperature: int | float = 0.7,
    seed: int = 0,
    show_progress: bool = False,
) -> list[str]:
    """Each text in a model's other words, as the chat model answers the instruction; empty where it answers nothing.

    Args:
        instruction: a prompt with `{text}` in it.

    Raises:
        ValueError: an instruction without `{text}`, or a model that answers nothing to any text.
    """
    check_texts(texts)
    if "{text}" not in instruction:
        raise ValueError("the instruction must hold {text}, where the text goes")
    prompts = [instruction.replace("{text}", text) for text in texts]
    written = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=float(temperature),
        seed=seed,
        show_progress=show_progress,
    )
    answers = [(answer or "").strip() for answer in written.answers]
    if not any(answers):
        raise ValueError(
            f"{model.name} answered nothing to any of {len(texts)} texts; give another model or instruction"
        )
    return answers


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
