"""Directions from activations: difference in means, PCA, a linear probe; cosine and projection.

A direction is a vector in the residual stream with its place: site, layer and token position. It points from the
negative to the positive class (harmful minus harmless, refused minus complied), and keeps its length: for a difference
in means that is the natural step for activation addition. A direction that separates two sets is not evidence that
the model uses it; that takes an intervention and a random direction of the same norm as control.

    direction = difference_in_means(harmful, harmless)       # [..., d_model] from [prompt, ..., d_model]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from interp.display.cards import Card, Shown

_LARGEST = 1.7e308
"""Largest factor, near that of a float; also false for NaN and for whole numbers beyond it."""
_ROUNDING = 1e-6
"""Norm of a difference in means, relative to the mean norm, that is rounding and not a direction."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Direction(Shown):
    """One direction in the residual stream, with the site, layer and position it was read at and its provenance."""

    vector: Float[Tensor, " d_model"]
    """The unnormalised direction, in units of the activations."""
    layer: int
    """Layer it was read at, counted from 0."""
    position: str
    """Role of the token it was read at, e.g. `t_inst`."""
    site: str = "resid_pre"
    """Site it was read at."""
    sign: str = "harmful - harmless"
    """The two classes, positive minus negative."""
    kind: str = "difference_in_means"
    """Name of the estimator."""
    mean_activation_norm: float | None = None
    """Mean norm of the activations at that site, layer and position: the unit of `relative_norm`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, prompt sets, seed and library versions."""

    def __post_init__(self) -> None:
        check_vector(self.vector)
        if not torch.isfinite(self.vector).all():
            raise ValueError(f"direction at layer {self.layer}, {self.position} holds NaN or infinite values")
        if self.mean_activation_norm is not None and not 0 <= self.mean_activation_norm < math.inf:
            raise ValueError(
                f"mean_activation_norm must be 0 or more and finite, got {self.mean_activation_norm}"
            )
        if not isinstance(self.layer, Integral) or isinstance(self.layer, bool):
            raise ValueError(f"layer must be a whole number, got {self.layer!r}")
        if self.layer < 0:
            raise ValueError(f"layer must be 0 or more, got {self.layer}; resolve negative layers first")

    @property
    def norm(self) -> float:
        """Norm of the vector."""
        return self.vector.norm().item()

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The direction at length 1; a zero direction stays zero (Arditi et al. 2024 divide by norm + 1e-8)."""
        return unit(self.vector)

    def __neg__(self) -> "Direction":
        return replace(self, vector=-self.vector, sign=f"-({self.sign})")

    def __mul__(self, factor: float | int) -> "Direction":
        """The direction scaled; a negative factor turns it round."""
        is_number = isinstance(factor, Real) and not isinstance(factor, bool)
        if not is_number or not -_LARGEST <= factor <= _LARGEST:
            raise ValueError(f"a direction is multiplied by a finite number, got {factor!r:.60}")
        sign = self.sign if factor >= 0 else f"-({self.sign})"
        return replace(self, vector=self.vector * float(factor), sign=sign)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | int) -> "Direction":
        if divisor == 0:
            raise ValueError("a direction cannot be divided by 0")
        return self * (1 / divisor)

    def __add__(self, other: "Direction") -> "Direction":
        """The sum of two directions of one place.

        Raises:
            ValueError: another site, layer, position or width.
        """
        if not isinstance(other, Direction):
            return NotImplemented
        ours, theirs = ((d.site, d.layer, d.position, d.vector.numel()) for d in (self, other))
        if ours != theirs:
            raise ValueError(
                f"directions of one place can be added; got {ours} and {theirs} (site, layer, position, d_model): add "
                "their vectors instead"
            )
        return replace(
            self,
            vector=self.vector + other.vector.to(self.vector),
            sign=f"({self.sign}) + ({other.sign})",
            kind=self.kind if self.kind == other.kind else "combination",
            provenance={**self.provenance, "sum_of": [dict(self.provenance), dict(other.provenance)]},
        )

    def __sub__(self, other: "Direction") -> "Direction":
        return self + -other if isinstance(other, Direction) else NotImplemented

    def save(self, path: str | Path) -> Path:
        """Write the direction to a `.safetensors` file, atomically; `interp.read_direction` reads it."""
        import interp  # files are a room further on

        return interp.write_direction(path, self)

    def __repr__(self) -> str:
        return (
            f"Direction({self.sign}, {self.kind} at {self.site} of layer {self.layer}, {self.position}; "
            f"norm {self.norm:.3g}, d_model {self.vector.numel()})"
        )

    def _card(self) -> Card:
        norm = self.mean_activation_norm
        facts = {
            "positive side": self.sign,
            "read at": f"{self.site} of layer {self.layer}, token {self.position}",
            "made by": self.kind.replace("_", " "),
            "norm": f"{self.norm:.3g}"
            + (f" ({self.norm / norm:.2f} of the mean activation there)" if norm else ""),
            "d_model": self.vector.numel(),
            "model": self.provenance.get("model"),
            "prompts": self.provenance.get("prompts", {}).get("name"),
        }
        return Card(title="Direction", facts={name: value for name, value in facts.items() if value})

    def check_width(self, d_model: int, model: str) -> None:
        """Raise a ValueError unless the direction fits a model of this width."""
        if self.vector.numel() != d_model:
            raise ValueError(
                f"direction has d_model {self.vector.numel()}, but {model} has {d_model}: it was fitted on another"
                " model" + (f" ({made})" if (made := self.provenance.get("model")) else "")
            )


Vectors = Tensor | np.ndarray | Direction | Sequence[Any]
"""Vectors along their last axis, as a tensor, a NumPy array, nested lists, or one `Direction`."""


def difference_in_means(
    positive: Float[Tensor, "positive *rest d_model"] | np.ndarray | Sequence[Any],
    negative: Float[Tensor, "negative *rest d_model"] | np.ndarray | Sequence[Any],
) -> Float[Tensor, "*rest d_model"]:
    """Mean of the positive activations minus mean of the negative ones, accumulated in float64.

    Source: Arditi et al. 2024, arXiv:2406.11717, section 2.3.

    Raises:
        ValueError: no activations on one side, or sides of other shapes.
    """
    positive, negative = _vectors(positive), _vectors(negative)
    _two_sets(positive, negative)
    if positive.shape[1:] != negative.shape[1:]:
        raise ValueError(
            "both sides need activations of one shape, got "
            f"{tuple(positive.shape)} and {tuple(negative.shape)}; the first axis is prompts"
        )
    return (positive.double().mean(0) - negative.double().mean(0)).to(torch.float32)


def check_vector(vector: Tensor) -> None:
    """Raise a ValueError unless this is a tensor of floats along one axis, d_model."""
    if not isinstance(vector, Tensor):
        raise ValueError(
            f"a direction's vector is a tensor, got {type(vector).__name__}; use torch.as_tensor"
        )
    if vector.ndim != 1 or not vector.is_floating_point():
        raise ValueError(
            f"a direction has one axis of floats, d_model; got shape {tuple(vector.shape)}, {vector.dtype}"
        )
    if vector.layout != torch.strided or vector.is_meta:
        raise ValueError(
            f"a direction holds plain numbers; got a tensor of {vector.layout} on {vector.device}"
        )


def check_difference(difference: Tensor, mean_norm: float, place: str) -> None:
    """Raise a ValueError where a difference in means is rounding, because both sides have the same mean.

    Args:
        mean_norm: mean norm of the activations there.
        place: layer and token, in words.
    """
    if float(difference.norm()) <= _ROUNDING * mean_norm:
        raise ValueError(
            f"both sides have the same mean activation at {place}, so there is no direction between them; give prompts "
            "that differ, or a later layer (the template's tokens are equal at layer 0)"
        )


def pca_direction(
    positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"]
) -> Float[Tensor, " d_model"]:
    """First principal component of all activations, centred, pointing to the positive set; unit norm.

    Source: Zou et al. 2023, arXiv:2310.01405, "reading vectors" (there on paired differences; here on the pooled,
    centred activations, as the sets need not be paired).
    """
    from sklearn.decomposition import PCA

    _two_sets(positive, negative)
    pooled = torch.cat([positive, negative]).double().cpu().numpy()
    component = torch.from_numpy(PCA(n_components=1, random_state=0).fit(pooled).components_[0])  # pyright: ignore[reportOptionalSubscript]
    toward = positive.double().mean(0).cpu() - negative.double().mean(0).cpu()
    return (component * torch.sign(component @ toward)).to(positive.device, torch.float32)


def probe_direction(
    positive: Float[Tensor, "positive d_model"],
    negative: Float[Tensor, "negative d_model"],
    *,
    l2: float = 1.0,
) -> Float[Tensor, " d_model"]:
    """Weights of a logistic-regression probe, expressed on the raw activations; unit norm.

    Activations are standardised per coordinate before the fit, so that one penalty suits every layer.

    Args:
        l2: strength of the penalty (inverse of scikit-learn's C).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _two_sets(positive, negative)
    pooled = torch.cat([positive, negative]).double().cpu().numpy()
    labels = [1] * len(positive) + [0] * len(negative)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / l2, max_iter=2000)).fit(pooled, labels)
    weights = probe[-1].coef_[0] / probe[0].scale_  # pyright: ignore[reportAttributeAccessIssue]
    return unit(torch.from_numpy(weights)).to(positive.device, torch.float32)


def orthogonalised(
    direction: Float[Tensor, "*rest d_model"], to: Float[Tensor, "*rest d_model"]
) -> Float[Tensor, "*rest d_model"]:
    """The direction without its component along `to`, such as the harmless mean.

    With the harmless mean projected out, ablating the direction leaves the average harmless activation as it is.
    """
    along = unit(to)
    return direction - project(direction, along)[..., None] * along


def random_direction(like: Float[Tensor, " d_model"], *, seed: int) -> Float[Tensor, " d_model"]:
    """An isotropic random direction of the same norm: the control for every intervention."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(like.numel(), generator=generator, dtype=torch.float64)
    return (unit(draw) * like.double().norm().cpu()).to(like)


def unit(vector: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
    """Vectors divided by their norm; zero vectors stay zero."""
    norm = torch.linalg.vector_norm(vector.double(), dim=-1, keepdim=True)
    return torch.where(norm > 0, vector.double() / norm.clamp(min=1e-300), 0.0).to(vector.dtype)


def cosine(a: Vectors, b: Vectors) -> Float[Tensor, "*rest"]:
    """Cosine along the last axis, computed in float64; 0 where either vector is zero.

    Raises:
        ValueError: last axes of different lengths, or something else than numbers.
    """
    a, b = _vectors(a), _vectors(b)
    _one_width(a, b)
    return einsum(unit(a.double()), unit(b.double()), "... d_model, ... d_model -> ...").to(torch.float32)


def cosine_matrix(
    directions: Float[Tensor, "direction layer d_model"],
) -> Float[Tensor, "layer direction direction"]:
    """Cosine of every pair of directions in each layer, float64; 0 where either vector is zero."""
    u = unit(directions.double())
    return einsum(u, u, "a layer d_model, b layer d_model -> layer a b")


def project(activations: Vectors, direction: Vectors) -> Float[Tensor, "*rest"]:
    """Projection of the activations on the normalised direction, in units of the activations.

    Raises:
        ValueError: last axes of different lengths, or something else than numbers.
    """
    activations, direction = _vectors(activations), _vectors(direction)
    _one_width(activations, direction)
    return einsum(activations, unit(direction).to(activations), "... d_model, ... d_model -> ...")


def mean_norm(activations: Float[Tensor, "prompt *rest d_model"]) -> Float[Tensor, "*rest"]:
    """Mean over prompts of the norm of the activations."""
    norms = torch.linalg.vector_norm(activations.double(), dim=-1)
    return reduce(norms, "prompt ... -> ...", "mean").to(torch.float32)


def _vectors(given: Vectors) -> Tensor:
    """What is given as a tensor of at least one axis."""
    if isinstance(given, Direction):
        return given.vector
    if isinstance(given, Tensor):
        found = given
    else:
        try:
            found = torch.from_numpy(np.array(given, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "vectors are a tensor, a NumPy array, lists of numbers or a Direction; got "
                f"{type(given).__name__}"
            ) from error
    if found.ndim == 0 or found.is_complex():
        raise ValueError(
            f"vectors have an axis d_model of real numbers, got {found.dtype}, shape {tuple(found.shape)}"
        )
    return found if found.is_floating_point() else found.float()


def _one_width(a: Tensor, b: Tensor) -> None:
    if a.shape[-1:] != b.shape[-1:]:
        raise ValueError(
            f"both need the same d_model as their last axis, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )


def _two_sets(positive: Tensor, negative: Tensor) -> None:
    if len(positive) == 0 or len(negative) == 0:
        raise ValueError(
            f"a direction needs prompts on both sides, got {len(positive)} positive and {len(negative)} negative"
        )
