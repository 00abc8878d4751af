"""The GLTR view of a text: each token coloured by the rank that the model gives it, and three histograms.

    view = gltr(model, text)        # in a notebook cell: the text in colours, ranks and probabilities on hover
    gltr_figure(view)               # ranks, probability ratios, and entropies of the ten likeliest tokens

Machine-written text tends to be green throughout; people use more tokens from further down. A colour is no verdict.

Source: Gehrmann et al. 2019, arXiv:1906.04043: rank buckets of 10, 100 and 1,000; the probability of the token over
that of the likeliest; the entropy of the ten likeliest, renormalised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.detectors.machine_text.rank_strips import BUCKET_NAMES, BUCKETS, MAX_TOKENS, rank_strip
from interp.detectors.machine_text.reading import check_finite, map_texts, token_ids
from interp.detectors.machine_text.scores import distribution_columns
from interp.display.cards import Card, Shown, Table, shortened
from interp.models.chat_model import ChatModel

_TOP = 10


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GltrView(Shown):
    """One text as the model sees it, token by token."""

    model: str
    """Name of the model."""
    tokens: tuple[str, ...]
    """The scored tokens as text."""
    context: str
    """Text before the first scored token."""
    ranks: Int[Tensor, " token"]
    """Rank of each token among all, 1 is the likeliest."""
    probabilities: Float[Tensor, " token"]
    """Probability of each token, between 0 and 1."""
    ratios: Float[Tensor, " token"]
    """Probability of each token over that of the likeliest, between 0 and 1."""
    top_entropies: Float[Tensor, " token"]
    """Entropy of the ten likeliest tokens, renormalised, in nats; at most log 10."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def buckets(self) -> Int[Tensor, " token"]:
        """Rank bucket of each token, 0 to 3."""
        return torch.bucketize(self.ranks, torch.tensor(BUCKETS))

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the tokens in each bucket."""
        return tuple(float((self.buckets == bucket).float().mean()) for bucket in range(len(BUCKET_NAMES)))

    def strip(self) -> str:
        """The text as HTML, coloured by bucket, with rank and probability on hover."""
        return rank_strip(self.tokens, self.ranks.tolist(), self.probabilities.tolist(), context=self.context)

    def _repr_html_(self) -> str:
        more = len(self) - MAX_TOKENS
        note = f"<p>and {more} more tokens</p>" if more > 0 else ""
        return self._card().html() + self.strip() + note

    def _card(self) -> Card:
        rows = [
            [name, int((self.buckets == number).sum()), share]
            for number, (name, share) in enumerate(zip(BUCKET_NAMES, self.shares, strict=True))
        ]
        return Card(
            title=f"GLTR: {len(self)} tokens under {self.model}",
            facts={"text": shortened(self.context + "".join(self.tokens))},
            tables=[Table(header=["rank", "tokens", "share"], rows=rows)],
            notes=[
                "Colours show ranks: green 10, yellow 100, red 1,000, purple beyond. They are no verdict."
            ],
        )


def gltr(model: ChatModel, text: str) -> GltrView:
    """The GLTR view of one text, from one forward pass.

    Raises:
        ValueError: a text of fewer than two tokens, or log-probabilities that are not finite.
    """
    ids = token_ids([model], [text])
    (part,) = map_texts([model], ids, _columns)
    check_finite(part.values, 0)
    log_probs, ranks, top, entropies = part.values.unbind(1)
    decoded = [str(model.tokenizer.decode([token])) for token in ids[0]]
    first = len(ids[0]) - len(log_probs)
    return GltrView(
        model=model.name,
        tokens=tuple(decoded[first:]),
        context="".join(decoded[:first]),
        ranks=ranks.long(),
        probabilities=log_probs.exp(),
        ratios=(log_probs - top).exp(),
        top_entropies=entropies,
    )


def _columns(
    logits: Sequence[Float[Tensor, "position d_vocab"]], ids: Int[Tensor, " position"]
) -> Float[Tensor, "position column"]:
    columns = distribution_columns(logits[:1], ids)
    top = logits[0].topk(min(_TOP, logits[0].shape[1])).values.log_softmax(-1)
    entropies = -(top.exp() * top).sum(-1)
    return torch.stack([columns[:, 0], columns[:, 1], columns[:, 5], entropies], dim=1)
