"""The likeliest token from a few exact logits, against the whole product and against plain decoding."""

from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from interp.engine import cpu_kernels, greedy_unembedding, prepacked_weights
from interp.engine.decoding import packed_weights
from interp.engine.generation import generate, stream
from interp.engine.greedy_unembedding import Candidates, candidate_logits, first_largest, unembedding_is_whole
from interp.engine.interventions import Ablate
from interp.engine.joint_generation import generate_each
from interp.engine.prepacked_weights import plain_products_are_fast
from interp.models import precision
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.models.precision import Precision
from interp.models.tokens import tokenize
from tests.conftest import PROMPTS
from tests.engine.test_generation import TOKENS, VECTOR, uncached
from tests.families import COMMON, COVERED, build

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bfloat16 products by oneDNN",
)


@pytest.fixture
def searching(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every greedy step is searched, however flat its logits; the list gets how many tokens were candidates."""
    counted: list[int] = []

    def counting(*args: torch.Tensor) -> torch.Tensor | None:
        found = candidate_logits(*args)  # type: ignore[arg-type]
        counted.append(-1 if found is None else int(found.isfinite().sum()))
        return found

    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 7.0)
    monkeypatch.setattr(greedy_unembedding, "_MOST_CANDIDATES", 1.0)
    monkeypatch.setattr(cpu_kernels, "candidate_logits", counting)
    monkeypatch.setattr(prepacked_weights, "_kept", WeakKeyDictionary())
    return counted


def layer_of(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


@pytest.mark.parametrize("n_vocab", [40, 64, 300, 4097])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@torch.no_grad()
def test_the_likeliest_is_always_among_the_candidates(
    n_vocab: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that differ by a thousandth of themselves: rounded to bfloat16 their order is chance."""
    made = torch.Generator().manual_seed(n_vocab)
    x = torch.randn(31, 96, generator=made)
    weight = torch.randn(1, 96, generator=made) + spread * torch.randn(n_vocab, 96, generator=made)
    weight *= torch.rand(n_vocab, 1, generator=made) if spread == 1.0 else 1.0
    monkeypatch.setattr(greedy_unembedding, "_MOST_CANDIDATES", 1.0)
    found = candidate_logits(x, weight, Candidates.of(layer_of(weight)))
    assert found is not None and found.shape == (31, n_vocab)
    exact = x.double() @ weight.double().T
    assert torch.equal(first_largest(found), exact.argmax(-1))
    kept = found.isfinite()
    torch.testing.assert_close(found[kept], exact[kept].float(), rtol=1e-4, atol=1e-4)
    # Nothing that is left out is within the rounding of the largest; where rows differ, most are left out.
    assert bool((exact.masked_fill(kept, -torch.inf).amax(-1) < exact.amax(-1)).all())
    if spread == 1.0:
        assert kept.float().mean() < 0.3
    else:  # control: the rounded product alone takes others
        rounded = (x.bfloat16().float() @ weight.bfloat16().float().T).argmax(-1)
        assert (rounded != exact.argmax(-1)).any()


@torch.no_grad()
def test_too_many_candidates_and_numbers_that_are_none() -> None:
    x, weight = torch.randn(5, 16), torch.randn(1, 16).expand(640, 16).contiguous()
    candidates = Candidates.of(layer_of(weight))
    assert candidate_logits(x, weight, candidates) is None  # all tokens are equal
    x[2, 3] = torch.nan
    weight = torch.randn(640, 16)
    found = candidate_logits(x, weight, Candidates.of(layer_of(weight)))
    assert found is not None
    assert not found[2].isfinite().any()  # which is refused where a token is picked
    assert torch.equal(found[[0, 1, 3, 4]].argmax(-1), (x @ weight.T)[[0, 1, 3, 4]].argmax(-1))


@pytest.mark.parametrize("n_vocab", [1, 63, 64, 65, 1000])
def test_first_largest_is_argmax(n_vocab: int) -> None:
    made = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 4, (50, n_vocab), generator=made).float()  # with many ties
    logits[0], logits[1], logits[2, -1], logits[3, 0] = -torch.inf, torch.nan, torch.nan, torch.inf
    assert torch.equal(first_largest(logits), logits.argmax(-1))
    assert torch.equal(first_largest(logits.bfloat16()), logits.argmax(-1))


def test_models_whose_logits_are_more_than_a_product_are_left_alone(
    tiny: ChatModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    def whole(kind: str, **settings: object) -> bool:
        return unembedding_is_whole(ChatModel(build(kind, {**COMMON, **settings}), tokenizer, name=kind))

    assert unembedding_is_whole(tiny) and whole("Qwen2Config")
    assert not unembedding_is_whole(ChatModel(build(*COVERED["gemma2"]), tokenizer, name="gemma2"))  # caps
    assert not whole("PhiConfig")  # a bias
    assert whole("CohereConfig", logit_scale=0.0625)
    assert not whole("CohereConfig", logit_scale=-1.0)
    handle = tiny.hf.get_output_embeddings().register_forward_hook(lambda *_: None)
    assert not unembedding_is_whole(tiny)
    handle.remove()
    assert unembedding_is_whole(tiny)


def test_every_family_completes_as_without_it(family: ChatModel, searching: list[int]) -> None:
    tokens = tokenize(family.tokenizer, PROMPTS)
    found = generate(family, tokens, max_new_tokens=TOKENS)
    assert [list(ids) for ids in found.ids] == [uncached(family, ids, TOKENS) for ids in tokens.ids]
    searched = packed_weights(family, len(tokens), TOKENS, likeliest=True).searched
    assert bool(searching) == (searched is not None)
    assert min(searching, default=1) > 0
    each = generate_each(
        family, tokens, [(), (Ablate(direction=VECTOR, new_tokens="none"),)], max_new_tokens=TOKENS
    )
    assert each[0].ids == found.ids


def test_what_reads_logits_gets_all_of_them(tiny: ChatModel, searching: list[int]) -> None:
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    steps = list(stream(tiny, tokens, max_new_tokens=TOKENS))
    assert all(step.logits.isfinite().all() for step in steps) and not searching
    seen: list[torch.Tensor] = []

    def keep(_so_far: object, logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return logits

    generate(tiny, tokens, max_new_tokens=TOKENS, processors=[keep])
    assert all(logits.isfinite().all() for logits in seen) and not searching
    generate(tiny, tokens, max_new_tokens=TOKENS)
    assert searching  # control


def test_a_search_that_is_wrong_on_the_first_states_is_not_used(
    tiny: ChatModel, searching: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    expected = generate(tiny, tokens, max_new_tokens=TOKENS, fast=False)
    monkeypatch.setattr(prepacked_weights, "_kept", WeakKeyDictionary())
    monkeypatch.setattr(greedy_unembedding, "candidate_logits", lambda x, weight, _: -(x @ weight.T))
    searching.clear()
    assert generate(tiny, tokens, max_new_tokens=TOKENS).ids == expected.ids
    assert not searching


def test_changed_weights_are_searched_anew(tiny: ChatModel, searching: list[int]) -> None:
    tokens = tokenize(tiny.tokenizer, PROMPTS)
    weight = tiny.hf.get_output_embeddings().weight
    before, own = generate(tiny, tokens, max_new_tokens=TOKENS).ids, weight.detach().clone()
    try:
        weight.data.copy_(own.roll(7, 0))  # torch counts no version of a write through `.data`
        found = generate(tiny, tokens, max_new_tokens=TOKENS).ids
        assert [list(ids) for ids in found] == [uncached(tiny, ids, TOKENS) for ids in tokens.ids]
        assert found != before and searching
        weight.data.fill_(torch.nan)
        with pytest.raises(ValueError, match="not finite"):
            generate(tiny, tokens, max_new_tokens=TOKENS)
    finally:
        weight.data.copy_(own)


def test_few_tokens_and_sampled_ones_multiply_as_they_are(tiny: ChatModel, searching: list[int]) -> None:
    assert packed_weights(tiny, 4, 1, likeliest=True).searched is None
    assert packed_weights(tiny, 4, 64).searched is None
    for rows in (1, 4):  # control
        assert packed_weights(tiny, rows, 64, likeliest=True).searched is tiny.hf.get_output_embeddings()
    assert not searching


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_one_completion_multiplies_by_the_models_own_weights_but_for_the_search(
    tiny: ChatModel, searching: list[int], precision: Precision
) -> None:
    model = with_precision(tiny, precision)
    weights = packed_weights(model, 1, TOKENS, likeliest=True)
    layers = [
        module for block in model.blocks for module in block.module.modules() if type(module) is nn.Linear
    ]
    assert any(map(weights.multiplies, layers)) != plain_products_are_fast()
    assert weights.multiplies(model.hf.get_output_embeddings())
    for prompt in PROMPTS:
        tokens = tokenize(model.tokenizer, [prompt])
        found = generate(model, tokens, max_new_tokens=TOKENS)
        assert list(found.ids[0]) == uncached(tiny, tokens.ids[0], TOKENS)
    assert searching
