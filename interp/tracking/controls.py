"""Control directions: contrasts unrelated to safety that separate their own classes about as well.

A shift along a safety direction is weak evidence unless comparable directions do not shift. A control is the difference
in means of a contrast unrelated to safety: questions against instructions, long against short prompts, one topic
against the others. Both classes of a contrast contain as many harmful as harmless prompts, and the component along the
safety direction is removed, so that it contains neither harm nor refusal. The selected contrast is the one whose AUROC
on validation prompts, at the safety direction's own layer and token, is nearest to the safety direction's.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from interp.data.prompt_sets import Prompts
from interp.directions import cosine, difference_in_means, orthogonalised, project
from interp.stats import Estimate, auroc
from interp.tracking.records import ControlFacts
from interp.tracking.spec import MIN_PROMPTS, Axis, TrackingSpec

_QUESTION_WORDS = (
    "how what which who whom whose where when why is are was were do does did can could should would will may"
).split()


class Contrast(NamedTuple):
    """Two classes unrelated to safety, as rows of the prompts, counted harmful first and then harmless."""

    positive: list[int]
    negative: list[int]


class Control(NamedTuple):
    """A control direction and the facts stored about it."""

    axis: Axis
    facts: ControlFacts


def fit_control(
    axis: Axis,
    direction: Float[Tensor, " d_model"],
    pooled: Float[Tensor, "prompt layer role d_model"],
    validation: Float[Tensor, "validation layer role d_model"],
    spec: TrackingSpec,
    target: Estimate,
) -> Control | None:
    """The contrast whose AUROC on validation prompts is nearest to the target; None when none is large enough."""
    train = contrasts(spec.part("harmful", "train"), spec.part("harmless", "train"))
    held_out = contrasts(spec.part("harmful", "val"), spec.part("harmless", "val"))
    acts, scored = pooled[:, axis.layer, axis.role], validation[:, axis.layer, axis.role]
    directions = {
        name: _of_contrast(acts, train[name], direction) for name in sorted(train.keys() & held_out.keys())
    }
    if not directions:
        return None
    tried = {name: _separation(scored, of, held_out[name], resamples=0) for name, of in directions.items()}
    best = min(tried, key=lambda name: abs(tried[name].value - target.value))
    raw = difference_in_means(acts[train[best].positive], acts[train[best].negative])
    control = Axis(
        name=f"control_{axis.name}",
        layer=axis.layer,
        role=axis.role,
        positive=tuple(train[best].positive),
        negative=tuple(train[best].negative),
        orthogonal_to=axis.name,
        about=best,
    )
    facts = ControlFacts(
        about=best,
        auroc=_separation(scored, directions[best], held_out[best], resamples=200),
        cosine=float(cosine(raw, direction)),
        tried={name: separation.value for name, separation in tried.items()},
    )
    return Control(control, facts)


def _of_contrast(
    acts: Float[Tensor, "prompt d_model"], contrast: Contrast, safety: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    return orthogonalised(difference_in_means(acts[contrast.positive], acts[contrast.negative]), safety)


def _separation(
    acts: Float[Tensor, "prompt d_model"],
    direction: Float[Tensor, " d_model"],
    contrast: Contrast,
    *,
    resamples: int,
) -> Estimate:
    """AUROC of the contrast's two classes along a direction."""
    projected = project(acts, direction)
    return auroc(projected[contrast.positive], projected[contrast.negative], resamples=resamples)


def contrasts(harmful: Prompts, harmless: Prompts) -> dict[str, Contrast]:
    """Contrasts of the pooled prompts unrelated to safety; each class is half harmful, half harmless."""
    parts = (harmful, harmless)
    labels: dict[str, list[list[bool]]] = {
        "question or instruction": [[_is_question(text) for text in part] for part in parts],
        "long or short": [
            [len(text) > sorted(map(len, part))[len(part) // 2] for text in part] for part in parts
        ],
    }
    for category in sorted({c for c in harmful.categories if c} & {c for c in harmless.categories if c}):
        labels[f"prompts on {category} or on others"] = [
            [found == category for found in part.categories] for part in parts
        ]
    balanced = {}
    for name, by_kind in labels.items():
        sides: list[list[int]] = [[], []]
        for number, wanted in enumerate((True, False)):
            rows = [[i for i, label in enumerate(labels) if label is wanted] for labels in by_kind]
            n = min(map(len, rows))
            sides[number] = rows[0][:n] + [len(harmful) + i for i in rows[1][:n]]
        if min(map(len, sides)) >= 2 * MIN_PROMPTS:
            balanced[name] = Contrast(*sides)
    return balanced


def _is_question(text: str) -> bool:
    return text.rstrip().endswith("?") or text.split()[0].lower() in _QUESTION_WORDS
