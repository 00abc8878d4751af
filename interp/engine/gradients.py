"""Activations and log-probabilities with gradients, through a model that is frozen but for the parameters named.

Trainable inputs are embeddings in place of a prompt's own, a soft prefix (free embeddings before or inside the rendered
prompt), the direction of an intervention, or parameters of the model. Outputs are those of `collect` (sites at token
roles) and of `next_token_log_probs` (the first completion token), with their autograd graph.

    with differentiable(model, checkpointing=True) as through:
        soft = SoftPrefix(embeddings=through.embed(prompts)[0][:8].clone().requires_grad_())
        readings = through.run(prompts, soft_prefix=soft, sites=["resid_pre"], positions="t_post_inst")
        loss = -(readings["resid_pre"][:, 12, 0] @ direction).mean()
        loss.backward()                     # inside the context where blocks are checkpointed
    soft.embeddings.grad.shape              # [8, d_model]

No parameter requires a gradient inside the context but those given as `trainable`. One call of `run` is one padded
pass; the caller chooses how many prompts fit. `states` reads one layer, runs no block above it, and packs the prompts
where it can, so that their shared tokens run once and nothing is padded:

    with differentiable(model, trainable=weights) as through:
        states = through.states(prompts, layer=19)           # [prompt, role, d_model], after block 19
        torch.autograd.grad(loss(states), weights)

Soft prefixes: Lester et al. 2021, arXiv:2104.08691.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interp.engine.activations import fast_path_agrees
from interp.engine.applying import Applied, apply
from interp.engine.batching import pad_id, stopping_before
from interp.engine.interventions import Intervention
from interp.engine.layouts import PassLayout
from interp.engine.packing import packed_passes
from interp.models.chat_model import ChatModel, Edit, Site
from interp.models.contexts import check_context
from interp.models.layers import Layers, layer_list
from interp.models.threads import on_behalf_of, swapped_forwards, this_thread
from interp.models.tokens import ChatTokens, Positions, PromptInput, as_tokens


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftPrefix:
    """Embeddings that are inserted into every prompt as if they were tokens."""

    embeddings: Float[Tensor, "soft d_model"]
    """The inserted embeddings, on the scale of the model's input embedding."""
    before: str | int | None = None
    """Token that they are inserted before: a role, the first token of a region, or an index from the prompt's end; None
    is the first token of the prompt."""

    def start(self, tokens: ChatTokens, row: int) -> int:
        """Index of the prompt token that they are inserted before.

        Raises:
            ValueError: unknown role or region, or one without a token in this prompt.
        """
        if self.before is None:
            return 0
        where = tokens.mask(row, self.before).nonzero()  # pyright: ignore[reportArgumentType]
        if not len(where):
            raise ValueError(
                f"prompt {row} has no token of {self.before!r} for the soft prefix to stand before"
            )
        return int(where[0])


@dataclass(frozen=True, eq=False, kw_only=True)
class Readings:
    """Activations and log-probabilities of one pass, with their autograd graph, on the model's device."""

    values: dict[Site, Float[Tensor, "prompt layer role d_model"]]
    """Activations by site, in the model's dtype."""
    log_probs: Float[Tensor, "prompt d_vocab"]
    """Log-probabilities of the first completion token, in nats, in float32 or wider."""
    layers: tuple[int, ...]
    """Layer of each entry of the layer axis."""
    roles: tuple[str, ...]
    """Token role of each entry of the role axis."""

    def __getitem__(self, site: Site) -> Float[Tensor, "prompt layer role d_model"]:
        return self.values[site]


class Differentiable:
    """Passes with gradients; made by `differentiable`."""

    def __init__(self, model: ChatModel, applied: Applied, *, packs: bool) -> None:
        self._model, self._applied, self._packs = model, applied, packs
        self._layout: PassLayout | None = None
        self._open = True

    def embed(self, prompts: PromptInput) -> list[Float[Tensor, "_ d_model"]]:
        """The model's own embedding of every token of every prompt, detached from any graph."""
        tokens = as_tokens(self._model.tokenizer, prompts)
        with torch.no_grad():
            return [self._model.embedding(torch.tensor(ids, device=self._model.device)) for ids in tokens.ids]

    def run(
        self,
        prompts: PromptInput,
        *,
        inputs_embeds: Sequence[Float[Tensor, "_ d_model"]] | None = None,
        soft_prefix: SoftPrefix | None = None,
        sites: Sequence[Site] = (),
        layers: Layers = None,
        positions: Positions = ("t_inst", "t_post_inst"),
    ) -> Readings:
        """Run the prompts in one left-padded pass.

        Interventions on all positions also act on the soft prefix, which has no token role.

        Args:
            inputs_embeds: for each prompt, embeddings that replace those of its tokens and keep their roles.
            soft_prefix: embeddings to insert into every prompt.
            sites: activations to read; none by default.
            layers: layers to read; None is all.
            positions: token roles to read.

        Raises:
            ValueError: unknown site or role, layer or position out of range, or embeddings that do not fit the prompts.
        """
        model, tokens = self._model, as_tokens(self._model.tokenizer, prompts)
        count = 0 if soft_prefix is None else len(soft_prefix.embeddings)
        check_context(model, tokens, new_tokens=count)
        selected = layer_list(layers, n_layers=model.n_layers, of=model.name)
        roles, where = tokens.resolve(positions)
        embeds = self._checked(tokens, inputs_embeds) if inputs_embeds is not None else self.embed(tokens)
        inputs, slots = _padded(model, tokens, embeds, soft_prefix)
        values: dict[tuple[Site, int], Tensor] = {}
        reads: list[tuple[Site, int, Edit]] = [
            (site, layer, partial(values.__setitem__, (site, layer))) for site in sites for layer in selected
        ]
        layout = _layout(tokens, slots)
        self._layout = layout
        with (
            self._applied.running(layout),
            model.rotary.at([len(ids) + count for ids in tokens.ids]),
            model.hooks(reads),
        ):
            logits = model.hf(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        rows = torch.arange(len(tokens))[:, None]
        places = rows.to(model.device), slots[rows, where].to(model.device)
        return Readings(
            values={
                site: torch.stack([values[site, layer][places] for layer in selected], dim=1)
                for site in sites
            },
            log_probs=logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1),
            layers=selected,
            roles=tuple(roles),
        )

    def states(
        self,
        prompts: PromptInput,
        *,
        layer: int,
        site: Site = "resid_post",
        positions: Positions = "t_post_inst",
        fast: bool = True,
    ) -> Float[Tensor, "prompt role d_model"]:
        """Activations of one layer, in one pass that stops there.

        Args:
            layer: the layer to read; blocks above it do not run.
            positions: token roles to read.
            fast: stop after the layer, and pack the prompts, each distinct prefix once, where there are neither
                interventions nor checkpointed blocks; False runs whole padded prompts through every block.

        Raises:
            ValueError: unknown site or role, layer or position out of range.
        """
        model, tokens = self._model, as_tokens(self._model.tokenizer, prompts)
        check_context(model, tokens)
        layer = model.layer(layer)
        where, kept = tokens.resolve(positions)[1], list[Tensor]()
        stop = layer if site == "resid_pre" else layer + 1
        reads: list[tuple[Site, int, Edit]] = [(site, layer, kept.append)]
        if fast and self._packs and fast_path_agrees(model, tokens):
            # Without a prefix run apart: the tree holds it once, and the backward pass goes through it once.
            with packed_passes(model, tokens, self._applied, max_shared=0, stop_before=stop) as passes:
                packed = passes.pack(list(range(len(tokens))))
                with passes.whole(packed), model.hooks(reads), stopping_before(model, stop):
                    model.decoder(**packed.inputs)
            return kept[0][0][packed.nodes(where).to(model.device)]
        inputs, slots = _padded(model, tokens, self.embed(tokens), None)
        self._layout = _layout(tokens, slots)
        with (
            self._applied.running(self._layout),
            model.rotary.at([len(ids) for ids in tokens.ids]),
            model.hooks(reads),
            stopping_before(model, stop if fast else None),
        ):
            model.decoder(**inputs, use_cache=False)
        rows = torch.arange(len(tokens))[:, None]
        return kept[0][rows.to(model.device), slots[rows, where].to(model.device)]

    def _checked(self, tokens: ChatTokens, embeds: Sequence[Tensor]) -> list[Tensor]:
        if len(embeds) != len(tokens):
            raise ValueError(f"got inputs_embeds of {len(embeds)} prompts for {len(tokens)}; give one each")
        for row, (ids, value) in enumerate(zip(tokens.ids, embeds, strict=True)):
            expected = (len(ids), self._model.d_model)
            if tuple(value.shape) != expected:
                raise ValueError(
                    f"inputs_embeds of prompt {row} must have shape {list(expected)}, one row a token, got "
                    f"{list(value.shape)}"
                )
        return list(embeds)

    def checkpointed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward that stores only its input and is recomputed in the backward pass."""

        def run(*args: Any, **options: Any) -> Any:
            contexts = nullcontext(), _Repeated(partial(self.again, self._layout, this_thread()))
            return checkpoint(
                forward,
                *args,
                use_reentrant=False,
                preserve_rng_state=False,  # no random numbers in eval mode
                context_fn=lambda: contexts,
                **options,
            )

        return run

    @contextmanager
    def again(self, layout: PassLayout | None, owner: int) -> Iterator[None]:
        """Recompute a block for the same tokens and on behalf of the same thread (autograd has its own threads)."""
        if not self._open:
            raise RuntimeError("the backward pass of checkpointed blocks must run inside `differentiable`")
        with on_behalf_of(owner), self._applied.running(layout):
            yield

    def close(self) -> None:
        """Mark the end of the context, after which checkpointed blocks cannot be recomputed."""
        self._open = False


class _Repeated:
    """A context that can be entered once for each backward pass."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make, self._entered = make, list[AbstractContextManager[None]]()

    def __enter__(self) -> None:
        context = self._make()
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)


@contextmanager
def differentiable(
    model: ChatModel,
    *,
    interventions: Sequence[Intervention] = (),
    checkpointing: bool = False,
    trainable: Sequence[nn.Parameter] = (),
) -> Iterator[Differentiable]:
    """Passes with gradients through the model, whose parameters are frozen inside the context but for those given.

    `requires_grad` of the parameters is restored afterwards, also after an exception, and no frozen one gets a
    gradient. The context holds `model.lock`: fast passes of other threads wait.

    Args:
        interventions: active in every pass; a direction may require a gradient.
        trainable: parameters of the model that require gradients inside the context.
        checkpointing: store only each block's input and recompute blocks in the backward pass, to save memory;
            gradients are equal.

    Raises:
        ValueError: an intervention that does not fit, or that no pass reached.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.hf.parameters()]
    wanted = {id(parameter) for parameter in trainable}
    with model.lock, ExitStack() as stack:
        applied = stack.enter_context(apply(model, interventions))
        through = Differentiable(model, applied, packs=not checkpointing and not interventions)
        if checkpointing:
            blocks: list[nn.Module] = [block.module for block in model.blocks]
            stack.enter_context(
                swapped_forwards({block: through.checkpointed(block.forward) for block in blocks})
            )
        try:
            for parameter, _ in flags:
                if parameter.is_floating_point():  # a quantised one never requires a gradient
                    parameter.requires_grad_(id(parameter) in wanted)
            yield through
        finally:
            through.close()
            for parameter, flag in flags:
                if parameter.is_floating_point():
                    parameter.requires_grad_(flag)


def _padded(
    model: ChatModel, tokens: ChatTokens, embeds: list[Tensor], soft: SoftPrefix | None
) -> tuple[dict[str, Tensor], Int[Tensor, "prompt pos"]]:
    """Arguments of the pass, and the slot of every token of every prompt; -1 after a prompt's end."""
    count = 0 if soft is None else len(soft.embeddings)
    lengths = [len(ids) + count for ids in tokens.ids]
    width = max(lengths)
    with torch.no_grad():
        padding = model.embedding(torch.tensor([pad_id(model)], device=model.device))
    slots = torch.full((len(tokens), width - count), -1)
    rows = []
    for row, embedded in enumerate(embeds):
        start = 0 if soft is None else soft.start(tokens, row)
        gap = width - lengths[row]
        inserted = [] if soft is None else [soft.embeddings]
        parts = [padding.expand(gap, -1), embedded[:start], *inserted, embedded[start:]]
        rows.append(torch.cat([part.to(padding) for part in parts]))
        index = torch.arange(len(embedded))
        slots[row, : len(embedded)] = gap + index + count * (index >= start)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long().to(model.device)
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"inputs_embeds": torch.stack(rows), "attention_mask": mask, "position_ids": position_ids}
    return inputs, slots


def _layout(tokens: ChatTokens, slots: Int[Tensor, "prompt pos"]) -> PassLayout:
    """The layout of the pass; slots of padding and of a soft prefix hold no token."""
    width = int(slots.max()) + 1
    positions = torch.full((len(slots), width), -1)
    rows, index = (slots >= 0).nonzero().T
    positions[rows, slots[rows, index]] = index
    prompts = rearrange(torch.arange(len(slots)), "row -> row 1").expand(-1, width)
    return PassLayout(tokens=tokens, prompts=prompts, positions=positions)
