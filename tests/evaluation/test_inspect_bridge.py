"""Inspect's own runner evaluates a steered model of interp from end to end, and its log opens."""

import json
from pathlib import Path

import pytest
import torch
from inspect_ai import Task
from inspect_ai import eval as run_inspect
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import get_model
from inspect_ai.solver import generate as plain_generate
from inspect_ai.solver import system_message

from interp.cli import inspect_registry
from interp.directions import Direction
from interp.engine.activation_files import read_activations
from interp.engine.activations import collect
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.evaluation.inspect_bridge import InterpAPI, parse_model_name, steered, steering
from interp.evaluation.inspect_tasks import choices, prompts_dataset, refusal, refused
from interp.models.chat_model import ChatModel
from interp.storage.direction_files import write_direction
from tests.conftest import PROMPTS, prompts_of

assert inspect_registry.interp_provider  # importing it registers the provider


@pytest.fixture(scope="module")
def direction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    file = tmp_path_factory.mktemp("direction") / "random.safetensors"
    write_direction(file, Direction(vector=vector, layer=1, position="t_post_inst"))
    return file


def evaluated(task: Task, model: object, folder: Path, **options: object) -> EvalLog:
    (log,) = run_inspect(task, model=model, log_dir=str(folder), display="none", **options)  # pyright: ignore
    assert log.status == "success", log.error
    return log


def replies(log: EvalLog) -> dict[str, str]:
    return {str(sample.id): sample.output.completion for sample in log.samples or []}


def asked() -> Task:
    return Task(dataset=prompts_dataset(prompts_of(PROMPTS)), solver=[plain_generate()], scorer=refused())


@pytest.mark.parametrize("option", ["coefficient=4", "ablate=1", ""])
def test_a_steered_model_by_its_name(
    saved_tiny: Path, tiny: ChatModel, direction: Path, tmp_path: Path, option: str
) -> None:
    name = f"interp/{saved_tiny}" + (f"?direction={direction}&{option}" if option else "")
    log = evaluated(asked(), name, tmp_path, max_tokens=6)
    expected = {
        "coefficient=4": [Add(direction, coefficient=4)],
        "ablate=1": [Ablate(direction)],
        "": [],
    }[option]
    ours = generate(tiny, prompts_of(PROMPTS), interventions=expected, max_new_tokens=6)
    assert replies(log) == {f"p{i}": text for i, text in enumerate(ours.texts)}
    read = read_eval_log(log.location)
    assert read.eval.model == name and len(read.samples or []) == len(PROMPTS)
    usage = (read.samples or [])[0].output.usage
    assert usage is not None and 0 < usage.output_tokens <= 6 and usage.input_tokens > 10


def test_a_loaded_model_with_interventions_and_a_steering_solver(
    tiny: ChatModel, direction: Path, tmp_path: Path
) -> None:
    model = get_model("interp/tiny", chat_model=tiny, memoize=False)
    task = Task(
        dataset=prompts_dataset(prompts_of(PROMPTS)),
        solver=[system_message("Be brief."), steered(str(direction), coefficient=4)],
        scorer=refused(),
    )
    log = evaluated(task, model, tmp_path, max_tokens=5)
    conversations = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in PROMPTS
    ]
    ours = generate(tiny, conversations, interventions=[Add(direction, coefficient=4)], max_new_tokens=5)
    assert list(replies(log).values()) == list(ours.texts)
    plain = generate(tiny, conversations, max_new_tokens=5)
    assert list(plain.texts) != list(ours.texts)  # control: it does something
    own = get_model("interp/tiny", chat_model=tiny, interventions=[Ablate(direction)], memoize=False)
    assert isinstance(own.api, InterpAPI) and len(own.api.interventions) == 1


def test_activations_are_beside_the_log_and_never_in_it(
    saved_tiny: Path, tiny: ChatModel, tmp_path: Path
) -> None:
    folder = tmp_path / "acts"
    log = evaluated(asked(), f"interp/{saved_tiny}?activations={folder}", tmp_path, max_tokens=2)
    notes = [(sample.output.metadata or {})["interp"] for sample in log.samples or []]
    whole = collect(tiny, prompts_of(PROMPTS), positions=("t_inst", "t_post_inst"))["resid_pre"]
    for row, note in enumerate(notes):
        stored = read_activations(note["activations"])["resid_pre"][note["row"]]
        torch.testing.assert_close(stored, whole[row], atol=1e-5, rtol=1e-4)
    assert Path(log.location).stat().st_size < 200_000
    assert "resid_pre" not in json.dumps([sample.model_dump(mode="json") for sample in log.samples or []])


def test_tasks_of_prompts_and_of_questions(saved_tiny: Path, tmp_path: Path) -> None:
    model = f"interp/{saved_tiny}"
    log = evaluated(refusal(kind="borderline", n=3), model, tmp_path, max_tokens=3)
    assert [sample.id for sample in log.samples or []] == ["borderline-" + s for s in _ids(log)]
    chosen = evaluated(choices(n=4), model, tmp_path, max_tokens=3)
    assert chosen.results is not None and chosen.results.scores[0].name == "choice"
    assert all(len(sample.choices or []) == 4 for sample in chosen.samples or [])


def _ids(log: EvalLog) -> list[str]:
    return [str(sample.id).removeprefix("borderline-") for sample in log.samples or []]


def test_names_and_options() -> None:
    assert parse_model_name("a/b?direction=x&coefficient=-1") == (
        "a/b",
        {"direction": "x", "coefficient": "-1"},
    )
    for name, message in (
        ("?direction=x", "names no model"),
        ("m?dirction=x", "unknown option 'dirction' of an interp model; known: direction, coefficient"),
        ("m?direction=x&direction=y", "gives an option twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_model_name(name)
    for options, message in (
        ({"coefficient": 2}, "coefficient steers along a direction; give direction=FILE too"),
        ({"direction": "x", "ablate": 1, "coefficient": 2}, "give ablate=1 or coefficient, not both"),
        ({"direction": "x", "coefficient": "nan"}, "coefficient must be a number, got 'nan'"),
    ):
        with pytest.raises(ValueError, match=message):
            steering(options)


def test_what_a_model_of_interp_cannot_do_is_said(direction: Path, tmp_path: Path) -> None:
    task = Task(
        dataset=MemoryDataset([Sample(input="Hi")]), solver=[steered(str(direction))], scorer=refused()
    )
    (log,) = run_inspect(task, model="mockllm/model", log_dir=str(tmp_path), display="none")
    assert log.status == "error" and log.error is not None
    assert "this needs the inside of the model" in log.error.message
