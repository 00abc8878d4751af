"""The losses of trained safety prompts: DRO in the safety plane, and likelihood with unlikelihood of answers.

Each is called with what was read of some rows of a step and gives its terms by name, of which `total` is minimised.
Terms are divided by the number of queries of the whole step, so that those of its passes add up.

Sources: Zheng et al. 2024, arXiv:2401.18018, code (`DroLoss`); Welleck et al. 2020, arXiv:1908.04319, "token-level
unlikelihood" (`LikelihoodLoss`).
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from interp.representations.safety_plane import SafetySpace
from interp.training.config import SafetyPromptConfig


class DroLoss:
    """The three terms of DRO on states, each divided by the number of queries of a step.

    Args:
        at_start: state of every query under the text that the prompt starts from.
        labels: 1 for harmful queries, 0 for harmless ones.
    """

    def __init__(
        self,
        space: SafetySpace,
        at_start: Float[Tensor, "query d_model"],
        labels: Float[Tensor, " query"],
        config: SafetyPromptConfig,
    ) -> None:
        self._space, self._at_start, self._labels, self._config = space, at_start, labels, config
        self._logits = space.refusal(at_start), space.harmfulness(at_start)

    def __call__(
        self, read: Float[Tensor, "row pos d_model"], rows: list[int], *, of: int | None = None
    ) -> dict[str, Tensor]:
        """Terms of these queries.

        Args:
            of: queries of the whole step; these when None.
        """
        space, config, n = self._space, self._config, len(rows) if of is None else of
        states, labels = read[:, -1].float(), self._labels[rows]
        entropy = partial(binary_cross_entropy_with_logits, target=labels, reduction="sum")
        terms = {
            "refusal": entropy(space.refusal(states) - self._logits[0][rows]) / n,
            "harmfulness": entropy(space.harmfulness(states) - self._logits[1][rows]) / n,
            "rest": space.beside(states - self._at_start[rows]).sum() / n,
        }
        total = (
            config.refusal_weight * terms["refusal"]
            + config.harmfulness_weight * terms["harmfulness"]
            + config.rest_weight * terms["rest"]
        )
        return {**terms, "total": total}


class LikelihoodLoss:
    """Negative log-likelihood of desired answers (even rows), unlikelihood of undesired ones (odd rows), by tokens."""

    def __init__(self, completions: Sequence[Sequence[int]], config: SafetyPromptConfig) -> None:
        self._completions, self._weight = completions, config.unlikelihood_weight

    def __call__(
        self, read: Float[Tensor, "row pos d_vocab"], rows: list[int], *, of: int | None = None
    ) -> dict[str, Tensor]:
        """Terms of these rows.

        Args:
            of: queries of the whole step, of two rows each; half of these rows when None.
        """
        n = len(rows) / 2 if of is None else of
        terms = {name: read.new_zeros((), dtype=torch.float32) for name in ("likelihood", "unlikelihood")}
        for i, row in enumerate(rows):
            ids = torch.tensor(list(self._completions[row]), device=read.device)
            log_probs = read[i, -len(ids) - 1 : -1].float().log_softmax(-1).gather(1, ids[:, None])
            if row % 2 == 0:
                terms["likelihood"] = terms["likelihood"] - log_probs.mean() / n
            else:
                rest = torch.log(-torch.expm1(log_probs.clamp(max=-1e-6)))
                terms["unlikelihood"] = terms["unlikelihood"] - rest.mean() / n
        return {**terms, "total": terms["likelihood"] + self._weight * terms["unlikelihood"]}
