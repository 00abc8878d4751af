"""Rebound: does a model that was aligned on more examples return faster under reverse examples?

Ji, Wang, Qiu, Chen, Zhou, Li, Lou, Dai, Liu, Yang, "Language Models Resist Alignment: Evidence From Data Compression",
arXiv:2406.06144 (ACL 2025), rebound experiment (figures 4 to 10, table 3).

| claim | where | here |
|---|---|---|
| larger N+ starts higher, falls faster at first, then flattens | figure 4 | slopes, tau with interval, trends |
| larger N+ needs fewer N- to bring KL to base under 0.01 | table 3, 961 -> 729 (Llama2-7B) | N_eps by KL and by score |
| stronger with model size and with pre-training volume | figures 5, 6, 9, 10 | `models`, a panel each |
| the same order under other reverse algorithms | figure 7 | `reverse`: SFT or DPO; a heat map of each run |

Steps (`run`), for every model and seed:

1. LoRA on N+ positive examples, one pass, constant learning rate, so that the checkpoint at a
   smaller N+ is the model that the smaller N+ alone would give;
2. from each of them (and from the base, N+ = 0, the control) the same on N- negative examples, or DPO that prefers
   each negative completion to a positive one of its prompt, held to the model of step 1; optimiser and schedule start
   anew, since carried-over Adam moments can mimic rebound;
3. at every N-: share of replies that show the behaviour, KL(checkpoint || base) on the checkpoint's own samples,
   compression rates of held-out positive, negative and plain text, and the projection of the activations' shift since
   the base on directions fitted at the aligned model: harmfulness, refusal, and controls that are not about safety;
4. statistics over seeds and the verdict (`interp.tracking.rebound`).

Figure 8 (negatives first) is the task `builtin-reversed` with the scorer `compliance`. Not built: reverse stages by
PPO, KTO and SimPO.
Not as in the paper: LoRA instead of full training, small counts by default, and other data (none of it is named).
A verdict is about these models, data and optimiser; it never proves elasticity.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.corpora import Corpus
from interp.data.prompts import HELD_OUT_TEXT, PromptSet
from interp.data.tasks import Task, load_task
from interp.display.progress import progress
from interp.engine.generation import generate
from interp.engine.log_probs import map_completions
from interp.evaluation.compression import bits
from interp.evaluation.losses import token_kl
from interp.evaluation.scorers import Scorer, scorer
from interp.experiments.rebound.report import figures, rate_table, report, verdicts
from interp.models.chat_model import ChatModel, load, with_adapter
from interp.models.loading import split_revision
from interp.stats import rate
from interp.storage.provenance import provenance
from interp.storage.untyped import ExperimentResult, Parts, Stopwatch
from interp.tracking.measures import along, read_states
from interp.tracking.rebound import summarise
from interp.tracking.references import fit_reference
from interp.tracking.spec import Probe, Reference
from interp.training.finetune import TrainConfig, Trained, fine_tune, preference_tune
from interp.training.runner import one_pass

__all__ = [
    "DEFAULT_MODEL",
    "NAME",
    "SUMMARY",
    "Config",
    "Result",
    "figures",
    "rate_table",
    "report",
    "run",
    "verdicts",
]

NAME = "rebound"
SUMMARY = "align on N+ examples, reverse with N-: slopes, time constants, return, and the directions inside"
DEFAULT_MODEL = "smollm2"
REVERSES = ("sft", "dpo")
"""Algorithms of the reverse stage."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings. The paper's grid is positives (1000, 2000, 5000, 10000), negatives (0, 100, 200, 500, 1000, 2000)."""

    positives: tuple[int, ...] = (0, 32, 128)
    """N+; 0 is the control that was never aligned."""
    negatives: tuple[int, ...] = (0, 8, 16, 32, 64)
    """N-, ascending from 0."""
    seeds: int = 3
    """Orders of the examples and initialisations."""
    models: tuple[str, ...] = ()
    """Names, folders or owner/name@revision to run the same grid on, instead of the one model."""
    task: str = "builtin"
    """`builtin`, `builtin-reversed` (negatives first, figure 8), or positive=FILE,negative=FILE[,prompts=FILE]."""
    scorer: str = "refusal"
    """`refusal`, `compliance` (for reversed roles), substring:TEXT[|TEXT...], or classifier:MODEL:LABEL."""
    reverse: str = "sft"
    """Algorithm of the reverse stage: `sft` (supervised, as the first stage), or `dpo` (beta 0.1)."""
    learning_rate: float = 5e-4
    """Of both stages, whatever their algorithms. It is one for supervised LoRA; DPO is usually trained at a lower one
    (TRL's default is a twentieth of its supervised one), so compare algorithms by whole grids, not at an equal N-."""
    batch_size: int = 8
    """Examples per optimiser step; every count must be a multiple."""
    rank: int = 8
    """Of the LoRA."""
    n_eval: int = 32
    """Prompts that are scored."""
    max_new_tokens: int = 12
    """Length of a reply."""
    n_kl: int = 8
    """Prompts that KL is sampled on."""
    n_documents: int = 12
    """Held-out documents of each kind for the compression rates."""
    n_states: int = 16
    """Test prompts of each kind whose activations are projected; 0 leaves the representation side out."""
    n_fit: int = 24
    """Training prompts of each kind that the directions are fitted on."""
    kl_threshold: float = 0.01
    """Nats; at or below it a model has returned by KL (table 3)."""
    seed: int = 0
    """First seed."""

    def __post_init__(self) -> None:
        check_counts(self.positives, self.negatives, self.batch_size)
        if self.reverse not in REVERSES:
            raise ValueError(f"reverse must be {' or '.join(REVERSES)}, got {self.reverse!r}")
        if self.seeds < 1 or self.n_eval < 1:
            raise ValueError(f"seeds and n_eval must be 1 or more, got {self.seeds} and {self.n_eval}")


def check_counts(positives: Sequence[int], negatives: Sequence[int], batch: int) -> None:
    """Raise a ValueError unless the grid can be trained in batches."""
    if list(negatives) != sorted(set(negatives)) or len(negatives) < 3 or negatives[0] != 0:
        raise ValueError(f"negatives must ascend from 0, three or more, got {list(negatives)}")
    if list(positives) != sorted(set(positives)) or not positives or max(positives) < 1:
        raise ValueError(f"positives must ascend and hold one above 0, got {list(positives)}")
    if wrong := [n for n in (*positives, *negatives) if n % batch]:
        raise ValueError(f"counts must be multiples of batch_size = {batch}, got {wrong[0]}; change either")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ExperimentResult):
    """What a run found."""


def run(
    model: ChatModel,
    prompts: PromptSet,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    show_progress: bool = False,
) -> Result:
    """Run the grid.

    Args:
        model: the base; with `config.models` only used where it is one of them.
        out: run folder; trained checkpoints and measured points are kept beside it until the run is whole, and a run
            started again continues.

    Raises:
        ValueError: a task with too few examples, or for `dpo` without a positive completion of a negative example's
            prompt, or a model that cannot be loaded.
    """
    config = config or Config()
    task, score = load_task(config.task, prompts, n_eval=config.n_eval), scorer(config.scorer)
    for name, have in (("positives", len(task.positive)), ("negatives", len(task.negative))):
        if max(getattr(config, name)) > have:
            raise ValueError(
                f"{name} go up to {max(getattr(config, name))}, the task has {have}; give more or smaller counts"
            )
    if config.reverse == "dpo":
        task.preferences(config.seed)  # raises what is missing before anything is trained
    watch = Stopwatch()
    with ExitStack() as stack:
        target = Path(out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / NAME)
        settings = {
            "experiment": NAME,
            "config": asdict(config),
            "model": model.provenance,
            "task": task.provenance,
            "prompts": prompts.provenance,
        }
        parts = Parts(target, settings)
        names = config.models or (model.name,)
        jobs = [(name, config.seed + i) for name in names for i in range(config.seeds)]
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        described: dict[str, Any] = {}
        loaded: dict[str, ChatModel] = {}
        for name, seed in progress(jobs, total=len(jobs), label="rebound", show=show_progress):
            if name not in loaded:
                loaded.clear()  # one in memory at a time
                loaded[name] = model if not config.models or is_named(model, name) else load_revision(name)
                described[name] = loaded[name].provenance
            grid = _Grid(loaded[name], task, score, prompts, config, parts, f"{names.index(name)}-{seed}")
            rows[name] += grid.run(seed)
        watch.lap("grid")
        numbers = {
            "experiment": NAME,
            "task": task.provenance,
            "models": {
                name: {**_summary(rows[name], config), "provenance": described[name]} for name in names
            },
            "seconds": watch.with_total,
            "provenance": provenance(
                {**described[names[0]], "model": ", ".join(names)}, prompts.provenance, config
            ),
        }
        result = Result(numbers=numbers)
        if out is not None:
            result.save(out)
        parts.discard()
    return result


def load_revision(name: str) -> ChatModel:
    """A model by name, folder, or owner/name@revision."""
    return load(name)


def is_named(model: ChatModel, name: str) -> bool:
    """Whether this is the model that `load_revision` gives for the name."""
    source, revision = split_revision(name)
    if Path(name).exists():
        source = Path(name).resolve().name
    return model.adapter is None and (model.name, model.revision) == (source, revision)


class _Aligned(NamedTuple):
    """What the aligned model (N- = 0) fixes for the checkpoints after it."""

    reference: Reference
    base: dict[str, Float[Tensor, " prompt"]]
    """Axis → projection of the base's activations."""


class _Grid:
    """One model and seed."""

    def __init__(
        self,
        base: ChatModel,
        task: Task,
        score: Scorer,
        prompts: PromptSet,
        config: Config,
        parts: Parts,
        key: str,
    ) -> None:
        self.base, self.task, self.score, self.config, self.parts, self.key = (
            base, task, score, config, parts, key,
        )  # fmt: skip
        self.probe = Probe(
            prompts=prompts, measures=("shift",), n=max(config.n_states, 1), n_fit=config.n_fit
        )
        self.corpora = {**task.corpora, "prose": Corpus("prose", (HELD_OUT_TEXT.read_text(),))}

    def run(self, seed: int) -> list[dict[str, Any]]:
        """A row per (N+, N-)."""
        config = self.config
        positive, _ = self.task.shuffled(seed)
        training = one_pass(
            batch_size=config.batch_size, learning_rate=config.learning_rate, rank=config.rank, seed=seed
        )
        folder = self.parts.folder / f"train-{self.key}"
        first = fine_tune(
            self.base,
            positive[: max(config.positives)],
            out=folder / "positive",
            config=training,
            checkpoints=config.positives,
        )
        before = self.parts.numbers(f"{self.key}-base", lambda: self._measure(self.base, seed))
        rows = []
        for n_plus in config.positives:
            later = self._reverse(
                first.checkpoints[n_plus], folder / f"negative-{n_plus}", training, seed=seed
            )
            aligned: list[_Aligned] = []
            for n_minus in config.negatives:
                point = partial(self._point, later.checkpoints[n_minus], later.checkpoints[0], seed, aligned)
                found = self.parts.numbers(f"{self.key}-{n_plus}-{n_minus}", point)
                rows.append(
                    {
                        "seed": seed,
                        "n_plus": n_plus,
                        "n_minus": n_minus,
                        **found,
                        "base_score": before["score"],
                    }
                )
        return rows

    def _reverse(self, start: Path, out: Path, training: TrainConfig, *, seed: int) -> Trained:
        """The reverse stage from an aligned checkpoint, saved at every N-."""
        counts = self.config.negatives
        if self.config.reverse == "dpo":
            pairs = self.task.preferences(seed)[: counts[-1]]
            return preference_tune(
                self.base, pairs, out=out, config=training, checkpoints=counts, start=start
            )
        _, negative = self.task.shuffled(seed)
        return fine_tune(
            self.base, negative[: counts[-1]], out=out, config=training, checkpoints=counts, start=start
        )

    def _point(self, path: Path, start: Path, seed: int, aligned: list[_Aligned]) -> dict[str, Any]:
        """Everything at one checkpoint; the aligned model's directions are fitted when first needed."""
        if self.config.n_states and not aligned:
            with with_adapter(self.base, str(start)) as model:
                reference = fit_reference(model, self.probe)
            aligned.append(_Aligned(reference, self._along(self.base, reference)))
        with with_adapter(self.base, str(path)) as model:
            found = self._measure(model, seed)
            sampled = self._sampled(model, seed)
            moved = self._along(model, aligned[0].reference) if aligned else {}
        found["kl"] = self._kl_to_base(*sampled)
        found["representation"] = {
            name: {
                "since_base": (values - aligned[0].base[name]).tolist(),
                "at_aligned": (self._at_aligned(aligned[0].reference, name) - aligned[0].base[name]).tolist(),
            }
            for name, values in moved.items()
        }
        if aligned:
            found["axes"] = {
                axis.name: {"layer": axis.layer, "about": axis.about} for axis in aligned[0].reference.axes
            }
        return found

    def _measure(self, model: ChatModel, seed: int) -> dict[str, Any]:
        replies = generate(model, self.task.prompts, max_new_tokens=self.config.max_new_tokens, seed=seed)
        shown = self.score(replies.texts)
        codes = {
            name: bits(model, corpus, n_documents=self.config.n_documents)
            for name, corpus in self.corpora.items()
        }
        return {
            "score": float(np.mean(shown)),
            "rate": rate(shown).as_dict(),
            "bits_per_byte": {name: (code.bits / code.bytes).tolist() for name, code in codes.items()},
        }

    def _sampled(self, model: ChatModel, seed: int) -> tuple[list[list[int]], list[Tensor]]:
        """The checkpoint's own samples, and its log-probabilities at each of their tokens."""
        texts = self.task.prompts[: self.config.n_kl]
        done = generate(model, texts, temperature=1.0, seed=seed, max_new_tokens=self.config.max_new_tokens)
        ids = [list(row) for row in done.ids]
        return ids, map_completions(model, texts, ids, lambda logs, _: logs.half())

    def _kl_to_base(self, ids: list[list[int]], log_p: list[Tensor]) -> float:
        """Mean over tokens of KL(checkpoint || base), nats, on the checkpoint's own samples."""
        found = token_kl(self.base, self.task.prompts[: self.config.n_kl], ids, log_p)
        return float(torch.cat(found).double().mean())

    def _along(self, model: ChatModel, reference: Reference) -> dict[str, Float[Tensor, " prompt"]]:
        """Projection of harmful test prompts on each direction of the aligned model, in that direction's lengths."""
        read = read_states(model, self.probe, ("test",))["harmful", "test"]
        return {axis.name: along(reference, axis, read).double() for axis in reference.axes}

    def _at_aligned(self, reference: Reference, axis: str) -> Float[Tensor, " prompt"]:
        return reference.tensors[f"test/{axis}/harmful"].double()


def _summary(rows: Sequence[Mapping[str, Any]], config: Config) -> dict[str, Any]:
    """Rows with curves by N+, statistics and the verdict."""
    by = {(r["n_plus"], r["seed"], r["n_minus"]): r for r in rows}
    seeds = sorted({r["seed"] for r in rows})

    def curves(key: str) -> dict[str, list[list[float]]]:
        return {
            str(n): [[by[n, s, m][key] for m in config.negatives] for s in seeds] for n in config.positives
        }

    base = [by[config.positives[0], s, 0]["base_score"] for s in seeds]
    return {
        "rows": list(rows),
        "curves": curves("score"),
        "kl": curves("kl"),
        "base": base,
        "summary": summarise(
            config.negatives,
            curves("score"),
            base=base,
            kl=curves("kl"),
            kl_threshold=config.kl_threshold,
        ),
    }
