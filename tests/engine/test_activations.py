"""The fast path against the plain one and against Hugging Face's own hidden states."""

import logging
from functools import partial

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.display.progress import progress
from interp.engine import activations
from interp.engine.activations import collect, collect_means
from interp.engine.interventions import Ablate, Add
from interp.models.chat_model import SITES, ChatModel
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS
from tests.families import COVERED, build


def test_fast_equals_plain_equals_hugging_face(family: ChatModel) -> None:
    roles = ["t_inst", "post_inst", -1, -3]
    fast = collect(family, PROMPTS, positions=roles)
    plain = collect(family, PROMPTS, positions=roles, fast=False)
    assert activations._self_tested[family]
    error = (fast["resid_pre"] - plain["resid_pre"]).norm() / plain["resid_pre"].norm()
    assert error < 1e-4  # float32
    tokens = tokenize(family.tokenizer, PROMPTS)
    _, where = tokens.resolve(roles)
    for row, ids in enumerate(tokens.ids):
        with torch.inference_mode():
            hidden = family.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.stack([hidden[layer][0, where[row]] for layer in range(3)])
        torch.testing.assert_close(fast["resid_pre"][row], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_every_site_agrees_on_both_paths_under_interventions(tiny: ChatModel, site: str) -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    changes = [
        Ablate(direction=direction),
        Add(direction=direction, layers=[1], positions="instruction"),
        Add(direction=direction, layers=[0], positions="prefix", coefficient=2.0),
    ]
    fast, plain = (
        collect(
            tiny, PROMPTS, sites=[site], positions=["t_inst", "post_inst"], interventions=changes, fast=f
        )[site]
        for f in (True, False)
    )
    untouched = collect(tiny, PROMPTS, sites=[site], positions=["t_inst", "post_inst"])[site]
    assert (fast - plain).norm() / plain.norm() < 1e-4
    assert (fast - untouched).norm() / plain.norm() > 1e-2  # control


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_fast_path_is_as_near_to_float32_as_the_plain_one(
    tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> None:
    prompts = [f"{i:04d} is a number" for i in range(90)]  # enough rows for packed products
    wide = ChatModel(build(*COVERED["llama"]), tokenizer, name="float32")
    half = ChatModel(build(*COVERED["llama"]).to(dtype), tokenizer, name="half")
    exact = collect(wide, prompts, sites="resid_post")["resid_post"]
    assert activations.fast_path_agrees(half, tokenize(tokenizer, prompts))

    def errors(fast: bool) -> torch.Tensor:
        """Relative error of all states of each layer."""
        found = collect(half, prompts, sites="resid_post", fast=fast)["resid_post"].float()
        size = partial(torch.linalg.vector_norm, dim=(0, 2, 3))
        return size(found - exact) / size(exact)

    plain, ours = errors(False), errors(True)
    assert plain.min() > 0 and plain.max() < 3e-2  # control: the dtype rounds
    assert (ours < 1.3 * plain).all()


def test_means_are_the_means_of_what_is_collected(tiny: ChatModel) -> None:
    kept = collect(tiny, PROMPTS, positions=["t_inst"])["resid_pre"].double()
    means = collect_means(tiny, PROMPTS, positions=["t_inst"])
    assert means.n == len(PROMPTS)
    torch.testing.assert_close(means["resid_pre"], kept.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        means.norms["resid_pre"].double(), kept.norm(dim=-1).mean(0), rtol=1e-5, atol=1e-6
    )


def test_order_and_batching_do_not_matter(tiny: ChatModel) -> None:
    together = collect(tiny, PROMPTS)["resid_pre"]
    torch.testing.assert_close(
        collect(tiny, PROMPTS[::-1])["resid_pre"], together.flip(0), rtol=1e-4, atol=1e-5
    )
    small = collect(tiny, PROMPTS, budget=40)["resid_pre"]
    torch.testing.assert_close(small, together, rtol=1e-4, atol=1e-5)
    alone = torch.cat([collect(tiny, [p])["resid_pre"] for p in PROMPTS])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_only_the_layers_asked_for_are_run(tiny: ChatModel) -> None:
    collect(tiny, PROMPTS)  # the self-test runs all layers once
    ran: list[int] = []
    handles = [
        block.module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(tiny.blocks)
    ]
    try:
        one = collect(tiny, PROMPTS, layers=[1])
    finally:
        for handle in handles:
            handle.remove()
    assert 0 in ran
    assert 2 not in ran
    assert one.layers == (1,)
    torch.testing.assert_close(one["resid_pre"][:, 0], collect(tiny, PROMPTS)["resid_pre"][:, 1])


def test_disagreement_falls_back_to_the_plain_path_with_a_warning(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = ChatModel(build(*COVERED["llama"]), tokenizer, name="odd")
    real = activations._fast

    def wrong(*args):
        for rows, batch in real(*args):
            yield rows, {site: value + 1.0 for site, value in batch.items()}

    monkeypatch.setattr(activations, "_fast", wrong)
    with caplog.at_level(logging.WARNING):
        found = collect(model, PROMPTS)["resid_pre"]
    assert "fast path disagrees with the plain one on odd" in caplog.text
    torch.testing.assert_close(found, collect(model, PROMPTS, fast=False)["resid_pre"])


def test_a_sliding_window_shorter_than_the_prompt_is_respected(tokenizer: PreTrainedTokenizerFast) -> None:
    kind, settings = COVERED["mistral"]
    model = ChatModel(build(kind, {**settings, "sliding_window": 16}), tokenizer, name="window")
    fast, plain = (collect(model, PROMPTS, fast=f)["resid_pre"] for f in (True, False))
    assert (fast - plain).norm() / plain.norm() < 1e-4


def test_nan_activations_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    model = ChatModel(build(*COVERED["llama"]), tokenizer, name="broken")
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")  # pyright: ignore
    with pytest.raises(ValueError, match="not finite at resid_pre of layer 2, t_inst, prompt"):
        collect(model, PROMPTS, fast=False)


def test_mistakes_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.2, got 9"):
        collect(tiny, PROMPTS, layers=[9])
    with pytest.raises(ValueError, match="unknown position 'last'"):
        collect(tiny, PROMPTS, positions="last")
    with pytest.raises(ValueError, match="out of range"):
        collect(tiny, PROMPTS, positions=-500)
    with pytest.raises(ValueError, match="no prompts"):
        collect(tiny, [])


def test_the_progress_bar_moves_by_prompts_and_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.progress

    moved: list[float] = []
    monkeypatch.setattr(rich.progress.Progress, "advance", lambda _self, _task, by=1.0: moved.append(by))
    items = [([0, 1, 2], "a"), ([3], "b")]
    assert list(progress(items, total=4, label="x", show=False, size=lambda item: len(item[0]))) == items
    assert moved == []
    assert list(progress(items, total=4, label="x", show=True, size=lambda item: len(item[0]))) == items
    assert moved == [3, 1]
