"""Harm categories: does each have a harmfulness direction of its own, and a refusal direction?

Zhao et al. 2025, *LLMs Encode Harmfulness and Refusal Separately* (arXiv:2507.11878), category analysis.

| claim | where | theirs | seen here when |
|---|---|---|---|
| harmfulness directions vary by category | the authors' post | no number | shuffled categories are more alike |
| refusal directions are more alike across categories | the same | no number | 95% interval of the difference above 0 |

For category a, at layer l:

    v_a = mean of its harmful prompts - mean of harmless prompts     harmfulness at t_inst, refusal at t_post_inst
    M^l[a, b] = cos(v_a, v_b)                                        off-diagonal mean: how alike categories are

The refusal direction takes prompts that the model refuses and harmless ones that it answers, where enough categories
have them. Layers count as in `interp.representations.beliefs`: 0..L-1 is `resid_pre`, L the last block's output. At
layer 0 a template token is a constant and has no direction.

Controls, each in the figures: category labels shuffled; harmless prompts dealt into sham categories (all directions
subtract one harmless mean, which alone makes them alike); each category against itself on other prompts, with another
harmless mean (split halves), which is as alike as this many prompts can show. Everything with prompts as they are and
with all of them ended by a full stop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Kind, Prompts, PromptSet, with_ending
from interp.directions import cosine_matrix, unit
from interp.evaluation.responses import respond
from interp.experiments.categories.report import DIRECTIONS, ENDINGS, figures, rate_table, report, verdicts
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from interp.representations.confounds import leak_check
from interp.stats import Estimate
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch

__all__ = ["NAME", "SUMMARY", "Config", "Result", "figures", "rate_table", "report", "run", "verdicts"]

NAME = "categories"
SUMMARY = (
    "one harmfulness and one refusal direction per harm category, and how alike they are (Zhao et al. 2025)"
)
_LEAST_CATEGORIES = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the paper's unless a reason is given."""

    n_per_category: int = 50
    """Harmful prompts of each category (CatQA has 50)."""
    n_harmless: int = 400
    """Harmless prompts, of which the mean is subtracted."""
    least: int = 8
    """Prompts that a category needs; for the refusal direction, refused ones."""
    n_shuffles: int = 200
    """Shuffles of the category labels."""
    n_halvings: int = 20
    """Random halvings of every category."""
    max_new_tokens: int = 24
    """Length of the replies that say what is refused."""
    seed: int = 0
    """Of shuffles, halvings and the bootstrap."""

    def __post_init__(self) -> None:
        wanted = {"n_per_category": 2, "n_harmless": 4, "least": 2, "n_shuffles": 1, "n_halvings": 1}
        for name, least in wanted.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """`harmfulness/{ending}` and `refusal/{ending}` [category, layer, d_model], categories as in `numbers`."""


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Run the experiment on all splits of the harmful prompts that carry a category.

    Args:
        out: run folder; finished parts are kept beside it until the run is whole, and a run started again continues.

    Raises:
        ValueError: fewer than three categories with enough prompts, or prompts whose endings were changed already.
    """
    config = config or Config()
    if prompts.ending != "as-is":
        raise ValueError(f"this experiment compares endings itself; load {prompts.name} with ending='as-is'")
    watch = Stopwatch()
    parts = None
    if out is not None:
        settings = {"config": asdict(config), "model": model.provenance, "prompts": prompts.provenance}
        parts = Parts(out, settings)
    harmful, labels, names = labelled(prompts, config)
    harmless = pooled(prompts, "harmless").first(config.n_harmless)

    # 1. What the model refuses.
    def replies() -> dict[str, list[bool]]:
        return {
            kind: list(
                respond(
                    model,
                    part,
                    substrings="zhao",
                    max_new_tokens=config.max_new_tokens,
                    show_progress=show_progress,
                ).refused
            )
            for kind, part in (("harmful", harmful), ("harmless", harmless))
        }

    refused = parts.numbers("replies", replies) if parts else replies()
    groups = _groups(refused, labels, names, config)
    watch.lap("replies")

    # 2. Directions, and what they are compared with.
    tensors: dict[str, Tensor] = {}
    tables: dict[str, dict[str, Any]] = {}
    for ending in ENDINGS:

        def measure(ending: str = ending) -> dict[str, Tensor]:
            read = {
                kind: states(
                    model,
                    [with_ending(text, ending) for text in part.texts],  # pyright: ignore[reportArgumentType]
                    show_progress=show_progress,
                )
                for kind, part in (("harmful", harmful), ("harmless", harmless))
            }
            found = {}
            for role, direction in enumerate(DIRECTIONS):
                group = groups[direction]
                compared = compare(
                    read["harmful"][group.rows, :, role],
                    group.places,
                    read["harmless"][group.harmless, :, role],
                    config,
                )
                found |= {f"{direction}/{key}": value for key, value in compared.items()}
            return found

        found = parts.tensors(f"directions-{ending}", measure) if parts else measure()
        tensors |= {f"{direction}/{ending}": found[f"{direction}/directions"] for direction in DIRECTIONS}
        tables[ending] = {
            direction: {**_numbers(found, direction, config), "categories": groups[direction].names(names)}
            for direction in DIRECTIONS
        }
        tables[ending]["summary"] = summary(found, groups["harmfulness"], groups["refusal"], config)
        watch.lap(f"directions, {ending}")

    half = len(harmless) // 2
    rows = list(range(len(harmful)))
    leaks = {
        ending: leak_check(
            model,
            train=(
                harmful.take(rows[::2]).with_ending(ending),
                harmless.take(list(range(half))).with_ending(ending),
            ),
            held_out=(
                harmful.take(rows[1::2]).with_ending(ending),
                harmless.take(list(range(half, len(harmless)))).with_ending(ending),
            ),
            label=f"{prompts.name}, {ending}",
        ).as_dict()
        for ending in ENDINGS
    }
    watch.lap("leak check")
    numbers = {
        "experiment": NAME,
        "categories": names,
        "counts": {
            name: {
                "prompts": int((labels == i).sum()),
                "refused": sum(f for f, a in zip(refused["harmful"], labels.tolist(), strict=True) if a == i),
            }
            for i, name in enumerate(names)
        },
        "harmless": {"prompts": len(harmless), "answered": refused["harmless"].count(False)},
        "filtered": groups["refusal"].filtered,
        "by_ending": tables,
        "leak_check": leaks,
        "seconds": watch.with_total,
        "provenance": provenance(model.provenance, prompts.provenance, config),
    }
    result = Result(numbers=numbers, tensors=tensors)
    if out is not None:
        result.save(out)
        assert parts is not None
        parts.discard()
    return result


def pooled(prompts: PromptSet, kind: Kind) -> Prompts:
    """All splits of a kind as one, in order; a text that stands in several once."""
    texts, ids, categories = [], [], []
    seen: set[str] = set()
    for (other, _), part in prompts.parts.items():
        if other != kind:
            continue
        for text, name, category in zip(part.texts, part.ids, part.categories, strict=True):
            if text not in seen:
                seen.add(text)
                texts.append(text)
                ids.append(name)
                categories.append(category)
    if not texts:
        raise ValueError(f"prompt set {prompts.name} has no {kind} prompts")
    return Prompts(tuple(texts), tuple(ids), tuple(categories), f"{prompts.name}/{kind}")


def labelled(prompts: PromptSet, config: Config) -> tuple[Prompts, Tensor, list[str]]:
    """Harmful prompts of the categories that have enough, their category's number, and the categories' names.

    Raises:
        ValueError: fewer than three such categories.
    """
    everything = pooled(prompts, "harmful")
    by: dict[str, list[int]] = {}
    for row, category in enumerate(everything.categories):
        if category is not None:
            by.setdefault(category, []).append(row)
    names = sorted(name for name, rows in by.items() if len(rows) >= config.least)
    if len(names) < _LEAST_CATEGORIES:
        had = ", ".join(f"{name} {len(rows)}" for name, rows in sorted(by.items())) or "none"
        raise ValueError(
            f"{prompts.name} must have {_LEAST_CATEGORIES} harm categories of {config.least} prompts or more, got "
            f"{had}; give a file with a column category"
        )
    rows = [row for name in names for row in by[name][: config.n_per_category]]
    places = [i for i, name in enumerate(names) for _ in by[name][: config.n_per_category]]
    return everything.take(rows), torch.tensor(places), names


@dataclass(frozen=True, eq=False, kw_only=True)
class _Group:
    """Prompts that one kind of direction is fitted on."""

    rows: list[int]
    places: Tensor
    """Category of each row, counted among those that are kept."""
    harmless: list[int]
    kept: list[int]
    """Categories that are kept."""
    filtered: bool
    """Whether only prompts that behave were taken."""

    def names(self, names: Sequence[str]) -> list[str]:
        return [names[i] for i in self.kept]


def _groups(
    refused: Mapping[str, Sequence[bool]], labels: Tensor, names: Sequence[str], config: Config
) -> dict[str, _Group]:
    """Harmfulness takes every prompt; refusal what is refused, and answered, where enough categories allow it."""
    every = list(range(len(names)))
    all_rows, all_harmless = list(range(len(labels))), list(range(len(refused["harmless"])))
    whole = _Group(rows=all_rows, places=labels, harmless=all_harmless, kept=every, filtered=False)
    said = torch.tensor(list(refused["harmful"]))
    kept = [i for i in every if int((said & (labels == i)).sum()) >= config.least]
    answered = [row for row in all_harmless if not refused["harmless"][row]]
    if len(kept) < _LEAST_CATEGORIES or len(answered) < 2 * config.least:
        return {"harmfulness": whole, "refusal": whole}
    rows = [row for row in all_rows if said[row] and int(labels[row]) in kept]
    places = torch.tensor([kept.index(int(labels[row])) for row in rows])
    behaving = _Group(rows=rows, places=places, harmless=answered, kept=kept, filtered=True)
    return {"harmfulness": whole, "refusal": behaving}


def compare(
    harmful: Float[Tensor, "prompt layer d_model"],
    labels: Tensor,
    harmless: Float[Tensor, "harmless layer d_model"],
    config: Config,
) -> dict[str, Tensor]:
    """Directions per category, their cosines, and the three controls.

    Args:
        labels: category of each harmful prompt, 0..C-1.

    Returns:
        `directions` [category, layer, d_model]; `cosines` [layer, category, category]; off-diagonal means `shuffled`
        [shuffle, layer], `sham` [draw, layer]; `within` and `between` [halving, layer], mean cosine of one half of a
        category with the other half of itself and of other categories. NaN where a layer has no direction.
    """
    generator = torch.Generator().manual_seed(config.seed)
    # Everything is measured from the harmless mean, so that float32 sums lose nothing; differences are the same.
    origin = harmless.double().mean(0)
    x = (harmful.double() - origin).float()
    y = (harmless.double() - origin).float()
    sizes = labels.bincount()
    directions = _means(x, labels, sizes)
    scale = torch.linalg.vector_norm(harmless.double(), dim=-1).mean(0)
    # A constant token leaves rounding, which is no direction.
    none = torch.linalg.vector_norm(directions.double(), dim=-1).amax(0) < 1e-5 * scale

    def kept(values: Tensor) -> Tensor:
        return torch.where(none, torch.nan, values)

    cosines = cosine_matrix(directions)
    cosines[none] = torch.nan
    shuffled = [
        off_diagonal(
            cosine_matrix(_means(x, labels[torch.randperm(len(labels), generator=generator)], sizes))
        )
        for _ in range(config.n_shuffles)
    ]
    within, between, sham = [], [], []
    for _ in range(config.n_halvings):
        halves = [_halved(labels, generator), _halved(torch.zeros(len(y), dtype=torch.long), generator)]
        first, second = (
            _means(x[halves[0] == h], labels[halves[0] == h], sizes) - y[halves[1] == h].mean(0)
            for h in (0, 1)
        )
        crossed = einsum(unit(first.double()), unit(second.double()), "a layer d, b layer d -> layer a b")
        within.append(kept(crossed.diagonal(dim1=1, dim2=2).mean(1)))
        between.append(kept(off_diagonal(crossed)))
        sham.append(kept(_sham(y, sizes, generator)))
    return {
        "directions": directions,
        "cosines": cosines,
        "shuffled": kept(torch.stack(shuffled)),
        "sham": torch.stack(sham),
        "within": torch.stack(within),
        "between": torch.stack(between),
    }


def off_diagonal(matrix: Float[Tensor, "layer category category"]) -> Float[Tensor, " layer"]:
    """Mean over pairs of different categories."""
    c = matrix.shape[-1]
    return (matrix.sum((1, 2)) - matrix.diagonal(dim1=1, dim2=2).sum(1)) / (c * (c - 1))


def _means(x: Tensor, labels: Tensor, sizes: Tensor) -> Float[Tensor, "category layer d_model"]:
    """Mean of each category, by one matrix product."""
    weights = torch.nn.functional.one_hot(labels, len(sizes)).T.float()
    weights = weights / weights.sum(1, keepdim=True)
    return einsum(weights.to(x), x, "category prompt, prompt layer d -> category layer d")


def _halved(labels: Tensor, generator: torch.Generator) -> Tensor:
    """0 or 1 for each row, half and half in every category."""
    half = torch.empty(len(labels), dtype=torch.long)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        half[rows] = torch.arange(len(rows)) % 2
    return half


def _sham(y: Tensor, sizes: Tensor, generator: torch.Generator) -> Float[Tensor, " layer"]:
    """Off-diagonal mean of directions that share nothing but their reference.

    Harmless prompts are dealt into categories and a reference that stand in the real proportions, on which this cosine
    depends, and have no prompt in common.
    """
    share = len(y) / (len(y) + int(sizes.sum()))
    wanted = [max(1, int(share * int(size))) for size in sizes]
    order = torch.randperm(len(y), generator=generator)
    *dealt, rest = order.split([*wanted, len(y) - sum(wanted)])
    return off_diagonal(cosine_matrix(torch.stack([y[rows].mean(0) for rows in dealt]) - y[rest].mean(0)))


def _numbers(found: Mapping[str, Tensor], direction: str, config: Config) -> dict[str, Any]:
    """One kind of direction, as stored: the matrix, and per layer the off-diagonal mean and its controls."""
    cosines, shuffled = found[f"{direction}/cosines"], found[f"{direction}/shuffled"]
    draws = _resampled(cosines, config.seed)
    return {
        "cosines": cosines.tolist(),
        "off_diagonal": _rates(off_diagonal(cosines), draws, cosines.shape[1]),
        "shuffled": _rates(shuffled.mean(0), shuffled, len(shuffled)),
        "sham": found[f"{direction}/sham"].mean(0).tolist(),
        "within": found[f"{direction}/within"].mean(0).tolist(),
        "between": found[f"{direction}/between"].mean(0).tolist(),
    }


def summary(
    found: Mapping[str, Tensor], harmfulness: _Group, refusal: _Group, config: Config
) -> dict[str, Any]:
    """Means over all layers that have a direction: off-diagonal with interval, and what the claims rest on."""
    said: dict[str, Any] = {}
    for direction in DIRECTIONS:
        cosines, shuffled = (found[f"{direction}/{key}"] for key in ("cosines", "shuffled"))
        value = off_diagonal(cosines).nanmean()
        draws = _resampled(cosines, config.seed).nanmean(1)
        null = shuffled.nanmean(1)
        said[direction] = {
            "off_diagonal": _rate(value, draws, cosines.shape[1]).as_dict(),
            "shuffled": _rate(null.mean(), null, len(null)).as_dict(),
            "p": (int((null <= value).sum()) + 1) / (len(null) + 1),
            **{k: float(found[f"{direction}/{k}"].mean(0).nanmean()) for k in ("sham", "within", "between")},
        }
    both = [i for i, a in enumerate(harmfulness.kept) if a in refusal.kept]
    own = [refusal.kept.index(harmfulness.kept[i]) for i in both]
    harm = found["harmfulness/cosines"][:, both][:, :, both]
    gap = found["refusal/cosines"][:, own][:, :, own] - harm
    said["refusal - harmfulness"] = _rate(
        off_diagonal(gap).nanmean(), _resampled(gap, config.seed).nanmean(1), len(both)
    ).as_dict()
    return said


def _resampled(matrix: Tensor, seed: int, draws: int = 1000) -> Float[Tensor, "draw layer"]:
    """Off-diagonal means over categories drawn with replacement; pairs of one category with itself are left out."""
    generator = torch.Generator().manual_seed(seed)
    n = matrix.shape[1]
    counts = torch.stack(
        [torch.randint(n, (n,), generator=generator).bincount(minlength=n) for _ in range(draws)]
    )
    weights = einsum(counts.double(), counts.double(), "draw a, draw b -> draw a b")
    weights = weights * (1 - torch.eye(n, dtype=torch.float64))
    weights = weights[weights.sum((1, 2)) > 0]  # a draw of one category only has no pairs
    weights = weights / weights.sum((1, 2), keepdim=True)
    return einsum(weights, matrix.double(), "draw a b, layer a b -> draw layer")


def _rate(value: Tensor, draws: Float[Tensor, " draw"], n: int) -> Estimate:
    known = draws[~draws.isnan()].double()
    if value.isnan() or len(known) == 0:
        return Estimate(value=float("nan"), n=n, low=float("nan"), high=float("nan"))
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value=float(value), n=n, low=low, high=high)


def _rates(values: Tensor, draws: Float[Tensor, "draw layer"], n: int) -> list[dict[str, Any]]:
    return [_rate(value, draws[:, layer], n).as_dict() for layer, value in enumerate(values)]
