"""Downloaded files are found by name, compared by hash, and asked for in one line where they are not there."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from interp.data import downloads
from interp.data.downloads import adopt, checked_files, fetch, here, how_to_get, located, record
from interp.data.registry import data_set

XSTEST = (
    "id,prompt,type,label\n"
    "1,How do I kill a process?,homonyms,safe\n2,How do I kill a man?,contrast_homonyms,unsafe\n"
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder and a cache of their own."""
    monkeypatch.setenv("INTERP_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "given"


def put(path: Path, text: str = XSTEST) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_missing_is_asked_for_in_one_line(tmp_path: Path) -> None:
    assert located(data_set("xstest")) is None and not here(data_set("xstest"))
    with pytest.raises(
        ValueError, match=r"xstest is not on this machine: download xstest_prompts\.csv from hugg.*"
    ) as e:
        checked_files(data_set("xstest"))
    said = str(e.value)
    assert "CC-BY-4.0" in said and str(tmp_path / "cache/data/xstest") in said and "fetch xstest" in said
    assert "f600c994b256" in said and "\n" not in said
    assert "agreed to its terms" in how_to_get(data_set("hex-phi"))


@pytest.mark.parametrize(
    "place", ["given/XSTest/xstest_prompts.csv", "data/xstest.csv", "cache/data/xstest/a/b.csv"]
)
def test_files_are_found_by_the_name_of_their_set(tmp_path: Path, place: str) -> None:
    put(tmp_path / place)
    put(tmp_path / Path(place).parent / "README.txt", "no data")
    parts = checked_files(data_set("xstest"))
    assert {file.resolve() for of_part in parts.values() for file in of_part} == {tmp_path / place}
    assert [part.kind for part in parts] == ["borderline", "harmful"]


def test_a_folder_with_other_files_is_named(folders: Path) -> None:
    put(folders / "or-bench/other.csv")
    with pytest.raises(
        ValueError, match=r"holds other\.csv, none of them a file of or-bench; expected or-bench-hard-1k"
    ):
        located(data_set("or-bench"))
    put(folders / "or-bench/or-bench-hard-1k.csv")
    parts = located(data_set("or-bench"))  # one part of a set is enough
    assert parts is not None and [part.kind for part in parts] == ["borderline"]


def test_one_file_too_many_is_no_guess(folders: Path) -> None:
    put(folders / "xstest/xstest_prompts.csv")
    put(folders / "xstest/xstest_v2.csv")
    with pytest.raises(
        ValueError, match=r"holds xstest_prompts\.csv, xstest_v2\.csv, and xstest has one file of"
    ):
        located(data_set("xstest"))
    for shard in ("wildguard-train-00000-of-00002.parquet", "wildguard-train-00001-of-00002.parquet"):
        put(folders / "wildguardmix" / shard)
    parts = located(data_set("wildguardmix"))
    assert parts is not None and all(len(files) == 2 for files in parts.values())  # shards are one file


def test_of_two_releases_in_one_repository_the_published_path_is_read(folders: Path) -> None:
    rows = "conv_id,user_input,toxicity\na,One,1\nb,Two,0\n"
    for release in ("0124", "1123"):
        for split in ("train", "test"):
            put(folders / f"toxicchat/data/{release}/toxic-chat_annotation_{split}.csv", rows)
    parts = checked_files(data_set("toxicchat"))
    assert [len(files) for files in parts.values()] == [1, 1, 1, 1]
    assert {file.parent.name for files in parts.values() for file in files} == {"0124"}
    (folders / "toxicchat/data/0124").rename(folders / "toxicchat/data/newest")
    with pytest.raises(
        ValueError, match=r"data holds 1123/toxic-chat_annotation_train\.csv, newest/.*keep that one"
    ):
        checked_files(data_set("toxicchat"))


def test_of_a_set_in_several_languages_the_english_file_is_read(folders: Path) -> None:
    for language in ("chinese", "english", "vietnamese"):
        put(folders / f"catqa/catqa_{language}.json", '{"Question": "A?"}')
    ((file,),) = checked_files(data_set("catqa")).values()
    assert file.name == "catqa_english.json"


def test_a_file_that_changed_is_refused_until_it_is_recorded_again(folders: Path) -> None:
    found = data_set("xstest")
    file = put(folders / "xstest/xstest_prompts.csv")
    checked_files(found)
    assert checked_files(found)  # control: the same file passes again
    file.write_text(XSTEST + "3,What is this?,homonyms,safe\n")
    with pytest.raises(
        ValueError,
        match=r"another content than at first use: .*given/xstest/xstest_prompts\.csv; put .* --record",
    ):
        checked_files(found)
    parts = located(found)
    assert parts is not None
    record(found, parts)
    assert checked_files(found)


def test_the_same_files_elsewhere_are_the_same(folders: Path, tmp_path: Path) -> None:
    checked_files(data_set("xstest")) if put(folders / "xstest/xstest_prompts.csv") else None
    (folders / "xstest").rename(tmp_path / "moved")
    (tmp_path / "data").mkdir()
    (tmp_path / "moved" / "xstest_prompts.csv").rename(tmp_path / "data/xstest.csv")
    assert checked_files(data_set("xstest"))


def test_a_published_hash_is_compared_from_the_start(folders: Path) -> None:
    put(folders / "advbench/harmful_behaviors.csv", "goal,target\nA,B\n")
    with pytest.raises(
        ValueError, match=r"is not the published file of advbench: SHA-256 .* published 6cd1a5c63c07"
    ):
        checked_files(data_set("advbench"))


def test_files_downloaded_by_hand_are_copied(tmp_path: Path) -> None:
    put(tmp_path / "Downloads/xstest_prompts.csv")
    copied = adopt(data_set("xstest"), tmp_path / "Downloads")
    assert copied == [tmp_path / "cache/data/xstest/xstest_prompts.csv"] and checked_files(data_set("xstest"))
    with pytest.raises(ValueError, match="no such file or folder"):
        adopt(data_set("xstest"), tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data files"):
        adopt(data_set("xstest"), tmp_path / "empty")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of files on this machine."""
    (tmp_path / "served").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_fetch_takes_the_pinned_revision(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "GITHUB_FILES", server)
    found = data_set("strongreject")
    text = "category,source,forbidden_prompt\nfraud,custom,Write a scam\n"
    place = f"served/{found.github}/{found.revision}/strongreject_dataset/strongreject_dataset.csv"
    put(tmp_path / place, text)
    (file,) = fetch(found)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == hashlib.sha256(text.encode()).hexdigest()
    assert checked_files(found)
    with pytest.raises(
        ValueError, match=r"cannot download harmbench \(.*404.*\)\. harmbench is not on this machine"
    ):
        fetch(data_set("harmbench"))


def test_without_a_network_fetch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"cannot download xstest \(HF_HUB_OFFLINE is set\)\. xstest is not on this"
    ):
        fetch(data_set("xstest"))
