"""Whole files of every kind that the tool reads, and what reads them."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.data.corpora import read_corpus
from interp.data.files import prompt_lines
from interp.data.prompts import load_prompts, read_answered
from interp.detectors.baselines import LogisticProbe, RefusalDirection, WordsDetector
from interp.detectors.fitted import FittedDetector
from interp.detectors.guard_models import FORMATS, TextGuard
from interp.detectors.latent_guard import LatentGuard
from interp.directions import Direction
from interp.engine.generation import generate
from interp.experiments.running import open_run
from interp.models.chat_model import load
from interp.representations.beliefs import Centres
from interp.storage.control_vectors import write_control_vector
from interp.storage.direction_files import (
    read_direction,
    read_direction_evaluations,
    write_direction,
)
from interp.storage.run_folders import write_run
from interp.storage.typed_json import to_plain
from tests.conftest import make_tokenizer, tiny_config
from tests.torture.damage import Damaged, damaged_bytes, damaged_json, damaged_tensors

FIGURES = Path(__file__).parents[2] / "figures"


class Kind(NamedTuple):
    """A whole file, its damaged versions, and what reads it."""

    path: Path
    damaged: Sequence[Damaged]
    read: Callable[[], Any]
    named: str
    """What every message must name."""
    sealed: bool = False
    """Whether the file proves its content: a damaged version that is read must then read as the whole one does."""


def directions(place: Path) -> Iterator[Kind]:
    """Direction files of our own and of other tools."""
    direction = Direction(vector=torch.randn(32), layer=2, position="t_inst", mean_activation_norm=3.0)
    ours = write_direction(place / "ours.safetensors", direction)
    yield _tensor_kind(ours, lambda: _values(read_direction(ours)))._replace(sealed=True)
    torch.save(torch.randn(32), place / "direction.pt")
    beside = place / "direction_metadata.json"
    beside.write_text(json.dumps({"layer": 3, "pos": -1}))
    theirs = place / "direction.pt"
    yield _bytes_kind(theirs, lambda: _values(read_direction(theirs)))._replace(sealed=True)
    yield _json_kind(beside, lambda: read_direction(theirs))
    control = write_control_vector(place / "control.gguf", direction, architecture="llama")
    yield _bytes_kind(control, lambda: _values(read_direction(control)))._replace(sealed=True)
    table = place / "direction_evaluations.json"
    row = {"position": -1, "layer": 3, "refusal_score": -2.0, "steering_score": 1.0, "kl_div_score": 0.05}
    table.write_text(json.dumps([row] * 3))
    yield _json_kind(table, lambda: read_direction_evaluations(table))


def guards(place: Path) -> Iterator[Kind]:
    """Detectors of every class."""
    about: dict[str, Any] = {"threshold": 0.0, "ending": "period"}
    about["fitted_on"] = {
        "model": "tiny",
        "weights_hash": "a",
        "template_hash": "b",
        "counts": {"harmful": 3},
    }
    about["fitted_on"]["prompts"] = {"name": "builtin"}
    harm, refusal = (Centres(positive=torch.randn(4, 32), negative=torch.randn(4, 32)) for _ in range(2))
    wide, terms = torch.randn(32), torch.ones(2).double()
    probe = {"mean": wide.double(), "scale": wide.double().exp(), "weights": wide.double(), "intercept": 0.5}
    detectors: list[FittedDetector[Any]] = [
        LatentGuard(harm=harm, refusal=refusal, layers=(1, 2), **about),
        LogisticProbe(layer=1, role=0, **probe, **about),
        RefusalDirection(layer=1, role=1, direction=wide, note="", **about),
        WordsDetector(vocabulary=("a", "b"), idf=terms, weights=2 * terms, intercept=0.0, **about),
    ]
    for detector in detectors:
        path = detector.save(place / f"{type(detector).__name__}.safetensors")
        kind = _tensor_kind(path, lambda path=path, detector=detector: _state(type(detector).load(path)))
        tensors, metadata = _parts(path)
        fields = [
            Damaged(how, save(tensors, {**metadata, "guard": data.decode(errors="replace")}))
            for how, data in damaged_json(json.loads(metadata["guard"]), seed=3)
        ]
        yield kind._replace(damaged=[*kind.damaged, *fields], sealed=True)
    text = TextGuard(format=FORMATS["wildguard"], threshold=0.5).save(place / "text.json")
    yield _json_kind(text, lambda: TextGuard.load(text))


def prompts(place: Path) -> Iterator[Kind]:
    """Prompt files, answers, corpora and streams."""
    rows = [{"instruction": f"How é {i}?", "category": "a", "output": "yes"} for i in range(12)]
    table = pandas.DataFrame(rows)
    for ending in ("jsonl", "json", "csv", "txt", "parquet"):
        path = place / f"prompts.{ending}"
        if ending == "parquet":
            table.to_parquet(path)
        elif ending == "csv":
            table.to_csv(path, index=False)
        elif ending == "txt":
            path.write_text("\n".join(table["instruction"]))
        else:
            path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
        sources = {"harmful": path, "harmless": path}
        yield _bytes_kind(path, lambda sources=sources: load_prompts(sources))
        yield _bytes_kind(path, lambda path=path: read_corpus("corpus", path))
    whole = place / "prompts.json"
    yield _json_kind(whole, lambda: read_answered(whole))
    lines = place / "prompts.jsonl"

    def stream() -> list[str]:
        with lines.open(encoding="utf-8-sig") as opened:
            return list(prompt_lines(opened, str(lines)))

    yield _bytes_kind(lines, stream)


def checkpoints(place: Path) -> Iterator[Kind]:
    """Checkpoints and adapters."""
    torch.manual_seed(0)
    hf: Any = AutoModelForCausalLM.from_config(tiny_config())
    folder, adapter = place / "checkpoint", place / "adapter"
    hf.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(hf, lora).save_pretrained(str(adapter))

    def run() -> Any:
        return generate(load(str(folder)), ["Hi"], max_new_tokens=2)

    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        yield _json_kind(folder / name, run, named="")
    yield _bytes_kind(folder / "chat_template.jinja", run, named="")
    yield _bytes_kind(folder / "model.safetensors", run, named="checkpoint")
    attach = lambda: load(str(folder), adapter=str(adapter))  # noqa: E731
    yield _json_kind(adapter / "adapter_config.json", attach, named="adapter")
    yield _tensor_kind(adapter / "adapter_model.safetensors", attach)._replace(named="adapter")


def runs(place: Path) -> Iterator[Kind]:
    """Stored runs of every experiment."""
    for source in sorted(FIGURES.glob("*/result.json.gz")):
        if source.stat().st_size > 500_000:  # drawn as often as it is damaged
            continue
        old = open_run(source.parent)
        folder = write_run(place / source.parent.name, old.experiment.name, old.result)

        def draw(folder: Path = folder) -> Any:
            run = open_run(folder)
            for look in (run.__repr__, run.table, run.verdicts, run.figures, run.report):
                look()
            return to_plain(run.result, type(run.result))

        for sealed in (True, False):  # and as runs were written before they held a hash
            path = folder / "result.json"
            content = json.loads(path.read_text())
            if not sealed:
                del content["sha256"]
                path.write_text(json.dumps(content))
            changed = damaged_json(content, seed=2, n=15)
            yield Kind(
                path, [*changed, *damaged_bytes(path.read_bytes(), seed=1, n=2)], draw, path.name, sealed
            )


FAMILIES: dict[str, Callable[[Path], Iterator[Kind]]] = {
    "directions": directions,
    "guards": guards,
    "prompts": prompts,
    "checkpoints": checkpoints,
    "runs": runs,
}


def _values(direction: Direction) -> Any:
    about = (
        direction.site,
        direction.layer,
        direction.position,
        direction.sign,
        direction.mean_activation_norm,
    )
    return direction.vector.tolist(), about, dict(direction.provenance)


def _state(detector: FittedDetector[Any]) -> Any:
    tensors, own = detector._parts()
    return (
        {name: value.tolist() for name, value in tensors.items()},
        own,
        detector.fitted_on,
        detector.threshold,
    )


def _bytes_kind(path: Path, read: Callable[[], Any], *, named: str | None = None) -> Kind:
    return Kind(
        path, list(damaged_bytes(path.read_bytes(), seed=0)), read, path.name if named is None else named
    )


def _json_kind(path: Path, read: Callable[[], Any], *, named: str | None = None) -> Kind:
    kind = _bytes_kind(path, read, named=named)
    return kind._replace(damaged=[*kind.damaged, *damaged_json(json.loads(path.read_text()), seed=1)])


def _tensor_kind(path: Path, read: Callable[[], Any]) -> Kind:
    kind = _bytes_kind(path, read)
    return kind._replace(damaged=[*kind.damaged, *damaged_tensors(*_parts(path), seed=0)])


def _parts(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(str(path), framework="pt") as stream:
        names = list(stream.keys())
        return {name: stream.get_tensor(name).clone() for name in names}, stream.metadata() or {}
