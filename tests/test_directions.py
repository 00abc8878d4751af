"""Directions: planted ones are found, random ones are not, and the algebra holds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp.directions import (
    Direction,
    cosine,
    difference_in_means,
    mean_norm,
    orthogonalised,
    pca_direction,
    probe_direction,
    project,
    random_direction,
    unit,
)

D_MODEL = 32
ESTIMATORS = (difference_in_means, pca_direction, probe_direction)
Estimator = Callable[[Tensor, Tensor], Tensor]


def planted(seed: int = 0, n: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """A unit direction and two sets of unit noise, 3 apart along it, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    truth = unit(torch.randn(D_MODEL, generator=generator))
    offset = 5 * torch.randn(D_MODEL, generator=generator)
    noise = torch.randn(2, n, D_MODEL, generator=generator)
    return truth, noise[0] + offset + 1.5 * truth, noise[1] + offset - 1.5 * truth


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_direction_is_recovered_and_points_to_the_positive_set(
    estimate: Estimator, seed: int
) -> None:
    truth, positive, negative = planted(seed)
    found = estimate(positive, negative)
    assert found.dtype == torch.float32
    assert cosine(found, truth).item() > 0.95
    assert cosine(estimate(negative, positive), truth).item() < -0.95
    # Controls: neither chance nor the sets' common offset gives it.
    assert abs(cosine(random_direction(found, seed=seed), truth).item()) < 0.6  # 3.4 sd of 1 / sqrt(32)
    mixed = torch.cat([positive[:500], negative[:500]]), torch.cat([positive[500:], negative[500:]])
    if estimate is not pca_direction:  # labels do not enter the component itself
        assert abs(cosine(estimate(*mixed), truth).item()) < 0.6


def test_lengths_of_the_estimates() -> None:
    truth, positive, negative = planted()
    # 3 is the planted distance; the error of a mean of 1,000 in 32 dimensions is 0.25.
    assert difference_in_means(positive, negative).norm().item() == pytest.approx(3, abs=0.25)
    for estimate in (pca_direction, probe_direction):
        assert estimate(positive, negative).norm().item() == pytest.approx(1, abs=1e-5)
    weak = probe_direction(positive, negative, l2=1e4)
    assert cosine(weak, truth).item() > 0.9


def test_probe_weights_are_those_of_the_raw_activations() -> None:
    truth, positive, negative = planted()
    scale = torch.logspace(-2, 2, D_MODEL)
    found = probe_direction(positive * scale, negative * scale)
    # Scaling a coordinate by s scales its weight by 1 / s.
    assert cosine(found, truth / scale).item() > 0.95
    assert cosine(found, truth * scale).item() < 0.5


def test_difference_in_means_equals_the_formula_on_every_axis() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(n, 3, 2, D_MODEL, generator=generator) for n in (7, 4))
    found = difference_in_means(positive, negative)
    assert found.shape == (3, 2, D_MODEL)
    expected = sum(positive[i] for i in range(7)) / 7 - sum(negative[i] for i in range(4)) / 4
    torch.testing.assert_close(found, expected)


def test_means_accumulate_in_float64() -> None:
    # At 2**20 neighbouring float32 numbers are 0.125 apart. Every eighth positive activation is one step up, so the
    # true difference is 1/64; a float32 mean cannot hold it.
    negative = torch.full((4096, D_MODEL), 2.0**20)
    positive = negative.clone()
    positive[::8] += 0.125
    assert difference_in_means(positive, negative).tolist() == [1 / 64] * D_MODEL
    assert ((positive.mean(0) - negative.mean(0)) - 1 / 64).abs().min() > 0.01  # control: float32 is off


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_estimates_come_back_in_float32(dtype: torch.dtype) -> None:
    truth, positive, negative = planted()
    for estimate in ESTIMATORS:
        found = estimate(positive.to(dtype), negative.to(dtype))
        assert found.dtype == torch.float32
        assert cosine(found, truth).item() > 0.95


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0)])
def test_an_empty_set_is_refused(estimate: Estimator, n: int, m: int) -> None:
    with pytest.raises(ValueError, match=rf"prompts on both sides, got {n} positive and {m} negative"):
        estimate(torch.ones(n, D_MODEL), torch.ones(m, D_MODEL))


# Algebra


def test_orthogonalised_has_no_component_left() -> None:
    generator = torch.Generator().manual_seed(0)
    direction, to = torch.randn(2, 5, D_MODEL, generator=generator)
    assert project(direction, to).abs().min() > 0.05  # control: there was one
    left = orthogonalised(direction, to)
    assert project(left, to).abs().max() < 1e-5  # float32 round-off at length 6
    torch.testing.assert_close(orthogonalised(left, to), left, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(orthogonalised(direction, 100 * to), left, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left + project(direction, to)[:, None] * unit(to), direction)
    torch.testing.assert_close(orthogonalised(direction, torch.zeros_like(to)), direction)


def test_cosine() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[4.0, 3.0], [0.0, 2.0], [-5.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([0.96, 0.0, -1.0, 0.0]))
    assert cosine(torch.zeros(2), torch.zeros(2)).item() == 0.0
    # Squares of these leave float32.
    assert cosine(torch.full((4,), 1e-30), torch.full((4,), 1e30)).item() == pytest.approx(1, abs=1e-6)


def test_unit_keeps_zero_and_the_dtype() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])
    torch.testing.assert_close(unit(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert unit(rows.bfloat16()).dtype == torch.bfloat16


def test_project_is_a_signed_length_in_units_of_the_activations() -> None:
    activations = torch.tensor([[3.0, 4.0], [-6.0, 1.0]])
    along_x = torch.tensor([7.0, 0.0]).expand(2, 2)
    assert project(activations, along_x).tolist() == [3.0, -6.0]


def test_mean_norm_is_over_prompts_not_of_the_mean() -> None:
    activations = torch.tensor([[[3.0, 4.0]], [[-6.0, -8.0]]])
    assert mean_norm(activations).tolist() == [7.5]


def test_random_direction_is_seeded_and_as_long() -> None:
    like = torch.randn(576, generator=torch.Generator().manual_seed(3)) * 7
    state = torch.get_rng_state()
    drawn = random_direction(like, seed=0)
    assert torch.equal(drawn, random_direction(like, seed=0))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert drawn.norm().item() == pytest.approx(like.norm().item(), rel=1e-5)
    others = torch.stack([random_direction(like, seed=seed) for seed in range(1, 40)])
    assert cosine(others, drawn.expand_as(others)).abs().max() < 0.2  # 4.8 sd of 1 / sqrt(576)
    assert cosine(others, like.expand_as(others)).abs().max() < 0.2
    assert random_direction(like.bfloat16(), seed=0).dtype == torch.bfloat16
    assert not random_direction(torch.zeros(4), seed=0).any()


# Direction


def test_direction_properties_and_negation() -> None:
    direction = Direction(
        vector=torch.tensor([3.0, 4.0]), layer=2, position="t_inst", provenance={"model": "m"}
    )
    assert direction.norm == 5
    torch.testing.assert_close(direction.unit, torch.tensor([0.6, 0.8]))
    negated = -direction
    assert negated.vector.tolist() == [-3, -4]
    assert negated.sign == "-(harmful - harmless)"
    assert (negated.layer, negated.position, negated.provenance) == (2, "t_inst", {"model": "m"})
    assert direction.vector.tolist() == [3, 4]
    assert repr(direction) == (
        "Direction(harmful - harmless, difference_in_means at resid_pre of layer 2, t_inst; norm 5, d_model 2)"
    )
    assert Direction(vector=torch.zeros(2), layer=0, position="x").unit.tolist() == [0, 0]


def test_direction_that_does_not_fit() -> None:
    direction = Direction(vector=torch.ones(16), layer=0, position="t_inst", provenance={"model": "gpt2"})
    direction.check_width(16, "tiny")
    with pytest.raises(
        ValueError,
        match=r"direction has d_model 16, but tiny has 32[:;] it was fitted on another model \(gpt2\)$",
    ):
        direction.check_width(32, "tiny")
    with pytest.raises(ValueError, match=r"fitted on another model$"):
        Direction(vector=torch.ones(16), layer=0, position="t_inst").check_width(32, "tiny")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_direction_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match=r"direction at layer 3, t_inst holds NaN or infinite values"):
        Direction(vector=torch.tensor([1.0, value]), layer=3, position="t_inst")


def test_direction_layer_must_be_resolved() -> None:
    with pytest.raises(ValueError, match=r"layer must be 0 or more, got -1; resolve negative layers first"):
        Direction(vector=torch.ones(2), layer=-1, position="t_inst")


def test_directions_of_one_place_can_be_added_and_scaled(tmp_path) -> None:
    a, b = (Direction(vector=torch.tensor([1.0, n]), layer=2, position="t_inst") for n in (2.0, 5.0))
    assert torch.equal((2 * a - b / 2).vector, torch.tensor([1.5, 1.5]))
    assert torch.equal((a * -1).vector, -a.vector) and (a * -1).sign == (-a).sign
    with pytest.raises(ValueError, match="directions of one place can be added"):
        a + Direction(vector=b.vector, layer=3, position="t_inst")
    for factor in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="multiplied by a finite number"):
            a * factor
    with pytest.raises(ValueError, match="mean_activation_norm must be 0 or more"):
        Direction(vector=a.vector, layer=2, position="t_inst", mean_activation_norm=-1.0)
    read = interp.read_direction((a + b).save(tmp_path / "sum.safetensors"))
    assert torch.equal(read.vector, torch.tensor([2.0, 7.0])) and read.layer == 2


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.ones(8, device="meta"), r"holds plain numbers; got a tensor of torch\.strided on meta"),
        (torch.ones(8).to_sparse(), r"holds plain numbers; got a tensor of torch\.sparse_coo on cpu"),
    ],
)
def test_vectors_without_plain_numbers_are_refused(vector: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Direction(vector=vector, layer=1, position="t_inst")


def test_the_geometry_takes_directions_arrays_and_lists() -> None:
    """What a notebook has at hand: AttributeErrors of numpy arrays once, and 0 for whole numbers."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, generator=generator), torch.randn(4, generator=generator)
    ours = Direction(vector=a, layer=0, position="t_inst")
    for given in (ours, a.numpy(), a.tolist(), a.double().numpy().astype(">f8")):
        torch.testing.assert_close(cosine(given, b.numpy()), cosine(a, b))
        torch.testing.assert_close(project(b, given), project(b, a))
    torch.testing.assert_close(project(torch.tensor([3, 4, 0, 0]), [0.6, 0.8, 0, 0]), torch.tensor(5.0))
    many = torch.randn(5, 4, generator=generator)
    torch.testing.assert_close(
        difference_in_means(many.numpy(), many.tolist()[:2]), difference_in_means(many, many[:2])
    )
    for wrong in ("direction", [[1.0], [2.0, 3.0]], torch.tensor(1.0), torch.ones(4) * 1j):
        with pytest.raises(ValueError, match=r"^vectors "):
            cosine(wrong, b)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"both sides need activations of one shape, got \(5, 4\) and \(5, 3\)"
    ):
        difference_in_means(many.numpy(), many[:, :3].numpy())
    with pytest.raises(ValueError, match="multiplied by a finite number, got 1000"):
        ours * 10**400
