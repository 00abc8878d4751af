"""A traced answer is the answer, its projections are those of the residual stream, its code gives it again."""

import re
from pathlib import Path

import pytest
import torch

from interp.directions import Direction, cosine, project
from interp.engine.applying import apply
from interp.engine.generation import generate
from interp.engine.interventions import Add
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import tokenize
from interp.representations.steering import steer
from interp.representations.token_traces import Answer, Setting, likely_tokens, portable_path, trace
from interp.storage.direction_files import write_direction

PROMPT = "How do I bake bread?"


def direction(seed: int, layer: int) -> Direction:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Direction(vector=vector, layer=layer, position="t_inst", mean_activation_norm=10.0)


DIRECTIONS = {"a": direction(1, 1), "b": direction(2, 2)}


@pytest.fixture(scope="module")
def steps(tiny: ChatModel) -> list[Answer]:
    push = Add(DIRECTIONS["a"], coefficient=3.0)
    return list(trace(tiny, PROMPT, DIRECTIONS, interventions=[push], max_new_tokens=7))


def test_one_more_token_at_each_step_and_the_last_is_the_answer(tiny: ChatModel, steps: list[Answer]) -> None:
    push = Add(DIRECTIONS["a"], coefficient=3.0)
    expected = generate(tiny, [PROMPT], interventions=[push], max_new_tokens=7)
    assert [len(answer.tokens) for answer in steps] == list(range(1, len(expected.ids[0]) + 1))
    assert steps[-1].text == expected.texts[0]
    assert steps[-1].finished == expected.finished[0]
    assert steps[-1].text != generate(tiny, [PROMPT], max_new_tokens=7).texts[0]  # control: it was steered
    assert [t.role for t in steps[0].prompt] == [
        role for *_, role in tokenize(tiny.tokenizer, [PROMPT]).names(0)
    ]


@torch.no_grad()
def test_projections_are_read_after_the_intervention(tiny: ChatModel, steps: list[Answer]) -> None:
    """Oracle: one plain forward pass over prompt and answer with the same addition."""
    push = Add(DIRECTIONS["a"], coefficient=3.0)
    tokens = tokenize(tiny.tokenizer, [PROMPT])
    ids = [*tokens.ids[0], *generate(tiny, [PROMPT], interventions=[push], max_new_tokens=7).ids[0]]
    seen: dict[int, torch.Tensor] = {}
    with (
        apply(tiny, [push]),
        tiny.hooks([("resid_pre", n, lambda x, n=n: seen.update({n: x[0]})) for n in (1, 2)]),
    ):
        tiny.hf(torch.tensor([ids]))
    last = steps[-1]
    for name, way in DIRECTIONS.items():
        traced = [*last.prompt, *last.tokens[:-1]]
        along = project(seen[way.layer], way.vector)[:-1]
        angle = cosine(seen[way.layer], way.vector.expand_as(seen[way.layer]))[:-1]
        assert [t.projections[name] for t in traced] == pytest.approx(along.tolist(), abs=1e-3)
        assert [t.cosines[name] for t in traced] == pytest.approx(angle.tolist(), abs=1e-4)
    assert last.tokens[-1].projections == {}  # it was never run
    plain = next(iter(trace(tiny, PROMPT, DIRECTIONS, max_new_tokens=1)))
    shift = last.prompt[3].projections["a"] - plain.prompt[3].projections["a"]
    assert shift == pytest.approx(3.0 * DIRECTIONS["a"].norm, rel=1e-3)


def test_next_token_probabilities(tiny: ChatModel, steps: list[Answer]) -> None:
    plain = next(iter(trace(tiny, PROMPT, {}, max_new_tokens=1)))
    torch.testing.assert_close(
        plain.next_log_probs, next_token_log_probs(tiny, [PROMPT])[0], atol=1e-4, rtol=0
    )
    table = likely_tokens(tiny, {"plain": plain, "steered": steps[0]}, max_tokens=5)
    assert len(table) == 5
    assert (
        plain.next_log_probs.argmax() != steps[0].next_log_probs.argmax()
    )  # control: the table has both tops
    for answer, name in ((plain, "plain"), (steps[0], "steered")):
        top = float(answer.next_log_probs.max().exp())
        assert max(by[name] for by in table.values()) == pytest.approx(top)


@pytest.mark.parametrize(
    "options",
    [
        {"coefficient": 2.5},
        {"coefficient": -3.0, "layer": 0, "positions": ["t_inst", -1]},
        {"relative_norm": 2.0, "layer": 2, "positions": "instruction", "new_tokens": "all"},
        {"relative_norm": 1.5, "new_tokens": 2},
    ],
)
def test_the_code_gives_the_same_answer(saved_tiny: Path, tmp_path: Path, options: dict) -> None:
    model = load(str(saved_tiny))
    setting = Setting(prompt="Say \"hi\"\nto 'her'", direction=DIRECTIONS["a"], max_new_tokens=6, **options)
    shown = list(trace(model, setting.prompt, {}, interventions=[setting.intervention()], max_new_tokens=6))[
        -1
    ]
    code = setting.code(model, str(write_direction(tmp_path / "it's.safetensors", DIRECTIONS["a"])))
    space: dict = {}
    exec(code, space)
    assert space["answers"].steered == (shown.text,)
    assert shown.text != space["answers"].plain[0]  # control
    assert len(re.findall(r"^    \S", code, re.MULTILINE)) <= 9


def test_settings_are_steers(tiny: ChatModel) -> None:
    setting = Setting(prompt=PROMPT, direction=DIRECTIONS["b"], coefficient=4.0)
    expected = steer(tiny, PROMPT, DIRECTIONS["b"], coefficient=4.0, max_new_tokens=5).steered
    found = generate(tiny, [PROMPT], interventions=[setting.intervention()], max_new_tokens=5).texts
    assert found == expected
    bare = Direction(vector=torch.ones(32), layer=1, position="t_inst")
    with pytest.raises(ValueError, match="relative_norm needs a direction with its mean_activation_norm"):
        Setting(prompt=PROMPT, direction=bare, relative_norm=1.0).intervention()


CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello, it's me."},
    {"role": "user", "content": PROMPT},
]


def test_a_conversation_is_traced_and_its_code_gives_the_turn(saved_tiny: Path, tmp_path: Path) -> None:
    model = load(str(saved_tiny))
    setting = Setting(prompt=CHAT, direction=DIRECTIONS["a"], coefficient=3.0, max_new_tokens=6)
    setting.check(model)
    push = setting.intervention()
    shown = list(trace(model, CHAT, DIRECTIONS, interventions=[push], max_new_tokens=6))[-1]
    assert shown.text == generate(model, CHAT, interventions=[push], max_new_tokens=6).texts[0]
    assert shown.text != generate(model, PROMPT, interventions=[push], max_new_tokens=6).texts[0]  # control
    space: dict = {}
    exec(setting.code(model, str(write_direction(tmp_path / "a.safetensors", DIRECTIONS["a"]))), space)
    assert space["answers"].steered == (shown.text,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "nowhere"}, "unknown position 'nowhere'"),
        ({"positions": ["t_inst", -500]}, "position -500 is out of range"),
        ({"positions": "post_inst[99]"}, r"post_inst\[99\] is out of range"),
        ({"layer": 3}, "layer must be in 0..2, got 3"),
        ({"new_tokens": -1}, "new_tokens must be"),
        ({"prompt": ""}, "prompt 0 is empty"),
    ],
)
def test_mistakes_are_found_without_a_forward_pass(tiny: ChatModel, options: dict, message: str) -> None:
    ran: list[int] = []
    setting = Setting(**{"prompt": PROMPT, "direction": DIRECTIONS["a"], **options})
    with (
        tiny.hooks([("resid_pre", 0, lambda _: ran.append(1))]),
        pytest.raises(ValueError, match=message),
    ):
        setting.check(tiny)
    assert not ran


def test_paths_below_the_working_directory_are_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable_path(str(tmp_path / "runs" / "a.safetensors")) == "runs/a.safetensors"
    assert portable_path(str(tmp_path / "model"), folder=True) == "./model"
    outside = str(tmp_path.parent / "elsewhere")
    assert portable_path(outside) == outside
    assert portable_path("smollm2-safe", folder=True) == "smollm2-safe"
