"""The dimension of planted sets is recovered."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from interp.detectors.machine_text import intrinsic_dimension
from interp.detectors.machine_text.intrinsic_dimension import (
    MAX_POINTS,
    MIN_POINTS,
    _tree_length,
    persistent_homology_dimension,
)


@pytest.mark.parametrize("dimension", [2, 5, 9])
def test_a_cube_of_known_dimension_in_a_wide_space_is_measured(dimension: int) -> None:
    generator = torch.Generator().manual_seed(dimension)
    inside = torch.rand(400, dimension, generator=generator)
    basis = torch.linalg.qr(torch.randn(64, dimension, generator=generator))[0]
    # 400 points: the estimate is known to be low in high dimensions, where most points lie near the surface.
    assert persistent_homology_dimension(inside @ basis.T) == pytest.approx(dimension, rel=0.25)


def test_more_dimensions_are_more() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [persistent_homology_dimension(torch.rand(150, d, generator=generator)) for d in (2, 4, 8)]
    assert found[0] < found[1] < found[2]


def test_the_trees_are_minimum_spanning_trees() -> None:
    points = torch.rand(70, 3, generator=torch.Generator().manual_seed(1)).double().numpy()
    distances = squareform(pdist(points))
    rows = torch.arange(20, 70).numpy()
    expected = minimum_spanning_tree(distances[20:, 20:]).sum()
    assert _tree_length(distances, rows) == pytest.approx(expected)


def test_few_points_and_equal_points_have_none() -> None:
    assert math.isnan(persistent_homology_dimension(torch.rand(MIN_POINTS - 1, 8)))
    assert math.isnan(persistent_homology_dimension(torch.ones(MIN_POINTS, 8)))


def test_a_long_text_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measured(points: np.ndarray) -> np.ndarray:
        sizes.append(len(points))
        return pdist(points)

    monkeypatch.setattr(intrinsic_dimension, "pdist", measured)
    points = torch.rand(6000, 3, generator=torch.Generator().manual_seed(2))
    found = [persistent_homology_dimension(part) for part in (points, points[:MAX_POINTS])]
    assert sizes == [MAX_POINTS, MAX_POINTS]
    assert found == pytest.approx([3, 3], rel=0.25)
