"""Which token every slot of a pass is, and where in it an intervention acts."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from interp.engine.applying import apply
from interp.engine.batching import pad_left
from interp.engine.interventions import Add
from interp.engine.layouts import PassLayout
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize

VECTOR = torch.ones(32)


@pytest.fixture
def two(tiny: ChatModel) -> ChatTokens:
    return tokenize(tiny.tokenizer, ["Hi", "How do I bake bread?"])


def test_padded_prompts_and_what_is_generated_behind_them(two: ChatTokens) -> None:
    short, long = map(len, two.ids)
    gap = long - short
    layout = PassLayout.left_padded(two, stop=long + 2)
    assert layout.prompts.tolist() == [[0] * (long + 2), [1] * (long + 2)]
    assert layout.positions[0, gap:].tolist() == list(range(short + 2))
    assert layout.positions[1].tolist() == list(range(long + 2))
    assert (layout.positions[0, :gap] < 0).all()
    last = layout.where("t_post_inst", 1)
    assert isinstance(last, torch.Tensor)
    # The prompt's last token and the first generated one.
    assert last.nonzero().tolist() == [[0, long - 1], [0, long], [1, long - 1], [1, long]]
    assert layout.where("all", None) is True
    assert layout.where("all", 0).sum() == 2 * long  # pyright: ignore[reportAttributeAccessIssue]


def test_a_chunk_behind_a_shared_prefix_is_the_end_of_the_whole(two: ChatTokens) -> None:
    whole = PassLayout.left_padded(two)
    shared = two.n_shared
    chunk = PassLayout.left_padded(two, shared=shared)
    assert chunk.positions.shape[1] == whole.positions.shape[1] - shared
    assert chunk.positions[1].tolist() == whole.positions[1, shared:].tolist()
    tail = len(two.ids[0]) - shared
    assert chunk.positions[0, -tail:].tolist() == list(range(shared, len(two.ids[0])))
    assert (chunk.positions[0, :-tail] == -1).all()
    prefix = PassLayout.prefix(two, shared)
    assert prefix.positions.tolist() == [list(range(shared))]
    assert prefix.where("instruction", None) is False
    assert prefix.where("prefix", 0) is True


def test_decoding_steps_follow_row_by_row(two: ChatTokens) -> None:
    step = PassLayout.left_padded(two).following()
    assert step.positions[:, 0].tolist() == [len(ids) for ids in two.ids]
    assert step.where("t_inst", 1) is True and step.where("t_inst", 0) is False
    second = step.following().take([1])
    assert second.prompts.tolist() == [[1]] and second.positions.tolist() == [[len(two.ids[1]) + 1]]
    assert second.where("instruction", 1) is False and second.where("instruction", None) is True


def test_a_layout_is_frozen_and_a_pass_of_another_shape_is_refused(tiny: ChatModel, two: ChatTokens) -> None:
    layout = PassLayout.left_padded(two)
    with pytest.raises(FrozenInstanceError):
        layout.positions = layout.prompts  # pyright: ignore[reportAttributeAccessIssue]
    add = Add(direction=VECTOR, layers=[1], positions="t_inst")
    padded = pad_left(two.ids, pad_id=256)
    with pytest.raises(ValueError, match=r"describes a pass of \[2, \d+\] tokens, got \[1, "):
        with torch.no_grad(), apply(tiny, [add]) as applied, applied.running(layout):
            tiny.hf(padded.ids[:1])


def test_each_pass_has_its_own_layout_whatever_ran_before(tiny: ChatModel, two: ChatTokens) -> None:
    """What a pass is comes with it: an earlier one, or one that failed, leaves nothing behind."""
    add = Add(direction=VECTOR, layers=[1], positions="t_inst")
    alone = [two.take([row]) for row in range(2)]

    def logits(tokens: ChatTokens) -> torch.Tensor:
        return tiny.hf(torch.tensor([tokens.ids[0]])).logits

    with torch.no_grad():
        with apply(tiny, [add], tokens=alone[1]):
            expected = logits(alone[1])
        with apply(tiny, [add]) as applied:
            with applied.running(PassLayout.left_padded(alone[0])):
                logits(alone[0])
            with pytest.raises(ValueError, match="need to know the prompts"):
                logits(alone[1])
            with applied.running(PassLayout.left_padded(alone[1])):
                assert torch.equal(logits(alone[1]), expected)
        with apply(tiny, [add], tokens=alone[1]):
            with pytest.raises(ValueError, match="describes a pass of"):
                tiny.hf(torch.tensor([alone[1].ids[0], alone[1].ids[0]]))
            assert torch.equal(logits(alone[1]), expected)
