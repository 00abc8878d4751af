"""Repairs of weights: formulas written out, arguments left alone, and random controls of equal count and norm."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.data.examples import Example
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel
from interp.training.finetune import TrainConfig, fine_tune
from interp.training.weight_repairs import (
    alignment_cosines,
    block_weights,
    change_norm,
    changed_count,
    full_restore,
    interpolate,
    random_restore,
    random_restore_of_norm,
    safe_lora,
    task_arithmetic,
    weights_of,
    weights_with_adapter,
)
from tests.conftest import PROMPTS

Weights = dict[str, Tensor]


def low_rank(generator: torch.Generator, shape: tuple[int, int], size: float = 0.1) -> Tensor:
    rows, columns = shape
    return size * torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)


@pytest.fixture
def models(tiny: ChatModel) -> tuple[Weights, Weights, Weights]:
    """Fine-tuned, aligned and unaligned weights: low-rank changes of the matrices of all blocks but the last."""
    generator = torch.Generator().manual_seed(0)
    aligned = {name: value.clone() for name, value in weights_of(tiny).items()}
    finetuned, unaligned = dict(aligned), dict(aligned)
    for name in block_weights(tiny, cut=2):
        shape = (aligned[name].shape[0], aligned[name].shape[1])
        finetuned[name] = aligned[name] + low_rank(generator, shape)
        unaligned[name] = aligned[name] + low_rank(generator, shape)
    return finetuned, aligned, unaligned


def test_block_weights_are_the_matrices_below_the_cut(tiny: ChatModel, family: ChatModel) -> None:
    names = block_weights(tiny, cut=2)
    assert len(names) == 2 * 7  # q, k, v, o, gate, up, down
    assert {name.split(".")[2] for name in names} == {"0", "1"}
    assert set(names) < set(block_weights(tiny)) < set(weights_of(tiny))
    for name in block_weights(family):
        assert "norm" not in name and "embed" not in name and "lm_head" not in name
    assert len({*block_weights(family, cut=1)}) * family.n_layers >= len(block_weights(family))
    for cut in (0, 4):
        with pytest.raises(ValueError, match=rf"cut must be in 1\.\.3, the blocks of tiny, got {cut}"):
            block_weights(tiny, cut=cut)


def test_no_repair_changes_its_arguments(models: tuple[Weights, Weights, Weights]) -> None:
    finetuned, aligned, unaligned = models
    before = [{name: value.clone() for name, value in side.items()} for side in models]
    repairs: list[Callable[[], Weights]] = [
        lambda: interpolate(finetuned, aligned, aligned_weight=0.5),
        lambda: task_arithmetic(finetuned, aligned, unaligned),
        lambda: safe_lora(finetuned, aligned, unaligned, threshold=1.0),
        lambda: full_restore(finetuned, aligned),
        lambda: random_restore(finetuned, aligned, count=100, seed=0),
        lambda: random_restore_of_norm(finetuned, aligned, norm=0.5, seed=0),
    ]
    for repair in repairs:
        repaired = repair()
        assert repaired and changed_count(finetuned, repaired) > 0
        for value in repaired.values():
            value.fill_(7.0)  # what comes back shares no memory with what went in
        for side, old in zip(models, before, strict=True):
            assert all(torch.equal(side[name], old[name]) for name in old)


def test_interpolation_ends_at_either_model_and_is_the_mean_half_way(
    models: tuple[Weights, Weights, Weights],
) -> None:
    finetuned, aligned, _ = models
    ends = [interpolate(finetuned, aligned, aligned_weight=a) for a in (0, 0.5, 1.0)]
    assert set(ends[0]) == {name for name in aligned if not torch.equal(finetuned[name], aligned[name])}
    for name in ends[0]:
        assert torch.equal(ends[0][name], finetuned[name])
        torch.testing.assert_close(ends[1][name], (finetuned[name] + aligned[name]) / 2)
        assert torch.equal(ends[2][name], aligned[name])
    with pytest.raises(ValueError, match=r"aligned_weight must be in 0\.\.1, got 1\.5"):
        interpolate(finetuned, aligned, aligned_weight=1.5)


def test_task_arithmetic_undoes_a_fine_tuning_that_equals_the_unaligning_one(
    models: tuple[Weights, Weights, Weights],
) -> None:
    finetuned, aligned, unaligned = models
    undone = task_arithmetic(unaligned, aligned, unaligned)
    twice = task_arithmetic(finetuned, aligned, unaligned, weight=2)
    for name in undone:
        torch.testing.assert_close(undone[name], aligned[name])  # float32 rounding
        torch.testing.assert_close(twice[name], finetuned[name] + 2 * (aligned[name] - unaligned[name]))
    half = {name: value.half() for name, value in finetuned.items()}
    assert {v.dtype for v in task_arithmetic(half, aligned, unaligned).values()} == {torch.float16}


def test_safe_lora_is_its_formula_and_spares_updates_inside_what_alignment_changed(
    models: tuple[Weights, Weights, Weights],
) -> None:
    finetuned, aligned, unaligned = (dict(side) for side in models)
    names = [name for name in aligned if not torch.equal(aligned[name], finetuned[name])]
    inside = names[0]
    finetuned[inside] = aligned[inside] + (aligned[inside] - unaligned[inside]) @ torch.eye(
        aligned[inside].shape[1]
    )
    cosines = alignment_cosines(finetuned, aligned, unaligned)
    assert set(cosines) == set(names)
    assert cosines[inside] > 0.7 > 0.5 > max(cosines[name] for name in names[1:])
    repaired = safe_lora(finetuned, aligned, unaligned)
    assert set(repaired) == set(names[1:])
    for name in repaired:
        v = aligned[name] - unaligned[name]
        p = v @ v.T / v.norm()
        update = finetuned[name] - aligned[name]
        projected = p @ update
        torch.testing.assert_close(repaired[name], aligned[name] + projected, atol=1e-5, rtol=1e-4)
        cosine = (projected * update).sum() / projected.norm() / update.norm()
        assert cosines[name] == pytest.approx(float(cosine), abs=1e-5)
        assert not torch.allclose(p @ p, p)  # no projection, as published
    assert set(safe_lora(finetuned, aligned, unaligned, threshold=1.0)) == set(names)


def test_the_orthogonal_projector_is_idempotent_and_keeps_what_is_inside(
    models: tuple[Weights, Weights, Weights],
) -> None:
    finetuned, aligned, unaligned = models
    once = safe_lora(finetuned, aligned, unaligned, threshold=1.0, projector="orthogonal")
    again = safe_lora({**finetuned, **once}, aligned, unaligned, threshold=1.0, projector="orthogonal")
    for name in once:
        torch.testing.assert_close(again[name], once[name], atol=1e-5, rtol=1e-4)
        assert (once[name] - finetuned[name]).norm() > 0.1 * (aligned[name] - finetuned[name]).norm()
    released = safe_lora(finetuned, aligned, unaligned, threshold=1.0)
    twice = safe_lora({**finetuned, **released}, aligned, unaligned, threshold=1.0)
    name = next(iter(once))
    assert not torch.allclose(twice[name], released[name], atol=1e-3)  # control


def test_full_restore_is_exact_and_stays_below_the_cut(
    tiny: ChatModel, models: tuple[Weights, Weights, Weights]
) -> None:
    finetuned, aligned, _ = models
    whole = {**finetuned, **full_restore(finetuned, aligned)}
    assert all(torch.equal(whole[name], aligned[name]) for name in aligned)
    low = full_restore(finetuned, aligned, block_weights(tiny, cut=1))
    assert {name.split(".")[2] for name in low} == {"0"}


def test_random_restore_takes_so_many_aligned_values_and_leaves_the_rest(
    tiny: ChatModel, models: tuple[Weights, Weights, Weights]
) -> None:
    finetuned, aligned, _ = models
    names = block_weights(tiny, cut=1)
    total = sum(int((finetuned[name] != aligned[name]).sum()) for name in names)
    for count in (1, 137, total // 2, total - 1, total):
        repaired = random_restore(finetuned, aligned, names, count=count, seed=3)
        assert changed_count(finetuned, repaired) == count
        assert set(repaired) <= set(names)
        for name, value in repaired.items():
            assert torch.equal(
                value != finetuned[name], (value == aligned[name]) & (finetuned[name] != aligned[name])
            )
    one, same, other = (random_restore(finetuned, aligned, names, count=137, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in {*one} & {*other})
    with pytest.raises(
        ValueError, match=rf"count must be in 1\.\.{total}, the coordinates that differ, got 0"
    ):
        random_restore(finetuned, aligned, names, count=0, seed=0)


def test_random_restore_is_uniform_over_coordinates() -> None:
    finetuned, aligned = (
        {"a": torch.zeros(3, 10), "b": torch.zeros(1, 20)},
        {"a": torch.ones(3, 10), "b": torch.ones(1, 20)},
    )
    hits = torch.zeros(50)
    for seed in range(600):
        repaired = {**finetuned, **random_restore(finetuned, aligned, count=10, seed=seed)}
        hits += torch.cat([repaired["a"].flatten(), repaired["b"].flatten()])
    # Each is drawn with probability 0.2: 120 of 600, standard deviation 9.8; five of them on either side.
    assert hits.sum() == 6000 and hits.min() > 71 and hits.max() < 169


def test_random_restore_of_norm_moves_as_far_as_asked_within_one_coordinate(
    tiny: ChatModel, models: tuple[Weights, Weights, Weights]
) -> None:
    finetuned, aligned, _ = models
    names = block_weights(tiny, cut=2)
    whole = change_norm(finetuned, full_restore(finetuned, aligned, names))
    largest = max(float((finetuned[n] - aligned[n]).abs().max()) for n in names)
    for share in (0.2, 0.5, 0.97, 1.0):
        norm = share * whole
        repaired = random_restore_of_norm(finetuned, aligned, names, norm=norm, seed=1)
        found = change_norm(finetuned, repaired)
        assert found <= norm * (1 + 1e-6)
        assert found**2 >= norm**2 - largest**2 - 1e-9  # one coordinate more would be too many
        for name, value in repaired.items():
            assert ((value == aligned[name]) | (value == finetuned[name])).all()
    with pytest.raises(
        ValueError, match=r"norm must be above 0 and at most .*, that of restoring every coordinate"
    ):
        random_restore_of_norm(finetuned, aligned, names, norm=1.1 * whole, seed=1)
    with pytest.raises(ValueError, match=r"less than the change of the first coordinate"):
        random_restore_of_norm(finetuned, aligned, names, norm=1e-9 * whole, seed=1)


def test_pairs_that_cannot_be_repaired_are_refused(models: tuple[Weights, Weights, Weights]) -> None:
    finetuned, aligned, _ = models
    name = next(iter(finetuned))
    with pytest.raises(
        ValueError, match="the fine-tuned weights equal the aligned ones; there is nothing to repair"
    ):
        interpolate(aligned, aligned, aligned_weight=0.5)
    with pytest.raises(ValueError, match="the unaligned weights equal the aligned ones"):
        task_arithmetic(finetuned, aligned, aligned)
    with pytest.raises(
        ValueError, match=r"other is in the fine-tuned model and not in the aligned one.*architecture"
    ):
        full_restore({**finetuned, "other": torch.zeros(1)}, aligned)
    with pytest.raises(
        ValueError, match=r"is \(2, 2\) in the fine-tuned model and .* architecture and vocabulary"
    ):
        full_restore({**finetuned, name: torch.zeros(2, 2)}, aligned)
    with pytest.raises(ValueError, match=r"is quantised \(torch\.int8\); load both models unquantised"):
        full_restore({**finetuned, name: finetuned[name].to(torch.int8)}, aligned)
    with pytest.raises(ValueError, match="the models have no weights nothing; `block_weights` lists"):
        random_restore(finetuned, aligned, ["nothing"], count=1, seed=0)
    moved = next(n for n in aligned if not torch.equal(aligned[n], finetuned[n]))
    elsewhere = {**aligned, name: aligned[name] + 1}
    assert moved != name
    with pytest.raises(ValueError, match="no matrix was changed both by alignment and by fine-tuning"):
        safe_lora(finetuned, aligned, elsewhere)


def test_weights_with_an_adapter_are_the_merged_ones_and_the_models_stay(
    tiny: ChatModel, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in weights_of(tiny).items()}
    config = TrainConfig(epochs=1.0, batch_size=4, warmup_steps=0, learning_rate=2e-3, rank=2)
    examples = [Example(prompt, "yes") for prompt in PROMPTS[:4]]
    folder = str(fine_tune(tiny, examples, out=tmp_path / "a", config=config).folder)
    merged = weights_with_adapter(tiny, folder)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(tiny).items())
    with with_adapter(tiny, folder) as adapted:
        assert all(torch.equal(value, merged[name]) for name, value in weights_of(adapted).items())
    moved = {name for name in before if not torch.equal(merged[name], before[name])}
    assert {name.split(".")[-2] for name in moved} == set(config.target_modules)
    # Restored to the aligned model, its logits are those of the aligned model.
    whole = {**merged, **full_restore(merged, weights_of(tiny))}
    ids = torch.arange(10)[None]
    with torch.no_grad():
        logits = [
            torch.func.functional_call(tiny.hf, state, (ids,)).logits
            for state in (weights_of(tiny), merged, whole)
        ]
    assert torch.equal(logits[0], logits[2]) and not torch.equal(logits[0], logits[1])
