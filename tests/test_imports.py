"""What an import costs, and that modules import only from those above them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interp

PACKAGE = Path(interp.__file__).parent
ORDER = (
    "display",
    "checkpoints",
    "models",
    "chat",
    "prompt_files",
    "prompts",
    "directions",
    "interventions",
    "batching",
    "lean",
    "trees",
    "activations",
    "decoding",
    "generation",
    "log_probs",
    "steering",
    "traces",
    "metrics",
    "leaks",
    "beliefs",
    "behaviours",
    "jailbreaks",
    "selection",
    "sweeps",
    "results",
    "formats",
    "playgrounds",
    "guard",
    "text_guards",
    "training",
    "finetune",
    "safety_adapter",
    "corpora",
    "tasks",
    "probes",
    "measures",
    "references",
    "series",
    "plots",
    "decline",
    "rebounds",
    "decline_plots",
    "reports",
    "trajectory_figures",
    "trajectory_report",
    "trajectories",
    "live_tracking",
    "tracking",
    "experiments",
    "runs",
    "cli",
)
"""The order in which data flows (style.md, Layout)."""
HEAVY = ("torch", "transformers", "transformer_lens", "plotly", "pandas", "sklearn", "scipy", "peft")


def loaded_after(code: str, *libraries: str) -> set[str]:
    """Those of the libraries that a fresh interpreter holds after running the code."""
    code += f"\nimport sys\nprint('LOADED', *(name for name in {libraries!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


# What an import costs


def test_importing_interp_loads_nothing_heavy() -> None:
    assert loaded_after("import interp; dir(interp)", *HEAVY) == set()
    # Control: the names are there and load what they need.
    assert "torch" in loaded_after("import interp; interp.Direction", *HEAVY)


def test_help_loads_no_model_library() -> None:
    code = """
from typer.testing import CliRunner
from interp.cli import app
for arguments in (["--help"], ["run", "--help"]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "Usage" in result.output, result.output
"""
    assert loaded_after(code, *HEAVY, "numpy", "interp.models") == set()


@pytest.mark.parametrize("module", ["directions", "plots", "formats", "results", "reports"])
def test_module_leaves_transformer_lens_alone(module: str) -> None:
    found = loaded_after(f"import interp.{module}", f"interp.{module}", "transformer_lens", "transformers")
    assert found == {f"interp.{module}"}


def test_the_selection_rule_needs_no_torch() -> None:
    code = "from interp.selection import pick; row = dict(position=-1, layer=0, bypass=0, induce=1, kl=0); "
    code += "assert pick([row], n_layers=2).layer == 0"
    assert loaded_after(code, *HEAVY) == set()


def test_public_names_resolve_and_others_are_listed() -> None:
    assert sorted(interp.__all__) == dir(interp)
    for name in interp.__all__:
        assert getattr(interp, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'interp' has no attribute 'lod'; it has .*load, "):
        interp.lod  # noqa: B018 (the access is what is tested)


def test_editors_see_the_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("interp.")
        for alias in node.names
    }
    assert seen == interp._NAMES
    assert (PACKAGE / "py.typed").is_file()


# Layering


def row(module: str) -> int:
    """Place in the order of a module given as `chat` or `experiments.demo`."""
    first = module.split(".")[0]
    assert first in ORDER, f"interp/{module} has no place in ORDER; add it where its data comes in"
    return ORDER.index(first)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str) -> set[str]:
    """Modules of interp that a source imports, anywhere in it, without the leading `interp.`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}; write it out"
            module = node.module or ""
            # `from interp import chat` imports modules, `from interp.chat import tokenize` names.
            packages = ("interp", "interp.experiments")
            found |= {f"{module}.{alias.name}" for alias in node.names} if module in packages else {module}
    return {name.removeprefix("interp.") for name in found if name.startswith("interp.")}


def allowed(module: str, imported: str) -> bool:
    """Whether the order lets a module import another."""
    if row(module) == row(
        imported
    ):  # a paper may span files: experiments/demo.py, experiments/demo_report.py
        return "." in module and (imported.startswith(module) or module.startswith(imported))
    return row(imported) < row(module)


MODULES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"
]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_from_earlier_ones(path: Path) -> None:
    module = name_of(path)
    wrong = [name for name in sorted(imports_of(path.read_text())) if not allowed(module, name)]
    assert not wrong, f"{module} imports {', '.join(wrong)}, which come after it"


def test_the_layering_test_sees_imports_and_judges_them() -> None:
    source = """
import torch, interp.models
from interp import chat
from interp.experiments import demo
def late():
    from interp.selection import choose
"""
    assert imports_of(source) == {"models", "chat", "experiments.demo", "selection"}
    assert len(MODULES) >= len(ORDER)
    assert imports_of((PACKAGE / "sweeps.py").read_text()) >= {"log_probs", "metrics", "selection"}
    assert imports_of((PACKAGE / "cli.py").read_text()) >= {"models", "formats"}
    assert allowed("selection", "metrics")
    assert not allowed("metrics", "selection")
    assert not allowed("metrics", "metrics")
    assert not allowed("plots", "experiments.demo")
    assert allowed("experiments.demo", "experiments.demo_report")
    assert not allowed("experiments.demo", "experiments.cones")
