"""`interp eval` runs Inspect's runner and prints its rates."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log

from interp.evaluation.inspect_logs import read_rates, read_replies
from tests.cli.commands import passed, refused


def test_eval_writes_a_log_and_prints_its_rates(saved_tiny: Path, tmp_path: Path) -> None:
    said = json.loads(
        passed(
            *(
                "eval",
                "refusal",
                "--model",
                saved_tiny,
                "-T",
                "kind=harmless",
                "-T",
                "n=3",
                "--max-tokens",
                "3",
            ),
            *("--log-dir", tmp_path, "--json"),
        )
    )
    assert said["scores"]["refused"]["n"] == 3
    assert read_rates(said["log"])["refused"].value == said["scores"]["refused"]["value"]


def test_mistakes_are_one_line(saved_tiny: Path, tmp_path: Path) -> None:
    eval_tiny = ("eval", "refusal", "--log-dir", tmp_path, "--model")
    assert "no such folder" in refused(*eval_tiny, "./absent")
    assert "unknown option 'x'" in refused(*eval_tiny, f"{saved_tiny}?x=1")
    assert "no such direction file" in refused(*eval_tiny, f"{saved_tiny}?direction=absent")
    assert "give name=value" in refused(*eval_tiny, saved_tiny, "-T", "kind")
    unknown = refused(*eval_tiny, saved_tiny, "-T", "substrings=nobody")
    assert "unknown refusal list 'nobody'; known: normalised" in unknown and "its log" not in unknown
    nowhere = refused("eval", "absent.py", "--log-dir", tmp_path, "--model", saved_tiny)
    assert "absent.py: No inspect tasks were found" in nowhere and "Give refusal, choices, a file" in nowhere
    assert "unexpected keyword argument 'kinds'" in refused(*eval_tiny, saved_tiny, "-T", "kinds=harmful")


@pytest.mark.checkpoint
def test_inspects_own_command_runs_the_bundled_model(tmp_path: Path) -> None:
    """`inspect eval` finds tasks and provider by the entry point of the installed package, and its log opens."""
    arguments = [
        "--model",
        "interp/smollm2-safe",
        "-T",
        "n=3",
        "--max-tokens",
        "12",
        "--log-dir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "inspect"),
            "eval",
            "interp/refusal",
            "--display",
            "none",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = tmp_path.glob("*.eval")
    read = read_eval_log(str(log))
    assert read.status == "success" and read.eval.model == "interp/smollm2-safe"
    assert len(read.samples or []) == 3 and read_rates(log)["refused"].value > 0.5
    assert all(read_replies(log).replies)
