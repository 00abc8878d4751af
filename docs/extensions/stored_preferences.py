"""Numbers of the page on preferences: trees against chains, resets to reference answers, and which alignment lasts."""

from typing import Any

from stored_entries import Stored, at, follow, percent

from interp.experiments.method_elasticity.analysis import rate_over_seeds
from interp.stats import Estimate, fitted_slope, mean_with_interval
from interp.storage.typed_json import from_plain


def reward_topology() -> dict[str, Stored]:
    """Hops, both measures of uncertainty, and reward models from generated pairs."""
    entries: dict[str, Stored] = {
        "hop slope": at("hop_slope"),
        "predicted hop slope": at("predicted_slope"),
        "runs": at("config", "runs", form="d"),
    }
    for row, noise in enumerate(("1e-4", "0.1", "1")):
        entries |= {
            f"{noise}: best path": at("regimes", row, "best_ratio"),
            f"{noise}: posterior": at("regimes", row, "posterior_ratio"),
        }
    for arm in ("trees", "chains, equal tokens", "chains, equal labels"):
        entries[f"{arm}: accuracy"] = Stored(
            lambda result, arm=arm: follow(_row(result, arm), ("accuracy",)), "percent"
        )
        entries[f"{arm}: near"] = Stored(
            lambda result, arm=arm: follow(_row(result, arm), ("near_accuracy",)), "percent"
        )
    return entries


def dataset_reset() -> dict[str, Stored]:
    """Rewards by share of resets: exact, in the toy, and on the given model."""
    entries: dict[str, Stored] = {
        "tabular, beta 0": Stored(lambda result: _tabular(result, 0.0), ".2f"),
        "tabular, beta 1": Stored(lambda result: _tabular(result, 1.0), ".2f"),
        "tabular, exact": Stored(lambda result: _tabular(result, -1.0), ".2f"),
        "toy slope": Stored(_toy_slope, ".3f"),
        "runs": at("config", "runs", form="d"),
        "reward accuracy": percent("reward_accuracy"),
        "n": at("config", "n_test", form="d"),
        "tokens": at("alignment", 1, "tokens", form=",d"),
    }
    for arm in ("SFT", "PPO", "DR-PO, beta 1", "GRPO", "GRPO, resets", "DPO"):
        entries[f"toy, {arm}"] = Stored(lambda result, arm=arm: _toy(result, arm), ".2f")
    for name, row in (("before", 0), ("PPO", 1), ("DR-PO", 2)):
        entries |= {
            f"model, {name}: reward": at("alignment", row, "held_out"),
            f"model, {name}: harmful": percent("alignment", row, "refuses_harmful"),
            f"model, {name}: harmless": percent("alignment", row, "refuses_harmless"),
        }
    return entries


def method_elasticity() -> dict[str, Stored]:
    """Refusal rates of every arm where it was stopped, and before and after the stubs."""
    entries: dict[str, Stored] = {
        "stubs": at("config", "n_stubs", form="d"),
        "seeds": at("config", "seeds", form="d"),
        "n": at("config", "n_test", form="d"),
        "target": percent("config", "target"),
        "start": _over_seeds("alignments", {"arm": "sft"}, "moments", 0, "values", "refusal"),
        "rollouts": Stored(lambda result: result["config"]["updates"] * result["config"]["rollouts"], "d"),
    }
    for arm in ("none", "shuffled", "sft", "dpo", "kto", "orpo", "ppo", "dr-po", "grpo", "tree"):
        leg = {"arm": arm, "matching": "refusal"}
        entries |= {
            f"{arm}: before": _over_seeds("unlearned", leg, "moments", 0, "values", "refusal"),
            f"{arm}: after": _over_seeds("unlearned", leg, "moments", -1, "values", "refusal"),
        }
        if arm != "none":
            entries[f"{arm}: reached"] = _over_seeds("matches", leg, "reached")
    return entries


def _over_seeds(part: str, rows: dict[str, Any], *where: str | int) -> Stored:
    """A rate over the seeds of an arm."""

    def found(result: Any) -> Estimate:
        entries = [row for row in result[part] if all(row[key] == value for key, value in rows.items())]
        rates = [from_plain(Estimate, dict(follow(row, where)), source="a stored rate") for row in entries]
        return rate_over_seeds(rates)

    return Stored(found, "percent")


def _tabular(result: Any, beta: float) -> Any:
    return follow(result, ("tabular", {"beta": beta}, "reward", -1))


def _toy(result: Any, arm: str) -> Estimate:
    """Mean over seeds of an arm's reward."""
    return mean_with_interval([row["reward"] for row in result["toy"] if row["arm"] == arm])


def _toy_slope(result: Any) -> Estimate:
    rows = [row for row in result["toy"] if row["arm"] == "PPO" or row["arm"].startswith("DR-PO")]
    return fitted_slope([row["beta"] for row in rows], [row["reward"] for row in rows])


def _row(result: Any, arm: str) -> Any:
    """A reward model's row at the largest number of labels."""
    rows = [row for row in result["generated"]["rows"] if row["arm"] == arm]
    return max(rows, key=lambda row: row["labels"])
