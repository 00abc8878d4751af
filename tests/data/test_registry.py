"""The table of named sets says where each comes from; names are read in any spelling, rows by their labels."""

import re

import pytest

from interp.data.registry import belongs, column_of, data_set, known_sets, names_sets

ISSUED = (
    "advbench jailbreakbench harmbench strongreject sorry-bench xstest or-bench malicious-instruct do-not-answer "
    "wildguardmix toxicchat catqa beavertails beavertails-evaluation hex-phi alpaca pku-saferlhf pku-saferlhf-qa "
    "pku-saferlhf-prompt pku-saferlhf-single-dimension hh-rlhf safelawbench"
)


def test_every_set_says_where_it_comes_from_and_under_which_licence() -> None:
    assert set(known_sets()) == set(ISSUED.split())
    for found in known_sets().values():
        assert found.hub or found.github, found.name
        assert found.revision is None or re.fullmatch("[0-9a-f]{40}", found.revision), found.name
        assert re.search(r"\d{4}", found.citation), found.name
        assert found.non_commercial == ("NC" in found.licence), found.name
        assert found.columns.prompt and found.parts
        names = [
            *found.columns.prompt,
            *found.columns.category,
            *(c for p in found.parts for w in p.where for c in w),
        ]
        assert all(name == name.lower() for name in names), found.name
        assert ("not pinned" in found.source) == (found.revision is None)
    assert data_set("alpaca").kinds == ("harmless",)
    assert data_set("jailbreakbench").rows == 200


def test_names_are_read_in_any_spelling() -> None:
    assert data_set("AdvBench") is data_set("advbench")
    assert data_set("HEx PHI").name == data_set("hex_phi").name == "hex-phi"
    with pytest.raises(ValueError, match="unknown data set 'advbunch'; known: advbench, jailbreakbench"):
        data_set("advbunch")


def test_a_file_or_a_folder_is_no_name_of_a_set() -> None:
    assert all(
        map(names_sets, ("advbench", "AdvBench+alpaca", "jailbreakbench:harmful+alpaca", "alpaca+typo"))
    )
    assert not any(map(names_sets, ("builtin", "./advbench", "harmful=advbench", "hub:a/advbench", "my+set")))


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({"prompt": "a", "type": "homonyms", "label": "safe"}, ["borderline"]),
        ({"prompt": "a", "type": "contrast_homonyms", "label": "unsafe"}, ["harmful"]),
        ({"prompt": "a", "type": "homonyms"}, ["borderline"]),  # of releases without labels
        ({"prompt": "a", "Type": "contrast_homonyms"}, ["harmful"]),
    ],
)
def test_rows_belong_to_the_part_that_their_label_names(row: dict[str, str], kinds: list[str]) -> None:
    assert [part.kind for part in data_set("xstest").parts if belongs(row, part.where)] == kinds


def test_columns_are_found_in_any_case() -> None:
    assert column_of({"Index": 1, "Goal": "a"}, ("prompt", "goal")) == "Goal"
    assert column_of({"Index": 1}, ("prompt",)) is None
