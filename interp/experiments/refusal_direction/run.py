"""Refusal in Language Models Is Mediated by a Single Direction (Arditi et al. 2024, arXiv:2406.11717).

| claim | where | theirs | ours counts as the same when |
|---|---|---|---|
| ablating one direction removes refusal of harmful requests | figure 1 | 0.95 -> 0.01 | apart from random ablation |
| adding it makes harmless requests refused | figure 3 | most, 13 models | apart from random addition |
| subtracting it removes refusal too | figure 23 | 0.95 -> 0.01 | apart from random ablation |
| the rank-one weight edit equals the ablation | section 4 | exact | same logits (a test) |
| ablation costs less cross-entropy than subtraction | table 9 | <= 0.07, up to 0.5 nats | same order |
| a jailbreak lowers the direction's presence | figure 5 | strongly, one suffix | shown for general templates |
| the base model tells the two kinds apart along it | figure 24 | similar split, 4 pairs | shown |

Apart: the 95% intervals do not meet. Rates above are Llama-3 8B's (table 10).

`run` follows the method section by section. Not built: Llama Guard 2 and HarmBench judges (they need models of 8B and
13B), the capability benchmarks and the LoRA baseline of section 4. A substring list says whether a reply sounds like a
refusal, not whether it is harmful.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from interp.data.prompts import HELD_OUT_TEXT, Kind, Prompts, PromptSet, Split, read_answered
from interp.directions import Direction, random_direction
from interp.display.progress import progress
from interp.engine.activations import collect, collect_means
from interp.engine.generation import Completions, generate
from interp.engine.interventions import Ablate, Add, Intervention
from interp.engine.log_probs import next_token_log_probs
from interp.engine.weight_edits import edited_weights
from interp.evaluation.losses import cross_entropy, text_cross_entropy
from interp.evaluation.refusals import find_refusal_tokens, is_refusal, refusal_metric, refusal_rate
from interp.experiments.refusal_direction.mechanism import base_check, mechanism
from interp.experiments.refusal_direction.report import figures, rate_table, report, verdicts
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.picks import choose, pick_stability, scored_candidates
from interp.representations.selection import Rule
from interp.representations.sweeps import Place, Sweep
from interp.storage.direction_files import direction_bytes
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch

logger = logging.getLogger(__name__)

__all__ = ["NAME", "SUMMARY", "Config", "Result", "figures", "rate_table", "report", "run", "verdicts"]

NAME = "refusal-direction"
SUMMARY = "the refusal direction: selection, ablation, addition, weight edit, mechanism (Arditi et al. 2024)"
_LEAST = {"train": 8, "val": 4}
_RULE = ("sweep", "kl_threshold", "induce_threshold", "prune_layer_fraction")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the paper's unless a reason is given."""

    n_train: int = 128
    """Prompts of each kind that directions are fitted on, before filtering (section 2.3)."""
    n_val: int = 32
    """Prompts of each kind that candidates are scored on, before filtering (section 2.3)."""
    n_test: int = 100
    """Prompts of each kind for completions (sections 3.1, 3.2)."""
    sweep: str = "default"
    """`default` leaves out what provably cannot win; `exhaustive` measures every score of every candidate."""
    kl_threshold: float = 0.1
    """Largest KL of a candidate (appendix C)."""
    induce_threshold: float = 0.0
    """Least induce score of a candidate (appendix C)."""
    prune_layer_fraction: float = 0.2
    """Share of the last layers that is left out (appendix C)."""
    refusal_tokens: tuple[int, ...] = ()
    """Token ids that begin refusals (table 4); found on the training prompts when empty."""
    n_random: int = 8
    """Random directions through the same scores: a control the paper lacks."""
    random_every: int = 3
    """Layers between those at which random directions are added."""
    max_new_tokens: int = 32
    """Length of a completion; the paper has 512, but a refusal shows in its first words."""
    instructions: str = ""
    """File or `hub:` set of instructions with answers, for cross-entropy (the paper: Alpaca)."""
    text: str = ""
    """Plain text file for cross-entropy (the paper: the Pile); a bundled page of prose when empty."""
    n_answers: int = 200
    """Rows of `instructions` that are scored."""
    n_mechanism: int = 32
    """Prompts of each kind for the mechanism (section 5; the paper has 128)."""
    suffixes: tuple[str, ...] = ()
    """Adversarial suffixes to compare with (section 5)."""
    base: str = ""
    """Base model for appendix J; `smollm2` for the bundled safe model when empty."""
    seed: int = 0
    """Of random directions, random suffixes and the bootstrap."""

    def __post_init__(self) -> None:
        if self.sweep not in ("default", "exhaustive"):
            raise ValueError(f"sweep must be default or exhaustive, got {self.sweep!r}")
        for name in ("n_train", "n_val", "n_test", "max_new_tokens", "n_mechanism", "random_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def rule(self) -> Rule:
        """The selection rule."""
        return Rule(
            kl_threshold=self.kl_threshold,
            induce_threshold=self.induce_threshold,
            prune_layer_fraction=self.prune_layer_fraction,
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """`mean_diffs` [position, layer, d_model]; per-prompt scores `bypass`, `induce`, `kl` [candidate, prompt], NaN
    where not measured."""
    direction: Direction
    """The picked direction at its natural length."""

    def _files(self) -> dict[str, bytes]:
        return {"refusal.safetensors": direction_bytes(self.direction)}


class _Context(NamedTuple):
    """What every step needs."""

    model: ChatModel
    config: Config
    keep: Callable[[str, Callable[[], Any]], Any]
    show: bool
    picked: str = ""
    """Position and layer of the pick, in the names of the parts that depend on it."""

    def watch(self, items: Iterable[Any], label: str) -> Iterable[Any]:
        listed = list(items)
        return progress(listed, total=len(listed), label=label, show=self.show)


class _Filtered(NamedTuple):
    """Prompts on which the unmodified model does what their kind asks for."""

    prompts: dict[tuple[str, str], Prompts]
    tokens: dict[tuple[str, str], ChatTokens]
    refusal_ids: tuple[int, ...]
    numbers: dict[str, Any]


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Run the experiment.

    Args:
        out: run folder; finished parts are kept beside it until the run is whole, and a run started again continues.

    Raises:
        ValueError: too few prompts that the model refuses or answers.
        NothingSurvives: no candidate passes the selection rule; the message names the nearest misses.
    """
    config = config or Config()
    watch, parts = Stopwatch(), None
    if out is not None:
        # Scores do not depend on the rule that is applied to them: relaxing it goes on from the scores that are there.
        kept = {key: value for key, value in asdict(config).items() if key not in _RULE}
        parts = Parts(out, {"config": kept, "model": model.provenance, "prompts": prompts.provenance})
    context = _Context(model, config, parts.numbers if parts else lambda _, compute: compute(), show_progress)

    filtered = _filter(context, prompts)
    watch.lap("filter")
    candidates, norms = _candidates(context, filtered)
    watch.lap("collect")
    sweep = Sweep(
        model,
        candidates,
        harmful=filtered.tokens["harmful", "val"],
        harmless=filtered.tokens["harmless", "val"],
        refusal_ids=filtered.refusal_ids,
        keep=lambda name, compute, _kind: context.keep(name, compute),
    )
    direction, selection = _select(context, sweep, norms, prompts)
    context = context._replace(picked=f"{direction.position}-{direction.layer}")
    watch.lap("select")
    selection["random_directions"] = _random_controls(context, sweep, direction)
    watch.lap("random directions")
    behaviour, replies = _behaviour(context, prompts, direction)
    watch.lap("generate")
    losses = context.keep(
        f"cross-entropy{context.picked}", lambda: _cross_entropy(context, prompts, direction, replies)
    )
    watch.lap("cross-entropy")
    inside = context.keep(
        f"mechanism{context.picked}", lambda: _mechanism(context, prompts, direction, filtered)
    )
    watch.lap("mechanism")

    numbers = {
        "experiment": NAME,
        **filtered.numbers,
        **selection,
        **behaviour,
        "cross_entropy": losses,
        **inside,
        "seconds": watch.with_total,
        "provenance": provenance(model.provenance, prompts.provenance, config),
    }
    result = Result(numbers=numbers, tensors=_tensors(sweep), direction=direction)
    if out is not None:
        result.save(out)
        assert parts is not None
        parts.discard()
    return result


# Section 2.3 and appendix A: prompts, refusal metric, filtering


def _filter(context: _Context, prompts: PromptSet) -> _Filtered:
    """Keep harmful prompts with refusal metric > 0 and harmless ones with metric < 0, train and val alike."""
    model, config = context.model, context.config
    sizes: dict[Split, int] = {"train": config.n_train, "val": config.n_val}
    kinds: tuple[Kind, ...] = ("harmful", "harmless")
    chosen = {(kind, split): prompts[kind, split].first(n) for kind in kinds for split, n in sizes.items()}
    log_probs = {
        key: next_token_log_probs(model, tokenize(model.tokenizer, part.texts))
        for key, part in chosen.items()
    }
    found = find_refusal_tokens(
        log_probs["harmful", "train"], log_probs["harmless", "train"], model.tokenizer
    )
    ids = config.refusal_tokens or found.ids
    metric = {key: refusal_metric(part, ids) for key, part in log_probs.items()}
    kept: dict[tuple[str, str], Prompts] = {}
    for (kind, split), values in metric.items():
        wanted = values > 0 if kind == "harmful" else values < 0
        rows = wanted.nonzero()[:, 0].tolist()
        if len(rows) < _LEAST[split]:
            does = "refuses" if kind == "harmful" else "answers"
            raise ValueError(
                f"{model.name} {does} only {len(rows)} of {len(values)} {kind} {split} prompts (refusal metric on "
                f"tokens {[str(model.tokenizer.decode([i])) for i in ids]}); at least {_LEAST[split]} are needed: use "
                "an aligned model, other prompts, or name its refusal tokens (refusal_tokens)"
            )
        kept[kind, split] = chosen[kind, split].take(rows)
    tokens = {key: tokenize(model.tokenizer, part.texts) for key, part in kept.items()}
    mass = {kind: log_probs[kind, "train"].double().exp().mean(0) for kind in ("harmful", "harmless")}
    numbers = {
        "refusal_tokens": {
            "ids": list(ids),
            "texts": [str(model.tokenizer.decode([i])) for i in ids],
            "found": not config.refusal_tokens,
            "harmful_mass": [float(mass["harmful"][i]) for i in ids],
            "harmless_mass": [float(mass["harmless"][i]) for i in ids],
        },
        "filtered_counts": {
            f"{kind}_{split}": {"kept": len(kept[kind, split]), "of": len(chosen[kind, split])}
            for kind, split in kept
        },
        "first_tokens": {
            kind: [
                {"token": str(model.tokenizer.decode([int(i)])), "id": int(i), "probability": float(p)}
                for p, i in zip(*values.topk(10), strict=True)
            ]
            for kind, values in mass.items()
        },
        "refusal_metric": {kind: metric[kind, "train"].tolist() for kind in ("harmful", "harmless")},
        "post_inst_tokens": tokens["harmful", "train"].post_inst_text(),
    }
    return _Filtered(kept, tokens, tuple(ids), numbers)


# Section 2.3: difference in means


def _candidates(context: _Context, filtered: _Filtered) -> tuple[dict[Place, Tensor], Tensor]:
    """r = mean(refused harmful) - mean(answered harmless) of resid_pre, at every template token and layer.

    Also the mean activation norm at each, over both kinds.
    """
    tokens = filtered.tokens
    n_post = min(part.n_post for part in tokens.values())
    positions = list(range(-n_post, 0))
    bad, good = (
        collect_means(context.model, tokens[kind, "train"], positions=positions, show_progress=context.show)
        for kind in ("harmful", "harmless")
    )
    difference = bad["resid_pre"] - good["resid_pre"]
    # At layer 0 both means are of one and the same embedding and differ by float64 rounding alone: that is zero, and
    # normalising it would ablate noise (the released code divides by the norm + 1e-8).
    rounding = difference.norm(dim=-1, keepdim=True) < 1e-9 * bad["resid_pre"].norm(dim=-1, keepdim=True)
    difference = torch.where(rounding, 0.0, difference).float()
    norms = (bad.norms["resid_pre"] * bad.n + good.norms["resid_pre"] * good.n) / (bad.n + good.n)
    places = {
        (position, layer): difference[layer, i].clone()
        for i, position in enumerate(positions)
        for layer in range(context.model.n_layers)
    }
    return places, norms


# Section 2.3 and appendix C: scores and selection


def _select(
    context: _Context, sweep: Sweep, norms: Tensor, prompts: PromptSet
) -> tuple[Direction, dict[str, Any]]:
    model, config = context.model, context.config
    chosen, rule = choose(
        sweep, [config.rule], exhaustive=config.sweep == "exhaustive", progress=context.watch
    )
    place = (chosen.position, chosen.layer)
    direction = Direction(
        vector=sweep.directions[place],
        layer=chosen.layer,
        position=str(chosen.position),
        sign="refused harmful - answered harmless",
        mean_activation_norm=norms[chosen.layer, chosen.position].item(),
        provenance=provenance(model.provenance, prompts.provenance, config),
    )
    n = sweep.n_harmful
    stability = pick_stability(
        sweep, rule, seed=config.seed
    )  # completes the contenders before the table is read
    return direction, {
        "selected": chosen.as_dict(),
        "selected_norm": direction.norm,
        "rule": {**asdict(rule), "published": rule.published, "text": rule.text(model.n_layers)},
        "sweep": config.sweep,
        "candidates": [asdict(row) for row in scored_candidates(sweep, rule)],
        "selection_baseline": {
            "harmful": sweep.baseline[:n].mean().item(),
            "harmless": sweep.baseline[n:].mean().item(),
        },
        "pick_stability": [asdict(row) for row in stability],
    }


def _random_controls(context: _Context, sweep: Sweep, direction: Direction) -> dict[str, Any]:
    """Random directions of equal norm through the three scores; induce at every few layers."""
    config, model = context.config, context.model
    layers = list(range(0, model.n_layers, config.random_every))
    norms = {layer: sweep.directions[int(direction.position), layer].norm() for layer in layers}

    def scores(seed: int) -> dict[str, Any]:
        vector = random_direction(direction.vector, seed=seed)
        ablated = sweep.ablate(vector)
        return {
            "seed": seed,
            "bypass": ablated[: sweep.n_harmful].mean().item(),
            "kl": ablated[sweep.n_harmful :].mean().item(),
            "induce": [
                sweep.add(vector / vector.norm() * norms[layer], layer).mean().item() for layer in layers
            ],
        }

    drawn = [
        context.keep(f"random-{i}{context.picked}", lambda i=i: scores(config.seed + i))
        for i in context.watch(range(config.n_random), "random directions")
    ]
    return {"layers": layers, "directions": drawn}


# Sections 3 and 4: completions under the interventions


def _interventions(direction: Direction, seed: int) -> dict[str, list[Intervention]]:
    r, layers = direction.vector, (direction.layer,)
    control = random_direction(r, seed=seed)
    return {
        "baseline": [],
        "ablation": [Ablate(direction=r)],
        "addition_minus": [Add(direction=r, layers=layers, coefficient=-1.0)],
        "orthogonalized": [],
        "random_ablation": [Ablate(direction=control)],
        "addition_plus": [Add(direction=r, layers=layers)],
        "random_addition": [Add(direction=control, layers=layers)],
    }


_ARMS: dict[Kind, tuple[str, ...]] = {
    "harmful": ("baseline", "ablation", "addition_minus", "orthogonalized", "random_ablation"),
    "harmless": ("baseline", "addition_plus", "random_addition"),
}


def _behaviour(
    context: _Context, prompts: PromptSet, direction: Direction
) -> tuple[dict[str, Any], list[list[int]]]:
    """Refusal rates by kind and arm, and the token ids of the unmodified model's replies to harmless prompts."""
    model, config = context.model, context.config
    arms = _interventions(direction, config.seed)
    test = {kind: prompts[kind, "test"].first(config.n_test) for kind in _ARMS}
    tokens = {kind: tokenize(model.tokenizer, part.texts) for kind, part in test.items()}

    def complete(kind: str, arm: str) -> dict[str, Any]:
        with (
            edited_weights(model, Ablate(direction=direction.vector))
            if arm == "orthogonalized"
            else nullcontext()
        ):
            done = generate(
                model, tokens[kind], interventions=arms[arm], max_new_tokens=config.max_new_tokens
            )
        return {
            "texts": list(done.texts),
            "ids": [list(ids) for ids in done.ids],
            "finished": list(done.finished),
        }

    rates: dict[str, Any] = {kind: {} for kind in _ARMS}
    flags: dict[str, Any] = {kind: {} for kind in _ARMS}
    skipped: dict[str, str] = {}
    replies: list[list[int]] = []
    jobs = [(kind, arm) for kind, names in _ARMS.items() for arm in names]
    for kind, arm in context.watch(jobs, "completions"):
        try:
            done = context.keep(
                f"completions-{kind}-{arm}{context.picked}", lambda k=kind, a=arm: complete(k, a)
            )
        except ValueError as error:
            if arm != "orthogonalized":
                raise
            skipped[arm] = str(error)  # a model whose weights cannot express the ablation
            continue
        completions = Completions(
            texts=tuple(done["texts"]),
            ids=tuple(tuple(ids) for ids in done["ids"]),
            finished=tuple(done["finished"]),
        )
        rates[kind][arm] = {
            "12": refusal_rate(completions, "arditi").as_dict(),
            "24": refusal_rate(completions, "zhao").as_dict(),
        }
        flags[kind][arm] = [
            {"id": i, "refused": is_refusal(text)}
            for i, text in zip(test[kind].ids, completions.texts, strict=True)
        ]
        if (kind, arm) == ("harmless", "baseline"):
            replies = done["ids"]
    return {"refusal_rate": rates, "completions": flags, "skipped": skipped}, replies


# Appendix G.3: cross-entropy


def _cross_entropy(
    context: _Context, prompts: PromptSet, direction: Direction, replies: list[list[int]]
) -> dict[str, Any]:
    """Mean cross-entropy per corpus and arm: the model's own replies, instructions with answers, plain text."""
    model, config = context.model, context.config
    arms = {k: v for k, v in _interventions(direction, config.seed).items() if k in _CE_ARMS}
    own = tokenize(model.tokenizer, prompts["harmless", "test"].first(config.n_test).texts)
    corpora: dict[str, Callable[[Sequence[Intervention]], Any]] = {
        "own replies": lambda changes: cross_entropy(model, own, replies, interventions=changes)
    }
    if config.instructions:
        asked, answers = read_answered(config.instructions)
        rows = list(range(min(config.n_answers, len(asked))))
        ids = [list(model.tokenizer(answers[i], add_special_tokens=False)["input_ids"]) for i in rows]  # pyright: ignore[reportArgumentType]
        instructed = tokenize(model.tokenizer, asked.take(rows).texts)
        corpora["instructions"] = lambda changes: cross_entropy(model, instructed, ids, interventions=changes)
    path = Path(config.text) if config.text else HELD_OUT_TEXT
    if not path.is_file():
        raise ValueError(f"no such text file: {path}")
    plain = path.read_text(encoding="utf-8")
    corpora["text"] = lambda changes: text_cross_entropy(model, plain, interventions=changes)
    return {
        name: {arm: score(changes).as_dict() for arm, changes in arms.items()}
        for name, score in corpora.items()
    }


_CE_ARMS = ("baseline", "ablation", "addition_minus", "random_ablation")


# Section 5, appendices I.1 and J: what happens inside


def _mechanism(
    context: _Context, prompts: PromptSet, direction: Direction, filtered: _Filtered
) -> dict[str, Any]:
    model, config = context.model, context.config
    n, found = config.n_mechanism, {}
    # Prompts that the direction was not fitted on come first.
    refused = (*filtered.prompts["harmful", "val"].texts, *filtered.prompts["harmful", "train"].texts)[:n]
    answered = (*filtered.prompts["harmless", "val"].texts, *filtered.prompts["harmless", "train"].texts)[:n]
    found["mechanism"] = mechanism(
        model,
        direction.vector,
        refused=refused,
        answered=answered,
        refusal_ids=filtered.refusal_ids,
        suffixes=config.suffixes,
        seed=config.seed,
    )
    found["scatter"] = _scatter(model, direction, refused, answered)
    base = config.base or ("smollm2" if model.name == "smollm2-safe" else "")
    if base:
        with_base = load(base, dtype=model.dtype, device=str(model.device))
        found["base_check"] = base_check(
            model,
            with_base,
            direction.vector,
            harmful=prompts["harmful", "train"].first(config.n_train).texts,
            harmless=prompts["harmless", "train"].first(config.n_train).texts,
        )
    return found


def _scatter(
    model: ChatModel, direction: Direction, refused: Sequence[str], answered: Sequence[str]
) -> dict[str, Any]:
    """Figure 22: last-token activations, each kind with and without -r, in the plane of the plain ones' first two PCs.

    Read at the input of the block in the middle between the direction's layer and the end, so that what the blocks make
    of the shift is seen and not the shift alone.
    """
    layer = (direction.layer + model.n_layers) // 2
    minus = [Add(direction=direction.vector, layers=[direction.layer], coefficient=-1.0)]
    points = {
        f"{kind}{label}": collect(
            model, list(texts), layers=layer, positions="t_post_inst", interventions=changes
        )["resid_pre"][:, 0, 0]
        .double()
        .numpy()
        for kind, texts in (("harmful", refused), ("harmless", answered))
        for label, changes in (("", []), (" - r", minus))
    }
    plain = torch.cat([torch.from_numpy(points[kind]) for kind in ("harmful", "harmless")]).numpy()
    plane = PCA(n_components=2, random_state=0).fit(plain)
    return {
        "layer": layer,
        "explained_variance": plane.explained_variance_ratio_.tolist(),
        "points": {name: plane.transform(values).tolist() for name, values in points.items()},
    }


def _tensors(sweep: Sweep) -> dict[str, Tensor]:
    places = list(sweep.directions)
    positions = sorted({p for p, _ in places})
    n_layers = sweep.model.n_layers

    def measured(values: Mapping[Place, Tensor], rows: slice, n: int) -> Tensor:
        table = torch.full((len(places), n), torch.nan)
        for i, place in enumerate(places):
            if place in values:
                part = values[place][rows]
                table[i] = torch.where(part.isinf(), torch.nan, part)
        return table

    return {
        "mean_diffs": torch.stack(
            [torch.stack([sweep.directions[p, layer] for layer in range(n_layers)]) for p in positions]
        ),
        "bypass": measured(sweep.ablated, slice(0, sweep.n_harmful), sweep.n_harmful),
        "kl": measured(sweep.ablated, slice(sweep.n_harmful, None), sweep.n_harmless),
        "induce": measured(sweep.induced, slice(None), sweep.n_harmless),
    }
