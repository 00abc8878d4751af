"""Chat templates that would fill the memory are refused at once; those of every day are left alone."""

import pytest

from interp.models import template_bounds
from interp.models.template_bounds import LONGEST, check_length, check_template
from interp.models.tokens import tokenize
from tests.conftest import CHATML, make_tokenizer

BOMBS = {
    "a constant": "{{ 'x' * 10000000000 }}",
    "the message": "{{ messages[0].content * 10000000000 }}",
    "a list": "{{ [0] * 10000000000 }}",
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}0123456789{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by +": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "a power": "{{ 9 ** 99999999999 }}",
    "a width": "{{ '%10000000000d' % 3 }}",
    "a filter's width": "{{ 'x' | center(10000000000) }}",
    "a method's width": "{{ 'x'.ljust(10000000000) }}",
    "replacing": "{{ (('x' * 9999) | replace('x', 'y' * 9999)) | replace('y', 'z' * 9999) }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_templates_that_grow_are_refused_at_once(bomb: str) -> None:
    with pytest.raises(ValueError, match=rf"the chat template renders .*the limit is {LONGEST:,}"):
        tokenize(make_tokenizer(BOMBS[bomb] + CHATML), ["Hi"])


ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a macro of itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a condition": "{% for i in range(99999) if range(99999) | list | length < 3 %}{% endfor %}",
    "a filter": "{% set x = range(99999) | list %}{% for i in x %}{% if x | sum == 5 %}{% endif %}{% endfor %}",
    "a search": "{% set x = 'x' * 9999999 %}{% for i in range(99999) %}{% if 'y' in x %}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("loop", ENDLESS)
def test_templates_that_go_on_for_ever_are_refused(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MOST_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"the chat template loops without end, and the limit is 0\.2 s"):
        tokenize(make_tokenizer(ENDLESS[loop] + CHATML), ["Hi"])


def test_loops_are_what_they_were() -> None:
    marks = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}"
    )
    tokenizer = make_tokenizer(marks + CHATML)
    rendered = tokenizer.decode(tokenize(tokenizer, ["Hi"]).ids[0])
    assert str(rendered).startswith("1/1True")
    check_template("{% for i in range(99999) %}{% endfor %}", ())


def test_a_rendered_conversation_has_a_length() -> None:
    check_length("x" * 10)
    with pytest.raises(ValueError, match=r"renders 10,000,001 characters"):
        check_length("x" * (LONGEST + 1))
