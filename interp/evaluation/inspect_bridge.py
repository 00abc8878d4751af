"""A model provider for Inspect that steers: `interp/smollm2-safe?direction=refusal.safetensors&coefficient=-1`.

    from inspect_ai import eval
    from interp.evaluation.inspect_tasks import refusal

    eval(refusal(prompts="builtin"), model="interp/smollm2-safe?direction=refusal.safetensors&ablate=1")
    eval(task, model=get_model("interp/mine", chat_model=model, interventions=[Ablate(direction)], memoize=False))

After `interp/` stands any name that `interp.load` takes, and after `?` (or as model arguments, `-M name=value`):

| option | meaning |
|---|---|
| `direction` | a direction file, which is added to the residual stream or ablated from it |
| `coefficient` | multiples of its norm that are added; 1 if not given |
| `ablate` | 1: the direction is removed at every layer and token instead |
| `layer`, `positions`, `new_tokens` | where it is added, if not at its own layer and at every token |
| `adapter`, `revision`, `dtype`, `device`, `chat_template` | as for `interp.load` |
| `activations` | a folder: residual streams of every prompt go into files there, whose paths go into the log |

Inspect calls a provider once a sample; calls that come together run as one batch. Activations never go into a log:
Inspect would write tensors as nothing, or as long lists. `import interp.cli.inspect_registry` registers everything
where the entry point of the installed package does not.
"""

import math
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolChoice, ToolInfo

from interp.engine.activation_files import store_activations
from interp.engine.generation import generate as complete
from interp.engine.interventions import Ablate, Add, Intervention
from interp.models.chat_model import ChatModel, load_source
from interp.models.prompt_inputs import Message
from interp.models.sources import ModelSource
from interp.models.tokens import tokenize
from interp.storage.paths import expanded

_SOURCE_OPTIONS = ("adapter", "revision", "dtype", "device", "chat_template")
_STEERING_OPTIONS = ("direction", "coefficient", "ablate", "layer", "positions", "new_tokens")
OPTIONS = (*_STEERING_OPTIONS, *_SOURCE_OPTIONS, "activations")
"""Options of a model's name after `?`, and model arguments."""
_WINDOW = 0.02
"""Seconds in which calls are gathered into one batch."""
_BATCH = 32
_steering: ContextVar[tuple[Intervention, ...]] = ContextVar("steering", default=())


class ModelRequest(NamedTuple):
    """A model's name as Inspect has it, taken apart."""

    name: str
    """What `interp.load` takes."""
    options: dict[str, str]
    """Options after `?`."""


def parse_model_name(name: str) -> ModelRequest:
    """Take a model's name apart into what is loaded and the options after `?`.

    Raises:
        ValueError: no name, an unknown option, or one given twice.
    """
    plain, _, query = name.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    options = dict(pairs)
    if not plain:
        raise ValueError(f"{name!r} names no model; give interp/NAME, such as interp/smollm2-safe")
    if len(options) < len(pairs):
        raise ValueError(f"{name!r} gives an option twice; give each once")
    _check_options(options)
    return ModelRequest(plain, options)


def _check_options(options: Mapping[str, Any]) -> None:
    if unknown := [option for option in options if option not in OPTIONS]:
        raise ValueError(f"unknown option {unknown[0]!r} of an interp model; known: {', '.join(OPTIONS)}")


def steering(options: Mapping[str, Any]) -> tuple[Intervention, ...]:
    """The interventions that options ask for; none without a direction.

    Raises:
        ValueError: an option that needs a direction, no such file, or a value of another type.
    """
    given = {name: options[name] for name in _STEERING_OPTIONS if options.get(name) is not None}
    direction = given.pop("direction", None)
    if direction is None:
        if given:
            raise ValueError(f"{next(iter(given))} steers along a direction; give direction=FILE too")
        return ()
    ablate = str(given.pop("ablate", "0")).lower() in ("1", "true", "yes")
    if ablate and "coefficient" in given:
        raise ValueError("an ablation removes the whole direction; give ablate=1 or coefficient, not both")
    coefficient = _number("coefficient", given.pop("coefficient", 1))
    layer = given.pop("layer", None)
    where: dict[str, Any] = {}
    if "positions" in given:
        where["positions"] = str(given["positions"]).split(",")
    if "new_tokens" in given:
        text = str(given["new_tokens"])
        where["new_tokens"] = int(text) if text.isdigit() else text
    if layer is not None:
        where["layers"] = int(_number("layer", layer))
    if ablate:
        return (Ablate(direction, **where),)
    return (Add(direction, coefficient=coefficient, **where),)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return number


@contextmanager
def steered_by(interventions: Sequence[Intervention]):
    """Inside the context, this task's calls of an interp model have these interventions after the model's own."""
    token = _steering.set((*_steering.get(), *interventions))
    try:
        yield
    finally:
        _steering.reset(token)


@dataclass(frozen=True)
class _Settings:
    """What the calls of one batch have in common."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    interventions: tuple[Intervention, ...]


@dataclass(eq=False)
class _Call:
    messages: list[Message]
    settings: _Settings
    output: ModelOutput | None = None
    error: Exception | None = field(default=None)

    @property
    def done(self) -> bool:
        return self.output is not None or self.error is not None


class InterpAPI(ModelAPI):
    """A model of interp, steered or not, as Inspect's model provider `interp`."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's own default)
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        loaded: ChatModel | None = model_args.pop("chat_model", None)
        given: Sequence[Intervention] = tuple(model_args.pop("interventions", ()))
        name, options = parse_model_name(model_name)
        _check_options(model_args)
        options = {**options, **model_args}
        source = {key: options.get(key) for key in _SOURCE_OPTIONS}
        self.interventions = (*given, *steering(options))
        """Interventions of every call."""
        folder = options.get("activations")
        self.activations = None if folder is None else expanded(str(folder))
        """Folder that activations go to; None where none are kept."""
        self.chat_model = load_source(ModelSource(name, **source)) if loaded is None else loaded
        """The model."""
        self._pending: list[_Call] = []
        self._lock = anyio.Lock()

    def max_connections(self) -> int:
        """Calls at once, which run as one batch."""
        return _BATCH

    def connection_key(self) -> str:
        """Calls of each model have a queue of their own."""
        return self.model_name

    def collapse_system_messages(self) -> bool:
        """Chat templates take one system message."""
        return True

    async def tokenize(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return list(self.chat_model.tokenizer.encode(text, add_special_tokens=False))

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002 (Inspect's signature)
        config: GenerateConfig,
    ) -> ModelOutput:
        """A reply to one conversation.

        Raises:
            ValueError: tools, or a message that is not text.
        """
        if tools:
            raise ValueError(f"interp models call no tools, got {tools[0].name}; take a task without tools")
        settings = _Settings(
            max_tokens=config.max_tokens or 256,
            temperature=float(config.temperature or 0.0),
            top_k=config.top_k,
            top_p=1.0 if config.top_p is None else float(config.top_p),
            seed=config.seed or 0,
            interventions=(*self.interventions, *_steering.get()),
        )
        call = _Call([_message(message) for message in input], settings)
        self._pending.append(call)
        await anyio.sleep(_WINDOW)
        while not call.done:
            async with self._lock:
                if call.done:
                    break
                batch = [c for c in self._pending if c.settings == self._pending[0].settings][:_BATCH]
                self._pending = [c for c in self._pending if c not in batch]
                try:
                    outputs = await anyio.to_thread.run_sync(self._complete, batch)
                except Exception as error:  # every call of the batch has to hear of it
                    for c in batch:
                        c.error = error
                else:
                    for c, output in zip(batch, outputs, strict=True):
                        c.output = output
        if call.error is not None:
            raise call.error
        assert call.output is not None
        return call.output

    def _complete(self, batch: list[_Call]) -> list[ModelOutput]:
        settings, model = batch[0].settings, self.chat_model
        tokens = tokenize(model.tokenizer, [call.messages for call in batch])
        done = complete(
            model,
            tokens,
            interventions=settings.interventions,
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
        )
        where = None
        if self.activations is not None:
            self.activations.mkdir(parents=True, exist_ok=True)
            where = self.activations / f"activations-{uuid.uuid4().hex[:12]}.safetensors"
            store_activations(model, tokens, where)
        outputs = []
        for row, (text, ids, ended) in enumerate(zip(done.texts, done.ids, done.finished, strict=True)):
            asked = len(tokens.ids[row])
            notes: dict[str, Any] = {"interventions": len(settings.interventions)}
            if where is not None:
                notes |= {"activations": str(where.resolve()), "row": row}
            message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
            choice = ChatCompletionChoice(message=message, stop_reason="stop" if ended else "max_tokens")
            usage = ModelUsage(input_tokens=asked, output_tokens=len(ids), total_tokens=asked + len(ids))
            outputs.append(
                ModelOutput(model=self.model_name, choices=[choice], usage=usage, metadata={"interp": notes})
            )
        return outputs


def _message(message: ChatMessage) -> Message:
    if message.role == "tool" or (message.role == "assistant" and message.tool_calls):
        raise ValueError("interp models call no tools; take a task without tools")
    if not isinstance(message.content, str) and any(
        part.type not in ("text", "reasoning") for part in message.content
    ):
        raise ValueError(f"interp models read text alone; a {message.role} message holds something else")
    return {"role": message.role, "content": message.text}


@modelapi(name="interp")
def interp_provider() -> type[ModelAPI]:
    """The provider of models of interp."""
    return InterpAPI


def interp_model(state: TaskState) -> InterpAPI:
    """The provider's object of the model under evaluation.

    Raises:
        ValueError: another provider's model.
    """
    from inspect_ai.model import get_model

    api = get_model().api
    if not isinstance(api, InterpAPI):
        raise ValueError(
            f"this needs the inside of the model, and {state.model} is no model of interp; evaluate interp/NAME"
        )
    return api


@solver
def steered(
    direction: str,
    coefficient: float | int = 1.0,
    ablate: bool = False,
    layer: int | None = None,
) -> Solver:
    """Generate a reply while a direction is added, or ablated.

    Args:
        direction: a direction file.
        coefficient: multiples of its norm that are added.
        ablate: remove the direction at every layer and token instead.
        layer: layer at which it is added; its own when None.
    """
    options: dict[str, Any] = {"direction": direction, "layer": layer}
    options |= {"ablate": "1"} if ablate else {"coefficient": coefficient}
    interventions = steering(options)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        interp_model(state)
        with steered_by(interventions):
            return await generate(state)

    return solve
