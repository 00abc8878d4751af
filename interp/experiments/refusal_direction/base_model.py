"""Appendix J: the base model, never trained to refuse, tells harmful from harmless along the chat model's direction.

Source: Arditi et al. 2024, arXiv:2406.11717, appendix J, figure 24.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from interp.experiments.refusal_direction.cosine_profiles import cosine_profile
from interp.experiments.refusal_direction.results import BaseCheck
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize


def base_check(
    model: ChatModel,
    base: ChatModel,
    refusal: Float[Tensor, " d_model"],
    *,
    harmful: Sequence[str],
    harmless: Sequence[str],
) -> BaseCheck:
    """Cosine with the chat model's direction at a newline after each prompt, in the chat and in the base model.

    The chat model gets its template's tokens before the instruction, the base model nothing.

    Raises:
        ValueError: models of different depth or width.
    """
    if (model.n_layers, model.d_model) != (base.n_layers, base.d_model):
        raise ValueError(
            f"the base model must have the chat model's shape ({model.n_layers} layers, d_model {model.d_model}); "
            f"{base.name} has {base.n_layers} layers, d_model {base.d_model}"
        )
    profiles = {}
    for label, one in (("chat", model), ("base", base)):
        for kind, texts in (("harmful", harmful), ("harmless", harmless)):
            tokens = with_newline(one, texts, with_template=label == "chat")
            profiles[f"{label}, {kind}"] = cosine_profile(one, tokens, refusal, position=-1)
    return BaseCheck(model=model.name, base=base.name, n=len(harmful), cosine=profiles)


def with_newline(model: ChatModel, texts: Sequence[str], *, with_template: bool) -> ChatTokens:
    """Each text followed by a newline, after the template's tokens before an instruction or after nothing."""
    before: tuple[int, ...] = ()
    if with_template:
        whole = tokenize(model.tokenizer, [texts[0]])
        before = whole.ids[0][: whole.starts[0]]
    rows = [
        tuple(int(i) for i in model.tokenizer(text + "\n", add_special_tokens=not with_template)["input_ids"])  # pyright: ignore[reportArgumentType]
        for text in texts
    ]
    return ChatTokens(
        ids=tuple(before + row for row in rows),
        starts=(len(before),) * len(rows),
        ends=tuple(len(before) + len(row) for row in rows),
        tokenizer=model.tokenizer,
    )
