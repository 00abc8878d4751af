"""Blocks, sites and hooks on every covered family; what is not covered is refused by name."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from interp.models.chat_model import SITES, ChatModel, load
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS, make_tokenizer
from tests.families import HYBRID, PARALLEL, REFUSED, build


@torch.inference_mode()
def test_sites_hold_what_the_residual_stream_is_made_of(family: ChatModel) -> None:
    ids = torch.tensor([tokenize(family.tokenizer, PROMPTS).ids[0]])
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def read(site: str, layer: int):
        return lambda value: seen.__setitem__((site, layer), value.clone())

    sites = [s for s in SITES if not (s == "resid_mid" and family.is_parallel)]
    with family.hooks([(s, layer, read(s, layer)) for layer in range(3) for s in sites]):
        hidden = family.hf(ids, output_hidden_states=True).hidden_states
    for layer in range(3):
        torch.testing.assert_close(seen["resid_pre", layer], hidden[layer])
        total = seen["resid_pre", layer] + seen["attn_out", layer] + seen["mlp_out", layer]
        torch.testing.assert_close(total, seen["resid_post", layer], rtol=1e-4, atol=1e-5)
        if not family.is_parallel:
            middle = seen["resid_pre", layer] + seen["attn_out", layer]
            torch.testing.assert_close(middle, seen["resid_mid", layer], rtol=1e-4, atol=1e-5)
    # Control: the parts are not zero, so the sums above say something.
    assert min(seen[s, 1].norm().item() for s in sites) > 1e-3


def test_parallel_blocks_are_told_apart(family: ChatModel) -> None:
    assert family.is_parallel == (family.name in PARALLEL)
    if family.is_parallel:
        with pytest.raises(ValueError, match="parallel: it has no resid_mid"):
            family.site("resid_mid", 0)


@pytest.mark.parametrize("site", SITES)
@torch.inference_mode()
def test_every_site_can_be_edited_and_is_restored(family: ChatModel, site: str) -> None:
    if site == "resid_mid" and family.is_parallel:
        pytest.skip("no such site")
    ids = torch.tensor([tokenize(family.tokenizer, PROMPTS).ids[0]])
    before = family.hf(ids).logits
    with family.hooks([(site, 1, lambda value: value + torch.arange(32.0))]):
        edited = family.hf(ids).logits
    assert not torch.allclose(before, edited, atol=1e-3)
    assert torch.equal(before, family.hf(ids).logits)


@torch.inference_mode()
def test_an_edit_of_resid_mid_is_what_the_mlp_sees(tiny: ChatModel) -> None:
    ids = torch.tensor([tokenize(tiny.tokenizer, PROMPTS).ids[0]])
    seen = {}
    with tiny.hooks(
        [
            ("resid_mid", 1, lambda value: value * 2.0),
            ("resid_mid", 1, lambda value: seen.__setitem__("mid", value)),
            ("resid_post", 1, lambda value: seen.__setitem__("post", value)),
            ("mlp_out", 1, lambda value: seen.__setitem__("mlp", value)),
        ]
    ):
        tiny.hf(ids)
    torch.testing.assert_close(seen["mid"] + seen["mlp"], seen["post"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(HYBRID))
def test_hybrid_architectures_are_refused_by_name(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    kind = HYBRID[name][0].removesuffix("Config")
    with pytest.raises(ValueError, match=rf"{kind}ForCausalLM \({name}\): block 0 mixes tokens by"):
        ChatModel(build(*HYBRID[name]), tokenizer, name=name)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_uncovered_families_are_refused_by_name(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=rf"^\w+ \({name}\).*cover"):
        ChatModel(build(*REFUSED[name]), tokenizer, name=name)


def test_layers_are_resolved_once_and_refused_out_of_range(tiny: ChatModel) -> None:
    assert tiny.layer(-1) == 2
    assert tiny.site("resid_pre", -1) == "blocks.2.hook_resid_pre"
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.2, got 3; tiny has 3 layers"):
        tiny.layer(3)


def test_slow_tokenizers_are_refused(tiny: ChatModel) -> None:
    class Slow(PreTrainedTokenizer):
        vocab_size = 1

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ValueError, match="only fast tokenizers"):
        ChatModel(tiny.hf, Slow(), name="slow")


def test_hashes_tell_models_and_templates_apart(tiny: ChatModel) -> None:
    changed = ChatModel(copy.deepcopy(tiny.hf), make_tokenizer("{{ messages[-1].content }}."), name="changed")
    assert changed.weights_hash == tiny.weights_hash
    assert changed.template_hash != tiny.template_hash
    with torch.no_grad():
        changed.hf.model.layers[0].mlp.down_proj.weight.add_(1e-4)  # pyright: ignore
    assert changed.weights_hash != tiny.weights_hash


def test_bridge_shares_parameters_and_leaves_the_plain_model_alone(saved_tiny) -> None:
    model = load(str(saved_tiny))
    ids = torch.tensor([tokenize(model.tokenizer, PROMPTS).ids[0]])
    with torch.inference_mode():
        before = model.hf(ids).logits
        bridged = model.bridge(ids)
        torch.testing.assert_close(bridged, before, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.hf(ids).logits, before)
    assert model.hf.config._attn_implementation == "sdpa"
    own = {p.data_ptr() for p in model.hf.parameters()}
    twins = [p for p in model.bridge.original_model.parameters()]
    assert twins and all(p.data_ptr() in own for p in twins)


def test_collected_sites_equal_the_bridge_at_the_same_names(saved_tiny) -> None:
    from interp.engine.activations import collect

    model = load(str(saved_tiny))
    text = PROMPTS[3]
    tokens = tokenize(model.tokenizer, [text])
    ours = collect(model, tokens, sites=SITES, positions=["t_inst", "post_inst"])
    with torch.inference_mode():
        _, cache = model.bridge.run_with_cache(torch.tensor([tokens.ids[0]]))
    where = tokens.resolve(["t_inst", "post_inst"])[1][0]
    for site in SITES:
        for layer in range(model.n_layers):
            theirs = cache[model.site(site, layer)][0, where]
            torch.testing.assert_close(ours[site][0, layer], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.checkpoint
def test_bundled_model_loads_and_agrees_with_its_bridge(bundled) -> None:
    model = bundled("smollm2-safe")
    assert (model.n_layers, model.d_model) == (30, 576)
    ids = torch.tensor([tokenize(model.tokenizer, ["How do I bake bread?"]).ids[0]])
    with torch.inference_mode():
        torch.testing.assert_close(model.bridge(ids), model.hf(ids).logits, rtol=1e-3, atol=1e-3)
