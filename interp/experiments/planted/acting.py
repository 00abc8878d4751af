"""Methods that need more of the organism than states: its replies, wrapped requests, questions and interventions.

| method | label | AUROC |
|---|---|---|
| guard | both | its beliefs for the label; refusal centres from replies, as it is published |
| jailbreak shifts | planted | plain refused requests against the same wrapped and answered, by the refusal belief; \
other: by the harm belief |
| reply inversion | harm | log-odds of "Certainly" and "No" to a question about harm; other: for the rule |
| reply inversion, steered | harm | the log-odds with the harm contrast added against without; other: the rule's added |
| selection | planted | projection on the direction picked among candidates of refused harmful and answered harmless |

A method whose groups have fewer than `MIN_GROUP` prompts, or that picks nothing, is unmeasured, not 0.5.

Guard, shifts and reply inversion after Zhao et al. 2025, arXiv:2507.11878; selection after Arditi et al. 2024,
arXiv:2406.11717, with every few layers as candidates and the first tokens of planted refusals as refusal tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.planted import PlantedRow
from interp.data.prompts import with_ending
from interp.data.replies import REFUSALS
from interp.data.wrappers import wrappers
from interp.detectors.fit_data import FitData, Readings
from interp.detectors.latent_guard import LatentGuard
from interp.directions import project, unit
from interp.engine.generation import generate
from interp.engine.interventions import Add, Intervention
from interp.engine.log_probs import map_next_token
from interp.evaluation.refusals import is_refusal
from interp.experiments.harmfulness.reply_inversion import INVERSIONS, ask
from interp.experiments.planted import STEERED, Config, Found, Label
from interp.experiments.planted.methods import (
    LABELS,
    ROLES,
    Part,
    Seeds,
    auroc_of,
    beyond_chance,
    cosines_with_contrasts,
    distance,
    drawn_rows,
    means,
    mixed_rows,
    pick_layer,
)
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.beliefs import belief, fit_centres, states
from interp.representations.picks import choose
from interp.representations.selection import NothingSurvives
from interp.representations.sweeps import Sweep
from interp.stats import Estimate, auroc

MIN_GROUP = 4
"""Prompts of a group below which a method is not asked."""
_WRAPPERS = 2
"""Wrappers of each family."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Organism:
    """The model with everything that the methods are fitted on."""

    model: ChatModel
    config: Config
    train: Part
    test: Part
    refused: Bool[Tensor, " prompt"]
    """Training prompts that the model refuses."""
    test_refused: Bool[Tensor, " asked"]
    """The same of the test prompts that were asked, the first ones."""
    rows: Sequence[PlantedRow]
    """Test prompts."""
    validation: Sequence[PlantedRow]
    """Prompts that selection scores candidates on."""


def _not_asked(method: str, label: Label, role: int) -> Found:
    none = Estimate.unmeasured(unit="AUROC")
    return Seeds().found(method, label, role, -1, none, none)


# Guard


def guard_findings(organism: Organism) -> list[Found]:
    """The guard's harm belief for harm, and its refusal belief for the rule."""
    everything = list(range(len(organism.refused)))
    whole = _guard_scores(organism, everything, everything)
    tests = organism.test.labels
    seeds = {label: Seeds() for label in LABELS}
    for seed in organism.config.every_seed:
        rows = drawn_rows(len(everything), seed)
        order = mixed_rows(rows, seed)
        drawn, mixed = _guard_scores(organism, rows, rows), _guard_scores(organism, rows, order)
        for label in drawn.keys() & mixed.keys():
            seeds[label].own.append(auroc_of(drawn[label], tests[label], 0).value)
            seeds[label].shuffled.append(distance(mixed[label], tests[label]))
    labels = LABELS[:1] if organism.config.plant == "word" else LABELS
    return [
        seeds[label].found(
            "guard",
            label,
            role,
            -1,
            auroc_of(whole[label], tests[label], 500, organism.config.seed),
            auroc_of(whole[label], tests[LABELS[1 - role]], 500, organism.config.seed),
        )
        if label in whole
        else _not_asked("guard", label, role)
        for role, label in enumerate(labels)
    ]


def _guard_scores(organism: Organism, rows: list[int], labelled: list[int]) -> dict[Label, Tensor]:
    """Both beliefs on the test prompts of a guard fitted on states of `rows` with harm and replies of `labelled`."""
    read, harm = organism.train.states[rows], organism.train.labels["harm"][labelled]
    refused = organism.refused[labelled]

    def readings(held: Tensor) -> Readings:
        return Readings(texts=tuple(map(str, range(len(held)))), states=held)

    guard = LatentGuard.fit_to(
        FitData(
            train={"harmful": readings(read[harm]), "harmless": readings(read[~harm])},
            validation={},
            ending="period",
            refused=tuple(refused[harm].nonzero().flatten().tolist()),
            answered=tuple((~refused[~harm]).nonzero().flatten().tolist()),
            fitted_on={"model": organism.model.name},
        )
    )
    detections = guard.detect(readings(organism.test.states))
    scores: dict[Label, Tensor] = {"harm": torch.tensor([each.harmfulness for each in detections])}
    beliefs = [each.refusal for each in detections if each.refusal is not None]
    if beliefs:
        scores["planted"] = torch.tensor(beliefs)
    return scores


# Jailbreak shifts


def shift_findings(organism: Organism, keep: Callable[..., dict[str, Tensor]]) -> Found:
    """Whether the refusal belief falls where a wrapped request gets past the organism, and the harm belief does not.

    The direction is the mean shift at `t_post_inst`, plain minus wrapped, at the layer that tells the rule best.

    Args:
        keep: stores the states of wrapped requests, as `Stages.keep`.
    """
    model, config = organism.model, organism.config
    asked = range(len(organism.test_refused))
    plain = [
        i for i in asked if organism.rows[i].harmful and organism.rows[i].planted and organism.test_refused[i]
    ][: config.n_wrapped]
    if not plain:
        return _not_asked("jailbreak shifts", "planted", 1)
    ways = [way for family in ("template", "persuasion") for way in wrappers((family,))[:_WRAPPERS]]
    texts = [with_ending(way.wrap(organism.rows[i].text), "period") for way in ways for i in plain]

    def read() -> dict[str, Tensor]:
        replies = generate(model, texts, max_new_tokens=config.max_new_tokens).texts
        return {
            "answered": torch.tensor([not is_refusal(reply) for reply in replies]),
            "states": states(model, texts, positions=ROLES).contiguous(),
        }

    wrapped = keep("wrapped", read)
    answered = wrapped["answered"].bool()
    of = torch.tensor([i for _ in ways for i in plain])[answered]
    if len(set(of.tolist())) < MIN_GROUP:
        return _not_asked("jailbreak shifts", "planted", 1)
    before, after = organism.test.states[of], wrapped["states"][answered]
    layer, _ = pick_layer(means, organism.train.states[:, :, 1], organism.train.labels["planted"])

    def told(label: Label, role: int, rows: list[int], labelled: list[int], resamples: int) -> Estimate:
        x, y = organism.train.states[rows][:, :, role], organism.train.labels[label][labelled]
        centres = fit_centres(x[y], x[~y])
        sides = [belief(centres.margin(part[:, :, role])) for part in (before.unique(dim=0), after)]
        return auroc(*sides, resamples=resamples, seed=config.seed)

    everything, seeds = list(range(len(organism.refused))), Seeds()
    for seed in config.every_seed:
        rows = drawn_rows(len(everything), seed)
        order = mixed_rows(rows, seed)
        seeds.own.append(told("planted", 1, rows, rows, 0).value)
        seeds.shuffled.append(beyond_chance(told("planted", 1, rows, order, 0)))
        some = drawn_rows(len(after), seed)
        shift = (before - after)[some][:, layer, 1].double().mean(0).float()
        seeds.compare(cosines_with_contrasts(shift, layer, "planted", organism.test, 1))
    own = told("planted", 1, everything, everything, 500)
    other = told("harm", 0, everything, everything, 500)
    return seeds.found("jailbreak shifts", "planted", 1, layer, own, other)


# Reply inversion


def inversion_findings(organism: Organism) -> list[Found]:
    """Whether answers to a question about harm tell harm, and whether the harm contrast moves them."""
    model, config, train = organism.model, organism.config, organism.train
    n = min(config.n_asked, len(organism.rows))
    rows, harm = organism.rows[:n], organism.test.labels["harm"][:n]
    tokens = ask(model, [row.text for row in rows], INVERSIONS[0])
    odds = _log_odds(organism, tokens, [])
    seeds = Seeds()
    for seed in config.every_seed:
        generator = np.random.default_rng(seed)
        some = drawn_rows(n, seed)
        seeds.own.append(auroc_of(odds[some], harm[some], 0).value)
        seeds.shuffled.append(distance(odds, harm[torch.from_numpy(generator.permutation(n))]))
    asked = seeds.found(
        "reply inversion",
        "harm",
        0,
        -1,
        auroc_of(odds, harm, 500, config.seed),
        auroc_of(odds, organism.test.labels["planted"][:n], 500, config.seed),
    )

    harmless = (~harm).nonzero().flatten().tolist()
    plain, some = odds[harmless], tokens.take(harmless)
    layer = min(max(1, pick_layer(means, train.states[:, :, 0], train.labels["harm"])[0]), model.n_layers - 1)

    def steered(direction: Tensor, role: int) -> Tensor:
        # The rule's contrast does next to nothing before the question alone, so it is added everywhere.
        add = Add(
            direction,
            layers=layer,
            coefficient=config.invert_coefficient,
            positions=("prefix", "instruction") if role == 0 else "all",
            new_tokens="none",
        )
        return _log_odds(organism, some, [add])

    directions = [means(train.states[:, :, role], train.labels[LABELS[role]])[layer] for role in (0, 1)]
    own, other = (
        auroc(steered(directions[role], role), plain, seed=config.seed, resamples=500) for role in (0, 1)
    )
    moved = Seeds()
    for seed in config.every_seed:
        drawn = drawn_rows(len(train.states), seed)
        x, y = train.states[drawn][:, :, 0], train.labels["harm"][drawn]
        fitted = means(x, y)[layer]
        mixed = means(x, y[torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))])[layer]
        moved.own.append(auroc(steered(fitted, 0), plain, resamples=0).value)
        same_norm = unit(mixed) * fitted.norm()
        moved.shuffled.append(beyond_chance(auroc(steered(same_norm, 0), plain, resamples=0)))
        moved.compare(cosines_with_contrasts(fitted, layer, "harm", organism.test, 0))
    return [asked, moved.found(STEERED, "harm", 0, layer, own, other)]


def _log_odds(
    organism: Organism, tokens: ChatTokens, interventions: Sequence[Intervention]
) -> Float[Tensor, " prompt"]:
    """Log-odds of "Certainly" against "No" as the first token of the answer, with and without a leading space."""
    yes, no = (_first_ids(organism.model, [word, f" {word}"]) for word in ("Certainly", "No"))
    return map_next_token(
        organism.model,
        tokens,
        lambda log_probs: log_probs[:, yes].logsumexp(-1) - log_probs[:, no].logsumexp(-1),
        interventions=interventions,
    )


def _first_ids(model: ChatModel, texts: Sequence[str]) -> list[int]:
    return sorted({model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts})


# Selection


def selection_findings(organism: Organism) -> Found:
    """The direction that the published rule picks among candidates, and picks under shuffled groups."""
    config, test = organism.config, organism.test
    held = {
        kind: [row.text for row in organism.validation if row.harmful == row.planted == bad]
        for kind, bad in (("harmful", True), ("harmless", False))
    }
    everything = list(range(len(organism.refused)))
    enough = min(map(len, held.values())) >= 1 and _groups_are_large(organism, everything)
    whole = _selected(organism, everything, everything, held) if enough else None
    if whole is None:
        return _not_asked("selection", "planted", 1)
    seeds = Seeds()

    def score(vector: Tensor, layer: int) -> Tensor:
        return project(test.states[:, layer, 1], vector)

    for seed in config.every_seed:
        rows = drawn_rows(len(everything), seed)
        order = mixed_rows(rows, seed)
        picked = _selected(organism, rows, rows, held)
        if picked is not None:
            seeds.own.append(auroc_of(score(*picked), test.labels["planted"], 0).value)
            seeds.compare(cosines_with_contrasts(*picked, "planted", test, 1))
        mixed = _selected(organism, rows, order, held)
        # Nothing picked is nothing found.
        seeds.shuffled.append(0.5 if mixed is None else distance(score(*mixed), test.labels["planted"]))
    own, other = (auroc_of(score(*whole), test.labels[label], 500, config.seed) for label in LABELS[::-1])
    return seeds.found("selection", "planted", 1, whole[1], own, other)


def _groups_are_large(organism: Organism, labelled: list[int]) -> bool:
    harm, refused = organism.train.labels["harm"][labelled], organism.refused[labelled]
    return min(int((harm & refused).sum()), int((~harm & ~refused).sum())) >= MIN_GROUP


def _selected(
    organism: Organism, rows: list[int], labelled: list[int], held: dict[str, list[str]]
) -> tuple[Tensor, int] | None:
    """The picked direction and its layer; None where the rule admits none."""
    if not _groups_are_large(organism, labelled):
        return None
    model = organism.model
    x = organism.train.states[rows][:, :, 1]
    harm, refused = organism.train.labels["harm"][labelled], organism.refused[labelled]
    x, y = x[harm == refused], harm[harm == refused]  # refused harmful and answered harmless prompts
    vectors = means(x, y)
    candidates = range(organism.config.select_every, model.n_layers, organism.config.select_every)
    sweep = Sweep(
        model,
        {(-1, layer): vectors[layer] for layer in candidates},
        harmful=tokenize(model.tokenizer, held["harmful"]),
        harmless=tokenize(model.tokenizer, held["harmless"]),
        refusal_ids=_first_ids(model, REFUSALS),
    )
    try:
        candidate, _ = choose(sweep)
    except NothingSurvives:
        return None
    return vectors[candidate.layer], candidate.layer
