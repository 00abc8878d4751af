"""What one direction per harm category costs, by stage (`interp.experiments.plans`)."""

from interp.data.prompt_sets import COMPARED_ENDINGS, Kind, Prompts
from interp.engine.costs import Work
from interp.experiments.categories import Config
from interp.experiments.sizes import Sizes

BOUNDS = "replies at full length; they end early where the model refuses"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage."""
    pooled = _pooled(sizes, "harmful")
    by: dict[str, list[int]] = {}
    for row, category in enumerate(pooled.categories):
        if category is not None:
            by.setdefault(category, []).append(row)
    rows = [
        row
        for own in by.values()
        if len(own) >= config.min_per_category
        for row in own[: config.n_per_category]
    ]
    asked = (pooled.take(rows), _pooled(sizes, "harmless").first(config.n_harmless))
    return {
        "replies": Work.total(sizes.replies(part, config.max_new_tokens) for part in asked),
        **{
            f"directions, {ending}": Work.total(sizes.read(part.with_ending(ending)) for part in asked)
            for ending in COMPARED_ENDINGS
        },
    }


def _pooled(sizes: Sizes, kind: Kind) -> Prompts:
    """All splits of a kind, without repeated texts."""
    parts = [part for (other, _), part in sizes.prompts.parts.items() if other == kind]
    rows = {
        text: (name, category)
        for part in reversed(parts)
        for text, name, category in zip(part.texts, part.ids, part.categories, strict=True)
    }
    names, categories = zip(*rows.values(), strict=True) if rows else ((), ())
    return Prompts(tuple(rows), tuple(names), tuple(categories), kind)
