"""Corpora: read from files, refused when empty."""

from pathlib import Path

import pytest

from interp.data.corpora import Corpus, read_corpus


def test_corpora_are_read_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="corpus x is empty or holds an empty text"):
        Corpus("x", ())
    with pytest.raises(ValueError, match="no such corpus file"):
        read_corpus("x", tmp_path / "no.txt")
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "Hi", "response": "Hello"}\n')
    assert read_corpus("x", rows) == Corpus("x", ("Hello",), ("Hi",))
    rows.write_text('{"text": "Plain"}\n')
    assert read_corpus("x", rows).prompts is None
