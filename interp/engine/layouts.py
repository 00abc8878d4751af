"""Which token each slot of a forward pass holds: its prompt, and its index in that prompt.

Interventions name prompt tokens by role and generated tokens by number. A pass may be padded, may begin behind a shared
prefix or a KV cache, or hold packed prompts; its `PassLayout` says what stands where, so that one rule decides for
all of them where an intervention acts.

    layout = PassLayout.left_padded(tokens)             # whole prompts
    layout = layout.following()                         # the next decoding step: one generated token a row
"""

from dataclasses import dataclass, replace

import torch
from einops import repeat
from jaxtyping import Bool, Int
from torch import Tensor

from interp.models.tokens import ChatTokens, Positions


@dataclass(frozen=True, eq=False, kw_only=True)
class PassLayout:
    """What the slots of one pass hold."""

    tokens: ChatTokens
    """The prompts."""
    prompts: Int[Tensor, "row pos"]
    """Row in `tokens` of each slot's prompt; one of them where several prompts share a slot."""
    positions: Int[Tensor, "row pos"]
    """Index of each slot's token in its sequence, the prompt and then what was generated; -1 is no token of either."""

    @classmethod
    def left_padded(
        cls, tokens: ChatTokens, *, first: int = 0, shared: int = 0, stop: int | None = None
    ) -> "PassLayout":
        """The layout of left-padded prompts, followed by their generated tokens.

        Args:
            first: columns that earlier passes have already run.
            shared: length of the shared prefix, which precedes the padding in every row and has already been run.
            stop: column after the last one; None ends with the prompts.
        """
        lengths = torch.tensor([len(ids) for ids in tokens.ids])
        width = int(lengths.max())
        columns = torch.arange(max(first, shared), width if stop is None else stop)
        positions = columns - (width - lengths)[:, None]
        positions[positions < shared] = -1
        return cls(tokens=tokens, prompts=_own_rows(positions), positions=positions)

    @classmethod
    def prefix(cls, tokens: ChatTokens, length: int) -> "PassLayout":
        """The layout of a pass over the shared prefix of all prompts."""
        positions = torch.arange(length)[None]
        return cls(tokens=tokens, prompts=torch.zeros_like(positions), positions=positions)

    def following(self) -> "PassLayout":
        """The layout of the next decoding step: the token after the last one of every row."""
        return replace(self, prompts=self.prompts[:, -1:], positions=self.positions[:, -1:] + 1)

    def take(self, rows: list[int]) -> "PassLayout":
        """The layout of a subset of the rows."""
        return replace(self, prompts=self.prompts[rows], positions=self.positions[rows])

    def where(self, positions: Positions, n_generated: int | None) -> Bool[Tensor, "row pos"] | bool:
        """Which slots hold the given prompt tokens or one of the first `n_generated` generated tokens.

        Args:
            positions: roles and regions; "all" includes slots that are no token.
            n_generated: how many generated tokens; None is all.

        Returns:
            A mask over slots, or a plain True or False where all slots agree.
        """
        lengths = torch.tensor([len(ids) for ids in self.tokens.ids])[self.prompts]
        generated = self.positions >= lengths
        inside = (
            generated.clone() if n_generated is None else generated & (self.positions < lengths + n_generated)
        )
        if positions == "all":
            inside |= ~generated
        elif not generated.all():
            inside |= self._masks(positions)[self.prompts, self.positions.clamp(-1, int(lengths.max()))]
        return bool(inside.any()) if inside.all() or not inside.any() else inside

    def _masks(self, positions: Positions) -> Bool[Tensor, "prompt column"]:
        """A mask by token index of the selected prompt tokens; False for generated tokens and padding."""
        longest = max(len(ids) for ids in self.tokens.ids)
        masks = torch.zeros(len(self.tokens), longest + 2, dtype=torch.bool)
        for row, ids in enumerate(self.tokens.ids):
            masks[row, : len(ids)] = self.tokens.mask(row, positions)
        return masks


def _own_rows(positions: Int[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    return repeat(torch.arange(len(positions)), "row -> row pos", pos=positions.shape[1])
