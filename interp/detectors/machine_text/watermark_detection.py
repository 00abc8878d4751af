"""Detection of a green-list watermark: counts of green tokens, their significance, windows, and the expected power.

    z = (G - gamma T) / sqrt(T gamma (1 - gamma))

with G green among T scored tokens. By default every distinct n-gram is scored once: repeated ones repeat their colour
and are no independent evidence. The exact p-value is the binomial tail P(at least G green of T); the normal one is
1 - Phi(z). Both assume text that does not know the key, and neither says who wrote a text: the mark can be copied onto
human text by quoting, and removed by paraphrase.

Source: Kirchenbauer et al. 2023, arXiv:2301.10226, equation 2 and theorem 4.2; WinMax and distinct n-grams from
Kirchenbauer et al. 2024, arXiv:2306.04634.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from interp.detectors.machine_text.reading import check_finite, map_texts, token_ids
from interp.detectors.machine_text.watermark import Watermark
from interp.display.cards import Card, Shown
from interp.models.chat_model import ChatModel

Counted = Literal["distinct n-grams", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The stretch of scored tokens with the highest z (WinMax)."""

    z: float
    """z inside it: the maximum over many windows, whose null distribution `window_threshold` simulates."""
    start: int
    """First scored token of it, counted among the scored tokens."""
    stop: int
    """Scored token after its last."""


@dataclass(frozen=True, kw_only=True, repr=False)
class WatermarkEvidence(Shown):
    """What a key finds in one text."""

    n_green: int
    """Green tokens, G."""
    n_scored: int
    """Scored tokens, T."""
    gamma: float
    """Expected share of green tokens in text that does not know the key."""
    z: float
    """Standard deviations of G above gamma T."""
    normal_p_value: float
    """1 - Phi(z): inaccurate for few tokens."""
    p_value: float
    """Exact binomial probability of G or more green tokens in text that does not know the key."""
    green: tuple[bool | None, ...]
    """Colour of every token of the text; None where it is not scored."""
    z_along: tuple[float, ...]
    """z of the first scored token, of the first two, and so on."""
    window: Window
    """The window of highest z."""

    def _card(self) -> Card:
        share = f"{self.n_green} of {self.n_scored} tokens, {self.gamma:.0%} expected without the mark"
        return Card(
            title=f"Watermark: z {self.z:.2f}, p {self.p_value:.2g}",
            facts={"green": share, "best window": f"z {self.window.z:.2f} over {_width(self.window)} tokens"},
            notes=[
                "A mark says that text was made with this key, or copied from such text; it is no proof of authorship."
            ],
        )


def detect_watermark(
    watermark: Watermark,
    ids: Sequence[int],
    *,
    attention_mask: Sequence[int] | None = None,
    prompt_tokens: int = 0,
    counted: Counted = "distinct n-grams",
) -> WatermarkEvidence:
    """Count the green tokens of one text.

    With `counted="tokens"`, no mask and no prompt, equal to transformers' `WatermarkDetector`, which scores padding and
    prompt like text; with distinct n-grams equal to its `ignore_repeated_ngrams=True`.

    Args:
        ids: token ids without BOS.
        attention_mask: 1 for tokens of the text, 0 for padding, which is left out altogether.
        prompt_tokens: tokens at the beginning that were given: they are context, and are not scored.

    Raises:
        ValueError: no token to score, a mask of another length, or tokens of another vocabulary.
    """
    if attention_mask is not None and len(attention_mask) != len(ids):
        raise ValueError(f"got {len(attention_mask)} entries of attention_mask for {len(ids)} tokens")
    if prompt_tokens < 0:
        raise ValueError(f"prompt_tokens must be 0 or more, got {prompt_tokens}")
    if counted not in ("distinct n-grams", "tokens"):
        raise ValueError(f"unknown counted {counted!r}; known: distinct n-grams, tokens")
    places = [i for i in range(len(ids)) if attention_mask is None or attention_mask[i]]
    text = [int(ids[i]) for i in places]
    colours: list[bool | None] = [None] * len(ids)
    known = set[tuple[int, ...]]()
    scored: list[bool] = []
    for stop in range(max(watermark.ngram, prompt_tokens + 1), len(text) + 1):
        ngram = tuple(text[stop - watermark.ngram : stop])
        if counted == "distinct n-grams" and ngram in known:
            continue
        known.add(ngram)
        scored.append(watermark.is_green(ngram))
        colours[places[stop - 1]] = scored[-1]
    if not scored:
        raise ValueError(
            f"the text has {len(text)} tokens, {prompt_tokens} of them the prompt's, and none to score: the watermark "
            f"reads {watermark.ngram} tokens; give a longer text"
        )
    return WatermarkEvidence(
        n_green=sum(scored),
        n_scored=len(scored),
        gamma=watermark.gamma,
        z=z_score(sum(scored), len(scored), watermark.gamma),
        normal_p_value=float(stats.norm.sf(z_score(sum(scored), len(scored), watermark.gamma))),
        p_value=exact_p_value(sum(scored), len(scored), watermark.gamma),
        green=tuple(colours),
        z_along=tuple(_z_along(scored, watermark.gamma).tolist()),
        window=best_window(scored, watermark.gamma),
    )


class GreenCount(NamedTuple):
    """Green tokens among the scored ones of a text."""

    n_green: int
    """Green tokens, G."""
    n_scored: int
    """Scored tokens, T: its distinct n-grams."""


def count_green(
    watermark: Watermark, texts: Sequence[Sequence[int]], *, prompt_tokens: int = 0
) -> list[GreenCount]:
    """What `detect_watermark` counts in each of many texts by distinct n-grams; every green list is drawn once.

    Args:
        texts: token ids without BOS.
        prompt_tokens: as for `detect_watermark`, of every text.

    Raises:
        ValueError: a text without a token to score, or tokens of another vocabulary.
    """
    if prompt_tokens < 0:
        raise ValueError(f"prompt_tokens must be 0 or more, got {prompt_tokens}")
    first, width = max(watermark.ngram, prompt_tokens + 1), watermark.ngram
    of_text = [{tuple(ids[stop - width : stop]) for stop in range(first, len(ids) + 1)} for ids in texts]
    if short := [number for number, ngrams in enumerate(of_text) if not ngrams]:
        raise ValueError(
            f"text {short[0]} has {len(texts[short[0]])} tokens, {prompt_tokens} of them the prompt's, and none to "
            f"score: the watermark reads {width} tokens; leave it out"
        )
    # The n-grams of one list one after the other: it is drawn from the tokens before the marked one, the last foremost.
    ordered = sorted(set().union(*of_text), key=lambda ngram: (ngram[-2::-1], ngram[-1]))
    green = {ngram for ngram in ordered if watermark.is_green(ngram)}
    return [GreenCount(len(ngrams & green), len(ngrams)) for ngrams in of_text]


def find_watermark(
    model: ChatModel, texts: Sequence[str], watermark: Watermark, *, counted: Counted = "distinct n-grams"
) -> list[WatermarkEvidence]:
    """`detect_watermark` for texts, of which only the model's tokenizer is used.

    Raises:
        ValueError: a text that is too short to be scored.
    """
    return [detect_watermark(watermark, ids, counted=counted) for ids in token_ids([model], texts)]


def z_score(n_green: int, n_scored: int, gamma: float) -> float:
    """Standard deviations of the number of green tokens above its expectation without the mark."""
    return (n_green - gamma * n_scored) / math.sqrt(n_scored * gamma * (1 - gamma))


def exact_p_value(n_green: int, n_scored: int, gamma: float) -> float:
    """Binomial probability of `n_green` or more green tokens without the mark."""
    return float(stats.binom.sf(n_green - 1, n_scored, gamma))


def best_window(green: Sequence[bool], gamma: float) -> Window:
    """The window of scored tokens with the highest z, over all starts and lengths (WinMax)."""
    sums = np.concatenate([[0], np.cumsum(np.asarray(green, dtype=np.float64) - gamma)])
    best = Window(z=-math.inf, start=0, stop=0)
    for width in range(1, len(sums)):
        gains = sums[width:] - sums[:-width]
        start = int(gains.argmax())
        z = float(gains[start]) / math.sqrt(width * gamma * (1 - gamma))
        if z > best.z:
            best = Window(z=z, start=start, stop=start + width)
    return best


def window_threshold(
    n_scored: int, gamma: float, *, false_positive_rate: float = 0.01, draws: int = 2000, seed: int = 0
) -> float:
    """The highest window z that this share of unmarked texts of this length exceeds, by simulation.

    Raises:
        ValueError: a rate that the number of draws cannot tell.
    """
    if not 1 / draws <= false_positive_rate < 1:
        raise ValueError(
            f"{draws} draws cannot tell a false-positive rate of {false_positive_rate:g}; give at least "
            f"{1 / draws:.2g}, or more draws"
        )
    generator = np.random.default_rng(seed)
    sums = np.zeros((draws, n_scored + 1))
    sums[:, 1:] = np.cumsum((generator.random((draws, n_scored)) < gamma) - gamma, axis=1)
    best = np.full(draws, -math.inf)
    for width in range(1, n_scored + 1):
        gains = (sums[:, width:] - sums[:, :-width]).max(1)
        np.maximum(best, gains / math.sqrt(width * gamma * (1 - gamma)), out=best)
    return float(np.sort(best)[::-1][int(false_positive_rate * draws)])


@dataclass(frozen=True, kw_only=True)
class ExpectedDetection:
    """What the theory says of a marked text."""

    n_green: float
    """Lower bound on the expected number of green tokens."""
    deviation: float
    """Upper bound on its standard deviation."""
    threshold: float
    """Green tokens above which z exceeds the threshold."""
    power: float
    """Share of marked texts above it, in the normal approximation with these bounds."""


def expected_detection(
    n_scored: int,
    spike_entropy: float,
    *,
    gamma: float = 0.25,
    delta: int | float = 2.0,
    z: int | float = 4.0,
) -> ExpectedDetection:
    """The power of a watermark on sampled text.

    Source: Kirchenbauer et al. 2023, arXiv:2301.10226, theorem 4.2.

    Args:
        spike_entropy: mean over the positions of `spike_entropies` with `spike_modulus(gamma, delta)`.
    """
    share = min(1.0, green_mass(gamma, delta) * spike_entropy)
    mean, deviation = n_scored * share, math.sqrt(n_scored * share * (1 - share))
    threshold = gamma * n_scored + z * math.sqrt(n_scored * gamma * (1 - gamma))
    power = float(stats.norm.sf((threshold - mean) / deviation)) if deviation else float(mean > threshold)
    return ExpectedDetection(n_green=mean, deviation=deviation, threshold=threshold, power=power)


def green_mass(gamma: float, delta: int | float) -> float:
    """gamma alpha / (1 + (alpha - 1) gamma) with alpha = e^delta: share of green tokens after a flat distribution."""
    return 1.0 if math.isinf(delta) else gamma * math.exp(delta) / (1 + math.expm1(delta) * gamma)


def spike_modulus(gamma: float, delta: int | float) -> float:
    """(1 - gamma) (alpha - 1) / (1 + (alpha - 1) gamma), with alpha = e^delta."""
    if math.isinf(delta):
        return (1 - gamma) / gamma
    return (1 - gamma) * math.expm1(delta) / (1 + math.expm1(delta) * gamma)


def spike_entropies(
    probabilities: Float[Tensor, "position d_vocab"], modulus: float
) -> Float[Tensor, " position"]:
    """sum_v p(v) / (1 + m p(v)): 1 for a flat distribution over many tokens, 1 / (1 + m) for a certain one."""
    return (probabilities / (1 + modulus * probabilities)).sum(-1)


def mean_spike_entropies(model: ChatModel, texts: Sequence[str], watermark: Watermark) -> list[float]:
    """Mean spike entropy of each text under a model, for `expected_detection`; one forward pass.

    Raises:
        ValueError: a text of fewer than two tokens, or log-probabilities that are not finite.
    """
    modulus = spike_modulus(watermark.gamma, watermark.delta)

    def reduce(
        logits: Sequence[Float[Tensor, "position d_vocab"]],
        _ids: Int[Tensor, " position"],
    ) -> Float[Tensor, " position"]:
        return spike_entropies(logits[0].softmax(-1), modulus)

    parts = map_texts([model], token_ids([model], texts), reduce)
    for number, part in enumerate(parts):
        check_finite(part.values[:, None], number)
    return [float(part.values.double().mean()) for part in parts]


def _z_along(green: Sequence[bool], gamma: float) -> np.ndarray:
    counts = np.arange(1, len(green) + 1)
    sums = np.cumsum(np.asarray(green, dtype=np.float64))
    return (sums - gamma * counts) / np.sqrt(counts * gamma * (1 - gamma))


def _width(window: Window) -> int:
    return window.stop - window.start
