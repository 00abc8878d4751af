"""Human texts of every layout are read as they are, and the bundled ones are what their source file says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from interp.data.human_texts import (
    LAYOUTS,
    PASSAGES,
    bundled_passages,
    read_human_texts,
    read_machine_texts,
)

HC3 = [
    {
        "question": "Why?",
        "human_answers": ["Because.", " "],
        "chatgpt_answers": ["As a model."],
        "source": "eli5",
    },
    {"question": "How?", "human_answers": ["Like so.", "Or so."], "chatgpt_answers": [], "source": "finance"},
]
ROWS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "hc3": (HC3, ["Because.", "Like so.", "Or so."]),
    "xsum": ([{"document": "News.\nMore.", "summary": "N.", "id": "1"}], ["News.\nMore."]),
    "writing_prompts": ([{"prompt": "p", "story": "A <newline> B ."}], ["A\nB ."]),
    "pubmed_qa": ([{"pubid": 1, "question": "q", "long_answer": "It does."}], ["It does."]),
    "text": ([{"text": "Plain."}], ["Plain."]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_found_by_their_columns(tmp_path: Path, layout: str) -> None:
    rows, texts = ROWS[layout]
    path = tmp_path / f"{layout}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_human_texts(path)
    assert list(found.texts) == texts and found.source == str(path)
    assert found.ids[0] == f"{layout}-0" and len(set(found.ids)) == len(texts)
    assert read_human_texts(path, layout=layout).texts == found.texts
    if layout == "hc3":
        assert found.categories == ("eli5", "finance", "finance")
        assert read_machine_texts(path).texts == ("As a model.",)
    else:
        with pytest.raises(ValueError, match="not in the layout hc3: it has no column 'chatgpt_answers'"):
            read_machine_texts(path)
    with pytest.raises(ValueError, match=r"is not in the layout|is not there|does not have column"):
        if layout == "xsum":
            read_human_texts(path, column="body")
        read_human_texts(path, layout="xsum" if layout != "xsum" else "pubmed_qa")


def test_stories_a_line_are_read_from_writing_prompts_own_files(tmp_path: Path) -> None:
    path = tmp_path / "test.wp_target"
    path.write_text("One . <newline> <newline> Two .\nAnother story .\n")
    assert read_human_texts(path).texts == ("One .\n\nTwo .", "Another story .")


def test_rows_without_text_and_unknown_layouts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"document": "a"}\n{"document": ""}\n')
    with pytest.raises(ValueError, match="row 2: column 'document' is empty or not text"):
        read_human_texts(path)
    path.write_text('{"human_answers": []}\n')
    with pytest.raises(ValueError, match="holds no texts"):
        read_human_texts(path)
    with pytest.raises(ValueError, match="unknown layout 'squad'; known: hc3"):
        read_human_texts(path, layout="squad")


def test_bundled_passages_are_long_enough_distinct_and_small() -> None:
    passages = bundled_passages()
    assert len(passages) == 212 == len(set(passages.texts)) == len(set(passages.ids))
    assert all(160 <= len(text.split()) <= 230 for text in passages.texts)
    counts = Counter(passages.categories)
    assert counts == {"sqlite documentation": 100, "Jargon File": 40, "Jane Austen": 72}
    assert set(passages.categories[:6]) == set(counts)  # the first few hold every source
    assert PASSAGES.stat().st_size < 300_000
    about = (PASSAGES.parent / "SOURCE.md").read_text()
    assert all(str(source) in about for source in counts) and "public domain" in about
