"""Reading preference pairs: JSON, CSV and Parquet files, and the layouts of common data sets of the Hub.

    load_preferences("pairs.jsonl")
    load_preferences("hub:Anthropic/hh-rlhf", skip_bad=True)
    load_preferences({"train": "train.jsonl", "test": "test.jsonl"})

| layout | columns | prompt |
|---|---|---|
| pairs | prompt, chosen, rejected, as texts or lists of messages (UltraFeedback, TRL) | the prompt |
| hh | chosen, rejected, each a whole transcript `Human: … Assistant: …` (HH-RLHF) | all but the last reply |
| pku | prompt, response_0, response_1, better_response_id, safer_response_id, … (PKU-SafeRLHF) | the prompt |
| tldr | info, summaries, choice (the comparisons of `summarize_from_feedback`) | post with title and subreddit |

A bad row (an empty side, identical replies, transcripts that part before the last reply) is refused by name, or left
out and counted with `skip_bad`: the Hub's sets have a few. Rows whose two scores are equal count as bad.

Sources: Bai et al. 2022, arXiv:2204.05862 (HH-RLHF); Ji et al. 2024, arXiv:2406.15513 (PKU-SafeRLHF); Stiennon et al.
2020, arXiv:2009.01325 (TL;DR); Cui et al. 2023, arXiv:2310.01377 (UltraFeedback).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from interp.data.files import read_rows
from interp.data.preferences import (
    PairLabels,
    PreferencePair,
    PreferenceSet,
    Side,
    builtin_preferences,
    cut_by_prompt,
)
from interp.data.prompt_sets import SPLITS, Split

Layout = Literal["pairs", "hh", "pku", "tldr"]
"""Name of a layout: which columns hold what."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_SHOWN_BAD = 3


def load_preferences(
    source: str | Path | Mapping[Split, str | Path] = "builtin",
    *,
    layout: Layout | None = None,
    prefer: Literal["helpful", "harmless"] = "helpful",
    skip_bad: bool = False,
    seed: int = 0,
) -> PreferenceSet:
    """Load a preference set.

    Args:
        source: `builtin`; a file or `hub:owner/name[:config][:split]`, which is cut into splits by prompt; or one of
            those for each split.
        layout: one of `LAYOUTS`; None finds it by the columns.
        prefer: by which of its two labels a PKU-SafeRLHF pair is ordered.
        skip_bad: leave bad rows out, and note how many, instead of refusing them.
        seed: seed of the cut.

    Raises:
        ValueError: no such file, an unknown layout, a bad row, a prompt in two splits; the message names file and row.
    """
    if source == "builtin":
        return builtin_preferences()
    if isinstance(source, Mapping):
        if unknown := [split for split in source if split not in SPLITS]:
            raise ValueError(f"unknown split {unknown[0]!r}; known: {', '.join(SPLITS)}")
        notes: list[str] = []
        parts: dict[Split, tuple[PreferencePair, ...]] = {}
        for split, path in source.items():
            parts[split], bad = _read(str(path), layout, prefer, skip_bad, prefix=f"{split}-")
            notes += bad
        name = ",".join(f"{split}={path}" for split, path in source.items())
        return PreferenceSet(name=name, parts=parts, notes=tuple(notes))
    pairs, bad = _read(str(source), layout, prefer, skip_bad, prefix="")
    return cut_by_prompt(pairs, name=str(source), seed=seed, notes=bad)


def _read(
    source: str, layout: Layout | None, prefer: Side | str, skip_bad: bool, *, prefix: str
) -> tuple[tuple[PreferencePair, ...], list[str]]:
    """The pairs of one source, and a note on rows that were left out."""
    rows = read_rows(source)
    layout = layout or _layout_of(rows[0], source)
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    read: Callable[[dict[str, Any], str], PreferencePair] = {
        "pairs": _pair,
        "hh": _transcripts,
        "pku": lambda row, name: _pku(row, name, prefer),
        "tldr": _comparison,
    }[layout]
    stem = prefix + Path(source.removeprefix("hub:")).stem
    pairs: list[PreferencePair] = []
    bad: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            pairs.append(read(row, str(row.get("id") or f"{stem}-{number - 1}")))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            what = str(error) if isinstance(error, ValueError) else f"not in the layout {layout} ({error!r})"
            if not skip_bad:
                raise ValueError(
                    f"{source}, row {number}: {what}; skip_bad=True leaves such rows out"
                ) from error
            bad.append(f"row {number}: {what}")
    shown = "; ".join(bad[:_SHOWN_BAD]) + ("; …" if len(bad) > _SHOWN_BAD else "")
    return tuple(pairs), [f"{len(bad)} of {len(rows)} rows of {source} left out ({shown})"] if bad else []


def _layout_of(row: Mapping[str, Any], source: str) -> Layout:
    if "response_0" in row and "response_1" in row:
        return "pku"
    if "summaries" in row and "choice" in row:
        return "tldr"
    if "chosen" in row and "rejected" in row:
        text = row["chosen"]
        return "hh" if "prompt" not in row and isinstance(text, str) and _TURN.search(text) else "pairs"
    raise ValueError(
        f"{source} holds no preference pairs that are known here; it has the columns {', '.join(row)}: give prompt, "
        "chosen and rejected"
    )


def _pair(row: dict[str, Any], name: str) -> PreferencePair:
    """Texts or messages; a prompt that is missing is what both message lists have in common."""
    scores = row.get("score_chosen"), row.get("score_rejected")
    if scores[0] is not None and scores[0] == scores[1]:
        raise ValueError(f"pair {name}: both replies have the score {scores[0]}, so neither is preferred")
    turns = [_turns(row[side]) for side in ("chosen", "rejected")]
    prompt = row.get("prompt")
    given = _turns(prompt) if prompt is not None else []
    if not isinstance(row["chosen"], str):
        before = [part[:-1] for part in turns]
        if before[0] != before[1]:
            raise ValueError(f"pair {name}: chosen and rejected answer different prompts")
        given = before[0] or given
    return _of_turns(name, given, turns[0], turns[1], PairLabels(category=row.get("category"), **_sides(row)))


def _turns(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [("user", value)]
    return [(str(message["role"]), str(message["content"])) for message in value]


def _sides(row: Mapping[str, Any]) -> dict[str, Any]:
    """Labels in this library's own columns."""
    found = {key: row[key] for key in ("helpful", "harmless") if row.get(key) in get_args(Side)}
    if isinstance(row.get("severity"), list | tuple) and len(row["severity"]) == 2:
        found["severity"] = tuple(row["severity"])
    return found


def _of_turns(
    name: str,
    given: list[tuple[str, str]],
    chosen: list[tuple[str, str]],
    rejected: list[tuple[str, str]],
    labels: PairLabels,
) -> PreferencePair:
    if not given or given[-1][0] != "user":
        raise ValueError(f"pair {name}: there is no prompt before the replies")
    if not chosen or not rejected:
        raise ValueError(f"pair {name}: a reply is missing")
    return PreferencePair(
        id=name,
        prompt=given[-1][1],
        chosen=chosen[-1][1],
        rejected=rejected[-1][1],
        labels=labels,
        before=tuple(given[:-1]),
    )


def _transcripts(row: dict[str, Any], name: str) -> PreferencePair:
    turns = [_transcript(row[side], name) for side in ("chosen", "rejected")]
    if turns[0][:-1] != turns[1][:-1]:
        raise ValueError(f"pair {name}: chosen and rejected part before the last reply")
    return _of_turns(name, turns[0][:-1], turns[0], turns[1], PairLabels())


def _transcript(text: str, name: str) -> list[tuple[str, str]]:
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise ValueError(f"pair {name}: not a transcript of `Human:` and `Assistant:`")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [(roles[speaker], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1][0] != "assistant":
        raise ValueError(f"pair {name}: the transcript does not end with a reply")
    return turns


def _pku(row: dict[str, Any], name: str, prefer: str) -> PreferencePair:
    better, safer = int(row["better_response_id"]), int(row["safer_response_id"])
    first = better if prefer == "helpful" else safer
    sides: tuple[Side, Side] = ("chosen", "rejected")
    levels = [row.get(f"response_{i}_severity_level") for i in (first, 1 - first)]
    harms = row.get(f"response_{1 - safer}_harm_category") or {}
    named = [category for category, present in harms.items() if present]
    labels = PairLabels(
        helpful=sides[better != first],
        harmless=sides[safer != first],
        severity=(levels[0], levels[1]),
        category=named[0] if named else None,
    )
    replies = [row[f"response_{i}"] for i in (first, 1 - first)]
    return PreferencePair(
        id=name, prompt=row["prompt"], chosen=replies[0], rejected=replies[1], labels=labels
    )


def _comparison(row: dict[str, Any], name: str) -> PreferencePair:
    info, first = row["info"], int(row["choice"])
    title = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\n" if info.get("title") else ""
    replies = [row["summaries"][i]["text"].strip() for i in (first, 1 - first)]
    return PreferencePair(
        id=name,
        prompt=f"{title}POST: {info.get('post') or info.get('article')}\n\nTL;DR:",
        chosen=replies[0],
        rejected=replies[1],
        labels=PairLabels(category=info.get("subreddit")),
    )
