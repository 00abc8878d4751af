"""Interventions on the residual stream: directional ablation and activation addition.

    ablation:  x <- x - (x . u) u      at resid_pre, attn_out and mlp_out of the layers, u of unit norm
    addition:  x <- x + c v            at resid_pre of one or more layers

One description, three ways to apply it: native hooks on the Hugging Face model (`applying.apply`, the default), hook
pairs for `bridge.run_with_hooks` (`applying.bridge_hooks`), and an edit of the weights in memory
(`weight_edits.edited_weights`). What a way cannot express it refuses. Each intervention says at which layers, at which
prompt tokens (by role) and how far into generation it acts.

    with apply(model, [Ablate(direction), Add(other, coefficient=2)]):
        model.hf(**inputs)

Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4 and appendix on weight orthogonalization; decoding steps from
Zhao et al. 2025, arXiv:2507.11878 (their `max_decode_step_while_intervene` = 1 + `new_tokens`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.directions import Direction, check_vector, unit
from interp.models.layers import Layers, written_layers
from interp.models.scalars import finite_number, whole_number
from interp.models.sites import Site, Sites, site_list
from interp.models.tokens import Positions
from interp.storage.direction_files import DirectionInput, as_direction

NewTokens = Literal["none", "all"] | SupportsIndex | None
"""Generated tokens acted on: `none`, the first n, `all`; None is `all` if positions="all", else `none`."""


@runtime_checkable
class Intervention(Protocol):
    """What `apply` needs: where, and what is done there."""

    @property
    def layers(self) -> Sequence[int] | None: ...
    @property
    def sites(self) -> tuple[Site, ...]: ...
    @property
    def positions(self) -> Positions: ...
    @property
    def new_tokens(self) -> NewTokens: ...
    @property
    def width(self) -> int: ...
    def __call__(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]: ...


@dataclass(frozen=True, eq=False, init=False)
class Ablate:
    """Remove one direction from the residual stream: x <- x - (x . u) u with u = direction / |direction|.

    Source: Arditi et al. 2024, arXiv:2406.11717, "directional ablation": every layer, every token position. A zero
    direction changes nothing.

        Ablate(direction)                          # a Direction, a tensor, a numpy vector, a list or a direction file
        Ablate(direction, layers=range(10, 20))
    """

    direction: Float[Tensor, " d_model"]
    """Any length; normalised where it acts."""
    layers: tuple[int, ...] | None
    """Layers to act at; None is all."""
    positions: Positions
    """Prompt tokens to act at."""
    new_tokens: NewTokens
    """Generated tokens to act at."""
    sites: tuple[Site, ...]
    """Sites to act at; the default leaves no component anywhere in the stream."""
    normalised: bool
    """Whether the direction is known to have length 1; set by `to`, so that no pass takes a norm again."""
    prompt_frame: tuple[str, str] | None = field(default=None, init=False, repr=False)
    """Text around the instructions that the direction was read on; None where it is unknown."""

    def __init__(
        self,
        direction: DirectionInput,
        *,
        layers: Layers = None,
        positions: Positions = "all",
        new_tokens: NewTokens = None,
        sites: Sites = ("resid_pre", "attn_out", "mlp_out"),
        normalised: bool = False,
    ) -> None:
        given = as_direction(direction)
        _fill(
            self,
            direction=given.vector if isinstance(given, Direction) else given,
            layers=written_layers(layers),
            positions=positions,
            new_tokens=new_tokens,
            sites=site_list(sites),
            normalised=normalised,
            prompt_frame=_frame(given),
        )
        _check(self)

    @property
    def width(self) -> int:
        """d_model."""
        return self.direction.numel()

    def to(self, device: torch.device, dtype: torch.dtype) -> "Ablate":
        """The same ablation with its unit direction held in this device and dtype."""
        return replace(self, direction=unit(self.direction).to(device, dtype), normalised=True)

    def __call__(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        u = self.direction if self.normalised else unit(self.direction)
        return without_direction(resid, u.to(resid))


@dataclass(frozen=True, eq=False, init=False)
class Add:
    """Add a vector to the residual stream: x <- x + coefficient * direction.

    Source: Arditi et al. 2024, arXiv:2406.11717, "activation addition": one layer, every token position, the
    difference in means at its natural length.

        Add(direction, coefficient=2)               # a Direction or direction file: at its own layer
        Add(direction, relative_norm=0.5)
        Add(vector, layers=12)                      # bare numbers do not know their layer
    """

    direction: Float[Tensor, " d_model"]
    """Added as it is, times the coefficient."""
    layers: tuple[int, ...]
    """Layers at which it is added."""
    coefficient: float | int
    """Multiplies the direction; its sign is the direction of the push."""
    positions: Positions
    """Prompt tokens to act at."""
    new_tokens: NewTokens
    """Generated tokens to act at."""
    sites: tuple[Site, ...]
    """Sites to act at."""
    prompt_frame: tuple[str, str] | None = field(default=None, init=False, repr=False)
    """Text around the instructions that the direction was read on; None where it is unknown."""

    def __init__(
        self,
        direction: DirectionInput,
        *,
        coefficient: float | int = 1.0,
        relative_norm: float | int | None = None,
        layers: Layers = None,
        positions: Positions = "all",
        new_tokens: NewTokens = None,
        sites: Sites | None = None,
    ) -> None:
        """An addition at the direction's own layer and site unless told otherwise.

        Args:
            coefficient: in multiples of the direction's own norm.
            relative_norm: in multiples of the mean activation norm at the direction's place, instead of `coefficient`.
            layers: None is the direction's own.
            sites: None is the direction's own, `resid_pre` for bare numbers.

        Raises:
            ValueError: bare numbers without layers, or a relative norm for a direction that does not know its mean
                activation norm.
        """
        given = as_direction(direction)
        known = given if isinstance(given, Direction) else None
        vector = given.vector if isinstance(given, Direction) else given
        if relative_norm is not None:
            if known is None or known.mean_activation_norm is None:
                raise ValueError(
                    "relative_norm needs a direction with its mean_activation_norm; give coefficient= instead"
                )
            if coefficient != 1.0:
                raise ValueError("give coefficient or relative_norm, not both")
            vector, coefficient = known.unit * known.mean_activation_norm, relative_norm
        if layers is None and known is None:
            raise ValueError("an addition of bare numbers needs layers=, as they do not know theirs")
        own_layer, own_site = (known.layer, known.site) if known is not None else (None, "resid_pre")
        _fill(
            self,
            direction=vector,
            layers=written_layers(own_layer if layers is None else layers),
            coefficient=coefficient,
            positions=positions,
            new_tokens=new_tokens,
            sites=site_list(own_site if sites is None else sites),  # pyright: ignore[reportArgumentType]
            prompt_frame=_frame(given),
        )
        _check(self)

    @property
    def width(self) -> int:
        """d_model."""
        return self.direction.numel()

    def to(self, device: torch.device, dtype: torch.dtype) -> "Add":
        """The same addition with its step held in this device and dtype."""
        return replace(self, direction=(self.coefficient * self.direction).to(device, dtype), coefficient=1.0)

    def __call__(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self.coefficient == 1.0:
            return resid + self.direction.to(resid)
        return resid + (self.coefficient * self.direction).to(resid)


def _frame(given: Any) -> tuple[str, str] | None:
    frame = given.provenance.get("prompt_frame") if isinstance(given, Direction) else None
    return None if frame is None else (str(frame[0]), str(frame[1]))


def _fill(intervention: "Ablate | Add", **values: Any) -> None:
    """Set the fields of a frozen intervention while it is made."""
    for name, value in values.items():
        object.__setattr__(intervention, name, value)


def _check(intervention: "Ablate | Add") -> None:
    vector, new_tokens, positions = intervention.direction, intervention.new_tokens, intervention.positions
    check_vector(vector)
    if not isinstance(positions, (str, int)) and not (isinstance(positions, Sequence) and positions):
        raise ValueError(
            f"positions must be a role, a region or a list of at least one, such as t_inst or all; got {positions!r}"
        )
    if not torch.isfinite(vector).all():
        raise ValueError("the direction holds NaN or infinite values")
    coefficient = finite_number(getattr(intervention, "coefficient", 1.0), "coefficient (or relative_norm)")
    if isinstance(intervention, Add) and not (vector.float() * coefficient).square().sum().isfinite():
        raise ValueError(
            f"the addition overflows (coefficient {coefficient:g}, largest entry {float(vector.abs().max()):g}): norms "
            "are sums of squares in float32; take a smaller coefficient"
        )
    if isinstance(new_tokens, str) and new_tokens not in ("none", "all"):
        raise ValueError(f"new_tokens must be 'none', 'all' or a number, got {new_tokens!r}")
    if new_tokens is not None and not isinstance(new_tokens, str):
        # Anything but an int of Python would be read as `none` where it acts.
        count = whole_number(new_tokens, "new_tokens", at_least=0)
        object.__setattr__(intervention, "new_tokens", count)


def intervention_list(given: Any) -> list[Intervention]:
    """Interventions as users give them: several, one by itself, or None for none.

    Raises:
        ValueError: something else, such as a direction, which does not say what is done with it.
    """
    if given is None:
        return []
    if isinstance(given, Intervention):
        return [given]
    several: list[Any] = (
        list(given) if isinstance(given, Iterable) and not isinstance(given, (str, Tensor)) else [given]
    )
    for one in several:
        if not isinstance(one, Intervention):
            raise ValueError(
                f"an intervention is Ablate(direction) or Add(direction), got {type(one).__name__}; say what is done "
                "with it"
            )
    return several


def new_token_limit(intervention: Intervention) -> int | None:
    """How many generated tokens are acted on; None is all."""
    count = intervention.new_tokens
    if count is None:
        return None if intervention.positions == "all" else 0
    if isinstance(count, str):
        return None if count == "all" else 0
    return whole_number(count, "new_tokens")


def without_direction(
    x: Float[Tensor, "*rest d_model"], u: Float[Tensor, " d_model"]
) -> Float[Tensor, "*rest d_model"]:
    """x - (x . u) u for a unit direction u."""
    # One rank-one update: x is read and written once, which is most of what an ablation costs. It runs at every site
    # of every decoding step, where parsing einops' patterns would take as long as the arithmetic.
    flat = x.reshape(-1, x.shape[-1])
    return flat.addr(flat @ u, u, alpha=-1).view_as(x)
