"""States of a model that reads a prompt with its answer: the residual stream at the last token of the answer.

    answer_states(model, ["How do I bake bread?"], ["Mix flour and water."])         # [answer, layer, d_model]

The answer stands in the assistant's turn of the model's own template, as if it had been generated; its last token
(`t_prefill`) has seen the prompt and all of the answer. Layers count as in `interp.representations.beliefs`: 0..L-1 is
`resid_pre` of block l, L is `resid_post` of the last block.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from interp.models.chat_model import ChatModel
from interp.models.contexts import fitting_rows
from interp.models.layers import Layers
from interp.models.prompt_inputs import Message
from interp.models.tokens import tokenize
from interp.representations.beliefs import states


def answer_states(
    model: ChatModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    layers: Layers = None,
    show_progress: bool = False,
) -> Float[Tensor, "answer layer d_model"]:
    """Residual stream at the last token of every answer.

    Args:
        answers: without the white space at their ends, which chat templates cut.

    Raises:
        ValueError: an empty answer, or one that does not fit into the context with its prompt.
    """
    if empty := [number for number, answer in enumerate(answers) if not answer.strip()]:
        raise ValueError(f"answer {empty[0]} is empty, and has no last token")
    turns = [conversation(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    read = states(model, turns, layers=layers, positions="t_prefill", show_progress=show_progress)
    return read[:, :, 0]


def readable_rows(model: ChatModel, prompts: Sequence[str], answers: Sequence[str | None]) -> list[int]:
    """Rows whose answer has a last token and fits into the context with its prompt."""
    there = [row for row, answer in enumerate(answers) if answer is not None and answer.strip()]
    if not there:
        return []
    turns = [conversation(prompts[row], answers[row] or "") for row in there]
    return [there[row] for row in fitting_rows(model, tokenize(model.tokenizer, turns))]


def conversation(prompt: str, answer: str) -> list[Message]:
    """A prompt and its answer as turns of a conversation that ends with the answer."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.strip()}]
