"""Texts read by models: all scores of every text from one forward pass per model, in flat memory.

scores = score_texts(model, texts)
scores[0]["fast_detect_gpt"], scores[0].oriented("log_rank")
score_texts(instruct, texts, reference=base)[0]["binoculars"]
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.detectors.machine_text.intrinsic_dimension import persistent_homology_dimension
from interp.detectors.machine_text.scores import TextScores, TokenScores, distribution_columns, text_scores
from interp.engine.interventions import Intervention
from interp.engine.log_probs import PositionReducer, map_positions
from interp.engine.plain_texts import scored_windows
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import is_text

MIN_TOKENS = 2
"""Minimum tokens of a text."""
_CHUNK = 128
"""Texts held at a time, so that memory does not grow with their number."""


class ReadText(NamedTuple):
    """One text as the models read it."""

    tokens: TokenScores
    states: Float[Tensor, "token d_model"]
    """The scoring model's final hidden states that predict the scored tokens."""


def score_texts(
    model: ChatModel,
    texts: Sequence[str],
    *,
    reference: ChatModel | None = None,
    interventions: Sequence[Intervention] = (),
    window: int | None = None,
    show_progress: bool = False,
) -> list[TextScores]:
    """All scores of every text, in order.

    Args:
        model: the scoring model; the performer of Binoculars.
        reference: another model with the same tokenizer: the sampling model of Fast-DetectGPT, and the observer of
            Binoculars, which is left out without it.
        interventions: on the scoring model; they treat all but a text's beginning as generated tokens.
        window: maximum tokens of a sliding window; None is the context.

    Raises:
        ValueError: a text of fewer than two tokens, two models with different tokenizers, or scores that are not
            finite.
    """
    return list(
        stream_scores(
            model,
            texts,
            reference=reference,
            interventions=interventions,
            window=window,
            show_progress=show_progress,
        )
    )


def stream_scores(
    model: ChatModel,
    texts: Iterable[str],
    *,
    reference: ChatModel | None = None,
    interventions: Sequence[Intervention] = (),
    window: int | None = None,
    show_progress: bool = False,
) -> Iterator[TextScores]:
    """`score_texts` for texts as they arrive; memory does not grow with their number."""
    for read in read_texts(
        model,
        texts,
        reference=reference,
        interventions=interventions,
        window=window,
        show_progress=show_progress,
    ):
        dimension = persistent_homology_dimension(read.states)
        yield text_scores(read.tokens, intrinsic_dimension=dimension)


def read_texts(
    model: ChatModel,
    texts: Iterable[str],
    *,
    reference: ChatModel | None = None,
    interventions: Sequence[Intervention] = (),
    window: int | None = None,
    show_progress: bool = False,
) -> Iterator[ReadText]:
    """What the models make of every token, text by text in order. Arguments and errors as `score_texts`."""
    check_texts(texts)
    arriving, first = iter(texts), 0
    models = [model] if reference is None else [model, reference]
    if reference is not None:
        check_shared_vocabulary(model, reference)
    while chunk := list(islice(arriving, _CHUNK)):
        ids = token_ids(models, chunk, first=first)
        parts = map_texts(
            models,
            ids,
            distribution_columns,
            interventions=interventions,
            window=window,
            show_progress=show_progress,
        )
        for number, part in enumerate(parts):
            check_finite(part.values, first + number)
            tokens = TokenScores.of_columns(torch.tensor(ids[number][-len(part.values) :]), part.values)
            yield ReadText(tokens, part.states)
        first += len(chunk)


class MappedText(NamedTuple):
    """The reduced distributions of one text's scored tokens, and the states that they are read from."""

    values: Float[Tensor, "token *rest"]
    states: Float[Tensor, "token d_model"]


def map_texts(
    models: Sequence[ChatModel],
    ids: Sequence[Sequence[int]],
    reduce: PositionReducer,
    *,
    interventions: Sequence[Intervention] = (),
    window: int | None = None,
    show_progress: bool = False,
) -> list[MappedText]:
    """`interp.engine.log_probs.map_positions` over whole texts, their windows put end to end.

    Args:
        ids: tokens of every text, without special ones.
    """
    windows = scored_windows(models, ids, window=window)
    parts: dict[int, MappedText] = {}
    for row, values, states in map_positions(
        models,
        windows.prompts,
        windows.completions,
        reduce,
        interventions=interventions,
        show_progress=show_progress,
    ):
        parts[row] = MappedText(values, states)
    of_text: list[list[MappedText]] = [[] for _ in ids]
    for row, text in enumerate(windows.texts):
        of_text[text].append(parts[row])
    return [
        own[0]
        if len(own) == 1
        else MappedText(torch.cat([p.values for p in own]), torch.cat([p.states for p in own]))
        for own in of_text
    ]


def token_ids(models: Sequence[ChatModel], texts: Sequence[str], *, first: int = 0) -> list[list[int]]:
    """Tokens of each text, without special ones.

    Args:
        first: number of the first text, for messages.

    Raises:
        ValueError: one string instead of several, a text that is none or has fewer than two tokens, or one that the
            models' tokenizers cut differently.
    """
    check_texts(texts)
    for number, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise ValueError(f"text {number} is of type {type(text).__name__}, {text!r:.60}; give a string")
        if not is_text(text):
            raise ValueError(
                f"text {number} holds half of a character (a lone surrogate), {text!r:.60}; correct it"
            )
    encoded = [_encoded(model, texts) for model in models]
    for number, ids in enumerate(encoded[0]):
        if len(ids) < MIN_TOKENS:
            raise ValueError(
                f"text {first + number} has {len(ids)} token{'' if len(ids) == 1 else 's'}; a score needs at least "
                f"{MIN_TOKENS}: leave it out, or give a longer text"
            )
        if any(other[number] != ids for other in encoded[1:]):
            raise ValueError(
                f"{models[0].name} and {models[1].name} cut text {first + number} into different tokens; two models "
                "are compared token by token, so take a base and an instruction-tuned model of one family"
            )
    return encoded[0]


def check_texts(texts: Any) -> None:
    """Raise a ValueError for what is no list of texts, though it can be iterated: one string is a list of its letters,
    a table of its columns' names."""
    if isinstance(texts, str):
        raise ValueError("texts must be a list of strings, got one string; put it into a list")
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise ValueError(
            f"texts must be a list of strings, got a {type(texts).__name__}; pass its column of texts"
        )
    if isinstance(texts, (Mapping, bytes, bytearray, set, frozenset)) or not isinstance(texts, Iterable):
        raise ValueError(f"texts must be a list of strings, got {type(texts).__name__}")


def _encoded(model: ChatModel, texts: Sequence[str]) -> list[list[int]]:
    rows = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(row) for row in rows]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]


def check_shared_vocabulary(model: ChatModel, reference: ChatModel) -> None:
    """Raise a ValueError unless both models' tokenizers have the same tokens with the same ids."""
    ours, theirs = model.tokenizer.get_vocab(), reference.tokenizer.get_vocab()
    if ours != theirs:
        different = len(ours.items() ^ theirs.items())
        raise ValueError(
            f"{model.name} and {reference.name} have different tokenizers ({different} entries differ); two models are "
            "compared token by token, so take a base and an instruction-tuned model of one family"
        )


def check_finite(columns: Float[Tensor, "token column"], text: int) -> None:
    """Raise a ValueError where the reduced distributions of a text are not finite."""
    if not torch.isfinite(columns).all():
        token = int((~torch.isfinite(columns)).nonzero()[0, 0])
        raise ValueError(
            f"log-probabilities are not finite at token {token} of text {text}; float16 may overflow (load in bfloat16 "
            "or float32), or the weights are damaged"
        )


def sampled_fast_detect_gpt(
    model: ChatModel,
    texts: Sequence[str],
    *,
    reference: ChatModel | None = None,
    n_samples: int = 10_000,
    seed: int = 0,
) -> list[float]:
    """Fast-DetectGPT by sampling: (log-likelihood - mean) / standard deviation over texts drawn token by token.

    Each drawn text takes every token from the reference distribution after the text's own preceding tokens. Equal to
    the analytic score of `score_texts` up to the error of the Monte Carlo estimate.

    Source: Bao et al. 2024, arXiv:2310.05130, section 2.2, 10,000 samples as released.

    Raises:
        ValueError: as `score_texts`, or fewer than two samples.
    """
    if n_samples < 2:
        raise ValueError(f"n_samples must be 2 or more, got {n_samples}: a deviation is estimated from them")
    check_texts(texts)
    models = [model] if reference is None else [model, reference]
    if reference is not None:
        check_shared_vocabulary(model, reference)
    generator = torch.Generator().manual_seed(seed)

    def draw(
        logits: Sequence[Float[Tensor, "position d_vocab"]], ids: Int[Tensor, " position"]
    ) -> Float[Tensor, "position column"]:
        logs = logits[0].log_softmax(-1)
        drawn = torch.multinomial(
            logits[-1].softmax(-1).cpu(), n_samples, replacement=True, generator=generator
        )
        columns = torch.cat([ids[:, None], drawn.to(ids.device)], dim=1)
        return logs.gather(1, columns)

    scores = []
    for number, text in enumerate(texts):  # one at a time: a text has tokens times samples of them
        (part,) = map_texts(models, token_ids(models, [text], first=number), draw)
        check_finite(part.values, number)
        sums = part.values.double().mean(0)
        scores.append(float((sums[0] - sums[1:].mean()) / sums[1:].std()))
    return scores
