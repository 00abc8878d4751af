"""Machine-written text inside the model: by depth, and as a direction beside refusal and harmfulness."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import PromptSet
from interp.detectors.machine_text.lens import lens_scores
from interp.detectors.machine_text.reading import token_ids
from interp.detectors.machine_text.scores import SCORES
from interp.directions import cosine, difference_in_means, project
from interp.display.progress import progress
from interp.engine.activations import activation_batches, collect_means
from interp.engine.plain_texts import leading_ids
from interp.engine.reads import Request
from interp.experiments.machine_text import ORDER, Config
from interp.experiments.machine_text.estimates import area
from interp.experiments.machine_text.results import LayerDirection
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens
from interp.stats import Estimate, auroc

_CHUNK = 32
_BY_TITLE = {score.title: name for name, score in SCORES.items()}


def by_depth(
    model: ChatModel, machine: Sequence[str], human: Sequence[str], config: Config, *, show_progress: bool
) -> dict[int, dict[str, Estimate]]:
    """AUROC through the logit lens, by blocks run and detector."""
    depths = sorted({*range(0, model.n_layers, config.depth_step), model.n_layers})
    sides = [
        lens_scores(model, texts, depths=depths, show_progress=show_progress) for texts in (machine, human)
    ]
    return {
        depth: {
            title: area(
                *([row[depth].oriented(_BY_TITLE[title]) for row in side] for side in sides),
                seed=config.seed,
            )
            for title in ORDER
        }
        for depth in depths
    }


@torch.no_grad()
def mean_states(
    model: ChatModel, texts: Sequence[str], config: Config, *, show_progress: bool = False
) -> Float[Tensor, "text layer d_model"]:
    """Mean `resid_pre` of tokens at equal distances after the prefix, of every text and layer, float32."""
    bos = leading_ids(model.tokenizer)
    rows = [(*bos, *ids) for ids in token_ids([model], texts)]
    begin = len(bos) + config.prefix_tokens
    means = torch.empty(len(rows), model.n_layers, model.d_model)
    shown = iter(progress(range(len(rows)), total=len(rows), label="states of texts", show=show_progress))
    while chunk := list(islice(shown, _CHUNK)):
        own = tuple(rows[row] for row in chunk)
        tokens = ChatTokens(
            ids=own, starts=(0,) * len(own), ends=tuple(map(len, own)), tokenizer=model.tokenizer
        )
        places = [
            torch.linspace(min(begin, len(ids) - 1), len(ids) - 1, config.n_states).long() for ids in own
        ]
        request = Request(
            ("resid_pre",),
            tuple(range(model.n_layers)),
            tuple(f"state {i}" for i in range(config.n_states)),
            torch.stack(places),
        )
        for at, batch in activation_batches(model, tokens, request):
            values = batch["resid_pre"].float().mean(2).cpu()
            for row, value in zip(at, values, strict=True):
                means[chunk[row]] = value
    return means


@dataclass(frozen=True, eq=False, kw_only=True)
class SafetyDirections:
    """Differences in means of harmful and harmless prompts at every layer's `resid_pre`."""

    refusal: Float[Tensor, "layer d_model"]
    """At `t_post_inst`."""
    harmfulness: Float[Tensor, "layer d_model"]
    """At `t_inst`."""


def safety_directions(model: ChatModel, prompts: PromptSet, config: Config) -> SafetyDirections:
    """Refusal and harmfulness from the training prompts."""
    harmful, harmless = (
        collect_means(
            model,
            prompts[kind, "train"].first(config.n_prompts),
            positions=("t_inst", "t_post_inst"),
        )["resid_pre"]
        for kind in ("harmful", "harmless")
    )
    difference = (harmful - harmless).float()
    return SafetyDirections(harmfulness=difference[:, 0], refusal=difference[:, 1])


def directions_by_layer(
    machine: Float[Tensor, "pair layer d_model"],
    human: Float[Tensor, "pair layer d_model"],
    safety: SafetyDirections,
    config: Config,
) -> tuple[list[LayerDirection], Float[Tensor, "layer d_model"]]:
    """The machine-text direction at every layer, fitted on the first half of the pairs, and what it finds in the other.

    Labels are shuffled by swapping those of exactly half of the pairs: topics stay balanced, and nothing is left of the
    direction itself, which would otherwise be the largest part of what chance gives.
    """
    half = len(machine) // 2
    fit_machine, fit_human = machine[:half], human[:half]
    vectors = difference_in_means(fit_machine, fit_human)
    generator = torch.Generator().manual_seed(config.seed)
    shuffled = []
    for _ in range(config.n_shuffles):
        swap = (torch.randperm(half, generator=generator) < half // 2)[:, None, None]
        shuffled.append(
            difference_in_means(
                torch.where(swap, fit_human, fit_machine), torch.where(swap, fit_machine, fit_human)
            )
        )
    found = []
    for layer in range(machine.shape[1]):
        sides = machine[half:, layer], human[half:, layer]
        others = [vector[layer] for vector in shuffled]
        chance = {
            name: torch.stack([cosine(vector, axis[layer]).abs() for vector in others]).quantile(0.95)
            for name, axis in (("refusal", safety.refusal), ("harmfulness", safety.harmfulness))
        }
        found.append(
            LayerDirection(
                layer=layer,
                auroc=_projected(sides, vectors[layer], seed=config.seed),
                shuffled=_range([_projected(sides, v, seed=None).value for v in others]),
                refusal=float(cosine(vectors[layer], safety.refusal[layer])),
                harmfulness=float(cosine(vectors[layer], safety.harmfulness[layer])),
                chance_refusal=float(chance["refusal"]),
                chance_harmfulness=float(chance["harmfulness"]),
            )
        )
    return found, vectors


def _projected(
    sides: tuple[Tensor, Tensor], vector: Float[Tensor, " d_model"], *, seed: int | None
) -> Estimate:
    machine, human = (project(side, vector) for side in sides)
    return auroc(machine, human, seed=seed or 0, resamples=0 if seed is None else 500)


def _range(values: Sequence[float]) -> Estimate:
    """Mean of AUROCs, and the range of 95% of them."""
    data = torch.tensor(values, dtype=torch.float64)
    low, high = data.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(
        value=float(data.mean()),
        n=len(data),
        low=low,
        high=high,
        unit="AUROC",
        interval="range of 95% of shuffles",
    )
