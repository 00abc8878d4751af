"""Typed positions and new tokens, and help at every control."""

from interp.playgrounds.controls import HELP, Controls, read_new_tokens, read_positions
from tests.playgrounds.test_widget import direction


def test_typed_positions_and_new_tokens() -> None:
    assert read_positions("all") == "all"
    assert read_positions(" t_inst , post_inst[0], -1") == ["t_inst", "post_inst[0]", -1]
    assert read_positions("-2") == -2
    assert [read_new_tokens(text) for text in ("default", "none", " all", "3")] == [None, "none", "all", 3]


def test_every_control_has_its_help_under_it_and_as_its_tooltip() -> None:
    made = Controls({"refusal": direction(1)}, n_layers=3, prompt="Hi", safety=True)
    cells = [cell.children for cell in made.children[1].children]
    assert {control for control, _ in cells} == {getattr(made, name) for name in HELP}
    for name, text in HELP.items():
        control = getattr(made, name)
        (under,) = [note for cell, note in cells if cell is control]
        assert control.tooltip == text and text in under.value
    assert [label for label, _ in made.unit.options] == ["coefficient", "relative norm"]
    assert made.new_tokens.description == "new tokens"


def test_the_box_of_the_safety_prompt_is_there_where_one_is_given() -> None:
    made = Controls({"refusal": direction(1)}, n_layers=3, prompt="Hi")
    shown = [control for cell in made.children[1].children for control in cell.children]
    assert made.safety not in shown and made.safety.value is False and made.safety.disabled
    assert Controls({"refusal": direction(1)}, n_layers=3, prompt="Hi", safety=True).safety.value is True
