"""An answer as it is generated, token by token, with every token's projections on directions.

`trace` streams one answer and yields all of it so far: prompt tokens with their roles and answer tokens, each with its
projection x . u and its cosine for every direction, read at that direction's site and layer after the interventions,
and the distribution over the first answer token. A token has projections once the model has run on it, which never
happens to the last token of an answer.

    for answer in trace(model, "How do I bake bread?", {"refusal": refusal}, interventions=[Add(refusal)]):
        answer.text, answer.tokens[-2].projections["refusal"]
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.directions import Direction, cosine, project
from interp.engine.applying import layers_of
from interp.engine.decoding import stop_ids
from interp.engine.generation import stream
from interp.engine.interventions import Add, Intervention, NewTokens, intervention_list
from interp.engine.safety_prompts import SafetyPrompt, under
from interp.models.chat_model import ChatModel, Site
from interp.models.prompt_inputs import Conversation
from interp.models.tokens import ChatTokens, Positions, tokenize


@dataclass(frozen=True, kw_only=True)
class TracedToken:
    """A token of a prompt or of its answer, with its projections on directions."""

    text: str
    """The token as decoded by the tokenizer."""
    role: str
    """`prefix`, `instruction`, `t_inst`, `post_inst[k]`, ..., or `answer`."""
    projections: Mapping[str, float] = field(default_factory=dict)
    """Projection on each direction, in units of the activations; empty before the model has run on the token."""
    cosines: Mapping[str, float] = field(default_factory=dict)
    """Cosine with each direction, -1 to 1."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """One answer, as far as it has been generated."""

    text: str
    """The answer so far, decoded without special tokens."""
    prompt: tuple[TracedToken, ...]
    """Tokens of the whole prompt, template included."""
    tokens: tuple[TracedToken, ...]
    """Tokens of the answer."""
    next_log_probs: Float[Tensor, " d_vocab"]
    """Log-probabilities of the first answer token, in nats, float32, on the CPU."""
    finished: bool
    """Whether the model ended the turn itself."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Meter:
    """An intervention that changes nothing and records every token's projection on a direction.

    Placed last, it reads activations after the other interventions. It works for one prompt at a time, since readings
    are recorded in token order.
    """

    direction: Direction
    """The direction to project on, read at its own site and layer."""
    readings: list[Float[Tensor, "batch pos pair"]] = field(default_factory=list)
    """Projection and cosine of every token, one tensor for each forward pass."""
    positions: Positions = "all"
    new_tokens: NewTokens = "all"

    @property
    def layers(self) -> tuple[int]:
        """The direction's layer."""
        return (self.direction.layer,)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The direction's site."""
        return (self.direction.site,)  # pyright: ignore[reportReturnType]

    @property
    def width(self) -> int:
        """Length of the direction, d_model."""
        return self.direction.vector.numel()

    def __call__(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        vector = self.direction.vector.to(resid.device)
        wide = resid.float()
        along = cosine(wide, vector.expand_as(wide))
        self.readings.append(torch.stack([project(wide, vector), along], dim=-1).cpu())
        return resid


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """Settings of one steered answer, the arguments of `interp.steer`."""

    prompt: str | Conversation
    """An instruction, or a conversation, as a list of messages, that ends with it."""
    direction: Direction
    coefficient: float = 1.0
    """Strength in multiples of the direction's own norm."""
    relative_norm: float | None = None
    """Strength in multiples of the mean activation norm, instead of `coefficient`."""
    layer: int | None = None
    """Layer it is added at; the direction's own layer when None."""
    positions: Positions = "all"
    """Prompt tokens it is added at."""
    new_tokens: NewTokens = None
    """Generated tokens it is added at."""
    max_new_tokens: int = 48
    safety_prompt: SafetyPrompt | None = None
    """Stands in the system slot of the prompt; None for none."""

    def intervention(self) -> Add:
        """The activation addition with these settings.

        Raises:
            ValueError: as `Add`.
        """
        return Add(
            self.direction,
            coefficient=self.coefficient,
            relative_norm=self.relative_norm,
            layers=self.layer,
            positions=self.positions,
            new_tokens=self.new_tokens,
        )

    def check(self, model: ChatModel) -> None:
        """Check everything that can be wrong before a forward pass.

        Raises:
            ValueError: a prompt that the chat template rejects, a direction of another width, a layer out of range, a
                position that the prompt does not have, a safety prompt of another model, or as `Add`.
        """
        add = self.intervention()
        self.direction.check_width(model.d_model, model.name)
        layers_of(model, add)
        _worded(model, self.prompt, self.safety_prompt).mask(0, add.positions)

    def code(self, model: ChatModel, direction_file: str, safety_prompt_file: str | None = None) -> str:
        """Python code that reproduces the steered answer; paths below the working directory are relative to it.

        Args:
            direction_file: path of the direction file that the code reads.
            safety_prompt_file: path of the file of the safety prompt, where there is one.
        """
        load = [repr(portable_path(model.source, folder=True))]
        load += [
            f"{name}={_portable(value, folder=name == 'adapter')!r}"
            for name in ("adapter", "revision", "chat_template", "thinking")
            if (value := model.provenance[name]) is not None
        ]
        if model.device.type == "cpu" and model.dtype != torch.float32:
            load.append(f"dtype={str(model.dtype).removeprefix('torch.')!r}")
        if model.precision != "exact":
            load.append(f"precision={model.precision!r}")
        amount = (
            f"coefficient={self.coefficient!r}"
            if self.relative_norm is None
            else f"relative_norm={self.relative_norm!r}"
        )
        given = {
            "layers": self.layer,
            "positions": self.positions,
            "new_tokens": self.new_tokens,
        }
        options = [
            amount,
            *(f"{name}={value!r}" for name, value in given.items() if value not in (None, "all")),
        ]
        if self.new_tokens == "all" and self.positions != "all":
            options.append("new_tokens='all'")
        options.append(f"max_new_tokens={self.max_new_tokens}")
        read = ""
        if self.safety_prompt is not None and safety_prompt_file is not None:
            read = f"safety_prompt = interp.SafetyPrompt.read({portable_path(safety_prompt_file)!r})\n"
            options.append("safety_prompt=safety_prompt")
        return (
            "import interp\n\n"
            f"model = interp.load({', '.join(load)})\n"
            f"direction = interp.read_direction({portable_path(direction_file)!r})\n"
            f"{read}"
            f"answers = interp.steer(\n    model,\n    {_literal(self.prompt)},\n    direction,\n"
            + "".join(f"    {option},\n" for option in options)
            + ")\nanswers\n"
        )


def portable_path(path: str, *, folder: bool = False) -> str:
    """An absolute path below the working directory as a relative POSIX path; anything else unchanged.

    Args:
        folder: begin it with `./`, so that a folder is not taken for a model of the Hub.
    """
    given, here = Path(path), Path.cwd()
    if not given.is_absolute() or not given.is_relative_to(here):
        return path
    relative = given.relative_to(here).as_posix()
    return f"./{relative}" if folder else relative


def _portable(value: Any, *, folder: bool) -> Any:
    return portable_path(value, folder=folder) if isinstance(value, str) else value


def _literal(prompt: str | Conversation) -> str:
    """A prompt as Python code, each message of a conversation on a line."""
    if isinstance(prompt, str):
        return repr(prompt)
    return "[\n" + "".join(f"        {dict(message)!r},\n" for message in prompt) + "    ]"


def trace(
    model: ChatModel,
    prompt: str | Conversation,
    directions: Mapping[str, Direction],
    *,
    interventions: Sequence[Intervention] = (),
    max_new_tokens: int = 48,
    safety_prompt: SafetyPrompt | None = None,
) -> Iterator[Answer]:
    """The greedy answer to one prompt as it is generated: equal to `generate`, one more token per decoding step.

    Args:
        prompt: an instruction, or a conversation that ends with it.
        directions: directions by name; every token is projected on each.
        safety_prompt: stands in the system slot; its embeddings are shown as the words that they stand in place of.

    Raises:
        ValueError: as `generate`.
    """
    named = [(text, role) for _, text, role in _worded(model, prompt, safety_prompt).names(0)]
    meters = {name: Meter(direction=direction) for name, direction in directions.items()}
    stops, ids, first = stop_ids(model), list[int](), None
    with under(model, prompt, safety_prompt) as tokens:
        for step in stream(
            model,
            tokens,
            interventions=[*intervention_list(interventions), *meters.values()],
            max_new_tokens=max_new_tokens,
        ):
            ids += step.ids
            first = step.logits[0].float().log_softmax(-1).cpu() if first is None else first
            read = {name: torch.cat(meter.readings, dim=1)[0].tolist() for name, meter in meters.items()}
            words = [*named, *((str(model.tokenizer.decode([i])), "answer") for i in ids)]
            traced = tuple(_traced(text, role, i, read) for i, (text, role) in enumerate(words))
            yield Answer(
                text=str(model.tokenizer.decode(ids, skip_special_tokens=True)),
                prompt=traced[: len(named)],
                tokens=traced[len(named) :],
                next_log_probs=first,
                finished=ids[-1] in stops,
            )


def _worded(model: ChatModel, prompt: str | Conversation, safety_prompt: SafetyPrompt | None) -> ChatTokens:
    """The prompt's tokens, with the words that a safety prompt stands in place of in the system slot."""
    if safety_prompt is None:
        return tokenize(model.tokenizer, prompt)
    return safety_prompt.slot(model, prompt).tokens


def _traced(text: str, role: str, i: int, read: Mapping[str, list[list[float]]]) -> TracedToken:
    known = {name: values[i] for name, values in read.items() if i < len(values)}
    return TracedToken(
        text=text,
        role=role,
        projections={name: pair[0] for name, pair in known.items()},
        cosines={name: pair[1] for name, pair in known.items()},
    )


def likely_tokens(
    model: ChatModel, answers: Mapping[str, Answer], *, max_tokens: int = 8
) -> dict[str, dict[str, float]]:
    """First-token probabilities of several answers, as token → name of the answer → probability.

    Tokens are the likeliest of each answer, sorted by their highest probability; equal texts are shown with token id.
    """
    probabilities = {name: answer.next_log_probs.exp() for name, answer in answers.items()}
    ids = sorted(
        {int(i) for p in probabilities.values() for i in p.topk(min(max_tokens, p.numel())).indices},
        key=lambda i: -max(float(p[i]) for p in probabilities.values()),
    )
    texts = [str(model.tokenizer.decode([i])) for i in ids[:max_tokens]]
    names = [text if texts.count(text) == 1 else f"{text} ({i})" for i, text in zip(ids, texts, strict=False)]
    return {
        text: {name: float(p[i]) for name, p in probabilities.items()}
        for i, text in zip(ids, names, strict=False)
    }
