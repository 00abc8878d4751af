"""Cosine of two contrasts: planted truth, the plain formula, and shuffled labels as control."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interp.representations.dissociation import contrast_cosines, shuffled_cosines


def labels(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Harm and refusal by tossing coins."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 2, (n,), generator=generator).bool(),
        torch.randint(0, 2, (n,), generator=generator).bool(),
    )


def planted(harm: Tensor, refused: Tensor, *, same: bool) -> Tensor:
    """Harm along axis 0 of `t_inst`, refusal along axis 0 or 1 of `t_post_inst`; layer 0 is a constant there."""
    hidden = torch.randn(len(harm), 3, 2, 16, generator=torch.Generator().manual_seed(1))
    hidden[:, 1:, 0, 0] += 4.0 * harm[:, None]
    hidden[:, 1:, 1, 0 if same else 1] += 4.0 * refused[:, None]
    hidden[:, 0, 1] = torch.linspace(0.1, 7.3, 16)
    return hidden


def plain(hidden: Tensor, harm: Tensor, refused: Tensor) -> Tensor:
    first, last = hidden[:, :, 0].double(), hidden[:, :, 1].double()
    return cosine_similarity(
        first[harm].mean(0) - first[~harm].mean(0), last[refused].mean(0) - last[~refused].mean(0), dim=-1
    )


def test_independent_axes_are_apart_and_a_common_one_is_found() -> None:
    harm, refused = labels(200, 0)
    apart, together = (planted(harm, refused, same=same) for same in (False, True))
    for hidden, expected in ((apart, 0.0), (together, 1.0)):
        found = contrast_cosines(hidden, harm, refused)
        assert [e.value for e in found[1:]] == pytest.approx(
            plain(hidden, harm, refused)[1:].tolist(), abs=1e-6
        )
        assert all(
            abs(e.value - expected) < 0.15 and e.low < e.value < e.high and e.n == 200 for e in found[1:]
        )
        assert (found[0].value, found[0].low, found[0].high) == (0, 0, 0)  # a constant token has no contrast
    mixed = shuffled_cosines(together, harm, refused)
    assert all(e.high < 0.9 and e.low < 0 < e.high and abs(e.value) < 0.15 for e in mixed[1:])


def test_an_interval_covers_what_resampled_prompts_give() -> None:
    """Coverage of the true cosine, 0 here, over 40 draws of prompts."""
    covered = []
    for seed in range(40):
        harm, refused = labels(80, seed)
        generator = torch.Generator().manual_seed(seed + 100)
        hidden = torch.randn(80, 1, 2, 16, generator=generator)
        hidden[:, 0, 0, 0] += 2.0 * harm
        hidden[:, 0, 1, 1] += 2.0 * refused
        (found,) = contrast_cosines(hidden, harm, refused, resamples=60)
        covered.append(found.low <= 0 <= found.high)
    assert 0.8 < sum(covered) / len(covered)


def test_one_sided_labels_are_refused() -> None:
    harm, refused = labels(20, 0)
    hidden = planted(harm, refused, same=False)
    with pytest.raises(ValueError, match="refused: 0 of 20 prompts are refused; a contrast needs both sides"):
        contrast_cosines(hidden, harm, torch.zeros(20, dtype=torch.bool))
    with pytest.raises(ValueError, match="harm: 20 of 20 prompts are harmful"):
        shuffled_cosines(hidden, torch.ones(20, dtype=torch.bool), refused)
