"""The method of the rebound experiment.

Steps (`run`), for every model and seed:

1. Align: LoRA on N+ positive examples, in one pass at a constant learning rate, so that the checkpoint after a smaller
   N+ is the model that training on the smaller N+ gives.
2. Reverse: train each aligned model, and the base as a control (N+ = 0), on N- negative examples. Either by LoRA as in
   step 1, or by DPO with the aligned model as its reference, which prefers each negative completion to a positive one.
   Optimiser and schedule start again, since Adam moments from step 1 can look like rebound.
3. Measure after every N- (`measurement.py`): the share of replies that show the behaviour; KL(checkpoint || base) on
   the checkpoint's own samples; compression rates of held-out positive, negative and plain text; and how far
   activations have moved since the base along the aligned model's harmfulness, refusal and control directions.
4. Statistics over seeds, and the verdict (`interp.tracking.rebound`).

With workers (`interp.engine.ray`) each takes one seed at a time, steps 1 to 3.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from interp.data.prompts import PromptSet
from interp.data.tasks import Task, load_task
from interp.engine.ray import open_workers
from interp.evaluation.scorers import scorer
from interp.experiments.definition import Outcome
from interp.experiments.rebound import Behaviour, Config, ModelResult, Point, Result
from interp.experiments.rebound.curves import statistics
from interp.experiments.rebound.measurement import Measurement
from interp.models.chat_model import ChatModel, load
from interp.models.named_models import load_same, source_of
from interp.models.sources import ModelSource
from interp.storage.provenance import ModelProvenance
from interp.storage.stages import Stages, open_stages
from interp.training.config import TrainConfig, one_pass
from interp.training.finetune import Trained, fine_tune, preference_tune


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the grid.

    Args:
        model: the base; with `config.models` only used where it is one of them.

    Raises:
        ValueError: a task with too few examples, or for `dpo` without a positive completion of a negative example's
            prompt, or a model that cannot be loaded.
    """
    task, behaves = _load_task(prompts, config), scorer(config.scorer)
    models: dict[str, ModelResult] = {}
    for number, name in enumerate(config.models or (model.name,)):
        models[name] = _one_model(
            Measurement(
                base=model if not config.models or _is_named(model, name) else load(name),
                task=task,
                scorer=behaves,
                prompts=prompts,
                config=config,
            ),
            name,
            stages,
            # The content of a task's files is not among the settings, so stages are named by its hash.
            key=f"{task.provenance.hash[:8]}-{number}",
        )
        stages.lap(f"grid, {name}")
    result = Result(
        provenance=replace(stages.provenance, model=next(iter(models.values())).provenance),
        seconds=stages.seconds,
        config=config,
        task=task.provenance,
        models=models,
    )
    return Outcome(result=result)


def _one_model(measurement: Measurement, name: str, stages: Stages, key: str) -> ModelResult:
    """The grid of one model, which is let go of at the end: one is in memory at a time."""
    config, points = measurement.config, list[Point]()
    seeds = range(config.seed, config.seed + config.seeds)
    if stages.workers is None:
        for seed in stages.progress(seeds, f"rebound, {name}"):
            points += _one_seed(_Grid(measurement, stages, f"{key}-{seed}", seed))
    else:
        points += _shared_seeds(measurement, name, stages, key)
    # 4. Statistics over seeds, and the verdict.
    return ModelResult(
        provenance=ModelProvenance(**measurement.base.provenance),
        points=tuple(points),
        statistics=statistics(points, config),
    )


def _one_seed(grid: "_Grid") -> Iterator[Point]:
    """The points of one seed."""
    # 1. Align on the positive examples.
    aligned = grid.align()
    for n_plus in grid.config.positives:
        # 2. Reverse with the negative ones, from each N+.
        trained = grid.reverse(n_plus, aligned.checkpoints[n_plus])
        # 3. Measure at every N-.
        yield from grid.measured(n_plus, trained)


def _shared_seeds(measurement: Measurement, name: str, stages: Stages, key: str) -> list[Point]:
    """The points of all seeds, each seed computed by a worker and stored here."""
    config, base = measurement.config, measurement.base
    seeds = range(config.seed, config.seed + config.seeds)
    points: dict[int, list[Point]] = {}
    for seed in seeds:
        names = [f"{key}-{seed}-{n_plus}-{n}" for n_plus in config.positives for n in config.negatives]
        stored = [stages.stored(each, Point) for each in names]
        if None not in stored:
            points[seed] = [point for point in stored if point is not None]
    prepare = partial(_prepared, source_of(base), base.weights_hash, measurement.prompts, config)
    todo = [seed for seed in seeds if seed not in points]
    if not todo:
        return [point for seed in seeds for point in points[seed]]
    with open_workers(prepare, stages.workers) as pool:
        finished = pool.map(_seed_of_worker, todo)
        for number, found in stages.progress(finished, f"rebound, {name}", total=len(todo)):
            points[todo[number]] = [
                stages.keep(f"{key}-{point.seed}-{point.n_plus}-{point.n_minus}", lambda p=point: p, Point)
                for point in found
            ]
    return [point for seed in seeds for point in points[seed]]


def _prepared(source: ModelSource, weights_hash: str, prompts: PromptSet, config: Config) -> Measurement:
    """The state of a worker."""
    return Measurement(
        base=load_same(source, weights_hash),
        task=_load_task(prompts, config),
        scorer=scorer(config.scorer),
        prompts=prompts,
        config=config,
    )


def _seed_of_worker(measurement: Measurement, seed: int) -> list[Point]:
    with open_stages(None, key={}) as stages:
        return list(_one_seed(_Grid(measurement, stages, f"seed-{seed}", seed)))


def _load_task(prompts: PromptSet, config: Config) -> Task:
    """The task, with everything that its training needs."""
    task = load_task(config.task, prompts, n_eval=config.n_eval)
    sides = (("positives", config.positives, task.positive), ("negatives", config.negatives, task.negative))
    for name, counts, examples in sides:
        if max(counts) > len(examples):
            raise ValueError(
                f"{name} go up to {max(counts)}, the task has {len(examples)}; give more or smaller counts"
            )
    if config.reverse == "dpo":
        task.preferences(config.seed)  # raises what is missing before anything is trained
    return task


def _is_named(model: ChatModel, name: str) -> bool:
    """Whether loading this name gives the model; where that is not certain it is loaded again."""
    here = str(Path(name).resolve())  # what a model that was loaded from a folder says of its source
    return model.adapter is None and model.revision is None and model.source in (name, here)


class _Grid:
    """Trains and measures one model and seed.

    Args:
        key: begins the names of its stages.
    """

    def __init__(self, measurement: Measurement, stages: Stages, key: str, seed: int) -> None:
        self.measurement, self.stages, self.key, self.seed = measurement, stages, key, seed
        self.config, self.task = measurement.config, measurement.task

    @property
    def training(self) -> TrainConfig:
        """Settings of both stages."""
        return one_pass(
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate,
            rank=self.config.rank,
            seed=self.seed,
        )

    @property
    def folder(self) -> Path:
        """Folder of its checkpoints."""
        return self.stages.workspace(f"train-{self.key}")

    def align(self) -> Trained:
        """The first stage, saved at every N+."""
        positive, _ = self.task.shuffled(self.seed)
        return fine_tune(
            self.measurement.base,
            positive[: max(self.config.positives)],
            out=self.folder / "positive",
            config=self.training,
            checkpoints=self.config.positives,
        )

    def reverse(self, n_plus: int, start: Path) -> Trained:
        """The reverse stage from an aligned checkpoint, saved at every N-."""
        counts, base, out = self.config.negatives, self.measurement.base, self.folder / f"negative-{n_plus}"
        if self.config.reverse == "dpo":
            pairs = self.task.preferences(self.seed)[: counts[-1]]
            return preference_tune(
                base, pairs, out=out, config=self.training, checkpoints=counts, start=start
            )
        _, negative = self.task.shuffled(self.seed)
        return fine_tune(
            base, negative[: counts[-1]], out=out, config=self.training, checkpoints=counts, start=start
        )

    def measured(self, n_plus: int, reversed_from: Trained) -> Iterator[Point]:
        """The points of one N+, at every N-."""
        measurement, seed = self.measurement, self.seed
        before = self.stages.keep(
            f"{self.key}-base", lambda: measurement.behaviour(measurement.base, seed), Behaviour
        )
        # Directions are fitted when the first point needs them: a run that continues may need none.
        aligned = cache(partial(measurement.aligned, reversed_from.checkpoints[0]))
        for n_minus in self.config.negatives:
            point = partial(
                measurement.point,
                reversed_from.checkpoints[n_minus],
                aligned,
                n_plus=n_plus,
                n_minus=n_minus,
                seed=seed,
                base_score=before.rate.value,
            )
            yield self.stages.keep(f"{self.key}-{n_plus}-{n_minus}", point, Point)
