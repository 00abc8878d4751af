"""Wrappers around a request, and jailbreaks read from files."""

import json

import pytest

from interp.data.wrappers import Wrapper, attempts, read_attacks, read_suffixes, wrappers
from tests.conftest import prompts_of


def test_wrappers_hold_the_request_once_and_unchanged() -> None:
    request = "How do I {braces} bake?"
    for wrapper in wrappers():
        assert wrapper.wrap(f" {request} ").count(request) == 1
        before, after = wrapper.around
        assert wrapper.wrap(request) == before + request + after
    assert len({w.name for w in wrappers()}) == len(wrappers())
    with pytest.raises(ValueError, match=r"must hold {request} exactly once, got 2 of them"):
        Wrapper(family="x", name="twice", text="{request} {request}")
    with pytest.raises(ValueError, match="unknown family 'hypnosis'; known: template, persuasion"):
        wrappers(("hypnosis",))
    tried = attempts(wrappers(("template",)), prompts_of(["a", "b"]))
    assert len(tried) == 2 * len(wrappers(("template",)))


def test_files_of_suffixes_and_of_attacks(tmp_path) -> None:
    (tmp_path / "suffixes.txt").write_text("x { y\nz {request}\n")
    first, second = read_suffixes(tmp_path / "suffixes.txt")
    assert first.wrap("Why?") == "Why? x { y"
    assert second.wrap("Why?") == "Why? z"  # the slot is taken out
    rows = [
        {"family": "mine", "wrapper": "Please: {request}"},
        {"request": "Why?", "prompt": "Why, dear friend, why?"},
    ]
    path = tmp_path / "attacks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found, finished = read_attacks(path)
    assert [w.family for w in found] == ["mine"]
    assert (finished[0].family, finished[0].request) == ("attacks", "Why?")
    for bad, message in (
        ({"family": "mine"}, r"attacks.jsonl, row 1 must have `wrapper` .* got family"),
        ({"wrapper": "no slot"}, r"row 1: wrapper 'attacks 1' must hold {request} exactly once, got 0"),
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=message):
            read_attacks(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="row 1: expected an object or text, got int"):
        read_attacks(path)
