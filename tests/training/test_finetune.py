"""Fine-tuning: what is learned, what is saved at which count, stages, and continuing after a kill."""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from interp.data.examples import Example, Preference
from interp.engine.log_probs import completion_log_probs
from interp.models import precision
from interp.models.adapted_models import with_adapter, with_precision
from interp.models.chat_model import ChatModel, load
from interp.training.finetune import TrainConfig, fine_tune, preference_tune
from interp.training.runner import steps_of
from interp.training.saving import run_key
from tests.conftest import PROMPTS
from tests.storage.test_run_folders import small_disk

CONFIG = TrainConfig(epochs=2.0, batch_size=4, warmup_steps=1, learning_rate=2e-3, dropout=0.1, rank=4)
EXAMPLES = [Example(prompt, "yes") for prompt in PROMPTS * 2]  # 12: three steps an epoch
PREFERENCES = [Preference(prompt, "yes", "no") for prompt in PROMPTS * 2]


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then


def weights(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.hf.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def score(model: ChatModel, completion: str, prompts: Sequence[str] = PROMPTS) -> float:
    """Mean log-probability of a completion, nats per token."""
    ids = [tuple(model.tokenizer(completion)["input_ids"])] * len(prompts)  # pyright: ignore[reportArgumentType]
    return float(torch.cat(completion_log_probs(model, list(prompts), ids)).mean())


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (Trainer's signature)
        if state.global_step == self.step:
            raise Killed


# What is learned, and what is left alone


def test_noise_on_the_embeddings_changes_what_is_learned_and_goes_with_the_run(
    tiny: ChatModel, tmp_path: Path
) -> None:
    noisy = replace(CONFIG, embedding_noise=20.0)
    embedding = tiny.hf.get_input_embeddings()
    found = [
        stored(fine_tune(tiny, EXAMPLES, out=tmp_path / name, config=config).folder)
        for name, config in (("plain", CONFIG), ("noisy", noisy), ("again", noisy))
    ]
    assert equal(found[1], found[2])
    assert not equal(found[0], found[1])
    with pytest.raises(Killed):
        fine_tune(tiny, EXAMPLES, out=tmp_path / "killed", config=noisy, callbacks=[KillAt(2)])
    assert not embedding._forward_hooks


def test_checkpoints_at_example_counts_learn_and_the_model_stays_as_it_was(
    tiny: ChatModel, tmp_path: Path
) -> None:
    before = weights(tiny)
    trained = fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=CONFIG, checkpoints=[24, 0, 8])
    assert equal(before, weights(tiny)) and not tiny.hf.training
    assert all(parameter.requires_grad for parameter in tiny.hf.parameters())
    assert [*trained.checkpoints] == [0, 8, 24]
    assert [count for count, _ in trained.losses] == [8, 24]
    assert trained.losses[0][1] > trained.losses[1][1]
    assert not (tmp_path / "a.parts").exists()
    scores = []
    for folder in trained.checkpoints.values():
        with with_adapter(tiny, str(folder)) as model:
            scores.append(score(model, "yes"))
    assert equal(before, weights(tiny))
    assert all(parameter.requires_grad for parameter in tiny.hf.parameters())
    assert scores[0] == pytest.approx(
        score(tiny, "yes"), abs=1e-6
    )  # nothing is changed before the first step
    assert scores[0] < scores[1] < scores[2]
    assert equal(stored(trained.folder), stored(trained.checkpoints[24]))


def test_an_adapter_on_the_loaded_base_equals_one_loaded_with_it(
    tiny: ChatModel, saved_tiny: Path, tmp_path: Path
) -> None:
    trained = fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=CONFIG)
    loaded = load(str(saved_tiny), adapter=str(trained.folder))
    with with_adapter(tiny, str(trained.folder)) as model:
        assert equal(weights(loaded), weights(model))
        assert not equal(weights(loaded), stored_base := weights(load(str(saved_tiny))))
    assert equal(stored_base, weights(tiny))


def test_full_fine_tuning_saves_models_and_puts_the_weights_back(tiny: ChatModel, tmp_path: Path) -> None:
    before = weights(tiny)
    config = replace(CONFIG, method="full")
    trained = fine_tune(tiny, EXAMPLES, out=tmp_path / "full", config=config, checkpoints=[12])
    assert equal(before, weights(tiny))
    half, whole = load(str(trained.checkpoints[12])), load(str(trained.folder))
    assert score(tiny, "yes") < score(half, "yes") < score(whole, "yes")
    again = fine_tune(half, EXAMPLES, out=tmp_path / "stage", config=config)  # a later stage
    assert score(load(str(again.folder)), "yes") > score(half, "yes")


def test_a_later_stage_continues_the_adapter(tiny: ChatModel, tmp_path: Path) -> None:
    first = fine_tune(tiny, EXAMPLES, out=tmp_path / "1", config=CONFIG)
    reverse = [Example(prompt, "no!") for prompt in PROMPTS * 2]
    config = replace(CONFIG, rank=2, epochs=4.0)  # the adapter keeps its own rank
    second = fine_tune(tiny, reverse, out=tmp_path / "2", config=config, checkpoints=[0], start=first.folder)
    assert equal(stored(second.checkpoints[0]), stored(first.folder))
    with with_adapter(tiny, str(first.folder)) as model:
        one = score(model, "no!"), score(model, "yes")
    with with_adapter(tiny, str(second.folder)) as model:
        two = score(model, "no!"), score(model, "yes")
    assert two[0] > one[0] and two[1] < one[1]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences_raise_the_margin_and_leave_the_model_alone(
    tiny: ChatModel, tmp_path: Path, method: Any
) -> None:
    before, config, forward = weights(tiny), replace(CONFIG, method=method), tiny.hf.forward
    pads = tiny.hf.config.pad_token_id, tiny.hf.generation_config.eos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    trained = preference_tune(tiny, PREFERENCES, out=tmp_path / "dpo", config=config, checkpoints=[8])
    assert equal(before, weights(tiny)) and tiny.hf.forward == forward
    assert pads == (tiny.hf.config.pad_token_id, tiny.hf.generation_config.eos_token_id)  # pyright: ignore[reportOptionalMemberAccess]
    margins = [score(tiny, "yes") - score(tiny, "no")]
    for folder in (trained.checkpoints[8], trained.folder):
        if method == "full":
            model = load(str(folder))
            margins.append(score(model, "yes") - score(model, "no"))
        else:
            with with_adapter(tiny, str(folder)) as model:
                margins.append(score(model, "yes") - score(model, "no"))
    assert margins[0] < margins[1] < margins[2]
    assert trained.losses[-1][1] < trained.losses[0][1] < 0.7  # log 2 where nothing is preferred


def test_preferences_are_held_to_the_adapter_they_start_from(tiny: ChatModel, tmp_path: Path) -> None:
    first = fine_tune(tiny, EXAMPLES, out=tmp_path / "sft", config=CONFIG)
    second = preference_tune(tiny, PREFERENCES, out=tmp_path / "dpo", config=CONFIG, start=first.folder)
    assert second.losses[0][1] < 0.7  # against the plain model it would begin far from log 2
    assert sorted(path.name for path in second.folder.iterdir() if path.is_dir()) == []
    assert stored(second.folder).keys() == stored(first.folder).keys()


# Seeds, killing, repeating


def test_a_killed_run_continues_to_the_same_weights(tiny: ChatModel, tmp_path: Path) -> None:
    whole = fine_tune(tiny, EXAMPLES, out=tmp_path / "whole", config=CONFIG, checkpoints=[8, 20])
    before = weights(tiny)
    with pytest.raises(Killed):
        fine_tune(
            tiny, EXAMPLES, out=tmp_path / "cut", config=CONFIG, checkpoints=[8, 20], callbacks=[KillAt(3)]
        )
    assert equal(before, weights(tiny))
    assert (tmp_path / "cut" / "checkpoint-8").is_dir()
    half = tmp_path / "cut.parts" / "checkpoint-5"  # as if it had been killed while writing a state
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            steps.append(state.global_step)

    again = fine_tune(
        tiny, EXAMPLES, out=tmp_path / "cut", config=CONFIG, checkpoints=[8, 20], callbacks=[Count()]
    )
    assert steps == [2, 3, 4, 5]  # the first two were kept
    assert equal(stored(again.folder), stored(whole.folder))
    assert equal(stored(again.checkpoints[8]), stored(whole.checkpoints[8]))
    assert again.loss == pytest.approx(whole.loss, rel=1e-6)
    other = fine_tune(tiny, EXAMPLES, out=tmp_path / "seed", config=replace(CONFIG, seed=1))
    assert not equal(stored(other.folder), stored(whole.folder))


def test_a_finished_run_is_read_and_other_settings_train_anew(tiny: ChatModel, tmp_path: Path) -> None:
    first = fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=CONFIG, checkpoints=[8])
    stamp = (first.folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=CONFIG, checkpoints=[8]) == first
    assert (first.folder / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    other = fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=replace(CONFIG, seed=2), checkpoints=[12])
    assert other.loss != first.loss
    assert sorted(path.name for path in other.folder.glob("checkpoint-*")) == ["checkpoint-12"]


def test_a_constant_schedule_makes_checkpoints_independent_of_what_follows(
    tiny: ChatModel, tmp_path: Path
) -> None:
    constant = replace(CONFIG, schedule="constant")
    long = fine_tune(tiny, EXAMPLES, out=tmp_path / "long", config=constant, checkpoints=[12])
    short = fine_tune(tiny, EXAMPLES, out=tmp_path / "short", config=replace(constant, epochs=1.0))
    assert equal(stored(long.checkpoints[12]), stored(short.folder))
    cosine = fine_tune(tiny, EXAMPLES, out=tmp_path / "cosine", config=replace(CONFIG, epochs=1.0))
    assert not equal(stored(cosine.folder), stored(short.folder))  # control


# Settings


def test_counts_are_steps_ends() -> None:
    config = TrainConfig(batch_size=4, epochs=2.0)
    assert steps_of([0, 4, 10, 14, 20], 10, config) == {0: 0, 1: 4, 3: 10, 4: 14, 6: 20}
    with pytest.raises(ValueError, match=r"ends at 9 examples seen .*nearest are 8 and 10"):
        steps_of([9], 10, config)
    with pytest.raises(ValueError, match="20 in all"):
        steps_of([24], 10, config)


def test_user_errors_say_what_to_do(tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no examples to train on; give at least one"):
        fine_tune(tiny, [], out=tmp_path / "a", config=CONFIG)
    with pytest.raises(ValueError, match="no preferences to train on; give at least one"):
        preference_tune(tiny, [], out=tmp_path / "a", config=CONFIG)
    with pytest.raises(ValueError, match=r"continues no adapter: load .* as the model"):
        fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=replace(CONFIG, method="full"), start=tmp_path)
    with pytest.raises(ValueError, match=r"has no adapter_config.json"):
        fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=CONFIG, start=tmp_path)
    with pytest.raises(ValueError, match=r"target_modules .*nowhere.* it has .*q_proj"):
        fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=replace(CONFIG, target_modules=("nowhere",)))
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        TrainConfig(batch_size=0)
    with pytest.raises(ValueError, match="learning_rate must be above 0, got nan"):
        TrainConfig(learning_rate=float("nan"))
    wild = replace(CONFIG, learning_rate=1e38)
    for name, tune, rows in (("sft", fine_tune, EXAMPLES), ("dpo", preference_tune, PREFERENCES)):
        with pytest.raises(
            ValueError, match=r"the loss is not a number at step \d+; take a smaller learning"
        ):
            tune(tiny, rows, out=tmp_path / name, config=wild)
        assert not (tmp_path / name / "training.json").exists()
    assert all(bool(torch.isfinite(weight).all()) for weight in tiny.hf.parameters())


# Damage, full disks, two at once


@pytest.mark.parametrize("lost", ["adapter_model.safetensors", "checkpoint-8/adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_a_record_whose_weights_are_not_those_is_no_finished_run(
    tiny: ChatModel, tmp_path: Path, lost: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def train() -> Any:
        return fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=CONFIG, checkpoints=[8])

    first = train()
    # Copies: what safetensors reads stays mapped to the file that is damaged below.
    whole = {name: value.clone() for name, value in stored(first.folder).items()}
    path = tmp_path / "a" / lost
    data = path.read_bytes()
    path.unlink() if how == "missing" else path.write_bytes(
        data[:-4] if how == "cut" else data[:-1] + b"\x7f"
    )
    assert train() == first
    assert f"{path} is missing or damaged; training again" in caplog.text
    assert equal(stored(first.folder), whole) and path.read_bytes() == data
    caplog.clear()
    (tmp_path / "a.parts").mkdir()  # as a kill in the last clean-up leaves it
    assert train() == first and not caplog.text  # control: a whole one is only read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("size", [9_000, 20_000])  # fails in the adapter, in the optimiser's state
def test_a_disk_that_fills_up_is_one_line_and_the_run_continues(
    tiny: ChatModel, tmp_path: Path, size: int
) -> None:
    whole = fine_tune(tiny, EXAMPLES, out=tmp_path / "whole", config=CONFIG, checkpoints=[8, 20])
    before = weights(tiny)
    with (
        small_disk(size),
        pytest.raises(OSError, match=r"cannot write the checkpoints of .*make room") as caught,
    ):
        fine_tune(tiny, EXAMPLES, out=tmp_path / "cut", config=CONFIG, checkpoints=[8, 20])
    assert "\n" not in str(caught.value)
    assert equal(before, weights(tiny))
    again = fine_tune(tiny, EXAMPLES, out=tmp_path / "cut", config=CONFIG, checkpoints=[8, 20])
    assert equal(stored(again.folder), stored(whole.folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_refused_arguments_leave_nothing_and_a_running_run_is_named(tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target_modules"):
        fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=replace(CONFIG, target_modules=("nowhere",)))
    assert list(tmp_path.iterdir()) == []
    messages = []

    class Second(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError) as caught:
                pool.submit(fine_tune, tiny, EXAMPLES, out=tmp_path / "a", config=CONFIG).result()
            messages.append(str(caught.value))

    fine_tune(tiny, EXAMPLES, out=tmp_path / "a", config=replace(CONFIG, epochs=1.0), callbacks=[Second()])
    assert messages and "is being written by another run" in messages[0]


def test_an_equal_copy_of_the_start_elsewhere_is_the_same_run(tiny: ChatModel, tmp_path: Path) -> None:
    first = fine_tune(tiny, EXAMPLES, out=tmp_path / "1", config=CONFIG)
    shutil.copytree(first.folder, tmp_path / "copy")
    settings = tmp_path / "copy" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": "/else"}))
    keys = {run_key(tiny, EXAMPLES, CONFIG, start) for start in (first.folder, tmp_path / "copy")}
    assert len(keys) == 1
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "lora_alpha": 99}))
    assert run_key(tiny, EXAMPLES, CONFIG, tmp_path / "copy") not in keys  # control


def test_a_fast_model_trains_by_rounded_products_and_callbacks_measure_as_they_are(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _threads: 7.0)
    fast, config = with_precision(tiny, "fast"), replace(CONFIG, dropout=0.0)
    measured, dtypes, plain = list[Tensor](), set[torch.dtype](), nn.functional.linear

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (its signature)
            if not state.global_step % 3:
                dtypes.clear()
                with torch.no_grad():
                    measured.append(tiny.hf(torch.tensor([[5, 6, 7]])).logits)
                assert dtypes == {torch.float32}

    def linear(x: Tensor, *args: Any) -> Tensor:
        dtypes.add(x.dtype)
        return plain(x, *args)

    monkeypatch.setattr(nn.functional, "linear", linear)
    exact = fine_tune(tiny, EXAMPLES, out=tmp_path / "exact", config=config)
    assert dtypes == {torch.float32}
    rounded = fine_tune(fast, EXAMPLES, out=tmp_path / "fast", config=config, callbacks=[Measure()])
    assert len(measured) == 2
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)
    change, other = (
        torch.cat([value.flatten() for value in stored(folder).values()])
        for folder in (exact.folder, rounded.folder)
    )
    assert 0 < float((other - change).norm()) < 0.1 * float(change.norm())
    assert run_key(fast, EXAMPLES, config, None) != run_key(tiny, EXAMPLES, config, None)
