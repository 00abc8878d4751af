"""Cards in notebooks and terminals, the bar that leaves nothing behind, errors of one line."""

import re
from pathlib import Path

import torch

import interp
from interp.data.prompts import load_prompts
from interp.detectors.latent_guard import LatentGuard
from interp.directions import Direction
from interp.display.cards import Card, Shown, Table
from interp.display.token_strips import StripToken, strip_html
from interp.engine.activations import collect, collect_means
from interp.engine.generation import generate
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.beliefs import Centres
from interp.representations.steering import steer

NASTY = "<script>alert(1)</script> & \"'"


def words(html: str) -> str:
    """What a reader of the HTML sees."""
    return re.sub(r"<[^>]+>", " ", html)


# Cards


def test_card_says_the_same_in_a_notebook_and_in_a_terminal() -> None:
    table = Table(header=["name", "rate"], rows=[["first", 0.123456], ["second [bold]", 12]])
    card = Card(title="Thing", facts={"layers": 30}, tables=[table], notes=["Seen: it moves."])
    for part in ("Thing", "layers", "30", "first", "0.123", "second [bold]", "12", "Seen: it moves."):
        assert part in words(card.html())
        assert part in card.text()
    assert "0.1234" not in card.html() + card.text()


def test_what_models_and_users_write_is_escaped() -> None:
    card = Card(
        title=NASTY, facts={NASTY: NASTY}, tables=[Table(header=[NASTY], rows=[[NASTY]])], notes=[NASTY]
    )
    strip = strip_html([StripToken(text=NASTY, colour="#fff", hover=NASTY)])
    assert "alert(1)" in card.html() and "alert(1)" in strip  # control: it is there
    assert "<script>" not in card.html() + strip
    assert f'title="{NASTY}' not in strip


def direction(d_model: int = 32) -> Direction:
    return Direction(
        vector=torch.ones(d_model),
        layer=1,
        position="t_inst",
        mean_activation_norm=2.0,
        provenance={"model": "m"},
    )


def test_everything_a_notebook_meets_shows_itself(tiny: ChatModel) -> None:
    prompts = load_prompts("builtin")
    acts = collect(tiny, ["Hi", "Hello there"])
    shown: dict[str, tuple[Shown, list[str]]] = {
        "model": (tiny, ["tiny", "layers", "3", "d_model", "32", "blocks.0.hook_resid_pre", "blocks.2.hook_mlp_out"]),
        "set": (prompts, ["builtin", "harmful", "borderline", "as-is"]),
        "prompts": (prompts["harmful", "test"], ["builtin/harmful/test", "100", "ids", "harmful-"]),
        "direction": (direction(), ["harmful - harmless", "resid_pre of layer 1", "t_inst", "5.66", "2.83 of"]),
        "activations": (acts, ['["resid_pre"]', "[2, 3, 2, 32]", "0, 1, 2", "t_inst, t_post_inst"]),
        "means": (collect_means(tiny, ["Hi", "Hello"]), ["2 prompts", "[3, 2, 32]", "float64"]),
        "completions": (generate(tiny, ["Hi"] * 12, max_new_tokens=3), ["12 completions", "tokens", "and 4 more"]),
        "answers": (
            steer(tiny, "Hi", direction(), coefficient=2.0, max_new_tokens=3),
            ["coefficient 2 at layer 1", "positions all", "plain", "steered", "Hi"],
        ),
    }  # fmt: skip
    for name, (thing, expected) in shown.items():
        html = words(thing._repr_html_()).replace("&quot;", '"')
        missing = [part for part in expected if part not in html]
        assert not missing, f"{name}: {missing} not in {html}"
        assert repr(thing) and len(repr(thing)) < 4000
        assert "object at 0x" not in repr(thing)
    # No harmful prompt's text is shown unasked.
    assert not any(
        text in prompts["harmful", "test"]._repr_html_() for text in prompts["harmful", "test"].texts
    )


def test_a_run_without_model_and_prompts_shows_the_rest() -> None:
    stored = interp.open_run(Path(interp.__file__).parent.parent / "figures" / "elasticity-theory")
    assert stored.provenance.model is None and stored.provenance.prompts is None
    for text in (words(stored._repr_html_()), repr(stored)):
        assert "elasticity-theory: the theorem" in text and "E1 mixture" in text and "figures()" in text
        assert "no model" not in text and "no prompts" not in text
        assert stored.verdicts()[0].split(":")[0] in text


def test_guard_shows_its_rule_and_what_it_was_fitted_on() -> None:
    centres = Centres(positive=torch.ones(3, 4), negative=-torch.ones(3, 4))
    guard = LatentGuard(
        harm=centres,
        refusal=None,
        threshold=0.25,
        layers=(1, 2),
        ending="period",
        fitted_on={
            "model": "tiny",
            "prompts": {"name": "mine"},
            "counts": {"harmful": 7, "refused_harmful": 3},
            "leak_check": {"last_token": {"value": 0.875}},
            "calibration": {"false_positive_rate": 0.05},
        },
    )
    html = words(guard._repr_html_())
    for part in (
        "tiny",
        "mine, endings period",
        "0.25 (at most 5% of harmless)",
        "1, 2",
        "refused harmful",
        "0.88",
    ):
        assert part.replace(">", "&gt;") in html


def test_tokens_are_coloured_by_role(tiny: ChatModel) -> None:
    html = tokenize(tiny.tokenizer, ["Hi", *["Hello"] * 9])._repr_html_()
    assert "10 tokenised prompts" in html and "and 6 more" in html
    legend, first = html.split("</div>")[:2]
    colours = {
        role: re.search(rf'title="{role}" style="background:(#\w+)', legend)[1]  # pyright: ignore[reportOptionalSubscript]
        for role in ("prefix", "instruction", "t_inst", "post_inst", "t_post_inst")
    }
    assert len(set(colours.values())) == 5
    for role, text in (("instruction, ", "H"), ("t_inst, ", "i"), ("post_inst[0], ", "&lt;|im_end|&gt;")):
        span = re.search(rf'title="{re.escape(role)}[^>]*>{re.escape(text)}<', first)
        assert span
        assert colours[re.sub(r"\W.*", "", role)] in span[0], role
    assert "↵" in first and "\n" not in first


# In a kernel
