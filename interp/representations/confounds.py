"""Confounds of a prompt contrast: can the two sets be told apart by how their prompts end?

A direction read at `t_inst` mainly encodes the last instruction token. When harmful and harmless prompts end in
different ways (full stops in one set, question marks in the other), their difference in means is punctuation. The leak
check measures how well two features that carry no content of the request separate the held-out sets: the identity of
the last instruction token, and the embedding layer at each role. An AUROC of 0.5 is chance; above 0.6 every result at
`t_inst` needs the equal-endings version beside it.
"""

import logging
import math
from collections import Counter

import torch

from interp.data.prompts import Prompts
from interp.directions import difference_in_means, project
from interp.engine.activations import collect
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.records import THRESHOLD, LeakCheck
from interp.stats import auroc

logger = logging.getLogger(__name__)


def leak_check(
    model: ChatModel,
    *,
    train: tuple[Prompts, Prompts],
    held_out: tuple[Prompts, Prompts],
    label: str = "prompts",
) -> LeakCheck:
    """Measure how well a contrast's endings separate its two sets; logs a warning when an AUROC exceeds `THRESHOLD`.

    Args:
        train: harmful and harmless prompts to fit the two classifiers on.
        held_out: harmful and harmless prompts to score them on.
        label: name of the contrast in the warning.
    """
    fitted = [tokenize(model.tokenizer, part) for part in train]
    scored = [tokenize(model.tokenizer, part) for part in held_out]
    counts = [Counter(_last_tokens(tokens)) for tokens in fitted]
    vocabulary = len(counts[0] | counts[1])

    def log_odds(token: int) -> float:
        # Naive Bayes with add-one smoothing; an unseen token has log-odds near 0.
        rates = [(c[token] + 1) / (c.total() + vocabulary) for c in counts]
        return math.log(rates[0] / rates[1]) if counts[0][token] + counts[1][token] else 0.0

    odds = [torch.tensor([log_odds(t) for t in _last_tokens(tokens)]) for tokens in scored]
    roles = ("t_inst", "t_post_inst")
    embedded = [collect(model, tokens, layers=[0], positions=roles) for tokens in (*fitted, *scored)]
    embedding = {}
    for role in roles:
        bad, good, test_bad, test_good = (acts.at("resid_pre", role)[:, 0].float() for acts in embedded)
        direction = difference_in_means(bad, good)
        embedding[role] = auroc(project(test_bad, direction), project(test_good, direction))
    check = LeakCheck(last_token=auroc(odds[0], odds[1]), embedding=embedding)
    if check.worst > THRESHOLD:
        logger.warning(
            "leak check of %s: how prompts end tells harmful from harmless with AUROC %.2f (last token %.2f); read "
            "results at t_inst with ending='period' beside them",
            label,
            check.worst,
            check.last_token.value,
        )
    return check


def _last_tokens(tokens: ChatTokens) -> list[int]:
    return [ids[end - 1] for ids, end in zip(tokens.ids, tokens.ends, strict=True)]
