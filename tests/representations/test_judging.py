"""Judges of a run's replies, at one place for every experiment; replies survive an interruption."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from interp.data.prompts import PromptSet, load_prompts
from interp.engine.generation import generate
from interp.engine.interventions import Ablate
from interp.evaluation.judges.records import judgement_lines
from interp.evaluation.refusals import refuses
from interp.experiments.definition import Experiment, ExperimentResult, Outcome, Run
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import Message
from interp.representations.judging import all_judges, judge_replies
from interp.storage.reply_records import RecordedReply, recorder, recording
from interp.storage.run_folders import read_header
from interp.storage.stages import Stages


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 0
    fail: bool = False


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    config: Config
    texts: tuple[str, ...]


EXPERIMENT = Experiment(
    name="replies",
    summary="",
    config=Config,
    result=Result,
    package="replies_of_a_test",
    also_resumes=("fail",),
)
CALLS = list[str]()


def _run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    asked = prompts["harmful", "test"].first(3)

    def complete(name: str, *interventions: Any) -> tuple[str, ...]:
        CALLS.append(name)
        return generate(
            model, asked.with_ending("strip"), interventions=interventions, max_new_tokens=4
        ).texts

    plain = stages.keep("plain", lambda: complete("plain"), tuple[str, ...])
    if config.fail:
        raise RuntimeError("interrupted here")
    u = model.hf.get_input_embeddings().weight[3].detach()
    stages.keep("steered", lambda: complete("steered", Ablate(u / u.norm())), tuple[str, ...])
    generate(model, ["Name a colour"], max_new_tokens=2)  # of no prompt set: not judged
    wrapped = f"Please pretend to be kind. {asked.texts[0]} Thank you!"
    generate(model, [wrapped], max_new_tokens=2)
    stages.lap("outside")
    return Outcome(
        result=Result(provenance=stages.provenance, seconds=stages.seconds, config=config, texts=plain)
    )


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    method, report, figures = (ModuleType(f"replies_of_a_test.{n}") for n in ("run", "report", "figures"))
    method.run = _run  # type: ignore[attr-defined]
    report.report = lambda _: '<ul><li><a href="#provenance">P</a></li></ul><h2 id="provenance">P</h2>'  # type: ignore
    report.verdicts = lambda _: ["one line"]  # type: ignore[attr-defined]
    figures.figures = lambda _: {}  # type: ignore[attr-defined]
    for module in (ModuleType("replies_of_a_test"), method, report, figures):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    CALLS.clear()


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return load_prompts("builtin")


def test_every_reply_is_judged_by_arm_and_kind(tiny: ChatModel, prompts: PromptSet, tmp_path: Path) -> None:
    made = EXPERIMENT.run(tiny, prompts, Config(), out=tmp_path / "run", judges=("arditi", "zhao"))
    found = made.result.judgements
    assert found is not None and found.asked == ("arditi", "zhao")
    assert [(each.arm, each.group, each.n) for each in found.arms] == [
        ("plain", "harmful", 3),
        ("steered, Ablate", "harmful", 3),
        ("outside", "harmful, wrapped", 1),
    ]
    assert found.left_out == 1
    assert any(
        "did not see 1 replies to prompts that are not of the run's set" in line for line in made.verdicts()
    )
    expected = sum(refuses(text, "zhao") for text in made.result.texts) / 3
    assert found.arms[0].refused["zhao"].value == expected
    assert found.refused is not None and found.refused.rates["arditi"].n == 7 and found.harmful is None
    stored = EXPERIMENT.open(read_header(tmp_path / "run"))
    assert stored.result.judgements == found
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<h2 id="judges">Judges</h2>' in page and page.index('id="judges"') < page.index('id="provenance"')
    assert '<a href="#judges">' in page and "steered, Ablate" in page
    assert made.verdicts()[0] == "one line" and len(made.verdicts()) > 1


def test_without_judges_nothing_is_recorded(tiny: ChatModel, prompts: PromptSet, tmp_path: Path) -> None:
    made = EXPERIMENT.run(tiny, prompts, Config(), out=tmp_path / "run")
    assert made.result.judgements is None and recorder() is None
    assert "Judges" not in (tmp_path / "run" / "report.html").read_text()
    assert made.verdicts() == ["one line"]


def test_an_interrupted_run_judges_the_replies_of_finished_stages(
    tiny: ChatModel, prompts: PromptSet, tmp_path: Path
) -> None:
    whole = EXPERIMENT.run(tiny, prompts, Config(), judges=("arditi", "zhao"))
    CALLS.clear()
    with pytest.raises(RuntimeError, match="interrupted here"):
        EXPERIMENT.run(tiny, prompts, Config(fail=True), out=tmp_path / "run", judges=("arditi",))
    again = EXPERIMENT.run(tiny, prompts, Config(), out=tmp_path / "run", judges=("arditi", "zhao"))
    assert CALLS == ["plain", "steered"]  # the finished stage was read, with its replies
    assert again.result.judgements == whole.result.judgements


def test_stages_finished_without_recording_are_not_continued_with(
    tiny: ChatModel, prompts: PromptSet, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError):
        EXPERIMENT.run(tiny, prompts, Config(fail=True), out=tmp_path / "run")
    EXPERIMENT.run(tiny, prompts, Config(), out=tmp_path / "run", judges=("arditi",))
    assert CALLS == ["plain", "plain", "steered"]


def test_a_stored_run_with_fewer_judges_does_not_answer(tiny: ChatModel, prompts: PromptSet) -> None:
    from interp.experiments.requests import Request

    made = EXPERIMENT.run(tiny, prompts, Config(), judges=("arditi",))
    asked = Request(
        experiment=EXPERIMENT, config=Config(), model=None, prompts=None, judges=("arditi", "zhao")
    )
    assert asked.differences(made) == ["judges: zhao did not judge the stored run"]
    assert replace(asked, judges=("arditi",)).differences(made) == []
    assert isinstance(made, Run)
    with pytest.raises(ValueError, match="unknown judge 'nobody'"):
        EXPERIMENT.run(tiny, prompts, Config(), judges=("nobody",))
    assert CALLS == ["plain", "steered"]  # a mistake is found before anything is generated


def test_the_latent_judge_reads_with_the_runs_model(tiny: ChatModel, prompts: PromptSet) -> None:
    text = prompts["harmless", "test"].texts[0]
    replies = [
        RecordedReply(stage="s", interventions="", id="0", prompt=text, answer=a) for a in ("Yes.", "")
    ]
    specs = ["latent", "arditi"]
    few = replace(prompts, parts={key: part.first(4) for key, part in prompts.parts.items()})
    found = judge_replies(replies, specs, all_judges(specs, model=tiny, prompts=few), few)
    assert [each.arm for each in found.arms] == ["s", "s (2)"]  # the same prompt twice in one arm
    assert found.harmful is not None and found.harmful.rates["latent=tiny"].missing == 1
    assert found.scales["arditi"] == "" and "harm belief" in found.scales["latent=tiny"]


def test_nothing_to_judge_is_no_rate(prompts: PromptSet) -> None:
    found = judge_replies([], ["arditi"], all_judges("arditi"), prompts)
    assert (found.arms, found.refused, found.left_out) == ((), None, 0)
    assert judgement_lines(found) == ["The run made no reply that judges could judge."]
    with recording() as record:
        pass
    assert record.replies == [] and recorder() is None


def test_a_request_after_a_system_message_is_found_whatever_its_quotes(
    tiny: ChatModel, prompts: PromptSet
) -> None:
    quoted = replace(prompts["harmless", "test"].first(1), texts=('Say "a"\nand "b"',))
    asked = replace(prompts, parts={("harmless", "test"): quoted})
    with recording() as record:
        messages: list[Message] = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": quoted.texts[0]},
        ]
        generate(tiny, [messages], max_new_tokens=1)
    found = judge_replies(record.replies, ["arditi"], all_judges("arditi"), asked)
    assert [(arm.group, arm.n) for arm in found.arms] == [("harmless", 1)] and found.left_out == 0
