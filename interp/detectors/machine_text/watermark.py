"""The green-list watermark: a secret key decides which tokens are favoured after each context.

Before each generated token a hash of the key and the preceding tokens draws gamma of the vocabulary as green; green
logits are raised by delta (hard variant, delta infinite: red tokens are excluded). Whoever has the key counts green
tokens (`interp.detectors.machine_text.watermark_detection`); no model is needed for that.

    watermark = Watermark.of_model(model, key=7919)
    marked = generate(model, prompts, temperature=1.0, max_new_tokens=200, processors=[watermark])
    found_in = detect_watermark(watermark, marked.ids[0])
    found_in.z, found_in.p_value

Green lists are those of transformers' `WatermarkLogitsProcessor` on the CPU, so that text marked there is detected here
and the other way round. A list is drawn on the CPU whatever device the model is on: generators of other devices draw
other lists, and text marked on a GPU would be found on that kind of GPU alone. With `lefthash` the list after token 0
does not depend on the key, since the seed is their product.

The vocabulary is the tokenizer's, at generation and at detection; transformers takes the model's, which may have
padding rows. To detect text that transformers marked, give the model's `vocab_size`.

Source: Kirchenbauer et al. 2023, arXiv:2301.10226, algorithms 1 to 3; Kirchenbauer et al. 2024, arXiv:2306.04634.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import WatermarkingConfig, WatermarkLogitsProcessor

from interp.detectors.detector import Self
from interp.engine.log_probs import token_count
from interp.models.chat_model import ChatModel
from interp.storage.sealed_json import read_sealed, write_sealed
from interp.storage.typed_json import from_plain

Seeding = Literal["lefthash", "selfhash"]
_CANDIDATES = 40
"""Likeliest tokens that `selfhash` tries, each of which needs a green list of its own; as released."""
_CACHED_BYTES = 2**26
_FILE_FORMAT = "interp-watermark"
_FILE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class _File:
    """Content of a watermark's file."""

    key: int
    vocab_size: int
    gamma: float
    delta: float | None
    context_width: int
    seeding: Seeding


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """A green-list watermark with its key; a logits processor for `generate`."""

    key: int | None = field(repr=False)
    """The secret key, a positive integer; whoever has it can detect the mark, and can put it on text of any origin."""
    vocab_size: int
    """Tokens that can be green; ids beyond it are never favoured."""
    gamma: float = 0.25
    """Share of the vocabulary that is green, between 0 and 1."""
    delta: int | float = 2.0
    """What is added to green logits, in nats; infinite excludes red tokens."""
    context_width: int = 1
    """Number of tokens that the hash reads; with `selfhash` the marked token is one of them."""
    seeding: Seeding = "lefthash"
    """`lefthash` hashes the token before the marked one, `selfhash` the marked one and those before it."""

    def __post_init__(self) -> None:
        if isinstance(self.key, bool) or not isinstance(self.key, int) or not 0 < self.key < 2**63:
            raise ValueError(
                "a watermark is made and found with a secret key, a positive integer below 2**63, got "
                f"{self.key!r}; give key="
            )
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must lie between 0 and 1, got {self.gamma}")
        if not self.delta >= 0:
            raise ValueError(f"delta must be 0 or more, got {self.delta}")
        if self.context_width < 1:
            raise ValueError(f"context_width must be 1 or more, got {self.context_width}")
        if self.seeding not in ("lefthash", "selfhash"):
            raise ValueError(f"unknown seeding {self.seeding!r}; known: lefthash, selfhash")
        if int(self.gamma * self.vocab_size) < 1:
            raise ValueError(
                f"a vocabulary of {self.vocab_size} has no green token at gamma {self.gamma}; raise it"
            )

    @classmethod
    def of_model(
        cls,
        model: ChatModel,
        *,
        key: int | None,
        gamma: float = 0.25,
        delta: int | float = 2.0,
        context_width: int = 1,
        seeding: Seeding = "lefthash",
    ) -> Self:
        """A watermark over the vocabulary of a model's tokenizer.

        Raises:
            ValueError: no key, or a value out of range.
        """
        return cls(
            key=key,
            vocab_size=token_count(model),
            gamma=gamma,
            delta=delta,
            context_width=context_width,
            seeding=seeding,
        )

    @property
    def config(self) -> WatermarkingConfig:
        """The same watermark for transformers' own `generate` and `WatermarkDetector`.

        Raises:
            ValueError: the hard variant, which transformers does not have.
        """
        if math.isinf(self.delta):
            raise ValueError("transformers has no hard watermark; give a finite delta")
        return WatermarkingConfig(
            greenlist_ratio=self.gamma,
            bias=self.delta,
            hashing_key=self.key or 0,
            seeding_scheme=self.seeding,
            context_width=self.context_width,
        )

    @property
    def ngram(self) -> int:
        """Number of tokens, the marked one included, that decide whether it is green."""
        return self.context_width + (self.seeding == "lefthash")

    @cached_property
    def _lists(self) -> "_GreenLists":
        return _GreenLists(self)

    def is_green(self, ngram: Sequence[int]) -> bool:
        """Whether the last token of these `ngram` tokens is green.

        Raises:
            ValueError: a token beyond the vocabulary, or another number of tokens.
        """
        if len(ngram) != self.ngram:
            raise ValueError(f"this watermark reads {self.ngram} tokens, got {len(ngram)}")
        if unknown := [token for token in ngram if not 0 <= token < self.vocab_size]:
            raise ValueError(
                f"token {unknown[0]} is not in the watermark's vocabulary of {self.vocab_size}; give tokens of the "
                "tokenizer that it was made for"
            )
        context = ngram if self.seeding == "selfhash" else ngram[:-1]
        return bool(self._lists.mask(context)[ngram[-1]])

    def green_after(
        self, context: Sequence[int], logits: Float[Tensor, " d_vocab"]
    ) -> Bool[Tensor, " d_vocab"]:
        """Tokens that are favoured after this context: none where it is too short.

        Args:
            logits: of the next token; `selfhash` tries the likeliest 40.
        """
        size = min(self.vocab_size, len(logits))
        green = torch.zeros(len(logits), dtype=torch.bool)
        if len(context) < self.context_width:
            return green
        if self.seeding == "lefthash":
            green[:size] = self._lists.mask(context)[:size]
            return green
        likeliest = logits[:size].sort(descending=True).indices[:_CANDIDATES].tolist()
        before = tuple(context)[len(context) - self.context_width + 1 :]
        green[[token for token in likeliest if self._lists.mask((*before, token))[token]]] = True
        return green

    def __call__(
        self, so_far: Sequence[Sequence[int]], logits: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """The logits with the green ones raised; a row without a green token is left as it is."""
        green = torch.stack([self.green_after(ids, row) for ids, row in zip(so_far, logits, strict=True)])
        green = green.to(logits.device)
        if math.isinf(self.delta):
            return logits.masked_fill(~green & green.any(1, keepdim=True), -math.inf)
        return torch.where(green, logits + self.delta, logits)

    def save(self, path: str | Path) -> Path:
        """Write the watermark with its key to one JSON file; keep it as secret as the key."""
        delta = None if math.isinf(self.delta) else self.delta
        return write_sealed(path, _FILE_FORMAT, _FILE_VERSION, {**asdict(self), "delta": delta})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a watermark that `save` wrote.

        Raises:
            ValueError: no such file, a damaged one, one without a key, or one of a newer format.
        """
        remedy = "make one with Watermark.save"
        about = read_sealed(path, _FILE_FORMAT, _FILE_VERSION, what="a watermark", remedy=remedy)
        if about.get("key") is None:
            raise ValueError(
                f"{path} has no key; a watermark is found only with the key that it was made with"
            )
        stored = from_plain(_File, about, source=str(path))
        return cls(
            key=stored.key,
            vocab_size=stored.vocab_size,
            gamma=stored.gamma,
            delta=math.inf if stored.delta is None else stored.delta,
            context_width=stored.context_width,
            seeding=stored.seeding,
        )


class _GreenLists:
    """Green lists as masks over the vocabulary, the most recent ones kept."""

    def __init__(self, watermark: Watermark) -> None:
        self._drawn = WatermarkLogitsProcessor(
            watermark.vocab_size,
            "cpu",
            greenlist_ratio=watermark.gamma,
            hashing_key=watermark.key or 0,
            seeding_scheme=watermark.seeding,
            context_width=watermark.context_width,
        )
        # What the seed is made from: with lefthash one token, however wide the context.
        self._read = 1 if watermark.seeding == "lefthash" else watermark.context_width
        self._size, self._kept = watermark.vocab_size, OrderedDict[tuple[int, ...], Tensor]()
        self._most = max(16, _CACHED_BYTES // watermark.vocab_size)
        self._lock = Lock()  # drawing a list sets the seed of one generator

    def mask(self, context: Sequence[int]) -> Bool[Tensor, " d_vocab"]:
        """The green tokens after a context; with selfhash the context holds the marked token."""
        key = tuple(context)[-self._read :]
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            mask = torch.zeros(self._size, dtype=torch.bool)
            # The one call of transformers that gives a list for a context; tests compare it with the public classes.
            green = self._drawn._get_greenlist_ids(torch.tensor(key))  # pyright: ignore[reportArgumentType]
            mask[green] = True
            self._kept[key] = mask
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return mask
