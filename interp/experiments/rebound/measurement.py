"""What rebound measures at a checkpoint: behaviour, compression rates, KL to the base, and the shift along directions.

The directions (harmfulness, refusal, and controls that are not about safety) are fitted at the aligned model, N- = 0,
and followed from there to the checkpoints after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.corpora import Corpus
from interp.data.prompts import HELD_OUT_TEXT, PromptSet
from interp.data.tasks import Task
from interp.engine.generation import generate
from interp.engine.log_probs import map_completions
from interp.evaluation.compression import bits
from interp.evaluation.losses import token_kl
from interp.evaluation.scorers import Scorer
from interp.experiments.rebound import Behaviour, Config, Point, Shift
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.stats import rate
from interp.tracking.measures import along, read_states, tokenised
from interp.tracking.references import fit_reference
from interp.tracking.spec import Reference, TrackingSpec


class Aligned(NamedTuple):
    """Values of the aligned model (N- = 0) that later checkpoints are compared with."""

    reference: Reference
    """Directions, and the aligned model's projections on them."""
    base: dict[str, Float[Tensor, " prompt"]]
    """Direction → projection of the activations of the model before alignment."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """Measures checkpoints of one base model."""

    base: ChatModel
    """The model before alignment."""
    task: Task
    """Prompts that are scored, and held-out examples."""
    scorer: Scorer
    """Replies → whether each shows the behaviour."""
    prompts: PromptSet
    """Prompts whose activations are read."""
    config: Config

    @cached_property
    def spec(self) -> TrackingSpec:
        """Specification of how activations are read."""
        n = max(self.config.n_states, 1)
        return TrackingSpec(prompts=self.prompts, measures=("shift",), n=n, n_fit=self.config.n_fit)

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """Held-out text, by the names of `CORPORA`."""
        return {**self.task.corpora, "prose": Corpus("prose", (HELD_OUT_TEXT.read_text(),))}

    def behaviour(self, model: ChatModel, seed: int) -> Behaviour:
        """Score and compression rates of a model."""
        replies = generate(model, self.task.prompts, max_new_tokens=self.config.max_new_tokens, seed=seed)
        codes = {
            name: bits(model, corpus, n_documents=self.config.n_documents)
            for name, corpus in self.corpora.items()
        }
        return Behaviour(
            rate=rate(self.scorer(replies.texts)),
            bits_per_byte={name: tuple((code.bits / code.bytes).tolist()) for name, code in codes.items()},
        )

    def aligned(self, adapter: Path) -> Aligned:
        """Directions fitted at an aligned checkpoint."""
        with with_adapter(self.base, str(adapter)) as model:
            reference = fit_reference(model, self.spec)
        return Aligned(reference, self._projections(self.base, reference))

    def point(
        self,
        adapter: Path,
        aligned: Callable[[], Aligned],
        *,
        n_plus: int,
        n_minus: int,
        seed: int,
        base_score: float,
    ) -> Point:
        """Everything at one checkpoint.

        Args:
            aligned: gives what the aligned model fixes; asked only where the representation side is measured.
        """
        fixed = aligned() if self.config.n_states else None
        with with_adapter(self.base, str(adapter)) as model:
            behaviour = self.behaviour(model, seed)
            ids, log_p = self._samples(model, seed)
            projections = self._projections(model, fixed.reference) if fixed else {}
        return Point(
            seed=seed,
            n_plus=n_plus,
            n_minus=n_minus,
            behaviour=behaviour,
            kl=self._kl_to_base(ids, log_p),
            shifts=_shifts(fixed, projections) if fixed else {},
            base_score=base_score,
        )

    def _samples(self, model: ChatModel, seed: int) -> tuple[list[list[int]], list[Tensor]]:
        """The checkpoint's own samples, and its log-probabilities at each of their tokens."""
        texts = self.task.prompts[: self.config.n_kl]
        sampled = generate(
            model, texts, temperature=1.0, seed=seed, max_new_tokens=self.config.max_new_tokens
        )
        ids = [list(row) for row in sampled.ids]
        return ids, map_completions(model, texts, ids, lambda logs, _: logs.half())

    def _kl_to_base(self, ids: list[list[int]], log_p: list[Tensor]) -> float:
        """Mean over tokens of KL(checkpoint || base), nats, on the checkpoint's own samples."""
        divergences = token_kl(self.base, self.task.prompts[: self.config.n_kl], ids, log_p)
        return float(torch.cat(divergences).double().mean())

    def _projections(self, model: ChatModel, reference: Reference) -> dict[str, Float[Tensor, " prompt"]]:
        """Harmful test prompts projected on each direction of the aligned model, in that direction's lengths."""
        states = read_states(model, tokenised(model, self.spec, ("test",)))["harmful", "test"]
        return {axis.name: along(reference, axis, states).double() for axis in reference.axes}


def _shifts(fixed: Aligned, projections: dict[str, Float[Tensor, " prompt"]]) -> dict[str, Shift]:
    shifts = {}
    for axis in fixed.reference.axes:
        base = fixed.base[axis.name]
        at_aligned = fixed.reference.tensors[f"test/{axis.name}/harmful"].double()
        shifts[axis.name] = Shift(
            layer=axis.layer,
            about=axis.about,
            since_base=tuple((projections[axis.name] - base).tolist()),
            at_aligned=tuple((at_aligned - base).tolist()),
        )
    return shifts
