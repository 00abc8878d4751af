"""Scores of many candidate directions on validation prompts, at a fraction of the cost of three full sweeps.

Why a candidate costs less than three passes over all prompts (`interp.representations.selection` has the scores):

1. bypass and kl share their passes: both ablate the candidate, one reads harmful prompts, the other harmless ones;
2. prompts are packed (`interp.engine.packing`) and only their last tokens are unembedded;
3. an addition at layer l changes nothing below l: its passes start there, from the unmodified `resid_pre`;
4. a residual stream that starts without a component along u gains none when every contribution is ablated, so
   `resid_pre` is ablated once, at the first block, and not at every block.

A zero direction (layer 0 at template tokens) scores as the unmodified model and is not run.
`interp.representations.picks` also skips candidates that cannot be picked; `interp.representations.shared_sweeps`
measures several at a time. A model of precision `fast` is screened with rounded products;
`interp.representations.confirming` scores again in float32 what could be picked.

    sweep = Sweep(model, directions, harmful=harmful, harmless=harmless, refusal_ids=tokens.ids)
    sweep.complete((-1, 14))                                # Candidate(position=-1, layer=14, bypass=…, …)

Source of the scores: Arditi et al. 2024, arXiv:2406.11717, section 2.3 and appendix C.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.activations import fast_path_agrees
from interp.engine.applying import apply
from interp.engine.budgets import PassBudget
from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.log_probs import next_token_log_probs, packed_next_tokens
from interp.engine.packing import packed_passes
from interp.engine.prepacked_weights import PackedWeights
from interp.engine.ray import Pool
from interp.evaluation.losses import KLFrom
from interp.evaluation.refusals import refusal_metric
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.representations.selection import Candidate
from interp.stats import Measured

logger = logging.getLogger(__name__)

Place = tuple[int, int]
"""(position from the prompt's end, layer) of a candidate."""
Keep = Callable[[str, Callable[[], Any], Any], Any]
"""A function of name, compute and type that returns the stored value or computes it, as `Stages.keep` in
`interp.storage.stages`."""
FIRST_PROMPTS = 8
"""Harmless prompts on which a candidate's kl is measured first."""


class Sweep:
    """Scores of candidate directions on validation prompts; nothing is measured twice.

    Args:
        directions: (position, layer) → unnormalised direction.
        harmful: prompts that bypass is measured on.
        harmless: prompts that induce and kl are measured on.
        refusal_ids: tokens that begin the model's refusals.
        fast: False takes the plain path: whole prompts, one candidate at a time, all blocks.
        keep: stores measured values and returns stored ones, so that an interrupted sweep continues (`Stages.keep`).

    Raises:
        ValueError: no directions.
    """

    def __init__(
        self,
        model: ChatModel,
        directions: Mapping[Place, Float[Tensor, " d_model"]],
        *,
        harmful: ChatTokens,
        harmless: ChatTokens,
        refusal_ids: Sequence[int],
        fast: bool = True,
        keep: Keep = lambda _name, compute, _kind: compute(),
    ) -> None:
        if not directions:
            raise ValueError("no candidate directions to score")
        self.model, self.directions = model, dict(directions)
        self.n_harmful, self.n_harmless = len(harmful), len(harmless)
        self.harmful, self.harmless, self._both = harmful, harmless, harmful.joined(harmless)
        self.refusal_ids = list(refusal_ids)
        self.keep, self.asked_fast = keep, fast
        self.pool: Pool[Sweep] | None = None
        """Workers that measure candidates (`interp.representations.shared_sweeps`); None is this process."""
        self._fast = fast and fast_path_agrees(model, self._both)
        self._weights = PackedWeights(model, keep=True)
        self._pass_tokens = PassBudget.for_(model).sweep_tokens
        base = next_token_log_probs(model, self._both, fast=self._fast)
        self.baseline = refusal_metric(base, self.refusal_ids)
        """Refusal metric of the unmodified model: harmful prompts, then harmless ones."""
        self._kl = KLFrom(base[self.n_harmful :])
        self.ablated: dict[Place, Tensor] = {}
        """Per candidate, under its ablation: metric of harmful, KL of harmless prompts; inf where not measured."""
        self.induced: dict[Place, Tensor] = {}
        """Per candidate, under its addition: refusal metric of harmless prompts."""
        self.confirmed: set[Place] = set()
        """Candidates of a model in `fast` that `exact` has scored again in full."""

    @cached_property
    def exact(self) -> "Sweep":
        """The same sweep with every product in float32; this one where the model is not in `fast`."""
        if self.model.precision == "exact":
            return self
        return Sweep(
            with_precision(self.model, "exact"),
            self.directions,
            harmful=self.harmful,
            harmless=self.harmless,
            refusal_ids=self.refusal_ids,
            fast=self.asked_fast,
            keep=lambda name, compute, kind: self.keep(f"exact-{name}", compute, kind),
        )

    def final(self, place: Place) -> "Sweep":
        """The sweep that holds the candidate's scores of highest precision."""
        return self.exact if place in self.confirmed else self

    # One measurement of any vector

    @torch.no_grad()
    def ablate(
        self, vector: Float[Tensor, " d_model"], rows: Sequence[int] | None = None
    ) -> Float[Tensor, " row"]:
        """Scores under ablation of a vector: refusal metric of harmful rows, KL of harmless ones.

        Args:
            rows: row indices of prompts, harmful prompts first; None is all.
        """
        prompts = torch.arange(len(self._both)) if rows is None else torch.tensor(rows)
        out = torch.full((len(prompts),), math.nan, dtype=torch.float64)
        # float16 can overflow for single candidates, which must then be dropped.
        if not torch.isfinite(vector).all():
            return out
        if not vector.any():  # ablation of a zero vector changes nothing
            out[:] = torch.where(prompts < self.n_harmful, self.baseline[prompts], 0.0)
            return out
        for part, log_probs in self._next_tokens(self._both.take(prompts.tolist()), vector):
            where = torch.tensor(part)
            harmless_row = prompts[where] - self.n_harmful
            harmful = harmless_row < 0
            out[where[harmful]] = refusal_metric(log_probs, self.refusal_ids)[harmful]
            out[where[~harmful]] = self._kl(log_probs[~harmful], harmless_row[~harmful])
        return out

    def _next_tokens(
        self, tokens: ChatTokens, vector: Float[Tensor, " d_model"]
    ) -> Iterable[tuple[list[int], Float[Tensor, "batch d_vocab"]]]:
        """Next-token log-probabilities with the vector ablated, by groups of rows."""
        if not self._fast:
            ablate = Ablate(direction=vector)
            yield (
                list(range(len(tokens))),
                next_token_log_probs(self.model, tokens, interventions=[ablate], fast=False),
            )
            return
        everywhere: list[Intervention] = [
            Ablate(direction=vector, layers=[0], sites=("resid_pre",)),
            Ablate(direction=vector, sites=("attn_out", "mlp_out")),
        ]
        with apply(self.model, everywhere) as applied:
            # The shared prefix changes with every candidate, so it gets no pass of its own.
            for rows, logits in packed_next_tokens(
                self.model, tokens, applied, max_shared=0, budget=self._pass_tokens, weights=self._weights
            ):
                yield rows, logits.float().log_softmax(-1).cpu()

    @torch.no_grad()
    def add(self, vector: Float[Tensor, " d_model"], layer: int) -> Float[Tensor, " harmless"]:
        """Refusal metric of every harmless prompt with the vector added at the input of this layer, all positions."""
        if not torch.isfinite(vector).all():
            return torch.full((self.n_harmless,), math.nan, dtype=torch.float64)
        if not vector.any():
            return self.baseline[self.n_harmful :].clone()
        if not self._fast or not self._resumes:
            addition = Add(direction=vector, layers=[layer])
            log_probs = next_token_log_probs(
                self.model, self.harmless, interventions=[addition], fast=self._fast
            )
            return refusal_metric(log_probs, self.refusal_ids)
        return self._resumed(vector, layer)

    def _resumed(self, vector: Float[Tensor, " d_model"], layer: int) -> Float[Tensor, " harmless"]:
        out = torch.empty(self.n_harmless, dtype=torch.float64)
        unmodified = self._resid
        with (
            apply(self.model, []) as applied,
            packed_passes(self.model, self.harmless, applied, max_shared=0, weights=self._weights) as passes,
        ):
            for rows, resid in zip(passes.batches, unmodified, strict=True):
                start = resid[layer] + vector.to(resid)
                logits = passes.next_token_logits(passes.pack(rows), resume=(layer, start))
                out[rows] = refusal_metric(logits.float().log_softmax(-1), self.refusal_ids).cpu()
        return out

    def _whole(self) -> Float[Tensor, " harmless"]:
        """Refusal metric of the unmodified model on the harmless prompts, packed as `_resumed` packs them."""
        out = torch.empty(self.n_harmless, dtype=torch.float64)
        with apply(self.model, []) as applied:
            for rows, logits in packed_next_tokens(
                self.model, self.harmless, applied, max_shared=0, weights=self._weights
            ):
                out[rows] = refusal_metric(logits.float().log_softmax(-1), self.refusal_ids).cpu()
        return out

    @cached_property
    def _resid(self) -> list[Float[Tensor, "layer one node d_model"]]:
        """Unmodified `resid_pre` of every layer on the packed harmless prompts, one entry per pass."""
        streams: list[Tensor] = []

        def reader(layer: int) -> Any:
            return lambda value: streams[-1].__setitem__(layer, value)

        reads: list[Any] = [("resid_pre", layer, reader(layer)) for layer in range(self.model.n_layers)]
        with (
            torch.no_grad(),
            apply(self.model, []) as applied,
            packed_passes(self.model, self.harmless, applied, max_shared=0, weights=self._weights) as passes,
            self.model.hooks(reads),
        ):
            for rows in passes.batches:
                packed = passes.pack(rows)
                size = (self.model.n_layers, 1, len(packed.tree.ids), self.model.d_model)
                streams.append(torch.empty(size, dtype=self.model.dtype, device=self.model.device))
                with passes.whole(packed):
                    self.model.decoder(**packed.inputs)
        return streams

    @cached_property
    def _resumes(self) -> bool:
        """Whether passes that start at a block change no more than another packing of the prompts does; tested once.

        In float32 both are far below the limit of 0.01 nats. In half precision products of other shapes round
        differently, which moves the refusal metric of a 7B model in bfloat16 by 0.1 nats: that is no fault of resuming.
        """
        try:
            resumed = self._resumed(torch.zeros(self.model.d_model), self.model.n_layers // 2)
        except (TypeError, RuntimeError, AttributeError) as error:
            logger.warning("%s cannot resume at a block (%s); running all blocks", self.model.name, error)
            return False
        whole, base = self._whole(), self.baseline[self.n_harmful :]
        gap, rounding = (resumed - whole).abs().max().item(), (base - whole).abs().max().item()
        if not gap < max(1e-2, 2 * rounding):
            logger.warning(
                "resuming at a block changes the refusal metric of %s by %.2g; running all blocks",
                self.model.name,
                gap,
            )
            return False
        return True

    # Scores of the candidates, measured once

    def _rows(self, place: Place, rows: range) -> Tensor:
        """Scores under the candidate's ablation on these rows."""
        table = self.ablated.setdefault(place, torch.full((len(self._both),), math.inf, dtype=torch.float64))
        missing = [row for row in rows if table[row] == math.inf]  # no score is infinite; NaN is measured
        if missing:
            name = f"ablated{place[0]}-{place[1]}-{missing[0]}-{missing[-1]}"
            table[missing] = self._kept(name, lambda: self.ablate(self.directions[place], missing))
        return table[rows.start : rows.stop]

    def _kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Values stored before the sweep was interrupted, or measured now."""
        values = self.keep(name, lambda: compute().tolist(), list[Measured])
        return torch.tensor(values, dtype=torch.float64)

    def bypass(self, place: Place) -> Float[Tensor, " harmful"]:
        """Refusal metric of every harmful prompt with the candidate ablated."""
        return self._rows(place, range(self.n_harmful))

    def kl(self, place: Place) -> Float[Tensor, " harmless"]:
        """KL of every harmless prompt with the candidate ablated."""
        return self._rows(place, range(self.n_harmful, len(self._both)))

    def induce(self, place: Place) -> Float[Tensor, " harmless"]:
        """Refusal metric of every harmless prompt with the candidate added."""
        if place not in self.induced:
            name = f"added{place[0]}-{place[1]}"
            self.induced[place] = self._kept(name, lambda: self.add(self.directions[place], place[1]))
        return self.induced[place]

    def kl_may_be_within(self, place: Place, limit: float) -> bool:
        """False when the first few prompts prove that the mean kl exceeds `limit`."""
        if not math.isfinite(limit):
            return True
        first = min(FIRST_PROMPTS, self.n_harmless)
        self._rows(place, range(self.n_harmful, self.n_harmful + first))
        return self.kl_lower_bound(place) <= limit

    def kl_lower_bound(self, place: Place) -> float:
        """Lower bound on a candidate's mean kl from the prompts measured so far; 0 or slightly below where none is."""
        table = self.ablated.get(place)
        known = (
            table[self.n_harmful :] if table is not None else torch.full_like(self._kl.lower_bound, math.inf)
        )
        return torch.where(known == math.inf, self._kl.lower_bound, known).mean().item()

    def complete(self, place: Place) -> Candidate:
        """Measure all three scores of a candidate; harmful and harmless prompts share the passes of its ablation."""
        self._rows(place, range(len(self._both)))
        self.induce(place)
        return self.candidate(place)

    def candidate(self, place: Place) -> Candidate:
        """Mean scores of a candidate; NaN where they have not been measured."""
        table = self.ablated.get(place)
        means = [math.nan, math.nan, math.nan]
        if table is not None:
            parts = (table[: self.n_harmful], table[self.n_harmful :])
            means[:2] = [math.nan if (p == math.inf).any() else p.mean().item() for p in parts]
        if place in self.induced:
            means[2] = self.induced[place].mean().item()
        return Candidate(position=place[0], layer=place[1], bypass=means[0], induce=means[2], kl=means[1])
