"""The SynthID watermark of transformers in `generate`, and a detector of it that needs no training.

    mark = SynthIdMark(keys=(654, 400, 836, 123))
    marked = generate(model, prompts, temperature=1.0, max_new_tokens=200, processors=[mark])
    detect_synthid(mark, marked.ids[0]).z

A hash of the last tokens and of each key gives every candidate token a bit g, one a key; tournament sampling prefers
tokens with g = 1 and leaves the distribution as it is on average over keys. Without the mark bits are fair coins.

Hashes, bits and changed probabilities are those of transformers' `SynthIDTextWatermarkLogitsProcessor`, computed on the
CPU for every device. Its processor counts calls, and so needs batches whose rows end together; here the context is read
from each row. Hence the prompt is context too, where transformers begins with zeros and cannot detect the first tokens.
transformers' own detector is a classifier that is trained for each model (`BayesianDetectorModel`); this one counts.

Source: Dathathri et al. 2024, Nature 634, "Scalable watermarking for identifying large language model outputs": two
candidates a layer; weighted mean of g with weights falling from 10 to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from transformers import SynthIDTextWatermarkingConfig, SynthIDTextWatermarkLogitsProcessor

from interp.display.cards import Card, Shown


@dataclass(frozen=True, kw_only=True)
class SynthIdMark:
    """A SynthID watermark with its keys; a logits processor for `generate`."""

    keys: tuple[int, ...] = field(repr=False)
    """The secret keys, positive integers, one a layer of the tournament (20 to 30 in use)."""
    ngram: int = 5
    """Tokens that decide a bit, the marked one included."""
    table_size: int = 2**16
    """Random bits that hashes are looked up in."""
    table_seed: int = 0
    """Seed of these bits."""
    history: int = 1024
    """Preceding contexts in which a repeated one is looked for; a repeated one is not marked again."""

    def __post_init__(self) -> None:
        wrong = [k for k in self.keys if isinstance(k, bool) or not isinstance(k, int) or not 0 < k < 2**63]
        if not self.keys or wrong or len(set(self.keys)) < len(self.keys):
            raise ValueError(
                "a SynthID watermark is made and found with secret keys, distinct positive integers, one a layer; got "
                f"{self.keys!r}; give keys="
            )
        if self.ngram < 2 or self.table_size < 2 or self.history < 1:
            raise ValueError(
                f"ngram and table_size must be 2 or more and history 1 or more, got {self.ngram}, {self.table_size} "
                f"and {self.history}"
            )

    @property
    def config(self) -> SynthIDTextWatermarkingConfig:
        """The same watermark for transformers' own `generate`."""
        return SynthIDTextWatermarkingConfig(
            ngram_len=self.ngram,
            keys=list(self.keys),
            sampling_table_size=self.table_size,
            sampling_table_seed=self.table_seed,
            context_history_size=self.history,
        )

    @cached_property
    def _theirs(self) -> SynthIDTextWatermarkLogitsProcessor:
        # It does not use the size of the vocabulary.
        made = self.config.construct_processor(0, torch.device("cpu"))
        assert isinstance(made, SynthIDTextWatermarkLogitsProcessor)
        return made

    def bits(self, ngrams: Int[Tensor, "ngram token"]) -> Int[Tensor, "ngram layer"]:
        """The bit of each n-gram at each layer."""
        theirs = self._theirs
        hashes = theirs.compute_ngram_keys(ngrams[None])  # pyright: ignore[reportArgumentType]
        return theirs.sample_g_values(hashes)[0]

    def __call__(
        self, so_far: Sequence[Sequence[int]], logits: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """The changed log-probabilities; a row with too few tokens, or a repeated context, is left as it is."""
        rows = [self._row(ids, row) for ids, row in zip(so_far, logits, strict=True)]
        return torch.stack(rows)

    def _row(self, ids: Sequence[int], logits: Float[Tensor, " d_vocab"]) -> Float[Tensor, " d_vocab"]:
        width = self.ngram - 1
        if len(ids) < width or not self.new_contexts((*ids, 0))[-1]:
            return logits
        candidates = logits.isfinite().nonzero()[:, 0]  # others have no probability, whatever their bits
        before = torch.tensor(list(ids)[-width:]).expand(len(candidates), width)
        bits = self.bits(torch.cat([before, candidates.cpu()[:, None]], dim=1)).to(logits.device)
        changed = self._theirs.update_scores(logits[candidates][None], bits[None])[0]
        return logits.index_copy(0, candidates, changed)

    def new_contexts(self, ids: Sequence[int]) -> list[bool]:
        """For each n-gram of a text, whether the tokens before its last one are no repetition of recent ones."""
        width, row = self.ngram - 1, tuple(ids)
        contexts = [row[start : start + width] for start in range(len(row) - width)]
        latest = dict[tuple[int, ...], int]()
        new = list[bool]()
        for place, context in enumerate(contexts):
            new.append(place - latest.get(context, -math.inf) > self.history)
            latest[context] = place
        return new


@dataclass(frozen=True, kw_only=True, repr=False)
class SynthIdEvidence(Shown):
    """What the keys find in one text."""

    n_scored: int
    """Scored tokens: those with whole n-grams whose context is not repeated."""
    mean: float
    """Mean of the bits over tokens and layers; 0.5 without the mark."""
    weighted_mean: float
    """The same with weights that fall from 10 at the first layer to 1 at the last."""
    z: float
    """Standard deviations of the weighted mean above 0.5."""
    p_value: float
    """1 - Phi(z): the probability of such a z in text that does not know the keys."""

    def _card(self) -> Card:
        return Card(
            title=f"SynthID: z {self.z:.2f}, p {self.p_value:.2g}",
            facts={"mean bit": f"{self.mean:.3f} over {self.n_scored} tokens, 0.5 expected without the mark"},
            notes=[
                "A mark says that text was made with these keys, or copied from it; it is no proof of authorship."
            ],
        )


def detect_synthid(
    mark: SynthIdMark,
    ids: Sequence[int],
    *,
    attention_mask: Sequence[int] | None = None,
    prompt_tokens: int = 0,
) -> SynthIdEvidence:
    """Average the bits of one text.

    Args:
        ids: token ids without BOS.
        attention_mask: 1 for tokens of the text, 0 for padding, which is left out altogether.
        prompt_tokens: tokens at the beginning that were given: they are context, and are not scored.

    Raises:
        ValueError: no token to score, or a mask of another length.
    """
    if attention_mask is not None and len(attention_mask) != len(ids):
        raise ValueError(f"got {len(attention_mask)} entries of attention_mask for {len(ids)} tokens")
    if prompt_tokens < 0:
        raise ValueError(f"prompt_tokens must be 0 or more, got {prompt_tokens}")
    text = [int(i) for place, i in enumerate(ids) if attention_mask is None or attention_mask[place]]
    scored: Bool[Tensor, " ngram"] = torch.tensor(mark.new_contexts(text), dtype=torch.bool)
    scored[: max(0, prompt_tokens - mark.ngram + 1)] = False
    if not scored.any():
        raise ValueError(
            f"the text has {len(text)} tokens, {prompt_tokens} of them the prompt's, and none to score: the watermark "
            f"reads {mark.ngram} tokens; give a longer text"
        )
    bits = mark.bits(torch.tensor(text).unfold(0, mark.ngram, 1))[scored].double()
    n, layers = bits.shape
    weights = torch.linspace(10, 1, layers, dtype=torch.float64)
    weighted = float((bits * weights).mean(0).sum() / weights.sum())
    # Fair coins: the variance of the weighted mean is sum w^2 / (4 n (sum w)^2).
    z = (weighted - 0.5) * 2 * math.sqrt(n) * float(weights.sum() / weights.square().sum().sqrt())
    return SynthIdEvidence(
        n_scored=n,
        mean=float(bits.mean()),
        weighted_mean=weighted,
        z=z,
        p_value=float(stats.norm.sf(z)),
    )
