"""Human-written texts: the bundled passages, and files in the layouts of HC3, XSum, WritingPrompts and PubMedQA.

    passages = bundled_passages()                    # 212 passages, free to ship; their origin is in SOURCE.md
    human = read_human_texts("all.jsonl")            # the layout follows from the columns
    machine = read_machine_texts("all.jsonl")        # ChatGPT's answers, where the layout has them

| layout | columns | text |
|---|---|---|
| hc3 | question, human_answers, chatgpt_answers, source | every human answer; category is the source |
| xsum | document, summary | the document |
| writing_prompts | prompt, story, or a file .wp_target, a story a line | the story, `<newline>` as a line break |
| pubmed_qa | question, long_answer | the long answer |
| text | text, or the column that is named | the text |

Sources: Guo et al. 2023, arXiv:2301.07597 (HC3); Narayan et al. 2018, arXiv:1808.08745 (XSum); Fan et al. 2018,
arXiv:1805.04833 (WritingPrompts); Jin et al. 2019, arXiv:1909.06146 (PubMedQA).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.data.files import read_rows, read_text, text_column
from interp.data.prompt_sets import Prompts

LAYOUTS = ("hc3", "xsum", "writing_prompts", "pubmed_qa", "text")
"""Names of layouts: which columns of a file hold the texts."""
PASSAGES = Path(__file__).parent / "assets" / "human" / "passages.jsonl"
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "hc3": ("human_answers",),
    "xsum": ("document",),
    "writing_prompts": ("story",),
    "pubmed_qa": ("long_answer",),
}
_STORIES = ".wp_target"


def bundled_passages() -> Prompts:
    """The human passages that come with interp: sources as categories, in turn, so that the first n hold all kinds."""
    rows = read_rows(PASSAGES)
    kinds = list(dict.fromkeys(row["source"] for row in rows))
    by_kind = [[row for row in rows if row["source"] == kind] for kind in kinds]
    # At equal distances within each source, however many it has.
    order = sorted(
        ((i + 0.5) / len(part), number, row)
        for number, part in enumerate(by_kind)
        for i, row in enumerate(map(rows.index, part))
    )
    rows = [rows[row] for _, _, row in order]
    return Prompts(
        texts=tuple(row["text"] for row in rows),
        ids=tuple(row["id"] for row in rows),
        categories=tuple(row["source"] for row in rows),
        source="bundled human passages",
    )


def read_human_texts(path: str | Path, *, layout: str | None = None, column: str | None = None) -> Prompts:
    """Human-written texts of a file or `hub:owner/name[:config][:split]`.

    Args:
        layout: one of `LAYOUTS`; None finds it by the columns.
        column: column of the layout `text`.

    Raises:
        ValueError: an unknown layout, a file of another layout, a row that holds no text, or no texts at all.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if str(path).endswith(_STORIES):
        lines = [line for line in read_text(Path(path)).split("\n") if line.strip()]
        return _texts([(_story(line), None) for line in lines], path)
    rows = read_rows(path)
    layout = layout or _layout_of(rows[0], column)
    if layout == "hc3":
        return _texts(_answers(rows, "human_answers", path), path)
    name = text_column(rows, column, str(path)) if layout == "text" else _column(rows[0], layout, path)
    found = [(_text(row.get(name), name, path, number), None) for number, row in enumerate(rows, start=1)]
    if layout == "writing_prompts":
        found = [(_story(text), category) for text, category in found]
    return _texts(found, path)


def read_machine_texts(path: str | Path) -> Prompts:
    """Machine-written answers of a file in the layout of HC3 (column `chatgpt_answers`).

    Raises:
        ValueError: another layout, or no texts.
    """
    return _texts(_answers(read_rows(path), "chatgpt_answers", path), path)


def _layout_of(row: Mapping[str, Any], column: str | None) -> str:
    if column is not None:
        return "text"
    return next((layout for layout, names in _COLUMNS.items() if all(n in row for n in names)), "text")


def _column(row: Mapping[str, Any], layout: str, path: str | Path) -> str:
    (name,) = _COLUMNS[layout]
    if name not in row:
        raise ValueError(
            f"{path} is not in the layout {layout}: it has no column {name!r}, it has {', '.join(map(str, row))}"
        )
    return name


def _answers(
    rows: Sequence[Mapping[str, Any]], column: str, path: str | Path
) -> list[tuple[str, str | None]]:
    """Every non-empty answer of every row, with the row's source."""
    if column not in rows[0]:
        raise ValueError(
            f"{path} is not in the layout hc3: it has no column {column!r}, it has {', '.join(map(str, rows[0]))}"
        )
    found: list[tuple[str, str | None]] = []
    for number, row in enumerate(rows, start=1):
        answers = row.get(column)
        if isinstance(answers, str):
            answers = [answers]
        if not hasattr(answers, "__iter__"):
            raise ValueError(f"{path}, row {number}: column {column!r} must be a list of answers")
        source = row.get("source")
        for answer in answers or ():
            if isinstance(answer, str) and answer.strip():
                found.append((answer.strip(), source if isinstance(source, str) else None))
    return found


def _text(value: Any, column: str, path: str | Path, number: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{path}, row {number}: column {column!r} is empty or not text; correct or remove the row"
        )
    return value.strip()


def _story(line: str) -> str:
    """A story as it was written: its tokens are separated by spaces, its line breaks are `<newline>`."""
    return "\n".join(part.strip() for part in line.split("<newline>")).strip()


def _texts(found: Sequence[tuple[str, str | None]], path: str | Path) -> Prompts:
    if not found:
        raise ValueError(f"{path} holds no texts; give another file")
    stem = Path(str(path).removeprefix("hub:")).stem
    return Prompts(
        texts=tuple(text for text, _ in found),
        ids=tuple(f"{stem}-{number}" for number in range(len(found))),
        categories=tuple(category for _, category in found),
        source=str(path),
    )
