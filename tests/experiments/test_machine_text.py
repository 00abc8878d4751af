"""Machine-written text: planted results are judged rightly, and a run on the tiny model is whole and controlled."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.data.prompts import load_prompts
from interp.detectors.machine_text.reading import score_texts
from interp.detectors.machine_text.scores import SCORES
from interp.detectors.machine_text.watermark import Watermark
from interp.detectors.machine_text.watermark_detection import GreenCount, detect_watermark
from interp.display.charts import traces_of
from interp.experiments.machine_text import (
    ABLATED,
    ALONG,
    ARMS,
    EXPERIMENT,
    FAST,
    HUMAN,
    MIXED,
    N_KEYS,
    ORDER,
    OTHER,
    PARAPHRASED,
    PLAIN,
    RANDOM_ABLATED,
    SLOW,
    TWO_MODELS,
    UNCHANGED,
    UNMARKED,
    Config,
    Result,
)
from interp.experiments.machine_text.estimates import area_difference, thresholds, variance
from interp.experiments.machine_text.figures import roc_points
from interp.experiments.machine_text.inside import SafetyDirections, directions_by_layer
from interp.experiments.machine_text.marks import chance_above, over_keys, summarised
from interp.experiments.machine_text.results import (
    Arm,
    Attack,
    Difference,
    Effects,
    LayerDirection,
    Marked,
    OverKeys,
    ReadExample,
    Separation,
    Unmarked,
    Watermarks,
)
from interp.experiments.machine_text.texts import Readings, by_id, read, twins
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.provenance import provenance_of
from interp.storage.typed_json import from_plain, to_plain
from tests.experiments.counted import assert_planned, counting

SMALL = Config(
    n_pairs=6,
    length=70,
    lengths=(30, 50, 70),
    false_positive_rate=0.2,
    n_slow=2,
    n_perturbations=2,
    n_regenerated=2,
    n_attacked=3,
    decodings=((0.7, 0.9),),
    n_lens=2,
    depth_step=2,
    n_states=4,
    n_shuffles=3,
    n_prompts=4,
    n_steered=2,
    n_refusals=2,
    deltas=(2.0,),
    n_marked=3,
)


@pytest.fixture(scope="module")
def stored(tiny: ChatModel, saved_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the tiny model as its own reference and as the other generator."""
    out = tmp_path_factory.mktemp("runs") / "machine-text"
    config = replace(SMALL, reference=str(saved_tiny), generator=str(saved_tiny))
    with counting("machine-text", tiny):
        EXPERIMENT.run(tiny, load_prompts("builtin"), config, out=out)
    return out


def test_a_run_is_whole_and_stored_as_it_is(stored: Path) -> None:
    run = EXPERIMENT.read(stored)
    result = run.result
    names = {s.title for name, s in SCORES.items() if name != "perplexity"}
    # Random bytes are rarely read as they were written, so no pair may be of one length for the dimension.
    dimension = SCORES["intrinsic_dimension"].title
    assert set(result.detectors) | {dimension} == names | {TWO_MODELS, *SLOW}
    for name, one in result.detectors.items():
        assert len(one.human) == len(one.machine) <= (2 if name in SLOW else 6)
    assert list(result.arms) == list(ARMS)
    assert set(result.attacks) >= {UNCHANGED, MIXED, PARAPHRASED, OTHER, "temperature 0.7, top-p 0.9"}
    assert "watermarked, delta 2" in result.attacks
    assert [one.keys is not None and len(one.keys.means) for one in result.watermarks.unmarked.values()] == [
        N_KEYS,
        N_KEYS,
    ]
    assert list(result.lens) == [0, 2, 3] and len(result.directions) == 3
    assert set(run.tensors) == {"machine_text", "refusal"}
    assert len(EXPERIMENT.verdicts(result)) == len(EXPERIMENT.claims)
    assert set(result.seconds) > {"write", "read", "versions", "attacks", "lens", "interventions"}


def test_a_reference_that_is_the_model_changes_nothing(stored: Path) -> None:
    result = EXPERIMENT.read(stored).result
    assert result.detectors[TWO_MODELS].human == pytest.approx(result.detectors[FAST].human, rel=1e-4)
    binoculars = result.detectors[SCORES["binoculars"].title]
    observer = result.detectors[SCORES["binoculars_observer"].title]
    assert binoculars.machine == pytest.approx(observer.machine, rel=1e-4)


def test_up_to_the_prefix_both_texts_of_a_pair_are_the_same(stored: Path) -> None:
    result = EXPERIMENT.read(stored).result
    for name in ORDER:
        assert result.lengths[name][0].value == pytest.approx(0.5)
    assert any(result.lengths[name][-1].value != 0.5 for name in ORDER)  # control


def test_an_interrupted_run_continues(
    tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.experiments.machine_text import run as method

    def killed(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(method, "attack_all", killed)
    with pytest.raises(KeyboardInterrupt):
        EXPERIMENT.run(tiny, load_prompts("builtin"), SMALL, out=tmp_path / "run")
    kept = {path.stem for path in (tmp_path / "run.parts").iterdir()}
    assert kept >= {"own-texts", "read-human", "read-own", "versions-human", "versions-own"}


# What the parts compute


def test_readings_give_the_scores_of_every_length(tiny: ChatModel) -> None:
    text = "The river rose in the night, and by morning the lower road was gone."
    readings = read(tiny, [text, "Four keys were found."])
    again = Readings.of(readings.tensors)
    for n in (len(text), 20):
        (plain,) = score_texts(tiny, [text[:n]])
        for name in ("likelihood", "log_rank", "fast_detect_gpt", "entropy"):
            expected = pytest.approx(plain.oriented(name), rel=1e-3)
            assert readings.scores(0, n)[SCORES[name].title] == expected
            assert again.scores(0, n)[SCORES[name].title] == expected


def test_twins_are_as_long_as_the_shorter_text(tiny: ChatModel) -> None:
    human = by_id(read(tiny, ["The river rose.", "Four keys were found."]), ["a", "b"])
    machine = by_id(read(tiny, ["The river", "Four keys were lost and found."]), ["a", "b"])
    both = twins(human, machine, limits=12)
    assert both.lengths == (9, 12)
    assert both.human[0] == pytest.approx(both.machine[0])  # of equal beginnings
    assert twins(human, machine, limits={"b": 8}).ids == ("b",)
    with pytest.raises(ValueError, match="none of 2 machine-written texts has 40 tokens"):
        twins(human, machine, limits=99, shortest=40)


def test_differences_of_areas_are_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    machine, human = torch.randn(2, 60, generator=generator).double()
    good = ((machine + 2).tolist(), human.tolist())
    noisy = ((machine + 1).tolist(), human.tolist())
    found = area_difference(good, noisy, seed=0)
    assert found.positive and found.n == 60
    same = area_difference(good, good, seed=0)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with_gaps = area_difference(([math.nan, *good[0][1:]], good[1]), noisy, seed=0)
    assert with_gaps.n == 59


def test_thresholds_and_rates_of_planted_scores() -> None:
    human = [float(i) for i in range(100)]
    limit = thresholds({"a": human, "b": human[:50]}, false_positive_rate=0.01)
    assert limit == {"a": 98.0, "b": None}  # one of 100 is above; 50 texts cannot tell 1%
    x, y = roc_points([97.5, 98.5, 200.0], human)
    assert (x[0], y[0]) == (0.01, pytest.approx(2 / 3)) and (x[-1], y[-1]) == (1.0, 1.0)
    assert variance([1.0, -1.0] * 50, seed=0).value == pytest.approx(100 / 99)


def test_z_over_keys_is_summarised_as_by_hand() -> None:
    """48 tokens at gamma 1/4: 12 are expected, with a standard deviation of 3."""
    by_key = [[GreenCount(15, 48), GreenCount(9, 48)], [GreenCount(27, 48), GreenCount(12, 48)]]
    found = summarised(by_key, 0.25, seed=0)  # z = 1 and -1 with the first key, 5 and 0 with the second
    assert found.means == (0.0, 2.5)
    # Student's t of two keys: 12.706 standard errors of 1.25.
    assert (found.mean.value, found.mean.n) == (1.25, 2)
    assert found.mean.high == pytest.approx(1.25 + 12.706 * 1.25, rel=1e-4)
    assert found.deviation.value == pytest.approx(math.sqrt(20.75 / 4))
    # A resample of one key alone, or of both.
    assert (found.deviation.low, found.deviation.high) == (1.0, 2.5)
    assert (found.above.value, found.above.n) == (0.25, 4)
    # z is above 4 from 25 green tokens on.
    tail = sum(math.comb(48, k) * 3 ** (48 - k) for k in range(25, 49)) / 4**48
    assert found.expected == pytest.approx(tail)
    assert sum(found.histogram) == 4 and [i for i, n in enumerate(found.histogram) if n] == [20, 24, 28, 44]
    assert chance_above(16, 0.5) == 0  # all of 16 green is z = 4, which is not above


def test_z_over_keys_is_that_of_the_detector(tiny: ChatModel) -> None:
    texts = {
        "one": ["The river rose in the night, and by morning the lower road was gone."],
        "two": ["short" * 9],
    }
    found = over_keys(tiny, texts, SMALL, n_keys=3)
    for name, (text,) in texts.items():
        ids = tiny.tokenizer(text)["input_ids"]
        expected = [
            detect_watermark(Watermark.of_model(tiny, key=key, gamma=SMALL.gamma), ids, prompt_tokens=30).z
            for key in random.Random("keys 0").sample(range(2**20, 2**31), 3)
        ]
        assert found[name].means == pytest.approx(expected)
        assert found[name].above.n == 3


def test_a_planted_direction_is_found_and_shuffled_labels_find_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 40, 2, 16, generator=generator)
    axis = torch.zeros(2, 16)
    axis[:, 0] = 1
    machine, human = noise[0], noise[1]
    machine[:, 1] += 3 * axis[1]  # in layer 1 alone
    safety = SafetyDirections(refusal=axis, harmfulness=axis.roll(1, dims=1))
    found, vectors = directions_by_layer(machine, human, safety, replace(SMALL, n_shuffles=20))
    assert found[1].auroc.value > 0.9 and abs(found[0].auroc.value - 0.5) < 0.3
    assert found[1].refusal > 0.85 > found[1].chance_refusal + 0.1
    assert abs(found[1].harmfulness) < 0.3
    assert found[1].shuffled.low < 0.5 < found[1].shuffled.high
    assert vectors.shape == (2, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prefix_tokens": 150}, "prefix_tokens must be below length 150, got 150"),
        ({"lengths": (30, 200)}, r"lengths must be within 2 and length 150, got \[30, 200\]"),
        ({"gamma": 1.0}, "gamma must be below 1"),
        ({"n_pairs": 1}, "n_pairs must be 2 or more"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**given)


# Verdicts on planted results

N = 200


def near(value: float, spread: float = 0.02, *, n: int = N) -> Estimate:
    return Estimate(value=value, n=n, low=value - spread, high=value + spread)


def rate_of(share: float, *, n: int = 24) -> Estimate:
    return Estimate(value=share, n=n, low=max(0.0, share - 0.1), high=min(1.0, share + 0.1))


def planted(
    *,
    last_step: float = 0.3,
    longer: float = 0.1,
    paraphrased: float = -0.3,
    steered: float = 2.0,
    random: float = 0.0,
    ablated: float = 0.5,
    refused: float = 0.9,
    mean_z: float = 0.0,
    green: float = 0.6,
    keys: bool = True,
) -> Result:
    """A result in which every claim holds, unless something else is asked for."""
    areas = dict(zip(ORDER, (0.98, 0.9, 0.87, 0.4), strict=True))
    scores = tuple(float(i) for i in range(N))

    def attack(change: float) -> Attack:
        return Attack(
            n=48,
            dropped=0,
            auroc={name: near(areas[name]) for name in ORDER},
            found={name: rate_of(0.5) for name in ORDER},
            change={name: near(change) for name in ORDER},
        )

    layer = LayerDirection(
        layer=0,
        auroc=near(0.9),
        shuffled=near(0.5, 0.2),
        refusal=0.2,
        harmfulness=0.1,
        chance_refusal=0.15,
        chance_harmfulness=0.15,
    )
    arm = Arm(
        n=40,
        scores={name: {"p0": 1.0} for name in ORDER},
        auroc={name: near(0.9) for name in ORDER},
        change={name: near(0.1) for name in ORDER},
    )
    along = tuple(near(k / 2) for k in range(1, 4))
    over_keys = OverKeys(
        means=(mean_z,) * 20,
        histogram=(0,) * 20 + (500,) * 8 + (0,) * 20,
        mean=near(mean_z),
        deviation=near(1.0),
        above=rate_of(0.0, n=4000),
        expected=1e-4,
    )
    unmarked = Unmarked(
        z=scores[:40],
        mean=near(0.5),
        variance=near(1.0, 0.1),
        above=rate_of(0.0),
        along=along,
        keys=over_keys if keys else None,
    )
    return Result(
        provenance=provenance_of(None, None, seed=0),
        seconds={"total": 1.0},
        config=Config(),
        human="passages",
        dropped=0,
        detectors={
            name: Separation(human=scores, machine=scores, auroc=near(areas[name]), found=rate_of(0.8))
            for name in ORDER
        },
        differences=tuple(
            Difference(first=a, second=b, estimate=near(step))
            for a, b, step in zip(ORDER, ORDER[1:], (0.08, 0.03, last_step), strict=False)
        ),
        lengths={name: (near(0.5), near(0.7), near(0.8), near(0.9)) for name in ORDER},
        longer=near(longer),
        sources={"novels": {name: rate_of(0.1) for name in ORDER}},
        attacks={UNCHANGED: attack(0.0), PARAPHRASED: attack(paraphrased), MIXED: attack(-0.2)},
        lens={depth: {name: near(0.5 + depth / 100) for name in ORDER} for depth in (0, 10, 20, 30)},
        directions=(layer, replace(layer, layer=1)),
        layer=1,
        arms={name: arm for name in ARMS},
        effects=Effects(
            steered={name: near(steered) for name in ORDER},
            steered_random={name: near(random) for name in ORDER},
            ablated={name: near(ablated) for name in ORDER},
            added={name: near(0.0) for name in ORDER},
            refused={name: rate_of(refused) for name in (PLAIN, ABLATED, RANDOM_ABLATED)},
        ),
        watermarks=Watermarks(
            tokens=(20, 40, 60),
            unmarked={HUMAN: unmarked, UNMARKED: unmarked},
            marked={
                "2": Marked(
                    z=(5.0, 6.0),
                    other_key=near(0.0),
                    green=near(green),
                    bound=0.5,
                    power=(rate_of(0.1), rate_of(0.5), rate_of(0.9)),
                    expected=(0.1, 0.4, 0.8),
                    along=along,
                )
            },
        ),
        examples={
            HUMAN: ReadExample(
                context="The", tokens=(" river", "<"), ranks=(3, 2000), probabilities=(0.2, 1e-6)
            )
        },
    )


def begins(result: Result) -> list[str]:
    return [line.split(":")[0] for line in EXPERIMENT.verdicts(result)]


def test_verdicts_follow_from_planted_numbers() -> None:
    assert begins(planted()) == ["Seen"] * 7
    assert begins(planted(last_step=-0.1))[0] == "Not seen"
    assert begins(planted(last_step=0.01))[0] == "Not testable"
    assert begins(planted(longer=0.0))[1] == "Not seen"
    assert begins(planted(paraphrased=0.0))[2] == "Not seen"
    assert begins(planted(random=2.0))[3] == "Not seen"
    assert begins(planted(steered=-2.0, random=-3.0))[3] == "Not seen"
    assert begins(planted(ablated=0.0))[4] == "Not seen"
    assert begins(planted(refused=0.05))[4] == "Not testable"
    assert begins(planted(mean_z=0.5))[5] == "Not seen"
    assert begins(planted(keys=False))[5] == "Not testable"
    assert begins(planted(green=0.45))[6] == "Not seen"


def test_a_run_without_several_keys_is_read_and_says_so() -> None:
    before = planted(keys=False)
    plain = to_plain(before, Result)
    for one in plain["watermarks"]["unmarked"].values():
        del one["keys"]  # as it was stored before there was one
    again = from_plain(Result, plain, source="a run of before")
    assert [one.keys for one in again.watermarks.unmarked.values()] == [None, None]
    assert "several keys: not measured" in EXPERIMENT.verdicts(again)[5]
    assert "several, not measured" in EXPERIMENT.report(again)
    layout = str(EXPERIMENT.figures(again)["watermark_null"].layout.to_plotly_json())
    assert "several keys were not measured" in layout.replace("<br>", " ")
    assert "not measured" not in EXPERIMENT.verdicts(planted())[5]  # control
    assert "several, not measured" not in EXPERIMENT.report(planted())


def test_every_figure_and_the_page_are_drawn(stored: Path) -> None:
    for result in (EXPERIMENT.read(stored).result, planted()):
        figures = EXPERIMENT.figures(result)
        assert list(figures) == [
            "detectors",
            "scores",
            "roc",
            "lengths",
            "attacks",
            "lens",
            "directions",
            "interventions",
            "watermark_null",
            "watermark_along",
            "watermark_power",
        ]
        page = EXPERIMENT.report(result)
        assert "Machine-written text, from the inside" in page
        assert "interp-token" in page and 'title="rank ' in page
        assert len(EXPERIMENT.table(result).rows) == len(result.detectors)
    charts = EXPERIMENT.figures(planted())
    assert {f"{name}: {value:.2f}" for name, value in zip(ORDER, (0.98, 0.9, 0.87, 0.4), strict=True)} <= {
        trace.name for trace in traces_of(charts["roc"])
    }
    assert charts["roc"].layout.xaxis.type == "log"  # pyright: ignore[reportAttributeAccessIssue]
    shown = [trace for trace in traces_of(charts["interventions"]) if ALONG in (trace.y or ())]
    assert len(shown) == len(ORDER)
    assert "&lt;" in page  # tokens are escaped


@pytest.mark.usefixtures("stored")
def test_a_plan_counts_the_tokens_of_a_run(saved_tiny: Path) -> None:
    assert_planned(
        "machine-text", saved_tiny, replace(SMALL, reference=str(saved_tiny), generator=str(saved_tiny))
    )
