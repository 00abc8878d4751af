"""Appendix G.3: what the interventions cost, as cross-entropy in nats per token.

Three corpora: the model's own replies to harmless prompts, instructions with answers (the paper: Alpaca) and plain text
(the paper: the Pile).

Source: Arditi et al. 2024, arXiv:2406.11717, appendix G.3, table 9.
"""

from collections.abc import Sequence
from pathlib import Path

from interp.data.files import read_text
from interp.data.prompts import HELD_OUT_TEXT, read_answered
from interp.directions import Direction
from interp.evaluation.losses import cross_entropy, text_windows
from interp.evaluation.records import Reply
from interp.experiments.refusal_direction import Config
from interp.experiments.refusal_direction.completions import interventions
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.stats import Estimate

_ARMS = ("baseline", "ablation", "addition_minus", "random_ablation")


def cross_entropies(
    model: ChatModel, asked: ChatTokens, replies: Sequence[Reply], direction: Direction, config: Config
) -> dict[str, dict[str, Estimate]]:
    """Mean cross-entropy by corpus, then intervention.

    Args:
        asked: harmless prompts.
        replies: the unmodified model's, one a prompt.

    Raises:
        ValueError: no such text file.
    """
    corpora: dict[str, tuple[ChatTokens, Sequence[Sequence[int]]]] = {
        "own replies": (asked, [reply.ids for reply in replies])
    }
    if config.instructions:
        questions, answers = read_answered(config.instructions)
        rows = list(range(min(config.n_answers, len(questions))))
        ids = [list(model.tokenizer(answers[i], add_special_tokens=False)["input_ids"]) for i in rows]  # pyright: ignore[reportArgumentType]
        corpora["instructions"] = tokenize(model.tokenizer, questions.take(rows).texts), ids
    path = Path(config.text) if config.text else HELD_OUT_TEXT
    if not path.is_file():
        raise ValueError(f"no such text file: {path}")
    corpora["text"] = text_windows(model, read_text(path))
    arms = interventions(direction, seed=config.seed)
    return {
        name: {arm: cross_entropy(model, prompts, ids, interventions=arms[arm]) for arm in _ARMS}
        for name, (prompts, ids) in corpora.items()
    }
