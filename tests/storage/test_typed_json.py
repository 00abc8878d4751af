"""Errors of other libraries in one line."""

import pytest

from interp.storage.typed_json import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n----\n  cannot  read it\nmore"), "cannot read it"),
        (
            ValueError("Validation error for field 'n':\n    TypeError: got str"),
            "Validation error for field 'n': TypeError: got str",
        ),
        (ValueError("the last one:"), "the last one:"),
        (KeyError("hidden_act"), "'hidden_act' is missing or not known"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_the_first_line_that_says_something(error: Exception, line: str) -> None:
    assert first_line(error) == line
