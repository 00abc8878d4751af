"""Texts of the study and what models make of every token of them, so that scores at any length follow from one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.prompts import Prompts
from interp.detectors.machine_text.intrinsic_dimension import persistent_homology_dimension
from interp.detectors.machine_text.pairs import make_pairs
from interp.detectors.machine_text.reading import (
    MIN_TOKENS,
    check_finite,
    check_shared_vocabulary,
    map_texts,
    token_ids,
)
from interp.detectors.machine_text.scores import SCORES, TokenScores, distribution_columns, text_scores
from interp.display.progress import progress
from interp.engine.decoding import LogitsProcessor
from interp.engine.interventions import Intervention
from interp.experiments.machine_text import TWO_MODELS, Config
from interp.models.chat_model import ChatModel

_CHUNK = 64
_OWN = ("likelihood", "rank", "log_rank", "entropy", "lrr", "fast_detect_gpt", "burstiness")
"""Scores of one model; perplexity orders texts as likelihood does."""
_PAIRED = ("binoculars", "binoculars_observer")
_N_OWN = 6
"""Columns of `distribution_columns` without a reference model."""
DIMENSION = SCORES["intrinsic_dimension"].title


@dataclass(frozen=True, kw_only=True)
class Written:
    """Human texts of which the model continued the beginning, as they are stored between stages."""

    ids: tuple[str, ...]
    """Ids of the human texts."""
    machine: tuple[str, ...]
    """The model's texts, beginnings included."""
    lengths: tuple[int, ...]
    """Tokens of each pair."""


def written(
    model: ChatModel,
    human: Prompts,
    config: Config,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    interventions: Sequence[Intervention] = (),
    processors: Sequence[LogitsProcessor] = (),
    show_progress: bool = False,
) -> Written:
    """What the model writes after the beginnings of human texts."""
    pairs = make_pairs(
        model,
        human,
        length=config.length,
        prefix_tokens=config.prefix_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=config.seed,
        interventions=interventions,
        processors=processors,
        show_progress=show_progress,
    )
    return Written(ids=pairs.human.ids, machine=pairs.machine.texts, lengths=pairs.lengths)


def cut_texts(model: ChatModel, texts: Sequence[str], length: int | Sequence[int]) -> list[str]:
    """Texts of at most so many tokens, all or each."""
    rows: Any = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    lengths = [length] * len(texts) if isinstance(length, int) else length
    return [str(model.tokenizer.decode(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def text_lengths(model: ChatModel, texts: Sequence[str]) -> list[int]:
    """Tokens of each text."""
    rows: Any = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [len(row) for row in rows]


@dataclass(frozen=True, eq=False, kw_only=True)
class Readings:
    """What the model, and a reference beside it, make of every token of some texts."""

    ids: tuple[Int[Tensor, " _"], ...]
    """All tokens of each text."""
    columns: tuple[Float[Tensor, "_ column"], ...]
    """Of its scored tokens: the columns of `distribution_columns` of the model alone, then of both models."""
    dimensions: tuple[float, ...]
    """Intrinsic dimension of each text."""

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in self.ids]

    def scores(self, row: int, length: int) -> dict[str, float]:
        """Scores of so many tokens at the beginning of a text, by their titles, machine-written higher."""
        ids, columns = self.ids[row], self.columns[row]
        unscored = len(ids) - len(columns)
        scored, n = ids[unscored:], length - unscored
        own = text_scores(TokenScores.of_columns(scored[:n], columns[:n, :_N_OWN]))
        found = {SCORES[name].title: own.oriented(name) for name in _OWN}
        if columns.shape[1] > _N_OWN:
            both = text_scores(TokenScores.of_columns(scored[:n], columns[:n, _N_OWN:]))
            found[TWO_MODELS] = both.oriented("fast_detect_gpt")
            found |= {SCORES[name].title: both.oriented(name) for name in _PAIRED}
        return found

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, texts put end to end, for `Stages.keep`."""
        return {
            "ids": torch.cat(self.ids),
            "columns": torch.cat(self.columns),
            "lengths": torch.tensor(self.lengths()),
            "scored": torch.tensor([len(columns) for columns in self.columns]),
            "dimensions": torch.tensor(self.dimensions, dtype=torch.float64),
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Readings":
        """The readings from `tensors`."""
        return cls(
            ids=tensors["ids"].split(tensors["lengths"].tolist()),
            columns=tensors["columns"].split(tensors["scored"].tolist()),
            dimensions=tuple(tensors["dimensions"].tolist()),
        )


def read(
    model: ChatModel,
    texts: Sequence[str],
    *,
    reference: ChatModel | None = None,
    show_progress: bool = False,
) -> Readings:
    """Read texts with the model, and with a reference beside it where there is one; one pass each.

    Raises:
        ValueError: as `interp.detectors.machine_text.reading.score_texts`.
    """
    models = [model] if reference is None else [model, reference]
    if reference is not None:
        check_shared_vocabulary(model, reference)

    def reduce(
        logits: Sequence[Float[Tensor, "position d_vocab"]], ids: Int[Tensor, " position"]
    ) -> Float[Tensor, "position column"]:
        own = distribution_columns(logits[:1], ids)
        return own if reference is None else torch.cat([own, distribution_columns(logits, ids)], dim=1)

    all_ids: list[Tensor] = []
    columns: list[Tensor] = []
    dimensions: list[float] = []
    arriving = iter(progress(texts, total=len(texts), label="texts read", show=show_progress))
    while chunk := list(islice(arriving, _CHUNK)):
        rows = token_ids(models, chunk, first=len(all_ids))
        for number, part in enumerate(map_texts(models, rows, reduce)):
            check_finite(part.values, len(all_ids))
            all_ids.append(torch.tensor(rows[number]))
            columns.append(part.values)
            dimensions.append(persistent_homology_dimension(part.states))
    return Readings(ids=tuple(all_ids), columns=tuple(columns), dimensions=tuple(dimensions))


Lookup = Mapping[str, tuple[Readings, int]]
"""Readings and the row in them, by id of the human text."""


def by_id(readings: Readings, ids: Sequence[str]) -> Lookup:
    """Where the text of each id is."""
    return {name: (readings, row) for row, name in enumerate(ids)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Twins:
    """Scores of machine-written texts and of their human twins, pair by pair of one length."""

    ids: tuple[str, ...]
    """Ids of the human texts."""
    lengths: tuple[int, ...]
    """Tokens of both texts of a pair."""
    human: tuple[dict[str, float], ...]
    """Scores of the human texts, by detector."""
    machine: tuple[dict[str, float], ...]
    """Scores of the machine-written ones."""

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, detector: str) -> tuple[list[float], list[float]]:
        """A detector's scores of machine-written and of human texts."""
        return [row[detector] for row in self.machine], [row[detector] for row in self.human]

    @property
    def detectors(self) -> list[str]:
        """Names of the detectors."""
        return list(self.human[0])

    @property
    def limits(self) -> dict[str, int]:
        """Tokens of each pair, by id."""
        return dict(zip(self.ids, self.lengths, strict=True))


def twins(
    humans: Lookup, machines: Lookup, *, limits: int | Mapping[str, int], shortest: int = MIN_TOKENS
) -> Twins:
    """Pairs of as many tokens as both texts have, at most the limit, in the order of `machines`.

    Args:
        limits: maximum tokens, of all or of each; texts without one are left out.
        shortest: pairs of fewer tokens are left out.

    Raises:
        ValueError: no pair is left.
    """
    ids, lengths = list[str](), list[int]()
    human, machine = list[dict[str, float]](), list[dict[str, float]]()
    for name, (theirs, row) in machines.items():
        limit = limits if isinstance(limits, int) else limits.get(name, 0)
        own, place = humans[name]
        n = min(limit, len(own.ids[place]), len(theirs.ids[row]))
        if n >= shortest:
            ids.append(name)
            lengths.append(n)
            human.append(own.scores(place, n))
            machine.append(theirs.scores(row, n))
    if not ids:
        raise ValueError(
            f"none of {len(machines)} machine-written texts has {shortest} tokens; use another model"
        )
    return Twins(ids=tuple(ids), lengths=tuple(lengths), human=tuple(human), machine=tuple(machine))


def dimension_twins(humans: Lookup, machines: Lookup) -> Twins | None:
    """Intrinsic dimensions of the pairs whose whole texts are as long as each other; None where there is none."""
    sign = SCORES["intrinsic_dimension"].sign
    pairs = [
        (name, humans[name], machines[name])
        for name in machines
        if len(humans[name][0].ids[humans[name][1]]) == len(machines[name][0].ids[machines[name][1]])
    ]
    if not pairs:
        return None
    return Twins(
        ids=tuple(name for name, *_ in pairs),
        lengths=tuple(len(own.ids[row]) for _, (own, row), _ in pairs),
        human=tuple({DIMENSION: sign * own.dimensions[row]} for _, (own, row), _ in pairs),
        machine=tuple({DIMENSION: sign * own.dimensions[row]} for *_, (own, row) in pairs),
    )
