"""Chat templates that would fill the memory are refused at once; those of every day are left alone."""

import pytest

from interp.models.template_bounds import LONGEST, check_length
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


def test_a_rendered_conversation_has_a_length() -> None:
    check_length("x" * 10)
    with pytest.raises(ValueError, match=r"renders 10,000,001 characters"):
        check_length("x" * (LONGEST + 1))
