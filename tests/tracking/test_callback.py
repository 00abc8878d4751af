"""The callback: the run is the same with it, and what it measures arrives wherever the trainer reports."""

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from interp.data.examples import Example
from interp.models.chat_model import ChatModel
from interp.tracking.callback import live_spec, untouched
from interp.tracking.spec import TrackingSpec
from interp.tracking.tracker import ElasticityCallback, track
from interp.tracking.trajectory import Trajectory
from interp.training.finetune import TrainConfig, fine_tune
from tests.conftest import PROMPTS, tiny_config
from tests.training.test_finetune import KillAt, Killed

SPEC = TrackingSpec(
    measures=("refusal", "beliefs", "directions", "shift", "guard", "compression", "kl"),
    n=2,
    n_fit=4,
    n_documents=1,
    n_samples=1,
    max_new_tokens=2,
)
SMALL = replace(SPEC, measures=("shift", "guard"))


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL sends nothing then


def fresh(tiny: ChatModel) -> Any:
    """A copy of the tiny model with dropout in its attention."""
    hf = AutoModelForCausalLM.from_config(tiny_config(attention_dropout=0.2)).float()
    hf.load_state_dict(tiny.hf.state_dict())
    return hf


def rows(tiny: ChatModel) -> Dataset:
    ids = [list(tiny.tokenizer(text)["input_ids"]) for text in PROMPTS]  # pyright: ignore[reportArgumentType]
    return Dataset.from_list([{"input_ids": row[:12], "labels": row[:12]} for row in ids if len(row) >= 12])


def attached(trainer: Trainer, callbacks: list[TrainerCallback]) -> None:
    """Tell our callbacks of the trainer, as its user does."""
    for callback in callbacks:
        if isinstance(callback, ElasticityCallback):
            assert callback.attach(trainer) is callback
    assert trainer.callback_handler.callbacks.count(callbacks[0]) == 1


def train_plain(tiny: ChatModel, out: Path, callbacks: list[TrainerCallback], **changes: Any) -> Trainer:
    settings = {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = Trainer(
        model=fresh(tiny),
        args=TrainingArguments(**{**settings, **changes}),
        train_dataset=rows(tiny),  # pyright: ignore[reportArgumentType]
        processing_class=copy.deepcopy(tiny.tokenizer),
        callbacks=callbacks,
    )
    attached(trainer, callbacks)
    trainer.train()
    return trainer


def train_sft(tiny: ChatModel, out: Path, callbacks: list[TrainerCallback], **changes: Any) -> SFTTrainer:
    from peft import LoraConfig

    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": text}],
                "completion": [{"role": "assistant", "content": "Sure!"}],
            }
            for text in PROMPTS
        ]
    )
    settings = {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }
    trainer = SFTTrainer(
        model=fresh(tiny),
        args=SFTConfig(**{**settings, **changes}),
        train_dataset=data,
        processing_class=copy.deepcopy(tiny.tokenizer),
        peft_config=LoraConfig(
            r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.3, task_type="CAUSAL_LM"
        ),
        callbacks=callbacks,
    )
    attached(trainer, callbacks)
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[tuple[int, float]]:
    return [(int(row["step"]), row["loss"]) for row in trainer.state.log_history if "loss" in row]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tags of the TensorBoard files below a folder → (step, value)."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    return found


class Draws(TrainerCallback):
    """What each random generator would give next, at every step's beginning."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002 (Trainer's signature)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.seen.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        assert given["model"].training


@pytest.mark.parametrize("train", [train_plain, train_sft])
def test_a_run_is_bit_equal_with_and_without_the_callback(
    tiny: ChatModel, tmp_path: Path, train: Any
) -> None:
    draws = [Draws(), Draws(), Draws()]
    without = train(tiny, tmp_path / "a", [draws[0]])
    callback = ElasticityCallback(SPEC, every=3)
    with_it = train(tiny, tmp_path / "b", [callback, draws[1]])
    assert losses(without) == losses(with_it) and len(losses(without)) > 2
    assert draws[0].seen == draws[1].seen
    for (name, one), (_, other) in zip(
        without.model.named_parameters(), with_it.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert callback.trajectory is not None
    assert len(callback.trajectory.checkpoints) == len(draws[0].seen) // 3 + 1

    if train is train_sft:
        return

    class Careless(ElasticityCallback):
        """Control: a measurement that draws from the run's own generator changes it."""

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            torch.rand(1)
            super().on_step_end(args, state, control, **given)

    careless = train(tiny, tmp_path / "c", [Careless(SMALL, every=3), draws[2]])
    assert losses(careless) != losses(without)


@pytest.mark.parametrize("train", [train_plain, train_sft])
def test_values_are_in_tensorboard_in_the_history_and_in_the_trajectory(
    tiny: ChatModel, tmp_path: Path, train: Any
) -> None:
    trainer = train(tiny, tmp_path / "run", [ElasticityCallback(SMALL, every=2)], report_to=["tensorboard"])
    found = scalars(tmp_path / "run" / "runs")
    stored = Trajectory.load(tmp_path / "run" / "elasticity")
    for measure, prompts in (("shift_refusal", "harmful"), ("guard_auroc", "harmful against harmless")):
        tag = f"elasticity/{measure}/{prompts.replace(' ', '_')}"
        rows = stored.of(measure, prompts)
        steps = [int(step) for step in rows["step"]]
        assert steps == list(range(0, trainer.state.max_steps + 1, 2))
        logged = found[f"train/{tag}"]
        assert [step for step, _ in logged] == steps
        assert [value for _, value in logged] == pytest.approx(rows["value"].to_list(), rel=1e-6, abs=1e-9)
        history = [row[tag] for row in trainer.state.log_history if tag in row]
        assert history == rows["value"].to_list()
    assert stored.of("shift_refusal", "harmful")["value"].abs().iloc[-1] > 1e-4
    assert [step for step, _ in found["train/loss"]] == [step for step, _ in losses(trainer)]
    assert all(value > 0 for _, value in found["train/elasticity/steps_per_measurement"])
    assert stored.cost is not None
    assert stored.cost.steps_per_measurement == pytest.approx(
        stored.cost.seconds_per_measurement / stored.cost.seconds_per_step
    )
    assert 0 < stored.cost.share_of_training < 1
    page = (tmp_path / "run" / "elasticity" / "report.html").read_text()
    assert "training steps of" in page


def test_a_callback_that_is_not_attached_says_where_its_values_are(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def not_attached(*_: object) -> None:
        return None

    monkeypatch.setattr("tests.tracking.test_callback.attached", not_attached)
    callback = ElasticityCallback(SMALL, every=2)
    trainer = train_plain(tiny, tmp_path / "run", [callback], report_to=["tensorboard"])
    assert caplog.text.count("attach(trainer)") == 1 and "not to tensorboard" in caplog.text
    found = scalars(tmp_path / "run" / "runs")
    assert "train/loss" in found and not any("elasticity" in tag for tag in found)
    history = [row for row in trainer.state.log_history if any("elasticity" in key for key in row)]
    assert len(history) == trainer.state.max_steps // 2 + 1
    assert callback.trajectory is not None and len(callback.trajectory.checkpoints) == len(history)


def test_attaching_adds_the_callback_once(tiny: ChatModel, tmp_path: Path) -> None:
    callback = ElasticityCallback(SMALL)
    trainer = Trainer(
        model=fresh(tiny), args=TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    )
    for _ in range(2):
        callback.attach(trainer)
        assert trainer.callback_handler.callbacks.count(callback) == 1


def test_it_measures_what_track_measures_on_the_saved_checkpoints(
    tiny: ChatModel, saved_tiny: Path, tmp_path: Path
) -> None:
    callback = ElasticityCallback(SPEC, every=1, out=tmp_path / "live")
    config = TrainConfig(epochs=1.0, batch_size=2, learning_rate=1e-2, warmup_steps=0, dropout=0.2)
    examples = [Example(text, "Sure!") for text in PROMPTS[:4]]
    fine_tune(tiny, examples, out=tmp_path / "a", config=config, checkpoints=[0, 2, 4], callbacks=[callback])
    saved = track(tmp_path / "a", SPEC, base=str(saved_tiny))
    assert callback.trajectory is not None
    live: Any = callback.trajectory.frame
    both: Any = saved.frame[saved.frame["measure"] != "kl_to_reference"].reset_index(drop=True)
    keys = ["index", "measure", "prompts"]
    assert live[keys].equals(both[keys])
    # merged weights and weights with an adapter beside them round differently
    assert np.allclose(live["value"].fillna(0), both["value"].fillna(0), atol=2e-3)


def test_without_steps_it_measures_at_each_save_and_a_resumed_run_keeps_its_reference(
    tiny: ChatModel, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = ElasticityCallback(SMALL, out=tmp_path / "whole")
    train_plain(tiny, tmp_path / "a", [whole], **saving)
    assert whole.trajectory is not None
    assert [c.step for c in whole.trajectory.checkpoints] == [0, 2, 4, 6]
    out = tmp_path / "cut"
    with pytest.raises(Killed):
        train_plain(tiny, tmp_path / "b", [ElasticityCallback(SMALL, out=out), KillAt(4)], **saving)
    assert [c.step for c in Trajectory.load(out).checkpoints][:3] == [0, 2, 4]
    again = ElasticityCallback(SMALL, out=out)
    trainer = Trainer(
        model=fresh(tiny),
        args=TrainingArguments(
            output_dir=str(tmp_path / "b"),
            per_device_train_batch_size=2,
            max_steps=6,
            learning_rate=1e-2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="steps",
            save_steps=2,
        ),
        train_dataset=rows(tiny),  # pyright: ignore[reportArgumentType]
        processing_class=copy.deepcopy(tiny.tokenizer),
        callbacks=[again],
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert again.trajectory is not None
    assert np.allclose(
        again.trajectory.frame["value"].to_numpy(), whole.trajectory.frame["value"].to_numpy(), atol=1e-6
    )
    new = again  # a new run inherits nothing, not even with the same callback
    train_plain(tiny, tmp_path / "c", [new], seed=5)
    assert new.trajectory is not None and [c.step for c in new.trajectory.checkpoints] == [0]


def test_modes_gradients_and_generators_are_as_before_also_after_an_exception(tiny: ChatModel) -> None:
    model = fresh(tiny)
    model.train()
    model.model.layers[1].eval()
    model.model.embed_tokens.weight.grad = torch.ones_like(model.model.embed_tokens.weight)
    modes = [module.training for module in model.modules()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), float(np.random.rand()), float(torch.rand(1))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError), untouched(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        assert len({random.random(), float(np.random.rand()), float(torch.rand(1))}) == 3
        raise ZeroDivisionError
    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == expected
    assert [module.training for module in model.modules()] == modes and torch.is_grad_enabled()
    assert torch.equal(model.model.embed_tokens.weight.grad, torch.ones_like(model.model.embed_tokens.weight))


def test_settings_are_checked(tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be 1 step or more, got 0"):
        ElasticityCallback(SMALL, every=0)
    with pytest.raises(ValueError, match="weights cannot be measured on a live model"):
        ElasticityCallback(TrackingSpec(n=1))
    assert "weights" not in live_spec().measures
    with pytest.raises(ValueError, match="needs the tokenizer; give tokenizer="):
        Trainer(
            model=fresh(tiny),
            args=TrainingArguments(output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True),
            train_dataset=rows(tiny),  # pyright: ignore[reportArgumentType]
            callbacks=[ElasticityCallback(SMALL)],
        ).train()


def test_what_the_measured_model_does_not_hold_is_refused_by_name(tiny: ChatModel) -> None:
    """The base under virtual tokens or an adapter that waits for a string is not the model that is trained."""
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

    from interp.tracking.callback import _chat_model

    virtual = [
        (config(task_type="CAUSAL_LM", num_virtual_tokens=4), kind)
        for config, kind in (
            (PromptTuningConfig, "PROMPT_TUNING"),
            (PrefixTuningConfig, "PREFIX_TUNING"),
            (PromptEncoderConfig, "P_TUNING"),
        )
    ]
    lora = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False}
    activated = LoraConfig(**lora, alora_invocation_tokens=[7, 8])
    for config, kind in [*virtual, (activated, "LORA")]:
        trained: Any = get_peft_model(fresh(tiny), config).eval()
        with pytest.raises(ValueError, match=f"the live callback cannot measure {kind}: .*train an adapter"):
            _chat_model(trained, tiny.tokenizer)
    trained = get_peft_model(fresh(tiny), LoraConfig(**lora)).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        measured = _chat_model(trained, tiny.tokenizer).hf(ids).logits
        assert torch.equal(measured, trained(ids).logits)
        assert not torch.equal(measured, tiny.hf(ids).logits)  # control: the adapter does something


def test_a_trainer_of_virtual_tokens_stops_before_its_first_step(tiny: ChatModel, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    trained: Any = get_peft_model(
        fresh(tiny), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    trainer = Trainer(
        model=trained,
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
        ),
        train_dataset=rows(tiny),  # pyright: ignore[reportArgumentType]
        processing_class=copy.deepcopy(tiny.tokenizer),
    )
    ElasticityCallback(SMALL).attach(trainer)
    with pytest.raises(ValueError, match="cannot measure PROMPT_TUNING: it learns virtual tokens"):
        trainer.train()
    assert trainer.state.global_step == 0
