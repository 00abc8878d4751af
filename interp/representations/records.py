"""Stored results about contrasts of prompts: frozen records without tensors, readable without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from interp.stats import Estimate

THRESHOLD = 0.6
"""AUROC of a confound above which a warning is given."""
Belief = Literal["harm", "refusal"]
"""A model's belief about a prompt: that it is harmful, read at `t_inst`; that it will refuse it, at `t_post_inst`."""
BELIEFS: tuple[Belief, ...] = get_args(Belief)
"""Both beliefs, in the order of the token roles that they are read at."""
Solver = Literal["released", "converged"]
"""How the regressions of the safety plane are fitted: as the released code does, or to the optimum."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HarmAndRefusal(Generic[T]):
    """A pair of values, one for harm and one for refusal, such as two beliefs, directions or shifts.

    Source: Zhao et al. 2025, arXiv:2507.11878: harm is read at `t_inst`, refusal at `t_post_inst`.
    """

    harm: T
    """The value read at the last token of the instruction."""
    refusal: T
    """The value read at the last token of the prompt."""

    def of(self, belief: Belief) -> T:
        """The value for one belief."""
        return self.harm if belief == "harm" else self.refusal

    def items(self) -> Iterator[tuple[Belief, T]]:
        """Both values with their names, harm first."""
        yield "harm", self.harm
        yield "refusal", self.refusal


@dataclass(frozen=True, kw_only=True)
class LeakCheck:
    """AUROC of harmful against harmless held-out prompts from features that should not separate them; 0.5 is chance."""

    last_token: Estimate
    """AUROC from the identity of the last instruction token alone."""
    embedding: dict[str, Estimate]
    """AUROC from the embedding layer, by token role."""
    threshold: float = THRESHOLD
    """AUROC above which results at `t_inst` need the equal-endings version beside them."""

    @property
    def worst(self) -> float:
        """The largest of these AUROCs, 0 to 1."""
        return max(self.last_token.value, *(r.value for r in self.embedding.values()))
