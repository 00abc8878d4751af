"""What results hold of contrasts: frozen records without tensors, read without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from interp.stats import Estimate

THRESHOLD = 0.6
"""AUROC of a leak above which a warning is given."""
Belief = Literal["harm", "refusal"]
"""What a model believes of a prompt: that it is harmful, read at `t_inst`; that it is refused, at `t_post_inst`."""
BELIEFS: tuple[Belief, ...] = get_args(Belief)
"""In the order of the roles that they are read at."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HarmAndRefusal(Generic[T]):
    """The same thing of harm and of refusal: two beliefs, two directions, two shifts.

    Source: Zhao et al. 2025, arXiv:2507.11878: harm is read at `t_inst`, refusal at `t_post_inst`.
    """

    harm: T
    """At the last token of the instruction."""
    refusal: T
    """At the last token of the prompt."""

    def of(self, belief: Belief) -> T:
        """One of the two."""
        return self.harm if belief == "harm" else self.refusal

    def items(self) -> Iterator[tuple[Belief, T]]:
        """Both with their names, harm first."""
        yield "harm", self.harm
        yield "refusal", self.refusal


@dataclass(frozen=True, kw_only=True)
class LeakCheck:
    """AUROC of harmful against harmless held-out prompts from what should not tell them apart; 0.5 is none."""

    last_token: Estimate
    """From the identity of the last instruction token alone."""
    embedding: dict[str, Estimate]
    """From the embedding layer, by role."""
    threshold: float = THRESHOLD
    """Above it a reading at `t_inst` needs care."""

    @property
    def worst(self) -> float:
        """The largest of all, 0 to 1."""
        return max(self.last_token.value, *(r.value for r in self.embedding.values()))
