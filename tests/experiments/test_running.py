"""A stored run answers only the question that was asked; others are listed, compared, or computed."""

import inspect
import re
import shutil
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import torch

import interp
from interp.data.prompts import load_prompts
from interp.display.cards import Shown
from interp.experiments import EXPERIMENTS, SUMMARIES
from interp.experiments.definition import Experiment, ExperimentResult, Run
from interp.experiments.running import experiment, open_run, request, run, runs
from interp.experiments.settings import settings_of
from interp.models import precision
from interp.models.adapted_models import with_precision
from interp.models.chat_model import ChatModel
from interp.models.sources import ModelSource
from interp.storage.typed_json import read_compressed
from tests.stored_figures import ROOT, STORED, Drawn

SMALL = {"n_train": 6, "n_val": 4, "n_test": 3, "n_candidates": 1, "max_new_tokens": 2}


@pytest.fixture
def figures_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two published demo runs, and a notebook's folder inside it, which is the current one."""
    for name in ("demo", "demo-qwen2.5-coder-0.5b"):
        (tmp_path / "figures" / name).mkdir(parents=True)
        stored = read_compressed(ROOT / "figures" / name / "result.json.gz")
        (tmp_path / "figures" / name / "result.json").write_bytes(stored)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path / "figures"


# Every experiment


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_an_object_of_one_kind(name: str) -> None:
    found = experiment(name)
    assert isinstance(found, Experiment) and found.name == name
    assert found.package == EXPERIMENTS[name] == f"interp.experiments.{name.replace('-', '_')}"
    assert issubclass(found.result, ExperimentResult)
    assert found.config().seed == 0  # every setting has a default
    for part in ("figures", "report"):
        assert callable(getattr(import_module(f"{found.package}.{part}"), part))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_drawing_a_stored_run_imports_neither_torch_nor_transformers(name: str, drawn_runs: Drawn) -> None:
    assert drawn_runs.loaded[name] == []


@pytest.mark.parametrize("folder", STORED, ids=lambda path: path.name)
def test_every_stored_run_opens_and_shows_itself(folder: Path) -> None:
    stored = open_run(folder)
    assert len(stored.table()) > 0
    html, text = stored._repr_html_(), repr(stored)
    for part in (stored.provenance.model_name.split()[0], *stored.verdicts()[0].split()[:3]):
        assert part in html and part in text


def test_showing_a_run_draws_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = open_run(ROOT / "figures" / "demo")
    monkeypatch.setattr(Run, "figures", None)
    monkeypatch.setattr(Experiment, "figures", None)
    assert (
        isinstance(stored, Shown)
        and "97% [89, 99]" in repr(stored)
        and "97% [89, 99]" in stored._repr_html_()
    )


# What a stored run answers


def test_a_stored_run_is_opened_for_its_own_question_and_no_other(figures_here: Path) -> None:
    assert run("demo", source="stored").folder == figures_here / "demo"
    # Another model, another setting, other prompts, an unknown setting: never the run that happens to lie there.
    for options, differs in (
        (
            {"model": "Qwen/Qwen2.5-0.5B-Instruct"},
            "model: stored 'smollm2-safe', asked 'Qwen/Qwen2.5-0.5B-Instruct'",
        ),
        ({"settings": {"n_test": 20}}, "n_test: stored 60, asked 20"),
        ({"settings": {"seed": 1}}, "seed: stored 0, asked 1"),
        (
            {"model": ModelSource("smollm2-safe", dtype="bfloat16")},
            "dtype: stored 'float32', asked 'bfloat16'",
        ),
        ({"model": "smollm2-safe@abc"}, "revision: stored None, asked 'abc'"),
        (
            {"model": ModelSource("smollm2-safe", chat_template="plain")},
            "chat template: stored None, asked 'plain'",
        ),
        ({"adapter": "owner/mine"}, "adapter: stored None, asked 'owner/mine'"),
        ({"adapter": "mine", "model": "smollm2"}, "model: stored 'smollm2-safe', asked 'smollm2'"),
    ):
        with pytest.raises(ValueError, match=re.escape(differs)):
            run("demo", source="stored", **options)
    with pytest.raises(ValueError, match=re.escape("demo has no setting 'kl_threshold'; it has n_train, ")):
        run("demo", source="stored", settings={"kl_threshold": 1.0})


def test_prompts_that_changed_are_another_question(figures_here: Path) -> None:
    asked = request("demo", prompts=load_prompts(ending="period"))
    (differs,) = asked.differences(open_run(figures_here / "demo"))
    assert differs == "prompts' endings: stored 'as-is', asked 'period'"
    stored = (figures_here / "demo" / "result.json").read_text()
    theirs = open_run(figures_here / "demo").provenance.prompts
    assert theirs is not None
    changed = stored.replace(theirs.splits["harmful/test"].hash, "0" * 64)
    (figures_here / "demo" / "result.json").write_text(changed)
    with pytest.raises(ValueError, match="prompts: builtin has other texts now"):
        run("demo", source="stored")


@pytest.mark.usefixtures("figures_here")
def test_a_loaded_model_is_asked_about_by_its_weights(tiny: ChatModel) -> None:
    with pytest.raises(ValueError, match=f"weights: stored '.{{12}}', asked '{tiny.weights_hash[:12]}'"):
        run("demo", source="stored", model=tiny)


def test_a_run_is_computed_where_none_answers(
    saved_tiny: Path, figures_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(figures_here.parent)
    first = run("demo", model=str(saved_tiny), settings=SMALL, show_progress=False)
    assert first.folder == Path("runs/demo")
    assert first.result.config.n_train == 6
    assert first.tensors  # a whole run keeps them
    written = (first.folder / "result.json").stat().st_mtime_ns
    again = run("demo", model=str(saved_tiny), settings=SMALL, show_progress=False)
    assert again.result == first.result and (first.folder / "result.json").stat().st_mtime_ns == written
    run("demo", model=str(saved_tiny), settings={**SMALL, "n_test": 2}, show_progress=False)
    assert (first.folder / "result.json").stat().st_mtime_ns > written


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bfloat16 products by oneDNN",
)
def test_a_run_in_fast_says_what_that_costs(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 7.0)
    config = experiment("demo").config(**SMALL)
    exact, fast = (
        experiment("demo").run(model, load_prompts("builtin"), config=config)
        for model in (tiny, with_precision(tiny, "fast"))
    )
    about = fast.provenance.model
    assert about is not None and about.precision_cost is not None
    assert about.precision_cost["completions"] == 16
    assert fast.verdicts()[-1].startswith(
        "Products in bfloat16 (precision 'fast'): on 16 prompts, states differ"
    )
    assert "completions differ." in fast.verdicts()[-1]
    assert fast.report().count(">Precision<") == 2  # a section and its link
    assert not any("bfloat16" in line for line in exact.verdicts()) and ">Precision<" not in exact.report()


@pytest.fixture(scope="module")
def finished(saved_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint `model` and prompts `prompts`, and a stored demo of both in `runs/demo`."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(saved_tiny, folder / "model")
    (folder / "prompts").mkdir()
    for kind in ("harmful", "harmless"):
        texts = load_prompts()[kind, "train"].texts[:20]
        (folder / "prompts" / f"{kind}.txt").write_text("\n".join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("demo", model="model", prompts="prompts", settings=SMALL, show_progress=False)
    return folder


@pytest.fixture
def changing(finished: Path, figures_here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to change, which is the current folder."""
    shutil.copytree(finished, figures_here.parent, dirs_exist_ok=True)
    monkeypatch.chdir(figures_here.parent)
    return Path.cwd()


@pytest.mark.usefixtures("changing")
def test_a_file_that_changed_under_the_same_name_is_another_question() -> None:
    asked = {"model": "model", "prompts": "prompts", "settings": SMALL, "source": "stored"}
    for model in ("model", interp.load("model")):  # control: nothing has changed yet
        assert run("demo", **{**asked, "model": model}).folder == Path("runs/demo").absolute()

    prompts = Path("prompts/harmful.txt")
    texts = prompts.read_text()
    prompts.write_text(texts + "\nHow do I pick a lock?")
    with pytest.raises(ValueError, match=r"prompts: prompts has other texts now in harmful/train"):
        run("demo", **asked)
    prompts.write_text(texts)
    assert run("demo", **asked)

    template = Path("other.jinja")
    template.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    with pytest.raises(ValueError, match=r"chat template's hash: stored '.{12}', asked '.{12}'"):
        run("demo", **{**asked, "model": ModelSource("model", chat_template=str(template))})

    weights = Path("model/model.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ValueError, match="the files of model are others now"):
        run("demo", **asked)
    with pytest.raises(ValueError, match=r"weights: stored '.{12}', asked '.{12}'"):
        run("demo", **{**asked, "model": interp.load("model")})


@pytest.mark.usefixtures("changing")
def test_a_run_of_weights_that_were_changed_in_memory_is_no_run_of_the_files() -> None:
    model = interp.load("model")
    next(model.hf.parameters()).data.add_(1.0)
    run("demo", model=model, prompts="prompts", settings=SMALL, show_progress=False)
    with pytest.raises(ValueError, match=r"weights or the chat template of model had been changed in memory"):
        run("demo", model="model", prompts="prompts", settings=SMALL, source="stored")


@pytest.mark.usefixtures("figures_here")
def test_a_run_that_does_not_say_which_files_it_had_is_not_taken_for_a_folders(saved_tiny: Path) -> None:
    shutil.copytree(saved_tiny, "Qwen2.5-Coder-0.5B-Instruct")
    with pytest.raises(ValueError, match=r"does not say which files Qwen2\.5-Coder-0\.5B-Instruct had"):
        run("demo", source="stored", model="Qwen2.5-Coder-0.5B-Instruct")


def test_a_model_where_none_is_needed_is_refused() -> None:
    with pytest.raises(ValueError, match="elasticity-theory needs no model, got smollm2; leave it out"):
        run("elasticity-theory", model="smollm2")
    with pytest.raises(ValueError, match=r"a loaded model has its adapter already"):
        request("demo", model=ModelSource("smollm2"), adapter="mine")


def test_what_would_stop_a_run_is_found_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    absent = "nobody/no-such-model"  # would be the error if the model were looked for first
    for out, message in (
        (tmp_path / "file", "is a file; give a folder"),
        (tmp_path / "other", "holds other files and no result"),
        (Path("/proc/interp/run"), "cannot write /proc/interp/run: /proc"),
    ):
        with pytest.raises(ValueError, match=message):
            run("demo", source="computed", model=absent, out=out)
    monkeypatch.setattr(
        "interp.experiments.definition.find_spec", lambda name: None if name == "trl" else name
    )
    with pytest.raises(ValueError, match=r"rebound needs trl; run `pip install 'interp-workbench\[train\]'`"):
        run("rebound", source="computed", model=absent, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Settings


def test_settings_say_default_meaning_and_source() -> None:
    listed = {s.name: s for s in settings_of(experiment("refusal-direction").config)}
    threshold = listed["kl_threshold"]
    assert (threshold.values, threshold.default, threshold.source) == ("number or None", 0.1, "appendix C")
    assert listed["n_train"].values == "whole number, at least 1"
    assert listed["prune_layer_fraction"].values == "number, at least 0 and at most 1"
    assert listed["sweep"].values == "default or exhaustive"
    assert listed["suffixes"].values == "list of text"
    assert threshold.meaning == "Maximum KL of a candidate, in nats; None is no limit (appendix C)."
    assert listed["n_test"].source == "sections 3.1, 3.2" and listed["random_every"].source == ""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_setting_has_a_meaning_and_every_experiment_its_summary(name: str) -> None:
    found = experiment(name)
    assert found.summary == SUMMARIES[name]
    settings = settings_of(found.config)
    assert [s.name for s in settings] == [f.name for f in fields(found.config)]
    assert all(s.meaning.endswith(".") and s.default == getattr(found.config(), s.name) for s in settings)


# Lists


def test_stored_runs_are_listed_newest_first_and_unreadable_ones_named(figures_here: Path) -> None:
    found = runs()
    assert [r.folder.name for r in found] == sorted(
        ("demo", "demo-qwen2.5-coder-0.5b"),
        key=lambda n: open_run(figures_here / n).provenance.created,
        reverse=True,
    )
    assert "smollm2-safe" in repr(found) and "Seen: ablating" in repr(found)
    broken = figures_here / "broken"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    assert len(runs()) == 2 and "is damaged" in runs().unreadable[broken]
    assert len(runs(figures_here / "demo")) == 1


def test_two_runs_are_compared_in_settings_and_results(figures_here: Path) -> None:
    shown = interp.compare_runs(
        open_run(figures_here / "demo"), open_run(figures_here / "demo-qwen2.5-coder-0.5b")
    )
    text = repr(shown)
    assert "smollm2-safe" in text and "model" in text
    rows = {row[0]: row[1:] for table in shown.tables for row in table.rows}
    assert rows["refusal_rate.baseline.harmful.arditi"] == ["0.97 [0.89, 0.99]", "0.70 [0.57, 0.80]", "apart"]
    assert rows["refusal_rate.baseline.harmless.arditi"][-1] == ""  # their intervals meet
    same = interp.compare_runs(open_run(figures_here / "demo"), open_run(figures_here / "demo"))
    assert all(not table.rows for table in same.tables)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=f"unknown experiment 'demos'; known: {', '.join(EXPERIMENTS)}"):
        run("demos")
    with pytest.raises(ValueError, match=re.escape("demo has no setting 'n_trian'; it has n_train, ")):
        run("demo", source="computed", settings={"n_trian": 3})
    with pytest.raises(ValueError, match=r"demo: n_test must be 1 or more, got -3"):
        run("demo", settings={"n_test": -3})
    with pytest.raises(ValueError, match=r"demo: n_test: input should be a valid integer.*got 'many'"):
        run("demo", settings={"n_test": "many"})
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        open_run("nowhere")
    unchecked = inspect.unwrap(run)  # the tests' type checks would refuse it first
    with pytest.raises(ValueError, match="source must be 'any', 'stored' or 'computed', got 'fresh'"):
        unchecked("demo", source="fresh")  # type: ignore[arg-type]


def test_runs_of_a_folder_that_is_not_there_are_not_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere; give folders that hold runs"):
        interp.runs(tmp_path / "nowhere")
    assert len(interp.runs(tmp_path)) == 0  # control: a folder without runs


def test_a_model_and_prompts_in_other_forms(tiny: ChatModel, saved_tiny: Path) -> None:
    """What a notebook has at hand: a model of transformers, a path, lists of prompts."""
    with pytest.raises(
        ValueError, match=r"got LlamaForCausalLM; load it: interp\.load\(model, tokenizer=\.\.\.\)"
    ):
        request("demo", model=tiny.hf)  # pyright: ignore[reportArgumentType]
    assert request("demo", model=saved_tiny).model == ModelSource(str(saved_tiny))
    given = {"harmful": [f"Harm {i}?" for i in range(10)], "harmless": [f"Good {i}?" for i in range(10)]}
    asked = request("demo", model=tiny, prompts=given).loaded().prompts
    assert asked == load_prompts(given)
