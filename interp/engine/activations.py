"""Activations of chosen sites, layers and token roles, collected at a fraction of the cost of a full cache.

`collect` keeps the activations of every prompt, `collect_means` only their running mean in float64, so its memory
does not grow with the number of prompts. The fast path runs only what the answer needs:

1. the template tokens that all prompts share are run once;
2. prompts are packed without padding, and what several of them begin with stands there once (`interp.engine.packing`);
3. the pass stops before the first block that no requested site needs, and nothing is unembedded;
4. the last block is run for the requested tokens alone, and only they leave the pass;
5. what lies between matrix products is computed in place, and large passes multiply by packed weights
   (`interp.engine.cpu_kernels`).

`fast=False` is the plain path: whole prompts, left-padded with mask and position ids, batches of 32, all blocks. At a
model's first use, and with every longer prompt, a self-test compares the two on the shortest and longest prompt and
falls back to the plain path with a warning when they disagree.

    acts = collect(model, prompts, sites=["resid_pre"], positions=["t_inst", "t_post_inst"])
    acts["resid_pre"].shape                                   # [prompt, layer, role, d_model]
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from interp.display.progress import progress
from interp.engine.activation_values import ActivationMeans, Activations
from interp.engine.applying import Applied, apply
from interp.engine.batching import pad_id, pad_left, run_batches, stopping_before
from interp.engine.budgets import PassBudget
from interp.engine.interventions import Intervention, intervention_list
from interp.engine.layouts import PassLayout
from interp.engine.packing import can_pack, packed_passes
from interp.engine.precision_cost import measure_cost
from interp.engine.reads import Reads, Request, all_finite, requested
from interp.engine.stored_activations import Purpose, StoreInput, active_store, opened_store, stored_batches
from interp.models.chat_model import ChatModel, Site
from interp.models.layers import Layers
from interp.models.precision import product_dtype
from interp.models.sites import Sites
from interp.models.tokens import ChatTokens, Positions, PromptInput
from interp.storage.activation_store import ActivationStore

logger = logging.getLogger(__name__)

Batch = tuple[list[int], dict[Site, Tensor]]
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_self_tested: WeakKeyDictionary[ChatModel, int] = WeakKeyDictionary()
"""Length of the longest prompt on which both paths agree; 0 for a model on which they do not."""


# no_grad, not inference_mode: what comes back must be usable in autograd, to train a probe for instance.
@torch.no_grad()
def collect(
    model: ChatModel,
    prompts: PromptInput,
    *,
    sites: Sites = "resid_pre",
    layers: Layers = None,
    positions: Positions = ("t_inst", "t_post_inst"),
    interventions: Sequence[Intervention] = (),
    fast: bool = True,
    budget: int | None = None,
    store: StoreInput = None,
    show_progress: bool = False,
) -> Activations:
    """Activations of every prompt.

    Args:
        prompts: instructions or conversations (`interp.models.prompt_inputs`), rendered with the model's chat template,
            or tokens.
        sites: one or several of `chat_model.SITES`.
        layers: an int, a range, a list, or None for all.
        positions: token roles to read (`tokens.ROLES`, or integers from the prompt's end).
        interventions: in force while reading; what is read is what stands after them.
        fast: False takes the plain path.
        budget: tokens a batch; chosen when None, halved on out-of-memory.
        show_progress: draw a progress bar.
        store: activation store, or where it is: what it has is read, the rest is computed and stored; when None, the
            one of `using_store`, if any.

    Raises:
        ValueError: unknown site or role, layer or position out of range, or activations that are not finite.
    """
    tokens, request = requested(model, prompts, sites, layers, positions)
    width = model.d_model
    shape = (len(tokens), len(request.layers), len(request.roles), width)
    values: dict[Site, Tensor] = {site: torch.empty(shape, dtype=model.dtype) for site in request.sites}
    for rows, batch in activation_batches(
        model,
        tokens,
        request,
        interventions,
        fast=fast,
        budget=budget,
        show_progress=show_progress,
        store=store,
    ):
        for site, value in batch.items():
            values[site][rows] = value.cpu()
    return Activations(values=values, layers=request.layers, roles=request.roles, identity=tokens.identity)


@torch.no_grad()
def collect_means(
    model: ChatModel,
    prompts: PromptInput,
    *,
    sites: Sites = "resid_pre",
    layers: Layers = None,
    positions: Positions = ("t_inst", "t_post_inst"),
    interventions: Sequence[Intervention] = (),
    fast: bool = True,
    budget: int | None = None,
    store: StoreInput = None,
    show_progress: bool = False,
) -> ActivationMeans:
    """Mean activation over the prompts, summed in float64; memory does not grow with their number.

    Arguments and errors as `collect`.
    """
    tokens, request = requested(model, prompts, sites, layers, positions)
    shape = (len(request.layers), len(request.roles), model.d_model)
    sums: dict[Site, Tensor] = {site: torch.zeros(shape, dtype=torch.float64) for site in request.sites}
    norms: dict[Site, Tensor] = {site: torch.zeros(shape[:2], dtype=torch.float64) for site in request.sites}
    for _, batch in activation_batches(
        model,
        tokens,
        request,
        interventions,
        fast=fast,
        budget=budget,
        show_progress=show_progress,
        store=store,
    ):
        for site, value in batch.items():
            # Layer by layer: of all layers at once, the numbers in float64 would not stay in a cache.
            by_layer = [
                (v.sum(0, dtype=torch.float64), torch.linalg.vector_norm(v, dim=-1)) for v in value.unbind(1)
            ]
            sums[site] += torch.stack([total for total, _ in by_layer]).cpu()
            norms[site] += torch.stack([norm for _, norm in by_layer]).sum(1, dtype=torch.float64).cpu()
    n = len(tokens)
    return ActivationMeans(
        means={site: total / n for site, total in sums.items()},
        norms={site: (total / n).float() for site, total in norms.items()},
        n=n,
        layers=request.layers,
        roles=request.roles,
        identity=tokens.identity,
    )


def activation_batches(
    model: ChatModel,
    tokens: ChatTokens,
    request: Request,
    interventions: Sequence[Intervention] = (),
    *,
    fast: bool = True,
    budget: int | None = None,
    planned: Sequence[list[int]] | None = None,
    show_progress: bool = False,
    store: StoreInput = None,
) -> Iterator[Batch]:
    """Rows and activations of each batch, as they are read from the store in force or computed.

    Arguments and errors as `collect`.

    Args:
        planned: some of the batches that `planned_batches` gives for these tokens, which are computed without the
            store; None is all.
    """
    interventions = intervention_list(interventions)
    given = active_store() if store is None else opened_store(store)
    if planned is not None or given is None:
        path = partial(_computed, planned=planned)
    else:
        path = partial(through_store, given)
    yield from progress(
        path(model, tokens, request, interventions, list(range(len(tokens))), fast=fast, budget=budget),
        total=len(tokens),
        label="collecting activations",
        show=show_progress,
        size=lambda b: len(b[0]),
    )


def _computed(
    model: ChatModel,
    tokens: ChatTokens,
    request: Request,
    interventions: Sequence[Intervention],
    rows: list[int],
    *,
    fast: bool,
    budget: int | None,
    planned: Sequence[list[int]] | None = None,
) -> Iterator[Batch]:
    """Activations of these rows, batch by batch as they are computed."""
    chosen, part = tokens.take(rows), request._replace(where=request.where[rows])
    use_fast = fast and fast_path_agrees(model, chosen)
    if use_fast:
        measure_cost(model, layer_states)
    until = request.stop_before if use_fast else None
    with apply(model, interventions, until=until) as applied:
        batches = (_fast if use_fast else _plain)(model, chosen, part, applied, budget, planned)
        yield from all_finite((([rows[k] for k in some], batch) for some, batch in batches), request)


def through_store(
    store: ActivationStore,
    model: ChatModel,
    tokens: ChatTokens,
    request: Request,
    interventions: Sequence[Intervention],
    rows: list[int],
    *,
    fast: bool = True,
    budget: int | None = None,
    purpose: Purpose = "serve",
) -> Iterator[Batch]:
    """Rows and activations of each batch: those in the store, then the others, which are stored as they are computed.

    What the packed path computed agreed with the plain one when it was stored, so that reading needs no self-test.

    Args:
        rows: all of them.
        purpose: `fill` gives the computed ones only, and raises where `serve` goes on without the store.
    """
    packs = fast and can_pack(model, tokens)
    path = "packed" if packs else "plain"
    stored = stored_batches(store, model, tokens, request, interventions, path=path, purpose=purpose)
    if packs and stored is not None and stored.missing and not fast_path_agrees(model, tokens):
        packs, path = False, "plain"
        stored = stored_batches(store, model, tokens, request, interventions, path=path, purpose=purpose)
    compute = partial(_computed, model, tokens, request, interventions, fast=packs, budget=budget)
    if stored is None:
        yield from compute(rows)
        return
    if purpose == "serve":
        yield from stored.read()
        if packs and stored.missing and not fast_path_agrees(model, tokens):  # damage, found while reading
            yield from compute(stored.missing)  # on the plain path: not what this table holds
            return
    yield from stored.computed(compute)


def layer_states(model: ChatModel, tokens: ChatTokens) -> Float[Tensor, "prompt layer role d_model"]:
    """The residual stream after every block, at the default roles."""
    return collect(model, tokens, sites="resid_post")["resid_post"]


@torch.no_grad()
def planned_batches(model: ChatModel, tokens: ChatTokens, request: Request) -> list[list[int]]:
    """Rows of each batch in which `activation_batches` runs these tokens without interventions."""
    if not fast_path_agrees(model, tokens):
        return _plain_batches(model, tokens, None)
    with (
        apply(model, [], until=request.stop_before) as applied,
        packed_passes(model, tokens, applied, max_shared=int(request.where.min()), stop_before=0) as passes,
    ):
        return [list(rows) for rows in passes.batches]


def _fast(
    model: ChatModel,
    tokens: ChatTokens,
    request: Request,
    applied: Applied,
    budget: int | None,
    planned: Sequence[list[int]] | None,
) -> Iterator[Batch]:
    stop_before = request.stop_before
    # A requested token inside the shared prefix would not be run with every prompt: hence max_shared.
    with packed_passes(
        model,
        tokens,
        applied,
        max_shared=int(request.where.min()),
        stop_before=stop_before,
        budget=budget,
        batches=planned,
    ) as passes:

        def run(rows: list[int]) -> dict[Site, Tensor]:
            packed = passes.pack(rows)
            nodes = packed.nodes(request.where[rows] - passes.shared)
            reads = Reads(model, request, len(rows))
            if stop_before == 0:
                with passes.whole(packed), model.hooks(reads.edits(nodes)), stopping_before(model, 0):
                    model.decoder(**packed.inputs)
                return reads.values
            last_block = stop_before - 1

            def comes_first(site: Site, layer: int) -> bool:
                return layer < last_block or (layer == last_block and site == "resid_pre")

            first = reads.edits(nodes, of=comes_first)
            with passes.narrowed(packed, nodes, last_block, edits=first) as (inputs, where):
                rest = reads.edits(where, of=lambda *place: not comes_first(*place))
                # The stop comes after the reads at the same block.
                with model.hooks(rest), stopping_before(model, stop_before):
                    model.decoder(**inputs)
            return reads.values

        yield from run_batches(passes.batches, run, max_rows=passes.max_rows)


def _plain(
    model: ChatModel,
    tokens: ChatTokens,
    request: Request,
    applied: Applied,
    budget: int | None,
    planned: Sequence[list[int]] | None,
) -> Iterator[Batch]:
    def run(rows: list[int]) -> dict[Site, Tensor]:
        batch = tokens.take(rows)
        padded = pad_left(batch.ids, pad_id=pad_id(model))
        layout = PassLayout.left_padded(batch) if applied.tracks else None
        lengths = torch.tensor([len(ids) for ids in batch.ids])
        width = padded.ids.shape[1]
        ends = width * torch.arange(1, len(rows) + 1)
        where = request.where[rows] + (ends - lengths)[:, None]

        reads = Reads(model, request, len(rows))
        with (
            applied.running(layout),
            model.rotary.at(lengths.tolist()),
            model.hooks(reads.edits(where)),
        ):
            model.decoder(
                padded.ids.to(model.device),
                attention_mask=padded.mask.to(model.device),
                position_ids=padded.position_ids.to(model.device),
                use_cache=False,
            )
        return reads.values

    batches = _plain_batches(model, tokens, budget) if planned is None else planned
    yield from run_batches(batches, run, max_rows=PassBudget.for_(model).rows)


def _plain_batches(model: ChatModel, tokens: ChatTokens, budget: int | None) -> list[list[int]]:
    most = PassBudget.for_(model)
    size = most.plain_rows if budget is None else max(1, budget // max(len(ids) for ids in tokens.ids))
    rows = list(range(len(tokens)))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


@torch.no_grad()
def fast_path_agrees(model: ChatModel, tokens: ChatTokens) -> bool:
    """Whether these prompts can be packed, and whether packing changes nothing.

    Tested at a model's first use, and again whenever the longest prompt is longer than any tested before.
    """
    if not can_pack(model, tokens):
        return False
    lengths = [len(ids) for ids in tokens.ids]
    longest = max(lengths)
    tested = _self_tested.get(model)
    if tested is None or 0 < tested < longest:
        probe = tokens.take([lengths.index(min(lengths)), lengths.index(longest)])
        _self_tested[model] = longest if _paths_agree(model, probe) else 0
    return _self_tested[model] > 0


def _paths_agree(model: ChatModel, probe: ChatTokens) -> bool:
    """Whether both paths give the same at all layers of two prompts, each by itself within tolerance."""
    names, index = probe.resolve(["t_inst", "t_post_inst"])
    request = Request(("resid_post",), tuple(range(model.n_layers)), tuple(names), index)

    def read(path: Callable[..., Iterator[Batch]]) -> Tensor:
        value = torch.empty(2, model.n_layers, 2, model.d_model, dtype=torch.float64)
        with apply(model, []) as applied:
            for rows, batch in path(model, probe, request, applied, None, None):
                value[rows] = batch["resid_post"].to("cpu", torch.float64)
        return value.flatten(1)

    plain = read(_plain)
    try:
        gap = torch.linalg.vector_norm(read(_fast) - plain, dim=1) / torch.linalg.vector_norm(plain, dim=1)
    except (TypeError, RuntimeError, AttributeError, IndexError) as failure:
        logger.warning("the fast path fails on %s (%s); using the plain path", model.name, failure)
        return False
    error = gap.max().item()
    agrees = error < _TOLERANCE.get(product_dtype(model), 8e-2)
    if not agrees and not math.isnan(error):
        logger.warning(
            "the fast path disagrees with the plain one on %s (relative error %.2g); using the plain path",
            model.name,
            error,
        )
    return agrees
