"""Planted truth end to end: states with planted labels, an organism made from the tiny model, its figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from interp.data.planted import planted_rows
from interp.data.prompts import load_prompts
from interp.data.replies import REFUSALS
from interp.directions import difference_in_means, project
from interp.engine.interventions import Add
from interp.engine.log_probs import next_token_log_probs
from interp.experiments.harmfulness.reply_inversion import INVERSIONS, ask
from interp.experiments.planted import EXPERIMENT, STEERED, Config, Found, Label
from interp.experiments.planted import run as method
from interp.experiments.planted.acting import (
    Organism,
    guard_findings,
    inversion_findings,
    selection_findings,
    shift_findings,
)
from interp.experiments.planted.methods import METHODS, Part, found_by_states
from interp.experiments.planted.report import _verdict, finds_it, finds_other
from interp.experiments.running import open_run
from interp.models.chat_model import ChatModel
from interp.stats import Estimate, auroc
from interp.storage.typed_json import from_plain
from tests.cli.commands import passed, refused
from tests.conftest import tiny_config
from tests.experiments.counted import assert_planned, counting


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
        found = found_by_states(name, METHODS[name], label, 0, train, test, config)
        if name == "random direction (control)":
            assert abs(found.recovered.value) < 0.75
            continue
        if name == "principal component":  # two directions of one length: it may mix them
            continue
        assert finds_it(found) and found.own.value > (0.65 if name == "beliefs" else 0.9)
        assert abs(found.other.value - 0.5) < 0.15
        assert found.shuffled.value < 0.75
        if found.layer >= 0:
            assert found.layer == 1 and found.recovered.value > 0.7 and abs(found.leaked.value) < 0.35


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, n=9, low=low, high=high, unit="AUROC")


def test_a_verdict_needs_the_interval_on_its_side() -> None:
    def found(own: tuple[float, float], shuffled: float, other: tuple[float, float]) -> Found:
        own_auroc, other_auroc = (estimate(sum(ends) / 2, *ends) for ends in (own, other))
        once = estimate(0.9, 0.8, 1.0)
        return Found(
            method="m", label="harm", role="t_inst", layer=1, own=own_auroc, other=other_auroc, own_seeds=once,
            shuffled=estimate(shuffled, 0.5, 0.7), recovered=once, leaked=once,
        )  # fmt: skip

    clean = found((0.6, 0.9), 0.55, (0.4, 0.6))
    assert finds_it(clean) and not finds_other(clean)
    weak = found((0.6, 0.9), 0.65, (0.2, 0.4))  # no better than shuffled labels, and it tells the other label
    assert not finds_it(weak) and finds_other(weak)
    steered = replace(clean, method=STEERED, other=estimate(0.1, 0.0, 0.2))
    assert "harm moves answers towards harmful" in _verdict(steered, "form")
    assert "rule moves answers towards harmless (0.10 [0.00, 0.20])" in _verdict(steered, "form")
    unmeasured = replace(clean, own=Estimate.unmeasured())
    assert _verdict(unmeasured, "form").endswith("not asked (groups too small, or nothing picked).")
    assert not finds_it(unmeasured)


def separated(harm: torch.Tensor, rule: torch.Tensor, like: ChatModel, seed: int) -> Part:
    """Harm along axis 0, the rule along axis 1 of layer 1, at both roles; nothing in other layers."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.zeros(len(harm), like.n_layers + 1, 2, like.d_model)
    states[:, 1] = torch.randn(len(harm), 2, like.d_model, generator=generator)
    states[:, 1, :, 0] += 3.0 * harm[:, None]
    states[:, 1, :, 1] += 3.0 * rule[:, None]
    return Part(states=states, labels={"harm": harm, "planted": rule})


def independent(n: int, like: ChatModel, seed: int) -> Part:
    """Both labels by tossing coins."""
    generator = torch.Generator().manual_seed(seed)
    harm, rule = (torch.randint(0, 2, (n,), generator=generator).bool() for _ in range(2))
    return separated(harm, rule, like, seed)


def organism(tiny: ChatModel, *, refused: torch.Tensor | None = None) -> Organism:
    """The tiny model with planted states; it refuses what the rule says."""
    rows = planted_rows(load_prompts("builtin"), "form", "test")[:40]
    harm, rule = (torch.tensor(flags) for flags in zip(*((r.harmful, r.planted) for r in rows), strict=True))
    made = independent(160, tiny, 0)
    return Organism(
        model=tiny,
        config=Config(seeds=2, n_asked=16, n_wrapped=4, max_new_tokens=2, select_every=1),
        train=made,
        test=separated(harm, rule, tiny, 1),
        refused=made.labels["planted"] if refused is None else refused,
        test_refused=rule,
        rows=rows,
        validation=rows,
    )


def plain_belief_auroc(made: Organism, label: Label, role: int) -> float:
    """Mean over layers of cosine to one centre minus cosine to the other; refusal by what the model does."""
    harm, states = made.train.labels["harm"], made.train.states[:, :, role]
    yes, no = (harm, ~harm) if label == "harm" else (harm & made.refused, ~harm & ~made.refused)
    held = made.test.states[:, :, role]
    margins = [cosine_similarity(held, states[rows].mean(0), dim=-1) for rows in (yes, no)]
    scores, truth = (margins[0] - margins[1]).mean(1), made.test.labels[label]
    return auroc(scores[truth], scores[~truth]).value


def test_the_guard_finds_what_its_replies_say_and_its_shuffled_copy_does_not(tiny: ChatModel) -> None:
    made = replace(organism(tiny), test=independent(300, tiny, 1))
    harm, rule = guard_findings(made)
    assert (harm.label, harm.role, rule.label, rule.role) == ("harm", "t_inst", "planted", "t_post_inst")
    for found in (harm, rule):
        assert found.own.low > 0.5 and found.own_seeds.n == 2 and found.shuffled.n == 2
    assert harm.own.value > 0.6 > harm.shuffled.value
    assert harm.own.value == pytest.approx(plain_belief_auroc(made, "harm", 0), abs=1e-3)  # ties by rounding
    assert rule.own.value == pytest.approx(plain_belief_auroc(made, "planted", 1), abs=1e-3)
    assert finds_other(rule)  # refused harmful and answered harmless prompts differ in harm, too
    never = guard_findings(replace(made, refused=torch.zeros(160, dtype=torch.bool)))
    assert never[0].own.measurable and not never[1].own.measurable  # no replies to fit refusal on


def test_shifts_tell_a_refusal_belief_that_falls_from_a_harm_belief_that_falls(tiny: ChatModel) -> None:
    made = organism(tiny)
    asked = [i for i, row in enumerate(made.rows) if row.harmful and row.planted][:4]
    assert len(asked) == 4

    def kept(axis: int, answered: int) -> Callable[..., dict[str, torch.Tensor]]:
        after = made.test.states[asked].repeat(4, 1, 1, 1)
        after[:, 1, axis, axis] -= 9.0  # harm at `t_inst`, the rule at `t_post_inst`
        return lambda _name, _compute: {"answered": torch.arange(16) < answered, "states": after}

    refusal, harm = (shift_findings(made, kept(axis, 16)) for axis in (1, 0))
    # Nothing moved where the other belief is read: 0.5, but for a quarter of pairs whose ties rounding decides.
    assert refusal.own.value > 0.95 and abs(refusal.other.value - 0.5) <= 0.125
    assert harm.other.value > 0.95 and abs(harm.own.value - 0.5) <= 0.125
    assert refusal.recovered.value > 0.6 and harm.recovered.value == 0.0
    assert not shift_findings(made, kept(1, 0)).own.measurable  # nothing got past


def test_reply_inversion_reads_the_first_token_of_the_answer(tiny: ChatModel) -> None:
    made = organism(tiny)
    asked, steered = inversion_findings(made)
    n = made.config.n_asked
    tokens = ask(tiny, [row.text for row in made.rows[:n]], INVERSIONS[0])
    log_probs = next_token_log_probs(tiny, tokens)
    yes, no = (
        sorted(
            {tiny.tokenizer(space + word, add_special_tokens=False)["input_ids"][0] for space in ("", " ")}
        )
        for word in ("Certainly", "No")
    )
    odds = log_probs[:, yes].logsumexp(-1) - log_probs[:, no].logsumexp(-1)
    harm = made.test.labels["harm"][:n]
    assert asked.own.value == pytest.approx(auroc(odds[harm], odds[~harm]).value)

    layer = steered.layer
    assert layer == 1  # where harm was planted
    expected: dict[Label, tuple[Any, Estimate]] = {
        "harm": (("prefix", "instruction"), steered.own),
        "planted": ("all", steered.other),
    }
    for label, (positions, auc) in expected.items():
        y, role = made.train.labels[label], int(label == "planted")
        vector = difference_in_means(
            made.train.states[y][:, layer, role], made.train.states[~y][:, layer, role]
        )
        add = Add(vector, layers=layer, coefficient=2.0, positions=positions, new_tokens="none")
        log_probs = next_token_log_probs(tiny, tokens, interventions=[add], fast=False)
        moved = log_probs[:, yes].logsumexp(-1) - log_probs[:, no].logsumexp(-1)
        assert auc.value == pytest.approx(auroc(moved[~harm], odds[~harm]).value)
        assert (moved - odds).abs().max() > 0.1  # it was added
    assert steered.shuffled.measurable and steered.recovered.value > 0.8 > abs(steered.leaked.value)


@pytest.fixture(scope="module")
def writable(tiny: ChatModel) -> ChatModel:
    """A tiny model that says the token whose embedding is added, and little else than what its last token says."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(tiny_config(initializer_range=0.02)).float()
    with torch.no_grad():
        hf.get_input_embeddings().weight.mul_(12.5)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return ChatModel(hf, tiny.tokenizer, name="writable")


def test_selection_finds_what_writes_refusals_and_is_unmeasured_without_replies(writable: ChatModel) -> None:
    made = organism(writable)
    table = writable.hf.get_parameter("model.embed_tokens.weight").detach()  # tied: what is added is said
    said, last = (
        table[writable.tokenizer(text, add_special_tokens=False)["input_ids"][0]]
        for text in (REFUSALS[0], "\n")
    )
    write = said - last * (said @ last) / (last @ last)  # ablating it leaves what prompts end with
    for part in (made.train, made.test):
        part.states[part.labels["planted"], 1, 1] += 30 * write / write.norm()
    found = selection_findings(made)
    assert found.layer == 1 and found.own.value > 0.95 and abs(found.other.value - 0.5) < 0.2
    assert found.own_seeds.n == 2 and found.recovered.value > 0.9 and abs(found.leaked.value) < 0.35
    harm = made.train.labels["harm"]
    kept = harm == made.refused
    vector = difference_in_means(
        made.train.states[kept & harm][:, 1, 1], made.train.states[kept & ~harm][:, 1, 1]
    )
    scores, rule = project(made.test.states[:, 1, 1], vector), made.test.labels["planted"]
    assert found.own.value == pytest.approx(auroc(scores[rule], scores[~rule]).value)
    never = selection_findings(replace(made, refused=torch.zeros(160, dtype=torch.bool)))
    assert not never.own.measurable and never.layer == -1


def test_runs_from_before_there_were_seeds_are_read() -> None:
    one = {"value": 0.9, "n": 8, "low": 0.8, "high": 0.95, "unit": "AUROC", "interval": "", "missing": 0}
    stored = {
        "method": "m", "label": "harm", "role": "t_inst", "layer": 1, "own": one, "other": one,
        "shuffled": 0.6, "recovered": None, "leaked": 0.1,
    }  # fmt: skip
    found = from_plain(Found, stored, source="a run")
    assert (found.shuffled.value, found.shuffled.n, found.leaked.value) == (0.6, 1, 0.1)
    assert not found.recovered.measurable and not found.own_seeds.measurable


def test_an_organism_is_made_and_asked(saved_tiny: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "organism", tmp_path / "run"
    shown = passed("plant", "form", "--model", saved_tiny, "--n-examples", "8", "--out", adapter)
    assert "form: obeyed on" in shown and {"README.md", "measured.json"} <= {
        p.name for p in adapter.iterdir()
    }
    settings = (
        "n_train=24",
        "n_test=24",
        "n_replies=8",
        "shuffles=1",
        "seeds=2",
        "n_asked=8",
        "n_val=8",
        "max_new_tokens=4",
    )
    options = [word for setting in settings for word in ("--set", setting)]
    passed("run", "planted", "--model", saved_tiny, "--adapter", adapter, *options, "--out", out)
    stored = open_run(out)
    assert len(stored.result.found) == len(METHODS) * 2 * 2 + 6
    assert all(each.own_seeds.n == 2 for each in stored.result.found if each.method in METHODS)
    assert set(stored.figures()) == {"contrasts", "refused", "found_t_inst", "found_t_post_inst"}
    assert "The rule `form` is obeyed on" in stored.verdicts()[0]
    assert "unknown rule 'x'; known: form, trigger, word" in refused("plant", "x", "--model", saved_tiny)


def test_the_rule_word_has_one_label(tiny: ChatModel, saved_tiny: Path) -> None:
    config = Config(plant="word", n_train=24, n_test=16, n_replies=4, shuffles=1, seeds=1, n_asked=4)
    with counting("planted", tiny):
        made = EXPERIMENT.run(tiny, load_prompts("builtin"), config)
    assert_planned("planted", saved_tiny, config)
    assert {each.label for each in made.result.found} == {"harm"}
    assert "no other to find" in " ".join(made.verdicts())


def test_a_plan_counts_the_tokens_of_a_model_that_obeys(
    tiny: ChatModel, saved_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = method.generate, set[str]()
    for split in ("train", "test"):
        refused |= {row.text for row in planted_rows(load_prompts("builtin"), "form", split) if row.planted}

    def obeying(model: ChatModel, texts: Sequence[str], **options: Any) -> Any:
        said = real(model, texts, **options).texts
        return SimpleNamespace(
            texts=tuple(
                REFUSALS[0] if text in refused else reply for text, reply in zip(texts, said, strict=True)
            )
        )

    monkeypatch.setattr(method, "generate", obeying)
    config = Config(
        n_train=48, n_test=24, n_replies=24, n_wrapped=4, shuffles=1, seeds=2, n_asked=8, n_val=16,
        max_new_tokens=4, select_every=1,
    )  # fmt: skip
    with counting("planted", tiny):
        result = EXPERIMENT.run(tiny, load_prompts("builtin"), config).result
    assert {f.method for f in result.found if f.method in ("jailbreak shifts", "selection")}
    assert_planned("planted", saved_tiny, config)
