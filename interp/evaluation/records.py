"""What results hold of refusals: frozen records without tensors, read without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from interp.stats import Estimate

Group = Literal["refused harmful", "accepted harmful", "refused harmless", "accepted harmless"]
"""What a prompt is, crossed with what the model does: a behaviour group."""
GROUPS: tuple[Group, ...] = get_args(Group)
LEAST_IN_GROUP = 5
"""Prompts that a group must have before a claim is read off it."""


@dataclass(frozen=True, kw_only=True)
class RefusalRates:
    """Shares of completions that refuse, by the two published substring lists."""

    arditi: Estimate
    """12 substrings (Arditi et al. 2024)."""
    zhao: Estimate
    """24 substrings, or an empty reply (Zhao et al. 2025)."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Whether the completion of one prompt refuses."""

    id: str
    """The prompt's."""
    refused: bool


@dataclass(frozen=True, kw_only=True)
class BehavingCount:
    """How many prompts of a kind the model treats as an aligned model would."""

    behaving: int
    """Harmful prompts that are refused, or harmless ones that are answered."""
    of: int
    """Prompts asked."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A finished completion, as a stage keeps it."""

    text: str
    """Special tokens left out."""
    ids: tuple[int, ...]
    """Token ids."""
    finished: bool
    """Ended by itself and not at the largest number of tokens."""


@dataclass(frozen=True, kw_only=True)
class RefusalTokens:
    """The tokens that begin a model's refusals."""

    ids: tuple[int, ...]
    """Token ids."""
    texts: tuple[str, ...]
    """The same, decoded, to be shown."""
    harmful_mass: tuple[float, ...]
    """Mean probability of each as the first token on harmful prompts."""
    harmless_mass: tuple[float, ...]
    """The same on harmless prompts."""
