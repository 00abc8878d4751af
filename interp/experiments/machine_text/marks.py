"""The watermark of the study: z on texts with the mark, with another key, and without, and the power by length."""

from collections.abc import Sequence

import numpy as np

from interp.detectors.machine_text.reading import token_ids
from interp.detectors.machine_text.watermark import Watermark
from interp.detectors.machine_text.watermark_detection import (
    WatermarkEvidence,
    detect_watermark,
    expected_detection,
    green_mass,
    mean_spike_entropies,
    z_score,
)
from interp.experiments.machine_text import Z_THRESHOLD, Config, Marked, Unmarked
from interp.experiments.machine_text.estimates import variance
from interp.models.chat_model import ChatModel
from interp.stats import mean_with_interval, rate

KEY, OTHER_KEY = 15485863, 32452843
"""Key of the released code, and another prime."""


def token_counts(config: Config) -> tuple[int, ...]:
    """Numbers of written tokens after which z is shown: the sixths of what the model writes."""
    most = config.length - config.prefix_tokens
    return tuple(sorted({max(2, round(most * sixth / 6)) for sixth in range(1, 7)}))


def evidence(
    model: ChatModel, texts: Sequence[str], watermark: Watermark, config: Config
) -> list[WatermarkEvidence]:
    """What a key finds in the part of each text that the model wrote; as a detector would, from the text alone."""
    return [
        detect_watermark(watermark, ids, prompt_tokens=config.prefix_tokens)
        for ids in token_ids([model], texts)
        if len(ids) > config.prefix_tokens + 1
    ]


def unmarked(found: Sequence[WatermarkEvidence], config: Config) -> Unmarked:
    """z of texts without the mark."""
    z, seed = [one.z for one in found], config.seed
    return Unmarked(
        z=tuple(z),
        mean=mean_with_interval(z, seed=seed),
        variance=variance(z, seed=seed),
        above=rate([value > Z_THRESHOLD for value in z]),
        along=tuple(mean_with_interval(_z_after(found, n, config), seed=seed) for n in token_counts(config)),
    )


def marked(model: ChatModel, texts: Sequence[str], watermark: Watermark, config: Config) -> Marked:
    """z of texts with the mark, beside what theorem 4.2 says of their spike entropy."""
    counts, seed = token_counts(config), config.seed
    found = evidence(model, texts, watermark, config)
    other = Watermark.of_model(model, key=OTHER_KEY, gamma=watermark.gamma, delta=watermark.delta)
    entropy = float(np.mean(mean_spike_entropies(model, texts, watermark)))
    share = green_mass(watermark.gamma, watermark.delta) * entropy
    after = [_z_after(found, n, config) for n in counts]
    theory = [
        expected_detection(n, entropy, gamma=watermark.gamma, delta=watermark.delta, z=Z_THRESHOLD)
        for n in counts
    ]
    return Marked(
        z=tuple(one.z for one in found),
        other_key=mean_with_interval([one.z for one in evidence(model, texts, other, config)], seed=seed),
        green=mean_with_interval([one.n_green / one.n_scored for one in found], seed=seed, unit="share"),
        bound=min(1.0, share),
        power=tuple(rate([z > Z_THRESHOLD for z in values]) for values in after),
        expected=tuple(one.power for one in theory),
        along=tuple(mean_with_interval(values, seed=seed) for values in after),
    )


def _z_after(found: Sequence[WatermarkEvidence], n: int, config: Config) -> list[float]:
    """z of the first n written tokens of every text that has so many; repeated n-grams among them are not scored."""
    stop, values = config.prefix_tokens + n, list[float]()
    for one in found:
        colours = [green for green in one.green[:stop] if green is not None]
        if len(one.green) >= stop and colours:
            values.append(z_score(sum(colours), len(colours), one.gamma))
    return values
