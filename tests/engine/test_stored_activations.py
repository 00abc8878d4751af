"""The store in front of forward passes: what is served, what never is, and that no pass runs for what is stored."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.engine.activations import collect, collect_means
from interp.engine.applying import apply
from interp.engine.interventions import Ablate, Add
from interp.engine.reads import requested
from interp.engine.soft_tokens import soft_tokens
from interp.engine.store_filling import fill_store
from interp.engine.store_keys import table_keys, why_not
from interp.engine.stored_activations import using_store
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.beliefs import states
from interp.storage.activation_store import ActivationStore
from tests.conftest import PROMPTS

pytest.importorskip("lance", reason="the extra scale is not installed")


@contextmanager
def passes(model: ChatModel) -> Iterator[list[int]]:
    """Counts the forward passes of a model's decoder, without a hook, which would switch the store off."""
    counted: list[int] = []
    kind = type(model.decoder)
    forward = kind.forward

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        if self is model.decoder:
            counted.append(1)
        return forward(self, *args, **options)

    kind.forward = counting
    try:
        yield counted
    finally:
        kind.forward = forward


def copy_of(model: ChatModel, **options: Any) -> ChatModel:
    return ChatModel(copy.deepcopy(model.hf), model.tokenizer, name="copy", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_computed_is_read_without_a_pass_to_the_bit(
    tiny: ChatModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = ChatModel(copy.deepcopy(tiny.hf).to(dtype), tiny.tokenizer, name="first")
    options: Any = {"sites": ["resid_pre", "mlp_out"], "positions": ["t_inst", "post_inst", -1]}
    without = collect(model, PROMPTS, **options)
    cold = collect(model, PROMPTS, store=tmp_path, **options)
    again = ChatModel(copy.deepcopy(model.hf), tiny.tokenizer, name="another process would load it again")
    with passes(again) as counted, using_store(tmp_path):
        warm = collect(again, PROMPTS, **options)
        means = collect_means(again, PROMPTS[::-1], **options)
    assert not counted
    for site in ("resid_pre", "mlp_out"):
        assert torch.equal(cold[site], without[site])  # the store changes nothing of a pass
        assert torch.equal(warm[site], without[site])
        torch.testing.assert_close(means[site], without[site].double().mean(0))
    assert warm.identity is not None and warm.identity.texts == PROMPTS


def test_only_what_is_missing_is_computed(tiny: ChatModel, tmp_path: Path) -> None:
    with using_store(tmp_path):
        collect(tiny, PROMPTS[:3], layers=[0, 1])
        with passes(tiny) as counted:
            collect(tiny, PROMPTS[:2], layers=1, positions="t_inst")
            assert not counted
            mixed = collect(tiny, PROMPTS[1:], layers=[0, 1])  # two stored, three new
            assert counted
        grown = collect(tiny, PROMPTS, layers=[0, 1, 2])  # layer 2 of all is new
        with passes(tiny) as counted:
            collect(tiny, PROMPTS, layers=[2, 0])
            states(tiny, PROMPTS, layers=[1, 2])
            assert not counted
    plain = collect(tiny, PROMPTS)["resid_pre"]
    torch.testing.assert_close(mixed["resid_pre"], plain[1:, :2])
    torch.testing.assert_close(grown["resid_pre"], plain)


def _key(model: ChatModel, site: str = "resid_pre", *, path: str = "packed", interventions: Any = ()) -> str:
    _, request = requested(model, PROMPTS, site, None, "t_inst")  # pyright: ignore[reportArgumentType]
    (key,) = table_keys(model, request, interventions, path=path).values()
    return key.id


def test_every_part_of_the_key_tells_activations_apart(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    direction = torch.arange(tiny.d_model).float() + 1
    base = _key(tiny)
    assert _key(copy_of(tiny)) == base  # another object with equal content: the control
    other = copy_of(tiny)
    with torch.no_grad():
        next(other.hf.parameters()).data.view(-1)[7] += 1e-3
    turned = copy_of(tiny)
    turned.hf.config.rms_norm_eps *= 2
    eager = copy_of(tiny)
    eager.hf.config._attn_implementation = "eager"
    half = ChatModel(copy.deepcopy(tiny.hf).bfloat16(), tiny.tokenizer, name="half")
    rounded = copy_of(tiny)
    rounded.precision = "fast"
    keys = {
        "base": base,
        "weights": _key(other),
        "configuration": _key(turned),
        "kernel of attention": _key(eager),
        "dtype": _key(half),
        "precision": _key(rounded),
        "site": _key(tiny, "resid_post"),
        "path": _key(tiny, path="plain"),
        "ablation": _key(tiny, interventions=[Ablate(direction)]),
        "at a layer": _key(tiny, interventions=[Ablate(direction, layers=1)]),
        "addition": _key(tiny, interventions=[Add(direction, layers=1)]),
        "coefficient": _key(tiny, interventions=[Add(direction, layers=1, coefficient=2)]),
        "another direction": _key(tiny, interventions=[Add(direction + 1, layers=1)]),
        "where": _key(tiny, interventions=[Add(direction, layers=1, positions="t_inst")]),
        "two": _key(tiny, interventions=[Ablate(direction), Ablate(direction)]),
    }
    torch.set_float32_matmul_precision("medium")
    try:
        keys["precision of products"] = _key(tiny)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.backends.mkldnn.flags(enabled=False):
        keys["kernel of products"] = _key(tiny)
    with torch.no_grad():
        keys["fused kernels"] = _key(tiny)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9000")
    keys["processor"] = _key(tiny)
    monkeypatch.setattr(torch, "__version__", "99.0")
    keys["library"] = _key(tiny)
    assert len(set(keys.values())) == len(keys), keys


def test_prompts_that_render_differently_are_different_rows(tiny: ChatModel, tmp_path: Path) -> None:
    with using_store(tmp_path):
        collect(tiny, PROMPTS)
        with passes(tiny) as counted:
            cut = collect(tiny, tokenize(tiny.tokenizer, PROMPTS).truncated(), positions="t_inst")
            assert counted
            counted.clear()
            told = collect(tiny, tokenize(tiny.tokenizer, PROMPTS, system="Be brief."), positions="t_inst")
            assert counted
    chat = tokenize(tiny.tokenizer, PROMPTS)
    torch.testing.assert_close(
        cut["resid_pre"], collect(tiny, chat.truncated(), positions="t_inst")["resid_pre"]
    )
    assert not torch.allclose(told["resid_pre"], cut["resid_pre"])


def test_a_wrong_hit_is_impossible_when_the_state_of_the_model_changes(
    tiny: ChatModel, tmp_path: Path
) -> None:
    model = copy_of(tiny)
    direction = torch.ones(tiny.d_model)
    limited = Add(direction, layers=0, positions="t_inst")
    with using_store(tmp_path):
        before = collect(model, PROMPTS)["resid_pre"]
        with torch.no_grad():
            model.hf.model.layers[0].mlp.down_proj.weight.data.mul_(1.5)  # a write that torch does not count
        changed = collect(model, PROMPTS)["resid_pre"]
        steered = collect(model, PROMPTS, interventions=[limited])
        with passes(model) as counted:
            again = collect(model, PROMPTS, interventions=[limited])
        assert not counted and torch.equal(again["resid_pre"], steered["resid_pre"])
        narrowed = replace(
            tokenize(model.tokenizer, PROMPTS),
            ends=tuple(end - 1 for end in tokenize(model.tokenizer, PROMPTS).ends),
        )
        moved = collect(model, narrowed, positions=-1, interventions=[limited])
        with apply(model, [Ablate(direction)]):
            around = collect(model, PROMPTS)["resid_pre"]
    plain = collect(model, PROMPTS)["resid_pre"]
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(changed, plain)
    for read, given in ((steered, PROMPTS), (moved, narrowed)):
        positions = ("t_inst", "t_post_inst") if read is steered else -1
        fresh = collect(model, given, positions=positions, interventions=[limited])
        torch.testing.assert_close(read["resid_pre"], fresh["resid_pre"])
    with apply(model, [Ablate(direction)]):
        torch.testing.assert_close(around, collect(model, PROMPTS)["resid_pre"])


def test_hooks_that_transformers_leaves_for_hidden_states_change_nothing(tiny: ChatModel) -> None:
    model = copy_of(tiny)
    model.hf(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    assert any(module._forward_hooks for module in model.hf.modules())
    assert why_not(model, ()) is None


def test_what_a_key_cannot_express_is_not_stored(tiny: ChatModel, tmp_path: Path) -> None:
    model = copy_of(tiny)
    assert why_not(model, ()) is None  # the control

    class Doubled(Add):
        pass

    assert "Doubled" in str(why_not(model, [Doubled(torch.ones(model.d_model), layers=0)]))
    model.hf.train()
    assert "training" in str(why_not(model, ()))
    model.hf.eval()
    with torch.autocast("cpu"):
        assert "autocast" in str(why_not(model, ()))
    with soft_tokens(model, torch.ones(1, model.d_model)), using_store(tmp_path / "none"):
        assert "hooks" in str(why_not(model, ()))
        collect(model, PROMPTS[:1])
    assert not (tmp_path / "none").exists()
    model.hf.forward = lambda *_: None
    assert "replaced" in str(why_not(model, ()))


def test_damage_is_computed_again_and_served_afterwards(
    tiny: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = collect(tiny, PROMPTS)["resid_pre"]
    with using_store(tmp_path) as store:
        collect(tiny, PROMPTS)
        assert store is not None and not store.verify().damaged
        (data,) = tmp_path.glob("[0-9a-f]*.lance/data/*.lance")
        whole = data.read_bytes()
        vector = plain[2, 1, 0].numpy().tobytes()  # one number of one vector, found by its bytes
        place = whole.index(vector[:64])
        data.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    fresh = ActivationStore(tmp_path)
    (found,) = fresh.verify().damaged
    assert found.layer == 1
    with using_store(fresh), passes(tiny) as counted:
        assert torch.equal(collect(tiny, PROMPTS)["resid_pre"], plain) or counted
        torch.testing.assert_close(collect(tiny, PROMPTS)["resid_pre"], plain)
        assert counted and "damaged" in caplog.text
        counted.clear()
        collect(tiny, PROMPTS)
        assert not counted


def test_a_store_that_cannot_be_written_costs_nothing_but_the_store(
    tiny: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with using_store(tmp_path / "file"):
        (tmp_path / "file").write_text("in the way")  # since it was opened
        read = collect(tiny, PROMPTS)["resid_pre"]
    assert "without" in caplog.text
    torch.testing.assert_close(read, collect(tiny, PROMPTS)["resid_pre"])
    with using_store("none") as store:
        assert store is None
    with pytest.raises(ValueError, match=r"an activation store is a folder.* is a file"):
        fill_store(tiny, PROMPTS, tmp_path / "file")


def test_filling_goes_on_where_it_stopped(tiny: ChatModel, tmp_path: Path) -> None:
    assert fill_store(tiny, iter(PROMPTS[:4]), tmp_path, layers=[1]) == (4, 4)
    assert fill_store(tiny, iter(PROMPTS), tmp_path, layers=[1]) == (len(PROMPTS), len(PROMPTS) - 4)
    with passes(tiny) as counted:
        assert fill_store(tiny, iter(PROMPTS), tmp_path, layers=[1]) == (len(PROMPTS), 0)
        read = collect(tiny, PROMPTS, layers=1, store=tmp_path)["resid_pre"]
    assert not counted
    torch.testing.assert_close(read, collect(tiny, PROMPTS, layers=1)["resid_pre"])
