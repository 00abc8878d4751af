"""What commands share: options of the model, exit codes, stored runs, what is found before the work."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command

from interp.cli.main import app
from interp.experiments import EXPERIMENTS
from tests.cli.commands import passed, refused, run

STORED = Path(__file__).parents[2] / "figures" / "demo"


# Options that commands share

LOADING = (
    "demo",
    "run",
    "tokens",
    "steer",
    "collect",
    "directions",
    "export",
    "guard fit",
    "guard score",
    "detect fit",
    "detect score",
)
MODEL_OPTIONS = (
    "--model",
    "--adapter",
    "--revision",
    "--dtype",
    "--precision",
    "--device",
    "--chat-template",
    "--batch-size",
)


@pytest.mark.parametrize("command", LOADING)
def test_every_command_that_loads_a_model_takes_the_same_options(command: str) -> None:
    found = get_command(app)
    for name in command.split():
        found = found.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    assert [p.opts[0] for p in found.params if p.opts[0] in MODEL_OPTIONS] == list(MODEL_OPTIONS)


def test_a_series_takes_those_that_hold_for_all_its_checkpoints() -> None:
    found = get_command(app).commands["track"]  # pyright: ignore[reportAttributeAccessIssue]
    options = {option for p in found.params for option in p.opts}
    assert {"--base", *MODEL_OPTIONS[3:]} <= options and not options & set(MODEL_OPTIONS[:3])


def test_model_options_reach_the_model(saved_tiny: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}<<{{ message['content'] }}>>{% endfor %}go:")
    shown = json.loads(passed("tokens", "Hi", "-m", saved_tiny, "--chat-template", template, "--json"))
    assert "".join(token["text"] for token in shown) == "<<Hi>>go:"
    for option, value, message in (
        ("--dtype", "float8", "dtype must be float32, bfloat16, float16, got 'float8'"),
        ("--precision", "quick", "precision must be exact or fast, got 'quick'"),
        ("--device", "abacus", "unknown device 'abacus'"),
        ("--chat-template", "absent.jinja", "no such chat template: absent.jinja"),
        ("--adapter", tmp_path, "has no adapter_config.json"),
    ):
        assert message in refused("tokens", "Hi", "-m", saved_tiny, option, value)
    line = refused("tokens", "Hi", "-m", "owner/name@abc", "--revision", "def")
    assert "the name says revision abc and revision='def'" in line
    assert "elasticity-theory needs no model, got --dtype bfloat16" in refused(
        "run", "elasticity-theory", "--dtype", "bfloat16"
    )


def test_version_exit_codes_and_completion() -> None:
    assert passed("--version") == f"interp {version('interp-workbench')}\n"
    assert "Exit codes: 0 done; 1 a fault of interp" in " ".join(passed("--help").split())
    environment = {**os.environ, "_INTERP_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    code = "from interp.cli.main import app; app(prog_name='interp')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "COMP_WORDS": "interp run re"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split() == [name for name in EXPERIMENTS if name.startswith("re")], found.stderr
    assert "refusal-direction" in found.stdout and "demo" not in found.stdout


def test_quiet_says_nothing_on_the_side(
    saved_tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for kind in ("harmful", "harmless"):
        (prompts / f"{kind}.txt").write_text("\n".join(f"{kind} {n}" for n in range(10)))
    command = (
        "guard",
        "fit",
        "--model",
        saved_tiny,
        "--prompts",
        prompts,
        "--out",
        tmp_path / "guard.safetensors",
    )
    passed(*command)
    assert "cut from" in caplog.text  # control
    caplog.clear()
    assert run("--quiet", *command).stderr == "" and caplog.text == ""


# Stored runs and settings


def test_run_opens_a_stored_run_of_exactly_this_question(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "work" / "figures" / "demo", ignore=shutil.ignore_patterns("*.png"))
    stored = ("run", "demo", "--source", "stored")
    assert "97% [89, 99]" in passed(*stored)
    for options, differs in (
        (("--model", "smollm2"), "model: stored 'smollm2-safe', asked 'smollm2'"),
        (("--set", "n_test=20"), "n_test: stored 60, asked 20"),
        (("--dtype", "bfloat16"), "dtype: stored 'float32', asked 'bfloat16'"),
        (("--precision", "fast"), "precision: stored 'exact', asked 'fast'"),
        (("--seed", 1), "seed: stored 0, asked 1"),
    ):
        assert differs in refused(*stored, *options)
    assert "give name=value, name one of n_train, n_val" in refused(*stored, "--set", "kl_threshold=1")
    prompts = tmp_path / "work" / "mine"
    prompts.mkdir()
    for kind in ("harmful", "harmless"):
        (prompts / f"{kind}.txt").write_text("\n".join(f"{kind} {n}" for n in range(10)))
    assert "prompts: stored 'builtin', asked 'mine'" in run(*stored, "--prompts", "mine").stderr
    assert run("run", "demo", "--source", "old").exit_code == 2


def test_run_lists_the_settings_of_an_experiment() -> None:
    listed = json.loads(passed("run", "refusal-direction", "--settings", "--json"))
    assert {s["name"]: s["source"] for s in listed}["kl_threshold"] == "appendix C"
    assert "n_candidates" in passed("run", "demo", "--settings")


def test_an_output_that_cannot_be_written_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    absent = ("--model", "nobody/no-such-model")
    assert "is a file; give a folder" in refused("demo", *absent, "--out", tmp_path / "file")
    assert "cannot write /proc/x/run" in refused("run", "demo", *absent, "--out", "/proc/x/run")
    assert "is a folder; give a file" in refused("guard", "fit", *absent, "--out", tmp_path)
    assert "is a file; give a folder" in refused("track", "nobody/no-such-model", "--out", tmp_path / "file")
