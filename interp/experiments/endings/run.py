"""The method: every set under every treatment, in every model.

1. Training and test prompts of each set; the positive control is made of the first one.
2. Each treatment of endings. `swapped` gives every harmful prompt the closing marks of a harmless one and the reverse.
3. Leak of the last token: naive Bayes on its identity, fitted on training prompts (`interp.representations.confounds`).
4. Differences in means of harmful and harmless training prompts at `t_inst` (harmfulness, Zhao et al. 2025,
   arXiv:2507.11878) and `t_post_inst` (refusal, Arditi et al. 2024, arXiv:2406.11717), and their cosine at each layer.
5. The harm belief at `t_inst` (Zhao et al. 2025, equations 2 to 4) as a guard, on the set's own test prompts and on
   those of the other sets. Under `swapped` the guard is fitted on prompts as they are, its test prompts are changed.

Labels here are those of the sets, not what the model refuses, so that no replies are needed.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompt_sets import CLOSING, PAIRED_KINDS, Kind, Prompts, PromptSet, with_ending
from interp.data.prompts import load_prompts
from interp.data.set_checks import endings
from interp.directions import cosine
from interp.experiments.definition import Outcome
from interp.experiments.endings import (
    PLANTED,
    TREATMENTS,
    Cell,
    Config,
    Endings,
    ModelResult,
    Result,
    Treatment,
)
from interp.models.chat_model import ChatModel, load
from interp.models.sources import ModelSource
from interp.representations.beliefs import Centres, belief, fit_centres, states
from interp.representations.confounds import leak_check
from interp.stats import Estimate, auroc
from interp.storage.stages import Stages

_RESAMPLED_AUROC = 500
States = Float[Tensor, "_ layer role d_model"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Training and test prompts of both kinds of one set."""

    train: dict[Kind, Prompts]
    test: dict[Kind, Prompts]

    def treated(self, treatment: Treatment, seed: int) -> "Parts":
        """The same prompts under a treatment of their endings."""
        return Parts(
            train=treated(self.train, treatment, seed=seed), test=treated(self.test, treatment, seed=seed + 1)
        )


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment.

    Raises:
        ValueError: prompts whose endings were changed already, a set given twice, or too few prompts.
    """
    sets = _sets(prompts, config)
    for name in config.models:  # a mistake in a name is found before anything is computed
        ModelSource(name).check()
    results = {}
    for number, source in enumerate((model, *config.models)):
        loaded = load(source) if isinstance(source, str) else source
        cells: dict[str, dict[str, Cell]] = {name: {} for name in sets}
        for treatment in TREATMENTS:
            kept = stages.keep(
                f"model-{number}-{treatment}",
                lambda loaded=loaded, treatment=treatment: measured(loaded, sets, treatment, config, stages),
                dict[str, Cell],
            )
            for name, cell in kept.items():
                cells[name][treatment] = cell
            stages.lap(f"{loaded.name}, {treatment}")
        results[loaded.name] = ModelResult(layer=_middle(loaded), cells=cells)
    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        endings={
            name: Endings(
                harmful=endings(parts.train["harmful"]),
                harmless=endings(parts.train["harmless"]),
                n_train=min(map(len, parts.train.values())),
                n_test=min(map(len, parts.test.values())),
            )
            for name, parts in sets.items()
        },
        models=results,
    )
    return Outcome(result=result)


def _sets(prompts: PromptSet, config: Config) -> dict[str, Parts]:
    """The sets to measure on by name, with the positive control."""
    sets: dict[str, Parts] = {}
    for found in (prompts, *(load_prompts(source, seed=config.seed) for source in config.sets)):
        if found.ending != "as-is":
            raise ValueError(f"this experiment changes endings itself; load {found.name} with ending='as-is'")
        if found.name in sets:
            raise ValueError(f"the set {found.name} is given twice; name each once")
        sets[found.name] = Parts(
            train={kind: found[kind, "train"].first(config.n_train) for kind in PAIRED_KINDS},
            test={kind: found[kind, "test"].first(config.n_test) for kind in PAIRED_KINDS},
        )
    first = next(iter(sets.values()))
    sets[PLANTED] = Parts(train=_planted(first.train), test=_planted(first.test))
    return sets


def _planted(parts: Mapping[Kind, Prompts]) -> dict[Kind, Prompts]:
    return {
        "harmful": parts["harmful"].with_ending("strip"),
        "harmless": parts["harmless"].with_ending("period"),
    }


def treated(parts: Mapping[Kind, Prompts], treatment: Treatment, *, seed: int) -> dict[Kind, Prompts]:
    """Prompts of both kinds under a treatment of their endings."""
    if treatment in ("as-is", "strip", "period"):
        return {kind: part.with_ending(treatment) for kind, part in parts.items()}  # pyright: ignore[reportArgumentType]
    changed: dict[Kind, Prompts] = {}
    for kind, part in parts.items():
        other = parts["harmless" if kind == "harmful" else "harmful"].texts
        if treatment == "question":
            marks = ["?"] * len(part)
        else:
            rng = random.Random(f"{seed}/{kind}")
            marks = [closing(other[rng.randrange(len(other))]) for _ in range(len(part))]
        bare = (with_ending(text, "strip") for text in part.texts)
        texts = tuple(text + mark for text, mark in zip(bare, marks, strict=True))
        changed[kind] = replace(part, texts=texts)
    return changed


def closing(text: str) -> str:
    """The closing marks of a prompt; white space around them does not count."""
    text = text.strip()
    return text[len(text.rstrip(CLOSING)) :].strip()


def measured(
    model: ChatModel, sets: Mapping[str, Parts], treatment: Treatment, config: Config, stages: Stages
) -> dict[str, Cell]:
    """Every set under one treatment."""
    changed = {name: parts.treated(treatment, config.seed) for name, parts in sets.items()}
    train = {name: _states(model, parts.train, stages) for name, parts in changed.items()}
    test = {name: _states(model, parts.test, stages) for name, parts in changed.items()}
    # Fitted and tested on exchanged endings alike, a guard would have nothing to lose.
    fitted = train
    if treatment == "swapped":
        fitted = {name: _states(model, parts.train, stages) for name, parts in sets.items()}
    return {
        name: _cell(
            model,
            fit_parts=sets[name].train if treatment == "swapped" else changed[name].train,
            test_parts=changed[name].test,
            train=train[name],
            fitted=fitted[name],
            tests={name: test[name], **{other: part for other, part in test.items() if other != name}},
            config=config,
            label=f"{name}, {treatment}",
        )
        for name in sets
    }


def _states(model: ChatModel, parts: Mapping[Kind, Prompts], stages: Stages) -> dict[Kind, States]:
    return {
        kind: states(model, part, show_progress=stages.show_progress).float() for kind, part in parts.items()
    }


def _cell(
    model: ChatModel,
    *,
    fit_parts: Mapping[Kind, Prompts],
    test_parts: Mapping[Kind, Prompts],
    train: Mapping[Kind, States],
    fitted: Mapping[Kind, States],
    tests: Mapping[str, Mapping[Kind, States]],
    config: Config,
    label: str,
) -> Cell:
    layer = _middle(model)
    leak = leak_check(
        model,
        train=(fit_parts["harmful"], fit_parts["harmless"]),
        held_out=(test_parts["harmful"], test_parts["harmless"]),
        label=label,
    )
    bad, good = train["harmful"], train["harmless"]
    cosines = _cosines(bad.double().mean(0) - good.double().mean(0))
    guard = fit_centres(fitted["harmful"][:, :, 0], fitted["harmless"][:, :, 0])
    own, *others = tests
    shuffled = [_shuffled(fitted, k, config.seed) for k in range(config.n_shuffles)]
    return Cell(
        leak=leak.last_token,
        embedding=leak.embedding["t_inst"],
        cosine=_cosine_estimate(bad[:, layer], good[:, layer], config),
        cosines=tuple(cosines.tolist()),
        cosine_shuffled=_range(
            [
                float(_cosines((a.double().mean(0) - b.double().mean(0))[[layer]])[0])
                for a, b in (_shuffled(train, k, config.seed) for k in range(config.n_shuffles))
            ]
        ),
        guard=_separation(guard, tests[own]),
        guard_shuffled=_range(
            [
                _separation(fit_centres(a[:, :, 0], b[:, :, 0]), tests[own], resamples=0).value
                for a, b in shuffled
            ]
        ),
        transfer={other: _separation(guard, tests[other]) for other in others},
    )


def _middle(model: ChatModel) -> int:
    """Three fifths of the depth, where `find_directions` reads."""
    return 3 * model.n_layers // 5


def _cosines(differences: Float[Tensor, "layer role d_model"]) -> Float[Tensor, " layer"]:
    return cosine(differences[:, 0].float(), differences[:, 1].float())


def _cosine_estimate(
    bad: Float[Tensor, "harmful role d_model"], good: Float[Tensor, "harmless role d_model"], config: Config
) -> Estimate:
    """The cosine with a percentile-bootstrap interval over prompts, both roles of a prompt drawn together."""

    def value(a: Tensor, b: Tensor) -> float:
        return float(_cosines((a.double().mean(0) - b.double().mean(0))[None])[0])

    generator = torch.Generator().manual_seed(config.seed)
    draws = torch.tensor(
        [
            value(
                bad[torch.randint(len(bad), (len(bad),), generator=generator)],
                good[torch.randint(len(good), (len(good),), generator=generator)],
            )
            for _ in range(config.n_resamples)
        ],
        dtype=torch.float64,
    )
    # Resampled means hold the sampling noise twice, so a percentile interval may leave the estimate out.
    centre, half = value(bad, good), 1.96 * float(draws.std()) if config.n_resamples > 1 else 0.0
    return Estimate(
        value=centre,
        n=len(bad) + len(good),
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        unit="cosine",
        interval="normal, SD by bootstrap",
    )


def _shuffled(parts: Mapping[Kind, States], number: int, seed: int) -> tuple[States, States]:
    """The training prompts in two groups of the same sizes, drawn whatever their kind."""
    whole = torch.cat([parts["harmful"], parts["harmless"]])
    generator = torch.Generator().manual_seed(1000 * seed + number)
    order = torch.randperm(len(whole), generator=generator)
    n = len(parts["harmful"])
    return whole[order[:n]], whole[order[n:]]


def _separation(
    guard: Centres, test: Mapping[Kind, States], *, resamples: int = _RESAMPLED_AUROC
) -> Estimate:
    scores = [belief(guard.margin(test[kind][:, :, 0])).tolist() for kind in PAIRED_KINDS]
    if resamples == 0:
        return auroc(scores[0], scores[1], resamples=1)
    return auroc(scores[0], scores[1], resamples=resamples)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
