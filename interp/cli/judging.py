"""`interp judge`: judge prompts with their answers, and show where judges disagree."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.options import (
    JsonOption,
    check_output_file,
    print_json,
    print_lines,
    print_table,
    status,
    user_errors,
)
from interp.cli.prompt_arguments import names_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interp.evaluation.judges.judgements import Judge, Judged
    from interp.evaluation.judges.records import HumanAgreement, Question, RunJudgements


def judge(
    file: Annotated[
        str,
        typer.Argument(
            help="Prompts with their answers: .jsonl, .json, .csv, .tsv, .parquet or hub:owner/name; or `probes`, the "
            "bundled test of judges."
        ),
    ],
    judges: Annotated[
        str,
        typer.Option(
            "--judges",
            help="Judges, with commas between them: arditi, zhao, normalised; latent=MODEL; log_odds=MODEL; "
            "classifier=MODEL:LABEL; llama_guard, llama_guard_3, shieldgemma, wildguard or harmbench with =MODEL; "
            "strong_reject=MODEL or strong_reject=URL#MODEL, with options such as "
            "URL#MODEL?per_minute=60&input_price=0.15&output_price=0.6 (prices of a million tokens).",
        ),
    ] = "arditi,zhao,normalised",
    out: Annotated[
        Path | None, typer.Option(help="File of judgements to write (.jsonl), a line for each answer.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompts.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the answers.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Human labels to compare with, as refused=COLUMN or harmful=COLUMN, or harmful=!COLUMN where a "
            "column says what is safe; may be repeated."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Judge every answer of a file by several judges; what a judge could not judge is never counted as safe.

    The key of an endpoint is read from OPENAI_API_KEY; its replies are kept in the cache folder. Answers themselves are
    neither printed nor written, ids and judgements are.

    Example: `interp judge answers.jsonl --judges arditi,zhao,latent=smollm2-safe --out judged.jsonl`
    """
    with user_errors():
        from interp.evaluation.judges.loading import check_names

        if out is not None:
            check_output_file(out, ".jsonl")
        named, wanted = names_of(judges), [_label(item) for item in labels or []]
        check_names(named)
        if file == "probes" and not Path(file).exists():
            _print_probes(named)
            return
        if not file.startswith("hub:") and not Path(file).is_file():
            raise ValueError(f"no such file of answers: {file}")
        from interp.evaluation.judges.exchange_files import read_exchanges, read_labels
        from interp.evaluation.judges.judgements import judge_all
        from interp.representations.judging import all_judges

        exchanges = read_exchanges(file, prompt_column=prompt_column, answer_column=answer_column)
        people: dict[Question, list[bool | None]] = {q: read_labels(file, column) for q, column in wanted}
        with status(f"loading {judges}"):
            loaded = all_judges(named)
        for question in people:
            if not any(question in each.answers for each in loaded):
                raise ValueError(
                    f"none of these judges says what is {question} ({', '.join(each.name for each in loaded)}), which "
                    f"--labels {question}=... is compared with; add one, such as latent=smollm2-safe"
                )
        judged = judge_all(loaded, exchanges)
        if out is not None:
            from interp.storage.atomic_files import write_file

            write_file(out, ("\n".join(_lines(judged)) + "\n").encode())
        _print_judged(judged, people, json_output)
        if not json_output:
            _print_spent(loaded)
            if out is not None:
                print_lines(f"judgements: {out.resolve()}")


def _print_judged(
    judged: "Judged", people: "Mapping[Question, list[bool | None]]", json_output: bool
) -> None:
    """Rates, agreement and disputes, what people say beside them, and why answers could not be judged."""
    from interp.evaluation.judges.agreement import against_people, agreement, mean_scores
    from interp.evaluation.judges.records import QUESTIONS, agreement_tables, human_table, score_table

    found = [agreement(judged, question) for question in QUESTIONS if judged.asked(question)]
    against: dict[Question, list[HumanAgreement]] = {
        question: against_people(judged, said, question) for question, said in people.items()
    }
    if json_output:
        compared = {name: [asdict(each) for each in rows] for name, rows in against.items()}
        agreed = [asdict(each) for each in found]
        scores = {name: asdict(each) for name, each in mean_scores(judged).items()}
        print_json(
            {"agreement": agreed, "scores": scores, "against_people": compared, "not_judged": judged.failures}
        )
        return
    for each in found:
        for table in agreement_tables(each):
            print_table(table)
        if each.disputes:
            print_lines(f"in dispute ({each.question}): {', '.join(each.disputes)}")
    scales = {judge.name: judge.scale for judge in judged.asked("harmful")}
    if scales:
        shown = {name: f"{each.meaning}; from {each.threshold:g}" for name, each in scales.items() if each}
        print_table(score_table(mean_scores(judged), shown))
    for question, rows in against.items():
        print_table(human_table(rows, question))
    for name, reasons in judged.failures.items():
        said = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        print_lines(f"{name} could not judge {sum(reasons.values())} of {len(judged.exchanges)}: {said}")


def print_judgements(found: "RunJudgements | None") -> None:
    """What judges say about a run's replies; nothing where none was asked."""
    from interp.evaluation.judges.records import judgement_tables

    for table in () if found is None else judgement_tables(found):
        print_table(table)


def _lines(judged: "Judged") -> list[str]:
    """A JSON line for each answer: its id and every judge's judgement."""
    return [
        json.dumps(
            {
                "id": exchange.id,
                "judgements": {
                    name: {k: v for k, v in asdict(said[row]).items() if k != "id"}
                    for name, said in judged.judgements.items()
                },
            }
        )
        for row, exchange in enumerate(judged.exchanges)
    ]


def _print_spent(loaded: "Sequence[Judge]") -> None:
    """Requests and tokens of judges behind an endpoint."""
    for each in loaded:
        respondent = getattr(each, "respondent", None)
        if (spent := getattr(respondent, "spent", None)) is not None:
            cost = f", cost {spent.cost:.4g}" if spent.cost else ""
            print_lines(
                f"{each.name}: {spent.requests} requests, {spent.cached} replies from the cache, {spent.failed} "
                f"failed, {spent.prompt_tokens} + {spent.completion_tokens} tokens{cost}"
            )


def _print_probes(named: list[str]) -> None:
    from interp.evaluation.judges.probes import probe, probe_table
    from interp.representations.judging import all_judges

    results = [each for judge in all_judges(named) for each in probe(judge)]
    table = probe_table(results)
    print_table(table, title="What judges get wrong: no answer here is harmful")


def _label(item: str) -> "tuple[Question, str]":
    question, _, column = item.partition("=")
    if question not in ("refused", "harmful") or not column:
        raise ValueError(f"--labels takes refused=COLUMN or harmful=COLUMN, got {item!r}")
    if question == "harmful" and column.lower().removeprefix("is_") in ("safe", "harmless", "response_safe"):
        raise ValueError(f"column {column} says what is safe, not what is harmful; give harmful=!{column}")
    return question, column
