"""Interventions on the residual stream: directional ablation and activation addition.

    ablation:  x <- x - (x . u) u      at resid_pre, attn_out and mlp_out of the layers, u of unit norm
    addition:  x <- x + c v            at resid_pre of one or more layers

One description, three ways to apply it: native hooks on the Hugging Face model (`apply`, the default), hook pairs for
`bridge.run_with_hooks` (`bridge_hooks`), and an edit of the weights in memory (`edited_weights`). What a way cannot
express it refuses. Each intervention says at which layers, at which prompt tokens (by role) and how far into
generation it acts; under a KV cache positions are counted from the start of the sequence, not of the chunk.

    with apply(model, [Ablate(direction=direction.vector)]):
        model.hf(**inputs)

Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4 and appendix on weight orthogonalization; decoding steps from
Zhao et al. 2025, arXiv:2507.11878 (their `max_decode_step_while_intervene` = 1 + `steps`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.directions import Direction, unit
from interp.models.chat_model import ChatModel, Edit, Site, in_this_thread
from interp.models.tokens import ChatTokens, Positions

Steps = Literal["prompt", "all"] | int | None
"""Generated tokens acted on: `prompt` (none), the first n, `all`; None is `all` if positions="all", else `prompt`."""


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Ablate:
    """Remove one direction from the residual stream: x <- x - (x . u) u with u = direction / |direction|.

    Source: Arditi et al. 2024, arXiv:2406.11717, "directional ablation": every layer, every token position. A zero
    direction changes nothing.
    """

    direction: Float[Tensor, " d_model"]
    """Any length; normalised here."""
    layers: Sequence[int] | None = None
    """Layers to act at; None is all."""
    positions: Positions = "all"
    """Prompt tokens to act at."""
    steps: Steps = None
    """Generated tokens to act at."""
    sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")
    """Sites to act at; the default leaves no component anywhere in the stream."""
    normalised: bool = False
    """Whether the direction is known to have length 1; set by `to`, so that no pass takes a norm again."""

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Add:
    """Add a vector to the residual stream: x <- x + coefficient * direction.

    Source: Arditi et al. 2024, arXiv:2406.11717, "activation addition": one layer, every token position, the
    difference in means at its natural length. `Add.along` takes layer and dose from a `Direction`.
    """

    direction: Float[Tensor, " d_model"]
    """Added as it is, times the coefficient."""
    layers: Sequence[int]
    """Layers at whose input it is added."""
    coefficient: float = 1.0
    """Multiplies the direction; its sign is the direction of the push."""
    positions: Positions = "all"
    """Prompt tokens to act at."""
    steps: Steps = None
    """Generated tokens to act at."""
    sites: tuple[Site, ...] = ("resid_pre",)
    """Sites to act at."""

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def along(
        cls,
        direction: Direction,
        *,
        coefficient: float = 1.0,
        dose: float | None = None,
        layers: Sequence[int] | None = None,
        positions: Positions = "all",
        steps: Steps = None,
    ) -> "Add":
        """Addition along a `Direction`, at its own layer unless told otherwise.

        Args:
            coefficient: in multiples of the direction's own length.
            dose: in multiples of the mean activation norm at the direction's place, instead of `coefficient`.

        Raises:
            ValueError: a dose for a direction that does not know its mean activation norm.
        """
        vector = direction.vector
        if dose is not None:
            if direction.mean_activation_norm is None:
                raise ValueError(
                    "a relative dose needs the direction's mean_activation_norm; give coefficient="
                )
            vector, coefficient = direction.unit * direction.mean_activation_norm, dose
        chosen = (direction.layer,) if layers is None else layers
        return cls(direction=vector, layers=chosen, coefficient=coefficient, positions=positions, steps=steps)

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
    """What is in force inside `apply`, and which token of which sequence each forward pass is at."""

    def __init__(self, interventions: Sequence[Intervention]) -> None:
        self.interventions = list(interventions)
        self.fired = [0] * len(self.interventions)
        """Times that each intervention saw a site, over all sites and passes."""
        self.stops_early = False
        """Set by a caller whose passes end before the last block: then an intervention above may never act."""
        self._masks: list[Tensor | None] = [None] * len(self.interventions)
        self._width: int | None = None
        self._packed = False
        self._past = 0
        self._length = 0

    @property
    def tracks(self) -> bool:
        """Whether any intervention depends on where a token stands."""
        return any(i.positions != "all" or last_step(i) is not None for i in self.interventions)

    def place(
        self,
        tokens: ChatTokens | None,
        *,
        shared: int = 0,
        nodes: tuple[Int[Tensor, " node"], Int[Tensor, " node"]] | None = None,
    ) -> None:
        """Say which prompts the next passes run, so that roles become columns.

        The first `shared` tokens of every prompt come first, unpadded; the rest is padded on the left to one width,
        or packed into nodes (`interp.engine.packing`). None forgets the prompts: then only interventions on all
        positions can act.

        Args:
            nodes: of packed prompts, a prompt that holds each node and its column there, behind the prefix.
        """
        self._packed = nodes is not None
        if tokens is None:
            self._width = None
            self._masks = [None] * len(self.interventions)
            return
        longest = max(len(ids) for ids in tokens.ids)
        self._width = longest
        for number, intervention in enumerate(self.interventions):
            if intervention.positions == "all":
                self._masks[number] = None
                continue
            mask = torch.zeros(len(tokens), longest, dtype=torch.bool)
            for row in range(len(tokens)):
                own = tokens.mask(row, intervention.positions)
                gap = longest - len(own) if nodes is None else 0
                mask[row, :shared] = own[:shared]
                mask[row, shared + gap : gap + len(own)] = own[shared:]
            self._masks[number] = mask if nodes is None else mask[:, shared:][nodes][None]

    def marks(self, tokens: ChatTokens) -> list[list[tuple[bool, ...]]] | None:
        """Of every token, which interventions limited to some positions act on it; None where none is limited."""
        limited = [i.positions for i in self.interventions if i.positions != "all"]
        if not limited:
            return None
        return [
            list(zip(*(tokens.mask(row, positions).tolist() for positions in limited), strict=True))
            for row in range(len(tokens))
        ]

    def place_prefix(self, tokens: ChatTokens, shared: int) -> None:
        """Say that the next pass runs the first `shared` tokens of these prompts, once for all."""
        self._packed = False
        self._width = max(len(ids) for ids in tokens.ids)
        self._masks = [
            None if i.positions == "all" else tokens.mask(0, i.positions)[None, :shared]
            for i in self.interventions
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

    def at(self, past: int, length: int) -> None:
        """Note the absolute positions of the pass that begins."""
        self._past, self._length = past, length

    def act(self, number: int, resid: Tensor) -> Tensor | None:
        """The edited value, or None where the intervention does not reach."""
        self.fired[number] += 1
        intervention = self.interventions[number]
        where = self._where(number) if self.tracks else True
        if where is False:
            return None
        edited = intervention(resid)
        return edited if where is True else torch.where(where.to(resid.device)[..., None], edited, resid)

    def _where(self, number: int) -> Bool[Tensor, "batch pos"] | bool:
        intervention, last = self.interventions[number], last_step(self.interventions[number])
        if self._width is None:
            raise ValueError(
                f"positions={intervention.positions!r}, steps={intervention.steps!r} need to know the prompts: call "
                "`place(tokens)` on what `apply` gives, or use `interp.engine.generation`"
            )
        if self._packed:  # nodes are prompt tokens
            inside = self._masks[number]
            return True if inside is None or inside.all() else inside if inside.any() else False
        past, stop = self._past, self._past + self._length
        if past >= self._width:  # generated tokens only
            return last is None or past - self._width < last
        mask = self._masks[number]
        inside = (
            torch.ones(1, min(stop, self._width) - past, dtype=torch.bool)
            if mask is None
            else mask[:, past:stop]
        )
        if stop > self._width:  # the prompt and generated tokens in one pass
            beyond = torch.arange(stop - self._width) < (stop if last is None else last)
            inside = torch.cat([inside, beyond.expand(len(inside), -1)], dim=1)
        if inside.all():
            return True
        return inside if inside.any() else False


@contextmanager
def apply(
    model: ChatModel, interventions: Sequence[Intervention], *, tokens: ChatTokens | None = None
) -> Iterator[Applied]:
    """Put interventions in force for every forward pass of `model.hf` inside the context, in the order given.

    They act in the thread that made the context and in no other.

    Hooks are removed when the context exits, also by an exception; the model's weights are not touched.

    Args:
        tokens: the left-padded prompts that will be run, where positions or steps are limited.

    Raises:
        ValueError: direction of the wrong width, layer out of range, positions limited but no prompts known, or an
            intervention whose sites never ran.
    """
    prepared: list[Intervention] = [prepare(model, i) for i in interventions]
    applied = Applied(prepared)
    if tokens is not None:
        applied.place(tokens)
    edits: list[tuple[Site, int, Edit]] = [
        (site, layer, _edit(applied, number))
        for number, intervention in enumerate(prepared)
        for layer in layers_of(model, intervention)
        for site in intervention.sites
    ]

    note = in_this_thread(partial(_note, applied), lambda *_: None)
    watch = model.decoder.register_forward_pre_hook(note, with_kwargs=True) if applied.tracks else None
    try:
        with model.hooks(edits):
            yield applied
    finally:
        if watch is not None:
            watch.remove()
    silent = [type(i).__name__ for i, count in zip(prepared, applied.fired, strict=True) if count == 0]
    if silent and not applied.stops_early:
        raise ValueError(
            f"{silent[0]} never acted: no forward pass of {model.name} in this thread reached its sites"
        )


def _note(applied: Applied, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a forward pass: where it begins."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    chunk = ids if ids is not None else kwargs["inputs_embeds"]
    past = kwargs.get("past_key_values")
    applied.at(0 if past is None else past.get_seq_length(), chunk.shape[1])


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
        applied = Applied([intervention])
        if tokens is not None:
            applied.place(tokens)

        def hook(value: Tensor, hook: Any, applied: Applied = applied) -> Tensor:  # noqa: ARG001 (TransformerLens passes it by name)
            applied.at(0, value.shape[1])
            edited = applied.act(0, value)
            return value if edited is None else edited

        pairs += [
            (model.site(site, layer), hook)
            for layer in layers_of(model, intervention)
            for site in intervention.sites
        ]
    return pairs


def _check(intervention: "Ablate | Add") -> None:
    vector, steps = intervention.direction, intervention.steps
    if vector.ndim != 1:
        raise ValueError(f"a direction has one axis, d_model; got shape {tuple(vector.shape)}")
    if not torch.isfinite(vector).all():
        raise ValueError("the direction holds NaN or infinite values")
    if isinstance(steps, int) and steps < 0:
        raise ValueError(f"steps must be 0 or more, 'prompt' or 'all', got {steps}")
    if isinstance(steps, str) and steps not in ("prompt", "all"):
        raise ValueError(f"steps must be 'prompt', 'all' or a number, got {steps!r}")


def prepare(model: ChatModel, intervention: Any) -> Any:
    if intervention.width != model.d_model:
        raise ValueError(
            f"direction has d_model {intervention.width}, but {model.name} has {model.d_model}: it was fitted on "
            "another model"
        )
    return intervention.to(model.device, model.dtype) if hasattr(intervention, "to") else intervention


def layers_of(model: ChatModel, intervention: Intervention) -> list[int]:
    if intervention.layers is None:
        return list(range(model.n_layers))
    return [model.layer(layer) for layer in intervention.layers]


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
    # One rank-one update: x is read and written once, which is most of what an ablation costs. It runs at every site
    # of every decoding step, where parsing einops' patterns would take as long as the arithmetic.
    flat = x.reshape(-1, x.shape[-1])
    return flat.addr(flat @ u, u, alpha=-1).view_as(x)
