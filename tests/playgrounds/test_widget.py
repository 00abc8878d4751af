"""The playground without a browser: its controls are set, its buttons pressed, its panels read."""

import html
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.directions import Direction
from interp.engine.generation import generate
from interp.engine.log_probs import next_token_log_probs
from interp.engine.safety_prompts import SafetyPrompt
from interp.models.chat_model import ChatModel, load
from interp.playgrounds import Playground, named_directions, playground
from interp.playgrounds.rendering import UNKNOWN
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
    assert "3 × the norm of refusal added at layer 1, at all tokens" in panel.steered.value
    assert panel.status.value.startswith("Done: 16 tokens in ")
    assert panel.error.value == ""
    for name in ("harmfulness", "refusal"):
        assert f"projection on {name}" in panel.strips.value
    # Two answers on two directions, each token a span with its numbers; the last token of each was never run.
    n = 2 * 2 * (len(panel.answers["plain"].prompt) + 8)
    assert panel.strips.value.count('class="interp-token"') == n
    assert len(re.findall(r"projection -?[\d.]+, cosine", panel.strips.value)) == n - 4
    assert panel.strips.value.count(UNKNOWN) == 4
    assert panel.probabilities.value.count("<tr>") == 1 + 8
    assert not panel.kept.value or panel.kept.layout.display == "none"


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
    monkeypatch.setattr("interp.playgrounds.widget._DRAW_EVERY", 0.0)
    panel.run()
    assert grown[0].wait(20.0)
    assert panel.stop_button.disabled is False
    panel.stop_button.click()
    panel.wait(20.0)
    assert seen == sorted(seen) and seen[-1] > seen[0]
    assert 0 < len(panel.answers["plain"].tokens) < 256
    assert panel.status.value == f"Stopped after {len(panel.answers['plain'].tokens)} tokens"
    assert "steered" not in panel.answers and shown(panel.steered.value) == ""  # one press ends both
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
    while panel.status.value.split()[:1] not in (["Done:"], ["Stopped"]) and time.monotonic() - begun < 20:
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
        (panel.positions, "post_inst[99]", "post_inst[99] is out of range: prompt 0 has 13 post-instruction"),
        (panel.positions, "t_inst, -500", "position -500 is out of range for prompt 0 of"),
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
        panel.run()  # said here, before anything is generated
        assert panel._worker is None and panel.answers == {}
        assert message in html.unescape(panel.error.value)
        assert "Traceback" not in panel.error.value
        control.value = kept
    panel.run()
    panel.wait(20.0)
    assert panel.error.value == "" and panel.status.value.startswith("Done")
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

    monkeypatch.setattr("interp.playgrounds.widget.trace", broken)
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


def test_a_safety_prompt_stands_in_every_column_until_its_box_is_unticked(
    saved_tiny: Path, tmp_path: Path
) -> None:
    model = load(str(saved_tiny))
    safety = SafetyPrompt.from_text(model, "Be safe.")
    noise = torch.randn(safety.embeddings.shape, generator=torch.Generator().manual_seed(0))
    safety = replace(safety, embeddings=safety.embeddings + 3 * safety.embeddings.std() * noise)
    safety.save(tmp_path / "prompt.safetensors")
    panel = playground(
        model,
        {"refusal": direction(2)},
        prompt=PROMPT,
        safety_prompt=tmp_path / "prompt.safetensors",
        folder=tmp_path / "shown",
    )
    run(panel, amount=4.0, max_new_tokens=6)
    expected = steer(model, PROMPT, direction(2), coefficient=4.0, max_new_tokens=6, safety_prompt=safety)
    without = steer(model, PROMPT, direction(2), coefficient=4.0, max_new_tokens=6)
    assert expected.plain != without.plain  # control: it does something
    assert shown(panel.plain.value) == expected.plain[0] and shown(panel.steered.value) == expected.steered[0]
    for column in (panel.plain, panel.steered):
        assert f"safety prompt on: {len(noise)} trained embeddings" in column.value
    panel.code_button.click()
    space: dict = {}
    exec(panel.code.value, space)
    assert space["answers"].steered == expected.steered
    run(panel, safety=False)
    assert shown(panel.plain.value) == without.plain[0] and "safety prompt on" not in panel.plain.value
    other = replace(safety, weights_hash="0" * 64)
    with pytest.raises(ValueError, match=r"the weights of .* differ"):
        playground(model, {"refusal": direction(2)}, safety_prompt=other)


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


def run(panel: Playground, **values: object) -> None:
    """Set controls, press Run, wait."""
    for name, value in values.items():
        getattr(panel, name).value = value
    panel.run_button.click()
    panel.wait(20.0)
    assert panel.error.value == ""


def test_a_layer_that_is_not_there_is_said_before_anything_is_generated(panel: Playground) -> None:
    panel.layer.max = 9
    panel.layer.value = 9
    panel.run()
    assert "layer must be in 0..2, got 9" in panel.error.value
    assert panel._worker is None


def test_a_conversation_goes_on_in_each_column_with_its_own_answers(
    panel: Playground, tiny: ChatModel
) -> None:
    run(panel, amount=4.0)
    first = {name: answer.text for name, answer in panel.answers.items()}
    assert first["plain"] != first["steered"]  # control
    panel.chat.value = True
    assert panel.prompt.value == ""  # the message was answered; the next one is typed here
    run(panel, prompt="And a cake?")

    def conversation(name: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "content": first[name]},
            {"role": "user", "content": "And a cake?"},
        ]

    push = panel.setting().intervention()
    expected = {
        "plain": generate(tiny, conversation("plain"), max_new_tokens=8).texts[0],
        "steered": generate(tiny, conversation("steered"), interventions=[push], max_new_tokens=8).texts[0],
    }
    assert {name: answer.text for name, answer in panel.answers.items()} == expected
    assert html.escape(first["steered"]) in panel.steered.value and "And a cake?" in panel.steered.value
    panel.show_code()
    assert "{'role': 'user', 'content': 'And a cake?'}" in panel.code.value
    assert repr(first["steered"]) in panel.code.value

    run(panel, amount=-4.0)  # an empty message: the last one again, with other settings
    again = generate(
        tiny, conversation("steered"), interventions=[panel.setting().intervention()], max_new_tokens=8
    )
    assert panel.answers["steered"].text == again.texts[0] != expected["steered"]

    panel.new_button.click()
    assert panel.answers == {} and panel.status.value == ""
    run(panel, prompt=PROMPT, amount=4.0)
    assert {name: answer.text for name, answer in panel.answers.items()} == first


def test_without_the_conversation_each_prompt_is_its_own(panel: Playground) -> None:
    run(panel)
    first = panel.answers["plain"].text
    run(panel, prompt="Hi")
    run(panel, prompt=PROMPT)
    assert panel.answers["plain"].text == first


def test_a_turn_without_an_answer_cannot_be_continued(panel: Playground) -> None:
    panel.chat.value = True
    run(panel)
    del panel.answers["steered"]  # as after Stop in the plain answer
    panel.prompt.value = "And then?"
    panel.run()
    assert "the last message has no steered answer to continue from" in panel.error.value


def test_a_steered_answer_is_kept_beside_the_next(panel: Playground, tiny: ChatModel) -> None:
    assert panel.keep_button.disabled and panel.kept.layout.display == "none"
    run(panel, amount=3.0)
    first = panel.answers["steered"]
    panel.keep_button.click()
    run(panel, amount=-3.0)
    assert panel.answers["kept"] is first  # nothing is generated twice
    assert panel.kept.layout.display is None
    assert shown(panel.kept.value) == first.text != shown(panel.steered.value)
    assert "3 × the norm of refusal added" in panel.kept.value
    assert "3 × the norm of refusal subtracted" in panel.steered.value
    assert panel.status.value.startswith("Done: 8 tokens")
    assert panel.strips.value.count(">kept</span>") == 2
    assert ">kept</th>" in panel.probabilities.value

    run(panel, prompt="Hi")  # the kept settings answer the new prompt as well
    expected = steer(tiny, "Hi", direction(2), coefficient=3.0, max_new_tokens=8).steered[0]
    assert panel.answers["kept"].text == expected != panel.answers["steered"].text
    panel.drop_button.click()
    assert "kept" not in panel.answers and panel.kept.layout.display == "none"
    assert ">kept</th>" not in panel.probabilities.value


def test_code_reads_the_direction_from_below_the_working_directory(
    saved_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(saved_tiny, tmp_path / "model")
    panel = playground(load(str(copy)), {"refusal": direction(2)}, prompt=PROMPT)
    run(panel, amount=4.0, max_new_tokens=6)
    panel.show_code()
    assert str(tmp_path) not in panel.code.value
    assert "read_direction('runs/playground/refusal-" in panel.code.value
    space: dict = {}
    exec(panel.code.value, space)
    assert space["answers"].steered[0] == shown(panel.steered.value)
