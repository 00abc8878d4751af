"""Appendix G.3: what the interventions cost, as cross-entropy in nats per token.

Three corpora: the model's own replies to harmless prompts, instructions with answers (the paper: Alpaca) and plain text
(the paper: the Pile).

Source: Arditi et al. 2024, arXiv:2406.11717, appendix G.3, table 9.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from interp.data.prompts import HELD_OUT_TEXT, Prompts, read_answered
from interp.directions import Direction
from interp.engine.interventions import Intervention
from interp.evaluation.losses import cross_entropy, text_cross_entropy
from interp.evaluation.records import Reply
from interp.experiments.refusal_direction import Config
from interp.experiments.refusal_direction.completions import interventions
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.stats import Estimate
from interp.storage.stages import Stages

_ARMS = ("baseline", "ablation", "addition_minus", "random_ablation")


def cross_entropies(
    model: ChatModel,
    asked: Prompts,
    replies: Sequence[Reply],
    direction: Direction,
    config: Config,
    stages: Stages,
) -> dict[str, dict[str, Estimate]]:
    """Mean cross-entropy by corpus, then intervention.

    Args:
        asked: harmless prompts.
        replies: the unmodified model's, one a prompt.

    Raises:
        ValueError: no such text file.
    """
    return stages.keep(
        f"cross-entropy{direction.position}-{direction.layer}",
        lambda: _cross_entropies(model, asked, replies, direction, config),
        dict[str, dict[str, Estimate]],
    )


def _cross_entropies(
    model: ChatModel, asked: Prompts, replies: Sequence[Reply], direction: Direction, config: Config
) -> dict[str, dict[str, Estimate]]:
    arms = interventions(direction, seed=config.seed)
    own, own_ids = tokenize(model.tokenizer, asked.texts), [reply.ids for reply in replies]
    corpora: dict[str, Callable[[Sequence[Intervention]], Estimate]] = {
        "own replies": lambda changes: cross_entropy(model, own, own_ids, interventions=changes)
    }
    if config.instructions:
        questions, answers = read_answered(config.instructions)
        rows = list(range(min(config.n_answers, len(questions))))
        instructed = tokenize(model.tokenizer, questions.take(rows).texts)
        ids = [list(model.tokenizer(answers[i], add_special_tokens=False)["input_ids"]) for i in rows]  # pyright: ignore[reportArgumentType]
        corpora["instructions"] = lambda changes: cross_entropy(model, instructed, ids, interventions=changes)
    path = Path(config.text) if config.text else HELD_OUT_TEXT
    if not path.is_file():
        raise ValueError(f"no such text file: {path}")
    text = path.read_text(encoding="utf-8")
    corpora["text"] = lambda changes: text_cross_entropy(model, text, interventions=changes)
    return {name: {arm: score(arms[arm]) for arm in _ARMS} for name, score in corpora.items()}
