"""Results of the refusal-direction experiment: frozen records without tensors, readable without torch."""

from dataclasses import dataclass

from interp.stats import Estimate, Measured


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """One token as the first of a completion (figure 9)."""

    token: str
    """Decoded."""
    id: int
    """Token id."""
    probability: Measured
    """Mean over the prompts, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class SelectionBaseline:
    """Mean refusal metric of the validation prompts without an intervention, in nats."""

    harmful: Measured
    """The level that bypass is read against."""
    harmless: Measured
    """The level that induce is read against."""


@dataclass(frozen=True, kw_only=True)
class RandomScores:
    """The three scores of one random direction."""

    seed: int
    """That it was drawn with."""
    bypass: Measured
    """Mean refusal metric on harmful prompts with it ablated, in nats."""
    kl: Measured
    """Mean KL on harmless prompts with it ablated, in nats."""
    induce: tuple[Measured, ...]
    """Mean refusal metric on harmless prompts with it added, in nats, by layer of `RandomControls.layers`."""


@dataclass(frozen=True, kw_only=True)
class RandomControls:
    """Random directions of equal norm through the three scores: a control that the paper does not have."""

    layers: tuple[int, ...]
    """Layers at which they are added, with the norm of the candidate there."""
    directions: tuple[RandomScores, ...]


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """A number over prompts at each layer."""

    mean: tuple[Measured, ...]
    """Mean over prompts, by layer."""
    sd: tuple[Measured, ...]
    """Standard deviation over prompts by layer, in the population form of the paper's bands."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Output and attention of one head at the last token."""

    layer: int
    head: int
    projection: dict[str, Estimate]
    """Projection of its output on the unit direction by condition, in activation units (figure 6a)."""
    attention: dict[str, dict[str, Measured]]
    """Mean attention by condition, then region of the prompt; the regions sum to 1 (figure 6b)."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Mean projection of the final stream on the unit direction, plain requests, and the parts that add up to it."""

    total: Measured
    """Projection at the output of the last block."""
    embedding: Measured
    """Contribution of the token embedding."""
    heads: Measured
    """Contribution of all attention heads."""
    mlps: Measured
    """Contribution of all MLPs."""
    top_heads: Measured
    """Contribution of the listed heads, which is part of `heads`."""
    rest: Measured
    """Biases and rounding: total less embedding, heads and MLPs."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """How refusal is written and read (section 5)."""

    n_refused: int
    """Harmful requests, which the model refuses when they are plainly asked."""
    n_answered: int
    """Harmless requests, the reference."""
    refusal_metric: dict[str, Estimate]
    """Refusal metric by condition, in nats."""
    cosine: dict[str, LayerProfile]
    """Cosine of the last token's `resid_pre` with the direction, by condition (figure 5)."""
    heads: tuple[Head, ...] = ()
    """The heads that write most along the direction on plain requests; empty where that cannot be attributed."""
    explained: Attribution | None = None
    """Attribution of the projection to components; None where heads cannot be attributed."""
    skipped: str | None = None
    """Why heads cannot be attributed."""


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Last-token activations with and without subtracting the direction, in a plane (figure 22)."""

    layer: int
    """Whose input is read."""
    explained_variance: tuple[Measured, ...]
    """Share of the unmodified activations' variance on each axis."""
    points: dict[str, tuple[tuple[Measured, ...], ...]]
    """Coordinates of every prompt by kind, with ` - r` where the direction was subtracted."""


@dataclass(frozen=True, kw_only=True)
class BaseCheck:
    """The chat model's direction in its base model, at a newline after each prompt (appendix J, figure 24)."""

    model: str
    """The chat model."""
    base: str
    """Name of the base model."""
    n: int
    """Prompts of each kind."""
    cosine: dict[str, LayerProfile]
    """Cosines by model and kind, as `chat, harmful` or `base, harmful`."""
