"""The definition of an experiment: name, settings, typed result, and the package of its method, figures and report.

Each experiment is a folder: `__init__.py` has the `EXPERIMENT`, its `Config` and `Result` and imports neither torch nor
transformers; `run.py` has the method, section by section; `figures.py` and `report.py` draw a stored `Result`.

    from interp.experiments.demo import EXPERIMENT, Config

    run = EXPERIMENT.run(model, prompts, Config(n_test=20), out="runs/demo")
    run.result.refusal_rate["ablation"]["harmful"]         # an Estimate
    run.figures()["refusal_rates"].show()
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from interp.display.cards import Card, Shown, Table
from interp.evaluation.judges.loading import check_names
from interp.evaluation.judges.records import RunJudgements, judgement_lines
from interp.storage.paths import expanded
from interp.storage.provenance import Provenance, content_key, precision_line, provenance_of
from interp.storage.reply_records import recording
from interp.storage.run_folders import (
    Header,
    check_target,
    read_header,
    read_result,
    read_tensors,
    result_file,
    write_run,
)
from interp.storage.settings import check_truth_values, problem
from interp.storage.stages import open_stages
from interp.storage.typed_json import first_line, to_plain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

    from interp.data.prompts import PromptSet
    from interp.engine.ray_cluster import Workers
    from interp.models.chat_model import ChatModel


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper and when ours counts as the same."""

    text: str
    """The claim in one sentence."""
    where: str
    """Section, figure or table."""
    theirs: str
    """The paper's number or observation."""
    same_when: str
    """When ours counts as the same, fixed beforehand."""


@dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """Base of every experiment's `Result`: a tree of frozen dataclasses without tensors."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    provenance: Provenance
    """Model, prompts, seed, versions."""
    seconds: dict[str, float]
    """Seconds by stage, and in `total`."""
    judgements: RunJudgements | None = None
    """What the judges that were asked for say about the run's replies; None where none was."""


ResultT = TypeVar("ResultT", bound=ExperimentResult)


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome(Generic[ResultT]):
    """The return value of an experiment's `run`."""

    result: ResultT
    """The numbers."""
    tensors: "Mapping[str, Tensor]" = field(default_factory=dict)
    """Directions and other tensors, by name."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further files of the run folder, such as `refusal.safetensors`."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment; importing its folder costs no torch, running it does."""

    name: str
    """Name of the experiment, as in `interp run NAME`."""
    summary: str
    """One line for `interp list`."""
    config: type[Any]
    """The experiment's `Config`: a frozen dataclass with a default for every setting."""
    result: type[Any]
    """The experiment's `Result` class."""
    package: str
    """Package of `run`, `figures` and `report`, e.g. `interp.experiments.demo`."""
    claims: tuple[Claim, ...] = ()
    """The paper's claims, and when a result counts as the same."""
    default_model: str | None = "smollm2-safe"
    """Model to run on by default; None for an experiment that needs neither a model nor prompts."""
    also_resumes: tuple[str, ...] = ()
    """Settings that may change when an interrupted run continues from its finished stages."""
    made_by: str | None = None
    """The command that makes its runs, where these need inputs beyond settings; None where `interp run` does."""
    requires: tuple[str, ...] = ()
    """Packages of the extra `train` that a run imports."""
    shares: str | None = None
    """The parts of a run that workers share, such as `seeds`; None where it runs in one process."""

    def configure(self, settings: Mapping[str, Any] | None = None) -> Any:
        """A `Config` from settings by name; texts are read as the setting's type.

        Raises:
            ValueError: a setting that it does not have, or a value of another type.
        """
        known = [f.name for f in fields(self.config)]
        if unknown := [name for name in settings or {} if name not in known]:
            raise ValueError(f"{self.name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
        hints = get_type_hints(self.config, include_extras=True)
        try:
            for name, value in (settings or {}).items():
                check_truth_values(value, hints[name], name)
            return TypeAdapter(self.config).validate_python(dict(settings or {}))
        except ValidationError as error:
            raise ValueError(f"{self.name}: {problem(error)}") from None

    def check_workers(self, judges: Sequence[str] = ()) -> None:
        """Raise a ValueError unless workers can share a run of this experiment."""
        if self.shares is None:
            raise ValueError(f"{self.name} runs in one process; leave workers out")
        if judges:
            raise ValueError("judges read the replies of one process; leave judges or workers out")

    def check(self, out: str | Path | None) -> None:
        """Find, before anything is computed, what would stop a run that is stored in `out`.

        Raises:
            ValueError: an experiment that another command runs, a missing extra, or a folder that cannot be written.
        """
        if self.made_by is not None:
            raise ValueError(f"{self.name} is not run by its settings alone; use `{self.made_by}`")
        if missing := [name for name in self.requires if find_spec(name) is None]:
            raise ValueError(
                f"{self.name} needs {', '.join(missing)}; run `pip install 'interp-workbench[train]'`"
            )
        if out is not None:
            check_target(expanded(out))

    def run(
        self,
        model: "ChatModel | None" = None,
        prompts: "PromptSet | None" = None,
        config: Any = None,
        *,
        out: str | Path | None = None,
        judges: Sequence[str] = (),
        workers: "Workers | None" = None,
        show_progress: bool = False,
    ) -> "Run[Any]":
        """Run the experiment.

        Args:
            model: not needed where `default_model` is None.
            prompts: likewise.
            config: the defaults when None.
            out: run folder; finished stages are kept in `<out>.parts` until the run is whole, and a run started again
                continues.
            judges: names of judges (`interp.evaluation.judges.loading`) that also judge every reply of the run.
            workers: processes that share the run's parts, for an experiment that has any.

        Raises:
            ValueError: an unknown judge, workers that the experiment has no use for, no model or prompts where they are
                needed, an experiment that another command runs, or as the experiment's own `run` says.
        """
        self.check(out)
        if judges:
            check_names(judges)
        if workers is not None:
            self.check_workers(judges)
        config = self.config() if config is None else config
        needs = self.default_model is not None
        if needs and (model is None or prompts is None):
            raise ValueError(
                f"{self.name} needs a model and prompts; pass interp.load(...) and interp.load_prompts(...)"
            )
        # Before the run: what cannot be loaded is found now, and `latent` reads with the model as it is given.
        chosen = _loaded_judges(judges, model, prompts) if judges else ()
        if needs and model is not None:
            from interp.engine.completion_cost import record_cost

            record_cost(model)
        about = provenance_of(model if needs else None, prompts if needs else None, seed=config.seed)
        # Stages that were finished without recording have no replies to judge: they are not continued with.
        key = self._key(about, config) | ({"replies": "recorded"} if judges else {})
        with open_stages(
            out, key=key, provenance=about, show_progress=show_progress, workers=workers
        ) as stages:
            method = import_module(f"{self.package}.run").run
            with recording() if judges else nullcontext() as recorder:
                outcome = method(model, prompts, config, stages) if needs else method(config, stages)
            result = outcome.result
            if recorder is not None:
                from interp.representations.judging import judge_replies

                found = judge_replies(recorder.replies, judges, chosen, prompts, further=recorder.further)
                stages.lap("judges")
                result = replace(result, judgements=found, seconds=stages.seconds)
            finished = Run(
                experiment=self,
                result=result,
                folder=None if out is None else expanded(out),
                computed=dict(outcome.tensors),
                files=dict(outcome.files),
            )
            if out is not None:
                finished.save(out)
        return finished

    def _key(self, about: Provenance, config: Any) -> dict[str, Any]:
        """The key of the stage cache: what finished stages depend on, and no name of a place on this machine."""
        return {
            "experiment": self.name,
            "config": {k: v for k, v in to_plain(config, self.config).items() if k not in self.also_resumes},
            **content_key(about),
        }

    def read(self, folder: str | Path) -> "Run[Any]":
        """A stored run of this experiment, without a model.

        Raises:
            ValueError: not a run folder, damaged, or of another experiment.
        """
        return self.open(read_header(folder))

    def open(self, header: Header) -> "Run[Any]":
        """A stored run whose header has been read.

        Raises:
            ValueError: of another experiment, or damaged.
        """
        if header.experiment != self.name:
            raise ValueError(f"{header.path.parent} holds a run of {header.experiment}, not of {self.name}")
        return Run(experiment=self, result=read_result(header, self.result), folder=header.path.parent)

    def figures(self, result: Any) -> "dict[str, go.Figure]":
        """Every figure by name."""
        return import_module(f"{self.package}.figures").figures(result)

    def report(self, result: Any) -> str:
        """The page, as HTML."""
        page = import_module(f"{self.package}.report").report(result)
        from interp.display.page import Section, with_section
        from interp.evaluation.judges.pages import with_judgements

        if (rounded := precision_line(result.provenance)) is not None:
            page = with_section(page, Section(title="Precision", text=[rounded]))
        return with_judgements(page, result.judgements)

    def table(self, result: Any) -> Table:
        """The main numbers."""
        return import_module(f"{self.package}.report").rate_table(result)

    def verdicts(self, result: Any) -> list[str]:
        """Verdicts on the claims, in words that follow from the data."""
        lines = list(import_module(f"{self.package}.report").verdicts(result))
        if (rounded := precision_line(result.provenance)) is not None:
            lines.append(rounded)
        return lines if result.judgements is None else [*lines, *judgement_lines(result.judgements)]


def _loaded_judges(
    judges: Sequence[str], model: "ChatModel | None", prompts: "PromptSet | None"
) -> Sequence[Any]:
    from interp.representations.judging import all_judges

    return all_judges(judges, model=model, prompts=prompts)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Run(Shown, Generic[ResultT]):
    """A finished run: its typed result, figures, report."""

    experiment: Experiment
    """The experiment that was run."""
    result: ResultT
    """The numbers; its fields are those of the experiment's `Result`."""
    folder: Path | None = None
    """Folder that the run is stored in; None for one that is not stored."""
    computed: "Mapping[str, Tensor] | None" = None
    """Tensors of a run made now; a stored one reads them when they are asked for."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further files of a run made now."""

    @cached_property
    def tensors(self) -> "Mapping[str, Tensor]":
        """Directions and other tensors; empty where only numbers were kept."""
        if self.computed is not None:
            return self.computed
        return {} if self.folder is None else read_tensors(self.folder)

    @property
    def provenance(self) -> Provenance:
        """Model, prompts, seed, versions."""
        return self.result.provenance

    def figures(self) -> "dict[str, go.Figure]":
        """Every figure by name, drawn from the numbers."""
        with self._drawn():
            return self.experiment.figures(self.result)

    def report(self) -> str:
        """The page, as HTML."""
        with self._drawn():
            return self.experiment.report(self.result)

    def table(self) -> "pd.DataFrame":
        """The main numbers."""
        from interp.display.frames import shown_frame

        with self._drawn():
            return shown_frame(self.experiment.table(self.result))

    def verdicts(self) -> list[str]:
        """Verdicts on the claims, in words that follow from the data."""
        with self._drawn():
            return self.experiment.verdicts(self.result)

    @contextmanager
    def _drawn(self) -> Iterator[None]:
        """A stored result of the right types may lack what its drawing needs, such as the row of a kind of prompts.

        Raises:
            ValueError: it does.
        """
        try:
            yield
        except Exception as error:
            if self.folder is None or self.computed is not None:
                raise  # a result that was made here and now: a fault of the drawing
            what = f"{type(error).__name__} {first_line(error)}"
            raise ValueError(
                f"{result_file(self.folder)} cannot be drawn ({what}): it is damaged or incomplete; run "
                f"{self.experiment.name} again"
            ) from error

    def save(self, folder: str | Path) -> Path:
        """Write the run folder: result, tensors, figures, report, and what else the experiment keeps."""
        return write_run(
            folder,
            self.experiment.name,
            self.result,
            tensors=self.tensors,
            figures=self.figures(),
            report=self.report(),
            files=self.files,
        )

    def _card(self) -> Card:
        about, seconds = self.result.provenance, self.result.seconds.get("total")
        device = "" if about.model is None else f" on {about.model.device}"
        facts = {
            "model": None if about.model is None else about.model.model,
            "prompts": None if about.prompts is None else about.prompts.name,
            "took": None if seconds is None else f"{seconds:.0f} s{device}",
            "read from": None if self.folder is None else os.path.relpath(self.folder),
        }
        with self._drawn():
            shown = self.experiment.table(self.result)
        return Card(
            title=f"{self.experiment.name}: {self.experiment.summary}",
            facts={name: value for name, value in facts.items() if value},
            tables=[shown],
            notes=[*self.verdicts(), "figures() draws every figure; .result holds every number."],
        )
