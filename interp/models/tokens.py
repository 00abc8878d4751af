"""Chat prompts as tokens with roles: which token ends the instruction, which belong to the template.

    <|im_start|> user \\n  How  do  I  ...  lock  ?   <|im_end|>   \\n   <|im_start|>  assistant   \\n
                          |------ instruction ----|  post_inst[0] [1]       [2]         [3]       [4]
                                                t_inst                                       t_post_inst

`t_inst` is the last token whose characters all belong to the instruction, `t_post_inst` the last token of the prompt,
`post_inst[k]` the template tokens between and including it (Zhao et al. 2025, arXiv:2507.11878, section 2; Arditi et
al. 2024, arXiv:2406.11717, section 2.3, calls them post-instruction tokens). The text is rendered by the tokenizer's
own template and tokenised once; the instruction is found by character offsets, so a template whose first token merges
with the instruction's end, or an instruction that looks like template text, gives the right roles.

In a conversation the instruction is the message of the last user turn; the turns before it are `prefix`. Where the
conversation ends with an assistant's message, the model continues it: that message is the region `prefill`, its last
token `t_prefill`, a thinking block in it the region `thinking`. `t_post_inst` is then the last token before it, and
turns between the last user turn and the end (a tool call and its result) count as post-instruction tokens.

    tokens = tokenize(model.tokenizer, ["How do I pick a lock?"])
    tokens.names(0)      # [(1, '<|im_start|>', 'prefix'), ..., (47, '?', 't_inst'), ...]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os.path import commonprefix

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.models.conversations import (
    Options,
    RenderedPrompt,
    render_conversation,
    render_instructions,
    token_places,
)
from interp.models.prompt_inputs import (
    Column,
    Conversation,
    Message,
    NamedPrompts,
    PromptIdentity,
    gather_prompts,
    is_text,
)
from interp.models.template_warnings import warn_of_template
from interp.models.token_display import SHOWN_ROWS, roles_html

_POST_INST = re.compile(r"post_inst\[(-?\d+)\]")
ROLES = ("t_inst", "t_post_inst", "post_inst", "post_inst[k]", "t_prefill")
"""Names of token roles, each a single token of a prompt (`post_inst`: each template token after the instruction)."""
REGIONS = ("all", "prefix", "instruction", "template", "prefill", "thinking")
"""Names of regions, which are spans of a prompt, for interventions."""

Positions = str | int | Sequence[str | int]
"""One or several of `ROLES` (for interventions also `REGIONS`), or negative indices from the prompt's end."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ChatTokens:
    """Tokenised prompts with the positions of their instructions."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids of each whole prompt, special tokens of the template included."""
    starts: tuple[int, ...]
    """Index of the first token of each instruction."""
    ends: tuple[int, ...]
    """Index of each `t_inst`, plus 1: the first post-instruction token."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    """The tokenizer, for padding and for showing tokens."""
    offsets: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Character span of each token, relative to the start of the instruction; empty when unknown."""
    prefills: tuple[int, ...] = ()
    """Index of the first token of each prefilled assistant turn, or the prompt's length; empty without any prefill."""
    thoughts: tuple[tuple[int, int], ...] = ()
    """Start and end of each thinking block in the prefilled turn; empty where no prompt has one."""
    given: PromptIdentity | None = field(default=None, repr=False)
    """Identity of the prompts, where it is known."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def identity(self) -> PromptIdentity:
        """Ids, categories and hash of the prompts; running numbers and token ids where they are unknown."""
        if self.given is not None:
            return self.given
        return PromptIdentity.numbered([" ".join(map(str, ids)) for ids in self.ids])

    def prefill(self, row: int) -> int:
        """Index of the first token of the prefilled turn of prompt `row`; the prompt's length without one."""
        return self.prefills[row] if self.prefills else len(self.ids[row])

    def _repr_html_(self) -> str:
        """Each prompt's tokens, coloured by role; the first prompts where there are many."""
        return roles_html([self.names(row) for row in range(min(len(self), SHOWN_ROWS))], n_prompts=len(self))

    def __repr__(self) -> str:
        return f"ChatTokens({len(self)} prompts, {self.n_post} template tokens after the instruction)"

    def take(self, rows: Sequence[int]) -> "ChatTokens":
        """The prompts at these rows, in this order."""
        return ChatTokens(
            ids=tuple(self.ids[row] for row in rows),
            starts=tuple(self.starts[row] for row in rows),
            ends=tuple(self.ends[row] for row in rows),
            tokenizer=self.tokenizer,
            offsets=tuple(self.offsets[row] for row in rows) if self.offsets else (),
            prefills=tuple(self.prefills[row] for row in rows) if self.prefills else (),
            thoughts=tuple(self.thoughts[row] for row in rows) if self.thoughts else (),
            given=None if self.given is None else self.given.take(rows),
        )

    def joined(self, other: "ChatTokens") -> "ChatTokens":
        """These prompts followed by those of `other`."""
        return ChatTokens(
            ids=self.ids + other.ids,
            starts=self.starts + other.starts,
            ends=self.ends + other.ends,
            tokenizer=self.tokenizer,
            offsets=self.offsets + other.offsets if self.offsets and other.offsets else (),
            prefills=tuple(part.prefill(row) for part in (self, other) for row in range(len(part))),
            thoughts=tuple(part._thought(row) for part in (self, other) for row in range(len(part))),
            given=None if self.given is None or other.given is None else self.given.joined(other.given),
        )

    def truncated(self) -> "ChatTokens":
        """The prompts cut directly after the instruction, without the template tokens that follow it.

        Source: Zhao et al. 2025, arXiv:2507.11878, table 1 ("without post-instruction tokens").
        """
        return replace(
            self,
            ids=tuple(ids[:end] for ids, end in zip(self.ids, self.ends, strict=True)),
            offsets=tuple(o[:end] for o, end in zip(self.offsets, self.ends, strict=False)),
            prefills=(),
            thoughts=(),
        )

    def narrowed(self, lengths: Sequence[int]) -> "ChatTokens":
        """The same prompts with only the first `lengths` characters of each instruction counted as the instruction.

        The rest of the user's message then has the roles of template tokens: a question appended to a request, for
        instance, is excluded from `instruction` and comes after `t_inst`.

        Raises:
            ValueError: an instruction without a token inside its length, or tokens not made by `tokenize`.
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
        return min(self.prefill(row) - end for row, end in enumerate(self.ends))

    def _thought(self, row: int) -> tuple[int, int]:
        length = len(self.ids[row])
        return self.thoughts[row] if self.thoughts else (length, length)

    @property
    def n_shared(self) -> int:
        """Length of the shared prefix of all prompts, which ends before any instruction begins."""
        first, last = min(self.ids), max(self.ids)
        # commonprefix compares element by element, which is right for token ids.
        return min(len(commonprefix([first, last])), *self.starts)  # noqa: RUF071

    def resolve(self, positions: Positions) -> tuple[list[str], Int[Tensor, "prompt role"]]:
        """Role names and the index of each role's token in each prompt.

        Raises:
            ValueError: unknown role, or an index that some prompt does not have.
        """
        if not isinstance(positions, (str, int, Sequence)):
            raise ValueError(
                f"positions must be a role or a list of roles, such as t_inst; got {positions!r}"
            )
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
        length, end, prefill = len(self.ids[row]), self.ends[row], self.prefill(row)
        if role == "t_inst":
            return end - 1
        if role == "t_post_inst":
            return prefill - 1
        if role == "t_prefill":
            self._need(role, row, prefill < length)
            return length - 1
        if match := _POST_INST.fullmatch(role):
            k, n_post = int(match[1]), prefill - end
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

    def _need(self, name: str, row: int, there: bool) -> None:
        if not there:
            what = "thinking block" if name == "thinking" else "prefilled assistant turn"
            raise ValueError(f"position {name} is not there: prompt {row} has no {what}")

    def mask(self, row: int, positions: Positions) -> Bool[Tensor, " pos"]:
        """A mask over the tokens of prompt `row` that is True at a role or region.

        Raises:
            ValueError: unknown role or region.
        """
        selected = torch.zeros(len(self.ids[row]), dtype=torch.bool)
        start, end, prefill = self.starts[row], self.ends[row], self.prefill(row)
        thinking = slice(*self._thought(row))
        for position in [positions] if isinstance(positions, (str, int)) else positions:
            if position == "all":
                selected[:] = True
            elif position == "prefix":
                selected[:start] = True
            elif position == "instruction":
                selected[start:end] = True
            elif position == "template":
                selected[:start] = True
                selected[end:prefill] = True
            elif position == "post_inst":
                selected[end:prefill] = True
            elif position == "thinking":
                self._need("thinking", row, thinking.start < thinking.stop)
                selected[thinking] = True
            elif position == "prefill":
                self._need("prefill", row, prefill < len(selected))
                selected[prefill : thinking.start] = True
                selected[max(prefill, thinking.stop) :] = True
            else:
                try:
                    selected[self.index(row, str(position))] = True
                except ValueError as error:
                    raise ValueError(f"{error} (or a region: {', '.join(REGIONS)})") from None
        return selected

    def covering(self, row: int, start: int, stop: int) -> Bool[Tensor, " pos"]:
        """A mask over the tokens of prompt `row`, True where they cover any instruction character of start..stop-1.

        Raises:
            ValueError: tokens that were not made by `tokenize`.
        """
        if not self.offsets:
            raise ValueError("these tokens do not know their characters; make them with chat.tokenize")
        covered = torch.tensor([a < stop and b > start for a, b in self.offsets[row]])
        return covered & self.mask(row, "instruction")

    def names(self, row: int) -> list[tuple[int, str, str]]:
        """(id, text, role) of every token of prompt `row`."""
        start, end, prefill = self.starts[row], self.ends[row], self.prefill(row)
        length, thinking = len(self.ids[row]), range(*self._thought(row))
        roles = ["prefix"] * start + ["instruction"] * (end - start)
        roles += [f"post_inst[{k}]" for k in range(prefill - end)]
        roles += ["thinking" if i in thinking else "prefill" for i in range(prefill, length)]
        roles[end - 1] = "t_inst"
        roles[prefill - 1] += " = t_post_inst"
        if prefill < length:
            roles[-1] += " = t_prefill"
        return [
            (i, str(self.tokenizer.decode([i])), role) for i, role in zip(self.ids[row], roles, strict=True)
        ]

    def post_inst_text(self) -> list[str]:
        """Text of each post-instruction token of the first prompt."""
        return [str(self.tokenizer.decode([i])) for i in self.ids[0][self.ends[0] : self.prefill(0)]]


PromptInput = NamedPrompts | ChatTokens | str | Sequence[str] | Conversation | Sequence[Conversation] | Column
"""Every type that is accepted as prompts (see `interp.models.prompt_inputs`)."""


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptInput,
    *,
    system: str | None = None,
    template_options: Options = None,
) -> ChatTokens:
    """Render each prompt with the chat template, tokenise it once, and find the tokens of its last instruction.

    Args:
        prompts: instructions, each a chat of one turn, or conversations.
        system: system message; None uses that of the template and of the conversations.
        template_options: variables of the template, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: no prompts, no chat template, a template that rejects or drops a message, one that hides or rewrites
            the instruction, or an empty instruction.
    """
    if isinstance(prompts, ChatTokens):
        raise ValueError("these prompts are tokens already; give the text they were made of")
    items, identity = gather_prompts(prompts)
    single = {row: item for row, item in enumerate(items) if isinstance(item, str)}
    rendered: dict[int, RenderedPrompt] = {}
    if single:
        done = render_instructions(tokenizer, list(single.values()), system, template_options)
        rendered |= dict(zip(single, done, strict=True))
    for row, item in enumerate(items):
        if not isinstance(item, str):
            messages = _with_system(item, system, row)
            rendered[row] = render_conversation(tokenizer, messages, template_options, row=row)
    return _tokenised(tokenizer, [rendered[row] for row in range(len(items))], identity)


def _with_system(messages: Sequence[Message], system: str | None, row: int) -> Sequence[Message]:
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        raise ValueError(f"prompt {row} has a system message of its own; drop `system`")
    return [{"role": "system", "content": system}, *messages]


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[RenderedPrompt], identity: PromptIdentity
) -> ChatTokens:
    for row, prompt in enumerate(rendered):  # prompts have been checked; a system message has not
        if not is_text(prompt.text):
            raise ValueError(
                f"prompt {row} with its chat template and system message holds half of a character (a lone surrogate); "
                "correct the system message"
            )
    # The template already contains BOS where the model needs one.
    encoded = tokenizer(
        [prompt.text for prompt in rendered], add_special_tokens=False, return_offsets_mapping=True
    )
    places = [
        token_places(offsets, prompt)
        for offsets, prompt in zip(encoded["offset_mapping"], rendered, strict=True)
    ]
    warn_of_template(tokenizer, encoded["input_ids"][0], places)
    return ChatTokens(
        ids=tuple(tuple(ids) for ids in encoded["input_ids"]),
        starts=tuple(place.start for place in places),
        ends=tuple(place.end for place in places),
        tokenizer=tokenizer,
        offsets=tuple(
            tuple((int(a) - prompt.instruction[0], int(b) - prompt.instruction[0]) for a, b in offsets)
            for offsets, prompt in zip(encoded["offset_mapping"], rendered, strict=True)
        ),
        prefills=tuple(place.prefill for place in places),
        thoughts=tuple(place.thinking for place in places),
        given=identity,
    )


def as_tokens(tokenizer: PreTrainedTokenizerBase, prompts: PromptInput) -> ChatTokens:
    """Given tokens unchanged, or prompts tokenised with the default template.

    Raises:
        ValueError: as for `tokenize`.
    """
    return prompts if isinstance(prompts, ChatTokens) else tokenize(tokenizer, prompts)
