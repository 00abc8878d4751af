"""The safety plane: a few principal components of the states, with a refusal and a harmfulness direction in them.

    z = V^T (x - a)                                  V: 4 principal components of all states, a: their mean
    f_r = w_r . z + b_r,   f_h = w_h . z + b_h       logits of refusing, and of being harmful
    Q = [V, U]                                       an orthonormal basis: U^T (x - a) is all that the plane leaves out

Source: Zheng et al. 2024, arXiv:2401.18018, code, "anchoring": PCA, then one logistic regression to the refusal
probability (a soft target) and one to harmfulness, on ten folds whose weights are averaged. Both logits grow towards
refusing and towards harmful here; the released code regresses the opposite of both. A direction that tells refused from
answered queries is no evidence that the model uses it.

    states = safety_representations(model, queries, prompts)
    space = anchor(states, refusal_targets(model, queries, prompts).values)
    space.refusal(states.of("none", harmful=True))          # logits, larger is more refusal
    shift_table(space, states)                              # how system prompts move queries
    plane_by_layer(model, queries, prompts, targets)        # at every layer, beside difference-in-means directions
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Ending
from interp.directions import cosine, difference_in_means, unit
from interp.engine.activations import collect
from interp.models.chat_model import ChatModel, Site
from interp.models.layers import Layers
from interp.models.tokens import tokenize
from interp.representations.records import Solver
from interp.representations.safety_regressions import FoldWeights, fit_folds
from interp.representations.safety_states import (
    Conditions,
    Queries,
    SafetyStates,
    joined,
    query_sides,
    safety_representations_by_layer,
)
from interp.stats import Estimate, mean_with_interval

Kind = Literal["harmful", "harmless"]
NO_PROMPT = "none"
"""Name of the condition without a system prompt, which shifts are counted from."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SafetySpace:
    """Principal components of states, with the refusal and the harmfulness direction in them; float64, on the CPU."""

    mean: Float[Tensor, " d_model"]
    """a, the mean state."""
    basis: Float[Tensor, "d_model component"]
    """V, orthonormal, by explained variance."""
    explained: tuple[float, ...]
    """Share of the variance along each component."""
    refusal_weights: Float[Tensor, " component"]
    """w_r, the mean over folds; larger logits are more refusal."""
    refusal_bias: float
    """b_r."""
    harm_weights: Float[Tensor, " component"]
    """w_h, the mean over folds; larger logits are more harmful."""
    harm_bias: float
    """b_h."""
    folds: FoldWeights
    """Weights of every fold: refusal, then harmfulness."""
    place: str
    """Where the states were read."""
    conditions: tuple[str, ...]
    """System prompts that it was fitted on."""

    @property
    def refusal_normal(self) -> Float[Tensor, " d_model"]:
        """V w_r: the direction towards more refusal, in the states' own space."""
        return self.basis @ self.refusal_weights

    @property
    def harm_normal(self) -> Float[Tensor, " d_model"]:
        """V w_h: the direction towards more harmful."""
        return self.basis @ self.harm_weights

    @cached_property
    def rest(self) -> Float[Tensor, "d_model rest"]:
        """U, which completes V to an orthonormal basis, by a QR factorisation (the released code: Gram-Schmidt)."""
        whole, _ = torch.linalg.qr(self.basis, mode="complete")
        return whole[:, self.basis.shape[1] :]

    def coordinates(self, states: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest component"]:
        """z = V^T (x - a)."""
        return (states - self.mean.to(states)) @ self.basis.to(states)

    def refusal(self, states: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest"]:
        """f_r, the logit of refusing."""
        return self.coordinates(states) @ self.refusal_weights.to(states) + self.refusal_bias

    def harmfulness(self, states: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest"]:
        """f_h, the logit of being harmful."""
        return self.coordinates(states) @ self.harm_weights.to(states) + self.harm_bias

    def beside(self, shifts: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest"]:
        """Mean square of the coordinates U^T d of shifts d: what they move outside the plane.

        Computed as d - V V^T d, which has the length of U^T d, so that U is not needed.
        """
        basis = self.basis.to(shifts)
        outside = shifts - (shifts @ basis) @ basis.T
        return outside.square().sum(-1) / (basis.shape[0] - basis.shape[1])


def anchor(
    states: SafetyStates,
    refusal: Float[Tensor, "condition query"],
    *,
    n_components: int = 4,
    folds: int = 10,
    solver: Solver = "released",
    seed: int = 42,
) -> SafetySpace:
    """Fit the plane on the states of all conditions.

    Args:
        refusal: refusal probability of each query under each condition (`refusal_targets`).
        solver: `interp.representations.safety_regressions`.
        seed: seed of the folds.

    Raises:
        ValueError: targets of another shape or outside 0..1, more components than the states have, or states or targets
            that are equal everywhere.
    """
    from sklearn.decomposition import PCA

    shape = tuple(states.values.shape[:2])
    if tuple(refusal.shape) != shape:
        raise ValueError(
            f"refusal must have shape {list(shape)} [condition, query], got {list(refusal.shape)}"
        )
    if not ((refusal >= 0) & (refusal <= 1)).all():
        raise ValueError("refusal probabilities must be in 0..1")
    points = rearrange(states.values, "condition query d_model -> (condition query) d_model").double()
    most = min(len(points), points.shape[1] - 1)
    if not 1 <= n_components <= most:
        raise ValueError(f"n_components must be in 1..{most}, got {n_components}")
    if not varies(states):
        raise ValueError(f"all states at {states.place} are equal: a plane needs states that differ")
    components = PCA(n_components=n_components, svd_solver="full").fit(points.numpy())
    basis = torch.from_numpy(components.components_.T.copy())  # pyright: ignore[reportOptionalMemberAccess]
    mean = torch.from_numpy(components.mean_.copy())
    targets = torch.stack([refusal.double().flatten(), states.harmful.double().repeat(shape[0])])
    fitted = fit_folds((points - mean) @ basis, targets, folds=folds, solver=solver, seed=seed)
    weights, biases = fitted.weights.mean(1), fitted.biases.mean(1)
    return SafetySpace(
        mean=mean,
        basis=basis,
        explained=tuple(components.explained_variance_ratio_.tolist()),
        refusal_weights=weights[0],
        refusal_bias=biases[0].item(),
        harm_weights=weights[1],
        harm_bias=biases[1].item(),
        folds=fitted,
        place=states.place,
        conditions=states.conditions,
    )


def varies(states: SafetyStates) -> bool:
    """Whether the states differ; the embedding of the last template token is the same in every prompt."""
    points = states.values.flatten(0, 1)
    return bool((points - points[:1]).abs().max() > 1e-6 * points.abs().max())


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How a system prompt moves one kind of query, against no system prompt: a split of the mean shift."""

    condition: str
    kind: Kind
    refusal: Estimate
    """Along the refusal normal of unit length, in units of the states; positive is towards refusing."""
    harmfulness: Estimate
    """Along the harmfulness normal of unit length; positive is towards harmful."""
    rest: float
    """Length of the mean shift orthogonal to both normals."""
    total: float
    """Length of the mean shift; total^2 = (its length in the span of both normals)^2 + rest^2."""
    refusal_logit: Estimate
    """Mean change of f_r."""
    harmfulness_logit: Estimate
    """Mean change of f_h."""

    @property
    def share_explained(self) -> float:
        """Share of the squared length that lies in the span of both normals; 0 without a shift."""
        return 1 - (self.rest / self.total) ** 2 if self.total else 0.0


def shift_table(
    space: SafetySpace, states: SafetyStates, *, base: str = NO_PROMPT, seed: int = 0
) -> tuple[Shift, ...]:
    """Mean shift of harmful and harmless queries under every other system prompt.

    The two normals are not orthogonal in general: the components along them are projections, and do not add up.

    Args:
        base: condition that shifts are counted from.
        seed: seed of the bootstrap over queries.

    Raises:
        ValueError: states of another place than the plane's, or no states under `base`.
    """
    if states.place != space.place:
        raise ValueError(f"the plane was fitted at {space.place}, these states were read at {states.place}")
    normals = torch.stack([unit(space.refusal_normal), unit(space.harm_normal)])
    span, _ = torch.linalg.qr(normals.T)
    table = []
    for condition in states.conditions:
        if condition == base:
            continue
        for harmful in (True, False):
            before = states.of(base, harmful=harmful).double()
            after = states.of(condition, harmful=harmful).double()
            shifts = after - before
            mean = shifts.mean(0)
            along = [mean_with_interval(v.tolist(), seed=seed) for v in (shifts @ normals.T).T]
            logits = [
                mean_with_interval((f(after) - f(before)).tolist(), seed=seed)
                for f in (space.refusal, space.harmfulness)
            ]
            table.append(
                Shift(
                    condition=condition,
                    kind="harmful" if harmful else "harmless",
                    refusal=along[0],
                    harmfulness=along[1],
                    rest=(mean - span @ (span.T @ mean)).norm().item(),
                    total=mean.norm().item(),
                    refusal_logit=logits[0],
                    harmfulness_logit=logits[1],
                )
            )
    states.of(base, harmful=True)  # says so where nothing is compared
    return tuple(table)


class PlaneCosines(NamedTuple):
    """Cosines of the plane's normals with each other and with difference-in-means directions of the same place."""

    normals: float
    """Refusal normal with harmfulness normal."""
    refusal_with_refusal: float
    """Refusal normal with the refusal direction (`t_post_inst`)."""
    refusal_with_harmfulness: float
    """Refusal normal with the harmfulness direction (`t_inst`)."""
    harmfulness_with_refusal: float
    harmfulness_with_harmfulness: float


def plane_cosines(
    space: SafetySpace,
    *,
    refusal: Float[Tensor, " d_model"],
    harmfulness: Float[Tensor, " d_model"],
) -> PlaneCosines:
    """Compare the normals V w with directions in the same space, such as those of `find_directions`.

    Random directions have cosines of about 1 / sqrt(d_model).
    """
    ours = space.refusal_normal, space.harm_normal
    pairs = [
        (ours[0], ours[1]),
        *((own, other.double().cpu()) for own in ours for other in (refusal, harmfulness)),
    ]
    return PlaneCosines(*(cosine(a, b).item() for a, b in pairs))


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerPlane:
    """The plane at one layer."""

    layer: int
    space: SafetySpace
    cosines: PlaneCosines
    """With the directions that `find_directions` reads at this layer from the same queries without a system prompt."""
    shifts: tuple[Shift, ...]


def plane_by_layer(
    model: ChatModel,
    queries: Queries,
    prompts: Conditions,
    refusal: Float[Tensor, "condition query"],
    *,
    layers: Layers = None,
    site: Site = "resid_pre",
    ending: Ending = "as-is",
    n_components: int = 4,
    folds: int = 10,
    solver: Solver = "released",
    seed: int = 42,
) -> tuple[LayerPlane, ...]:
    """The plane at a site of every layer, its cosines with difference-in-means directions, and the shifts.

    Layers at which all states are equal, as the embeddings of the last template token are, are left out. Arguments and
    errors as `safety_representations_by_layer` and `anchor`; the conditions need one named `none`.
    """
    numbers = model.layer_list(layers)
    read = safety_representations_by_layer(model, queries, prompts, layers=numbers, site=site, ending=ending)
    tokens = tokenize(model.tokenizer, joined(query_sides(queries, ending)))
    at_inst = collect(model, tokens, sites=site, layers=numbers, positions="t_inst")[site][:, :, 0]
    planes = []
    for at, (layer, states) in enumerate(zip(numbers, read, strict=True)):
        if not varies(states):
            continue
        space = anchor(states, refusal, n_components=n_components, folds=folds, solver=solver, seed=seed)
        harmfulness = difference_in_means(at_inst[states.harmful, at], at_inst[~states.harmful, at])
        refused = difference_in_means(states.of(NO_PROMPT, harmful=True), states.of(NO_PROMPT, harmful=False))
        planes.append(
            LayerPlane(
                layer=layer,
                space=space,
                cosines=plane_cosines(space, refusal=refused, harmfulness=harmfulness),
                shifts=shift_table(space, states, seed=seed),
            )
        )
    return tuple(planes)
