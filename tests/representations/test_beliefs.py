"""Beliefs on planted truth: known harm and refusal axes give the right signs, and swapped positions the wrong ones."""

import pytest
import torch
from torch import Tensor

from interp.engine.activations import collect
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import (
    belief,
    both_beliefs,
    cosine_margin,
    fit_both_centres,
    fit_centres,
    states,
)
from tests.conftest import PROMPTS

LAYERS, WIDTH = 5, 64


def planted(n: int, harmful: bool, refused: bool, seed: int) -> tuple[Tensor, Tensor]:
    """States at t_inst, along a harm axis, and at t_post_inst, along a refusal axis."""
    generator = torch.Generator().manual_seed(99)
    common, harm, refuse = torch.randn(3, LAYERS, WIDTH, generator=generator)
    noise = torch.Generator().manual_seed(seed)
    inst = common + (1 if harmful else -1) * harm + 0.3 * torch.randn(n, LAYERS, WIDTH, generator=noise)
    post = common + (1 if refused else -1) * refuse + 0.3 * torch.randn(n, LAYERS, WIDTH, generator=noise)
    return inst, post


def test_planted_groups_get_the_right_signs_and_swapped_positions_the_wrong_ones() -> None:
    refused_harmful, answered_harmless = planted(40, True, True, 0), planted(40, False, False, 1)
    harm, refusal = (fit_centres(a, b) for a, b in zip(refused_harmful, answered_harmless, strict=True))
    accepted_harmful, refused_harmless = planted(30, True, False, 2), planted(30, False, True, 3)
    for group, harmful in ((accepted_harmful, True), (refused_harmless, False)):
        assert ((belief(harm.margin(group[0])) > 0) == harmful).all()
        assert ((belief(refusal.margin(group[1])) > 0) == (not harmful)).all()
        # Control: read at the other position, the harm belief follows refusal.
        swapped = belief(refusal.margin(group[1]))
        assert ((swapped > 0) != harmful).all()


def test_margin_is_the_difference_of_cosines_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(3, LAYERS, WIDTH, generator=generator)
    a, b = torch.randn(2, LAYERS, WIDTH, generator=generator)
    found = cosine_margin(h, a, b)
    cos = torch.nn.functional.cosine_similarity
    expected = cos(h.double(), a.double()[None], dim=-1) - cos(h.double(), b.double()[None], dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.dtype == torch.float64
    torch.testing.assert_close(belief(found), expected.mean(1))
    torch.testing.assert_close(belief(found, [1, -1]), expected[:, [1, 4]].mean(1))


def test_zero_vectors_give_0_and_strides_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(3, LAYERS, 7 * WIDTH, generator=generator).half()
    strided = wide[:, :, ::7]
    a, b = torch.randn(2, LAYERS, WIDTH, generator=generator)
    assert not strided.is_contiguous()
    torch.testing.assert_close(cosine_margin(strided, a, b), cosine_margin(strided.contiguous(), a, b))
    zero = torch.zeros(2, LAYERS, WIDTH)
    assert (cosine_margin(zero, a, b) == 0).all()
    torch.testing.assert_close(
        cosine_margin(strided, a, torch.zeros_like(b)), cosine_margin(strided, a, b * 0), rtol=0, atol=0
    )


def test_states_count_layers_as_the_source_does(tiny: ChatModel) -> None:
    read = states(tiny, PROMPTS)
    assert read.shape == (len(PROMPTS), tiny.n_layers + 1, 2, tiny.d_model)
    before = collect(tiny, PROMPTS)["resid_pre"]
    after = collect(tiny, PROMPTS, sites=["resid_post"])["resid_post"]
    torch.testing.assert_close(read[:, :-1], before)
    torch.testing.assert_close(
        read[:, 1:], after, rtol=1e-4, atol=1e-5
    )  # resid_post of l is resid_pre of l + 1


def test_layer_0_of_a_template_token_says_nothing(tiny: ChatModel) -> None:
    read = states(tiny, PROMPTS, positions="t_post_inst")[:, :, 0]
    margin = fit_centres(read[:3], read[3:]).margin(read)
    assert margin[:, 0].abs().max() < 1e-6
    assert margin[:, 1:].abs().max() > 1e-3  # control


def test_both_beliefs_are_each_the_belief_at_its_own_role() -> None:
    generator = torch.Generator().manual_seed(0)
    harmful, harmless, read = (torch.randn(n, 4, 2, 8, generator=generator) for n in (5, 6, 7))
    both = both_beliefs(read, fit_both_centres(harmful, harmless))
    for role, value in enumerate((both.harm, both.refusal)):
        centres = fit_centres(harmful[:, :, role], harmless[:, :, role])
        assert torch.equal(value, belief(centres.margin(read[:, :, role])))
    assert not torch.allclose(both.harm, both.refusal)


def test_mistakes_are_named() -> None:
    ones = torch.ones(1, LAYERS, WIDTH)
    with pytest.raises(ValueError, match="the negative group is empty"):
        fit_centres(ones, ones[:0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_centres(ones * float("nan"), ones)
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.4, got 9"):
        belief(torch.zeros(2, LAYERS, dtype=torch.float64), [9])
    with pytest.raises(ValueError, match=r"layers must be an int, a range, .*; got none"):
        belief(torch.zeros(2, LAYERS, dtype=torch.float64), [])
