"""Logits of many positions in flat memory: final hidden states of a pass first, then the unembedding in chunks.

A pass over texts holds logits of rows x positions x vocabulary: for 32 texts of 512 tokens and a vocabulary of 262,144
that is 17 GB in float32. Final hidden states are a few megabytes; the model's own forward turns them into logits, with
whatever it does beyond a matrix product (caps, scales), for as many positions at a time as the budget allows.

    states = completion_states(model, tokens, completions, rows, applied)
    logits = states.logits(model, slice(0, 16))        # of the first 16 scored positions
    logits = unembedded(model, states)                 # of states that are known
    lens = read_out(model, resid)                      # of a residual stream of any depth
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.applying import Applied
from interp.engine.batching import pad_id, pad_left, passed_through
from interp.engine.layouts import PassLayout
from interp.models.chat_model import ChatModel
from interp.models.threads import swapped_forwards
from interp.models.tokens import ChatTokens


@torch.no_grad()
def read_out(model: ChatModel, resid: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
    """Logits that the model's own final norm and unembedding read from a residual stream of any depth ("logit lens").

    After the last block these are the model's logits. Blocks are swapped for the identity and the first one for the
    given stream, so that whatever an architecture does beyond a norm and a product (caps, scales) is done here as well.
    """
    given = resid[None].to(model.device, model.dtype)
    skipped: dict[Any, Any] = {block.module: passed_through for block in model.blocks}
    skipped[model.blocks[0].module] = lambda *_args, **_options: given
    ids = torch.zeros(1, len(resid), dtype=torch.long, device=model.device)  # only their shape matters
    with model.lock, swapped_forwards(skipped):
        return model.hf(input_ids=ids, use_cache=False).logits[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class CompletionStates:
    """Final hidden states of one pass from which the tokens of completions are predicted, one text after the other."""

    states: Float[Tensor, "position d_model"]
    """Input of the unembedding at each predicting position."""
    lengths: tuple[int, ...]
    """Tokens of each completion, in the order of the rows."""
    output: type[Any]
    """Class of what the decoder returns."""

    def logits(self, model: ChatModel, positions: slice) -> Float[Tensor, "position d_vocab"]:
        """The model's logits at these positions, in its own dtype."""
        chunk = self.output(last_hidden_state=self.states[None, positions])
        device = model.device
        # Of the ids only the shape is read: the decoder, which would look at them, is swapped for its result.
        ids = torch.zeros(1, chunk.last_hidden_state.shape[1], dtype=torch.long, device=device)
        with model.lock, swapped_forwards({model.decoder: lambda *_args, **_options: chunk}):
            return model.hf(input_ids=ids, use_cache=False).logits[0]

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of at most `size` positions that cover all of them."""
        for start in range(0, len(self.states), size):
            yield slice(start, min(start + size, len(self.states)))

    def per_text(self, values: Float[Tensor, "position *rest"]) -> tuple[Float[Tensor, "token *rest"], ...]:
        """Values by position, split into those of each completion."""
        return values.split(list(self.lengths))


_outputs: WeakKeyDictionary[ChatModel, type[Any]] = WeakKeyDictionary()
"""Class of what a model's decoder returns."""


@torch.no_grad()
def unembedded(
    model: ChatModel, states: Float[Tensor, "position d_model"]
) -> Float[Tensor, "position d_vocab"]:
    """The model's logits of final hidden states that are known (those after the final norm), in its own dtype."""
    if model not in _outputs:
        _outputs[model] = type(model.decoder(torch.zeros(1, 1, dtype=torch.long, device=model.device)))
    given = states.to(model.device, model.dtype)
    return CompletionStates(states=given, lengths=(len(given),), output=_outputs[model]).logits(
        model, slice(None)
    )


def completion_states(
    model: ChatModel,
    tokens: ChatTokens,
    completions: Sequence[Sequence[int]],
    rows: Sequence[int],
    applied: Applied,
) -> CompletionStates:
    """Run the prompts at these rows with their completions, left-padded, and keep the states that predict the latter.

    Args:
        completions: token ids of every prompt's completion, none of those at `rows` empty.
        applied: active interventions; they treat the completion as generated tokens.
    """
    batch, lengths = tokens.take(list(rows)), [len(completions[row]) for row in rows]
    prompt = pad_left(batch.ids, pad_id=pad_id(model))
    # The last token of a completion predicts nothing that is scored, so it is not run.
    tail = torch.full((len(rows), max(lengths) - 1), pad_id(model), dtype=torch.long)
    for i, row in enumerate(rows):
        tail[i, : lengths[i] - 1] = torch.tensor(list(completions[row])[:-1])
    ids = torch.cat([prompt.ids, tail], dim=1).to(model.device)
    mask = torch.cat([prompt.mask, torch.ones_like(tail)], dim=1).to(model.device)
    layout = PassLayout.left_padded(batch, stop=ids.shape[1]) if applied.tracks else None
    whole = [len(prompt_ids) + length for prompt_ids, length in zip(batch.ids, lengths, strict=True)]
    with applied.running(layout), model.rotary.at(whole):
        output: Any = model.decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        )
    first = prompt.ids.shape[1] - 1
    kept = [output.last_hidden_state[i, first : first + length] for i, length in enumerate(lengths)]
    return CompletionStates(states=torch.cat(kept), lengths=tuple(lengths), output=type(output))
