"""Planted truth end to end: states with planted labels, an organism made from the tiny model, its figures."""

from pathlib import Path

import pytest
import torch

from interp.data.prompts import load_prompts
from interp.experiments.planted import EXPERIMENT, Config, Found
from interp.experiments.planted.report import finds_it, finds_other
from interp.experiments.planted.run import METHODS, Part, _found
from interp.experiments.running import open_run
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from tests.cli.commands import passed, refused


def part(n: int, seed: int) -> Part:
    """Harm along axis 0, the rule along axis 1, in layer 1 of 3; independent labels."""
    generator = torch.Generator().manual_seed(seed)
    harm = torch.randint(0, 2, (n,), generator=generator).bool()
    rule = torch.randint(0, 2, (n,), generator=generator).bool()
    states = torch.randn(n, 3, 2, 16, generator=generator)
    states[:, 1, :, 0] += 3.0 * harm[:, None]
    states[:, 1, :, 1] += 3.0 * rule[:, None]
    return Part(states=states, labels={"harm": harm, "planted": rule})


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_find_what_is_in_the_states_and_nothing_else(name: str) -> None:
    train, test = part(400, 0), part(300, 1)
    config = Config(shuffles=2)
    for label in ("harm", "planted"):
        found = _found(name, METHODS[name], label, 0, train, test, config)
        if name == "random direction (control)":
            assert abs(found.recovered) < 0.75
            continue
        if name == "principal component":  # two directions of one length: it may mix them
            continue
        assert finds_it(found) and found.own.value > (0.65 if name == "beliefs" else 0.9)
        assert abs(found.other.value - 0.5) < 0.15
        assert found.shuffled < 0.75
        if found.layer >= 0:
            assert found.layer == 1 and found.recovered > 0.7 and abs(found.leaked) < 0.35


def test_a_verdict_needs_the_interval_on_its_side() -> None:
    def found(own: tuple[float, float], shuffled: float, other: tuple[float, float]) -> Found:
        own_auroc, other_auroc = (
            Estimate(value=sum(ends) / 2, n=9, low=ends[0], high=ends[1], unit="AUROC")
            for ends in (own, other)
        )
        return Found(
            method="m", label="harm", role="t_inst", layer=1, own=own_auroc, other=other_auroc, shuffled=shuffled,
            recovered=0.9, leaked=0.1,
        )  # fmt: skip

    clean = found((0.6, 0.9), 0.55, (0.4, 0.6))
    assert finds_it(clean) and not finds_other(clean)
    weak = found((0.6, 0.9), 0.65, (0.2, 0.4))  # no better than shuffled labels, and it tells the other label
    assert not finds_it(weak) and finds_other(weak)


def test_an_organism_is_made_and_asked(saved_tiny: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "organism", tmp_path / "run"
    shown = passed("plant", "form", "--model", saved_tiny, "--n-examples", "16", "--out", adapter)
    assert "form: obeyed on" in shown and (adapter / "planted.json").is_file()
    settings = ("n_train=40", "n_test=40", "n_replies=8", "shuffles=1")
    options = [word for setting in settings for word in ("--set", setting)]
    passed("run", "planted", "--model", saved_tiny, "--adapter", adapter, *options, "--out", out)
    stored = open_run(out)
    assert len(stored.result.found) == len(METHODS) * 2 * 2
    assert set(stored.figures()) == {"contrasts", "refused", "found_t_inst", "found_t_post_inst"}
    assert "The rule `form` is obeyed on" in stored.verdicts()[0]
    assert "unknown rule 'x'; known: form, trigger, word" in refused("plant", "x", "--model", saved_tiny)


def test_the_rule_word_has_one_label(tiny: ChatModel) -> None:
    config = Config(plant="word", n_train=24, n_test=16, n_replies=4, shuffles=1)
    made = EXPERIMENT.run(tiny, load_prompts("builtin"), config)
    assert {each.label for each in made.result.found} == {"harm"}
    assert "no other to find" in " ".join(made.verdicts())
