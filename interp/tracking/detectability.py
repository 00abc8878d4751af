"""How well a checkpoint tells its own text from human text; no other checkpoint is needed.

The checkpoint continues the beginnings of human passages, and scores its texts and the human ones of equal length
(`interp.detectors.machine_text`). AUROC near 1 leaves no room to rise; the gap between both means does.

The author is the scorer, so a change along a series may come from the writing or from the scoring.
"""

import numpy as np

from interp.data.human_texts import bundled_passages
from interp.detectors.machine_text.pairs import make_pairs
from interp.detectors.machine_text.reading import score_texts
from interp.detectors.machine_text.scores import SCORES
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, auroc, mean_with_interval

DETECTORS = ("fast_detect_gpt", "log_rank")
"""Scores that are tracked, of `interp.detectors.machine_text.scores.SCORES`."""


def detectability(
    model: ChatModel, *, n_texts: int, text_tokens: int, seed: int
) -> dict[tuple[str, str], Estimate]:
    """By measure and detector: AUROC of the model's own text against human text, and the gap of Fast-DetectGPT.

    Args:
        n_texts: pairs of a human passage and its continuation by the model.
        text_tokens: tokens of each text, of which the first third is the human passage's.

    Raises:
        ValueError: a model that continues no passage, or scores that are not finite.
    """
    pairs = make_pairs(
        model,
        bundled_passages().first(n_texts),
        length=text_tokens,
        prefix_tokens=max(1, text_tokens // 3),
        seed=seed,
    )
    machine, human = (score_texts(model, part.texts) for part in (pairs.machine, pairs.human))
    found: dict[tuple[str, str], Estimate] = {}
    for name in DETECTORS:
        sides = [[text.oriented(name) for text in side] for side in (machine, human)]
        found["own_text_auroc", SCORES[name].title] = auroc(*sides, resamples=200)
    first = DETECTORS[0]
    gaps = np.array([a.oriented(first) - b.oriented(first) for a, b in zip(machine, human, strict=True)])
    found["own_text_gap", SCORES[first].title] = mean_with_interval(gaps.tolist())
    return found
