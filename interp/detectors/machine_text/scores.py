"""Zero-shot scores of machine-written text, as functions of the next-token distributions at its tokens.

Notation: token x_t of a text, s_t the scoring model's distribution of it, p_t that of a reference model (the scoring
model itself where there is none), mu_t and var_t mean and variance of log s_t under p_t, r_t = 1 + the number of tokens
that s_t holds more likely. Natural logarithms; means are over the scored tokens. `SCORES` says on which side of each
score machine-written text is expected to be.

| score | formula | source |
|---|---|---|
| likelihood | mean log s_t(x_t) | Solaiman et al. 2019, arXiv:1908.09203 |
| perplexity | exp(-likelihood) | |
| rank, log_rank | mean r_t, mean log r_t | Gehrmann et al. 2019, arXiv:1906.04043; Mitchell et al. 2023 |
| entropy | mean of the entropy of s_t | Gehrmann et al. 2019 |
| lrr | -sum log s_t(x_t) / sum log r_t | Su et al. 2023, arXiv:2306.05540, "LRR" |
| fast_detect_gpt | sum (log s_t(x_t) - mu_t) / sqrt(sum var_t) | Bao et al. 2024, arXiv:2310.05130 |
| binoculars | mean log s_t(x_t) / mean mu_t | Hans et al. 2024, arXiv:2401.12070 |
| binoculars_observer | mean log p_t(x_t) / mean mu_t | |
| burstiness | standard deviation of log s_t(x_t) | |
| intrinsic_dimension | persistent homology dimension of final states | Tulchinskii et al. 2023, arXiv:2306.04723 |

In Binoculars the reference is the observer and the scoring model the performer. The released code averages the
denominator over one position more than the numerator, the one after the last token; here both are over the same.
Thresholds published with a score hold for its models, length and kind of text alone: calibrate
(`interp.detectors.machine_text.detector`).

The sign of entropy depends on the domain: published AUROCs lie on both sides of 0.5 (Su et al. 2023, table 1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.display.cards import Card, Shown, Table


class Score(NamedTuple):
    """How a score is read."""

    title: str
    """Name in tables and figures."""
    sign: int
    """1 where machine-written text is expected to score higher, -1 where lower."""
    paired: bool = False
    """Whether it needs a reference model."""


SCORES: Mapping[str, Score] = {
    "likelihood": Score("log-likelihood", 1),
    "perplexity": Score("perplexity", -1),
    "rank": Score("rank", -1),
    "log_rank": Score("log-rank", -1),
    "entropy": Score("entropy", 1),
    "lrr": Score("LRR", 1),
    "fast_detect_gpt": Score("Fast-DetectGPT", 1),
    "binoculars": Score("Binoculars", -1, paired=True),
    "binoculars_observer": Score("Binoculars, observer's numerator", -1, paired=True),
    "burstiness": Score("burstiness", -1),
    "intrinsic_dimension": Score("intrinsic dimension", -1),
}
"""Every score by name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenScores:
    """What a text's scores are made of: a few numbers a token, float32, on the CPU."""

    ids: Int[Tensor, " token"]
    """The scored tokens."""
    log_probs: Float[Tensor, " token"]
    """log s_t(x_t), in nats."""
    ranks: Float[Tensor, " token"]
    """r_t: 1 is the likeliest token; tied tokens do not count as more likely."""
    entropies: Float[Tensor, " token"]
    """Entropy of s_t, in nats."""
    means: Float[Tensor, " token"]
    """mu_t: mean of log s_t under p_t, in nats."""
    variances: Float[Tensor, " token"]
    """Variance of log s_t under p_t, in squared nats."""
    top_log_probs: Float[Tensor, " token"]
    """log of the highest probability of s_t, in nats."""
    reference_log_probs: Float[Tensor, " token"] | None
    """log p_t(x_t), in nats; None without a reference model."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_columns(cls, ids: Int[Tensor, " token"], columns: Float[Tensor, "token column"]) -> "TokenScores":
        """The scores from what `distribution_columns` gives."""
        named = dict(zip(COLUMNS, columns.unbind(1), strict=False))
        return cls(ids=ids, **{name: named.get(name) for name in COLUMNS})  # pyright: ignore[reportArgumentType]

    @classmethod
    def of_logits(
        cls,
        logits: Float[Tensor, "token d_vocab"],
        ids: Int[Tensor, " token"],
        reference: Float[Tensor, "token d_vocab"] | None = None,
    ) -> "TokenScores":
        """The scores from the logits that each token comes from.

        Args:
            reference: logits of the reference model; None is the scoring model itself.
        """
        both = [part.detach().float() for part in (logits, reference) if part is not None]
        return cls.of_columns(ids.cpu(), distribution_columns(both, ids).cpu())


COLUMNS = (
    "log_probs",
    "ranks",
    "entropies",
    "means",
    "variances",
    "top_log_probs",
    "reference_log_probs",
)
"""Columns of `distribution_columns`; the last one only with a reference model."""


def distribution_columns(
    logits: Sequence[Float[Tensor, "position d_vocab"]], ids: Int[Tensor, " position"]
) -> Float[Tensor, "position column"]:
    """What `TokenScores` holds of the distributions at some positions, as a `PositionReducer`.

    Args:
        logits: float32, of the scoring model and, where there is one, of the reference model.
    """
    token = ids[:, None]
    # Written into floats: a sum of booleans, which are first made integers, takes five times as long on a CPU.
    ahead = torch.gt(logits[0], logits[0].gather(1, token), out=torch.empty_like(logits[0]))
    ranks = 1 + ahead.sum(1)  # exact up to 2^24
    log_s = logits[0].log_softmax(-1)
    chosen = [log_s.gather(1, token)[:, 0]]
    weights = log_s.exp()
    own_mean = _mean_under(weights, log_s)
    means = own_mean
    if len(logits) > 1:
        log_p = logits[1].log_softmax(-1)
        chosen.append(log_p.gather(1, token)[:, 0])
        weights = log_p.exp()
        means = _mean_under(weights, log_s)
    # Around the mean: the difference of two large sums would lose the digits of peaked distributions.
    variances = (log_s - means[:, None]).square_().mul_(weights).sum(1)
    columns = [chosen[0], ranks, -own_mean, means, variances, log_s.amax(1), *chosen[1:]]
    return torch.stack(columns, dim=1)


def _mean_under(
    weights: Float[Tensor, "position d_vocab"], values: Float[Tensor, "position d_vocab"]
) -> Float[Tensor, " position"]:
    return (weights * values).sum(1)  # a third of the time of an einsum of batched products of vectors


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TextScores(Shown):
    """All scores of one text."""

    n_tokens: int
    """Scored tokens."""
    values: Mapping[str, float]
    """Scores by their name in `SCORES`, as published, so that some are lower for machine-written text; NaN where a
    score is undefined (LRR of a text whose every token is the likeliest, the dimension of a short one)."""

    def __getitem__(self, name: str) -> float:
        if name not in self.values:
            paired = name in SCORES and SCORES[name].paired
            reason = "it needs a reference model" if paired else f"known: {', '.join(self.values)}"
            raise ValueError(f"no score {name!r}; {reason}")
        return self.values[name]

    def oriented(self, name: str) -> float:
        """The score with the sign by which machine-written text is expected to be higher."""
        return SCORES[name].sign * self[name]

    def _card(self) -> Card:
        rows = [
            [SCORES[name].title, value, "higher" if SCORES[name].sign > 0 else "lower"]
            for name, value in self.values.items()
        ]
        return Card(
            title=f"Scores of a text of {self.n_tokens} tokens",
            tables=[Table(header=["score", "value", "machine-written text is"], rows=rows)],
            notes=[
                "Scores mean something against texts of known origin, of the same length and kind, alone."
            ],
        )


def text_scores(tokens: TokenScores, *, intrinsic_dimension: float | None = None) -> TextScores:
    """The scores of a text from those of its tokens; sums in float64.

    Args:
        intrinsic_dimension: of the text's final states; None leaves it out.
    """
    log_probs, ranks = tokens.log_probs.double(), tokens.ranks.double()
    means, log_ranks = tokens.means.double(), tokens.ranks.double().log()
    likelihood = float(log_probs.mean())
    values = {
        "likelihood": likelihood,
        "perplexity": math.exp(min(-likelihood, 700.0)),
        "rank": float(ranks.mean()),
        "log_rank": float(log_ranks.mean()),
        "entropy": float(tokens.entropies.double().mean()),
        "lrr": _ratio(-float(log_probs.sum()), float(log_ranks.sum())),
        "fast_detect_gpt": _ratio(
            float((log_probs - means).sum()), math.sqrt(float(tokens.variances.double().sum()))
        ),
    }
    if tokens.reference_log_probs is not None:
        observed = float(tokens.reference_log_probs.double().mean())
        values["binoculars"] = _ratio(likelihood, float(means.mean()))
        values["binoculars_observer"] = _ratio(observed, float(means.mean()))
    values["burstiness"] = float(log_probs.std(correction=0))
    if intrinsic_dimension is not None:
        values["intrinsic_dimension"] = intrinsic_dimension
    return TextScores(n_tokens=len(tokens), values=values)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
