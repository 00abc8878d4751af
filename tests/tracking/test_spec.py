"""What a spec refuses, and what it fills in."""

from dataclasses import replace
from pathlib import Path

import pytest

from interp.data.corpora import Corpus
from interp.data.prompts import load_prompts
from interp.tracking.spec import TrackingSpec
from interp.tracking.trajectory import Trajectory
from tests.tracking.conftest import SMALL


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="n_fit must be 1 or more, got 0"):
        TrackingSpec(n_fit=0)
    with pytest.raises(ValueError, match=r"measures must be some of refusal, .*; got none"):
        TrackingSpec(measures=())


def test_prompts_without_borderline_ones_are_measured_on_the_builtin_ones() -> None:
    builtin = load_prompts("builtin")
    parts = {key: part for key, part in builtin.parts.items() if key[0] != "borderline"}
    spec = TrackingSpec(prompts=replace(builtin, parts=parts), n=5)
    assert spec.part("borderline", "test").texts == builtin["borderline", "test"].texts[:5]
    assert ("borderline", "test") not in spec.prompts  # the set that was given stays as it was
    assert "borderline/test" in spec.key["prompts"]["splits"]
    assert TrackingSpec(prompts=builtin).measured_prompts is builtin


def test_equal_specs_have_equal_keys_and_others_do_not(tracked: tuple[Trajectory, Path]) -> None:
    record = tracked[0].record
    spec = TrackingSpec(prompts=load_prompts("builtin"), **SMALL)
    assert spec.key == TrackingSpec(**SMALL).key and spec.measured_as(record)
    news = {"news": Corpus("news", ("Rain fell.",))}
    others = (
        replace(spec, n=4),
        replace(spec, corpora=news),
        replace(spec, prompts=load_prompts("builtin", ending="period")),
    )
    for other in others:
        assert other.key != spec.key and not other.measured_as(record)
