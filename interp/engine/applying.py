"""Interventions in force: which of a pass's tokens each one reaches, and the hooks that let it act there.

`apply` puts them on the Hugging Face model with native hooks, for every pass of `model.hf` inside a context;
`bridge_hooks` hands out the same as pairs for `bridge.run_with_hooks`. Under a KV cache positions are counted from the
start of the sequence, not of the chunk.

    with apply(model, [Ablate(direction)]):
        model.hf(**inputs)
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interp.engine.interventions import Intervention, intervention_list, new_token_limit
from interp.engine.layouts import PassLayout
from interp.models.chat_model import ChatModel
from interp.models.prompt_frames import warn_of_frame
from interp.models.sites import Edit, Site
from interp.models.threads import in_this_thread
from interp.models.tokens import ChatTokens

Where = Bool[Tensor, "row pos"] | bool


class Applied:
    """What is in force inside `apply`."""

    def __init__(self, interventions: Sequence[Intervention]) -> None:
        self.interventions = list(interventions)
        self.fired = [0] * len(self.interventions)
        """Times that each intervention saw a site, over all sites and passes."""
        self.tracks = any(i.positions != "all" or new_token_limit(i) is not None for i in self.interventions)
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
                f"positions={intervention.positions!r}, new_tokens={intervention.new_tokens!r} need to know the "
                "prompts: give `apply` tokens=, or say what a pass runs with `running(layout)` on what `apply` gives"
            )
        return acted(intervention, resid, self._where[number])


def reach(intervention: Intervention, layout: PassLayout) -> Where:
    """Where in a pass an intervention acts; True or False where everywhere or nowhere."""
    return layout.where(intervention.positions, new_token_limit(intervention))


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
        tokens: the left-padded prompts that will be run, where positions or generated tokens are limited.
        until: passes end before this block, so that an intervention above it may never act; None is the model's end.

    Raises:
        ValueError: direction of the wrong width, layer out of range, positions limited but no prompts known, or an
            intervention whose sites never ran.
    """
    prepared: list[Intervention] = [prepare(model, i) for i in intervention_list(interventions)]
    applied = Applied(prepared)
    with ExitStack() as stack:
        if tokens is not None and applied.tracks:
            stack.enter_context(_told_of_each_pass(model, applied, tokens))
        layers = [layers_of(model, intervention) for intervention in prepared]
        edits: list[tuple[Site, int, Edit]] = [
            (site, layer, _edit(applied, number))
            for number, intervention in enumerate(prepared)
            for layer in layers[number]
            for site in intervention.sites
        ]
        stack.enter_context(model.hooks(edits))
        yield applied
    end = model.n_layers if until is None else until
    for intervention, at, count in zip(prepared, layers, applied.fired, strict=True):
        if count == 0 and any(layer < end for layer in at):
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
        if intervention.positions == "all" and new_token_limit(intervention) is not None and tokens is None:
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
    frame = getattr(intervention, "prompt_frame", None)
    warn_of_frame(frame, model.prompt_frame, model=model.name, warned=model.strange_frames)
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


def _edit(applied: Applied, number: int) -> Any:
    return lambda resid: applied.act(number, resid)
