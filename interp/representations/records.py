"""What results hold of contrasts: frozen records without tensors, read without torch."""

from dataclasses import asdict, dataclass
from typing import Any

from interp.stats import Estimate

THRESHOLD = 0.6
"""AUROC of a leak above which a warning is given."""


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

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, as results store them."""
        return asdict(self)
