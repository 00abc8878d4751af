"""The tiny transformer of the elasticity theory (E6): three grammars, three stages, everything measured.

Sequences are a neutral prefix, common to all, and a continuation by one of three Markov grammars over disjoint
symbols: bulk, positive (the behaviour that alignment teaches) and negative. A two-layer transformer is pre-trained on a
60/20/20 mixture, aligned on N+ positive sequences, then given N- negative ones. AdamW and its schedule (warm-up, then
constant) are reset at each stage: carried-over moments can look like rebound.

What is measured after every stage: compression rates in bits per symbol of the continuation, on fixed held-out
sequences, so that differences are paired; the score, which is the probability of the positive grammar's
continuation after a neutral prefix; and KL(model || base) per symbol on the model's own samples.

The loop is written out because a step takes milliseconds and a trainer's own bookkeeping as long.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.experiments.elasticity_theory.results import PairedChange, TransformerRow

PREFIX, CONTINUATION = 4, 16
GRAMMARS = ("bulk", "positive", "negative")
SHARES = (0.6, 0.2, 0.2)
SYMBOLS = 15
"""Number of symbols of the prefix and of each grammar; symbol 0 begins every sequence."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Grammar:
    """A Markov chain over its own symbols, after a uniform neutral prefix."""

    offset: int
    """First symbol of the grammar."""
    transitions: Float[Tensor, "symbol next"]
    """Rows sum to 1."""

    def sample(self, n: int, generator: torch.Generator) -> Int[Tensor, "sample pos"]:
        """Sample n sequences, each of symbol 0, prefix and continuation."""
        prefix = torch.randint(1, 1 + SYMBOLS, (n, PREFIX), generator=generator)
        state = torch.randint(0, SYMBOLS, (n,), generator=generator)
        states = [state]
        for _ in range(CONTINUATION - 1):
            state = torch.multinomial(self.transitions[state], 1, generator=generator)[:, 0]
            states.append(state)
        return torch.cat(
            [torch.zeros(n, 1, dtype=torch.long), prefix, torch.stack(states, 1) + self.offset], 1
        )


def grammars(generator: torch.Generator) -> dict[str, Grammar]:
    """Bulk, positive and negative, with sparse random transitions."""
    return {
        name: Grammar(
            offset=1 + SYMBOLS * (i + 1),
            transitions=(2 * torch.randn(SYMBOLS, SYMBOLS, generator=generator)).softmax(-1),
        )
        for i, name in enumerate(GRAMMARS)
    }


def pretraining(
    sources: Mapping[str, Grammar], n: int, generator: torch.Generator
) -> Int[Tensor, "sample pos"]:
    """A shuffled mixture of the grammars in their shares."""
    rows = torch.cat(
        [sources[g].sample(round(n * s), generator) for g, s in zip(GRAMMARS, SHARES, strict=True)]
    )
    return rows[torch.randperm(len(rows), generator=generator)]


def tiny_transformer(seed: int) -> Any:
    """Two layers of width 64 over 61 symbols, randomly initialised."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=1 + SYMBOLS * 4,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=32,
                bos_token_id=0,
                eos_token_id=None,
                use_cache=False,
            )
        )


def train(
    model: Any,
    rows: Int[Tensor, "sample pos"],
    *,
    batch: int,
    learning_rate: float,
    stops: Sequence[int] = (),
    warmup: int = 2,
) -> Iterator[int]:
    """One pass over the rows in order; yields at each stop the number of rows seen."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / warmup))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        logits = model(input_ids=part[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (seen := start + len(part)) in stops:
            yield seen


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """Fixed held-out sequences that every checkpoint is measured on."""

    sequences: Mapping[str, Int[Tensor, "sample pos"]]
    """Sequences by grammar, and for `pretraining`, their mixture."""
    positive: slice
    """Symbols of the positive grammar."""

    @torch.inference_mode()
    def rates(self, model: Any) -> dict[str, Float[Tensor, " sample"]]:
        """Bits per symbol of the continuation, by set and sequence."""
        bits = {}
        for name, rows in self.sequences.items():
            logs = model(input_ids=rows[:, :-1]).logits.double().log_softmax(-1)
            own = logs.gather(-1, rows[:, 1:, None])[:, PREFIX:, 0]
            bits[name] = -own.mean(1) / np.log(2)
        return bits

    @torch.inference_mode()
    def score(self, model: Any) -> float:
        """Probability that a neutral prefix is continued by the positive grammar."""
        prefixes = self.sequences["bulk"][:, : 1 + PREFIX]
        return float(
            model(input_ids=prefixes).logits[:, -1].double().softmax(-1)[:, self.positive].sum(-1).mean()
        )

    @torch.inference_mode()
    def kl(self, model: Any, base: Any, generator: torch.Generator, *, samples: int = 48) -> float:
        """KL(model || base) in nats per symbol, on the model's own samples."""
        rows = self.sequences["bulk"][:samples, : 1 + PREFIX]
        for _ in range(CONTINUATION):
            step = model(input_ids=rows).logits[:, -1].softmax(-1)
            rows = torch.cat([rows, torch.multinomial(step, 1, generator=generator)], 1)
        p, q = (m(input_ids=rows[:, :-1]).logits[:, PREFIX:].double().log_softmax(-1) for m in (model, base))
        return float((p.exp() * (p - q)).sum(-1).mean())


def held_out(sources: Mapping[str, Grammar], generator: torch.Generator, *, n: int = 256) -> HeldOut:
    """Held-out sequences of each grammar and of the mixture."""
    sequences = {name: source.sample(n, generator) for name, source in sources.items()}
    sequences["pretraining"] = pretraining(sources, n, generator)
    offset = sources["positive"].offset
    return HeldOut(sequences=sequences, positive=slice(offset, offset + SYMBOLS))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the three stages."""

    pretraining: tuple[int, ...]
    """N_p: sequences, one model each."""
    positives: tuple[int, ...]
    """N+."""
    negatives: tuple[int, ...]
    """N-, ascending from 0."""
    learning_rate: float = 3e-3
    """Learning rate of pre-training; the later stages use a third of it."""


def life_cycle(sizes: Sizes, *, seed: int) -> tuple[TransformerRow, ...]:
    """All stages of one seed: a row per (N_p, N+, N-) with score, KL and rates, and how far N- moved the rates."""
    generator = torch.Generator().manual_seed(seed)
    sources = grammars(generator)
    measured = held_out(sources, generator)
    rows: list[TransformerRow] = []
    for n_p in sizes.pretraining:
        base = _pretrained(sizes, pretraining(sources, n_p, generator), seed)
        base_score, base_rates = measured.score(base), _means(measured.rates(base))
        for n_plus in sizes.positives:
            model = copy.deepcopy(base)
            positive = sources["positive"].sample(n_plus, generator)
            _to_the_end(train(model, positive, batch=25, learning_rate=sizes.learning_rate / 3))
            start = measured.rates(model)
            negative = sources["negative"].sample(max(sizes.negatives), generator)
            stops = train(
                model, negative, batch=25, learning_rate=sizes.learning_rate / 3, stops=sizes.negatives
            )
            for n_minus in itertools.chain([0], stops):  # lazily: the model changes between stops
                now = measured.rates(model)
                rows.append(
                    TransformerRow(
                        seed=seed,
                        n_p=n_p,
                        n_plus=n_plus,
                        n_minus=n_minus,
                        score=measured.score(model),
                        base_score=base_score,
                        kl=measured.kl(model, base, generator),
                        rates=_means(now),
                        base_rates=base_rates,
                        change_a=_paired_change(now["positive"], start["positive"]),
                        change_p=_paired_change(now["pretraining"], start["pretraining"]),
                    )
                )
    return tuple(rows)


def _pretrained(sizes: Sizes, rows: Int[Tensor, "sample pos"], seed: int) -> Any:
    model = tiny_transformer(seed)
    _to_the_end(train(model, rows, batch=64, learning_rate=sizes.learning_rate, warmup=10))
    return model.eval()


def _to_the_end(steps: Iterator[int]) -> None:
    for _ in steps:
        pass


def _means(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(v.mean()) for name, v in values.items()}


def _paired_change(now: Float[Tensor, " sample"], start: Float[Tensor, " sample"]) -> PairedChange:
    difference = now - start
    return PairedChange(mean=float(difference.mean()), sd=float(difference.std()), n=len(difference))
