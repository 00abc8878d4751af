"""What interp gives to Inspect: its entry point imports this module, which registers provider, solver, scorers, tasks.

    [project.entry-points.inspect_ai]
    interp = "interp.cli.inspect_registry"

Importing it registers them as well, where the package is not installed. In an editable install Inspect puts no name of
a package before the names of what it registers; `interp/refusal` and the others are known there, too.
"""

from inspect_ai._util import registry

from interp.detectors.inspect_beliefs import beliefs
from interp.evaluation.inspect_bridge import interp_provider, steered
from interp.evaluation.inspect_tasks import choices, refusal, refused

_NAMED = {"task": ("choices", "refusal"), "solver": ("steered",), "scorer": ("beliefs", "refused")}


def _name_with_package() -> None:
    """Register under interp/NAME what Inspect registered under NAME alone."""
    known: dict[str, object] = getattr(registry, "_registry", {})
    for kind, names in _NAMED.items():
        for name in names:
            alone, whole = f"{kind}:{name}", f"{kind}:interp/{name}"
            if alone in known and whole not in known:
                known[whole] = known[alone]


_name_with_package()

__all__ = ["beliefs", "choices", "interp_provider", "refusal", "refused", "steered"]
