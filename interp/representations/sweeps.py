"""Scores of many candidate directions on the validation prompts, at a fraction of the cost of three full sweeps.

What a candidate costs, and why it is less than three passes over all prompts (`interp.representations.selection` has
the scores):

1. bypass and kl share their passes: both ablate the candidate, one reads harmful prompts, the other harmless ones;
2. prompts are packed (`interp.engine.packing`) and only their last tokens are unembedded;
3. an addition at layer l changes nothing below l: its passes start there, from the unmodified `resid_pre`;
4. a stream that enters without a component along u keeps none when every contribution is ablated, so `resid_pre` is
   ablated once, at the first block, and not at every block.

`choose` goes further and leaves out what cannot win. A candidate is dropped as soon as its kl provably exceeds the
limit: after a few prompts, since the others can lower the sum by no more than a bound that follows from Jensen's
inequality and the epsilon in the published formula. Induce, which decides most often, comes next; the other prompts'
kl and then bypass are measured for those that induce. The pick is that of the full table; `complete` measures the
full table. A zero direction (layer 0 at template tokens) scores as the unmodified model and is not run.

Source of scores and rule: Arditi et al. 2024, arXiv:2406.11717, section 2.3 and appendix C.
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
from interp.engine.budgets import PassBudget
from interp.engine.cpu_kernels import PackedWeights
from interp.engine.interventions import Ablate, Add, Intervention, apply
from interp.engine.log_probs import next_token_log_probs, packed_next_tokens
from interp.engine.packing import packed_passes
from interp.evaluation.losses import KLFrom
from interp.evaluation.refusals import refusal_metric
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.representations.selection import Candidate, Rule, pick

logger = logging.getLogger(__name__)

Place = tuple[int, int]
"""(position from the prompt's end, layer) of a candidate."""
Watch = Callable[[Iterable[Place], str], Iterable[Place]]
"""Wraps a loop over candidates, named by what is measured: a progress bar."""
_FIRST = 8
"""Harmless prompts on which a candidate's kl is looked at first."""


class Sweep:
    """Scores of candidate directions on validation prompts; what was measured once is not measured again.

    Args:
        directions: (position, layer) → direction at its natural length.
        harmful: prompts that bypass is measured on.
        harmless: prompts that induce and kl are measured on.
        refusal_ids: tokens that begin the model's refusals.
        fast: False takes the plain path: whole prompts, one candidate at a time, all blocks.
        keep: stores a finished part and gives it back, `Parts.numbers` for instance.
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
        keep: Callable[[str, Callable[[], Any]], Any] = lambda _name, compute: compute(),
    ) -> None:
        if not directions:
            raise ValueError("no candidate directions to score")
        self.model, self.directions = model, dict(directions)
        self.n_harmful, self.n_harmless = len(harmful), len(harmless)
        self._harmless, self._both = harmless, harmful.joined(harmless)
        self._refusal_ids = list(refusal_ids)
        self._keep = keep
        self._fast = fast and fast_path_agrees(model, self._both)
        self._weights = PackedWeights(model, keep=True)
        self._pass_tokens = PassBudget.for_(model).sweep_tokens
        base = next_token_log_probs(model, self._both, fast=self._fast)
        self.baseline = refusal_metric(base, self._refusal_ids)
        """Refusal metric of the unmodified model: harmful prompts, then harmless ones."""
        self._kl = KLFrom(base[self.n_harmful :])
        self.ablated: dict[Place, Tensor] = {}
        """Per candidate, under its ablation: metric of harmful and KL of harmless prompts; inf where not measured."""
        self.induced: dict[Place, Tensor] = {}
        """Per candidate, under its addition: metric of harmless prompts."""

    # One measurement of any vector

    @torch.no_grad()
    def ablate(
        self, vector: Float[Tensor, " d_model"], rows: Sequence[int] | None = None
    ) -> Float[Tensor, " row"]:
        """Under ablation of a vector: refusal metric of harmful rows, KL of harmless ones.

        Args:
            rows: prompts, the harmful ones counted first; None is all.
        """
        chosen = torch.arange(len(self._both)) if rows is None else torch.tensor(rows)
        out = torch.full((len(chosen),), math.nan, dtype=torch.float64)
        if not torch.isfinite(
            vector
        ).all():  # float16 can overflow in single candidates: they must be dropped
            return out
        if not vector.any():  # ablating nothing
            out[:] = torch.where(chosen < self.n_harmful, self.baseline[chosen], 0.0)
            return out
        for part, log_probs in self._next_tokens(self._both.take(chosen.tolist()), vector):
            where = torch.tensor(part)
            harmless = chosen[where] - self.n_harmful
            bad = harmless < 0
            out[where[bad]] = refusal_metric(log_probs, self._refusal_ids)[bad]
            out[where[~bad]] = self._kl(log_probs[~bad], harmless[~bad])
        return out

    def _next_tokens(
        self, tokens: ChatTokens, vector: Float[Tensor, " d_model"]
    ) -> Iterable[tuple[list[int], Float[Tensor, "batch d_vocab"]]]:
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
            # The prefix changes with every candidate: it joins the first pass instead of having its own.
            for rows, logits in packed_next_tokens(
                self.model, tokens, applied, most_shared=0, budget=self._pass_tokens, weights=self._weights
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
                self.model, self._harmless, interventions=[addition], fast=self._fast
            )
            return refusal_metric(log_probs, self._refusal_ids)
        return self._resumed(vector, layer)

    def _resumed(self, vector: Float[Tensor, " d_model"], layer: int) -> Float[Tensor, " harmless"]:
        out = torch.empty(self.n_harmless, dtype=torch.float64)
        unmodified = self._resid
        with (
            apply(self.model, []) as applied,
            packed_passes(
                self.model, self._harmless, applied, most_shared=0, weights=self._weights
            ) as passes,
        ):
            for rows, resid in zip(passes.batches, unmodified, strict=True):
                start = resid[layer] + vector.to(resid)
                logits = passes.next_token_logits(passes.pack(rows), resume=(layer, start))
                out[rows] = refusal_metric(logits.float().log_softmax(-1), self._refusal_ids).cpu()
        return out

    @cached_property
    def _resid(self) -> list[Float[Tensor, "layer one node d_model"]]:
        """Unmodified `resid_pre` of every layer on the packed harmless prompts, one entry a pass."""
        kept: list[Tensor] = []

        def reader(layer: int) -> Any:
            return lambda value: kept[-1].__setitem__(layer, value)

        reads: list[Any] = [("resid_pre", layer, reader(layer)) for layer in range(self.model.n_layers)]
        with (
            torch.no_grad(),
            apply(self.model, []) as applied,
            packed_passes(
                self.model, self._harmless, applied, most_shared=0, weights=self._weights
            ) as passes,
            self.model.hooks(reads),
        ):
            for rows in passes.batches:
                packed = passes.pack(rows)
                size = (self.model.n_layers, 1, len(packed.tree.ids), self.model.d_model)
                kept.append(torch.empty(size, dtype=self.model.dtype, device=self.model.device))
                with passes.whole(packed):
                    self.model.decoder(**packed.inputs)
        return kept

    @cached_property
    def _resumes(self) -> bool:
        """Whether passes that start at a block give what whole passes give; tested once."""
        try:
            found = self._resumed(torch.zeros(self.model.d_model), self.model.n_layers // 2)
        except (TypeError, RuntimeError, AttributeError) as error:
            logger.warning("%s cannot resume at a block (%s); running all blocks", self.model.name, error)
            return False
        gap = (found - self.baseline[self.n_harmful :]).abs().max().item()
        if not gap < 1e-2:
            logger.warning(
                "resuming at a block changes the refusal metric of %s by %.2g; running all blocks",
                self.model.name,
                gap,
            )
            return False
        return True

    # Scores of the candidates, measured once

    def _rows(self, place: Place, rows: range) -> Tensor:
        """Ablation's values on these rows of a candidate."""
        table = self.ablated.setdefault(place, torch.full((len(self._both),), math.inf, dtype=torch.float64))
        missing = [row for row in rows if table[row] == math.inf]  # no score is infinite; NaN is measured
        if missing:
            name = f"ablated{place[0]}-{place[1]}-{missing[0]}-{missing[-1]}"
            table[missing] = self._kept(name, lambda: self.ablate(self.directions[place], missing))
        return table[rows.start : rows.stop]

    def _kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Values of a part that was finished before, or computed now; stored NaN come back as None."""
        values = self._keep(name, lambda: compute().tolist())
        return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)

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
        first = min(_FIRST, self.n_harmless)
        self._rows(place, range(self.n_harmful, self.n_harmful + first))
        return self.least_kl(place) <= limit

    def least_kl(self, place: Place) -> float:
        """What the mean kl of a candidate is at least, from the prompts measured so far; 0 or a little less if none."""
        table = self.ablated.get(place)
        known = table[self.n_harmful :] if table is not None else torch.full_like(self._kl.least, math.inf)
        return torch.where(known == math.inf, self._kl.least, known).mean().item()

    def least_lack(self, place: Place, rule: Rule) -> float:
        """By how much a candidate misses the kl and induce limits at least, as far as it was measured, in nats.

        Exact once both are measured; infinite for scores that are not a number, which no limit admits.
        """
        lack = max(self.least_kl(place) - rule.kl_threshold, 0.0)
        if place in self.induced:
            lack += max(rule.induce_threshold - self.induced[place].mean().item(), 0.0)
        return math.inf if math.isnan(lack) else lack

    def early(self, rule: Rule) -> list[Place]:
        """Candidates before the rule's layer cut."""
        cut = rule.first_late_layer(self.model.n_layers)
        return [place for place in self.directions if place[1] < cut]

    def complete(self, place: Place) -> Candidate:
        """All three scores of a candidate; both kinds of prompts share the ablation's passes."""
        self._rows(place, range(len(self._both)))
        self.induce(place)
        return self.candidate(place)

    def candidate(self, place: Place) -> Candidate:
        """Mean scores of a candidate as far as they were measured; NaN where they were not."""
        table = self.ablated.get(place)
        means = [math.nan, math.nan, math.nan]
        if table is not None:
            parts = (table[: self.n_harmful], table[self.n_harmful :])
            means[:2] = [math.nan if (p == math.inf).any() else p.mean().item() for p in parts]
        if place in self.induced:
            means[2] = self.induced[place].mean().item()
        return Candidate(position=place[0], layer=place[1], bypass=means[0], induce=means[2], kl=means[1])

    def table(self, rule: Rule) -> list[dict[str, Any]]:
        """One row per candidate: scores (NaN where not measured), `kept`, and the `reason` where it is not."""
        rows = []
        for place in self.directions:
            scored = self.candidate(place)
            if place[1] >= rule.first_late_layer(self.model.n_layers):
                why = "too late a layer"
            elif self._broken(place):
                why = "not finite"
            elif scored.induce < rule.induce_threshold:
                why = "induces too little"
            elif place in self.ablated and math.isnan(scored.kl):
                first = self.ablated[place][self.n_harmful : self.n_harmful + _FIRST].mean()
                why = f"kl too large (mean {first:.2f} on the first {_FIRST} prompts settles it)"
            elif scored.kl > rule.kl_threshold:
                why = "kl too large"
            else:
                why = rule.reason(scored, n_layers=self.model.n_layers)
            rows.append({**scored.as_dict(), "kept": why is None, "reason": why})
        return rows

    def _broken(self, place: Place) -> bool:
        """Whether a measured score of a candidate is not a number."""
        return any(
            bool(table[place].isnan().any()) for table in (self.ablated, self.induced) if place in table
        )


def choose(
    sweep: Sweep,
    rules: Sequence[Rule] = (Rule(),),
    *,
    exhaustive: bool = False,
    watch: Watch = lambda places, _label: places,
) -> tuple[Candidate, Rule]:
    """The pick and the rule that admitted it: the first rule under which a candidate passes.

    Args:
        rules: the published one first; later ones only when no candidate passes.
        exhaustive: measure every score of every candidate.

    Raises:
        NothingSurvives: no candidate passes under any rule; the message names the nearest misses.
    """
    if exhaustive:
        for place in watch(sweep.directions, "scoring candidates"):
            sweep.complete(place)
    for rule in rules:
        if chosen := _first_that_passes(sweep, rule, watch):
            return chosen, rule
    last = rules[-1]
    _score_near_misses(sweep, last, watch)
    pick(
        [sweep.candidate(place) for place in sweep.directions],
        n_layers=sweep.model.n_layers,
        kl_threshold=last.kl_threshold,
        induce_threshold=last.induce_threshold,
        prune_layer_fraction=last.prune_layer_fraction,
    )
    raise AssertionError("pick finds nothing where nothing passes")


def _score_near_misses(sweep: Sweep, rule: Rule, watch: Watch, *, most: int = 3) -> None:
    """Measure in full the candidates that miss the rule by least: best first, until no other can come nearer."""
    bounds = {place: sweep.least_lack(place, rule) for place in sweep.early(rule)}
    misses: list[tuple[float, Place]] = []
    for place in watch(sorted(bounds, key=lambda p: (bounds[p], *p)), "nothing passes: near misses"):
        if len(misses) >= most and bounds[place] > misses[most - 1][0]:
            break
        sweep.kl(place)
        sweep.induce(place)
        miss = sweep.least_lack(place, rule)
        if math.isfinite(miss):
            misses = sorted([*misses, (miss, place)])
    for _, place in misses[:most]:
        sweep.complete(place)


def _first_that_passes(sweep: Sweep, rule: Rule, watch: Watch) -> Candidate | None:
    candidates = watch(sweep.early(rule), "KL of candidates")
    possible = [p for p in candidates if sweep.kl_may_be_within(p, rule.kl_threshold)]
    # NaN compares false: such a candidate is dropped here, as the rule drops it.
    inducing = [
        p
        for p in watch(possible, "induce of candidates")
        if sweep.induce(p).mean().item() >= rule.induce_threshold
    ]
    for place in watch(inducing, "bypass of candidates"):
        if sweep.kl(place).mean() <= rule.kl_threshold:
            sweep.bypass(place)
    scored = [sweep.candidate(place) for place in inducing]
    kept = [c for c in scored if rule.reason(c, n_layers=sweep.model.n_layers) is None]
    return min(kept, key=lambda c: (c.bypass, c.position, c.layer)) if kept else None


def pick_stability(
    sweep: Sweep, rule: Rule, *, contenders: int = 12, resamples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """How often each candidate is picked when the validation prompts are drawn anew with replacement.

    Near-ties swap between such draws, and so they would between runs. Only candidates measured in full take part: all
    of them after an exhaustive sweep, else those that pass and the `contenders` nearest to passing, which are completed
    here.

    Returns:
        `position, layer, share` of every candidate picked at least once, most frequent first; a row with position None
        counts the draws in which nothing passes.
    """
    early = sweep.early(rule)
    near = [p for p in early if p in sweep.induced and sweep.least_kl(p) <= 2 * rule.kl_threshold]
    for place in sorted(near, key=lambda p: (sweep.least_lack(p, rule), *p))[:contenders]:
        sweep.complete(place)
    full = [
        p
        for p in early
        if all(
            map(math.isfinite, (sweep.candidate(p).bypass, sweep.candidate(p).kl, sweep.candidate(p).induce))
        )
    ]
    generator = torch.Generator().manual_seed(seed)

    def means(scores: list[Tensor], draws: Tensor) -> Tensor:
        return torch.stack([s[draws].mean(1) for s in scores], dim=1)

    harmful = torch.randint(sweep.n_harmful, (resamples, sweep.n_harmful), generator=generator)
    harmless = torch.randint(sweep.n_harmless, (resamples, sweep.n_harmless), generator=generator)
    full.sort()  # ties go to the lower position, then layer
    bypass = means([sweep.bypass(p) for p in full], harmful)
    passes = (means([sweep.kl(p) for p in full], harmless) <= rule.kl_threshold) & (
        means([sweep.induce(p) for p in full], harmless) >= rule.induce_threshold
    )
    best = torch.where(passes, bypass, math.inf).min(1)
    counts: dict[Place | None, int] = {}
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        key = full[index] if value < math.inf else None
        counts[key] = counts.get(key, 0) + 1
    return [
        {
            "position": place[0] if place else None,
            "layer": place[1] if place else None,
            "share": count / resamples,
        }
        for place, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
