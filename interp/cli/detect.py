"""`interp detect`: calibrate a detector of machine-written text, score texts with it."""

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import (
    MODEL_HELP,
    ColumnOption,
    RayOption,
    WorkersOption,
    check_output_file,
    print_card,
    print_findings,
    print_lines,
    status,
    takes_model,
    user_errors,
)
from interp.models.sources import ModelSource

app = typer.Typer(
    no_args_is_help=True,
    help="Machine-written text: scores with a calibrated threshold, which are no proof of authorship.",
)
_Reference = Annotated[
    str | None,
    typer.Option("--reference", help=f"A second model with the same tokenizer: {MODEL_HELP}."),
]


@app.command("fit")
@takes_model()
def detect_fit(
    out: Annotated[Path, typer.Option(help="Detector file to write (.json).")],
    model: ModelSource,
    human: Annotated[
        str,
        typer.Option("--human", help="Human texts: builtin, a file (a text a row) or hub:owner/name."),
    ] = "builtin",
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine", help="Machine-written texts, a file; without them --score is taken as it is."
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            "--score", help="Score; the one that separates best, or fast_detect_gpt without --machine."
        ),
    ] = None,
    false_positive_rate: Annotated[
        float,
        typer.Option(
            "--false-positive-rate", help="Share of human texts that may be called machine-written."
        ),
    ] = 0.01,
    reference: _Reference = None,
    column: ColumnOption = None,
) -> None:
    """Calibrate a threshold on human texts, and choose the score where machine-written ones are given.

    Example: `interp detect fit --model smollm2 --human builtin --out detector.json`
    """
    with user_errors():
        from interp.data.human_texts import bundled_passages, read_human_texts

        check_output_file(out, ".json")
        model.check()
        by_people = bundled_passages() if human == "builtin" else read_human_texts(human, column=column)
        written = None if machine is None else read_human_texts(machine, column=column)
        from interp.detectors.machine_text.detector import MachineTextDetector
        from interp.models.chat_model import load, load_source

        with status(f"loading {model.shown}"):
            loaded = load_source(model)
            second = None if reference is None else load(reference, dtype=model.dtype, device=model.device)
        if written is None:
            detector = MachineTextDetector(score_name=score or "fast_detect_gpt").calibrated(
                loaded, by_people, false_positive_rate=false_positive_rate, reference=second
            )
        else:
            detector = MachineTextDetector.fit(
                loaded,
                by_people,
                written,
                reference=second,
                score_name=score,
                false_positive_rate=false_positive_rate,
            )
        detector.save(out)
        print_card(detector)
        print_lines(f"detector: {out.resolve()}")


@app.command("score")
@takes_model()
def detect_score(
    detector: Annotated[Path, typer.Argument(help="A detector file.")],
    texts: Annotated[
        str,
        typer.Argument(help="A file (.jsonl, .txt, .csv, .tsv, .json, .parquet), or - for standard input."),
    ],
    model: ModelSource,
    reference: _Reference = None,
    column: ColumnOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
) -> None:
    """Score texts: a JSON line each, in input order, as they come, with what the calibration covers.

    A line that is a JSON object is a text in its text column, any other line is a text itself.

    Example: `interp detect score detector.json texts.jsonl --model smollm2`
    """
    with user_errors():
        if not detector.is_file():
            raise ValueError(f"no such detector file: {detector}; make one with interp detect fit")
        if texts != "-" and not Path(texts).is_file():
            raise ValueError(f"no such text file: {texts}")
        model.check()
        from interp.detectors.machine_text.detector import MachineTextDetector
        from interp.detectors.scoring import scored
        from interp.engine.ray_cluster import workers_asked
        from interp.models.chat_model import load, load_source

        fitted = MachineTextDetector.load(detector)
        if (asked := workers_asked(workers, ray, device=model.device)) is not None:
            print_findings(
                texts, column, lambda lines: scored(fitted, model, lines, reference=reference, workers=asked)
            )
            return
        with status(f"loading {model.shown}"):
            loaded = load_source(model)
            second = None if reference is None else load(reference, dtype=model.dtype, device=model.device)
        print_findings(texts, column, lambda lines: fitted.stream(loaded, lines, reference=second))
