"""Contrasts of controls: balanced in harm, disjoint, and none where prompts are few."""

from interp.data.prompt_sets import Prompts
from interp.data.prompts import load_prompts
from interp.tracking.controls import contrasts


def test_contrasts_hold_as_many_harmful_as_harmless_prompts() -> None:
    builtin = load_prompts("builtin")
    harmful, harmless = (builtin[kind, "train"].first(64) for kind in ("harmful", "harmless"))
    for name, contrast in contrasts(harmful, harmless).items():
        for side in contrast:
            assert sum(row < 64 for row in side) * 2 == len(side), name  # as many harmful as harmless
        assert not set(contrast.positive) & set(contrast.negative)
    assert "question or instruction" in contrasts(harmful, harmless)
    few = Prompts(texts=("a",) * 5, ids=("x",) * 5, categories=(None,) * 5, source="few")
    assert contrasts(few, few) == {}
