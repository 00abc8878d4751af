"""Fast scores against the plain procedure, and that a stopped sweep continues."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.evaluation.losses import KLFrom, kl_divergence
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.picks import choose
from interp.representations.selection import Candidate
from interp.representations.sweeps import Sweep
from interp.storage.stages import open_stages
from tests.families import COVERED, build
from tests.representations.sweep_cases import HARMFUL, OPEN, REFUSAL_IDS, sweep_of


def test_every_score_equals_the_plain_procedure(tiny: ChatModel, published: list[Candidate]) -> None:
    sweep = sweep_of(tiny)
    assert sweep._fast
    assert sweep._resumes
    for row in published:
        found = sweep.complete((row.position, row.layer))
        for column in ("bypass", "induce", "kl"):
            assert getattr(found, column) == pytest.approx(getattr(row, column), abs=1e-3)
    assert max(row.kl for row in published) > 0.1  # control: the candidates do something


@pytest.mark.parametrize("name", sorted(COVERED))
def test_every_family_scores_alike_on_both_paths(name: str, tokenizer: Any) -> None:
    model = ChatModel(build(*COVERED[name]), tokenizer, name=name)
    fast, plain = sweep_of(model), sweep_of(model, fast=False)
    assert fast._resumes
    for place in [(-1, 1), (-2, 2)]:
        for column in ("bypass", "induce", "kl"):
            a, b = getattr(fast.complete(place), column), getattr(plain.complete(place), column)
            assert a == pytest.approx(b, abs=1e-3)


def test_rounding_in_half_precision_is_no_fault_of_resuming(tokenizer: Any) -> None:
    model = ChatModel(build(*COVERED["llama"]).to(torch.bfloat16), tokenizer, name="llama")
    sweep = sweep_of(model)
    base, whole = sweep.baseline[sweep.n_harmful :], sweep._whole()
    assert (
        base - whole
    ).abs().max() > 1e-2  # control: another packing moves the metric beyond float32's limit
    assert sweep._resumes


def test_a_pass_that_resumes_wrongly_is_not_used(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tiny)
    own = sweep._resumed
    monkeypatch.setattr(sweep, "_resumed", lambda vector, layer: own(vector + 1.0, layer))
    assert not sweep._resumes


def test_a_zero_direction_scores_as_the_unmodified_model(tiny: ChatModel) -> None:
    # At layer 0 the template tokens are the same in every prompt (spec: a free check of the whole sweep).
    sweep = sweep_of(tiny)
    for position in (-3, -2, -1):
        place = (position, 0)
        assert sweep.directions[place].abs().max() == 0
        torch.testing.assert_close(sweep.bypass(place), sweep.baseline[:5], rtol=0, atol=1e-4)
        torch.testing.assert_close(sweep.induce(place), sweep.baseline[5:], rtol=0, atol=1e-4)
        assert sweep.kl(place).abs().max() < 1e-6


def test_the_divergence_has_the_floor_that_jensen_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 5000, generator=generator) * 2
    log_p = logits.log_softmax(-1)
    kl = KLFrom(log_p)
    rows = torch.arange(5)
    torch.testing.assert_close(
        kl(log_p.flip(0), rows), kl_divergence(log_p, log_p.flip(0)), rtol=1e-6, atol=1e-6
    )
    p = log_p.double().exp()
    # The lowest value over all q puts mass where p + epsilon is far above epsilon; a search must not get below.
    lowest = torch.full((5,), math.inf, dtype=torch.float64)
    for cut in torch.logspace(-9, -2, 40):
        q = torch.where(p > cut, p, 0.0)
        q = q / q.sum(-1, keepdim=True)
        lowest = torch.minimum(lowest, kl(q.log(), rows))
    assert (lowest >= kl.lower_bound).all()
    assert (kl.lower_bound < 0).all()
    assert (kl.lower_bound > -0.01).all()


def test_a_killed_sweep_continues_where_it_was(tiny: ChatModel) -> None:
    kept: dict[str, Any] = {}
    computed: list[str] = []

    def keep(name: str, compute: Any, _kind: Any) -> Any:
        if name not in kept:
            if len(computed) == 5:
                raise KeyboardInterrupt
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    with pytest.raises(KeyboardInterrupt):
        choose(sweep_of(tiny, keep=keep), [OPEN], exhaustive=True)
    before, computed[:] = list(computed), []

    def resumed(name: str, compute: Any, _kind: Any) -> Any:
        if name not in kept:
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    found, _ = choose(sweep_of(tiny, keep=resumed), [OPEN], exhaustive=True)
    assert not set(before) & set(computed)
    assert found == choose(sweep_of(tiny), [OPEN], exhaustive=True)[0]


def test_measurements_are_kept_by_the_stages_of_a_run(tiny: ChatModel, tmp_path: Path) -> None:
    broken = (-1, 1)
    with open_stages(tmp_path / "run", key={}) as stages:
        first = sweep_of(tiny, keep=stages.keep)
        first.directions[broken] = first.directions[broken] * math.nan  # a measurement too, and kept as one
        for place in first.directions:
            first.complete(place)
        again = sweep_of(tiny, keep=stages.keep)
        again.ablate = again.add = None  # nothing is measured again
        for place in first.directions:
            again.complete(place)
            for one, other in ((again.ablated, first.ablated), (again.induced, first.induced)):
                torch.testing.assert_close(one[place], other[place], rtol=0, atol=0, equal_nan=True)
        assert again.ablated[broken].isnan().all()


def test_no_candidates_is_an_error(tiny: ChatModel) -> None:
    tokens = tokenize(tiny.tokenizer, HARMFUL)
    with pytest.raises(ValueError, match="no candidate directions"):
        Sweep(tiny, {}, harmful=tokens, harmless=tokens, refusal_ids=REFUSAL_IDS)
