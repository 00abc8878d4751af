"""Random chat templates and prompts: the roles are right, or the prompt is refused; never silently wrong."""

import string
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from interp.models.tokens import tokenize
from tests.conftest import make_tokenizer

pytestmark = pytest.mark.torture

PIECES = st.sampled_from(
    [
        *(
            "",
            "\n",
            " ",
            "<|im_start|>",
            "<|im_end|>",
            "user",
            "[INST]",
            "[/INST] ",
            "</s>",
            "### ",
            "é",
            "\n\n",
        )
    ]
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
INSTRUCTIONS = st.one_of(TEXT, st.text(string.printable, min_size=1, max_size=20), PIECES.filter(str.strip))


@dataclass(frozen=True)
class Template:
    """What a template puts before and after a message, and what it does to it."""

    before: str
    after: str
    opens: str
    """Added where an answer is asked for."""
    change: str
    """A Jinja filter on the message, or none."""

    @property
    def jinja(self) -> str:
        literal = lambda text: "{{ " + repr(text) + " }}"  # noqa: E731
        content = f"{{{{ m['content']{self.change} }}}}"
        body = f"{literal(self.before)}{content}{literal(self.after)}"
        asked = f"{{% if add_generation_prompt %}}{literal(self.opens)}{{% endif %}}"
        return f"{{% for m in messages %}}{body}{{% endfor %}}{asked}"

    def kept(self, instruction: str) -> str | None:
        """What is left of an instruction; None where the template rewrites it beyond its white space."""
        if self.change == " | trim":
            return instruction.strip()
        return instruction if self.change == "" else None


JOINED = st.lists(PIECES, max_size=4).map("".join)
CHANGES = st.sampled_from(["", "", " | trim", " | upper", "[:3]", " | reverse"])
TEMPLATES = st.builds(Template, JOINED, JOINED, JOINED, CHANGES)


def check(template: Template, instruction: str) -> bool:
    """Whether the prompt was accepted; raises where its roles are wrong."""
    tokenizer = make_tokenizer(template.jinja)
    try:
        tokens = tokenize(tokenizer, [instruction])
    except ValueError as error:
        assert "\n" not in str(error).strip()
        return False
    (ids,) = tokens.ids
    decode = lambda some: tokenizer.decode(some, clean_up_tokenization_spaces=False)  # noqa: E731
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": instruction}], tokenize=False, add_generation_prompt=True
    )
    assert decode(ids) == rendered
    inside = decode(ids[tokens.starts[0] : tokens.ends[0]])
    # What stands inside is the instruction as the template shows it, white space at its ends aside.
    shown = template.kept(instruction)
    if shown is None:
        shown = {" | upper": instruction.upper(), "[:3]": instruction[:3]}.get(
            template.change, instruction[::-1]
        )
        assert shown.strip() == instruction.strip()  # accepted only where nothing is rewritten
    assert inside.strip() == shown.strip()
    assert decode(ids[: tokens.starts[0]]).strip() + inside.strip() == (
        rendered[: rendered.index(template.before) + len(template.before)].strip() + shown.strip()
    )
    assert decode(ids[tokens.ends[0] :]).strip() == (template.after + template.opens).strip()
    return True


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(TEMPLATES, INSTRUCTIONS)
@example(Template("<|im_start|>", "<|im_end|>\n", "", ""), "Hi")
def test_roles_of_random_templates(template: Template, instruction: str) -> None:
    check(template, instruction)


@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEMPLATES, INSTRUCTIONS)
def test_roles_of_many_random_templates(template: Template, instruction: str) -> None:
    check(template, instruction)


def test_both_answers_occur() -> None:
    """A control: what is right is accepted, what is rewritten is refused."""
    assert check(Template("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", ""), "Hi there")
    assert not check(Template("", "", "", " | upper"), "Hi there")
