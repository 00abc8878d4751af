"""How another process loads the model that is loaded here."""

from interp.models.chat_model import ChatModel, load_source
from interp.models.sources import ModelSource
from interp.storage.provenance import IN_MEMORY


def source_of(model: ChatModel) -> ModelSource:
    """The arguments with which `load_source` gives the same model in another process.

    Raises:
        ValueError: a model that did not come from files, or whose weights, template or files have changed since.
    """
    if model.files_hash == IN_MEMORY:
        raise ValueError(
            f"{model.name} is in this process's memory alone, or was changed after it was loaded, so that workers "
            "cannot load it; load it from a folder or by its name, or leave workers out"
        )
    return ModelSource(
        name=model.source,
        adapter=model.adapter,
        revision=model.revision,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        chat_template=model.chat_template,
        date=model.date,
        thinking=model.thinking,
        batch_size=model.batch_size,
        delta=model.delta,
        precision=model.precision,
    )


def load_same(source: ModelSource, weights_hash: str) -> ChatModel:
    """Load a model that must have these weights, and run in the precision that is asked for.

    Raises:
        ValueError: it has others, or runs in another.
    """
    model = load_source(source)
    if model.weights_hash != weights_hash:
        raise ValueError(
            f"the weights of {source.shown} differ between the machines of the cluster; copy the same files to all"
        )
    if source.precision is not None and model.precision != source.precision:
        raise ValueError(
            f"{source.shown} runs with precision={source.precision!r} here and {model.precision!r} in a worker; load "
            "it with precision='exact'"
        )
    return model
