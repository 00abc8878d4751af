"""Safety prompts: planted results are judged rightly, and a run on the tiny model is whole and stored as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.data.prompts import load_prompts
from interp.display.charts import traces_of
from interp.engine.generation import generate
from interp.engine.safety_prompts import SafetyPrompt
from interp.experiments.safety_prompts import (
    DRO,
    EXPERIMENT,
    NEUTRAL,
    NONE,
    RANDOM,
    SAFETY,
    TUNED,
    Behaviour,
    Config,
    Geometry,
    LayerPlane,
    NearestToken,
    Plane,
    Result,
    Separation,
    ShiftParts,
    Similarity,
    Training,
)
from interp.experiments.safety_prompts.figures import _by_epoch
from interp.experiments.safety_prompts.held_out import random_prompt
from interp.experiments.safety_prompts.plane_figures import boundary
from interp.experiments.safety_prompts.planes import mean_cosine
from interp.experiments.safety_prompts.report import complied, wanted
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.provenance import provenance_of
from tests.conftest import make_tokenizer
from tests.experiments.counted import assert_planned, counting

SMALL = Config(
    start="Be kind.",
    ablations=("DRO without L_r",),
    n_train=3,
    n_test=3,
    n_borderline=2,
    n_components=3,
    folds=3,
    solver="converged",
    n_shuffles=3,
    layer_step=1,
    epochs=2,
    batch_size=4,
    learning_rate=0.02,
    reply_tokens=3,
    n_samples=2,
    sample_tokens=2,
    max_new_tokens=3,
)
TEXT = "text: default"


@pytest.fixture(scope="module")
def run(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "safety-prompts"
    before = tiny.weights_hash
    with counting("safety-prompts", tiny):
        finished = EXPERIMENT.run(tiny, load_prompts(), SMALL, out=out)
    assert tiny.weights_hash == before
    return finished, out


def test_a_run_is_whole_and_stored_as_it_is(run) -> None:
    result = run[0].result
    assert EXPERIMENT.read(run[1]).result == result
    assert list(result.behaviour) == [NONE, NEUTRAL, "text: own", TUNED, DRO, "DRO without L_r", RANDOM]
    assert list(result.training) == [TUNED, DRO, "DRO without L_r"]
    assert result.n == {"harmful": 3, "harmless": 3, "borderline": 2}
    for geometry in result.geometry.values():
        assert list(geometry.plane.points) == [NONE, *SAFETY]
        assert list(geometry.shifts) == [*SAFETY, NEUTRAL]
        assert [plane.layer for plane in geometry.layers] == [1, 2]
    for behaviour in result.behaviour.values():
        assert [len(flags) for flags in behaviour.refused.values()] == [3, 3, 2]
        assert set(behaviour.any_of_k) == set(behaviour.single) == {"harmful", "harmless", "borderline"}


def test_without_a_system_prompt_nothing_moves(run) -> None:
    behaviour = run[0].result.behaviour
    assert behaviour[NONE].kl.value == pytest.approx(0, abs=1e-5)
    assert behaviour[NONE].shift == {}
    assert behaviour[RANDOM].kl.value > 1e-3
    assert behaviour[RANDOM].shift["harmful"].total > 0.1


def test_training_starts_from_ln_2_and_the_trained_prompts_are_files_of_the_run(tiny: ChatModel, run) -> None:
    result, folder = run[0].result, run[1]
    losses = result.training[DRO].losses
    assert losses["total"][0] == pytest.approx(0.7001, abs=1e-3)  # products in bfloat16
    assert result.training["DRO without L_r"].losses["total"][0] == pytest.approx(0.00693, abs=1e-4)
    assert len(losses["refusal"]) == 2 * 2
    assert set(result.training[TUNED].losses) == {"likelihood", "unlikelihood", "total"}
    prompt = SafetyPrompt.read(folder / "dro.safetensors")
    assert prompt.provenance["objective"] == "dro" and prompt.text == "Be kind."
    assert len(result.training[DRO].nearest) == len(prompt.embeddings)
    assert generate(tiny, "Hello.", safety_prompt=prompt, max_new_tokens=2).texts
    for name in ("prompt-tuning", "dro-without-l-r"):
        other = SafetyPrompt.read(folder / f"{name}.safetensors")
        assert not torch.equal(other.embeddings, prompt.embeddings)


def test_the_random_prompt_has_the_norms_of_the_trained_one(tiny: ChatModel) -> None:
    prompt = SafetyPrompt.from_text(tiny, "Be kind.")
    noise = random_prompt(prompt, seed=0)
    torch.testing.assert_close(noise.norm(dim=1), prompt.embeddings.norm(dim=1))
    assert not torch.equal(noise, random_prompt(prompt, seed=1))


def test_a_template_without_a_system_slot_is_refused(tiny: ChatModel) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    model = ChatModel(tiny.hf, make_tokenizer(template), name="no slot")
    with pytest.raises(ValueError, match="system"):
        EXPERIMENT.run(model, load_prompts(), SMALL)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ablations": ("DRO without L_x",)}, "unknown ablation 'DRO without L_x'; known: DRO without L_r"),
        ({"start": " "}, "start must be a text"),
        ({"n_train": 1}, "n_train must be 2 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**given)


def test_mean_cosine_of_planted_shifts() -> None:
    generator = torch.Generator().manual_seed(0)
    along = torch.tensor([3.0, 0.0, 0.0]) + 0.1 * torch.randn(20, 3, generator=generator)
    across = torch.tensor([0.0, 3.0, 0.0]) + 0.1 * torch.randn(20, 3, generator=generator)
    same = mean_cosine([(along, 2 * along)])
    assert (same.value, same.low, same.n) == (pytest.approx(1), pytest.approx(1), 20)
    apart = mean_cosine([(along, across)])
    assert apart.low < apart.value < apart.high < 0.1
    assert apart.value == pytest.approx(
        torch.cosine_similarity(along.mean(0), across.mean(0), dim=0).item(), abs=1e-6
    )


def test_a_boundary_is_drawn_where_the_logit_is_zero() -> None:
    box = ((-2.0, 2.0), (-1.0, 1.0))
    ends = boundary((1.0, -2.0), 0.5, box)
    assert len(ends) == 2
    for x, y in ends:
        assert x - 2 * y + 0.5 == pytest.approx(0)
        assert -2 <= x <= 2 and -1 <= y <= 1
    assert boundary((1.0, 0.0), 9.0, box) == []
    assert boundary((1.0, 0.0), 0.0, box) == [(0.0, -1.0), (0.0, 1.0)]


def test_losses_are_drawn_from_the_first_step_and_by_epoch() -> None:
    assert _by_epoch([4.0, 2.0, 1.0, 3.0], 2) == [4.0, 3.0, 2.0]


N = 20


def near(value: float, spread: float = 0.1) -> Estimate:
    return Estimate(value=value, n=N, low=value - spread, high=value + spread)


def parts(refusal: float) -> dict[str, ShiftParts]:
    part = ShiftParts(refusal=near(refusal), harmfulness=near(0.5), rest=2.0, total=3.0)
    return {"harmful": part, "harmless": part}


def effects(refused: int, *, harmless: int = 0, high: float = 0.6, low: float = 0.1) -> Behaviour:
    """A prompt under which the first `refused` of 20 harmful queries are refused."""
    both = {"harmful": refused, "harmless": harmless, "borderline": 0}
    at = ((0.0, 1.0), (2.0, 3.0))
    return Behaviour(
        refused={kind: tuple(i < k for i in range(N)) for kind, k in both.items()},
        incoherent={kind: (False,) * N for kind in both},
        probability={"harmful": (high,) * N, "harmless": (low,) * N, "borderline": (low,) * N},
        kl=near(0.3),
        points={"harmful": at, "harmless": at},
        shift=parts(1.0),
        any_of_k={},
        single={},
    )


def planted(
    *,
    dro: int = 18,
    text: int = 8,
    harmless: int = 0,
    separable: float = 0.95,
    neutral: float = 0.2,
    towards: float = 1.0,
    without_r: float = 0.6,
    against: float = -1.0,
) -> Result:
    """A result in which every claim holds, unless something else is asked for."""
    at = {"harmful": ((3.0, 1.0), (4.0, 0.0)), "harmless": ((-3.0, 1.0), (-4.0, 0.0))}
    plane = Plane(
        points={name: at for name in (NONE, *SAFETY)},
        refusal={name: {"harmful": (0.9, 0.8), "harmless": (0.1, 0.0)} for name in (NONE, *SAFETY)},
        explained=(0.5, 0.2, 0.1),
        refusal_weights=(1.0, 0.2, 0.0),
        refusal_bias=0.1,
        harm_weights=(1.0, -0.1, 0.0),
        harm_bias=0.0,
    )
    layers = tuple(
        LayerPlane(
            layer=layer,
            harm_accuracy=near(0.8),
            refusal_accuracy=near(0.8),
            normals=0.5,
            refusal_with_refusal=0.4,
            refusal_with_harmfulness=0.1,
            harmfulness_with_refusal=0.3,
            harmfulness_with_harmfulness=0.2,
            towards_refusal={"harmful": 0.4, "harmless": 0.3},
        )
        for layer in (1, 2)
    )
    geometry = Geometry(
        plane=plane,
        separation=Separation(
            harmfulness=near(separable, 0.03),
            shuffled=near(0.5),
            harm_accuracy=near(0.9),
            refusal_accuracy=near(0.9),
        ),
        shifts={**{name: parts(towards) for name in SAFETY}, NEUTRAL: parts(0.1)},
        similarity={kind: Similarity(safety=near(0.9), neutral=near(neutral)) for kind in at},
        layers=layers,
    )
    steps = [0.7 - 0.01 * epoch for epoch in range(10)]
    training = Training(
        losses={name: tuple(steps) for name in ("refusal", "harmfulness", "rest", "total")},
        nearest=(NearestToken(start=" kind", nearest=" kind", cosine=0.9),),
        moved=0.1,
        seconds=10.0,
    )
    behaviour = {
        NONE: replace(effects(4), shift={}),
        NEUTRAL: effects(5),
        TEXT: effects(text),
        TUNED: effects(text),
        DRO: replace(
            effects(dro, harmless=harmless, high=0.9),
            shift={"harmful": parts(2.0)["harmful"], "harmless": parts(against)["harmless"]},
        ),
        "DRO without L_r": effects(text, high=without_r),
        "DRO without L_h": effects(dro, high=0.9),
        RANDOM: effects(2),
    }
    names = (TUNED, DRO, "DRO without L_r", "DRO without L_h")
    return Result(
        provenance=provenance_of(None, None, seed=0),
        seconds={"total": 1.0},
        config=Config(),
        n={"harmful": N, "harmless": N, "borderline": N},
        openers=("I", "Sorry"),
        geometry={"as-is": geometry, "period": geometry},
        training={name: training for name in names},
        behaviour=behaviour,
    )


def begins(result: Result) -> list[str]:
    return [line.split(":")[0] for line in EXPERIMENT.verdicts(result)]


def test_verdicts_follow_from_planted_numbers() -> None:
    assert begins(planted()) == [
        "Seen",
        "Seen",
        "Seen",
        "Seen",
        "Seen",
        "Not seen",
        "Seen",
    ]  # prompt tuning does nothing
    assert begins(planted(separable=0.55))[0] == "Not seen"
    assert begins(planted(neutral=0.85))[1] == "Not seen"
    assert begins(planted(towards=0.05))[2] == "Not seen"
    assert begins(planted(against=1.0))[3] == "Not seen"
    assert begins(planted(dro=8))[4] == "Not seen"
    assert begins(planted(harmless=10))[4] == "Not seen"  # it refuses everything more
    assert begins(planted(text=18))[4] == "Not testable"
    assert begins(planted(without_r=0.95))[6] == "Not seen"


def test_incoherent_replies_do_not_comply_and_probabilities_count_by_kind() -> None:
    broken = replace(effects(4), incoherent={"harmful": (False,) * 10 + (True,) * 10})
    assert sum(complied(broken)) == 6
    assert wanted(effects(0, high=0.9, low=0.1), effects(0, high=0.6, low=0.2)).value == pytest.approx(0.2)
    assert wanted(effects(0, high=0.9, low=0.9), effects(0, high=0.6, low=0.6)).value == pytest.approx(0)


def test_every_figure_and_the_page_are_drawn(run) -> None:
    for result in (run[0].result, planted()):
        figures = EXPERIMENT.figures(result)
        assert [name for name in figures if name != "losses_prompt_tuning"] == [
            "fig03_plane",
            "fig03_plane_equal_endings",
            "fig05_after_training",
            "shifts",
            "layers",
            "layers_equal_endings",
            "losses",
            "refusals",
        ]
        assert "Safety prompts, from the inside" in EXPERIMENT.report(result)
        assert len(EXPERIMENT.table(result).rows) == len(result.behaviour)
    plane = EXPERIMENT.figures(planted())["fig03_plane"]
    assert {t.name for t in traces_of(plane)} >= {"harmful, none", "harmless, mistral", "refusal boundary"}
    arrow = next(t for t in traces_of(plane) if t.name == "towards more refusal")
    assert arrow.x[1] > arrow.x[0]  # the side on which refusal probabilities are high


@pytest.mark.usefixtures("run")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path) -> None:
    assert_planned("safety-prompts", saved_tiny, SMALL)
