"""Chat prompts as tokens with roles: which token ends the instruction, which belong to the template.

    <|im_start|> user \\n  How  do  I  ...  lock  ?   <|im_end|>   \\n   <|im_start|>  assistant   \\n
                          |------ instruction ----|  post_inst[0] [1]       [2]         [3]       [4]
                                                t_inst                                       t_post_inst

`t_inst` is the last token whose characters all belong to the instruction, `t_post_inst` the last token of the prompt,
`post_inst[k]` the template tokens between and including it (Zhao et al. 2025, arXiv:2507.11878, section 2; Arditi et
al. 2024, arXiv:2406.11717, section 2.3, calls them post-instruction tokens). The text is rendered by the tokenizer's
own template and tokenised once; the instruction is found by character offsets, so a template whose first token merges
with the instruction's end, or an instruction that looks like template text, gives the right roles.

    tokens = tokenize(model.tokenizer, ["How do I pick a lock?"])
    tokens.names(0)      # [(1, '<|im_start|>', 'prefix'), ..., (47, '?', 't_inst'), ...]
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.display.token_strips import StripToken, strip_html

# Stands in for the instruction to see what the template puts around it; plain letters, so no template treats it
# specially.
_SENTINEL = "INSTRUCTIONSENTINELQJXKZ"

_POST_INST = re.compile(r"post_inst\[(-?\d+)\]")
ROLES = ("t_inst", "t_post_inst", "post_inst", "post_inst[k]")
"""Role names that stand for single tokens of a prompt (`post_inst`: each template token after the instruction)."""
REGIONS = ("all", "prefix", "instruction", "template")
"""Further names, for interventions: spans of a prompt."""

_ROLE_COLOURS = {
    "prefix": "#E6E6E6",
    "instruction": "#CFE6F7",
    "t_post_inst": "#F5B48A",
    "t_inst": "#7FBCE6",
    "post_inst": "#F8DFC9",
}
_SHOWN_ROWS = 4

Positions = str | int | Sequence[str | int]
"""One or several of `t_inst`, `t_post_inst`, `post_inst`, `post_inst[k]`, or integers from the prompt's end (-1)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ChatTokens:
    """Tokenised prompts and where their instruction is."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids of each whole prompt, special tokens of the template included."""
    starts: tuple[int, ...]
    """Index of the first token of each instruction."""
    ends: tuple[int, ...]
    """Index of each `t_inst`, plus 1: the first post-instruction token."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    """For padding and for showing tokens."""
    offsets: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Characters that each token covers, counted from the instruction's first; empty when not known."""

    def __len__(self) -> int:
        return len(self.ids)

    def _repr_html_(self) -> str:
        """Each prompt's tokens, coloured by role; the first prompts where there are many."""
        legend = [
            StripToken(text=role, colour=colour, hover=role, marked=role in ("t_inst", "t_post_inst"))
            for role, colour in _ROLE_COLOURS.items()
        ]
        strips = [
            strip_html(
                [
                    StripToken(
                        text=text,
                        colour=_ROLE_COLOURS[role.split(" = ")[-1].partition("[")[0]],
                        hover=f"{role}, index {i} ({i - len(self.ids[row])} from the end), id {token}",
                        marked=role.endswith(("t_inst", "t_post_inst")),
                    )
                    for i, (token, text, role) in enumerate(self.names(row))
                ]
            )
            for row in range(min(len(self), _SHOWN_ROWS))
        ]
        more = f"<p>and {len(self) - _SHOWN_ROWS} more</p>" if len(self) > _SHOWN_ROWS else ""
        return (
            f"<div><b>{len(self)} tokenised prompts</b>{strip_html(legend)}{'<hr>'.join(strips)}{more}</div>"
        )

    def __repr__(self) -> str:
        return f"ChatTokens({len(self)} prompts, {self.n_post} template tokens after the instruction)"

    def take(self, rows: Sequence[int]) -> "ChatTokens":
        """These rows, in this order."""
        return ChatTokens(
            ids=tuple(self.ids[row] for row in rows),
            starts=tuple(self.starts[row] for row in rows),
            ends=tuple(self.ends[row] for row in rows),
            tokenizer=self.tokenizer,
            offsets=tuple(self.offsets[row] for row in rows) if self.offsets else (),
        )

    def joined(self, other: "ChatTokens") -> "ChatTokens":
        """These prompts, then the other's."""
        return ChatTokens(
            ids=self.ids + other.ids,
            starts=self.starts + other.starts,
            ends=self.ends + other.ends,
            tokenizer=self.tokenizer,
            offsets=self.offsets + other.offsets if self.offsets and other.offsets else (),
        )

    def truncated(self) -> "ChatTokens":
        """The prompts cut right after the instruction, without what the template puts there.

        Source: Zhao et al. 2025, arXiv:2507.11878, table 1 ("without post-instruction tokens").
        """
        return replace(
            self,
            ids=tuple(ids[:end] for ids, end in zip(self.ids, self.ends, strict=True)),
            offsets=tuple(o[:end] for o, end in zip(self.offsets, self.ends, strict=False)),
        )

    def narrowed(self, lengths: Sequence[int]) -> "ChatTokens":
        """The same prompts with only the first so many characters of each instruction counted as the instruction.

        What follows them in the user's message then has the roles of template tokens: a question appended to a
        request, for instance, is left out of `instruction` and comes after `t_inst`.

        Raises:
            ValueError: no token of an instruction lies within its length, or tokens not made by `tokenize`.
        """
        ends = []
        for row, length in enumerate(lengths):
            inside = self.covering(row, 0, length).nonzero()[:, 0].tolist()
            whole = [i for i in inside if self.offsets[row][i][1] <= length]
            if not whole:
                raise ValueError(f"prompt {row} has no token within its first {length} characters")
            ends.append(whole[-1] + 1)
        return replace(self, ends=tuple(ends))

    @property
    def n_post(self) -> int:
        """Number of post-instruction tokens that every prompt has."""
        return min(len(ids) - end for ids, end in zip(self.ids, self.ends, strict=True))

    @property
    def n_shared(self) -> int:
        """Length of the token prefix that all prompts share, ending before any instruction begins."""
        first, last = min(self.ids), max(self.ids)
        # Item by item, which is what is wanted of token ids.
        return min(len(commonprefix([first, last])), *self.starts)  # noqa: RUF071

    def resolve(self, positions: Positions) -> tuple[list[str], Int[Tensor, "prompt role"]]:
        """Role names and the index of each role's token in each prompt.

        Raises:
            ValueError: unknown role, or an index that some prompt does not have.
        """
        wanted = [positions] if isinstance(positions, (str, int)) else list(positions)
        names: list[str] = []
        for position in wanted:
            names += (
                [f"post_inst[{k}]" for k in range(self.n_post)]
                if position == "post_inst"
                else [str(position)]
            )
        table = [[self.index(row, name) for name in names] for row in range(len(self))]
        return names, torch.tensor(table, dtype=torch.long).reshape(len(self), len(names))

    def index(self, row: int, role: str) -> int:
        """Index of the token with this role in prompt `row`.

        Raises:
            ValueError: unknown role, or out of range.
        """
        length, end = len(self.ids[row]), self.ends[row]
        if role == "t_inst":
            return end - 1
        if role == "t_post_inst":
            return length - 1
        if match := _POST_INST.fullmatch(role):
            k, n_post = int(match[1]), length - end
            if not -n_post <= k < n_post:
                raise ValueError(
                    f"position {role} is out of range: prompt {row} has {n_post} post-instruction tokens"
                )
            return end + k % n_post
        try:
            offset = int(role)
        except ValueError:
            raise ValueError(
                f"unknown position {role!r}; known: {', '.join(ROLES)}, or an integer below 0, from the prompt's end"
            ) from None
        if not -length <= offset < 0:
            raise ValueError(
                f"position {offset} is out of range for prompt {row} of {length} tokens; count from the end: -1"
            )
        return length + offset

    def mask(self, row: int, positions: Positions) -> Bool[Tensor, " pos"]:
        """True at the tokens of prompt `row` that a role or region names.

        Raises:
            ValueError: unknown role or region.
        """
        chosen = torch.zeros(len(self.ids[row]), dtype=torch.bool)
        start, end = self.starts[row], self.ends[row]
        for position in [positions] if isinstance(positions, (str, int)) else positions:
            if position == "all":
                chosen[:] = True
            elif position == "prefix":
                chosen[:start] = True
            elif position == "instruction":
                chosen[start:end] = True
            elif position == "template":
                chosen[:start] = True
                chosen[end:] = True
            elif position == "post_inst":
                chosen[end:] = True
            else:
                try:
                    chosen[self.index(row, str(position))] = True
                except ValueError as error:
                    raise ValueError(f"{error} (or a region: {', '.join(REGIONS)})") from None
        return chosen

    def covering(self, row: int, start: int, stop: int) -> Bool[Tensor, " pos"]:
        """True at the instruction's tokens of prompt `row` that hold any of its characters start..stop-1.

        Raises:
            ValueError: tokens that were not made by `tokenize`.
        """
        if not self.offsets:
            raise ValueError("these tokens do not know their characters; make them with chat.tokenize")
        found = torch.tensor([a < stop and b > start for a, b in self.offsets[row]])
        return found & self.mask(row, "instruction")

    def names(self, row: int) -> list[tuple[int, str, str]]:
        """(id, text, role) of every token of prompt `row`."""
        start, end, length = self.starts[row], self.ends[row], len(self.ids[row])
        roles = ["prefix"] * start + ["instruction"] * (end - start)
        roles += [f"post_inst[{k}]" for k in range(length - end)]
        roles[end - 1] = "t_inst"
        roles[-1] += " = t_post_inst"
        return [
            (i, str(self.tokenizer.decode([i])), role) for i, role in zip(self.ids[row], roles, strict=True)
        ]

    def post_inst_text(self) -> list[str]:
        """Text of each post-instruction token of the first prompt."""
        return [str(self.tokenizer.decode([i])) for i in self.ids[0][self.ends[0] :]]


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    *,
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> ChatTokens:
    """Render each instruction as a one-turn chat, tokenise it once, and find the instruction's tokens.

    Args:
        instructions: the user's messages.
        system: system message; None leaves it to the template.
        template_options: variables of the template, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: no prompts, no chat template, a template that refuses the system message, one that hides or
            rewrites the instruction, or an empty instruction.
    """
    if not instructions:
        raise ValueError("no prompts were given")
    before, after = _frame(tokenizer, system, template_options)
    rendered = [_render(tokenizer, text, system, template_options) for text in instructions]
    spans = [
        _find(text, whole, before, after, row)
        for row, (text, whole) in enumerate(zip(instructions, rendered, strict=True))
    ]
    # The template already holds BOS where the model wants one.
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    bounds = [
        _token_span(offsets, span) for offsets, span in zip(encoded["offset_mapping"], spans, strict=True)
    ]
    return ChatTokens(
        ids=tuple(tuple(ids) for ids in encoded["input_ids"]),
        starts=tuple(start for start, _ in bounds),
        ends=tuple(end for _, end in bounds),
        tokenizer=tokenizer,
        offsets=tuple(
            tuple((int(a) - begin, int(b) - begin) for a, b in offsets)
            for offsets, (begin, _) in zip(encoded["offset_mapping"], spans, strict=True)
        ),
    )


def as_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] | ChatTokens) -> ChatTokens:
    """Tokens as they are, or instructions tokenised with the default template.

    Raises:
        ValueError: a single string, which would be taken letter by letter, or as `tokenize`.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of instructions, got one string; wrap it in a list")
    return prompts if isinstance(prompts, ChatTokens) else tokenize(tokenizer, list(prompts))


def _frame(
    tokenizer: PreTrainedTokenizerBase, system: str | None, options: Mapping[str, Any] | None
) -> tuple[str, str]:
    whole = _render(tokenizer, _SENTINEL, system, options)
    if whole.count(_SENTINEL) != 1:
        raise ValueError(
            f"the chat template shows the instruction {whole.count(_SENTINEL)} times instead of once, so its "
            "tokens have no roles; use a template that passes the user message through"
        )
    # Phi-3's first template skips the system message without a word; one that is its default changes nothing.
    if system and system.strip() not in whole and whole == _render(tokenizer, _SENTINEL, None, options):
        raise ValueError(
            "the chat template leaves out the system message; this template has no system role, drop `system`"
        )
    before, after = whole.split(_SENTINEL)
    return before, after


def _render(
    tokenizer: PreTrainedTokenizerBase, text: str, system: str | None, options: Mapping[str, Any] | None
) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template; set "
            "`model.tokenizer.chat_template` to a Jinja template (for a base model: '{{ messages[0].content }}\\n')"
        )
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **dict(options or {})
        )
    except Exception as error:  # Jinja's own errors and the template's raise_exception
        hint = "; this template has no system role, drop `system`" if system is not None else ""
        raise ValueError(f"the chat template failed: {error}{hint}") from error
    assert isinstance(rendered, str)
    return rendered


def _find(text: str, whole: str, before: str, after: str, row: int) -> tuple[int, int]:
    if not text.strip():
        raise ValueError(f"prompt {row} is empty; remove it")
    # Some templates trim the message (Llama 2 and 3, Gemma; Llama 2 with a system message only its end): white space
    # at its ends is no rewriting.
    for kept in (text, text.strip(), text.rstrip(), text.lstrip()):
        if whole == before + kept + after:
            return len(before), len(before) + len(kept)
    raise ValueError(
        f"the chat template changes the instruction of prompt {row} or puts other text around it than around other "
        "prompts; its tokens have no roles under this template"
    )


def _token_span(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, int]:
    begin, finish = span
    # Tokenizers that trim their offsets (GPT-2) give a token of spaces no width and put it where the spaces end.
    inside = [i for i, (a, b) in enumerate(offsets) if b > begin and (a < finish or b == finish)]
    # A token that straddles the instruction's end carries template characters: it is not t_inst unless it is all
    # that the instruction has.
    whole = [i for i in inside if offsets[i][1] <= finish]
    last = (whole or inside)[-1]
    return inside[0], last + 1


class PaddedBatch(NamedTuple):
    """Left-padded ids with explicit mask and positions; slot = column."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]


def pad_left(rows: Sequence[Sequence[int]], *, pad_id: int, first_position: int = 0) -> PaddedBatch:
    """Left-pad rows to one width; positions count from `first_position` at each row's first real token."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    position_ids = (mask.cumsum(1) - 1).clamp(min=0) + first_position
    return PaddedBatch(ids, mask, position_ids)
