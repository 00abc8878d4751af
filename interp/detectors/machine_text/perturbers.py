"""Perturbed versions of a text: by a masked language model, or by dropping and swapping words without any model.

perturb = MaskedPerturber.load("roberta-base")         # or WordPerturber()
perturb("The river rose in the night.", 10, seed=0)    # ten versions
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

_WORD = re.compile(r"\S+")
"""A word: what stands between white space, which stays as it is."""


@runtime_checkable
class Perturber(Protocol):
    """A function that gives perturbed versions of a text."""

    def __call__(self, text: str, n: int, *, seed: int) -> list[str]:
        """This many perturbed versions, independent draws."""
        ...


def masked_spans(
    n_words: int,
    *,
    share: float = 0.3,
    span: int = 2,
    buffer: int = 1,
    generator: random.Random,
) -> list[tuple[int, int]]:
    """Spans of words that do not touch, at least one of them where there are words enough.

    Source: Mitchell et al. 2023, arXiv:2301.11305, section 4: spans of two words with one word around each, as many as
    cover 30% of the words together with what is around them; that is 15% of the words.

    Raises:
        ValueError: a text of fewer words than a span.
    """
    if n_words < span:
        raise ValueError(
            f"a text of {n_words} word{'' if n_words == 1 else 's'} has no span of {span} to perturb; give a longer "
            "text, or a perturber for scripts without spaces"
        )
    wanted = max(1, int(share * n_words / (span + 2 * buffer)))
    taken: list[tuple[int, int]] = []
    starts = list(range(n_words - span + 1))
    generator.shuffle(starts)
    for start in starts:
        if len(taken) == wanted:
            break
        if all(start >= stop + buffer or start + span + buffer <= begin for begin, stop in taken):
            taken.append((start, start + span))
    return sorted(taken)


@dataclass(frozen=True, kw_only=True)
class WordPerturber:
    """Drops one word of each span, or swaps its two: a perturber that needs no model.

    Its versions are less fluent than a language model's, so that every text, human or not, loses likelihood: scores are
    comparable among themselves alone.
    """

    share: float = 0.3
    """Share of the words covered by spans with the words around them."""
    drop: float = 0.5
    """Probability that a span loses a word; else its words are swapped."""

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("drop", self.drop)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")

    def __call__(self, text: str, n: int, *, seed: int) -> list[str]:
        """Perturbed versions.

        Raises:
            ValueError: a text of fewer than two words.
        """
        words = _WORD.findall(text)
        versions = []
        for number in range(n):
            generator = random.Random(f"{seed} {number}")
            changed: list[str | None] = list(words)
            for start, stop in masked_spans(len(words), share=self.share, generator=generator):
                if generator.random() < self.drop:
                    changed[generator.randrange(start, stop)] = None
                else:
                    changed[start], changed[start + 1] = changed[start + 1], changed[start]
            versions.append(replaced(text, changed))
        return versions


def replaced(text: str, words: Sequence[str | None]) -> str:
    """The text with its words replaced, white space kept; None removes a word with the space before it."""
    out, end = [], 0
    for place, word in zip(_WORD.finditer(text), words, strict=True):
        if word is not None:
            out += [text[end : place.start()], word]
        end = place.end()
    return "".join(out) + text[end:]


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskedPerturber:
    """Masks spans of two words and fills each masked word from a masked language model, by sampling.

    Published results fill spans of free length with T5; a masked model keeps the number of words, and fills each with
    one of its tokens, all masks of a text in one pass.
    """

    hf: Any
    """A transformers masked language model."""
    tokenizer: Any
    """Its tokenizer, with a mask token."""
    share: float = 0.3
    """Share of the words covered by spans with the words around them."""
    temperature: int | float = 1.0
    """Temperature of the sampling."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.temperature > 0:
            raise ValueError(
                f"share must lie between 0 and 1 and temperature be above 0, got {self.share} and {self.temperature}"
            )
        if self.tokenizer.mask_token_id is None:
            raise ValueError(
                "this tokenizer has no mask token; give a masked language model, such as roberta-base"
            )

    @classmethod
    def load(cls, name: str, *, device: str | None = None) -> "MaskedPerturber":
        """Load a masked language model by Hub id or folder.

        Raises:
            ValueError: it cannot be loaded, or is no masked language model.
        """
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        try:
            hf = AutoModelForMaskedLM.from_pretrained(name).eval()
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot load {name} as a masked language model ({str(error).splitlines()[0]}); give the folder or Hub "
                "id of one, or use WordPerturber(), which needs no model"
            ) from error
        return cls(hf=hf if device is None else hf.to(device), tokenizer=tokenizer)

    @torch.inference_mode()
    def __call__(self, text: str, n: int, *, seed: int) -> list[str]:
        """Perturbed versions.

        Raises:
            ValueError: a text of fewer than two words, or one that does not fit into the model.
        """
        words = _WORD.findall(text)
        chosen = []
        for number in range(n):
            spans = masked_spans(len(words), share=self.share, generator=random.Random(f"{seed} {number}"))
            chosen.append([place for start, stop in spans for place in range(start, stop)])
        masked = [
            replaced(text, [self.tokenizer.mask_token if i in places else w for i, w in enumerate(words)])
            for places in map(set, chosen)
        ]
        encoded = self.tokenizer(masked, return_tensors="pt", padding=True).to(self.hf.device)
        ids = encoded["input_ids"]
        limit = getattr(self.hf.config, "max_position_embeddings", None)
        if limit is not None and ids.shape[1] > limit:
            raise ValueError(
                f"the text has {ids.shape[1]} tokens, the masked model takes {limit}; cut it before perturbing"
            )
        logits = self.hf(**encoded).logits.float() / self.temperature
        logits[..., self.tokenizer.all_special_ids] = -math.inf  # a special token is no word
        generator = torch.Generator().manual_seed(seed)
        versions = []
        for row, places in enumerate(chosen):
            columns = (ids[row] == self.tokenizer.mask_token_id).nonzero()[:, 0]
            if len(columns) != len(places):
                raise ValueError("the text holds the masked model's own mask token; remove it")
            weights = logits[row, columns].softmax(-1).cpu()
            fills = torch.multinomial(weights, 1, generator=generator)[:, 0].tolist()
            # A token that decodes to nothing readable would drop the word: keep the old one then.
            new = {
                p: self.tokenizer.decode([token]).strip() or words[p]
                for p, token in zip(places, fills, strict=True)
            }
            versions.append(replaced(text, [new.get(i, w) for i, w in enumerate(words)]))
        return versions
