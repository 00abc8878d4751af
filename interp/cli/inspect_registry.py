"""What interp gives to Inspect: its entry point imports this module, which registers provider, solver, scorers, tasks.

    [project.entry-points.inspect_ai]
    interp = "interp.cli.inspect_registry"

Importing it registers them as well, where the package is not installed.
"""

from interp.detectors.inspect_beliefs import beliefs
from interp.evaluation.inspect_bridge import interp_provider, steered
from interp.evaluation.inspect_tasks import choices, refusal, refused

__all__ = ["beliefs", "choices", "interp_provider", "refusal", "refused", "steered"]
