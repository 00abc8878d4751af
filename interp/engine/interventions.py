"""Interventions on the residual stream: directional ablation and activation addition.

    ablation:  x <- x - (x . u) u      at resid_pre, attn_out and mlp_out of the layers, u of unit norm
    addition:  x <- x + c v            at resid_pre of one or more layers

One description, three ways to apply it: native hooks on the Hugging Face model (`apply`, the default), hook pairs for
`bridge.run_with_hooks` (`bridge_hooks`), and an edit of the weights in memory (`edited_weights`). What a way cannot
express it refuses. Each intervention says at which layers, at which prompt tokens (by role) and how far into
generation it acts; under a KV cache positions are counted from the start of the sequence, not of the chunk.

    with apply(model, [Ablate(direction)]):
        model.hf(**inputs)

Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4 and appendix on weight orthogonalization; decoding steps from
Zhao et al. 2025, arXiv:2507.11878 (their `max_decode_step_while_intervene` = 1 + `steps`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.directions import Direction, unit
from interp.engine.layouts import PassLayout
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers, written_layers
from interp.models.sites import Edit, Site, Sites, site_list
from interp.models.threads import in_this_thread
from interp.models.tokens import ChatTokens, Positions
from interp.storage.direction_files import DirectionInput, as_direction

Steps = Literal["prompt", "all"] | int | None
"""Generated tokens acted on: `prompt` (none), the first n, `all`; None is `all` if positions="all", else `prompt`."""
Where = Bool[Tensor, "row pos"] | bool


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
    def steps(self) -> Steps: ...
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
    steps: Steps
    """Generated tokens to act at."""
    sites: tuple[Site, ...]
    """Sites to act at; the default leaves no component anywhere in the stream."""
    normalised: bool
    """Whether the direction is known to have length 1; set by `to`, so that no pass takes a norm again."""

    def __init__(
        self,
        direction: DirectionInput,
        *,
        layers: Layers = None,
        positions: Positions = "all",
        steps: Steps = None,
        sites: Sites = ("resid_pre", "attn_out", "mlp_out"),
        normalised: bool = False,
    ) -> None:
        given = as_direction(direction)
        _fill(
            self,
            direction=given.vector if isinstance(given, Direction) else given,
            layers=written_layers(layers),
            positions=positions,
            steps=steps,
            sites=site_list(sites),
            normalised=normalised,
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
    steps: Steps
    """Generated tokens to act at."""
    sites: tuple[Site, ...]
    """Sites to act at."""

    def __init__(
        self,
        direction: DirectionInput,
        *,
        coefficient: float | int = 1.0,
        relative_norm: float | int | None = None,
        layers: Layers = None,
        positions: Positions = "all",
        steps: Steps = None,
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
            steps=steps,
            sites=site_list(own_site if sites is None else sites),  # pyright: ignore[reportArgumentType]
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


class Applied:
    """What is in force inside `apply`."""

    def __init__(self, interventions: Sequence[Intervention]) -> None:
        self.interventions = list(interventions)
        self.fired = [0] * len(self.interventions)
        """Times that each intervention saw a site, over all sites and passes."""
        self.tracks = any(i.positions != "all" or last_step(i) is not None for i in self.interventions)
        """Whether any intervention depends on where a token stands; passes then need a layout."""
        self._where: list[Where] | None = None

    @contextmanager
    def running(self, layout: PassLayout | None) -> Iterator[None]:
        """Passes inside the context hold what the layout says; None where nothing depends on it."""
        before = self._where
        self._where = (
            None if layout is None or not self.tracks else [reach(i, layout) for i in self.interventions]
        )
        try:
            yield
        finally:
            self._where = before

    def marks(self, tokens: ChatTokens) -> list[list[tuple[bool, ...]]] | None:
        """Of every token, which interventions limited to some positions act on it; None where none is limited."""
        limited = [i.positions for i in self.interventions if i.positions != "all"]
        if not limited:
            return None
        return [
            list(zip(*(tokens.mask(row, positions).tolist() for positions in limited), strict=True))
            for row in range(len(tokens))
        ]

    def shareable(self, tokens: ChatTokens) -> int:
        """Length of the common prefix over which every intervention does the same to every prompt."""
        shared = tokens.n_shared
        for intervention in self.interventions:
            if intervention.positions != "all":
                masks = [tokens.mask(row, intervention.positions)[:shared] for row in range(len(tokens))]
                while shared and any(not torch.equal(m[:shared], masks[0][:shared]) for m in masks):
                    shared -= 1
        return shared

    def act(self, number: int, resid: Tensor) -> Tensor | None:
        """The edited value, or None where the intervention does not reach."""
        self.fired[number] += 1
        intervention = self.interventions[number]
        if not self.tracks:
            return intervention(resid)
        if self._where is None:
            raise ValueError(
                f"positions={intervention.positions!r}, steps={intervention.steps!r} need to know the prompts: give "
                "`apply` tokens=, or say what a pass runs with `running(layout)` on what `apply` gives"
            )
        return acted(intervention, resid, self._where[number])


def reach(intervention: Intervention, layout: PassLayout) -> Where:
    """Where in a pass an intervention acts; True or False where everywhere or nowhere."""
    return layout.where(intervention.positions, last_step(intervention))


def acted(intervention: Intervention, resid: Tensor, where: Where) -> Tensor | None:
    """The value with the intervention applied where it acts; None where it acts nowhere."""
    if where is False:
        return None
    if where is not True and where.shape != resid.shape[:2]:
        raise ValueError(
            f"the layout describes a pass of {list(where.shape)} tokens, got {list(resid.shape[:2])}"
        )
    changed = intervention(resid)
    return changed if where is True else torch.where(where.to(resid.device)[..., None], changed, resid)


@contextmanager
def apply(
    model: ChatModel,
    interventions: Sequence[Intervention],
    *,
    tokens: ChatTokens | None = None,
    until: int | None = None,
) -> Iterator[Applied]:
    """Put interventions in force for every forward pass of `model.hf` inside the context, in the order given.

    They act in the thread that made the context and in no other.

    Hooks are removed when the context exits, also by an exception; the model's weights are not touched.

    Args:
        tokens: the left-padded prompts that will be run, where positions or steps are limited.
        until: passes end before this block, so that an intervention above it may never act; None is the model's end.

    Raises:
        ValueError: direction of the wrong width, layer out of range, positions limited but no prompts known, or an
            intervention whose sites never ran.
    """
    prepared: list[Intervention] = [prepare(model, i) for i in interventions]
    applied = Applied(prepared)
    edits: list[tuple[Site, int, Edit]] = [
        (site, layer, _edit(applied, number))
        for number, intervention in enumerate(prepared)
        for layer in layers_of(model, intervention)
        for site in intervention.sites
    ]
    with ExitStack() as stack:
        if tokens is not None and applied.tracks:
            stack.enter_context(_told_of_each_pass(model, applied, tokens))
        stack.enter_context(model.hooks(edits))
        yield applied
    end = model.n_layers if until is None else until
    for intervention, count in zip(prepared, applied.fired, strict=True):
        if count == 0 and any(layer < end for layer in layers_of(model, intervention)):
            raise ValueError(
                f"{type(intervention).__name__} never acted: no forward pass of {model.name} in this thread reached "
                "its sites"
            )


@contextmanager
def _told_of_each_pass(model: ChatModel, applied: Applied, tokens: ChatTokens) -> Iterator[None]:
    """Inside the context, the layout of each pass over these left-padded prompts follows from its cache and width."""
    running: list[Any] = []

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        chunk = ids if ids is not None else kwargs["inputs_embeds"]
        past = kwargs.get("past_key_values")
        first = 0 if past is None else past.get_seq_length()
        layout = PassLayout.left_padded(tokens, first=first, stop=first + chunk.shape[1])
        running.append(applied.running(layout))
        running[-1].__enter__()

    def end(*_: Any) -> None:
        if running:  # a pass that failed before it began has none
            running.pop().__exit__(None, None, None)

    handles = [
        model.decoder.register_forward_pre_hook(in_this_thread(begin, _nothing), with_kwargs=True),
        model.decoder.register_forward_hook(in_this_thread(end, _nothing), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nothing(*_: Any) -> None:
    return None


def bridge_hooks(
    model: ChatModel, interventions: Sequence[Intervention], *, tokens: ChatTokens | None = None
) -> list[tuple[str, Any]]:
    """(name, function) pairs for `model.bridge.run_with_hooks(ids, fwd_hooks=...)` on left-padded prompts.

    Raises:
        ValueError: positions are limited and no prompts are given, or a limit on generated tokens, which one forward
            pass of the bridge cannot tell from prompt tokens.
    """
    pairs = []
    for intervention in (prepare(model, i) for i in interventions):
        if intervention.positions != "all" and tokens is None:
            raise ValueError(f"positions={intervention.positions!r} need tokens= to become columns")
        if intervention.positions == "all" and last_step(intervention) is not None and tokens is None:
            raise ValueError("a limit on generated tokens cannot be told from prompt tokens in the bridge")

        def hook(value: Tensor, hook: Any, intervention: Intervention = intervention) -> Tensor:  # noqa: ARG001 (TransformerLens passes it by name)
            where: Where = True
            if tokens is not None:
                where = reach(intervention, PassLayout.left_padded(tokens, stop=value.shape[1]))
            changed = acted(intervention, value, where)
            return value if changed is None else changed

        pairs += [
            (model.site(site, layer), hook)
            for layer in layers_of(model, intervention)
            for site in intervention.sites
        ]
    return pairs


def _fill(intervention: "Ablate | Add", **values: Any) -> None:
    """Set the fields of a frozen intervention while it is made."""
    for name, value in values.items():
        object.__setattr__(intervention, name, value)


def _check(intervention: "Ablate | Add") -> None:
    vector, steps = intervention.direction, intervention.steps
    if not torch.isfinite(vector).all():
        raise ValueError("the direction holds NaN or infinite values")
    if isinstance(steps, int) and steps < 0:
        raise ValueError(f"steps must be 0 or more, 'prompt' or 'all', got {steps}")
    if isinstance(steps, str) and steps not in ("prompt", "all"):
        raise ValueError(f"steps must be 'prompt', 'all' or a number, got {steps!r}")


def prepare(model: ChatModel, intervention: Any) -> Any:
    """The intervention on the model's device and in its dtype.

    Raises:
        ValueError: a direction of another width than the model's.
    """
    if intervention.width != model.d_model:
        raise ValueError(
            f"direction has d_model {intervention.width}, but {model.name} has {model.d_model}: it was fitted on "
            "another model"
        )
    return intervention.to(model.device, model.dtype) if hasattr(intervention, "to") else intervention


def layers_of(model: ChatModel, intervention: Intervention) -> list[int]:
    """The layers that an intervention acts at, counted from 0.

    Raises:
        ValueError: a layer out of range, or one named twice.
    """
    layers = list(model.layer_list(intervention.layers))
    if len(set(layers)) < len(layers):
        raise ValueError(
            f"an intervention acts once at a layer; layers={list(intervention.layers or ())} repeats one"
        )
    return layers


def last_step(intervention: Intervention) -> int | None:
    """How many generated tokens are acted on; None is all."""
    if intervention.steps is None:
        return None if intervention.positions == "all" else 0
    if isinstance(intervention.steps, int):
        return intervention.steps
    return None if intervention.steps == "all" else 0


def _edit(applied: Applied, number: int) -> Any:
    return lambda resid: applied.act(number, resid)


def without_direction(
    x: Float[Tensor, "*rest d_model"], u: Float[Tensor, " d_model"]
) -> Float[Tensor, "*rest d_model"]:
    """x - (x . u) u for a unit direction u."""
    # One rank-one update: x is read and written once, which is most of what an ablation costs. It runs at every site
    # of every decoding step, where parsing einops' patterns would take as long as the arithmetic.
    flat = x.reshape(-1, x.shape[-1])
    return flat.addr(flat @ u, u, alpha=-1).view_as(x)
