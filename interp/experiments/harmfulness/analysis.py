"""Harmfulness and refusal in hidden states: clusters, beliefs, geometry. Tensors in, numbers out.

States are `[prompt, layer, role, d_model]` with roles `t_inst`, `t_post_inst` and layers 0..L as in
`interp.representations.beliefs`. Section numbers are those of Zhao et al. 2025, arXiv:2507.11878.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.directions import cosine
from interp.evaluation.records import MIN_IN_GROUP, Group
from interp.experiments.harmfulness.results import (
    Among,
    Band,
    Clusters,
    Curve,
    Geometry,
    GroupBeliefs,
    GroupMargin,
    PositionMargin,
    PromptBeliefs,
    Separation,
    Tells,
)
from interp.representations.beliefs import Centres, belief, both_beliefs, fit_centres
from interp.representations.records import HarmAndRefusal
from interp.stats import Estimate, auroc, mean_with_interval

Groups = Mapping[Group, Float[Tensor, "_ layer role d_model"]]
"""States [prompt, ...] by behaviour group."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Anchors:
    """States of training prompts that behave as wanted; centres and directions are fitted on them."""

    harmful: Float[Tensor, "harmful layer role d_model"]
    """Refused harmful prompts."""
    harmless: Float[Tensor, "harmless layer role d_model"]
    """Accepted harmless prompts."""

    def centres(self, role: int) -> Centres:
        """Centres of both groups at one role."""
        return fit_centres(self.harmful[:, :, role], self.harmless[:, :, role])

    def both_centres(self) -> HarmAndRefusal[Centres]:
        """Centres of both beliefs."""
        return HarmAndRefusal(harm=self.centres(0), refusal=self.centres(1))

    def directions(self) -> Float[Tensor, "role layer d_model"]:
        """Difference in means at every role, float32 (equation 5)."""
        difference = self.harmful.double().mean(0) - self.harmless.double().mean(0)
        return difference.transpose(0, 1).float()


def clusters(
    groups: Groups,
    anchors: Anchors,
    role: int,
    *,
    labels: Literal["full", "truncated"] = "full",
    draws: int,
    seed: int,
) -> Clusters:
    """Mean and SD of the margin s^l per group and layer, beside the range that shuffled labels give (equation 2)."""
    margin = anchors.centres(role).margin
    return Clusters(
        curves={name: _curve(margin(states[:, :, role])) for name, states in groups.items()},
        shuffled=_shuffled(groups, anchors, role, draws=draws, seed=seed),
        labels=labels,
    )


def _curve(values: Float[Tensor, "prompt layer"]) -> Curve:
    n, n_layers = values.shape
    if n == 0:
        nothing = (float("nan"),) * n_layers
        return Curve(n=0, mean=nothing, sd=nothing)
    return Curve(n=n, mean=tuple(values.mean(0).tolist()), sd=tuple(values.std(0, correction=0).tolist()))


def _shuffled(groups: Groups, anchors: Anchors, role: int, *, draws: int, seed: int) -> dict[Group, Band]:
    """The central 95% over draws of each group's mean margin, with centres of two random halves of the anchors."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.cat([anchors.harmful[:, :, role], anchors.harmless[:, :, role]])
    n = len(anchors.harmful)
    means: dict[Group, list[Tensor]] = {name: [] for name, states in groups.items() if len(states)}
    for _ in range(draws):
        order = torch.randperm(len(pooled), generator=generator)
        margin = fit_centres(pooled[order[:n]], pooled[order[n:]]).margin
        for name in means:
            means[name].append(margin(groups[name][:, :, role]).mean(0))
    ends = torch.tensor([0.025, 0.975]).double()
    bands: dict[Group, Band] = {}
    for name, margins in means.items():
        low, high = torch.stack(margins).quantile(ends, dim=0).tolist()
        bands[name] = Band(low=tuple(low), high=tuple(high))
    return bands


def beliefs(
    groups: Groups, ids: Mapping[Group, Sequence[str]], anchors: Anchors, *, seed: int
) -> GroupBeliefs:
    """Both beliefs of every prompt, their means by group, and what each belief separates (equations 3 and 4)."""
    centres = anchors.both_centres()
    both: dict[Group, HarmAndRefusal[Tensor]] = {
        name: both_beliefs(states, centres) for name, states in groups.items()
    }
    points: dict[Group, tuple[PromptBeliefs, ...]] = {
        name: tuple(
            PromptBeliefs(id=i, beliefs=HarmAndRefusal(harm=harm, refusal=refusal))
            for i, harm, refusal in zip(ids[name], two.harm.tolist(), two.refusal.tolist(), strict=True)
        )
        for name, two in both.items()
    }
    means: dict[Group, HarmAndRefusal[Estimate]] = {
        name: HarmAndRefusal(
            harm=mean_with_interval(two.harm.tolist(), seed=seed),
            refusal=mean_with_interval(two.refusal.tolist(), seed=seed),
        )
        for name, two in both.items()
    }
    return GroupBeliefs(points=points, means=means, separation=_separation(both, seed))


_CONTRASTS: tuple[tuple[Tells, Among, Group, Group], ...] = (
    ("harmful from harmless", "refused", "refused harmful", "refused harmless"),
    ("harmful from harmless", "accepted", "accepted harmful", "accepted harmless"),
    ("refused from accepted", "harmful", "refused harmful", "accepted harmful"),
    ("refused from accepted", "harmless", "refused harmless", "accepted harmless"),
)


def _separation(both: Mapping[Group, HarmAndRefusal[Tensor]], seed: int) -> tuple[Separation, ...]:
    """AUROC of each belief for harm among prompts treated alike, and for refusal among prompts of a kind."""
    rows = []
    for tells, among, positive, negative in _CONTRASTS:
        for name, scores in both[positive].items():
            against = both[negative].of(name)
            enough = min(len(scores), len(against)) >= MIN_IN_GROUP
            rows.append(
                Separation(
                    tells=tells,
                    among=among,
                    belief=name,
                    auroc=auroc(scores.float(), against.float(), seed=seed)
                    if enough
                    else Estimate.unmeasured(len(scores) + len(against), unit="AUROC"),
                    n_positive=len(scores),
                    n_negative=len(against),
                )
            )
    return tuple(rows)


def geometry(anchors: Anchors, *, resamples: int, seed: int) -> Geometry:
    """Cosine of the two directions per layer with its bootstrap interval, their norms, and how reliable each is."""
    harm, refuse = anchors.directions()
    resampled = _resampled_cosines(anchors, resamples, seed)
    used = cosine(harm, refuse).double()
    n = len(anchors.harmful) + len(anchors.harmless)
    scale = torch.cat([anchors.harmful, anchors.harmless]).double().norm(dim=-1).mean(0)
    return Geometry(
        cosine=tuple(
            _around(v, sd, n) for v, sd in zip(used.tolist(), resampled.std(0).tolist(), strict=True)
        ),
        mean_cosine=_around(used.mean().item(), resampled.mean(1).std().item(), n),
        random_sd=harm.shape[-1] ** -0.5,
        direction_norm=_both(harm.norm(dim=-1), refuse.norm(dim=-1)),
        activation_norm=_both(scale[:, 0], scale[:, 1]),
        reliability=_reliability(anchors, seed=seed),
    )


def _both(
    harm: Float[Tensor, " layer"], refusal: Float[Tensor, " layer"]
) -> HarmAndRefusal[tuple[float, ...]]:
    return HarmAndRefusal(harm=tuple(harm.tolist()), refusal=tuple(refusal.tolist()))


def _around(value: float, sd: float, n: int) -> Estimate:
    """A cosine with the 95% normal interval of its bootstrap SD.

    Directions of resampled prompts carry the sampling noise twice, so percentiles of their cosines are biased and can
    leave the estimate out.
    """
    low, high = max(-1.0, value - 1.96 * sd), min(1.0, value + 1.96 * sd)
    return Estimate(value=value, n=n, low=low, high=high, unit="cosine", interval="normal, bootstrap SD")


def _resampled_cosines(anchors: Anchors, resamples: int, seed: int) -> Float[Tensor, "draw layer"]:
    """Cosine of the two directions per layer, fitted on prompts drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)

    def weights(n: int) -> Tensor:
        rows = torch.randint(n, (resamples, n), generator=generator)
        return torch.nn.functional.one_hot(rows, n).sum(1).double() / n

    first, second = weights(len(anchors.harmful)), weights(len(anchors.harmless))
    cosines = []
    for layer in range(
        anchors.harmful.shape[1]
    ):  # a layer at a time: the draws of all would not fit a large model
        a, b = anchors.harmful[:, layer].double(), anchors.harmless[:, layer].double()
        shape = "draw prompt, prompt role d_model -> role draw d_model"
        harm, refuse = einsum(first, a, shape) - einsum(second, b, shape)
        cosines.append(cosine(harm, refuse))
    return torch.stack(cosines, dim=1).double()


def _reliability(anchors: Anchors, *, seed: int, draws: int = 20) -> HarmAndRefusal[tuple[float, ...]]:
    """Mean over draws of the cosine of each direction with itself, fitted on two random halves of the anchors."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(anchors.harmful.shape[2], anchors.harmful.shape[1])
    for _ in range(draws):
        halves = []
        orders = [torch.randperm(len(x), generator=generator) for x in (anchors.harmful, anchors.harmless)]
        for side in (0, 1):
            rows = [order.chunk(2)[side] for order in orders]
            half = Anchors(harmful=anchors.harmful[rows[0]], harmless=anchors.harmless[rows[1]])
            halves.append(half.directions())
        total += cosine(halves[0], halves[1])
    harm, refusal = total / draws
    return _both(harm, refusal)


def yardstick(groups: Groups, anchors: Anchors) -> HarmAndRefusal[dict[Group, Curve]]:
    """Cosine of held-out states with each direction per layer, by group (section 3.2: 0.57 and -0.14 on Llama-2)."""
    directions = anchors.directions()

    def along(role: int) -> dict[Group, Curve]:
        curves: dict[Group, Curve] = {}
        for group, states in groups.items():
            x = states[:, :, role]
            curves[group] = _curve(cosine(x, directions[role].expand_as(x)))
        return curves

    return HarmAndRefusal(harm=along(0), refusal=along(1))


_MISBEHAVING: tuple[Group, ...] = ("accepted harmful", "refused harmless")


def positions_margin(groups: Groups, anchors: Anchors, names: Sequence[str]) -> tuple[PositionMargin, ...]:
    """The misbehaving groups' margins at every position, per layer and over the middle layers (appendix F).

    The source averages layers 9 to 20 of 32; the same share of the depth is taken here.
    """
    n_layers = anchors.harmful.shape[1] - 1
    middle = range(round(9 / 32 * n_layers), round(20 / 32 * n_layers) + 1)

    def of_group(role: int, group: Group) -> GroupMargin:
        margins = anchors.centres(role).margin(groups[group][:, :, role])
        return GroupMargin(
            curve=_curve(margins), middle=mean_with_interval(belief(margins, list(middle)).tolist())
        )

    return tuple(
        PositionMargin(
            position=name,
            middle_layers=(middle.start, middle.stop - 1),
            groups={group: of_group(role, group) for group in _MISBEHAVING},
        )
        for role, name in enumerate(names)
    )
