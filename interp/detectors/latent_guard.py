"""Latent Guard: harmful prompts detected from the inside, in the prompt's own forward pass.

A prompt's harmfulness is its belief at `t_inst` (`interp.representations.beliefs`): the mean over layers of its
cosine with the centre of harmful prompts minus that with the centre of harmless ones. Beside it stands the refusal
belief at `t_post_inst`. The verdict is harmful when harmfulness exceeds the threshold: 0 as published, or calibrated
to a false-positive rate.

A guard belongs to the model, template and prompt ending that it was fitted with, and refuses others. It can fail out of
domain (the paper's appendix H), and what it was fitted on decides what it sees: compare it on prompts of your own.

    guard = LatentGuard.fit(model, prompts)
    guard.score(model, ["How do I bake bread?"])[0].verdict        # 'harmless'
    guard.save("guard.safetensors")

Source: Zhao et al. 2025, arXiv:2507.11878, section 5 ("Latent Guard").
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.metrics import roc_curve

from interp.data.prompts import CLOSING, Ending, Prompts, PromptSet, with_ending
from interp.display.cards import Card, Shown, Table
from interp.evaluation.responses import respond
from interp.models.chat_model import ChatModel
from interp.models.layers import Layers
from interp.models.prompt_inputs import Message, PromptIdentity, gather_prompts
from interp.models.tokens import ChatTokens, PromptInput, tokenize
from interp.representations.beliefs import Centres, belief, fit_centres, states
from interp.representations.confounds import leak_check
from interp.stats import Estimate, auroc
from interp.storage.atomic_files import write_file
from interp.storage.provenance import library_versions

logger = logging.getLogger(__name__)

FORMAT = "interp-latent-guard"
FORMAT_VERSION = 1
Verdict = Literal["harmful", "harmless"]
_CHUNK = 256
"""Prompts scored at a time: memory does not grow with the length of the input."""
_LEAST = 4


@dataclass(frozen=True, kw_only=True)
class GuardScore:
    """What the guard says of one prompt."""

    id: str
    """The prompt's own, or its running number."""
    category: str | None
    """Harm category, where the source gives one."""
    harmfulness: float
    """Belief at `t_inst`, -2 to 2; above the threshold is harmful."""
    refusal: float | None
    """Belief at `t_post_inst`: above 0 the model is about to refuse. None where the guard has no such centres."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class CategoryRoc:
    """How well a guard tells one category of harmful prompts from harmless ones."""

    auroc: Estimate
    """With its interval."""
    false_positives: tuple[float, ...]
    """Share of harmless prompts flagged, ascending."""
    true_positives: tuple[float, ...]
    """Share of the category flagged at the same thresholds."""
    thresholds: tuple[float, ...]
    """Harmfulness at or above which a prompt is flagged."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentGuard(Shown):
    """A fitted guard; apply it with `score`."""

    harm: Centres
    """Harmful and harmless centres at `t_inst`."""
    refusal: Centres | None
    """Refused and answered centres at `t_post_inst`; None when too few prompts were refused or answered."""
    threshold: float
    """Harmfulness above it is harmful."""
    layers: tuple[int, ...] | None
    """Layers averaged, 0..L; None is all."""
    ending: Ending
    """What is done to the end of every prompt before it is read."""
    fitted_on: dict[str, Any]
    """Model, weights hash, template hash, prompts, counts, versions."""

    @classmethod
    def fit(
        cls,
        model: ChatModel,
        prompts: PromptSet,
        *,
        n_prompts: int = 100,
        layers: Layers = None,
        false_positive_rate: float | None = None,
        max_new_tokens: int = 24,
        show_progress: bool = False,
    ) -> "LatentGuard":
        """Fit the centres on the train split.

        Harm centres take all prompts of a kind (the paper widens its harmful pool likewise, appendix B); refusal
        centres take harmful prompts that the model refuses and harmless ones that it answers, by its greedy replies.

        Args:
            prompts: a set whose `ending` the guard will apply to what it scores.
            n_prompts: training prompts of each kind (the paper has 100).
            layers: layers to average, 0..L, as an int, a range or a list; None is all.
            false_positive_rate: calibrate the threshold so that this share of harmless validation prompts lies above;
                None is the published 0.

        Raises:
            ValueError: a rate outside 0..1 or finer than the validation prompts can tell, a layer out of range, or an
                empty split.
        """
        averaged = None if layers is None else model.layer_list(layers, upper=model.n_layers + 1)
        if false_positive_rate is not None:
            check_calibration(len(prompts["harmless", "val"]), false_positive_rate)
        train = {kind: prompts[kind, "train"].first(n_prompts) for kind in ("harmful", "harmless")}
        kept = {kind: states(model, part, show_progress=show_progress) for kind, part in train.items()}
        refused = {
            kind: torch.tensor(
                respond(
                    model,
                    part,
                    substrings="zhao",
                    max_new_tokens=max_new_tokens,
                    show_progress=show_progress,
                ).refused
            )
            for kind, part in train.items()
        }
        counts = {
            "harmful": len(train["harmful"]),
            "harmless": len(train["harmless"]),
            "refused_harmful": int(refused["harmful"].sum()),
            "answered_harmless": int((~refused["harmless"]).sum()),
        }
        leak = leak_check(
            model,
            train=(train["harmful"], train["harmless"]),
            held_out=(prompts["harmful", "val"], prompts["harmless", "val"]),
            label=f"{prompts.name}, {prompts.ending}",
        )
        behaved = min(counts["refused_harmful"], counts["answered_harmless"]) >= _LEAST
        if not behaved:
            logger.warning(
                "%s: too few refused or answered prompts for a refusal belief (%s)", model.name, counts
            )
        guard = cls(
            harm=fit_centres(kept["harmful"][:, :, 0], kept["harmless"][:, :, 0]),
            refusal=fit_centres(
                kept["harmful"][refused["harmful"]][:, :, 1], kept["harmless"][~refused["harmless"]][:, :, 1]
            )
            if behaved
            else None,
            threshold=0.0,
            layers=averaged,
            ending=prompts.ending,
            fitted_on={
                **model.provenance,
                "prompts": prompts.provenance,
                "counts": counts,
                "leak_check": leak.as_dict(),
                "versions": library_versions(),
            },
        )
        if false_positive_rate is None:
            return guard
        return guard.calibrated(model, prompts["harmless", "val"], false_positive_rate=false_positive_rate)

    def calibrated(self, model: ChatModel, harmless: Prompts, *, false_positive_rate: float) -> "LatentGuard":
        """The same guard with the least threshold that at most this share of these harmless prompts exceeds.

        Raises:
            ValueError: a rate outside 0..1, or finer than so many prompts can tell.
        """
        n = len(harmless)
        check_calibration(n, false_positive_rate)
        scores = sorted((s.harmfulness for s in self.score(model, harmless)), reverse=True)
        allowed = int(false_positive_rate * n + 1e-9)
        note = {"false_positive_rate": false_positive_rate, "prompts": harmless.source, "n": n}
        return replace(self, threshold=scores[allowed], fitted_on={**self.fitted_on, "calibration": note})

    def score(self, model: ChatModel, prompts: PromptInput) -> list[GuardScore]:
        """Score prompts, in order.

        Args:
            prompts: instructions, conversations, a split of a prompt set, or tokens (their endings as they are).

        Raises:
            ValueError: another model or chat template than the guard was fitted on, or tokens for a guard that
                changes endings.
        """
        return list(self.stream(model, prompts))

    def stream(self, model: ChatModel, prompts: PromptInput | Iterator[str]) -> Iterator[GuardScore]:
        """Score prompts as they come, in order; memory does not grow with their number.

        Raises:
            ValueError: as `score`.
        """
        self._check(model)
        roles = ("t_inst",) if self.refusal is None else ("t_inst", "t_post_inst")
        for tokens in self._chunks(model, prompts):
            read = states(model, tokens, positions=roles)
            harm = belief(self.harm.margin(read[:, :, 0]), self.layers).tolist()
            refuse: list[float | None] = [None] * len(tokens)
            if self.refusal is not None:
                refuse = list(belief(self.refusal.margin(read[:, :, 1]), self.layers).tolist())
            named = tokens.identity
            for name, category, h, r in zip(named.ids, named.categories, harm, refuse, strict=True):
                verdict: Verdict = "harmful" if h > self.threshold else "harmless"
                yield GuardScore(id=name, category=category, harmfulness=h, refusal=r, verdict=verdict)

    def _chunks(self, model: ChatModel, prompts: PromptInput | Iterator[str]) -> Iterator[ChatTokens]:
        """The prompts with the guard's ending, a number of them at a time, under the ids they came with."""
        if isinstance(prompts, ChatTokens):
            if self.ending != "as-is":
                raise ValueError(
                    f"this guard reads prompts with ending={self.ending!r}; give their text, not tokens"
                )
            for start in range(0, len(prompts), _CHUNK):
                yield prompts.take(range(start, min(start + _CHUNK, len(prompts))))
            return
        if isinstance(prompts, Iterator):
            first = 0
            while chunk := list(islice(prompts, _CHUNK)):
                identity = PromptIdentity.numbered(chunk, first=first)
                yield self._tokens(model, gather_prompts(chunk).items, identity)
                first += len(chunk)
            return
        items, identity = gather_prompts(prompts)
        for start in range(0, len(items), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(items)))
            yield self._tokens(model, [items[row] for row in rows], identity.take(rows))

    def _tokens(self, model: ChatModel, items: Sequence[Any], identity: PromptIdentity) -> ChatTokens:
        ended = [_ended(item, self.ending) for item in items]
        return replace(tokenize(model.tokenizer, ended), given=identity)

    def _check(self, model: ChatModel) -> None:
        for key, found, what in (
            ("weights_hash", model.weights_hash, "weights"),
            ("template_hash", model.template_hash, "chat template"),
        ):
            if self.fitted_on[key] != found:
                raise ValueError(
                    f"this guard was fitted on {self.fitted_on['model']} and the {what} of {model.name} differ; load "
                    f"{self.fitted_on['model']}, or fit a guard on this model (interp guard fit)"
                )

    def roc(self, model: ChatModel, harmful: Prompts, harmless: Prompts) -> dict[str, CategoryRoc]:
        """ROC of each harm category against all the harmless prompts, and of `all` harmful prompts.

        Raises:
            ValueError: as `score`, or no prompts of a kind.
        """
        bad, good = (
            torch.tensor([s.harmfulness for s in self.score(model, part)], dtype=torch.float64)
            for part in (harmful, harmless)
        )
        rows: dict[str, list[int]] = {"all": list(range(len(harmful)))}
        for row, category in enumerate(harmful.categories):
            if category is not None:
                rows.setdefault(category, []).append(row)
        found = {}
        for category, chosen in rows.items():
            labels = [1] * len(chosen) + [0] * len(good)
            false, true, thresholds = roc_curve(labels, torch.cat([bad[chosen], good]).numpy())
            found[category] = CategoryRoc(
                auroc=auroc(bad[chosen], good),
                false_positives=tuple(false.tolist()),
                true_positives=tuple(true.tolist()),
                thresholds=tuple(thresholds.tolist()),
            )
        return found

    def save(self, path: str | Path) -> Path:
        """Write the guard to one safetensors file, atomically."""
        tensors = {"harm/positive": self.harm.positive, "harm/negative": self.harm.negative}
        if self.refusal is not None:
            tensors |= {"refusal/positive": self.refusal.positive, "refusal/negative": self.refusal.negative}
        about = {
            "threshold": self.threshold,
            "layers": self.layers,
            "ending": self.ending,
            "fitted_on": self.fitted_on,
        }
        metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "guard": json.dumps(about)}
        path = Path(path)
        write_file(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata))
        return path

    @classmethod
    def load(cls, path: str | Path) -> "LatentGuard":
        """Read a guard.

        Raises:
            ValueError: no such file, damaged, not a guard, or of a newer format.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no such guard file: {path}; make one with interp guard fit")
        try:
            with safe_open(str(path), framework="pt") as stream:
                metadata = stream.metadata() or {}
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file or is damaged ({error})") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a Latent Guard; make one with interp guard fit")
        if int(metadata["format_version"]) > FORMAT_VERSION:
            raise ValueError(
                f"{path} has format_version {metadata['format_version']}, this interp reads up to {FORMAT_VERSION}; "
                "upgrade interp"
            )
        about = json.loads(metadata["guard"])
        layers = about["layers"]
        return cls(
            harm=Centres(positive=tensors["harm/positive"], negative=tensors["harm/negative"]),
            refusal=Centres(positive=tensors["refusal/positive"], negative=tensors["refusal/negative"])
            if "refusal/positive" in tensors
            else None,
            threshold=about["threshold"],
            layers=None if layers is None else tuple(layers),
            ending=about["ending"],
            fitted_on=about["fitted_on"],
        )

    def __repr__(self) -> str:
        return (
            f"LatentGuard({self.fitted_on['model']}, prompts {self.fitted_on['prompts']['name']}, "
            f"ending {self.ending}, threshold {self.threshold:.4g})"
        )

    def _card(self) -> Card:
        about = self.fitted_on
        leak = about.get("leak_check", {}).get("last_token", {}).get("value")
        counts = [[name.replace("_", " "), n] for name, n in about["counts"].items()]
        layers = "all, averaged" if self.layers is None else ", ".join(map(str, self.layers))
        calibration = about.get("calibration")
        rule = (
            "as published"
            if calibration is None
            else f"at most {calibration['false_positive_rate']:.0%} of harmless"
        )
        return Card(
            title=f"Latent Guard for {about['model']}",
            facts={
                "fitted on": f"{about['prompts']['name']}, endings {self.ending}",
                "harmful when": f"harmfulness > {self.threshold:.3g} ({rule})",
                "layers": layers,
                "refusal belief": "yes"
                if self.refusal is not None
                else "no: too few prompts refused or answered",
                "leak of the last token": f"AUROC {leak:.2f}" if leak is not None else "not measured",
            },
            tables=[Table(header=["training prompts", "n"], rows=counts)],
        )


def check_calibration(n: int, false_positive_rate: float) -> None:
    """Raise a ValueError unless n harmless prompts can tell a false-positive rate."""
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must lie between 0 and 1, got {false_positive_rate}")
    if false_positive_rate * n < 1:
        raise ValueError(
            f"{n} harmless validation prompts cannot tell a false-positive rate of {false_positive_rate:g}; "
            f"give at least {1 / n:.3g} or more prompts"
        )


def _ended(item: str | Sequence[Message], ending: Ending) -> Any:
    """A prompt with the guard's ending, of a conversation its last user turn.

    One that is punctuation only stays as it is, as a stream must go on.
    """
    if isinstance(item, str):
        return with_ending(item, ending) if item.strip(CLOSING) else item
    last = max((i for i, message in enumerate(item) if message["role"] == "user"), default=-1)
    return [
        {**message, "content": _ended(message["content"], ending)} if i == last else message
        for i, message in enumerate(item)
    ]
