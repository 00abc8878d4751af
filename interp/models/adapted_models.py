"""Models beside a loaded one: with an adapter or a sparse change in its weights, for a while or as a copy, and another
checkpoint loaded alike."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from interp.models.adapter_merging import merged_adapter
from interp.models.adapter_tokenizers import adapter_tokenizer
from interp.models.chat_model import ChatModel, load
from interp.models.model_copies import shared_copy
from interp.models.precision import Precision, usable_precision
from interp.models.prompt_frames import dated_like
from interp.models.weight_deltas import WeightDelta, apply_delta, put_changes


@contextmanager
def with_adapter(model: ChatModel, adapter: str) -> Iterator[ChatModel]:
    """Merge a PEFT adapter into the model's weights in memory for the context; `model` is restored afterwards.

    Raises:
        ValueError: no such adapter, an unreadable one, or one made for another model.
    """
    tokenizer = model.tokenizer
    if model.chat_template is None:  # a template that was asked for goes before the adapter's own
        tokenizer = adapter_tokenizer(tokenizer, str(adapter), n_embeddings=model.d_vocab)
    with merged_adapter(model.hf, str(adapter), shown=model.name):
        adapted = ChatModel(
            model.hf,
            tokenizer,
            name=model.name,
            revision=model.revision,
            adapter=str(adapter),
            source=model.source,
            chat_template=model.chat_template,
            date=dated_like(tokenizer, model.date),
            thinking=model.thinking,
            batch_size=model.batch_size,
            precision=model.precision,
        )
        yield adapted


@contextmanager
def with_delta(model: ChatModel, delta: WeightDelta) -> Iterator[ChatModel]:
    """Write a sparse change into the model's weights in memory for the context; `model` is restored afterwards.

    Raises:
        ValueError: a delta of other weights or of another dtype.
        RuntimeError: the weights are not those of before; the code inside the context changed them.
    """
    undo = apply_delta(model.hf, delta, shown=model.name, hash_of=lambda: model.weights_hash)
    try:
        yield model
    finally:
        put_changes(dict(model.hf.named_parameters()), undo)
    if model.weights_hash != delta.base_hash:
        raise RuntimeError(
            f"the weights of {model.name} are not what they were before the delta: code that ran with it changed "
            "weights that it does not; load the model again"
        )


@contextmanager
def with_weights(model: ChatModel, weights: Mapping[str, Tensor]) -> Iterator[ChatModel]:
    """The model with other values of these parameters for the context; its own, bit for bit, afterwards.

    Its own memory is put aside and not written to, so that nothing is computed to bring it back.

    Args:
        weights: new values by name of the parameter, as `hf.named_parameters()` has it.

    Raises:
        ValueError: a name that the model does not have, or a value of another shape.
    """
    parameters = _checked_parameters(model, weights)
    before = {name: parameters[name].data for name in weights}
    try:
        for name, value in weights.items():
            parameters[name].data = value.detach().to(before[name])
        yield model
    finally:
        for name, value in before.items():
            parameters[name].data = value


def copy_with_weights(model: ChatModel, weights: Mapping[str, Tensor]) -> ChatModel:
    """A second model with other values of these parameters, which shares all other tensors with the first.

    Args:
        weights: new values by name of the parameter, as `hf.named_parameters()` has it.

    Raises:
        ValueError: a name that the model does not have, or a value of another shape.
    """
    _checked_parameters(model, weights)
    return _copied(model, weights)


def _checked_parameters(model: ChatModel, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The model's parameters by name, once the new values are known to fit."""
    parameters = dict(model.hf.named_parameters())
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            has = f"{tuple(parameters[name].shape)} there" if name in parameters else "no such weight"
            raise ValueError(f"{name} {tuple(value.shape)} is not of {model.name}, which has {has}")
    return parameters


def copy_with_delta(model: ChatModel, delta: WeightDelta) -> ChatModel:
    """The model with a sparse change of its weights, as a second model that shares all tensors without a change.

    Raises:
        ValueError: a delta of other weights or of another dtype.
    """
    parameters = dict(model.hf.named_parameters())
    copied = _copied(model, {name: parameters[name] for name in delta.changes if name in parameters})
    apply_delta(copied.hf, delta, shown=model.name)
    return copied


def _copied(model: ChatModel, weights: Mapping[str, Tensor]) -> ChatModel:
    """A second model with parameters of its own for these names, ties kept."""
    twin = shared_copy(model.hf)
    named = dict(twin.named_parameters())
    own: dict[int, nn.Parameter] = {}
    for name, value in weights.items():
        weight = named[name]
        own[id(weight)] = nn.Parameter(value.detach().to(weight).clone(), requires_grad=weight.requires_grad)
    for module in twin.modules():
        for name, weight in module._parameters.items():
            if id(weight) in own:
                module._parameters[name] = own[id(weight)]
    return ChatModel(
        twin,
        model.tokenizer,
        name=model.name,
        revision=model.revision,
        adapter=model.adapter,
        source=model.source,
        chat_template=model.chat_template,
        date=model.date,
        thinking=model.thinking,
        batch_size=model.batch_size,
        precision=model.precision,
    )


def load_like(model: ChatModel, name: str) -> ChatModel:
    """Another checkpoint, loaded as the model was: dtype, device, precision, thinking, and the template asked for.

    Raises:
        ValueError: as `load`.
    """
    return load(
        name,
        dtype=model.dtype,
        device=model.device,
        chat_template=model.chat_template,
        date=None if model.chat_template is None else model.date,  # its own template may show none
        thinking=model.thinking,
        precision=model.precision,
    )


def with_precision(model: ChatModel, precision: Precision) -> ChatModel:
    """The model with another precision of its products; weights and lock are shared.

    Raises:
        ValueError: `fast` for a model that is not in float32 on the CPU.
    """
    twin = copy.copy(model)
    twin.precision, twin.precision_cost = usable_precision(precision, model.hf, model.name), None
    return twin
