"""Completions through the store: what is read is what was generated, and what a key cannot express never is."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from interp.engine.decoding import stop_ids
from interp.engine.generation import Completions, generate
from interp.engine.interventions import Ablate, Add
from interp.engine.joint_generation import generate_each
from interp.engine.stored_activations import using_store
from interp.models.chat_model import ChatModel
from interp.storage.activation_store import ActivationStore
from interp.storage.completion_tables import COMPLETIONS
from interp.storage.reply_records import recording
from interp.storage.store_slices import select
from tests.conftest import PROMPTS
from tests.engine.test_stored_activations import copy_of, passes

pytest.importorskip("lance", reason="the extra scale is not installed")


def test_what_was_generated_is_read_and_a_shorter_request_is_its_beginning(
    tiny: ChatModel, tmp_path: Path
) -> None:
    plain = generate(tiny, PROMPTS, max_new_tokens=8)
    with using_store(tmp_path):
        cold = generate(tiny, PROMPTS, max_new_tokens=8)
        with passes(copy := copy_of(tiny)) as counted, recording() as recorder:
            warm = generate(copy, PROMPTS[::-1], max_new_tokens=8)
            short = generate(copy, PROMPTS, max_new_tokens=3)
        assert not counted
        assert [reply.prompt for reply in recorder.replies] == [*PROMPTS[::-1], *PROMPTS]
        with passes(tiny) as counted:
            longer = generate(tiny, PROMPTS, max_new_tokens=10)
            assert counted
            counted.clear()
            assert generate(tiny, PROMPTS, max_new_tokens=9).ids == tuple(ids[:9] for ids in longer.ids)
            assert not counted
    assert plain.ids == cold.ids == warm.ids[::-1] and plain.texts == warm.texts[::-1]
    assert short.ids == tuple(ids[:3] for ids in plain.ids)
    assert short.ids == generate(tiny, PROMPTS, max_new_tokens=3).ids
    assert longer.ids == generate(tiny, PROMPTS, max_new_tokens=10).ids


def test_only_missing_prompts_run_and_an_ended_turn_answers_any_length(
    tiny: ChatModel, tmp_path: Path
) -> None:
    ending = copy_of(tiny)
    first = generate(tiny, PROMPTS[:1], max_new_tokens=4).ids[0]
    ending.hf.generation_config.eos_token_id = [first[2]]
    with using_store(tmp_path):
        ended = generate(ending, PROMPTS[:1], max_new_tokens=8)
        assert ended.finished == (True,) and len(ended.ids[0]) <= 3
        with passes(ending) as counted:
            assert generate(ending, PROMPTS[:1], max_new_tokens=50).ids == ended.ids
            assert not counted
            mixed = generate(ending, PROMPTS[:3], max_new_tokens=8)
            assert counted
        # Other tokens end a turn: another table.
        assert generate(tiny, PROMPTS[:1], max_new_tokens=8).ids != ended.ids
    assert mixed.ids == generate(ending, PROMPTS[:3], max_new_tokens=8).ids


def test_each_model_and_intervention_has_its_own_completions(tiny: ChatModel, tmp_path: Path) -> None:
    direction = torch.linspace(-3, 3, tiny.d_model)
    changed = copy_of(tiny)
    with torch.no_grad():
        changed.hf.model.layers[0].mlp.down_proj.weight.mul_(4)
    cases = [
        (tiny, ()),
        (changed, ()),
        (tiny, (Ablate(direction),)),
        (tiny, (Add(direction, layers=0),)),
        (tiny, (Add(direction, layers=0, coefficient=3),)),
        (tiny, (Add(direction, layers=0, coefficient=3, positions="t_inst"),)),
    ]
    plain = [generate(model, PROMPTS, interventions=active, max_new_tokens=6).ids for model, active in cases]
    assert len(set(plain)) > 3  # the control: they do differ
    with using_store(tmp_path):
        for _ in range(2):
            for (model, active), ids in zip(cases, plain, strict=True):
                assert generate(model, PROMPTS, interventions=active, max_new_tokens=6).ids == ids
    tables = list(ActivationStore(tmp_path).tables())
    assert len(tables) == len(cases) and {t.content.key.site for t in tables} == {COMPLETIONS}


def test_sets_that_decode_together_read_and_store_as_one_call_each(tiny: ChatModel, tmp_path: Path) -> None:
    direction = torch.linspace(-3, 3, tiny.d_model)
    arms = [
        (),
        (Add(direction, layers=0, positions="t_inst", new_tokens="none"),),
        (Ablate(direction, new_tokens="none"),),
    ]
    plain = [done.ids for done in generate_each(tiny, PROMPTS, arms, max_new_tokens=5)]
    with using_store(tmp_path):
        generate(tiny, PROMPTS[:2], max_new_tokens=5)  # some rows of one set
        generate(tiny, PROMPTS, interventions=arms[2], max_new_tokens=5)  # all of another
        assert [done.ids for done in generate_each(tiny, PROMPTS, arms, max_new_tokens=5)] == plain
        with passes(tiny) as counted:
            again = generate_each(tiny, PROMPTS, arms, max_new_tokens=5)
            one = generate(tiny, PROMPTS, interventions=arms[1], max_new_tokens=5)
        assert not counted
    assert [done.ids for done in again] == plain and one.ids == plain[1]


def test_a_completion_that_was_cut_answers_what_is_cut_alike(tiny: ChatModel, tmp_path: Path) -> None:
    def after(n: int):
        return lambda ids: len(ids) >= n

    def ids_of(done: Completions) -> list[int]:
        return [len(ids) for ids in done.ids]

    with using_store(tmp_path):
        cut = generate(tiny, PROMPTS, max_new_tokens=8, settled=after(3))
        with passes(tiny) as counted:
            assert generate(tiny, PROMPTS, max_new_tokens=8, settled=after(3)).ids == cut.ids
            assert ids_of(generate(tiny, PROMPTS, max_new_tokens=8, settled=after(2))) == [2] * len(PROMPTS)
            assert ids_of(generate(tiny, PROMPTS, max_new_tokens=3)) == [3] * len(PROMPTS)
            assert not counted
            whole = generate(tiny, PROMPTS, max_new_tokens=8)  # a cut completion is no whole one
            assert counted
    assert whole.ids == generate(tiny, PROMPTS, max_new_tokens=8).ids


def test_what_a_key_cannot_express_is_neither_stored_nor_read(tiny: ChatModel, tmp_path: Path) -> None:
    def bumped(_: Sequence[Sequence[int]], logits: torch.Tensor) -> torch.Tensor:
        return logits.roll(1, -1)

    with using_store(tmp_path):
        greedy = generate(tiny, PROMPTS, max_new_tokens=4)
        assert generate(tiny, PROMPTS, max_new_tokens=4, temperature=5.0).ids != greedy.ids
        assert generate(tiny, PROMPTS, max_new_tokens=4, processors=[bumped]).ids != greedy.ids
        with passes(tiny) as counted:
            generate(tiny, PROMPTS, max_new_tokens=4, fast=False)  # what fast paths are compared with
            assert counted
        model = copy_of(tiny)
        model.decoder.register_forward_hook(lambda *_: None)
        with passes(model) as counted:
            assert generate(model, PROMPTS, max_new_tokens=4).ids == greedy.ids
            assert counted
    (table,) = ActivationStore(tmp_path).tables()
    assert table.content.rows == len(PROMPTS)


def test_an_interrupted_call_keeps_what_is_complete(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy_of(tiny)
    plain = generate(tiny, PROMPTS, max_new_tokens=6).ids
    model.hf.generation_config.eos_token_id = [plain[0][1]]
    stops = stop_ids(model)

    def stopped(steps, places):
        for number, step in enumerate(steps):
            for row, token in zip(step.rows, step.ids, strict=True):
                places[row].append(token)
            if number == 3:
                raise KeyboardInterrupt

    with using_store(tmp_path), monkeypatch.context() as patched:
        patched.setattr("interp.engine.generation.gather", stopped)
        with pytest.raises(KeyboardInterrupt):
            generate(model, PROMPTS, max_new_tokens=6)
    (table,) = ActivationStore(tmp_path).tables()
    complete = [ids for ids in plain if stops & set(ids[:4])]
    assert table.content.rows == len(complete) > 0
    with using_store(tmp_path):
        assert (
            generate(model, PROMPTS, max_new_tokens=6).ids == generate(model, PROMPTS, max_new_tokens=6).ids
        )


def test_damage_is_found_and_generated_again(
    tiny: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = generate(tiny, PROMPTS, max_new_tokens=16).ids
    with using_store(tmp_path):
        generate(tiny, PROMPTS, max_new_tokens=16)
    (data,) = tmp_path.glob("[0-9a-f]*.lance/data/*.lance")
    whole, found = data.read_bytes(), 0
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        data.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        store = ActivationStore(tmp_path)
        found += bool(store.verify().damaged)
        (key,) = [key for key, _ in store.keys().values()]
        table = store.completions(key)
        rows = [name for fragment in table._fragments() for name in table._known(fragment)[0]]
        assert {completion.ids for completion in table.read(rows).values()} <= set(plain)
    assert found > 5  # the control: damage there is seen
    data.write_bytes(whole[: len(whole) // 2])
    with using_store(ActivationStore(tmp_path)):
        assert generate(tiny, PROMPTS, max_new_tokens=16).ids == plain
    assert "cannot be read" in caplog.text


def test_a_store_that_cannot_be_written_costs_only_the_storing(
    tiny: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with using_store(tmp_path / "file"):
        (tmp_path / "file").write_text("in the way")  # since it was opened
        assert generate(tiny, PROMPTS, max_new_tokens=4).ids == generate(tiny, PROMPTS, max_new_tokens=4).ids
    assert "without" in caplog.text


def test_completions_are_listed_compacted_and_removed_beside_activations(
    tiny: ChatModel, tmp_path: Path
) -> None:
    from interp.engine.activations import collect

    with using_store(tmp_path) as store:
        assert store is not None
        collect(tiny, PROMPTS[:2], layers=1)
        for n in range(3):
            generate(tiny, PROMPTS[n : n + 1], max_new_tokens=4)
        kinds = {t.content.key.site: t for t in store.tables()}
        assert kinds[COMPLETIONS].content.rows == 3 and kinds[COMPLETIONS].content.appends == 3
        assert store.verify().damaged == () and store.verify().cells == 2 * 2 + 3
        assert len(select(store, layers=[1])) == 4  # completions are no activations
        store.compact()
        (left,) = [t for t in store.tables() if t.content.key.site == COMPLETIONS]
        assert left.content.appends == 1 and left.content.rows == 3
        with passes(tiny) as counted:
            generate(tiny, PROMPTS[:3], max_new_tokens=4)
            assert not counted
            store.remove(left.id)
            generate(tiny, PROMPTS[:1], max_new_tokens=4)
            assert counted
        with pytest.raises(ValueError, match="holds activations"):
            store.completions(kinds["resid_pre"].content.key)
        with pytest.raises(ValueError, match="holds completions"):
            store.table(left.content.key)
