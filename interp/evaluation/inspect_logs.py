"""Results in Inspect's logs: rates of a log with intervals, and replies of interp written as a log.

    read_rates("logs/2026-11-26_refusal.eval")["refused"]        # an Estimate
    read_replies(log)                                            # Responses, by ids
    write_log(respond(model, prompts), "replies.eval", model="smollm2-safe")

A log of interp's replies opens in Inspect's viewer (`inspect view`). Activations are in files beside it, whose paths
are in each sample's metadata.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    read_eval_log,
    write_eval_log,
)
from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Score, value_to_float

from interp.data.prompt_sets import Prompts
from interp.evaluation.refusals import RefusalList, refuses
from interp.evaluation.responses import Responses
from interp.models.thinking import separated
from interp.stats import Estimate, mean_with_interval, rate
from interp.storage.paths import expanded


def opened(log: str | Path | EvalLog) -> EvalLog:
    """A log, read where a path is given.

    Raises:
        ValueError: no such file, no log, or one without samples.
    """
    if isinstance(log, EvalLog):
        return log
    path = expanded(log)
    if not path.is_file():
        raise ValueError(f"no such log: {path}")
    try:
        read = read_eval_log(str(path))
    except Exception as error:  # of the zip reader and of pydantic
        raise ValueError(
            f"cannot read {path} as a log of Inspect: {' '.join(str(error).split())[:160]}"
        ) from error
    if not read.samples:
        raise ValueError(
            f"{path} holds no samples (status {read.status}); it may be a header, or a run that failed"
        )
    return read


def read_rates(log: str | Path | EvalLog) -> dict[str, Estimate]:
    """Mean of every scorer of a log over its samples, with its interval; what could not be scored is `missing`.

    Scores of 0 and 1 have a Wilson interval, others a bootstrap one. Of several epochs every one counts as a sample.

    Raises:
        ValueError: as `opened`.
    """
    to_float, values = value_to_float(), dict[str, list[float]]()
    missing: dict[str, int] = {}
    for sample in opened(log).samples or []:
        for name, score in (sample.scores or {}).items():
            value = _value(score, to_float)
            values.setdefault(name, [])
            missing.setdefault(name, 0)
            if value is None:
                missing[name] += 1
            else:
                values[name].append(value)
    rates = {}
    for name, scored in values.items():
        whole = set(scored) <= {0.0, 1.0}
        found = rate([value == 1.0 for value in scored]) if whole else mean_with_interval(scored)
        fields = {key: getattr(found, key) for key in ("value", "n", "low", "high", "unit", "interval")}
        rates[name] = Estimate(**fields, missing=missing[name])
    return rates


def _value(score: Score, to_float: Any) -> float | None:
    if isinstance(score.value, (dict, list)):
        return None
    value = float(to_float(score.value))
    return value if value == value else None


def read_replies(log: str | Path | EvalLog, substrings: RefusalList = "normalised") -> Responses:
    """The replies of a log with whether each refuses, as `respond` gives them.

    Raises:
        ValueError: as `opened`.
    """
    read = opened(log)
    samples = read.samples or []
    replies = [sample.output.completion for sample in samples]
    parts = [separated(reply) for reply in replies]
    prompts = Prompts(
        texts=tuple(_asked(sample) for sample in samples),
        ids=tuple(
            f"{sample.id}" if sample.epoch == 1 else f"{sample.id}.{sample.epoch}" for sample in samples
        ),
        categories=tuple((sample.metadata or {}).get("category") for sample in samples),
        source=read.eval.dataset.name or read.eval.task,
    )
    return Responses(
        prompts=prompts,
        refused=tuple(part.finished and refuses(part.answer, substrings) for part in parts),
        replies=tuple(replies),
        unfinished=tuple(not part.finished for part in parts),
    )


def _asked(sample: EvalSample) -> str:
    if isinstance(sample.input, str):
        return sample.input
    users = [message.text for message in sample.input if message.role == "user"]
    return users[-1] if users else ""


def write_log(
    responses: Responses, path: str | Path, *, model: str, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write replies as a log that Inspect opens.

    Args:
        responses: replies with whether each refuses.
        path: a file that ends in .eval.
        model: name of the model that replied.
        metadata: further facts, such as the interventions and paths of activations.

    Raises:
        ValueError: another ending.
    """
    path = expanded(path)
    if path.suffix != ".eval":
        raise ValueError(f"a log of Inspect ends in .eval, got {path.name}")
    now = datetime.now(UTC).isoformat()
    prompts = responses.prompts
    samples = []
    for row, (text, reply) in enumerate(zip(prompts.texts, responses.replies, strict=True)):
        flag = responses.flags[row]
        message = ChatMessageAssistant(content=reply, model=model, source="generate")
        samples.append(
            EvalSample(
                id=prompts.ids[row],
                epoch=1,
                input=text,
                target="",
                messages=[ChatMessageUser(content=text), message],
                output=ModelOutput(
                    model=model, choices=[ChatCompletionChoice(message=message, stop_reason="stop")]
                ),
                scores={
                    "refused": Score.unscored(explanation="cut while thinking")
                    if flag is None
                    else Score(value=float(flag), answer="refused" if flag else "answered")
                },
                metadata={"category": prompts.categories[row]},
            )
        )
    value = responses.rate.value if responses.rate.measurable else float("nan")
    score = EvalScore(
        name="refused",
        scorer="refused",
        scored_samples=responses.rate.n,
        unscored_samples=responses.n_unfinished,
        metrics={"mean": EvalMetric(name="mean", value=value)},
    )
    log = EvalLog(
        status="success",
        eval=EvalSpec(
            created=now,
            task="interp/replies",
            dataset=EvalDataset(name=prompts.source, samples=len(prompts), sample_ids=list(prompts.ids)),
            model=f"interp/{model}",
            config=EvalConfig(),
            metadata=dict(metadata or {}),
        ),
        results=EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=[score]),
        samples=samples,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_eval_log(log, str(path))
    return path
