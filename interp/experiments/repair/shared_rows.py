"""The rows of all seeds over workers (`interp.engine.ray`).

First the model of each seed is broken, a seed a part, while the aligned model is attacked. The adapters come back as
files and are put where one process leaves them; then they go to the workers, and rows of a seed are a part. Rows that
make something of the same files are one part, with the attacks on them, so that nothing is made twice.

A worker holds the broken model of the seed that its last part was of. Stages have the names that they have in one
process, so that a run that continues may have workers or none. Nothing of a worker's folders is left after its part.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from interp.engine.ray import Pool, open_workers
from interp.experiments.repair import (
    ALIGNED,
    ALL_STEPS,
    EQUAL_COUNT,
    EQUAL_NORM,
    FAMILIES,
    RECOVERY,
    AttackTrial,
    Trial,
)
from interp.experiments.repair.attacks import attack_stages, stored_attacks
from interp.experiments.repair.repairs import Broken
from interp.experiments.repair.trials import (
    Given,
    Measured,
    attacks_on_aligned,
    attacks_on_repair,
    break_model,
    broken_by,
    broken_folder,
    trial_of,
    trial_stage,
    was_broken,
)
from interp.models.chat_model import ChatModel
from interp.models.named_models import load_same, source_of
from interp.models.sources import ModelSource
from interp.storage.stages import Stages, open_stages
from interp.training.saving import Files, files_of, write_files

_LONGEST = (
    (ALL_STEPS, EQUAL_COUNT, EQUAL_NORM),  # the deltas of recovery
    ("SoftSFT while fine-tuning",),
    ("fine-tuned on refusals",),
    (RECOVERY,),
    ("recovery by |gradient x difference|",),
    ("recovery by |difference|",),
    ("optimised prompt (DRO)", "random soft prompt"),  # the trained prompt
    ("RESTA", "SafeLoRA"),  # the unaligned model
    ("refusal direction added where the guard fires", "guard answers with a refusal"),  # the guard
)
"""Rows that are made of the same files, and others that take long, in the order of the minutes that they took on the
bundled model; every other row is a part of its own, after these."""
GROUPS = (*_LONGEST, *((name,) for name in FAMILIES if all(name not in group for group in _LONGEST)))
"""Every row, with those that are measured in the same part, the longest first."""


class Rows(NamedTuple):
    """A part: what is missing of a group at one seed."""

    seed: int
    """The seed."""
    rows: tuple[str, ...]
    """Rows to make and measure, in the order of the scoreboard."""
    attacked: tuple[str, ...]
    """Rows to attack."""


class _Found(NamedTuple):
    """What a worker gives of a part."""

    trials: dict[str, Trial]
    attacks: dict[str, list[AttackTrial]]


def shared_rows(model: ChatModel, given: Given, stages: Stages) -> Measured:
    """Every row at every seed, computed by workers and stored here.

    Raises:
        ValueError: a model that workers cannot load, or workers that cannot be had.
    """
    shared = _Shared(model, given, stages)
    if shared.missing or shared.attack_aligned:
        prepare = partial(_Worker, source_of(model), model.weights_hash, given)
        with open_workers(prepare, stages.workers) as pool:
            shared.break_models(pool)
            stages.lap("break")
            shared.measure(pool)
            stages.lap("repair and measure")
    return shared.measured


class _Shared:
    """The run: what is stored of it, and what comes back from the workers."""

    def __init__(self, model: ChatModel, given: Given, stages: Stages) -> None:
        self.given, self.config, self.stages = given, given.config, stages
        self.seeds = {
            number: given.seed(model, number, stages.workspace(f"seed-{number}")) for number in given.seeds
        }
        self.trials: dict[tuple[int, str], Trial] = {}
        for number in given.seeds:
            for name in self._rows(number):
                if (trial := stages.stored(trial_stage(number, name), Trial)) is not None:
                    self.trials[number, name] = trial
        self.attacks: dict[str, list[AttackTrial]] = {}
        for name in self._attacked(self.config.seed):
            if (trials := stored_attacks(name, self.config, stages)) is not None:
                self.attacks[name] = trials

    def _rows(self, number: int) -> list[str]:
        """Rows that are measured at a seed: the aligned model is the same at all, and measured at the first."""
        return [name for name in self.config.rows if name != ALIGNED or number == self.config.seed]

    def _attacked(self, number: int) -> list[str]:
        first = number == self.config.seed and self.config.attacks
        return list(self.config.attacked_rows) if first else []

    @property
    def attack_aligned(self) -> bool:
        """Whether the aligned model is still to be attacked."""
        return ALIGNED in self._attacked(self.config.seed) and ALIGNED not in self.attacks

    @property
    def missing(self) -> list[Rows]:
        """The parts whose stages are not all stored, seed by seed."""
        parts: list[Rows] = []
        for number in self.given.seeds:
            rows = [name for name in self._rows(number) if (number, name) not in self.trials]
            attacked = [
                name for name in self._attacked(number) if name != ALIGNED and name not in self.attacks
            ]
            for group in GROUPS:
                part = Rows(
                    number,
                    tuple(name for name in rows if name in group),
                    tuple(name for name in attacked if name in group),
                )
                if part.rows or part.attacked:
                    parts.append(part)
        return parts

    def break_models(self, pool: "Pool[_Worker]") -> None:
        """Have the models broken that are missing, and the aligned one attacked."""
        wanted = dict.fromkeys(part.seed for part in self.missing)
        asked: list[int | None] = [number for number in wanted if not was_broken(self.seeds[number])]
        if self.attack_aligned:
            asked.append(None)
        finished = pool.map(_first, asked)
        for number, computed in self.stages.progress(finished, "break", total=len(asked)):
            seed = asked[number]
            if seed is None:
                assert isinstance(computed, list)
                self._keep_attacks(ALIGNED, computed)
            else:
                assert isinstance(computed, dict)
                write_files(broken_folder(self.seeds[seed]), computed)

    def measure(self, pool: "Pool[_Worker]") -> None:
        """Have the rows measured that are missing."""
        parts = self.missing
        adapters = {part.seed: files_of(broken_folder(self.seeds[part.seed])) for part in parts}
        finished = pool.map(partial(_measured, adapters=adapters), parts)
        for number, computed in self.stages.progress(finished, "repairs", total=len(parts)):
            seed = parts[number].seed
            for name, trial in computed.trials.items():
                stage = trial_stage(seed, name)
                self.trials[seed, name] = self.stages.keep(stage, lambda t=trial: t, Trial)
            for name, trials in computed.attacks.items():
                self._keep_attacks(name, trials)

    def _keep_attacks(self, name: str, trials: list[AttackTrial]) -> None:
        self.attacks[name] = [
            self.stages.keep(stage, lambda t=trial: t, AttackTrial)
            for stage, trial in zip(attack_stages(name, self.config), trials, strict=True)
        ]

    @property
    def measured(self) -> Measured:
        """All of it, once nothing is missing."""
        first = self.config.seed
        return Measured(
            {
                name: [self.trials[first if name == ALIGNED else number, name] for number in self.given.seeds]
                for name in self.config.rows
            },
            [trial for name in self._attacked(first) for trial in self.attacks[name]],
        )


# In the workers


class _Worker:
    """The state of a worker: the aligned model, and the broken one of the seed that its last part was of."""

    def __init__(self, source: ModelSource, weights_hash: str, given: Given) -> None:
        self.model, self.given = load_same(source, weights_hash), given
        self._broken: Broken | None = None

    @contextmanager
    def broken(self, number: int, adapters: Mapping[int, Files]) -> Iterator[Broken]:
        """The broken model of a seed, with a folder of its own that is removed with the context."""
        with open_stages(None, key={}) as stages:
            out = stages.workspace("seed")
            if self._broken is None or self._broken.seed != number:
                self._broken = None  # one broken model is in memory at a time
                seed = self.given.seed(self.model, number, out)
                write_files(broken_folder(seed), adapters[number])
                self._broken = broken_by(seed, broken_folder(seed))
            yield replace(self._broken, out=out)


def _first(worker: _Worker, number: int | None) -> Files | list[AttackTrial]:
    """The adapter that breaks the model of a seed; None attacks the aligned model of the first one."""
    given = worker.given
    with open_stages(None, key={}) as stages:
        out = stages.workspace("seed")
        if number is None:
            return attacks_on_aligned(given.seed(worker.model, given.config.seed, out), given, stages)
        return files_of(break_model(given.seed(worker.model, number, out)))


def _measured(worker: _Worker, part: Rows, *, adapters: Mapping[int, Files]) -> _Found:
    given = worker.given
    with worker.broken(part.seed, adapters) as broken, open_stages(None, key={}) as stages:
        trials = {name: trial_of(name, broken, given) for name in part.rows}
        attacks = {name: attacks_on_repair(name, broken, given, stages) for name in part.attacked}
    return _Found(trials, attacks)
