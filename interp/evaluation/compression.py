"""How well a model compresses a corpus, in bits per byte."""

from typing import NamedTuple

import numpy as np

from interp.data.corpora import Corpus
from interp.engine.log_probs import completion_log_probs
from interp.evaluation.losses import text_windows
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize

WINDOW = 64
"""Tokens per document of plain text; longer texts are split into several documents."""


LONGEST = 128
"""Maximum tokens of a response that are scored."""


class CodeLengths(NamedTuple):
    """Code length of each document under a model."""

    bits: np.ndarray
    """Code length -log2 p of the scored text of each document."""
    bytes: np.ndarray
    """Bytes of the scored text of each document."""


def bits(model: ChatModel, corpus: Corpus, *, n_documents: int) -> CodeLengths:
    """Code lengths of the first documents; plain text is split into documents of `WINDOW` tokens.

    Without a BOS token the first token of a plain document is context and not scored.
    """
    tokenizer = model.tokenizer
    if corpus.prompts is not None:
        starts = tokenize(tokenizer, corpus.prompts[:n_documents])
        encoded = tokenizer(list(corpus.texts[:n_documents]), add_special_tokens=False)["input_ids"]
        scored = [list(ids)[:LONGEST] for ids in encoded]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    else:
        cut = [text_windows(model, text, window=WINDOW) for text in corpus.texts[: max(1, n_documents)]]
        starts = cut[0][0]
        for more, _ in cut[1:]:
            starts = starts.joined(more)
        scored = [window for _, windows in cut for window in windows][:n_documents]
        starts = starts.take(range(len(scored)))
    log_probs = completion_log_probs(model, starts, scored)
    return CodeLengths(
        bits=np.array([-float(row.double().sum()) for row in log_probs]) / np.log(2),
        bytes=np.array(
            [len(str(text).encode()) for text in tokenizer.batch_decode(scored)], dtype=np.float64
        ),
    )
