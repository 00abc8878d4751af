"""Named sets are read in the layouts in which they are published; each test writes a few rows of its own in them."""

import gzip
import json
import logging
import lzma
from pathlib import Path

import pandas
import pytest

from interp.data.named_prompts import named_parts, named_rows
from interp.data.prompts import load_prompts, read_prompts
from tests.data.test_downloads import XSTEST, folders, put

__all__ = ["folders"]

LAYOUTS: dict[str, tuple[str, str, str]] = {
    # set: file, what it holds, the one harmful prompt that is read from it
    "jailbreakbench": (
        "harmful-behaviors.csv",
        "Index,Goal,Target,Behavior,Category,Source\n0,Goal one,Sure,B,Fraud,Original\n",
        "Goal one",
    ),
    "harmbench": (
        "harmbench_behaviors_text_all.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Lyrics,copyright,copyright,,,x_1\nDo harm,standard,illegal,,,x_2\n",
        "Do harm",
    ),
    "strongreject": (
        "strongreject_dataset.csv",
        "category,source,forbidden_prompt\nfraud,custom,A scam\n",
        "A scam",
    ),
    "sorry-bench": (
        "sorry_bench_202406.csv",
        "question_id,category,turns,prompt_style\n1,2,\"['First turn']\",base\n2,2,\"['Mutated']\",slang\n",
        "First turn",
    ),
    "xstest": ("xstest_prompts.csv", XSTEST, "How do I kill a man?"),
    "or-bench": ("or-bench-toxic.csv", "prompt,category\nToxic one,hate\n", "Toxic one"),
    "malicious-instruct": ("MaliciousInstruct.txt", "Steal a thing\n", "Steal a thing"),
    "do-not-answer": (
        "data_en.csv",
        "id,risk_area,types_of_harm,question\n7,R,T,A question?\n",
        "A question?",
    ),
    "toxicchat": (
        "toxic-chat_annotation_test.csv",
        "conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking\n"
        "a,Bad input,,True,1,0\nb,Fine,,True,0,0\n",
        "Bad input",
    ),
    "catqa": ("catqa_english.json", json.dumps({"Fraud": {"Scams": ["A scam?"]}}), "A scam?"),
    "beavertails-evaluation": ("test.json", json.dumps([{"prompt": "Why?", "category": "c"}]), "Why?"),
    "hex-phi": ("category_1.csv", '"One, with a comma"\n', "One, with a comma"),
}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_published_layouts(folders: Path, name: str) -> None:
    file, text, expected = LAYOUTS[name]
    put(folders / name / file, text)
    (part,) = (part for (kind, _), part in named_parts(name).items() if kind == "harmful")
    assert part.texts == (expected,) and part.ids[0].startswith(name)


def test_a_prompt_in_quotes_keeps_its_line_breaks(folders: Path) -> None:
    put(folders / "hex-phi/category_1.csv", '"One\nand two"\n"Three\u2028four"\n')
    (part,) = named_parts("hex-phi").values()
    assert part.texts == ("One\nand two", "Three\u2028four")


def test_parquet_and_compressed_files(folders: Path) -> None:
    rows = [{"prompt": "A", "prompt_harm_label": "harmful"}, {"prompt": "B", "prompt_harm_label": None}]
    place = folders / "wildguardmix/wildguard_test.parquet"
    place.parent.mkdir(parents=True)
    pandas.DataFrame([*rows, {"prompt": "C", "prompt_harm_label": "unharmful"}]).to_parquet(place)
    parts = named_parts("wildguardmix")
    assert {key: part.texts for key, part in parts.items()} == {
        ("harmful", "test"): ("A",),
        ("harmless", "test"): ("C",),  # a row without a label is neither
    }
    lines = "".join(
        json.dumps({"prompt": f"p{i}", "response": "r", "is_safe": True}) + "\n" for i in range(3)
    )
    packed = folders / "beavertails/round0/330k/train.jsonl.xz"
    packed.parent.mkdir(parents=True)
    packed.write_bytes(lzma.compress(lines.encode()))
    assert [row["prompt"] for row in named_rows("beavertails", "train")] == ["p0", "p1", "p2"]
    zipped = folders / "hh-rlhf/train.jsonl.gz"
    zipped.parent.mkdir(parents=True)
    zipped.write_bytes(gzip.compress(b'{"chosen": "a", "rejected": "b"}\n'))
    assert list(named_rows("hh-rlhf")) == [{"chosen": "a", "rejected": "b"}]


def test_alpaca_rows_with_a_further_input_are_left_out(folders: Path) -> None:
    rows = [{"instruction": f"Do {i}.", "input": "x" if i == 1 else "", "output": "o"} for i in range(3)]
    put(folders / "alpaca/alpaca_data.json", json.dumps(rows))
    (part,) = named_parts("alpaca").values()
    assert part.texts == ("Do 0.", "Do 2.") and part.ids == ("alpaca-0", "alpaca-2")


@pytest.fixture
def pair(folders: Path) -> None:
    """JailbreakBench and Alpaca of a few rows."""
    put(
        folders / "jailbreakbench/harmful-behaviors.csv",
        "Goal\n" + "".join(f"Commit crime {i}\n" for i in range(9)),
    )
    put(
        folders / "jailbreakbench/benign-behaviors.csv",
        "Goal\n" + "".join(f"Benign deed {i}\n" for i in range(6)),
    )
    rows = [{"instruction": f"Bake {word}.", "input": ""} for word in ("bread", "rolls", "pies", "a cake")]
    put(folders / "alpaca/alpaca_data.json", json.dumps(rows))


@pytest.mark.usefixtures("pair")
def test_sets_are_combined_by_kind_wherever_prompts_are_loaded(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="interp.data.prompts"):
        both = load_prompts("jailbreakbench:harmful+alpaca")
    assert both.name == "jailbreakbench:harmful+alpaca"
    harmless = {text for split in ("train", "val", "test") for text in both["harmless", split].texts}
    assert harmless == {"Bake bread.", "Bake rolls.", "Bake pies.", "Bake a cake."}
    assert sum(len(both["harmful", split]) for split in ("train", "val", "test")) == 9
    assert "are nearly a training prompt" in caplog.text  # numbers alone tell these crimes apart
    pooled = load_prompts("jailbreakbench+alpaca")
    assert sum(len(pooled["harmless", split]) for split in ("train", "val", "test")) == 10
    named = load_prompts("harmful=jailbreakbench,harmless=alpaca")
    assert named["harmful", "test"].ids == both["harmful", "test"].ids
    assert read_prompts("data:alpaca").ids == tuple(f"alpaca-{i}" for i in range(4))


@pytest.mark.usefixtures("pair")
def test_mistakes_are_named() -> None:
    for source, message in (
        ("alpaca+advbunch", "unknown data set 'advbunch'"),
        ("alpaca+alpaca", "names alpaca twice"),
        ("alpaca:harmful", "alpaca has no harmful prompts; it has harmless"),
        (
            "jailbreakbench:harmful",
            r"has no harmless prompts; add a set that has, such as jailbreakbench:harmful\+alpaca",
        ),
        ("pku-saferlhf+alpaca", "pku-saferlhf has no label of prompts"),
        ("xstest+alpaca", "xstest is not on this machine"),
    ):
        with pytest.raises(ValueError, match=message):
            load_prompts(source)
    with pytest.raises(
        ValueError, match="has harmful and harmless prompts; say which: data:jailbreakbench:harmful"
    ):
        read_prompts("data:jailbreakbench")


def test_a_file_without_the_column_is_named(folders: Path) -> None:
    put(folders / "xstest/xstest_prompts.csv", "id,request\n1,Hi\n")
    with pytest.raises(
        ValueError, match=r"xstest_prompts\.csv has no column prompt, which xstest has .* has id, request"
    ):
        named_parts("xstest")
    put(folders / "xstest/xstest_prompts.csv", "prompt,label\nHi,maybe\n")
    (folders.parent / "cache/data/hashes.json").unlink()
    with pytest.raises(
        ValueError, match=r"no row of .*\.csv is one of xstest, borderline; the columns that say so are"
    ):
        named_parts("xstest")
