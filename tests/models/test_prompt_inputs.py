"""What may stand for prompts, and which identity comes out."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from interp.data.prompts import load_prompts
from interp.models.prompt_inputs import PromptIdentity, gather_prompts
from interp.models.tokens import tokenize
from tests.conftest import make_tokenizer

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("given", "items", "ids"),
    [
        ("Hi", ("Hi",), ("0",)),
        (["Hi", "Ho"], ("Hi", "Ho"), ("0", "1")),
        (("Hi", "Ho"), ("Hi", "Ho"), ("0", "1")),
        (pd.Series(["Hi", "Ho"]), ("Hi", "Ho"), ("0", "1")),
        (pd.Series(["Hi", "Ho"], index=["a", "b"]), ("Hi", "Ho"), ("a", "b")),
        (pd.Series(["Hi", "Ho", "He"])[[2, 0]], ("He", "Hi"), ("2", "0")),
        (np.array(["Hi", "Ho"]), ("Hi", "Ho"), ("0", "1")),
        (np.array("Hi"), ("Hi",), ("0",)),  # no list of letters
        (Dataset.from_dict({"prompt": ["Hi", "Ho"]}), ("Hi", "Ho"), ("0", "1")),
        (Dataset.from_dict({"prompt": ["Hi"], "id": ["q7"]}), ("Hi",), ("q7",)),
        (CHAT, (tuple(CHAT),), ("0",)),
        ([CHAT, "Ho"], (tuple(CHAT), "Ho"), ("0", "1")),
    ],
)
def test_what_stands_for_prompts(given: Any, items: tuple[Any, ...], ids: tuple[str, ...]) -> None:
    gathered = gather_prompts(given)
    assert gathered.items == items
    assert gathered.identity.ids == ids
    assert gathered.identity.categories == (None,) * len(ids)


def test_a_split_keeps_its_ids_categories_and_hash() -> None:
    part = load_prompts("builtin")["harmful", "test"].first(5)
    identity = gather_prompts(part).identity
    assert (identity.ids, identity.categories) == (part.ids, part.categories)
    assert identity.hash == part.hash and identity.source == "builtin/harmful/test"
    assert identity.take([3, 1]).hash == part.take([3, 1]).hash != part.hash
    joined = identity.joined(gather_prompts(["Hi"]).identity)
    assert joined.ids == (*part.ids, "0") and joined.source is None
    assert not any(text in repr(identity) for text in part.texts)  # not shown unasked
    assert tokenize(make_tokenizer(), part).take([2]).identity == identity.take([2])


def test_conversations_differ_by_any_of_their_turns() -> None:
    other = [*CHAT, {"role": "assistant", "content": "Ho"}]
    assert gather_prompts([CHAT]).identity.hash != gather_prompts([other]).identity.hash
    assert gather_prompts([CHAT]).identity.hash != gather_prompts("Hi").identity.hash


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no prompts were given"),
        (pd.Series([], dtype=object), "no prompts were given"),
        (
            load_prompts("builtin"),
            r"holds several lists of prompts; pass one of them, such as prompts\['harmful', 'train'\]",
        ),
        (b"Hi", r"must be text, got bytes; decode them first"),
        ([b"Hi"], "prompt 0 is of type bytes"),
        ({"a": "Hi"}, r"got a dict; pass its values"),
        (CHAT[0], "got a dict; put it in a list of messages"),
        ({"Hi"}, "must have an order, got a set"),
        (
            DatasetDict(train=Dataset.from_dict({"prompt": ["Hi"]})),
            r"several splits \(train\); pass one of them",
        ),
        (Dataset.from_dict({"x": ["Hi"]}), r"the table has no column instruction, .*such as table\['x'\]"),
        (3, "prompts must be a string, a list of strings, .*; got int"),
        (None, "got NoneType"),
        (["Hi", 3], "prompt 1 is of type int"),
        (pd.Series(["Hi", None]), "prompt 1 is of type"),
        (torch.tensor([1, 2]), "got a Tensor; token ids go into ChatTokens"),
        ([{"prompt": "Hi"}], r"which is no message; .*of rows of a table, pass one column"),
        ([[{"role": "human", "content": "Hi"}]], "role 'human'; known: system, user, assistant, tool"),
        ([[{"role": "user", "content": None}]], "content of a user message must be text, got NoneType"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], "must be text, got list"),
    ],
    ids=str,
)
def test_what_is_no_list_of_prompts(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_prompts(given)


def test_an_identity_has_one_of_each_per_prompt() -> None:
    with pytest.raises(ValueError, match="got 1 ids and 1 categories for 2 prompts"):
        PromptIdentity(ids=("0",), categories=(None,), texts=("a", "b"))


def test_a_table_with_a_text_column_is_its_prompts() -> None:
    table = pd.DataFrame({"category": ["a", None], "question": ["Bread?", "Cake?"]}, index=["x", "y"])
    items, identity = gather_prompts(table)
    assert items == ("Bread?", "Cake?") and identity.ids == ("x", "y") and identity.categories == ("a", None)
    assert gather_prompts(table.assign(id=[7, 8])).identity.ids == ("7", "8")
    assert gather_prompts(table.assign(category=[3, 4])).identity.categories == ("3", "4")
    with pytest.raises(
        ValueError, match=r"the table has no column instruction, .*such as table\['category'\]"
    ):
        gather_prompts(table[["category"]])
    twice = pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"])
    with pytest.raises(ValueError, match="the table has the column 'prompt' twice; rename one"):
        gather_prompts(twice)


def test_an_id_of_two_prompts_is_refused_and_a_repeated_index_is_no_id() -> None:
    table = pd.DataFrame({"prompt": ["Bread?", "Cake?", "Tea?"], "id": ["a", "b", "a"]})
    with pytest.raises(
        ValueError, match="id 'a' stands in rows 0 and 2 of the table; give each prompt its own"
    ):
        gather_prompts(table)
    joined = pd.concat([table[["prompt"]], table[["prompt"]]])
    assert gather_prompts(joined).identity.ids == ("0", "1", "2", "3", "4", "5")
    assert gather_prompts(joined["prompt"]).identity.ids == ("0", "1", "2", "3", "4", "5")
