"""`interp eval` runs Inspect's runner and prints its rates."""

import json
from pathlib import Path

from interp.evaluation.inspect_logs import read_rates
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
    assert "unexpected keyword argument 'kinds'" in refused(*eval_tiny, saved_tiny, "-T", "kinds=harmful")
