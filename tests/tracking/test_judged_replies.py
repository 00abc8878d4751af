"""Judges along a series: every checkpoint's replies, also after a kill; nothing is measured or judged twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import interp.tracking.checkpoint_parts
from interp.engine.generation import generate
from interp.evaluation.judges.judgements import Exchange, Judgement, judge_all
from interp.evaluation.judges.text_rules import SubstringJudge
from interp.experiments.running import open_run
from interp.models.chat_model import ChatModel, load
from interp.representations.judging import all_judges
from interp.storage.reply_records import recording
from interp.storage.stages import open_stages
from interp.tracking.checkpoints import find_series
from interp.tracking.measures import measure
from interp.tracking.records import Measurement
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import measure_series, track
from interp.tracking.trajectory import Trajectory
from tests.cli.commands import refused
from tests.tracking.conftest import COUNTS, SMALL

JUDGES = ("arditi", "latent")
KINDS = ("harmful", "harmless", "borderline")


class Killed(BaseException):
    pass


@pytest.fixture
def asked_once(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[int]]:
    """Checkpoints that are measured, and how many replies each call of the judge `arditi` has; the second is killed."""
    measured, judged = list[str](), list[int]()
    judge = SubstringJudge.__call__

    def counted(model: ChatModel, *rest: Any) -> list[Measurement]:
        if len(measured) == 1:
            measured.append("killed")
            raise Killed
        measured.append(Path(str(model.adapter)).name)
        return measure(model, *rest)

    def said(self: SubstringJudge, exchanges: list[Exchange]) -> list[Judgement]:
        if self.name == "arditi":
            judged.append(len(exchanges))
        return judge(self, exchanges)

    monkeypatch.setattr(interp.tracking.checkpoint_parts, "measure", counted)
    monkeypatch.setattr(SubstringJudge, "__call__", said)
    return measured, judged


@pytest.fixture(scope="module")
def small() -> TrackingSpec:
    prompts = TrackingSpec().measured_prompts
    few = replace(prompts, parts={key: part.first(4) for key, part in prompts.parts.items()})
    return TrackingSpec(measures=("refusal",), prompts=few, **{**SMALL, "n_fit": 4, "max_new_tokens": 6})


@pytest.fixture(scope="module")
def whole(tuned: Path, saved_tiny: Path, small: TrackingSpec) -> Trajectory:
    """All three checkpoints, judged in one go."""
    series = [tuned / f"checkpoint-{count}" for count in COUNTS]
    return track(series, small, base=str(saved_tiny), judges=JUDGES)


def test_a_killed_run_judges_every_checkpoint_once(
    whole: Trajectory,
    tuned: Path,
    saved_tiny: Path,
    small: TrackingSpec,
    tmp_path: Path,
    asked_once: tuple[list[str], list[int]],
) -> None:
    measured, judged = asked_once
    first = [tuned / "checkpoint-0", tuned / "checkpoint-8"]
    options: dict[str, Any] = {"base": str(saved_tiny), "out": tmp_path / "run"}
    with pytest.raises(Killed):
        track(first, small, **options)
    killed = track(first, small, **options, judges=JUDGES)  # judges may be added: replies were kept
    assert measured == ["checkpoint-0", "killed", "checkpoint-8"] and judged == [9, 9]
    longer = track([*first, tuned / "checkpoint-16"], small, **options, judges=JUDGES)
    assert measured[3:] == ["checkpoint-16"] and judged == [9, 9, 9]
    assert longer.frame[longer.frame["index"] < 2].equals(killed.frame)
    assert (
        whole.record.judgements
        == longer.record.judgements
        == Trajectory.load(options["out"]).record.judgements
    )

    found = longer.record.judgements
    assert found is not None and found.asked == JUDGES and found.left_out == 0
    assert [(arm.arm, arm.group, arm.n) for arm in found.arms] == [
        (c.label, kind, 3) for c in longer.checkpoints for kind in KINDS
    ]
    assert found.refused is not None and found.refused.rates["arditi"].n == 27
    assert found.harmful is not None and [each.n for each in found.harmful.rates.values()] == [27]
    stored = open_run(options["out"])
    assert stored.result.judgements == found and {"refused_by_judges", "harmful_by_judges"} <= set(
        stored.figures()
    )
    assert '<h2 id="judges">Judges</h2>' in (options["out"] / "report.html").read_text()
    assert longer.verdicts()[-1].startswith("The judges ")

    count = len(measured)
    assert track(first, small, **options).record.judgements is None  # none asked: read, and none told
    assert len(measured) == count
    track(first[:1], small, **options, judges=("arditi",))
    assert len(measured) == count + 1  # replies are not stored with a finished run


def test_verdicts_are_those_of_the_checkpoints_own_replies(
    whole: Trajectory, tuned: Path, saved_tiny: Path, small: TrackingSpec
) -> None:
    model = load(str(saved_tiny), adapter=str(tuned / "checkpoint-16"))
    judges = all_judges(["arditi", f"latent={saved_tiny}"], prompts=small.measured_prompts)
    rates = list[float]()
    for kind in KINDS:
        prompts = small.part(kind, "test")  # pyright: ignore[reportArgumentType]
        texts = generate(model, prompts.texts, max_new_tokens=6).texts
        exchanges = [
            Exchange(id=each, prompt=prompt, answer=text)
            for each, prompt, text in zip(prompts.ids, prompts.texts, texts, strict=True)
        ]
        judged = judge_all(judges, exchanges)
        for question in ("refused", "harmful"):
            for name, said in judged.verdicts(question).items():
                rows = whole.of(f"{question}_by_{name}", kind)
                assert rows["n"].to_list() == [3, 3, 3]
                assert rows["value"].to_list()[-1] == sum(map(bool, said)) / 3
                rates.append(rows["value"].to_list()[-1])
    assert min(rates) < max(rates)  # what is compared is not all alike
    assert whole.of("refused_by_arditi")["value"].to_list() == whole.of("refusal_rate")["value"].to_list()


def test_experiments_that_track_get_the_same_replies_after_a_kill(
    tuned: Path, saved_tiny: Path, small: TrackingSpec, tmp_path: Path
) -> None:
    series = find_series(tuned / "checkpoint-8", base=str(saved_tiny))
    replies = list[Any]()
    for _ in range(2):  # the second reads what the first left
        with recording() as recorder, pytest.raises(Killed), open_stages(tmp_path / "run", key={}) as stages:
            measure_series(series, small, stages, base=str(saved_tiny))
            raise Killed
        replies.append(recorder.replies)
    assert replies[0] == replies[1]
    assert [r.stage for r in replies[0]] == [c.label for c in series.checkpoints for _ in range(9)]


def test_mistakes_are_found_before_anything_is_loaded(
    tuned: Path, small: TrackingSpec, saved_tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert "unknown judge 'nobody'" in refused("track", tuned, "--judges", "nobody", "--out", out)
    with pytest.raises(ValueError, match="judge log_odds is given as log_odds=MODEL"):
        track(tuned, small, judges=("log_odds",))
    with pytest.raises(ValueError, match="judges read the replies of the measure 'refusal'"):
        track(tuned, replace(small, measures=("guard",)), judges=("arditi",))
    with pytest.raises(ValueError, match="judge latent needs a model here"):
        track(saved_tiny, small, judges=("latent",))
