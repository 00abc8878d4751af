"""`interp data` lists, shows, takes and checks named sets, and prompts go in by name wherever prompts go in."""

import json
from pathlib import Path

import pytest

from tests.cli.commands import passed, refused
from tests.data.test_downloads import XSTEST, folders, put
from tests.data.test_named_prompts import pair

__all__ = ["folders", "pair"]


def test_ls_and_show() -> None:
    listed = json.loads(passed("data", "ls", "--json"))
    assert len(listed) == 22 and not any(entry["here"] for entry in listed)
    assert "hh-rlhf" in passed("data", "ls", "--kind", "preference")
    assert "xstest" not in passed("data", "ls", "--kind", "preference")
    shown = " ".join(passed("data", "show", "XSTest").split())
    assert "CC-BY-4.0" in shown and "f600c994b256" in shown and "is not on this machine" in shown
    assert "unknown data set 'x'" in refused("data", "show", "x")
    assert "unknown kind 'x'" in refused("data", "ls", "--kind", "x")


def test_fetch_from_a_folder_then_check(tmp_path: Path) -> None:
    put(tmp_path / "Downloads/xstest_prompts.csv", XSTEST)
    said = passed("data", "fetch", "xstest", "--from", tmp_path / "Downloads")
    file = tmp_path / "cache/data/xstest/xstest_prompts.csv"
    assert str(file) in said
    checked = json.loads(passed("data", "check", "xstest", "--json"))
    assert [part["rows"] for part in checked["sets"][0]["parts"]] == [1, 1]
    assert checked["overlaps"][0]["exact"] == 0  # of its two parts
    file.write_text(XSTEST + "9,New?,homonyms,safe\n")
    assert "another content than at first use" in refused("data", "check", "xstest")
    shown = passed("data", "check", "xstest", "--record")
    assert "unchanged since first use" in shown
    assert "no prompt in common, at a Jaccard index of 0.7: 1 pairs of parts" in shown
    assert "give one name" in refused("data", "fetch", "xstest", "alpaca", "--from", tmp_path / "Downloads")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!DOCTYPE html>\n<p>Sign in, please</p>", "is a web page"),
        ("id,text\n1,A\n", "has no column prompt"),
        ("id,prompt,label\n1,A,green\n", "no row of"),
        ("id,prompt,label\n", "has no rows"),
    ],
)
def test_fetch_takes_no_file_that_it_cannot_read(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "xstest_prompts.csv"
    file.write_text(text)
    assert message in refused("data", "fetch", "xstest", "--from", file)
    assert not list((tmp_path / "cache").rglob("*.csv"))


@pytest.mark.usefixtures("pair")
def test_names_go_in_where_prompts_go_in(saved_tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "acts.safetensors"
    passed("collect", "data:alpaca", "--model", saved_tiny, "--layers", "0", "--out", out)
    from interp.engine.activation_files import read_activations

    assert read_activations(out).identity.ids == tuple(f"alpaca-{i}" for i in range(4))
    made = passed(
        "directions",
        "--model",
        saved_tiny,
        "--prompts",
        "jailbreakbench:harmful+alpaca",
        "--out",
        tmp_path / "d",
    )
    assert "harmfulness" in made
    assert "xstest is not on this machine" in refused("run", "demo", "--prompts", "xstest+alpaca")
