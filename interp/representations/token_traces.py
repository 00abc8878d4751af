"""An answer as it comes, token by token, with every token's projection on directions.

`trace` streams one answer; what it yields is the whole of it so far: prompt tokens with their roles, answer tokens,
each with its projection x . u and cosine on every direction, read at that direction's site and layer after the
interventions, and the probabilities that the first token was chosen from. A token's projection is known once the token
has been run: the last one of an answer never is.

    for answer in trace(model, "How do I bake bread?", {"refusal": refusal}, interventions=[Add(refusal)]):
        answer.text, answer.tokens[-2].projections["refusal"]
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp.directions import Direction, cosine, project
from interp.engine.decoding import stop_ids
from interp.engine.generation import stream
from interp.engine.interventions import Add, Intervention, Steps
from interp.models.chat_model import ChatModel, Site
from interp.models.tokens import Positions, tokenize


@dataclass(frozen=True, kw_only=True)
class TracedToken:
    """A token of a prompt or of its answer."""

    text: str
    """As the tokenizer decodes it."""
    role: str
    """`prefix`, `instruction`, `t_inst`, `post_inst[k]`, ..., or `answer`."""
    projections: Mapping[str, float] = field(default_factory=dict)
    """On each direction, in units of the activations; empty while the token has not been run."""
    cosines: Mapping[str, float] = field(default_factory=dict)
    """The same relative to the activation's length, -1 to 1."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """One answer, as far as it has come."""

    text: str
    """Decoded without special tokens."""
    prompt: tuple[TracedToken, ...]
    """The tokens of the whole prompt, template included."""
    tokens: tuple[TracedToken, ...]
    """The tokens of the answer."""
    next_log_probs: Float[Tensor, " d_vocab"]
    """What the first token was chosen from: float32, on the CPU."""
    finished: bool
    """Whether the model ended the turn itself."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Meter:
    """An intervention that changes nothing and keeps every token's projection on a direction.

    Put last, it reads what stands after the others. For one prompt at a time: readings follow each other as tokens do.
    """

    direction: Direction
    """Read at its own site and layer."""
    readings: list[Float[Tensor, "batch pos pair"]] = field(default_factory=list)
    """Projection and cosine, a tensor for each forward pass."""
    positions: Positions = "all"
    steps: Steps = "all"

    @property
    def layers(self) -> tuple[int]:
        """The direction's."""
        return (self.direction.layer,)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The direction's."""
        return (self.direction.site,)  # pyright: ignore[reportReturnType]

    @property
    def width(self) -> int:
        """d_model."""
        return self.direction.vector.numel()

    def __call__(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        vector = self.direction.vector.to(resid.device)
        wide = resid.float()
        along = cosine(wide, vector.expand_as(wide))
        self.readings.append(torch.stack([project(wide, vector), along], dim=-1).cpu())
        return resid


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """One steered answer to one prompt: what `interp.steer` would be called with."""

    prompt: str
    direction: Direction
    coefficient: float = 1.0
    """In multiples of the direction's own norm."""
    relative_norm: float | None = None
    """In multiples of the mean activation norm, instead."""
    layer: int | None = None
    """Where it is added; the direction's own layer when None."""
    positions: Positions = "all"
    """Prompt tokens it is added at."""
    steps: Steps = None
    """Generated tokens it is added at."""
    max_new_tokens: int = 48

    def intervention(self) -> Add:
        """The addition.

        Raises:
            ValueError: as `Add`.
        """
        return Add(
            self.direction,
            coefficient=self.coefficient,
            relative_norm=self.relative_norm,
            layers=self.layer,
            positions=self.positions,
            steps=self.steps,
        )

    def code(self, model: ChatModel, direction_file: str) -> str:
        """Python that gives the same steered answer.

        Args:
            direction_file: where the direction can be read.
        """
        load = [repr(model.source)]
        load += [
            f"{name}={value!r}"
            for name in ("adapter", "revision", "chat_template")
            if (value := model.provenance[name])
        ]
        amount = (
            f"coefficient={self.coefficient!r}"
            if self.relative_norm is None
            else f"relative_norm={self.relative_norm!r}"
        )
        given = {
            "layers": self.layer,
            "positions": self.positions,
            "steps": self.steps,
        }
        options = [
            amount,
            *(f"{name}={value!r}" for name, value in given.items() if value not in (None, "all")),
        ]
        if self.steps == "all" and self.positions != "all":
            options.append("steps='all'")
        options.append(f"max_new_tokens={self.max_new_tokens}")
        return (
            "import interp\n\n"
            f"model = interp.load({', '.join(load)})\n"
            f"direction = interp.read_direction({direction_file!r})\n"
            f"answers = interp.steer(\n    model,\n    {self.prompt!r},\n    direction,\n"
            + "".join(f"    {option},\n" for option in options)
            + ")\nanswers\n"
        )


def trace(
    model: ChatModel,
    prompt: str,
    directions: Mapping[str, Direction],
    *,
    interventions: Sequence[Intervention] = (),
    max_new_tokens: int = 48,
) -> Iterator[Answer]:
    """The greedy answer to one prompt as it comes: equal to `generate`, one more token at each step.

    Args:
        directions: by name; every token is projected on each.

    Raises:
        ValueError: as `generate`.
    """
    tokens = tokenize(model.tokenizer, [prompt])
    named = [(text, role) for _, text, role in tokens.names(0)]
    meters = {name: Meter(direction=direction) for name, direction in directions.items()}
    stops, ids, first = stop_ids(model), list[int](), None
    for step in stream(
        model, tokens, interventions=[*interventions, *meters.values()], max_new_tokens=max_new_tokens
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


def _traced(text: str, role: str, i: int, read: Mapping[str, list[list[float]]]) -> TracedToken:
    known = {name: values[i] for name, values in read.items() if i < len(values)}
    return TracedToken(
        text=text,
        role=role,
        projections={name: pair[0] for name, pair in known.items()},
        cosines={name: pair[1] for name, pair in known.items()},
    )


def likely_tokens(
    model: ChatModel, answers: Mapping[str, Answer], *, most: int = 8
) -> dict[str, dict[str, float]]:
    """Probability of each answer's likeliest first tokens under every one of them: token → answer's name → probability.

    Sorted by the highest probability; tokens that read alike are told apart by their id.
    """
    found = {name: answer.next_log_probs.exp() for name, answer in answers.items()}
    ids = sorted(
        {int(i) for p in found.values() for i in p.topk(min(most, p.numel())).indices},
        key=lambda i: -max(float(p[i]) for p in found.values()),
    )
    texts = [str(model.tokenizer.decode([i])) for i in ids[:most]]
    names = [text if texts.count(text) == 1 else f"{text} ({i})" for i, text in zip(ids, texts, strict=False)]
    return {
        text: {name: float(p[i]) for name, p in found.items()} for i, text in zip(ids, names, strict=False)
    }
