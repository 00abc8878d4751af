"""Prompt sets: the built-in one, every file format, missing splits, endings, and each error a user can cause."""

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

from interp.data.prompt_sets import KINDS, SPLITS, PromptSet
from interp.data.prompts import load_prompts, read_prompts

TEXTS = ("Bake bread.", "Why is it dark?", "Name a colour")


@pytest.fixture(scope="module")
def builtin() -> PromptSet:
    return load_prompts("builtin")


def closing(text: str) -> str:
    return text[-1] if text[-1] in ".?" else "none"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(path: Path, name: str, n: int) -> Path:
    return write(path, "".join(f"{name} {i}\n" for i in range(n)))


# --- builtin


def test_builtin_has_enough_matched_pairs_in_ten_categories(builtin: PromptSet) -> None:
    pairs = 0
    for split in SPLITS:
        harmful, harmless = builtin["harmful", split], builtin["harmless", split]
        assert len(harmful) == len(harmless)
        pairs += len(harmful)
        assert [i.removeprefix("harmful-") for i in harmful.ids] == [
            i.removeprefix("harmless-") for i in harmless.ids
        ]
        assert harmful.categories == harmless.categories
        assert len(set(harmful.categories)) == 10
        # Any first ten hold every category.
        assert len(set(harmful.first(10).categories)) == 10
    assert pairs >= 240
    assert len(builtin["borderline", "test"]) == 60


def test_builtin_splits_are_fixed(builtin: PromptSet) -> None:
    sizes = {"/".join(key): len(part) for key, part in builtin.parts.items()}
    assert sizes == {
        "harmful/train": 460,
        "harmless/train": 460,
        "harmful/val": 40,
        "harmless/val": 40,
        "harmful/test": 100,
        "harmless/test": 100,
        "borderline/train": 150,
        "borderline/test": 60,
    }
    assert load_prompts("builtin", seed=1).provenance == builtin.provenance
    assert builtin.notes == ()


def test_builtin_prompts_are_unique(builtin: PromptSet) -> None:
    texts = [text.rstrip(".? ").casefold() for part in builtin.parts.values() for text in part]
    assert [text for text, count in Counter(texts).items() if count > 1] == []
    ids = [i for part in builtin.parts.values() for i in part.ids]
    assert len(set(ids)) == len(ids)


def test_builtin_prompts_are_one_plain_sentence(builtin: PromptSet) -> None:
    for part in builtin.parts.values():
        for text in part:
            assert text.isascii() and text == text.strip() and "\n" not in text, text
            assert not re.search(r"[.?!]\s", text), text
            assert closing(text) in ".?" or text[-1].isalnum(), text


def test_builtin_endings_are_balanced(builtin: PromptSet) -> None:
    for split in SPLITS:
        harmful, harmless = builtin["harmful", split], builtin["harmless", split]
        ends = Counter(map(closing, harmful))
        assert ends == Counter(map(closing, harmless))
        assert set(ends) == {".", "?", "none"}
        bare = [(a, b) for a, b in zip(harmful, harmless, strict=True) if closing(a) == "none"]
        assert bare
        for a, b in bare:
            assert a.split()[-1] == b.split()[-1], (a, b)


# --- folders and single files


def test_folder_with_every_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in KINDS[:2]:
        for split in SPLITS:
            lines(tmp_path / f"{kind}_{split}.txt", f"{kind} {split}", 2)
    lines(tmp_path / "borderline.txt", "borderline", 3)
    found = load_prompts(tmp_path)
    assert found["harmless", "val"].texts == ("harmless val 0", "harmless val 1")
    assert found["harmful", "test"].ids == ("harmful_test-0", "harmful_test-1")
    assert len(found["borderline", "test"]) == 3
    assert found.name == str(tmp_path)
    assert found.notes == ()
    assert not caplog.records


@pytest.mark.parametrize("given", [("train",), ("train", "test"), ("val",), ("val", "test"), ()])
@pytest.mark.parametrize("n", [3, 4, 50])
def test_missing_splits_are_cut_from_those_that_are_there(
    tmp_path: Path, given: tuple[str, ...], n: int, caplog: pytest.LogCaptureFixture
) -> None:
    rows: set[str] = set()
    for name in [f"harmful_{split}" for split in given] or ["harmful"]:
        rows |= set(lines(tmp_path / f"{name}.txt", name, n).read_text().splitlines())
    for split in SPLITS:
        lines(tmp_path / f"harmless_{split}.txt", f"harmless {split}", 2)
    with caplog.at_level(logging.WARNING, logger="interp.data.prompts"):
        found = load_prompts(tmp_path)
    parts = [found["harmful", split].texts for split in SPLITS]
    assert all(parts)
    assert sorted(text for part in parts for text in part) == sorted(rows)  # disjoint, and nothing lost
    if not given and n == 50:
        assert [len(part) for part in parts] == [30, 10, 10]
    missing = " and ".join(split for split in SPLITS if split not in given)
    (note,) = (note for note in found.notes if "nearly" not in note)  # texts with a number are alike
    assert re.match(rf"harmful {missing} cut from .*\(seed 0\), as the set has none", note)
    assert note in caplog.text
    assert found.provenance["notes"] == list(found.notes)

    assert load_prompts(tmp_path).provenance == found.provenance
    if n == 50:
        assert load_prompts(tmp_path, seed=1).provenance["splits"] != found.provenance["splits"]


def test_single_files_as_a_string_and_as_a_mapping(tmp_path: Path) -> None:
    bad, good = lines(tmp_path / "a.txt", "bad", 10), lines(tmp_path / "b.txt", "good", 10)
    named = load_prompts(f"harmful={bad}, harmless={good}")
    mapped = load_prompts({"harmful": bad, "harmless": str(good)})
    assert {key: part.hash for key, part in named.parts.items()} == {
        key: part.hash for key, part in mapped.parts.items()
    }
    assert len(named["harmful", "train"]) == 6
    exact = load_prompts(
        {"harmful": bad, "harmless": good, "harmful_test": lines(tmp_path / "c.txt", "x", 2)}
    )
    assert exact["harmful", "test"].texts == ("x 0", "x 1")
    assert len(exact["harmful", "train"]) + len(exact["harmful", "val"]) == 10


def test_a_set_names_the_parts_it_has(tmp_path: Path) -> None:
    bad, good = lines(tmp_path / "a.txt", "bad", 10), lines(tmp_path / "b.txt", "good", 10)
    found = load_prompts({"harmful": bad, "harmless": good})
    assert ("harmful", "val") in found and ("borderline", "test") not in found
    with pytest.raises(ValueError, match="has no borderline/test; it has harmful/train, harmful/val"):
        found["borderline", "test"]


def test_duplicates_are_noted_with_their_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in KINDS[:2]:
        for split in SPLITS:
            lines(tmp_path / f"{kind}_{split}.txt", f"{kind} {split}", 4)
    write(tmp_path / "harmful_test.txt", "harmful train 0\nharmful train 1\nharmful val 2\nnew\nnew\n")
    write(tmp_path / "harmless_val.txt", "harmful train 3\nharmless\n")
    with caplog.at_level(logging.WARNING, logger="interp.data.prompts"):
        found = load_prompts(tmp_path)
    assert found.notes == (
        "3 harmful prompts stand in more than one split: held-out results are optimistic",
        "1 prompts are both harmful and harmless",
    )
    assert all(note in caplog.text for note in found.notes)


# --- errors


def run(code: str, **environment: str) -> str:
    """Output of a fresh interpreter, where no type checker stands before our own messages."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return done.stdout + done.stderr


def test_unknown_ending() -> None:
    output = run("from interp.data.prompts import load_prompts as f\nf('builtin', ending='comma')")
    assert "ValueError: unknown ending 'comma'; known: as-is, strip, period" in output


def two_files(folder: Path, harmful: Path | str) -> str:
    return f"harmful={harmful},harmless={lines(folder / 'good.txt', 'good', 9)}"


def test_unknown_set(tmp_path: Path) -> None:
    message = r"unknown prompt set '.*nowhere': not 'builtin', .*no such folder; .*harmful=F,harmless=G"
    with pytest.raises(ValueError, match=message):
        load_prompts(str(tmp_path / "nowhere"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such prompt file: .*gone\.txt"):
        load_prompts(two_files(tmp_path, tmp_path / "gone.txt"))


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p\.xlsx: unknown kind of file; known: \.jsonl, \.json, \.csv"):
        read_prompts(write(tmp_path / "p.xlsx", "x"))


@pytest.mark.parametrize(
    ("name", "text"), [("p.jsonl", ""), ("p.json", "[]"), ("p.csv", "goal\n"), ("p.txt", " \n\n")]
)
def test_empty_file(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(name)} has no rows; remove it or fill it"):
        load_prompts(two_files(tmp_path, write(tmp_path / name, text)))


def test_unknown_column(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "ask,id\nBake bread.,1\n")
    with pytest.raises(
        ValueError, match=r"does not have any of the columns instruction, prompt.*; it has ask, id"
    ):
        read_prompts(path)
    with pytest.raises(
        ValueError, match=r"p\.csv does not have column 'goal'; it has ask, id: name one with column="
    ):
        read_prompts(path, column="goal")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", '{"goal": "a"}\n{"goal": "b"}\n{"goal": " "}\n'),
        ("p.jsonl", '{"goal": "a"}\n{"goal": "b"}\n{"other": "c"}\n'),
        ("p.jsonl", '{"goal": "a"}\n{"goal": "b"}\n7\n'),
        ("p.json", '[{"goal": "a"}, {"goal": "b"}, {"goal": null}]'),
        ("p.csv", "id,goal\n1,a\n2,b\n3,\n"),
    ],
)
def test_empty_row(tmp_path: Path, name: str, text: str) -> None:
    message = rf"{re.escape(name)}, row 3: column 'goal' is empty or not text; correct or remove the row"
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / name, text))


def test_empty_row_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pandas.DataFrame({"goal": ["a", None]}).to_parquet(path)
    with pytest.raises(ValueError, match="row 2: column 'goal' is empty or not text"):
        read_prompts(path)


def test_bad_json_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"goal": "a"}\n\n{"goal": "b"\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 3: not JSON \("):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b"[1, ", r"cannot read .*p\.json: not JSON \(Expecting value"),
        ("p.json", b'{"goal": "a"}', r"cannot read .*p\.json: expected a list of prompts or of objects"),
        ("p.parquet", b"no parquet", r"p\.parquet"),
        ("p.csv", b"goal\n" + b"a" * 200_000 + b"\n", r"cannot read .*p\.csv: field larger than field limit"),
    ],
)
def test_unreadable_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv"])
def test_not_utf8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_bytes("goal\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"p\.{suffix} is not UTF-8 text \(.* at byte 8\); convert it"):
        read_prompts(path)


def test_the_same_part_in_two_formats(tmp_path: Path) -> None:
    for name in ("harmful_train.jsonl", "harmful_train.csv", "harmless.txt"):
        write(tmp_path / name, "x")
    with pytest.raises(ValueError, match=r"has both harmful_train\.jsonl and harmful_train\.csv; keep one"):
        load_prompts(tmp_path)


@pytest.mark.parametrize("key", ["harmfull", "train", "harmful_dev", "harmful_train_2"])
def test_unknown_part(key: str) -> None:
    message = (
        f"unknown part '{key}'; use harmful, harmless or borderline, alone or with _train, _val or _test"
    )
    with pytest.raises(ValueError, match=message):
        load_prompts(f"{key}=a.txt,harmless=b.txt")


@pytest.mark.parametrize(("kind", "other"), [("harmful", "harmless"), ("harmless", "harmful")])
def test_one_side_is_missing(tmp_path: Path, kind: str, other: str) -> None:
    path = lines(tmp_path / f"{other}.txt", other, 5)
    with pytest.raises(
        ValueError, match=f"the prompt set has no {kind} prompts; give {kind}=FILE or {kind}_train="
    ):
        load_prompts(f"{other}={path}")
    with pytest.raises(ValueError, match=f"has no {kind} prompts; expected files such as {kind}_train.jsonl"):
        load_prompts(tmp_path)


def test_too_few_rows_to_cut_from(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.txt", "bad", 2)
    with pytest.raises(ValueError, match="has 2 rows, too few to cut train, val, test from; add more"):
        load_prompts(two_files(tmp_path, path))


# --- the Hub


def test_a_hub_set_alone_does_not_say_what_it_holds() -> None:
    message = "hub:owner/name is one list of prompts; say what it holds: harmful=hub:owner/name,harmless="
    with pytest.raises(ValueError, match=message):
        load_prompts("hub:owner/name")


def test_hub_without_network(tmp_path: Path) -> None:
    output = run(
        "from interp.data.prompts import read_prompts\n"
        "try: read_prompts('hub:nobody/no-such-set')\n"
        "except ValueError as error: print('CAUGHT', error)",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    (caught,) = [line for line in output.splitlines() if line.startswith("CAUGHT")]
    assert re.search("cannot load hub:nobody/no-such-set: .+; check name, config and split, or save", caught)
    assert "Traceback" not in output


def test_hub_without_the_datasets_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="hub:owner/name needs the `datasets` package: pip install"):
        read_prompts("hub:owner/name")


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hub:owner/name", ("owner/name", None, "train")),
        ("hub:owner/name:behaviors", ("owner/name", "behaviors", "train")),
        ("hub:owner/name:behaviors:harmful", ("owner/name", "behaviors", "harmful")),
        ("hub:owner/name::benign", ("owner/name", None, "benign")),
        ("hub:owner/other", ("owner/other", None, "judge")),
    ],
)
def test_hub_name_config_and_split(
    monkeypatch: pytest.MonkeyPatch, source: str, asked: tuple[str, str | None, str]
) -> None:
    calls: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> SimpleNamespace:
        calls.append((name, config, split))
        return SimpleNamespace(to_list=lambda: [{"Goal": "no", "goal": "Bake bread.", "Category": "food"}])

    def names(name: str, config: str | None) -> list[str]:
        assert config in (None, "behaviors")
        return ["judge", "x"] if name == "owner/other" else ["test", "train"]

    fake = SimpleNamespace(load_dataset=load_dataset, get_dataset_split_names=names)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = read_prompts(source)
    assert calls == [asked]
    assert found.texts == ("Bake bread.",)
    assert found.categories == ("food",)
    assert found.source == source


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("Bake bread\nSing a song\n")
    assert read_prompts("~/mine.txt").texts == ("Bake bread", "Sing a song")


def test_prompts_themselves_are_a_set() -> None:
    harmful, harmless = [f"Harm {i}?" for i in range(10)], pandas.Series([f"Good {i}?" for i in range(10)])
    found = load_prompts({"harmful": harmful, "harmless": harmless})
    assert (
        sorted(text for split in ("train", "val", "test") for text in found["harmful", split].texts)
        == harmful
    )
    assert found.name == "harmful=given,harmless=given"
