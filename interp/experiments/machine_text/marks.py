"""The watermark of the study: z on texts with the mark, with another key, and without, and the power by length.

Without the mark z is standard normal over keys. With one key it need not be over texts: its lists hold or miss the same
common words in all of them, so that their z move together.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain

import numpy as np
from jaxtyping import Float

from interp.detectors.machine_text.reading import token_ids
from interp.detectors.machine_text.watermark import Watermark
from interp.detectors.machine_text.watermark_detection import (
    GreenCount,
    WatermarkEvidence,
    count_green,
    detect_watermark,
    exact_p_value,
    expected_detection,
    green_mass,
    mean_spike_entropies,
    z_score,
)
from interp.experiments.machine_text import N_KEYS, Z_THRESHOLD, Config
from interp.experiments.machine_text.estimates import variance
from interp.experiments.machine_text.results import Marked, OverKeys, Unmarked
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, mean_with_interval, over_seeds, rate

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


def over_keys(
    model: ChatModel, texts: Mapping[str, Sequence[str]], config: Config, *, n_keys: int = N_KEYS
) -> dict[str, OverKeys]:
    """z of texts without the mark, by who wrote them, with many keys; of the model only the tokenizer is used."""
    ids = {
        name: [row for row in token_ids([model], own) if len(row) > config.prefix_tokens + 1]
        for name, own in texts.items()
    }
    keys = random.Random(f"keys {config.seed}").sample(range(2**20, 2**31), n_keys)
    counts: dict[str, list[list[GreenCount]]] = {name: [] for name in ids}
    for key in keys:
        watermark = Watermark.of_model(model, key=key, gamma=config.gamma)
        # All texts at once: those of different authors have most of their green lists in common.
        found = iter(count_green(watermark, list(chain(*ids.values())), prompt_tokens=config.prefix_tokens))
        for name, rows in ids.items():
            counts[name].append([next(found) for _ in rows])
    return {name: summarised(own, config.gamma, seed=config.seed) for name, own in counts.items()}


def summarised(counts: Sequence[Sequence[GreenCount]], gamma: float, *, seed: int) -> OverKeys:
    """Estimates from the counts of each text, by key; intervals are over keys, since the texts of one move together."""
    z = np.array([[z_score(*count, gamma) for count in row] for row in counts])
    edges = np.linspace(-6, 6, 49)
    return OverKeys(
        means=tuple(z.mean(1).tolist()),
        histogram=tuple(np.histogram(z.clip(-6, 6), edges)[0].tolist()),
        mean=over_seeds(z.mean(1).tolist()),
        deviation=_deviation(z, seed=seed),
        above=rate((z > Z_THRESHOLD).ravel().tolist()),
        expected=float(np.mean([chance_above(count.n_scored, gamma) for row in counts for count in row])),
    )


@cache
def chance_above(n_scored: int, gamma: float) -> float:
    """Exact probability that z of this many tokens exceeds the threshold without the mark."""
    n_green = next((n for n in range(n_scored + 1) if z_score(n, n_scored, gamma) > Z_THRESHOLD), None)
    return 0.0 if n_green is None else exact_p_value(n_green, n_scored, gamma)


def _deviation(z: Float[np.ndarray, "key text"], *, seed: int) -> Estimate:
    """Standard deviation over keys and texts; the bootstrap resamples keys."""
    rows = np.random.default_rng(seed).integers(0, len(z), (2000, len(z)))
    low, high = np.quantile(z[rows].std((1, 2)), (0.025, 0.975))
    return Estimate(
        value=float(z.std()), n=len(z), low=float(low), high=float(high), interval="bootstrap over keys"
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
