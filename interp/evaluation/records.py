"""Stored results about refusals: frozen records without tensors, readable without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from interp.stats import Estimate

Group = Literal["refused harmful", "accepted harmful", "refused harmless", "accepted harmless"]
"""A behaviour group: the kind of a prompt crossed with the model's behaviour."""
GROUPS: tuple[Group, ...] = get_args(Group)
RefusalList = Literal["normalised", "arditi", "zhao"]
"""Name of a list of refusal substrings: ours, or a published one by its first author."""
REFUSAL_LISTS: tuple[RefusalList, ...] = get_args(RefusalList)
MIN_IN_GROUP = 5
"""Minimum prompts of a group for a claim about it."""


@dataclass(frozen=True, kw_only=True)
class RefusalRates:
    """Shares of completions that refuse, by the two published substring lists."""

    arditi: Estimate
    """Refusal rate by the 12 substrings of Arditi et al. 2024."""
    zhao: Estimate
    """Refusal rate by the 24 substrings of Zhao et al. 2025; an empty reply is a refusal."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Whether the completion of one prompt refuses."""

    id: str
    """Id of the prompt."""
    refused: bool


@dataclass(frozen=True, kw_only=True)
class BehavingCount:
    """Number of prompts of a kind on which the model behaves as an aligned model would."""

    behaving: int
    """Number of harmful prompts that are refused, or of harmless ones that are answered."""
    of: int
    """Number of prompts in total."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A completion, as stored by a stage."""

    text: str
    """Text of the completion without special tokens."""
    ids: tuple[int, ...]
    """Token ids of the completion."""
    finished: bool
    """Whether the model ended it, instead of being cut at the maximum number of tokens."""


@dataclass(frozen=True, kw_only=True)
class RefusalTokens:
    """The tokens that begin a model's refusals."""

    ids: tuple[int, ...]
    """Ids of the refusal tokens."""
    texts: tuple[str, ...]
    """The decoded tokens."""
    harmful_mass: tuple[float, ...]
    """Mean probability of each as the first token on harmful prompts."""
    harmless_mass: tuple[float, ...]
    """Mean probability of each as the first token on harmless prompts."""

    def __str__(self) -> str:
        """The tokens with their probabilities, for reports."""
        return ", ".join(
            f"{text!r} ({harmful:.2f} on harmful, {harmless:.2f} on harmless)"
            for text, harmful, harmless in zip(self.texts, self.harmful_mass, self.harmless_mass, strict=True)
        )
