"""What counts as a behaviour: replies to flags."""

from collections.abc import Callable, Sequence
from typing import Any

from interp.evaluation.refusals import is_refusal

Scorer = Callable[[Sequence[str]], list[bool]]
"""Replies → whether each shows the behaviour."""


def scorer(spec: str) -> Scorer:
    """What counts as the behaviour.

    Args:
        spec: `refusal` (the list `arditi`), `compliance` (none of them), `substring:TEXT[|TEXT...]` (any of them,
            case-insensitive), or `classifier:MODEL:LABEL` (a text-classification model, Hub id or folder, gives the
            reply this label).

    Raises:
        ValueError: another specification, or a label that the classifier does not have.
    """
    kind, _, rest = spec.partition(":")
    if spec == "refusal":
        return lambda replies: [is_refusal(text) for text in replies]
    if spec == "compliance":
        return lambda replies: [not is_refusal(text) for text in replies]
    if kind == "substring" and rest:
        wanted = [text.lower() for text in rest.split("|") if text]
        return lambda replies: [any(text in reply.lower() for text in wanted) for reply in replies]
    if kind == "classifier" and rest.count(":"):
        return _classifier(*rest.rsplit(":", 1))
    raise ValueError(
        f"scorer must be refusal, compliance, substring:TEXT or classifier:MODEL:LABEL, got {spec!r}"
    )


def _classifier(name: str, label: str) -> Scorer:
    from transformers import pipeline

    try:
        classify = pipeline("text-classification", model=name, device=-1)
    except OSError as error:
        raise ValueError(
            f"no classifier {name}: {str(error).splitlines()[0]}; give a folder or a Hub id that can be reached"
        ) from error
    labels = list(classify.model.config.id2label.values())  # pyright: ignore[reportOptionalMemberAccess]
    if label not in labels:
        raise ValueError(f"classifier {name} has no label {label!r}; it has {', '.join(map(str, labels))}")

    def score(replies: Sequence[str]) -> list[bool]:
        found: Any = classify([reply or " " for reply in replies], truncation=True, batch_size=16)
        return [row["label"] == label for row in found]

    return score
