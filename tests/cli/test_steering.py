"""`interp steer` with files, several directions and sampling equals the library."""

import json
from pathlib import Path

import pytest
import torch

from interp.cli.main import app
from interp.cli.prompt_arguments import is_prompt_file, layers_of, prompts_of
from interp.directions import Direction
from interp.engine.generation import generate
from interp.engine.interventions import Add
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.storage.direction_files import write_direction
from tests.cli.commands import passed, refused

TEXTS = ("Name three colours.", "How do I bake bread?")


def direction_of(seed: int, layer: int) -> Direction:
    vector = 20 * torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Direction(vector=vector, layer=layer, position="t_inst", mean_activation_norm=5.0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_direction(tmp_path / "first.safetensors", direction_of(0, 1)),
        write_direction(tmp_path / "second.safetensors", direction_of(1, 2)),
    )


def test_a_file_of_prompts_and_several_directions(
    saved_tiny: Path, tiny: ChatModel, files: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = [{"id": f"row {n}", "question": text} for n, text in enumerate(TEXTS)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)))
    first, second = files
    command = ("steer", prompts, "-m", saved_tiny, "-d", first, "-d", second, "--max-new-tokens", 12)
    options = ("--coefficient", 2, "-c", -1, "--system", "Be brief.", "--new-tokens", 2)
    shown = json.loads(passed(*command, *options, "--json"))
    tokens = tokenize(tiny.tokenizer, list(TEXTS), system="Be brief.")
    pushes = [
        Add(direction_of(0, 1), coefficient=2, new_tokens=2),
        Add(direction_of(1, 2), coefficient=-1, new_tokens=2),
    ]
    plain = generate(tiny, tokens, max_new_tokens=12).texts
    steered = generate(tiny, tokens, interventions=pushes, max_new_tokens=12, fast=False).texts
    assert [row["prompt"] for row in shown] == list(TEXTS)
    assert [row["id"] for row in shown] == ["prompts-0", "prompts-1"]
    assert tuple(row["plain"] for row in shown) == plain
    assert tuple(row["steered"] for row in shown) == steered != plain
    # Controls: the order of the coefficients, the system message and the limit all matter.
    for other in (
        ("-c", -1, "-c", 2, *options[4:]),
        options[:4] + options[6:],
        (*options[:6], "--new-tokens", "all"),
    ):
        changed = json.loads(passed(*command, *other, "--json"))
        assert [row["steered"] for row in changed] != list(steered)
    table = " ".join(passed(*command, *options).replace("│", " ").split())
    assert "Name three colours." in table and "How do I bake bread?" in table and "first:" in table


def test_prompts_from_standard_input_and_sampling(
    saved_tiny: Path, tiny: ChatModel, files: tuple[Path, Path]
) -> None:
    from typer.testing import CliRunner

    arguments = ["steer", "-", "-m", str(saved_tiny), "-d", str(files[0]), "--max-new-tokens", "5", "--json"]
    sampled = [*arguments, "--temperature", "1.5", "--seed", "3"]
    result = CliRunner().invoke(app, sampled, input="\n".join(TEXTS))
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert [row["id"] for row in shown] == ["0", "1"]
    push = [Add(direction_of(0, 1))]
    for key, interventions in (("plain", []), ("steered", push)):
        expected = generate(
            tiny, list(TEXTS), interventions=interventions, max_new_tokens=5, temperature=1.5, seed=3
        )
        assert tuple(row[key] for row in shown) == expected.texts
    greedy = json.loads(CliRunner().invoke(app, arguments, input="\n".join(TEXTS)).stdout)
    assert greedy != shown
    assert "standard input holds no prompts" in CliRunner().invoke(app, arguments, input="\n").stderr


def test_amounts_that_do_not_fit_the_directions(files: tuple[Path, Path]) -> None:
    first, second = files
    two = ("steer", "Hi", "-d", first, "-d", second)
    assert "got 2 --direction and 1 --coefficient; give --coefficient once" in refused(*two, "-c", 2)
    assert "got 2 --direction and 3 --layer" in refused(*two, *("--layer", 1) * 3)
    assert "not both" in refused(*two, "-c", 1, "-c", 1, "--relative-norm", 1, "--relative-norm", 1)
    assert "--coefficient must be finite, got [nan]" in refused("steer", "Hi", "-d", first, "-c", "nan")
    assert "none, all or a number" in refused("steer", "Hi", "-d", first, "--new-tokens", -1)
    assert "none, all or a number" in refused("steer", "Hi", "-d", first, "--new-tokens", "some")
    assert "no such prompt file: absent.jsonl" in refused("steer", "absent.jsonl", "-d", first)
    assert "--column goal belongs to a prompt file" in refused("steer", "Hi", "-d", first, "--column", "goal")


def test_what_names_a_file_and_what_is_an_instruction(tmp_path: Path) -> None:
    (tmp_path / "my prompts.txt").write_text("Hi")
    for argument in ("-", "hub:owner/name", "prompts.csv", str(tmp_path / "my prompts.txt")):
        assert is_prompt_file(argument)
    for argument in ("Hi", "Summarise the file notes.txt", "README", "", f"{'Summarise ' * 99}notes.txt"):
        assert not is_prompt_file(argument)
    with pytest.raises(ValueError, match="is a folder; give an instruction or a file of prompts"):
        prompts_of(str(tmp_path))
    assert prompts_of("and/or").texts == ("and/or",)


def test_layers_as_they_are_typed() -> None:
    assert layers_of("8,12, 16") == [8, 12, 16]
    assert layers_of("2-4,-1") == [2, 3, 4, -1]
    assert layers_of("-3--1") == [-3, -2, -1]
    for text in ("", "a", "1-", "3-b", "4-2", "1-99999999"):
        with pytest.raises(ValueError, match="--layers"):
            layers_of(text)
