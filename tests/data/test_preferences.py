"""Preference sets: splits by prompt, what is refused, the bundled set, and the layouts of files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interp.data.preference_files import load_preferences
from interp.data.preferences import (
    PairLabels,
    PreferencePair,
    PreferenceSet,
    builtin_preferences,
    cut_by_prompt,
)
from interp.data.replies import REFUSALS, STUBS
from interp.models.prompt_inputs import gather_prompts


def pairs(n: int, per_prompt: int = 1) -> list[PreferencePair]:
    return [
        PreferencePair(id=f"{i}-{j}", prompt=f"prompt {i}", chosen=f"good {j}", rejected="bad")
        for i in range(n)
        for j in range(per_prompt)
    ]


def test_the_bundled_set_has_the_same_replies_with_opposite_preference() -> None:
    found = builtin_preferences()
    kinds = Counter(pair.id.split("-")[0] for pair in found)
    assert kinds == {"harmful": 240, "harmless": 240, "answered": 60} and len(found) == 540
    for pair in found:
        if pair.id.startswith("harmful"):
            assert pair.chosen in REFUSALS and pair.rejected in STUBS and pair.labels.harmless == "chosen"
        elif pair.id.startswith("harmless"):
            assert pair.chosen in STUBS and pair.rejected in REFUSALS and pair.labels.helpful == "chosen"
        else:
            assert pair.rejected in REFUSALS and pair.chosen not in STUBS
    assert len({pair.labels.category for pair in found}) == 10
    assert found.hash == builtin_preferences().hash != found.first(3).hash
    assert {split: len(found[split]) for split in found.parts} == {"train": 360, "val": 90, "test": 90}
    assert len(found.preferences("test")) == 90


def test_a_prompt_stays_in_one_split_whatever_the_order() -> None:
    made = pairs(50, per_prompt=3)
    found = cut_by_prompt(made, name="made", seed=3)
    homes = {split: {pair.prompt for pair in found[split]} for split in found.parts}
    assert {split: len(home) for split, home in homes.items()} == {"train": 40, "val": 5, "test": 5}
    assert not homes["train"] & homes["test"] and not homes["val"] & homes["test"]
    again = cut_by_prompt(made[::-1], name="made", seed=3)
    assert {pair.prompt for pair in again["test"]} == homes["test"]
    assert {pair.prompt for pair in cut_by_prompt(made, name="made", seed=4)["test"]} != homes["test"]
    assert len(found.prompts("test")) == 5  # distinct
    with pytest.raises(ValueError, match="2 prompts, too few to cut train, val, test from"):
        cut_by_prompt(pairs(2), name="small")


def test_bad_pairs_are_refused_by_name() -> None:
    good = pairs(2)
    with pytest.raises(ValueError, match="pair x: rejected is empty"):
        PreferencePair(id="x", prompt="p", chosen="c", rejected=" \n")
    with pytest.raises(ValueError, match="pair x: chosen and rejected are identical"):
        PreferencePair(id="x", prompt="p", chosen="c", rejected="c ")
    with pytest.raises(ValueError, match=r"prompt of pair other \(test\) is also that of 0-0 \(train\)"):
        PreferenceSet(name="s", parts={"train": tuple(good), "test": (replace(good[0], id="other"),)})
    with pytest.raises(ValueError, match="the id 0-0 is given twice"):
        PreferenceSet(name="s", parts={"train": (good[0], good[0])})
    with pytest.raises(ValueError, match="has no pairs"):
        PreferenceSet(name="s", parts={"train": ()})
    with pytest.raises(ValueError, match="has no val; it has train"):
        PreferenceSet(name="s", parts={"train": tuple(good)})["val"]
    # Control: the same prompt twice in one split is fine.
    assert len(PreferenceSet(name="s", parts={"train": (*good, replace(good[0], id="other"))})) == 3


HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A joke?\n\nAssistant: "
PKU: dict[str, Any] = {
    "prompt": "How?",
    "response_0": "Like so.",
    "response_1": "I would not.",
    "better_response_id": 0,
    "safer_response_id": 1,
    "response_0_severity_level": 2,
    "response_1_severity_level": 0,
    "response_0_harm_category": {"Privacy": False, "Cybercrime": True},
    "response_1_harm_category": {"Privacy": False, "Cybercrime": False},
}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pairs": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "category": "x"},
        {"prompt": "p", "chosen": "c", "rejected": "r", "labels": PairLabels(category="x")},
    ),
    "messages": (
        {
            "prompt": "p",
            "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}],
            "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}],
            "score_chosen": 8.0,
            "score_rejected": 5.0,
        },
        {"prompt": "p", "chosen": "c", "rejected": "r"},
    ),
    "hh": (
        {"chosen": HH + "Knock.", "rejected": HH + "No."},
        {
            "prompt": "A joke?",
            "chosen": "Knock.",
            "rejected": "No.",
            "before": (("user", "Hi"), ("assistant", "Hello.")),
        },
    ),
    "pku": (
        PKU,
        {
            "prompt": "How?",
            "chosen": "Like so.",
            "rejected": "I would not.",
            "labels": PairLabels("chosen", "rejected", (2, 0), "Cybercrime"),
        },
    ),
    "tldr": (
        {
            "info": {"post": "Long.", "subreddit": "AskReddit", "title": "Why"},
            "summaries": [{"text": " worse"}, {"text": " better"}],
            "choice": 1,
        },
        {
            "prompt": "SUBREDDIT: r/AskReddit\n\nTITLE: Why\n\nPOST: Long.\n\nTL;DR:",
            "chosen": "better",
            "rejected": "worse",
            "labels": PairLabels(category="AskReddit"),
        },
    ),
}


@pytest.mark.parametrize("layout", ROWS)
def test_layouts_are_found_by_their_columns(tmp_path: Path, layout: str) -> None:
    row, expected = ROWS[layout]
    path = tmp_path / f"{layout}.jsonl"
    path.write_text(json.dumps(row))
    (found,) = load_preferences({"train": path})["train"]
    assert found == PreferencePair(id=f"train-{layout}-0", **expected)
    if layout == "pku":
        (safer,) = load_preferences({"train": path}, prefer="harmless")["train"]
        assert safer.chosen == "I would not." and safer.labels == PairLabels(
            "rejected", "chosen", (0, 2), "Cybercrime"
        )
    if layout == "hh":
        whole = load_preferences({"train": path})
        assert gather_prompts(whole.prompts("train")).items[0] == tuple(found.messages)
        with pytest.raises(ValueError, match="has turns before its prompt, and 1 in all"):
            whole.preferences("train")


def test_bad_rows_are_refused_with_file_and_row_or_left_out_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(9)]
    path = tmp_path / "rows.jsonl"
    for bad, message in (
        (
            {"prompt": "p", "chosen": "c", "rejected": "c"},
            "row 10: pair rows-9: chosen and rejected are identical",
        ),
        ({"prompt": "p", "chosen": "", "rejected": "c"}, "row 10: pair rows-9: chosen is empty"),
        ({"prompt": "p", "chosen": "c"}, "row 10: not in the layout pairs"),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 2, "score_rejected": 2},
            "both replies have the score 2",
        ),
    ):
        path.write_text("\n".join(map(json.dumps, [*rows, bad])))
        with pytest.raises(ValueError, match=message):
            load_preferences(path)
        found = load_preferences(path, skip_bad=True)
        assert len(found) == 9 and found.notes[0].startswith(f"1 of 10 rows of {path} left out")
    path.write_text(json.dumps({"question": "p"}))
    with pytest.raises(
        ValueError, match="holds no preference pairs that are known here; it has the columns question"
    ):
        load_preferences(path)
    path.write_text(json.dumps({"chosen": HH + "a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}))
    with pytest.raises(ValueError, match="part before the last reply"):
        load_preferences(path)
