"""The theorems of ablation and addition, on every covered family."""

import numpy as np
import pytest
import torch

from interp.directions import Direction, unit
from interp.engine.activations import collect
from interp.engine.applying import apply
from interp.engine.interventions import Ablate, Add, intervention_list, new_token_limit
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from tests.conftest import PROMPTS
from tests.engine.vectors import logits, vector


def test_ablation_zeroes_the_projection_and_is_idempotent() -> None:
    resid, u = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)), unit(vector())
    ablate = Ablate(direction=vector())
    once = ablate(resid)
    assert (resid @ u).abs().max() > 0.1  # control: there was something to remove
    assert (once @ u).abs().max() < 1e-5  # float32 round-off at unit scale
    torch.testing.assert_close(ablate(once), once)


def test_adding_then_ablating_equals_ablating_and_subtracting_restores() -> None:
    resid = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    ablate, add = Ablate(direction=vector()), Add(direction=vector(), layers=[0], coefficient=3.0)
    torch.testing.assert_close(ablate(add(resid)), ablate(resid), rtol=1e-4, atol=1e-5)
    back = Add(direction=vector(), layers=[0], coefficient=-3.0)
    torch.testing.assert_close(back(add(resid)), resid, rtol=1e-5, atol=1e-5)


def test_a_zero_direction_changes_nothing(tiny: ChatModel, tokens: ChatTokens) -> None:
    before = logits(tiny, tokens)
    with apply(tiny, [Ablate(direction=torch.zeros(32))]):
        assert torch.equal(logits(tiny, tokens), before)


def test_ablated_projection_is_zero_at_every_site(family: ChatModel) -> None:
    sites = [
        s
        for s in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        if not (s == "resid_mid" and family.is_parallel)
    ]
    u = unit(vector())
    plain = collect(family, PROMPTS[:2], sites=sites, positions=["post_inst"])
    ablated = collect(
        family, PROMPTS[:2], sites=sites, positions=["post_inst"], interventions=[Ablate(direction=vector())]
    )
    for site in sites:
        scale = plain[site].norm(dim=-1).max()
        assert (plain[site] @ u).abs().max() > 1e-3 * scale  # control
        assert (ablated[site] @ u).abs().max() < 1e-5 * scale


def test_relative_norms_are_relative_to_the_mean_activation_norm() -> None:
    direction = Direction(vector=vector(), layer=1, position="t_inst", mean_activation_norm=10.0)
    step = Add(direction, relative_norm=0.5)(torch.zeros(1, 1, 32))
    assert step.norm().item() == pytest.approx(5.0, rel=1e-5)
    assert Add(direction, coefficient=2.0).layers == (1,)
    with pytest.raises(ValueError, match="needs a direction with its mean_activation_norm"):
        Add(Direction(vector=vector(), layer=1, position="t_inst"), relative_norm=1.0)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Ablate(direction=torch.full((32,), float("nan")))
    with pytest.raises(ValueError, match=r"the addition overflows \(coefficient 1, largest entry .*e\+38\)"):
        Add(direction=1e38 * vector(), layers=[0])
    with pytest.raises(ValueError, match=r"positions must be a role, a region or a list of at least one"):
        Add(direction=vector(), layers=[0], positions=[])
    with pytest.raises(ValueError, match="new_tokens must be 0 or more"):
        Add(direction=vector(), layers=[0], new_tokens=-1)
    with pytest.raises(ValueError, match=r"new_tokens must be a whole number, got True"):
        Add(direction=vector(), layers=[0], new_tokens=True)


def test_a_number_of_generated_tokens_counts_whoever_made_it() -> None:
    """What is no int of Python was taken for `none`, and nothing was steered."""
    for count in (3, np.int64(3), torch.tensor(3)):
        assert new_token_limit(Ablate(vector(), new_tokens=count)) == 3


def test_one_intervention_by_itself_is_a_list_of_one() -> None:
    one = Ablate(vector())
    assert intervention_list(one) == intervention_list([one]) == intervention_list((one,)) == [one]
    assert intervention_list(None) == intervention_list(()) == []
    for wrong in (
        vector(),
        [vector()],
        "ablate",
        Direction(vector=vector(), layer=0, position="t_inst"),
        [None],
    ):
        with pytest.raises(
            ValueError, match=r"an intervention is Ablate\(direction\) or Add\(direction\), got"
        ):
            intervention_list(wrong)
