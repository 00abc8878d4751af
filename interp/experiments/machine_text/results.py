"""Records of the result of the study of machine-written text."""

from dataclasses import dataclass

from interp.stats import Estimate, Measured


@dataclass(frozen=True, kw_only=True)
class Separation:
    """One detector on human and machine-written texts of the same lengths."""

    human: tuple[Measured, ...]
    """Score of every human text, with the sign by which machine-written text is expected to be higher."""
    machine: tuple[Measured, ...]
    """Score of its machine-written twin."""
    auroc: Estimate
    """AUROC; below 0.5 the expected sign is the wrong one. `missing` counts texts without a score."""
    found: Estimate
    """Share of machine-written texts above the threshold of the false-positive rate."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """AUROC of one detector less that of another, paired by text."""

    first: str
    second: str
    estimate: Estimate
    """Above 0 the first is better."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Detectors on machine-written texts that were changed, or written in another way."""

    n: int
    """Texts."""
    dropped: int
    """Texts that were too short afterwards."""
    auroc: dict[str, Estimate]
    """By detector, against the human twins cut to the same lengths."""
    found: dict[str, Estimate]
    """Share above the threshold that was set on the human texts of full length."""
    change: dict[str, Estimate]
    """AUROC less that of the unchanged texts of the same pairs; for the detectors of `ORDER`."""


@dataclass(frozen=True, kw_only=True)
class LayerDirection:
    """The direction from the mean state of human texts to that of machine-written ones, fitted on half of the pairs."""

    layer: int
    """Layer whose `resid_pre` is read."""
    auroc: Estimate
    """Projections of the other half: machine-written against human."""
    shuffled: Estimate
    """The same of directions between shuffled labels: mean, and the range of 95% of them."""
    refusal: float
    """Cosine with the refusal direction (difference in means at `t_post_inst`)."""
    harmfulness: float
    """Cosine with the harmfulness direction (difference in means at `t_inst`)."""
    chance_refusal: float
    """Absolute cosine with the refusal direction that 5% of shuffled directions exceed."""
    chance_harmfulness: float
    """The same with the harmfulness direction."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Texts that the model wrote under an intervention, scored by the model without it."""

    n: int
    """Texts."""
    scores: dict[str, dict[str, Measured]]
    """By detector of `ORDER` and id of the human text: score, machine-written higher."""
    auroc: dict[str, Estimate]
    """By detector, against the human twins."""
    change: dict[str, Estimate]
    """Mean score less that of texts written without intervention, paired by prompt, in standard deviations of the human
    texts' scores."""
    found: dict[str, Estimate] | None = None
    """Share above the threshold that was set on all human texts; None in runs that did not measure it."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What interventions on writing do, with their controls; in standard deviations of the human texts' scores."""

    steered: dict[str, Estimate]
    """Score with the machine-text direction added less that with it subtracted, by detector."""
    steered_random: dict[str, Estimate]
    """The same with a random direction of equal norm."""
    ablated: dict[str, Estimate]
    """Score with refusal ablated less that with a random direction ablated."""
    added: dict[str, Estimate]
    """Score with refusal added less that with a random direction of equal norm added."""
    refused: dict[str, Estimate]
    """Share of harmful requests that are refused, by intervention."""


@dataclass(frozen=True, kw_only=True)
class OverKeys:
    """z of texts without the mark with many keys: what one list holds of common words is another draw for each key."""

    means: tuple[float, ...]
    """Mean z of the texts, by key."""
    histogram: tuple[int, ...]
    """Numbers of z, over texts and keys, in bins of 0.25 from -6 to 6; those beyond are in the outer ones."""
    mean: Estimate
    """Mean z, 0 in theory; interval over keys."""
    deviation: Estimate
    """Standard deviation of z, 1 in theory; interval over keys."""
    above: Estimate
    """Share of z above 4, over texts and keys."""
    expected: float
    """The same share by the exact binomial distribution at the texts' lengths."""


@dataclass(frozen=True, kw_only=True)
class Unmarked:
    """z of texts without the mark."""

    z: tuple[float, ...]
    """z of every text, with the key of the marked texts."""
    mean: Estimate
    """Mean."""
    variance: Estimate
    """Variance."""
    above: Estimate
    """Share above z = 4."""
    along: tuple[Estimate, ...]
    """Mean z of the first tokens, at `Watermarks.tokens`."""
    keys: OverKeys | None = None
    """The same texts with many keys; None in runs that did not measure it."""


@dataclass(frozen=True, kw_only=True)
class Marked:
    """z of texts with the mark."""

    z: tuple[float, ...]
    """z of every text."""
    other_key: Estimate
    """Mean z with another key; 0 in theory."""
    green: Estimate
    """Mean share of green tokens."""
    bound: float
    """Share that theorem 4.2 says at least, with the texts' mean spike entropy."""
    power: tuple[Estimate, ...]
    """Share of texts with z above 4 after so many tokens, at `Watermarks.tokens`."""
    expected: tuple[float, ...]
    """What the theorem says of them."""
    along: tuple[Estimate, ...]
    """Mean z of the first tokens, at `Watermarks.tokens`."""


@dataclass(frozen=True, kw_only=True)
class Watermarks:
    """The watermark on marked and unmarked texts."""

    tokens: tuple[int, ...]
    """Numbers of written tokens; repeated n-grams among them are not scored."""
    unmarked: dict[str, Unmarked]
    """By who wrote the texts."""
    marked: dict[str, Marked]
    """By delta."""


@dataclass(frozen=True, kw_only=True)
class ReadExample:
    """A text as the model sees it (GLTR)."""

    context: str
    """Text before the first scored token."""
    tokens: tuple[str, ...]
    """Scored tokens."""
    ranks: tuple[int, ...]
    """Rank of each, 1 is the likeliest."""
    probabilities: tuple[float, ...]
    """Probability of each."""
