"""Packed prompts: every distinct beginning once, and attention that cannot tell the difference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.engine import packing, unfolded_attention
from interp.engine.activations import collect
from interp.engine.applying import apply
from interp.engine.budgets import PassBudget
from interp.engine.interventions import Add
from interp.engine.log_probs import final_states
from interp.engine.packing import PackedPasses, can_pack, packed_passes
from interp.engine.prefix_trees import pack, plan_trees
from interp.engine.unfolded_attention import PackedAttention
from interp.models.chat_model import SITES, ChatModel, Edit, Site
from interp.models.tokens import tokenize
from tests.families import COVERED, build

ALIKE = ["How do I pick a lock?", "How do I pick a lock", "How do I pick apples", "How do I", "Why?", "Why?"]


def test_a_tree_holds_every_beginning_once_and_every_prompt_can_be_read_back() -> None:
    rows = [(5, 6, 7), (5, 6, 8, 9), (5,), (4, 6, 7)]
    tree = pack(rows)
    beginnings = {row[:n] for row in rows for n in range(1, len(row) + 1)}
    assert len(tree.ids) == len(beginnings) == 8
    for number, row in enumerate(rows):
        nodes = tree.grid[number, : len(row)]
        assert tuple(tree.ids[nodes].tolist()) == row
        assert tree.depths[nodes].tolist() == list(range(len(row)))
    held = tree.grid[tree.prompts, tree.depths]
    assert held.tolist() == list(range(8))  # each node stands where it says


def test_tokens_with_different_marks_are_not_shared_nor_what_follows() -> None:
    rows = [(5, 6, 7), (5, 6, 7)]
    assert len(pack(rows, [["a", "a", "a"], ["a", "a", "a"]]).ids) == 3
    assert len(pack(rows, [["a", "a", "a"], ["a", "b", "a"]]).ids) == 5


def test_passes_hold_every_prompt_once_and_stay_near_the_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [tuple(torch.randint(0, 3, (n,), generator=generator).tolist()) for n in range(1, 60)]
    plan = plan_trees(rows, budget=100, unfolded=1600)
    assert sorted(row for batch in plan for row in batch) == list(range(59))
    sizes = [len(pack([rows[row] for row in batch]).ids) for batch in plan]
    assert max(sizes) <= 100
    assert len(plan_trees(rows, budget=10_000, unfolded=160_000)) == 1
    # A long beginning in common costs few nodes, but attention unfolds it for every prompt.
    alike = [(*range(90), n) for n in range(100)]
    assert len(pack(alike).ids) == 190
    assert all(len(batch) * 91 <= 16 * 200 for batch in plan_trees(alike, budget=200, unfolded=3200))


def test_what_prompts_share_is_run_once(tiny: ChatModel) -> None:
    ran: list[int] = []
    collect(tiny, ALIKE)  # the self-test comes first
    with tiny.hooks([("mlp_out", 0, lambda value: ran.append(value.shape[0] * value.shape[1]))]):
        collect(tiny, ALIKE)
    tokens = tokenize(tiny.tokenizer, ALIKE)
    assert sum(ran) == len({ids[:n] for ids in tokens.ids for n in range(1, len(ids) + 1)})
    assert sum(ran) < 0.6 * sum(map(len, tokens.ids))  # control: there was something to share


@pytest.mark.parametrize("position", ["t_inst", "instruction", "post_inst[1]", -2])
def test_interventions_on_some_tokens_reach_only_their_own_prompt(
    tiny: ChatModel, position: str | int
) -> None:
    step = Add(
        direction=torch.randn(32, generator=torch.Generator().manual_seed(1)), layers=[0], positions=position
    )
    roles = ["t_inst", "post_inst"]
    fast, plain = (collect(tiny, ALIKE, positions=roles, interventions=[step], fast=f) for f in (True, False))
    torch.testing.assert_close(fast["resid_pre"], plain["resid_pre"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(fast["resid_pre"], collect(tiny, ALIKE, positions=roles)["resid_pre"])


def test_the_models_own_attention_is_back_afterwards(tiny: ChatModel) -> None:
    tokens, ids = tokenize(tiny.tokenizer, ALIKE), torch.tensor([tokenize(tiny.tokenizer, ALIKE).ids[0]])
    module, implementation = tiny.blocks[0].attention, tiny.hf.config._attn_implementation
    before = module.config
    logits = tiny.hf(ids).logits
    with (
        pytest.raises(RuntimeError, match="stop"),
        apply(tiny, []) as applied,
        packed_passes(tiny, tokens, applied),
    ):
        assert module.config is not before
        assert module.config._attn_implementation != implementation  # pyright: ignore
        raise RuntimeError("stop")
    assert module.config is before and tiny.hf.config._attn_implementation == implementation
    assert torch.equal(tiny.hf(ids).logits, logits)


def test_an_attention_that_cannot_be_unfolded_takes_the_plain_path(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokenize(tiny.tokenizer, ALIKE)
    assert can_pack(tiny, tokens)
    monkeypatch.setattr(tiny.hf.config, "_attn_implementation_internal", "flash_attention_2")
    assert not can_pack(tiny, tokens)


@pytest.mark.parametrize("layers", [[0], [0, 2], [2], None])
@pytest.mark.parametrize("site", SITES)
def test_the_last_block_runs_for_the_tokens_that_are_read(
    tiny: ChatModel, site: Site, layers: list[int] | None
) -> None:
    collect(tiny, ALIKE)  # the self-test comes first
    ran: dict[int, int] = {}

    def count(layer: int) -> Edit:
        return lambda value: ran.__setitem__(layer, value.shape[1])

    with tiny.hooks([("mlp_out", layer, count(layer)) for layer in range(3)]):
        fast = collect(tiny, ALIKE, sites=[site], layers=layers, positions=["t_inst", -1])
    plain = collect(tiny, ALIKE, sites=[site], layers=layers, positions=["t_inst", -1], fast=False)
    torch.testing.assert_close(fast[site], plain[site], rtol=1e-4, atol=1e-5)
    different = len(set(ALIKE))  # each with two tokens that are read
    last = max(plain.layers) - (site == "resid_pre")
    if last >= 0:
        assert ran.pop(last) == 2 * different
    assert set(ran) == set(range(last))
    assert all(n > 50 for n in ran.values())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mixtral"])
def test_attention_by_key_head_is_the_models_own(
    kind: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ChatModel(build(*COVERED[kind]), tokenizer, name=kind)
    used: list[int] = []
    ours = PackedAttention._attend_by_key_head

    def counted(self: PackedAttention, *args: object) -> torch.Tensor:
        used.append(1)
        return ours(self, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(PackedAttention, "_attend_by_key_head", counted)
    by_key_head = collect(model, ALIKE, positions=["t_inst", -1])["resid_pre"]
    assert used
    used.clear()
    monkeypatch.setattr("interp.engine.unfolded_attention._KNOWN_OPTIONS", set())
    own = collect(model, ALIKE, positions=["t_inst", -1])["resid_pre"]
    assert not used
    torch.testing.assert_close(by_key_head, own, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_run_in_parts_takes_the_plain_path(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("blocks want more")

    monkeypatch.setattr(PackedPasses, "narrowed", broken)
    fresh = ChatModel(tiny.hf, tiny.tokenizer, name="fresh")
    found = collect(fresh, ALIKE)
    assert "the fast path fails on fresh (blocks want more)" in caplog.text
    assert torch.equal(found["resid_pre"], collect(fresh, ALIKE, fast=False)["resid_pre"])


def test_a_pass_that_runs_out_of_memory_half_way_is_tried_again_in_parts(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = collect(tiny, ALIKE, fast=False)["resid_pre"]
    own, failures = packing.unfold_few, [RuntimeError("CUDA out of memory")]

    def once(*args: Any, **options: Any) -> object:
        if failures:
            raise failures.pop()
        return own(*args, **options)

    monkeypatch.setattr(packing, "unfold_few", once)
    torch.testing.assert_close(collect(tiny, ALIKE)["resid_pre"], plain, rtol=1e-4, atol=1e-5)
    assert "out of memory with 6 prompts in a batch; going on with 3" in caplog.text


def test_what_all_prompts_begin_with_attends_once(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokenize(tiny.tokenizer, ALIKE)
    tree = pack(list(tokens.ids))
    assert tree.n_common == tokens.n_shared > 3
    assert pack([(5, 6), (5, 6)]).n_common == 1
    assert pack([(5, 6)]).n_common == pack([(5, 6), (7, 6)]).n_common == 0
    asked: list[int] = []
    own = unfolded_attention._attention

    def counted(query: torch.Tensor, *args: Any) -> torch.Tensor:
        asked.append(query.shape[1])
        return own(query, *args)

    collect(tiny, ALIKE)  # the self-test comes first
    monkeypatch.setattr(unfolded_attention, "_attention", counted)
    with (
        torch.no_grad(),
        apply(tiny, []) as applied,
        packed_passes(tiny, tokens, applied, max_shared=0) as passes,
    ):
        (rows,) = passes.batches
        logits = passes.next_token_logits(passes.pack(rows))
    sharing = tiny.hf.config.num_attention_heads // tiny.hf.config.num_key_value_heads
    longest = max(map(len, tokens.ids))
    # What all begin with, what comes after it, and the last block's last tokens.
    assert set(asked) == {sharing * tree.n_common, sharing * (longest - tree.n_common), sharing}
    monkeypatch.undo()
    plain = torch.stack([tiny.hf(torch.tensor([tokens.ids[row]])).logits[0, -1] for row in rows])
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)


def test_what_some_prompts_share_attends_mostly_once(tiny: ChatModel) -> None:
    """Orders of a question's choices, twice the same prompt among them: each attends from its own first node on."""
    texts = [f"{who} asks {'something ' * 6}: {end}" for who in ("Ann", "Bob") for end in "xyzz"]
    tokens = tokenize(tiny.tokenizer, texts)
    tree = pack(list(tokens.ids))
    begin = unfolded_attention._first_queries(tree, tree.n_common, overhead=48)
    own = [int(tree.depths[tree.prompts == row].min()) if row not in (3, 7) else 0 for row in range(8)]
    assert begin[0] == begin[4] == tree.n_common < 40 < int(begin[1])
    for row, column in enumerate(begin.tolist()):
        if row not in (3, 7):  # the twins, of which no node is their own
            assert column <= max(own[row], tree.n_common) < column + unfolded_attention._STEP
    assert set(unfolded_attention._first_queries(tree, tree.n_common, overhead=10**6).tolist()) == {
        tree.n_common
    }
    with (
        torch.no_grad(),
        apply(tiny, []) as applied,
        packed_passes(tiny, tokens, applied, max_shared=0) as passes,
    ):
        (rows,) = passes.batches
        logits = passes.next_token_logits(passes.pack(rows))
    plain = torch.stack([tiny.hf(torch.tensor([tokens.ids[row]])).logits[0, -1] for row in rows])
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masks", [1, 5])
def test_attention_over_few_scores_is_what_the_kernel_gives(
    tiny: ChatModel, masks: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(5, n, 8, generator=generator) for n in (6, 9, 9))
    mask = torch.where(
        torch.rand(masks, 1, 6, 9, generator=generator) < 0.4, torch.finfo(torch.float32).min, 0.0
    )
    mask[..., 0] = 0
    attend, budget = unfolded_attention._attention, PassBudget.for_(tiny)
    few = attend(query, key, value, mask, scaling, budget)
    monkeypatch.setattr(torch, "baddbmm", None)  # the kernel's path does not call it
    for less in (replace(budget, few_scores=5 * 6 * 9 - 1), replace(budget, short_scores=6 * 9 - 1)):
        found = attend(query, key, value, mask, scaling, less)
        torch.testing.assert_close(few, found, rtol=1e-5, atol=1e-6)


def test_final_states_run_what_replies_share_once(tiny: ChatModel) -> None:
    tokens = tokenize(
        tiny.tokenizer, [f"Name three colours, please. {end}" for end in ("Red", "Blue", "Red wine")]
    )
    counts: list[int] = []

    def count(_module: Any, args: Any, options: Any) -> None:
        hidden = args[0] if args else options["hidden_states"]
        counts.append(hidden[..., 0].numel())

    final_states(tiny, tokens)  # which compares the packed path with the plain one, once
    handle = tiny.blocks[0].module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        packed = final_states(tiny, tokens)
    finally:
        handle.remove()
    n_nodes = len(pack(tokens.ids).ids)
    assert sum(counts) == n_nodes + len(tokens)  # the last block is entered for the last tokens alone
    assert n_nodes < 0.6 * sum(map(len, tokens.ids))
    torch.testing.assert_close(packed, final_states(tiny, tokens, fast=False), atol=1e-4, rtol=1e-4)
    steered = final_states(tiny, tokens, interventions=[Add(torch.ones(32), layers=1)])
    plain = final_states(tiny, tokens, interventions=[Add(torch.ones(32), layers=1)], fast=False)
    torch.testing.assert_close(steered, plain, atol=1e-4, rtol=1e-4)
    assert (steered - packed).norm() > 0.1  # control: the intervention acts


@pytest.mark.parametrize(
    ("nodes", "system", "own_pass"), [(400, None, False), (20, None, True), (400, "z" * 60, True)]
)
def test_a_shared_prefix_has_a_pass_of_its_own_where_there_are_several_or_it_is_long(
    tiny: ChatModel, nodes: int, system: str | None, own_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokenize(tiny.tokenizer, ALIKE, system=system)
    plain = collect(tiny, tokens, positions=["t_inst", "t_post_inst"], fast=False)["resid_pre"]
    collect(tiny, tokens)  # tests both paths
    lengths: list[int] = []
    own = packing.SharedPrefix

    def recording(model: ChatModel, tokens: Any, applied: Any, length: int, **options: Any) -> Any:
        lengths.append(length)
        return own(model, tokens, applied, length, **options)

    monkeypatch.setattr(packing, "SharedPrefix", recording)
    found = collect(tiny, tokens, positions=["t_inst", "t_post_inst"], budget=nodes)["resid_pre"]
    assert lengths == [tokens.n_shared if own_pass else 0]
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-5)
    # A worker that is given one of several passes does as the process that runs them all.
    with apply(tiny, []) as applied, packed_passes(tiny, tokens, applied, budget=nodes) as passes:
        planned, shared = list(passes.batches), passes.shared
    assert (len(planned) > 1) == (nodes == 20)
    one = planned[:1]
    with apply(tiny, []) as applied, packed_passes(tiny, tokens, applied, budget=nodes, batches=one) as part:
        assert part.shared == shared
