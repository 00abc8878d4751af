"""The guard comparison: planted axes are found, each at its own position, and a run on the tiny model is whole."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Prompts, load_prompts
from interp.data.wrappers import wrappers
from interp.detectors.fit_data import FitData, Readings
from interp.detectors.latent_guard import LatentGuard
from interp.experiments.guard import CONTROL, EXPERIMENT, Config
from interp.experiments.guard import run as method
from interp.experiments.guard.groups import Groups, measured_groups
from interp.experiments.guard.run import Scored, fit_detectors, measured
from interp.models.chat_model import ChatModel
from interp.representations.beliefs import states
from interp.stats import auroc

SMALL = Config(n_train=12, n_test=12, n_wrapped=2, families=("persuasion",), max_new_tokens=1)
D = 24


def some(texts: Sequence[str], label: str) -> Prompts:
    return Prompts(
        tuple(texts), tuple(f"{label}-{i}" for i in range(len(texts))), (None,) * len(texts), label
    )


def planted(role: int, n: int, *, harmful: bool, seed: int) -> Tensor:
    """Random states of three layers; in layer 1 harm is written along one axis, at one role."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(n, 3, 2, D, generator=generator)
    read[:, 1, role, 0] += 6.0 if harmful else -6.0
    return read


def detectors(role: int, words: tuple[str, str] = ("say", "say"), seed: int = 0):
    def planted_split(seed: int) -> dict[Any, Readings]:
        return {
            kind: Readings(
                texts=tuple(f"{words[k]} {i}" for i in range(30)),
                states=planted(role, 30, harmful=kind == "harmful", seed=seed + k),
            )
            for k, kind in enumerate(PAIRED_KINDS)
        }

    everything = tuple(range(30))
    data = FitData(
        train=planted_split(0),
        validation=planted_split(2),
        ending="as-is",
        refused=everything,
        answered=everything,
        fitted_on={},
    )
    return fit_detectors(data, seed)


def score(detector, texts: Sequence[str], read: Tensor) -> list[float]:
    return detector.harmfulness(Readings(texts=tuple(texts), states=read)).tolist()


def right(detector, role: int) -> float:
    """Share of fresh states on the right side of the detector's own threshold."""
    hits = 0
    for kind in (True, False):
        scores = score(detector, ["say it"] * 40, planted(role, 40, harmful=kind, seed=9 + kind))
        hits += sum((score > detector.threshold) == kind for score in scores)
    return hits / 80


def test_each_detector_finds_an_axis_at_its_own_position_and_not_at_the_other() -> None:
    at_inst, at_post = detectors(role=0), detectors(role=1)
    assert right(at_inst["Latent Guard"], 0) > 0.9
    assert right(at_post["Latent Guard"], 1) < 0.75  # it does not read there
    assert right(at_post["refusal direction"], 1) > 0.95
    assert right(at_inst["refusal direction"], 0) < 0.75
    for role, found in ((0, at_inst), (1, at_post)):
        assert right(found["logistic probe"], role) > 0.9  # it picks the role
        assert found["logistic probe"].where == f"{('t_inst', 't_post_inst')[role]}, layer 1"
        assert right(found["TF-IDF"], role) == 0.5  # the words say nothing
    assert right(detectors(role=0, words=("bad", "good"))["TF-IDF"], 0) == 0.5
    words = score(
        detectors(role=0, words=("bad", "good"))["TF-IDF"], ["bad 1", "good 1"], torch.zeros(2, 1, 2, D)
    )
    assert words[0] > 0 > words[1]


def test_a_random_direction_detects_nothing_planted() -> None:
    shares = [right(detectors(role=0, seed=seed)[CONTROL], 0) for seed in range(6)]
    # In 24 dimensions a random direction leans towards the axis by a fifth of its length.
    assert 0.5 <= sum(shares) / 6 < 0.87
    assert right(detectors(role=0)["refusal direction"], 1) == pytest.approx(
        0.5, abs=0.2
    )  # nothing is planted there


def test_calibration_and_flags_are_counted_as_defined() -> None:
    groups = Groups(
        prompts={"harmful": some("abcd", "h"), "harmless": some("efgh", "s")},
        members={"accepted harmful": ("harmful", [0, 3])},
    )
    scored = Scored(
        groups={"harmful": (1.0, 2.0, 3.0, 4.0), "harmless": (0.0, 1.5, 0.5, -1.0)},
        validation=tuple(0.1 * i for i in range(10)),
        threshold=1.2,
        where="",
    )
    found = measured(scored, groups, Config(false_positive_rate=0.2))
    assert found.calibrated.threshold == pytest.approx(0.7)  # two of ten lie above
    assert found.own.flagged["harmful"].value == 0.75
    assert found.own.flagged["harmless"].value == 0.25
    assert found.own.flagged["accepted harmful"].value == 0.5
    assert found.own.accuracy.value == 0.75
    assert found.auroc.value == pytest.approx(15 / 16)
    answers = {"harmful": (True, None, True, True), "harmless": (False,) * 4}
    own = measured(replace(scored, answers=answers), groups, Config(false_positive_rate=0.2)).own
    assert own.unread == 1
    assert own.flagged["harmful"].n == 3


def test_a_reply_without_an_answer_is_in_no_group_of_behaviour() -> None:
    def replies(_: str, asked: Prompts) -> list[bool | None]:
        return [(True, False, None)[i % 3] for i in range(len(asked))]

    groups = measured_groups(load_prompts(), SMALL, replies)
    assert groups.members["accepted harmful"] == ("harmful", [1, 4, 7, 10])
    assert groups.members["refused harmless"] == ("harmless", [0, 3, 6, 9])
    assert groups.members["refused borderline"] == ("borderline", [0, 3, 6, 9])
    n_wrapped = 2 * len(wrappers(("persuasion",)))  # of which every third reply is an answer
    assert len(groups.prompts["persuasion jailbreaks"]) == len(range(1, n_wrapped, 3))


@pytest.fixture(scope="module")
def run(tiny: ChatModel, saved_tiny, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "anchors.txt").write_text("\n".join(f"Name {i} birds" for i in range(40)))
    (folder / "bad.txt").write_text("\n".join(f"Break window number {i}" for i in range(6)))
    (folder / "good.txt").write_text("\n".join(f"Clean window number {i}" for i in range(6)))
    real = method.refusal_verdicts

    def verdicts(model: ChatModel, asked: Prompts, **options):
        seen = real(model, asked, **options)
        bad = {t for split in ("train", "test") for t in load_prompts()["harmful", split].texts}
        # Every second harmful prompt is refused, and wrapping helps.
        return type(seen)(flags=tuple(t in bad and i % 2 == 0 for i, t in enumerate(asked.texts)))

    config = Config(
        n_train=20,
        n_test=8,
        n_wrapped=1,
        families=("persuasion",),
        max_new_tokens=1,
        anchors=str(folder / "anchors.txt"),
        unseen=f"harmful={folder / 'bad.txt'},harmless={folder / 'good.txt'}",
        text_guards=(f"wildguard={saved_tiny}",),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "refusal_verdicts", verdicts)
        finished = EXPERIMENT.run(tiny, load_prompts(), config, out=folder / "guard")
    stored = EXPERIMENT.read(folder / "guard")
    assert stored.result == finished.result
    return stored


def test_every_detector_has_every_group_with_each_ending(run) -> None:
    for ending in ("as-is", "strip", "period"):
        table = run.result.by_ending[ending].detectors
        assert {"Latent Guard", "refusal direction", "logistic probe", "TF-IDF", CONTROL} <= set(table)
        assert {"Latent Guard, other anchors", "TF-IDF, other anchors"} <= set(table)
        assert sum(name.startswith("wildguard=") for name in table) == 1
        for name, entry in table.items():
            for judged in (entry.own, entry.calibrated):
                flagged = judged.flagged
                assert {"harmful", "harmless", "borderline", "accepted harmful", "refused harmless"} <= set(
                    flagged
                )
                assert {"persuasion jailbreaks", "persuasion, harmless", "unseen harmful"} <= set(flagged)
                # A random guard model answers neither safe nor unsafe: unread, and no zero.
                unread = name.startswith("wildguard=") and judged is entry.own
                assert flagged["accepted harmful"].n == (0 if unread else 4)
                assert (judged.unread > 0) == unread
                assert not flagged["refused harmless"].measurable  # there are none, which is no zero
            assert entry.auroc.low <= entry.auroc.value <= entry.auroc.high
            assert entry.auroc_unseen is not None


def test_the_guard_here_is_the_artefact(tiny: ChatModel, run) -> None:
    prompts = load_prompts(ending="period")
    made = LatentGuard.fit(tiny, prompts, n_prompts=20, max_new_tokens=1)
    expected = [s.harmfulness for s in made.score(tiny, prompts["harmful", "test"].first(8).texts)]
    stored = run.result.by_ending["period"].detectors["Latent Guard"].scores["harmful"]
    assert stored == pytest.approx(expected, abs=1e-6)


def test_figures_tables_and_page_are_drawn_from_the_stored_numbers_alone(run) -> None:
    drawn, by_ending = run.figures(), run.result.by_ending
    assert len(drawn["table3"].data) == 3
    assert len(drawn["roc"].data) == 3 * (len(by_ending["as-is"].detectors) + 1)  # and the diagonal
    table = by_ending["period"].detectors["Latent Guard"].calibrated.flagged["harmless"]
    guard_row = drawn["table3"].data[2]
    place = [x.split("<")[0] for x in guard_row.x].index("harmless")
    assert guard_row.z[0][place] == pytest.approx(1 - table.value)
    assert run.table().columns[0] == "detector"
    lines = run.verdicts()
    assert any("refused harmless prompts; there are only 0" in line for line in lines)
    assert any("anchors of another source" in line for line in lines)
    page = run.report()
    assert not any(text in page for text in load_prompts()["harmful", "test"].texts[:12])


def test_mistakes_are_named(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match="false_positive_rate must be below 1, got 1"):
        Config(false_positive_rate=1.0)
    with pytest.raises(ValueError, match=r"cannot tell a false-positive rate of 0\.001"):
        EXPERIMENT.run(tiny, load_prompts(), Config(false_positive_rate=0.001))
    with pytest.raises(ValueError, match="compares endings itself"):
        EXPERIMENT.run(tiny, load_prompts(ending="strip"), SMALL)


@pytest.mark.checkpoint
def test_on_the_bundled_model_the_guard_tells_unseen_prompts_apart_better_than_a_random_direction(
    bundled,
) -> None:
    model, prompts = bundled("smollm2-safe"), load_prompts(ending="period")

    def read(split: Any, n: int) -> dict[Any, Readings]:
        parts = {kind: prompts[kind, split].first(n) for kind in PAIRED_KINDS}
        return {
            kind: Readings(texts=part.texts, states=states(model, part.texts)) for kind, part in parts.items()
        }

    everything = tuple(range(30))
    data = FitData(
        train=read("train", 30),
        validation=read("val", 10),
        ending="period",
        refused=everything,
        answered=everything,
        fitted_on=model.provenance,
    )
    test = read("test", 20)
    separated = {
        name: auroc(*(one.harmfulness(test[kind]) for kind in PAIRED_KINDS)).value
        for name, one in fit_detectors(data, seed=0).items()
    }
    assert separated["Latent Guard"] > 0.8
    assert separated["Latent Guard"] > separated[CONTROL] + 0.1
