"""Losses of completion tokens from packed rows: what the rows of a batch begin with alike runs once, without padding.

Rows of one chat template share its system turn, and a batch of short rows is mostly padding and that turn: of 338
examples in batches of 4 a packed pass runs 60% of the tokens. Losses and gradients are those of padded rows but for the
order of their sums. The gradients of both are compared on two rows of a run's first batch; where they differ, or
where a row's dropout or noise has to be its own (`can_pack_training`), rows run padded.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.engine.applying import apply
from interp.engine.batching import is_out_of_memory
from interp.engine.packing import can_pack, packed_passes
from interp.engine.unembedding import CompletionStates
from interp.models.chat_model import ChatModel
from interp.models.precision import product_dtype
from interp.models.tokens import ChatTokens
from interp.training.config import TrainConfig

logger = logging.getLogger(__name__)

_TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest difference of both gradients, by the padded one's norm."""

TokenLosses = Callable[[Mapping[str, Tensor], Int[Tensor, "batch pos"]], Float[Tensor, "batch completion"]]
"""Losses of completion tokens, of a trainer's inputs and its labels; 0 where a completion has ended."""


def can_pack_training(
    model: ChatModel, adapted: nn.Module, rows: Sequence[Sequence[int]], config: TrainConfig
) -> bool:
    """Whether rows may share what they begin with: no dropout, no noise, and attention that can be unfolded.

    Args:
        adapted: the module that is trained.
        rows: token ids of every row.
    """
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in adapted.modules())
    of_attention = getattr(model.hf.config, "attention_dropout", 0.0)
    own = dropout or of_attention or config.embedding_noise  # what each row draws by itself
    return not own and can_pack(model, _chat_tokens(model, rows))


class PackedLosses:
    """Losses of completion tokens of one model, whose adapter is attached.

    Args:
        parameters: what is trained.
        padded: the same losses of padded rows, which are compared with at the first call.
    """

    def __init__(self, model: ChatModel, parameters: Sequence[nn.Parameter], padded: TokenLosses) -> None:
        self._model, self._parameters, self._padded = model, list(parameters), padded
        self.agree: bool | None = None
        """Whether packed rows have the gradients of padded ones; None before they were compared."""

    def __call__(
        self, inputs: Mapping[str, Tensor], labels: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch completion"]:
        """Losses in nats with their autograd graph, 0 where a completion has ended."""
        if self.agree is None:
            try:
                self.agree = self._compared(inputs, labels)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # Compared again in the next pass, which may be a smaller part of a batch.
        return self.packed(inputs, labels) if self.agree else self._padded(inputs, labels)

    def packed(
        self, inputs: Mapping[str, Tensor], labels: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch completion"]:
        """The losses of packed rows, unchecked."""
        model = self._model
        lengths = (labels != -100).sum(1).tolist()
        rows = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        # The last token of a completion predicts nothing.
        tokens = _chat_tokens(model, [row[:-1] for row in rows])
        with apply(model, []) as applied, packed_passes(model, tokens, applied, max_shared=0) as passes:
            packed = passes.pack(list(range(len(rows))))
            with passes.whole(packed):
                output: Any = model.decoder(**packed.inputs)
        before = [
            packed.tree.grid[row, len(ids) - n - 1 : len(ids) - 1]
            for row, (ids, n) in enumerate(zip(rows, lengths, strict=True))
        ]
        final = CompletionStates(
            states=output.last_hidden_state[0, torch.cat(before).to(model.device)],
            lengths=tuple(lengths),
            output=type(output),
        )
        losses = nn.functional.cross_entropy(
            final.logits(model, slice(None)).float(), labels[labels != -100], reduction="none"
        )
        return nn.utils.rnn.pad_sequence(list(final.per_text(losses)), batch_first=True)

    @torch.enable_grad()
    def _compared(self, inputs: Mapping[str, Tensor], labels: Tensor) -> bool:
        """Whether both ways have the same gradients on the batch's shortest and longest row."""
        lengths = inputs["attention_mask"].sum(1)
        few = sorted({int(lengths.argmin()), int(lengths.argmax())})
        end = int((labels[few] != -100).any(0).nonzero()[-1]) + 1  # labels end with a completion's token
        part, own = {name: value[few, :end] for name, value in inputs.items()}, labels[few, :end]
        allowed = _TOLERANCES.get(product_dtype(self._model), _TOLERANCES[torch.bfloat16])
        expected = self._gradient(self._padded, part, own)
        try:
            found = self._gradient(self.packed, part, own)
        except (TypeError, AttributeError, IndexError) as failure:
            logger.warning("packed rows cannot be trained on here (%s); rows run padded", failure)
            return False
        error = float((found - expected).norm()) / max(float(expected.norm()), 1e-30)
        if error > allowed:
            logger.warning(
                "packed rows have other gradients than padded ones on %s (relative difference %.2g); rows run padded",
                self._model.name,
                error,
            )
        return error <= allowed

    def _gradient(self, losses: TokenLosses, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """The gradient of the summed losses, flat, in float64."""
        total = losses(inputs, labels).sum()
        gradients = torch.autograd.grad(total, self._parameters, allow_unused=True)
        pairs = zip(self._parameters, gradients, strict=True)
        flat = [torch.zeros_like(p) if gradient is None else gradient for p, gradient in pairs]
        return torch.cat([gradient.detach().flatten().to("cpu", torch.float64) for gradient in flat])


def _chat_tokens(model: ChatModel, rows: Sequence[Sequence[int]]) -> ChatTokens:
    """Rows of ids without roles."""
    ends = tuple(map(len, rows))
    ids = tuple(map(tuple, rows))
    return ChatTokens(ids=ids, starts=(0,) * len(rows), ends=ends, tokenizer=model.tokenizer)
