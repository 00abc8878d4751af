"""Numbers of the page on preferences: trees against chains."""

from stored_entries import Stored, at, follow


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


def _row(result, arm: str):
    """A reward model's row at the largest number of labels."""
    rows = [row for row in result["generated"]["rows"] if row["arm"] == arm]
    return max(rows, key=lambda row: row["labels"])
