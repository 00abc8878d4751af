"""The command: tables, JSON, exit codes, and one line for a user's mistake."""

import json
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import Result

from interp.cli.main import app
from interp.directions import Direction
from interp.models.chat_model import ChatModel
from interp.models.tokens import tokenize
from interp.representations.steering import steer
from interp.storage.direction_files import read_direction, write_direction
from tests.cli.commands import passed, refused, run

COMMANDS = [str(command.name or command.callback.__name__) for command in app.registered_commands]
PROMPT = "Pick a [bold]lock?"
STORED = Path(__file__).parents[2] / "figures" / "demo"


def make_direction(d_model: int = 32, **changes: object) -> Direction:
    vector = torch.randn(d_model, generator=torch.Generator().manual_seed(0))
    settings = {"vector": 20 * vector, "layer": 2, "position": "t_inst", "mean_activation_norm": 5.0}
    return Direction(**{**settings, **changes})


@pytest.fixture
def direction(tmp_path: Path) -> Path:
    return write_direction(tmp_path / "refusal.safetensors", make_direction())


# Help


def test_the_commands_are_all_there() -> None:
    assert {"demo", "list", "run", "plot", "tokens", "steer", "collect", "directions", "export"} <= set(
        COMMANDS
    )
    shown = passed("--help")
    assert all(command in shown for command in COMMANDS)
    assert run().exit_code == 2  # no command: help, but nothing was done


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    shown = passed(command, "--help")
    assert "Usage:" in shown
    assert re.search(rf"Example: *(?:`)?interp {command}", " ".join(shown.split()))


# tokens


def test_tokens_as_a_table(saved_tiny: Path) -> None:
    shown = passed("tokens", PROMPT, "--model", saved_tiny)
    for text in (
        "from end",
        "prefix",
        "instruction",
        "t_inst",
        "post_inst[0]",
        "= t_post_inst",
        "'<|im_start|>'",
    ):
        assert text in shown
    rows = [line for line in shown.splitlines() if "instruction" in line or " t_inst" in line]
    assert len(rows) == len(PROMPT)  # one token a byte
    assert any("'['" in line for line in rows)  # brackets are no markup


def test_tokens_as_json(saved_tiny: Path, tiny: ChatModel) -> None:
    shown = json.loads(passed("tokens", "Hé?", "--model", saved_tiny, "--json"))
    expected = tokenize(tiny.tokenizer, ["Hé?"])
    assert [entry["id"] for entry in shown] == list(expected.ids[0])
    assert [entry["index"] for entry in shown] == list(range(len(shown)))
    assert shown[expected.ends[0] - 1] == {
        "index": expected.ends[0] - 1,
        "id": tiny.tokenizer("?")["input_ids"][0],
        "text": "?",
        "role": "t_inst",
    }
    assert shown[-1]["role"].endswith("= t_post_inst")


def test_tokens_with_a_system_message(saved_tiny: Path) -> None:
    plain = json.loads(passed("tokens", "Hi", "-m", saved_tiny, "--json"))
    system = json.loads(passed("tokens", "Hi", "-m", saved_tiny, "--system", "Be brief.", "--json"))
    assert len(system) > len(plain) + len("Be brief.")


def test_thinking_is_switched_where_the_template_can(saved_tiny: Path) -> None:
    assert "no switch for thinking" in refused("tokens", "Hi", "--model", saved_tiny, "--no-thinking")


@pytest.mark.parametrize("layers", ["1-99999999", "2-1"])
def test_layers_of_a_guard_that_are_not_there(saved_tiny: Path, tmp_path: Path, layers: str) -> None:
    options = ["--model", saved_tiny, "--layers", layers, "--out", tmp_path / "g.safetensors"]
    message = f"a range ascends, to 10,000 at most; got {layers}"
    assert message in " ".join(refused("guard", "fit", *options).split())


def test_tokens_of_an_empty_prompt(saved_tiny: Path) -> None:
    assert "prompt 0 is empty" in refused("tokens", "  ", "--model", saved_tiny)


# runs


def test_runs_are_listed_shown_and_compared() -> None:
    qwen = STORED.parent / "demo-qwen2.5-coder-0.5b"
    listed = json.loads(passed("runs", "ls", STORED, qwen, "--json"))
    assert [row["model"] for row in listed] == ["smollm2-safe", "Qwen2.5-Coder-0.5B-Instruct"]
    assert "97% [89, 99]" in passed("runs", "show", STORED)
    assert json.loads(passed("runs", "show", STORED, "--json"))["experiment"] == "demo"
    compared = json.loads(passed("runs", "compare", STORED, qwen, "--json"))
    assert [
        "refusal_rate.baseline.harmful.arditi",
        "0.97 [0.89, 0.99]",
        "0.70 [0.57, 0.80]",
        "apart",
    ] in compared["results"]
    assert "no result.json" in refused("runs", "show", STORED.parent)


# steer


def test_steer_as_json_equals_the_library(saved_tiny: Path, tiny: ChatModel, direction: Path) -> None:
    command = (
        "steer",
        "Hi",
        "--model",
        saved_tiny,
        "--direction",
        direction,
        "--max-new-tokens",
        6,
        "--json",
    )
    expected = steer(tiny, "Hi", make_direction(), coefficient=2.0, max_new_tokens=6)
    assert json.loads(passed(*command, "--coefficient", 2)) == {
        "prompt": "Hi",
        "plain": expected.plain[0],
        "steered": expected.steered[0],
    }
    assert expected.plain != expected.steered  # control
    nothing = json.loads(passed(*command, "--coefficient", 0))
    assert nothing["steered"] == nothing["plain"] == expected.plain[0]
    dosed = steer(
        tiny, "Hi", make_direction(), relative_norm=30.0, layers=[1], positions="t_inst", max_new_tokens=6
    )
    shown = json.loads(passed(*command, "--relative-norm", 30, "--layer", 1, "--positions", "t_inst"))
    assert shown["steered"] == dosed.steered[0]


def test_steer_as_a_table(saved_tiny: Path, direction: Path) -> None:
    shown = passed("steer", PROMPT, "-m", saved_tiny, "-d", direction, "-c", 1.5, "--max-new-tokens", 2)
    assert PROMPT in shown
    assert "plain" in shown
    assert "steered (coefficient 1.5, layer 2)" in shown


def test_steer_with_a_direction_of_another_width(saved_tiny: Path, tmp_path: Path) -> None:
    wide = write_direction(tmp_path / "wide.safetensors", make_direction(64, provenance={"model": "gpt2"}))
    line = refused("steer", "Hi", "--model", saved_tiny, "--direction", wide)
    assert "direction has d_model 64, but" in line
    assert "has 32" in line
    assert "fitted on another model (gpt2)" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", 3), "layer"),
        (("--positions", "nowhere"), "unknown position 'nowhere'"),
        (("--max-new-tokens", 0), "max_new_tokens must be 1 or more, got 0"),
    ],
)
def test_steer_with_options_out_of_range(
    options: tuple[object, ...], message: str, saved_tiny: Path, direction: Path
) -> None:
    assert message in refused("steer", "Hi", "-m", saved_tiny, "-d", direction, *options)


def test_steer_with_a_dose_that_has_no_unit(saved_tiny: Path, tmp_path: Path) -> None:
    bare = write_direction(tmp_path / "bare.safetensors", make_direction(mean_activation_norm=None))
    line = refused("steer", "Hi", "-m", saved_tiny, "-d", bare, "--relative-norm", 1)
    assert "relative_norm needs a direction with its mean_activation_norm; give coefficient=" in line


def test_steer_without_its_direction_file(saved_tiny: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"
    assert f"no such direction file: {absent}" in refused("steer", "Hi", "-m", saved_tiny, "-d", absent)


# Names that are not known


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./no-such-folder", "no such folder"),
        ("nobody/no-such-model", "hf download nobody/no-such-model"),
        ("absent.gguf", "no such GGUF file: absent.gguf"),
        (".", "has no config.json"),
    ],
)
def test_unknown_model(model: str, message: str, direction: Path) -> None:
    assert message in refused("tokens", "Hi", "--model", model)
    assert message in refused("steer", "Hi", "--model", model, "--direction", direction)


def test_unknown_model_of_an_experiment(tmp_path: Path) -> None:
    result = run("run", "demo", "--model", "./no-such-folder", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "no such folder" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_unknown_experiment() -> None:
    line = refused("run", "no-such-paper")
    assert "unknown experiment 'no-such-paper'; known: demo" in line
    assert list(Path.cwd().iterdir()) == []


def test_unknown_prompt_set(saved_tiny: Path) -> None:
    result = run("demo", "--model", saved_tiny, "--prompts", "./no-such-prompts")
    assert result.exit_code == 2
    assert "no-such-prompts" in result.stderr
    assert "Traceback" not in result.output


# list


def test_list_as_json() -> None:
    shown = json.loads(passed("list", "--json"))
    assert shown.keys() == {"experiments", "models", "prompts"}
    assert "demo" in shown["experiments"]
    assert shown["models"].keys() == {"smollm2", "smollm2-safe", "smollm2-form"}
    assert "builtin" in shown["prompts"]


def test_list_as_tables() -> None:
    shown = passed("list")
    for text in ("experiments", "demo", "models", "smollm2-safe", "smollm2-form", "prompt sets", "builtin"):
        assert text in shown


# export


def test_export_both_ways(direction: Path, tmp_path: Path) -> None:
    vector, there = tmp_path / "out" / "refusal.gguf", tmp_path / "back.safetensors"
    shown = passed("export", direction, "--out", vector, "--architecture", "qwen2", "--coefficient", 3)
    assert f"-> {vector}" in shown
    reader = gguf.GGUFReader(str(vector))
    assert [tensor.name for tensor in reader.tensors] == ["direction.1"]
    assert reader.fields["controlvector.model_hint"].contents() == "qwen2"
    np.testing.assert_allclose(reader.tensors[0].data, 3 * make_direction().vector.numpy(), rtol=1e-6)
    passed("export", vector, "--out", there)
    found = read_direction(there)
    assert found.layer == 2
    torch.testing.assert_close(found.vector, 3 * make_direction().vector)


def test_export_from_a_run_folder_knows_the_bundled_architecture(tmp_path: Path) -> None:
    made = make_direction(provenance={"model": "smollm2-safe"})
    write_direction(tmp_path / "run" / "refusal.safetensors", made)
    passed("export", tmp_path / "run", "--out", tmp_path / "x.gguf")
    fields = gguf.GGUFReader(str(tmp_path / "x.gguf")).fields
    assert fields["controlvector.model_hint"].contents() == "llama"


def test_export_of_one_layer_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    every = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    torch.save(every, tmp_path / "every.pt")
    passed("export", "~/every.pt", "--layer", 2, "--out", tmp_path / "one.safetensors")
    found = read_direction(tmp_path / "one.safetensors")
    assert found.layer == 2
    torch.testing.assert_close(found.vector, every[2])


def test_export_that_cannot_be_done(direction: Path, tmp_path: Path) -> None:
    assert "give --architecture" in refused("export", direction, "--out", tmp_path / "x.gguf")
    assert "unknown target 'x.npy'; use .safetensors or .gguf" in refused(
        "export", direction, "--out", tmp_path / "x.npy"
    )
    early = write_direction(tmp_path / "early.safetensors", make_direction(layer=1))
    line = refused("export", early, "--out", tmp_path / "x.gguf", "--architecture", "llama")
    assert "at layer 1 cannot be a control vector" in line
    assert "no such direction file" in refused("export", tmp_path / "work", "--out", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


# plot


def test_plot_writes_a_page_per_figure(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "run")
    passed("plot", tmp_path / "run", "--html", tmp_path / "pages")
    pages = {path.stem for path in (tmp_path / "pages").glob("*.html")}
    assert pages == {path.stem for path in (tmp_path / "run" / "figures").glob("*.json")} and len(pages) >= 4
    for path in (tmp_path / "pages").iterdir():
        assert (
            "Plotly.newPlot" in path.read_text() and path.stat().st_size < 2_000_000
        )  # Plotly is not inside


def test_plot_of_what_is_no_run(tmp_path: Path) -> None:
    assert "absent holds no result.json" in refused("plot", tmp_path / "absent")
    (tmp_path / "other").mkdir()
    assert "holds no result.json; is it the --out of a finished run?" in refused("plot", tmp_path / "other")
    (tmp_path / "other" / "result.json").write_text('{"format_version": 2, "experiment": "gone"}')
    assert "a run of 'gone', which this interp does not know; it has demo" in refused(
        "plot", tmp_path / "other"
    )
    (tmp_path / "other" / "result.json").write_text("{")
    assert "is damaged" in refused("plot", tmp_path / "other")
    assert not (tmp_path / "absent").exists()


# Mistakes and interrupts


def test_an_interrupt_ends_with_130_and_our_bugs_keep_their_traceback(
    saved_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import interp.models.tokens

    def fail(error: BaseException) -> Result:
        def tokenize(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(interp.models.tokens, "tokenize", tokenize)
        return run("tokens", "Hi", "--model", saved_tiny)

    interrupted = fail(KeyboardInterrupt())
    assert interrupted.exit_code == 130
    assert "the same command continues" in interrupted.stderr
    assert isinstance(fail(RuntimeError("our bug")).exception, RuntimeError)
    full = fail(OSError(28, "No space left on device"))
    assert (full.exit_code, full.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_error_line_shows_its_text_as_it_is_on_one_line() -> None:
    assert "unknown experiment 'a [bold]b[/] c';" in refused("run", "a [bold]b[/] c")
    assert "no such folder or .gguf file: ./a b;" in refused("tokens", "Hi", "--model", "./a\nb")


def test_wrong_usage_exits_with_2() -> None:
    for arguments in (["no-such-command"], ["tokens"], ["steer", "Hi"], ["run", "demo", "--seed", "x"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
