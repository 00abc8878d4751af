"""Settings are refused when they are made, whatever experiment they belong to."""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch

from interp.experiments import EXPERIMENTS
from interp.experiments.running import experiment
from interp.representations.selection import Rule
from interp.storage.settings import CheckedSettings, Count, OpenShare, Positive
from interp.tracking.spec import TrackingSpec
from interp.training.config import TrainConfig

CONFIGS = [experiment(name).config for name in EXPERIMENTS] + [TrainConfig, TrackingSpec]


@dataclass(frozen=True, kw_only=True)
class Plain(CheckedSettings):
    n: Count = 3
    rest: int = 0
    grid: tuple[int, ...] = (1, 2)
    rate: Positive = 0.1
    share: OpenShare = 0.5
    threshold: float | None = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "n must be 1 or more, got 0"),
        ({"rest": -1}, "rest must be 0 or more, got -1"),
        ({"rest": 10**30}, r"rest must be below 2\*\*63, got 1000"),
        ({"grid": (1, -2)}, r"grid must be 0 or more, got \(1, -2\)"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
        ({"rate": math.nan}, "rate must be"),
        ({"rate": math.inf}, "rate must be a finite number, got inf"),
        ({"share": 1.0}, "share must be below 1, got 1.0"),
        ({"threshold": math.nan}, "threshold must be a finite number, got nan"),
        ({"threshold": -math.inf}, "threshold must be a finite number, got -inf"),
        ({"n": True}, "n must be a number, not a truth value, got True"),
        ({"rate": True}, "rate must be a number, not a truth value"),
        ({"grid": (1, True)}, r"grid must be a number, not a truth value, got \(1, True\)"),
        ({"n": "many"}, "n: input should be a valid integer"),
    ],
)
def test_bounds_are_checked_when_settings_are_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plain(**given)
    assert Plain(threshold=-0.5, rest=0).threshold == -0.5
    for given in ({"n": "5"}, {"n": 5.0}):  # what is validated is what is used
        number = Plain(**given).n  # pyright: ignore[reportArgumentType]
        assert (number, type(number)) == (5, int)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": np.int64(-3)}, "n must be 1 or more, got -3"),
        ({"rest": torch.tensor(-1)}, "rest must be 0 or more, got -1"),
        ({"rate": np.float32("nan")}, "rate must be above 0, got nan"),
        ({"share": np.float32(2)}, "share must be below 1, got 2.0"),
        ({"n": np.bool_(True)}, "n must be a number, not a truth value, got True"),
        ({"grid": (1, np.int64(-2))}, r"grid must be 0 or more, got \(1, -2\)"),
        ({"grid": np.array([1, -2])}, r"grid must be 0 or more, got \(1, -2\)"),
        ({"rate": np.array([0.1, 0.2])}, "rate.*should be a valid number, got"),
        ({"threshold": torch.tensor(float("inf"))}, "threshold must be a finite number, got inf"),
    ],
)
def test_numbers_of_numpy_and_torch_are_checked_as_those_of_python(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Plain(**given)


def test_numbers_of_numpy_and_torch_become_those_of_python() -> None:
    settings = Plain(
        n=np.int64(5),  # pyright: ignore[reportArgumentType]
        rate=np.float32(0.5),  # pyright: ignore[reportArgumentType]
        share=torch.tensor(0.25),  # pyright: ignore[reportArgumentType]
        grid=np.array([3, 4]),  # pyright: ignore[reportArgumentType]
        threshold=np.float64(1.5),
    )
    assert json.loads(json.dumps(asdict(settings)))["n"] == 5  # files of settings hold plain numbers
    values = [getattr(settings, field.name) for field in fields(settings)]
    assert values == [5, 0, (3, 4), 0.5, 0.25, 1.5]
    assert [type(value) for value in values] == [int, int, tuple, float, float, float]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda kind: kind.__module__.split(".")[-1])
def test_no_number_of_any_experiment_may_be_negative_or_not_finite(config: type[Any]) -> None:
    defaults = config()
    numbers = [f.name for f in fields(config) if type(getattr(defaults, f.name)) in (int, float)]
    assert numbers
    for name in numbers:
        wrong = [-1] if type(getattr(defaults, name)) is int else [math.nan, math.inf, -math.inf]
        for value in wrong:
            with pytest.raises(ValueError, match=rf"{name} must be"):
                config(**{name: value})


def test_a_rule_for_candidates_may_be_infinite_but_not_nan() -> None:
    assert Rule(kl_threshold=math.inf).kl_threshold == math.inf
    with pytest.raises(ValueError, match="kl_threshold must be a number or infinite"):
        Rule(kl_threshold=math.nan)
    with pytest.raises(ValueError, match=r"prune_layer_fraction must lie within 0..1, got 1.5"):
        Rule(prune_layer_fraction=1.5)
