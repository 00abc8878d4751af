"""Models in which the elasticity theorem can be computed: mixture of counts, token tree, log-linear.

Source: Ji et al. 2025, arXiv:2406.06144, definitions 3.1 to 3.6, theorem 3.4 and theorem 4.2. Everything is in nats
unless stated otherwise. Sizes: k = |D_p| / |D_a|, l = |D_t| / |D_a|, s = |D_3| / |D_p|, where D_p is pre-training data,
D_a alignment data distributed like D_2 and D_t perturbation data distributed like D_3.

What drives the theorem's -k: theta minimises |D_p| g_p + |D_a| g_a + l |D_a| g_t, so at l = 0 the gradients satisfy
|D_p| grad g_p = -|D_a| grad g_a, hence dg_a = -k dg_p along *any* motion. Neither a Pareto law nor a token tree nor
disjoint data is needed; only a joint optimum is, which training in stages does not reach.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sources:
    """Three distributions over the same symbols, and the pre-training mixture of them."""

    bulk: Array
    """P_1, [symbol]."""
    aligned: Array
    """P_2, which D_a is drawn from, [symbol]."""
    perturbing: Array
    """P_3, which D_t is drawn from, [symbol]."""
    share: float
    """s: P_2's and P_3's share of pre-training each, 0 to 0.5."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 0.5:
            raise ValueError(
                f"share must be between 0 and 0.5, got {self.share}; P_1 holds the rest, 1 - 2 s"
            )

    @property
    def pretraining(self) -> Array:
        """P_p = (1 - 2s) P_1 + s P_2 + s P_3."""
        return (1 - 2 * self.share) * self.bulk + self.share * (self.aligned + self.perturbing)

    def mixture(self, k: float | int, l: float | int) -> Array:  # noqa: E741 (the theorem's name)
        """What joint training on D_p, D_a and D_t learns: the size-weighted mixture.

        Source: Ji et al. 2025, section 3 (joint training), p = sum_i |D_i| p_i / sum_i |D_i|.
        """
        return (k * self.pretraining + self.aligned + l * self.perturbing) / (k + 1 + l)


def pareto_sources(generator: np.random.Generator, *, share: float, symbols: int = 300) -> Sources:
    """Three Pareto(1.2) laws over disjoint supports with an equal number of symbols.

    Source: Ji et al. 2025, assumption A.7 (Pareto mass over the leaves; argued from Zipf's law).
    """
    parts = np.zeros((3, 3 * symbols))
    for i in range(3):
        weights = generator.permutation(np.arange(1, symbols + 1, dtype=np.float64) ** -1.2)
        parts[i, i * symbols : (i + 1) * symbols] = weights / weights.sum()
    return Sources(bulk=parts[0], aligned=parts[1], perturbing=parts[2], share=share)


def cross_entropy(source: Array, model: Array) -> float:
    """Code length of the source under the model in nats a response: the compression rate gamma (lower is better)."""
    used = source > 0
    return float(-(source[used] * np.log(model[used])).sum())


def rates(sources: Sources, model: Array) -> tuple[float, float]:
    """(gamma_a, gamma_p): compression rates of alignment and pre-training data under a model, nats."""
    return cross_entropy(sources.aligned, model), cross_entropy(sources.pretraining, model)


# Closed forms of the mixture with disjoint supports


def slope_of_alignment(k: float | int, l: float | int) -> float:  # noqa: E741
    """d gamma_a / dl = 1 / (k + 1 + l)."""
    return 1 / (k + 1 + l)


def slope_of_pretraining(k: float | int, l: float | int, share: float) -> float:  # noqa: E741
    """d gamma_p / dl = 1 / (k + 1 + l) - s / (s k + l)."""
    return 1 / (k + 1 + l) - share / (share * k + l)


def slope_ratio(k: float | int, l: float | int, share: float) -> float:  # noqa: E741
    """R(l) = d gamma_a / d gamma_p = -(s k + l) / (s - (1 - s) l); -k at l = 0, with a pole at `pole(s)`."""
    return -(share * k + l) / (share - (1 - share) * l)


def pole(share: float) -> float:
    """l* = s / (1 - s), where gamma_p stops falling; "l << 1" in the theorem means l << l*."""
    return share / (1 - share)


def local_slopes(sources: Sources, k: float | int, l: float | int) -> tuple[float, float]:  # noqa: E741
    """(d gamma_a / dl, d gamma_p / dl) of the mixture by central differences, l > 0."""
    h = 1e-2 * min(l, 0.05)  # wide enough for float64 at k = 1000, where gamma_p moves by 1e-6 l
    above, below = (rates(sources, sources.mixture(k, l + sign * h)) for sign in (1, -1))
    return (above[0] - below[0]) / (2 * h), (above[1] - below[1]) / (2 * h)


# Token tree


def tree_source(generator: np.random.Generator, depth: int) -> Array:
    """Leaf weights of a random binary tree, [2^depth]: every node splits its weight at a uniform place.

    Source: Ji et al. 2025, definition 3.1 (token tree): a node's weight is the sum of its children's.
    """
    leaves = np.ones(1)
    for _ in range(depth):
        left = generator.uniform(0.05, 0.95, len(leaves))
        leaves = np.stack([leaves * left, leaves * (1 - left)], axis=1).ravel()
    return leaves


def prune(leaves: Array, depth: int) -> Array:
    """Weights of the nodes at this depth, [..., 2^depth]: the leaves of the tree pruned to its top layers.

    Source: Ji et al. 2025, definition 3.3 (a).

    Raises:
        ValueError: a depth the tree does not have.
    """
    if 2**depth > leaves.shape[-1]:
        raise ValueError(
            f"depth must be at most {leaves.shape[-1].bit_length() - 1}, the tree's own, got {depth}"
        )
    return leaves.reshape(*leaves.shape[:-1], 2**depth, -1).sum(-1)


def ideal_code_length(leaves: Array, depth: int, length: int) -> int:
    """Bits for a response of so many binary tokens: blocks of `depth` tokens, each in the entropy of a block.

    Source: Ji et al. 2025, theorem 3.4, ceil(|x| / d) * ceil(entropy of the pruned tree's leaves).
    """
    block = prune(leaves, depth)
    return int(np.ceil(length / depth) * np.ceil(cross_entropy(block, block) / np.log(2)))


def counted(counts: Array) -> Array:
    """A distribution from counts with half a count added to every leaf."""
    return (counts + 0.5) / (counts + 0.5).sum(-1, keepdims=True)


# Log-linear model


def grouped_features(
    generator: np.random.Generator, sources: Sources, *, features: int = 24, within: float = 0.5
) -> Array:
    """Random features [symbol, feature]: a mean for each of the three supports, and noise around it.

    Symbols of one support share their mean, so a few parameters can move a whole source: learning generalises.
    """
    symbols = len(sources.bulk)
    means = np.repeat(generator.normal(size=(3, features)), symbols // 3, axis=0)
    return means + within * generator.normal(size=(symbols, features))


def behaviour_score(probabilities: Array) -> Array:
    """Mass of P_2's support over the mass of P_2's and P_3's, [...]: share of aligned behaviour."""
    _, positive, negative = np.moveaxis(
        probabilities.reshape(*probabilities.shape[:-1], 3, -1).sum(-1), -1, 0
    )
    return np.asarray(positive / (positive + negative))


@dataclass(frozen=True, eq=False)
class LogLinear:
    """p(x) = exp(theta . f(x)) / Z over a finite set of symbols: too few parameters to fit every source."""

    features: Array
    """f, [symbol, feature]."""

    def probabilities(self, theta: Array) -> Array:
        """p, [..., symbol] for parameters [..., feature]."""
        logits = theta @ self.features.T
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def expected(self, distribution: Array) -> Array:
        """Mean features, [..., feature]."""
        return distribution @ self.features

    def gradient(self, theta: Array, source: Array) -> Array:
        """Gradient of the source's cross-entropy: expected features of the model minus those of the source."""
        return self.expected(self.probabilities(theta)) - self.expected(source)

    def hessian(self, theta: Array) -> Array:
        """Covariance of the features under the model, [feature, feature]; the same for every source."""
        p = self.probabilities(theta)
        centred = self.features - self.expected(p)
        return (centred * p[:, None]).T @ centred

    def fit(self, source: Array, *, start: Array | None = None, tolerance: float = 1e-13) -> Array:
        """Maximum likelihood by damped Newton steps.

        Raises:
            ValueError: no optimum within 200 steps (the features can separate the source from the rest).
        """
        theta = np.zeros(self.features.shape[1]) if start is None else start
        gradient = self.gradient(theta, source)
        for _ in range(200):
            gradient = self.gradient(theta, source)
            if np.abs(gradient).max() < tolerance:
                return theta
            step = np.linalg.solve(self.hessian(theta), gradient)
            damping = 1.0
            now = cross_entropy(source, self.probabilities(theta))
            while damping > 1e-4 and (
                cross_entropy(source, self.probabilities(theta - damping * step)) > now + 1e-12
            ):
                damping /= 2
            theta = theta - damping * step
        raise ValueError(
            f"no optimum in 200 Newton steps; gradient {np.abs(gradient).max():.1e}, wanted {tolerance:.0e}"
        )

    def rates(self, theta: Array, sources: Sources) -> tuple[float, float]:
        """(gamma_a, gamma_p) at these parameters, nats."""
        return rates(sources, self.probabilities(theta))

    def one_pass(
        self,
        generator: np.random.Generator,
        theta: Array,
        source: Array,
        examples: int,
        *,
        rate: float,
        batch: int,
        decay: bool = False,
    ) -> Array:
        """Stochastic gradient descent over a number of fresh examples, for several runs at once.

        Args:
            theta: [run, feature].
            decay: the learning rate falls linearly to 0.
        """
        steps = examples // batch
        moments = self.features[
            generator.choice(len(source), p=source, size=(steps, len(theta), batch))
        ].mean(2)
        for i in range(steps):
            pull = self.expected(self.probabilities(theta)) - moments[i]
            theta = theta - rate * ((1 - i / steps) if decay else 1.0) * pull
        return theta


def curvature_ratio(
    model: LogLinear, theta: Array, sources: Sources, *, rate: float, steps: float | int
) -> float:
    """Slope ratio after so many small alignment steps from a converged theta: -(g_a . g_t) / (eta T_a g_a' H g_t).

    First order in the alignment: k_eff ~ 1 / (eta T_a curvature). Falls with alignment steps as the theorem's 1/|D_a|
    does, but does not depend on |D_p|, which distinguishes the two accounts.
    """
    a, t = (model.gradient(theta, source) for source in (sources.aligned, sources.perturbing))
    return float(-(a @ t) / (rate * steps * (a @ model.hessian(theta) @ t)))
