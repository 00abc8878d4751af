"""Scoring over workers: every text has the score that it has in one process."""

from pathlib import Path

import pytest

from interp.data.prompts import load_prompts
from interp.detectors import detector as detectors
from interp.detectors.latent_guard import LatentGuard
from interp.detectors.machine_text.detector import MachineTextDetector
from interp.detectors.scoring import scored
from interp.models.chat_model import load
from interp.models.sources import ModelSource
from tests.cli.commands import passed, refused
from tests.detectors.machine_text.test_detector import human
from tests.two_nodes import TwoNodes


@pytest.fixture(scope="module")
def guard(saved_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = load_prompts("builtin", ending="period")
    fitted = LatentGuard.fit(load(str(saved_tiny)), prompts, n_prompts=8, max_new_tokens=2)
    return fitted.save(tmp_path_factory.mktemp("guard") / "guard.safetensors")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of different lengths: two whole chunks, and a part of one."""
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n".join(f"What is {n} times {n * n}{' then' * (n % 7)}?" for n in range(600)))
    return file


def test_a_model_that_is_named_gives_the_scores_of_one_that_is_loaded(
    guard: Path, saved_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectors, "CHUNK", 3)
    model, fitted = load(str(saved_tiny)), LatentGuard.load(guard)
    lines = [f"Name {n} colours" for n in range(8)]
    here = list(fitted.stream(model, iter(lines)))
    assert list(scored(fitted, ModelSource(str(saved_tiny)), iter(lines))) == here
    assert [finding.id for finding in here] == [str(n) for n in range(8)]
    detector = MachineTextDetector(score_name="log_rank").calibrated(
        model, human(20), false_positive_rate=0.1
    )
    written = human(7, seed=3).texts
    assert list(scored(detector, ModelSource(str(saved_tiny)), iter(written))) == detector.score(
        model, list(written)
    )


def test_workers_that_cannot_be_had_are_refused(guard: Path, texts: Path, saved_tiny: Path) -> None:
    options = ("guard", "score", guard, texts, "--model", saved_tiny)
    assert "workers must be 1 or more, got 0" in refused(*options, "--workers", 0)
    assert "is auto or host:port, got 'ray://x:1'" in refused(*options, "--ray", "ray://x:1")
    assert "cannot be cpu:0" in refused(*options, "--workers", 2, "--device", "cpu:0")


@pytest.mark.checkpoint
def test_commands_over_two_nodes_print_what_one_process_prints(
    guard: Path, texts: Path, saved_tiny: Path, tmp_path: Path, nodes: TwoNodes
) -> None:
    options = ("guard", "score", guard, texts, "--model", saved_tiny)
    alone = passed(*options)
    assert alone.count("\n") == 600
    assert passed(*options, "--ray", nodes.address) == alone
    detector = MachineTextDetector(score_name="fast_detect_gpt")
    file = detector.calibrated(load(str(saved_tiny)), human(20), false_positive_rate=0.1).save(
        tmp_path / "d.json"
    )
    options = ("detect", "score", file, texts, "--model", saved_tiny)
    assert passed(*options, "--ray", nodes.address) == passed(*options)
    other = ("guard", "score", guard, texts, "--model", "smollm2", "--ray", nodes.address)
    assert "fitted on prompts in another frame" in refused(*other)  # from a worker, as from this process
