"""`interp detect` calibrates on a file of human texts and scores a stream."""

import json
from pathlib import Path

from tests.cli.commands import passed, refused
from tests.detectors.machine_text.test_detector import human


def test_fit_then_score(saved_tiny: Path, tmp_path: Path) -> None:
    texts, out = tmp_path / "human.txt", tmp_path / "detector.json"
    texts.write_text("\n".join(human(30).texts))
    shown = passed(
        "detect", "fit", "--model", saved_tiny, "--human", texts, "--false-positive-rate", "0.1", "--out", out
    )
    assert "30 texts of" in shown and "no proof of authorship" in " ".join(shown.split())
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text(json.dumps({"text": human(1, seed=5).texts[0]}) + "\nshort\n")
    rows = [
        json.loads(line)
        for line in passed("detect", "score", out, unseen, "--model", saved_tiny).splitlines()
        if line.startswith("{")
    ]
    assert [row["verdict"] for row in rows] in (["human", "too short"], ["machine", "too short"])
    table = tmp_path / "unseen.csv"
    table.write_text('id,text\n1,"short, and\nin two lines"\n')
    scored = [
        line
        for line in passed("detect", "score", out, table, "--model", saved_tiny).splitlines()
        if line.startswith("{")
    ]
    assert len(scored) == 1 and json.loads(scored[0])["verdict"] == "too short"  # the header is no text
    assert rows[0]["calibration"]["n"] == 30 and rows[0]["score_name"] == "fast_detect_gpt"
    chosen = tmp_path / "chosen.json"
    passed(
        *("detect", "fit", "--model", saved_tiny, "--human", texts, "--machine", texts, "--out", chosen),
        *("--false-positive-rate", "0.1", "--score", "log_rank"),
    )
    assert json.loads(chosen.read_text())["score"] == "log_rank"


def test_mistakes_are_one_line(saved_tiny: Path, tmp_path: Path) -> None:
    texts = tmp_path / "human.txt"
    texts.write_text("\n".join(human(5).texts))
    options = ("--model", saved_tiny, "--human", texts, "--out", tmp_path / "d.json")
    assert "5 human texts cannot tell a false-positive rate of 0.01" in refused("detect", "fit", *options)
    assert "unknown score 'x'" in refused("detect", "fit", *options, "--score", "x")
    assert "no such text file" in refused("detect", "score", texts, "absent.txt")
