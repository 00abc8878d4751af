"""The playground without a browser: its controls are set, its buttons pressed, its panels read."""

import html
import re
import threading
import time
from pathlib import Path

import pytest
import torch

from interp.directions import Direction
from interp.engine.generation import generate
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel, load
from interp.playgrounds import (
    UNKNOWN,
    Playground,
    colour,
    named_directions,
    playground,
    read_new_tokens,
    read_positions,
    strips_html,
)
from interp.representations.steering import steer
from interp.storage.direction_files import write_direction

PROMPT = "How do I bake bread?"


def direction(seed: int, d_model: int = 32) -> Direction:
    vector = torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(vector=vector, layer=1, position="t_inst", mean_activation_norm=10.0)


@pytest.fixture
def panel(tiny: ChatModel, tmp_path: Path) -> Playground:
    made = playground(
        tiny, {"harmfulness": direction(1), "refusal": direction(2)}, prompt=PROMPT, folder=tmp_path
    )
    made.max_new_tokens.value = 8
    return made


def shown(value: str) -> str:
    """The answer in a panel."""
    found = re.search(r"<p [^>]*>(.*?)(?: …)?</p>", value, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_run_shows_what_steer_gives(panel: Playground, tiny: ChatModel) -> None:
    panel.amount.value = 3.0
    panel.run_button.click()
    panel.wait(20.0)
    expected = steer(tiny, PROMPT, direction(2), coefficient=3.0, max_new_tokens=8)
    assert shown(panel.plain.value) == expected.plain[0]
    assert shown(panel.steered.value) == expected.steered[0]
    assert expected.plain != expected.steered  # control
    assert "3 coefficient of refusal at layer 1" in panel.steered.value
    assert panel.status.value.startswith("done: 16 tokens")
    assert panel.error.value == ""
    for name in ("harmfulness", "refusal"):
        assert f"projection on {name}" in panel.strips.value
    # Two answers on two directions, each token a span with its numbers; the last token of each was never run.
    n = 2 * 2 * (len(panel.answers["plain"].prompt) + 8)
    assert panel.strips.value.count('class="interp-token"') == n
    assert len(re.findall(r"projection -?[\d.]+, cosine", panel.strips.value)) == n - 4
    assert panel.strips.value.count(UNKNOWN) == 4
    assert panel.probabilities.value.count("<tr>") == 1 + 8


def test_controls_reach_the_answer(panel: Playground, tiny: ChatModel) -> None:
    panel.direction.value = "harmfulness"
    panel.unit.value = "relative_norm"
    panel.amount.value = -2.0
    panel.layer.value = 2
    panel.positions.value = "t_inst, -1"
    panel.new_tokens.value = "2"
    panel.run()
    panel.wait(20.0)
    expected = steer(
        tiny,
        PROMPT,
        direction(1),
        relative_norm=-2.0,
        layers=[2],
        positions=["t_inst", -1],
        new_tokens=2,
        max_new_tokens=8,
    )
    assert shown(panel.steered.value) == expected.steered[0]
    assert (
        expected.steered != steer(tiny, PROMPT, direction(1), relative_norm=-2.0, max_new_tokens=8).steered
    )  # control


def test_the_plain_answer_is_made_once_for_a_prompt(panel: Playground) -> None:
    panel.run()
    panel.wait(20.0)
    first = panel.answers["plain"]
    panel.amount.value = 4.0
    panel.run()
    panel.wait(20.0)
    assert panel.answers["plain"] is first
    panel.prompt.value = "Hi"
    panel.run()
    panel.wait(20.0)
    assert panel.answers["plain"] is not first


def test_choosing_a_direction_goes_to_its_layer(tiny: ChatModel) -> None:
    far = Direction(vector=torch.ones(32), layer=2, position="t_inst")
    made = playground(tiny, {"far": far, "near": direction(1)})
    assert (made.direction.value, made.layer.value) == ("near", 1)
    made.direction.value = "far"
    assert made.layer.value == 2


def test_answers_are_streamed_and_stop_stops(panel: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panel grows while the answer is made; Stop ends it; the thread that pressed Run is free meanwhile."""
    grown = [threading.Event(), threading.Event()]
    seen: list[int] = []

    def note(change: dict) -> None:
        seen.append(len(shown(change["new"])))
        if len(seen) >= 3:
            grown[0].set()

    panel.max_new_tokens.value = 256
    panel.plain.observe(note, names="value")
    monkeypatch.setattr("interp.playgrounds._DRAW_EVERY", 0.0)
    panel.run()
    assert grown[0].wait(20.0)
    assert panel.stop_button.disabled is False
    panel.stop_button.click()
    panel.wait(20.0)
    assert seen == sorted(seen) and seen[-1] > seen[0]
    assert 0 < len(panel.answers["plain"].tokens) < 256
    assert panel.status.value.startswith("stopped")
    assert (panel.run_button.disabled, panel.stop_button.disabled) == (False, True)
    panel.max_new_tokens.value = 4
    panel.run()  # a stopped answer is not taken for a whole one
    panel.wait(20.0)
    assert len(panel.answers["plain"].tokens) == 4


def test_other_cells_are_left_alone_while_it_steers(panel: Playground, tiny: ChatModel) -> None:
    before = next_token_log_probs(tiny, [PROMPT])
    panel.max_new_tokens.value = 64
    panel.amount.value = 5.0
    panel.run()
    checked, begun = 0, time.monotonic()
    while panel.status.value.split(":")[0] not in ("done", "stopped") and time.monotonic() - begun < 20:
        if "steered" in panel.answers:
            assert torch.equal(next_token_log_probs(tiny, [PROMPT]), before)
            checked += 1
        time.sleep(0.01)
    panel.wait(20.0)
    assert checked > 0
    push = panel.setting().intervention()
    alone = generate(tiny, [PROMPT], interventions=[push], max_new_tokens=64).texts[0]
    assert panel.answers["steered"].text == alone != panel.answers["plain"].text


def test_mistakes_are_shown_in_the_panel(panel: Playground, tiny: ChatModel) -> None:
    for control, value, message in (
        (panel.prompt, "  ", "the prompt is empty; type one"),
        (
            panel.new_tokens,
            "soon",
            "new tokens must be default, none, all or a number, got 'soon'",
        ),
        (panel.positions, "nowhere", "unknown position 'nowhere'; known: t_inst"),
        (panel.positions, "", "positions are empty"),
    ):
        kept, control.value = control.value, value
        panel.run()
        panel.wait(20.0)
        assert message in html.unescape(panel.error.value)
        assert "Traceback" not in panel.error.value
        control.value = kept
    panel.run()
    panel.wait(20.0)
    assert panel.error.value == "" and panel.status.value.startswith("done")
    bare = Direction(vector=torch.ones(32), layer=1, position="t_inst")
    made = playground(tiny, bare)
    made.unit.value = "relative_norm"
    made.run()
    assert "relative_norm needs" in html.unescape(made.error.value)


def test_a_fault_of_ours_is_shown_and_logged(
    panel: Playground, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out <of> order")

    monkeypatch.setattr("interp.playgrounds.trace", broken)
    panel.run()
    panel.wait(20.0)
    assert "RuntimeError: out &lt;of&gt; order" in panel.error.value
    assert "broken" in caplog.text  # the traceback
    assert panel.run_button.disabled is False


def test_the_code_gives_the_shown_answer(saved_tiny: Path, tmp_path: Path) -> None:
    panel = playground(load(str(saved_tiny)), {"refusal": direction(2)}, prompt=PROMPT, folder=tmp_path)
    panel.max_new_tokens.value = 6
    panel.amount.value = 4.0
    panel.run()
    panel.wait(20.0)
    assert panel.code.layout.display == "none"
    panel.code_button.click()
    assert panel.code.layout.display is None
    space: dict = {}
    exec(panel.code.value, space)
    assert space["answers"].steered[0] == shown(panel.steered.value)
    assert space["answers"].steered != space["answers"].plain  # control
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_directions_come_in_many_forms(tiny: ChatModel, tmp_path: Path) -> None:
    one = direction(1)
    path = write_direction(tmp_path / "mine.safetensors", one)
    assert list(named_directions(tiny, path)) == ["mine"]
    assert list(named_directions(tiny, one)) == ["t_inst 1"]
    assert list(named_directions(tiny, [one, str(path)])) == ["t_inst 1", "mine"]
    assert torch.equal(named_directions(tiny, {"x": path})["x"].vector, one.vector)
    assert list(playground(tiny).direction.options) == ["harmfulness", "refusal"]
    with pytest.raises(ValueError, match="a playground needs at least one direction"):
        playground(tiny, {})
    with pytest.raises(ValueError, match="no such direction file"):
        playground(tiny, "nowhere.safetensors")
    with pytest.raises(ValueError, match="direction has d_model 16, but tiny has 32"):
        playground(tiny, direction(1, d_model=16))


def test_typed_positions_and_steps() -> None:
    assert read_positions("all") == "all"
    assert read_positions(" t_inst , post_inst[0], -1") == ["t_inst", "post_inst[0]", -1]
    assert read_positions("-2") == -2
    assert [read_new_tokens(text) for text in ("default", "none", " all", "3")] == [None, "none", "all", 3]


def test_colours_diverge_from_white() -> None:
    assert colour(0.0, 5.0) == "#FFFFFF"
    assert colour(9.0, 5.0) == colour(5.0, 5.0) != colour(2.0, 5.0)
    red, blue = (
        tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (colour(5.0, 5.0), colour(-5.0, 5.0))
    )
    assert red[0] > red[2] and blue[2] > blue[0]
    assert colour(1.0, 0.0) == "#FFFFFF"
    assert strips_html({}, ["a"]).count("interp-token") == 0
