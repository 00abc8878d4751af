"""Judges of a run's replies: one place for every experiment.

Replies are recorded where they are generated (`interp.storage.reply_records`); here each is matched with the prompt of
the run's set that it answers, judged by every judge, and summed up by arm and kind of prompts. A wrapped prompt is
judged by the plain request in it. Replies to other prompts, such as those of a downstream task, are counted and not
judged, unless the experiment names these prompts (`judge_further`).
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from interp.data.prompt_sets import CLOSING, KINDS
from interp.evaluation.judges.agreement import run_judgements
from interp.evaluation.judges.judgements import Exchange, Judge, judge_all
from interp.evaluation.judges.loading import LATENT, Maker, load_judges
from interp.evaluation.judges.records import ReplyVerdicts, RunJudgements
from interp.storage.reply_records import FurtherPrompt, RecordedReply

if TYPE_CHECKING:
    from interp.data.prompts import PromptSet
    from interp.models.chat_model import ChatModel


def all_judges(
    specs: str | Sequence[str], *, model: "ChatModel | None" = None, prompts: "PromptSet | None" = None
) -> list[Judge]:
    """The judges of these names, the latent judge among them; replies of endpoints are kept in the cache folder.

    Args:
        model: model that `latent` reads with, where no other is named.
        prompts: prompts that it is fitted on; `builtin` when None.

    Raises:
        ValueError: as `interp.evaluation.judges.loading.load_judges`, or `latent` without a model.
    """
    from interp.models.gguf import cache_folder

    makers: Mapping[str, Maker] = {LATENT: lambda where: _latent(where, model, prompts)}
    return load_judges(specs, cache=cache_folder() / "judges", more=makers)


def _latent(where: str, model: "ChatModel | None", prompts: "PromptSet | None") -> Judge:
    from interp.data.prompts import load_prompts
    from interp.models.chat_model import load
    from interp.representations.latent_judge import fit_latent_judge

    if not where and model is None:
        raise ValueError("judge latent needs a model here; give latent=MODEL")
    reader = load(where) if where else model
    assert reader is not None
    return fit_latent_judge(reader, load_prompts("builtin") if prompts is None else prompts)


def judge_replies(
    replies: Sequence[RecordedReply],
    specs: Sequence[str],
    chosen: Sequence[Judge],
    prompts: "PromptSet | None",
    *,
    further: Mapping[str, FurtherPrompt] | None = None,
) -> RunJudgements:
    """Every judge's rates over the replies of a run, and where they disagree.

    Args:
        specs: names as they were asked for.
        chosen: the judges of these names.
        prompts: the run's prompt set.
        further: prompts beside that set, by their text.
    """
    return run_judgements(reply_verdicts(replies, specs, chosen, prompts, further=further))


def reply_verdicts(
    replies: Sequence[RecordedReply],
    specs: Sequence[str],
    chosen: Sequence[Judge],
    prompts: "PromptSet | None",
    *,
    further: Mapping[str, FurtherPrompt] | None = None,
) -> ReplyVerdicts:
    """Every judge's verdict on every reply to a prompt of the set; as `judge_replies`, before it is summed up."""
    exchanges, arms, left_out = _exchanges(replies, prompts, further or {})
    judged = judge_all(chosen, exchanges) if exchanges else None
    return ReplyVerdicts(
        asked=tuple(specs),
        scales={
            judge.name: ""
            if judge.scale is None
            else f"{judge.scale.meaning}; from {judge.scale.threshold:g}"
            for judge in chosen
        },
        ids=tuple(exchange.id for exchange in exchanges),
        arms=tuple(arms),
        groups=tuple(exchange.group for exchange in exchanges),
        refused={} if judged is None else judged.verdicts("refused"),
        harmful={} if judged is None else judged.verdicts("harmful"),
        left_out=left_out,
    )


def _exchanges(
    replies: Sequence[RecordedReply], prompts: "PromptSet | None", further: Mapping[str, FurtherPrompt]
) -> tuple[list[Exchange], list[str], int]:
    """The replies to prompts of the set with an id of their own, the arm of each, and the number of the others."""
    find = _finder(prompts)
    exchanges, arms, left_out = list[Exchange](), list[str](), 0
    times = Counter[tuple[str, str]]()
    for reply in replies:
        asked = _last_request(reply.prompt)
        beside = further.get(asked)
        found = find(asked) if beside is None else (f"{beside.group}/{beside.id}", *beside[1:])
        if found is None:
            left_out += 1
            continue
        name, request, group = found
        arm = f"{reply.stage}, {reply.interventions}" if reply.interventions else reply.stage
        times[arm, name] += 1
        again = times[arm, name]
        arm = arm if again == 1 else f"{arm} ({again})"
        own = f"{arm}/{name}" if arm else name
        exchanges.append(Exchange(id=own, prompt=request, answer=reply.answer, group=group))
        arms.append(arm)
    return exchanges, arms, left_out


def _finder(prompts: "PromptSet | None") -> Callable[[str], tuple[str, str, str] | None]:
    """Finds id, request and kind of the prompt of a set that a rendered prompt asks; None where there is none."""
    known: dict[str, tuple[str, str, str]] = {}
    for kind in KINDS:
        for split in ("train", "val", "test"):
            if prompts is not None and (kind, split) in prompts:
                part = prompts[kind, split]
                for name, text in zip(part.ids, part.texts, strict=True):
                    known[_bare(text)] = (f"{kind}/{name}", text, kind)
    seen: dict[str, tuple[str, str, str] | None] = {}

    def find(prompt: str) -> tuple[str, str, str] | None:
        if prompt not in seen:
            found = known.get(_bare(prompt))
            if found is None:  # the longest request that a wrapper holds
                inside = max((bare for bare in known if bare in prompt), key=len, default=None)
                if inside is not None:
                    name, request, kind = known[inside]
                    found = (name, request, f"{kind}, wrapped")
            seen[prompt] = found
        return seen[prompt]

    return find


def _last_request(prompt: str) -> str:
    """The last message of the user, of a conversation as replies are recorded; any other text as it is."""
    if not prompt.startswith("[{"):
        return prompt
    try:
        said = [message["content"] for message in json.loads(prompt) if message["role"] == "user"]
    except (ValueError, TypeError, KeyError):
        return prompt
    return said[-1] if said and isinstance(said[-1], str) else prompt


def _bare(text: str) -> str:
    return text.strip().rstrip(CLOSING).strip()
