"""What hidden states say of harmfulness and refusal: clusters, beliefs, geometry. Tensors in, numbers out.

States are `[prompt, layer, role, d_model]` with roles `t_inst`, `t_post_inst` and layers 0..L as in
`interp.representations.beliefs`. Section numbers are those of Zhao et al. 2025, arXiv:2507.11878.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.directions import cosine
from interp.representations.beliefs import Centres, belief, fit_centres
from interp.stats import auroc, mean_with_interval

ROLES = ("t_inst", "t_post_inst")
LEAST = 5
"""Prompts that a group must have before a claim is read off it."""
Groups = Mapping[str, Float[Tensor, "_ layer role d_model"]]
"""States [prompt, ...] by behaviour group (`interp.evaluation.responses.GROUPS`)."""


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

    def directions(self) -> Float[Tensor, "role layer d_model"]:
        """Difference in means at every role, float32 (equation 5)."""
        difference = self.harmful.double().mean(0) - self.harmless.double().mean(0)
        return difference.transpose(0, 1).float()


def clusters(groups: Groups, anchors: Anchors, role: int, *, draws: int, seed: int) -> dict[str, Any]:
    """Mean and SD of the margin s^l per group and layer, beside the range that shuffled labels give (equation 2).

    Returns:
        `curves` (group → n, mean, sd per layer) and `shuffled` (group → low, high: the central 95% over draws of the
        mean margin with centres of two random halves of the anchors).
    """
    margin = anchors.centres(role).margin
    return {
        "curves": {name: _curve(margin(states[:, :, role])) for name, states in groups.items()},
        "shuffled": _shuffled(groups, anchors, role, draws=draws, seed=seed),
    }


def _curve(margins: Float[Tensor, "prompt layer"]) -> dict[str, Any]:
    n, n_layers = margins.shape
    if n == 0:
        return {"n": 0, "mean": [None] * n_layers, "sd": [None] * n_layers}
    return {"n": n, "mean": margins.mean(0).tolist(), "sd": margins.std(0, correction=0).tolist()}


def _shuffled(groups: Groups, anchors: Anchors, role: int, *, draws: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.cat([anchors.harmful[:, :, role], anchors.harmless[:, :, role]])
    n = len(anchors.harmful)
    means: dict[str, list[Tensor]] = {name: [] for name, states in groups.items() if len(states)}
    for _ in range(draws):
        order = torch.randperm(len(pooled), generator=generator)
        margin = fit_centres(pooled[order[:n]], pooled[order[n:]]).margin
        for name in means:
            means[name].append(margin(groups[name][:, :, role]).mean(0))
    found = {}
    for name, drawn in means.items():
        low, high = torch.stack(drawn).quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
        found[name] = {"low": low.tolist(), "high": high.tolist()}
    return found


def beliefs(
    groups: Groups, ids: Mapping[str, Sequence[str]], anchors: Anchors, *, seed: int
) -> dict[str, Any]:
    """Both beliefs of every prompt, their means by group, and what each belief tells apart (equations 3 and 4)."""
    centres = [anchors.centres(role) for role in range(len(ROLES))]
    both = {
        name: [belief(c.margin(states[:, :, role])) for role, c in enumerate(centres)]
        for name, states in groups.items()
    }
    return {
        "points": {
            name: [
                {"id": i, "harmfulness": h, "refusal": r}
                for i, h, r in zip(ids[name], harm.tolist(), refuse.tolist(), strict=True)
            ]
            for name, (harm, refuse) in both.items()
        },
        "means": {
            name: {
                "harmfulness": mean_with_interval(harm.tolist(), seed=seed).as_dict(),
                "refusal": mean_with_interval(refuse.tolist(), seed=seed).as_dict(),
            }
            for name, (harm, refuse) in both.items()
        },
        "separation": _separation(both, seed),
    }


_CONTRASTS = (
    ("harmful from harmless", "refused", "refused harmful", "refused harmless"),
    ("harmful from harmless", "accepted", "accepted harmful", "accepted harmless"),
    ("refused from accepted", "harmful", "refused harmful", "accepted harmful"),
    ("refused from accepted", "harmless", "refused harmless", "accepted harmless"),
)


def _separation(both: Mapping[str, Sequence[Tensor]], seed: int) -> list[dict[str, Any]]:
    """AUROC of each belief for harm among prompts treated alike, and for refusal among prompts of a kind."""
    rows = []
    for what, among, positive, negative in _CONTRASTS:
        sizes = {"n_positive": len(both[positive][0]), "n_negative": len(both[negative][0])}
        for number, name in enumerate(("harmfulness", "refusal")):
            value = None
            if min(sizes.values()) >= LEAST:
                found = auroc(both[positive][number].float(), both[negative][number].float(), seed=seed)
                value = found.as_dict()
            rows.append({"tells": what, "among": among, "belief": name, "auroc": value, **sizes})
    return rows


def geometry(anchors: Anchors, *, resamples: int, seed: int) -> dict[str, Any]:
    """Cosine of the two directions per layer with its bootstrap interval, their norms, and how reliable each is.

    `reliability` is the cosine of a direction with itself fitted on two halves of the anchors: a cosine between the two
    directions cannot be expected to exceed it. A random pair has SD 1/sqrt(d_model).
    """
    harm, refuse = anchors.directions()
    drawn = _resampled_cosines(anchors, resamples, seed)
    used = cosine(harm, refuse).double()
    n = len(anchors.harmful) + len(anchors.harmless)
    scale = torch.cat([anchors.harmful, anchors.harmless]).double().norm(dim=-1).mean(0)
    return {
        "cosine": [_around(v, sd, n) for v, sd in zip(used.tolist(), drawn.std(0).tolist(), strict=True)],
        "mean_cosine": _around(used.mean().item(), drawn.mean(1).std().item(), n),
        "random_sd": harm.shape[-1] ** -0.5,
        "norms": {
            "harmfulness": harm.norm(dim=-1).tolist(),
            "refusal": refuse.norm(dim=-1).tolist(),
            "activations at t_inst": scale[:, 0].tolist(),
            "activations at t_post_inst": scale[:, 1].tolist(),
        },
        "reliability": _reliability(anchors, seed=seed),
    }


def _around(value: float, sd: float, n: int) -> dict[str, float | int]:
    """A cosine with the 95% normal interval of its bootstrap SD.

    Directions of resampled prompts carry the sampling noise twice, so percentiles of their cosines are biased and can
    leave the estimate out.
    """
    return {"value": value, "low": max(-1.0, value - 1.96 * sd), "high": min(1.0, value + 1.96 * sd), "n": n}


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


def _reliability(anchors: Anchors, *, seed: int, draws: int = 20) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(ROLES), anchors.harmful.shape[1])
    for _ in range(draws):
        halves = []
        orders = [torch.randperm(len(x), generator=generator) for x in (anchors.harmful, anchors.harmless)]
        for side in (0, 1):
            rows = [order.chunk(2)[side] for order in orders]
            half = Anchors(harmful=anchors.harmful[rows[0]], harmless=anchors.harmless[rows[1]])
            halves.append(half.directions())
        total += cosine(halves[0], halves[1])
    mean = (total / draws).tolist()
    return {"harmfulness": mean[0], "refusal": mean[1]}


def yardstick(groups: Groups, anchors: Anchors) -> dict[str, dict[str, Any]]:
    """Cosine of held-out states with each direction per layer, by group (section 3.2: 0.57 and -0.14 on Llama-2)."""
    directions = anchors.directions()
    return {
        name: {
            group: _curve(cosine(states[:, :, role], directions[role].expand_as(states[:, :, role])))
            for group, states in groups.items()
        }
        for role, name in enumerate(("harmfulness", "refusal"))
    }


def positions_margin(groups: Groups, anchors: Anchors, names: Sequence[str]) -> list[dict[str, Any]]:
    """The misbehaving groups' margins at every position, per layer and over the middle layers (appendix F).

    The source averages layers 9 to 20 of 32; the same share of the depth is taken here.
    """
    n_layers = anchors.harmful.shape[1] - 1
    middle = range(round(9 / 32 * n_layers), round(20 / 32 * n_layers) + 1)
    table = []
    for role, name in enumerate(names):
        margin = anchors.centres(role).margin
        row: dict[str, Any] = {"position": name, "middle_layers": [middle.start, middle.stop - 1]}
        for group in ("accepted harmful", "refused harmless"):
            margins = margin(groups[group][:, :, role])
            row[group] = {
                **_curve(margins),
                "middle": mean_with_interval(belief(margins, list(middle)).tolist()).as_dict(),
            }
        table.append(row)
    return table
