"""What an import costs, and that rooms import only from the rooms above them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interp

PACKAGE = Path(interp.__file__).parent
ROOMS = (
    "stats",
    "display",
    "directions",
    "storage",
    "models",
    "data",
    "engine",
    "evaluation",
    "representations",
    "detectors",
    "training",
    "tracking",
    "experiments",
    "playgrounds",
    "cli",
)
"""The order in which rooms may be imported: each only from rooms above it (docs/architecture.md)."""
APART = ({"detectors", "training"},)
"""Rooms that never import each other, in either direction."""
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
from interp.cli.main import app
for arguments in (["--help"], ["run", "--help"]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "Usage" in result.output, result.output
"""
    assert loaded_after(code, *HEAVY, "numpy", "interp.models.chat_model") == set()


def test_the_commands_are_built_without_what_only_their_work_needs() -> None:
    """Typer itself loads pydantic to parse a command's options, but not for the help of `interp`."""
    libraries = (*HEAVY, "numpy", "pydantic", "filelock", "asyncio")
    assert loaded_after("import interp.cli.main", *libraries) == set()
    # Control: what reads results does load them.
    assert "pydantic" in loaded_after("import interp.storage.settings", *libraries)


STATIC = (
    (["list"], "refusal-direction"),
    (["--version"], "interp 0"),
    (["run", "rebound", "--settings"], "learning_rate"),
    (["run", "demo", "--set", "x=1"], "name one of n_train"),
    (["run", "demo", "--set", "n_test=-3"], "must be 1 or more"),
    (["run", "nothing"], "unknown experiment"),
    (["run", "demo", "--prompts", "absent"], "unknown prompt set"),
    (["run", "demo", "--out", "README.md"], "is a file"),
    (["tokens", "Hi", "--model", "./absent"], "no such folder"),
    (["tokens", "Hi", "--dtype", "float8"], "dtype must be"),
    (["steer", "Hi", "-d", "absent"], "no such direction file"),
    (["export", "absent", "--out", "x.gguf"], "no such direction file"),
    (["export", "absent", "--to", "hf", "--out", "x"], "no such direction file"),
    (["collect", "absent.csv", "--out", "x.safetensors"], "no such prompt file"),
    (["collect", "Hi", "--layers", "1-99999999", "--out", "x.safetensors"], "a range ascends"),
    (["directions", "--positive", "absent.txt"], "two sides"),
    (["directions", "--prompts", "absent"], "unknown prompt set"),
    (["guard", "score", "absent", "-"], "no such guard file"),
    (["detect", "score", "absent", "-"], "no such detector file"),
    (["judge", "absent.jsonl"], "no such file of answers"),
    (["plant", "x"], "unknown rule"),
    (["judge", "absent.jsonl", "--judges", "nobody"], "unknown judge"),
    (["run", "demo", "--judges", "wildguard"], "given as wildguard=MODEL"),
    (["plot", "absent"], "holds no result.json"),
    (["runs", "show", "absent"], "holds no result.json"),
    (["track", "runs/no/where"], "no such checkpoint"),
)
"""Commands that answer, or find a mistake, without a model, and words of their answer."""


def test_static_answers_and_mistakes_load_no_model_library() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from interp.cli.main import app
for arguments, words in {STATIC!r}:
    result = CliRunner().invoke(app, arguments)
    assert words in result.output, result.output
    loaded = [name for name in {(*HEAVY, "numpy", "sympy", "huggingface_hub")!r} if name in sys.modules]
    assert not loaded, (arguments, loaded)
"""
    assert loaded_after(code, *HEAVY) == set()


def test_what_reads_stored_results_leaves_model_libraries_alone() -> None:
    modules = (
        "directions",
        "display.charts",
        "display.page",
        "storage.direction_files",
        "storage.run_folders",
    )
    names = [f"interp.{module}" for module in modules]
    assert loaded_after(f"import {', '.join(names)}", *names, "transformer_lens", "transformers") == set(
        names
    )


def test_the_selection_rule_needs_no_torch() -> None:
    code = """
from interp.representations.selection import pick
row = dict(position=-1, layer=0, bypass=0, induce=1, kl=0)
assert pick([row], n_layers=2).layer == 0
"""
    assert loaded_after(code, *HEAVY) == set()


def test_public_names_resolve_and_others_are_listed() -> None:
    assert sorted(interp.__all__) == dir(interp)
    for name in interp.__all__:
        found = getattr(interp, name)
        assert name.isupper() or found.__name__.split(".")[-1] == name  # a constant has no name of its own
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


def room(module: str) -> str:
    """The room of a module given as `engine.batching`."""
    first = module.split(".")[0]
    assert first in ROOMS, (
        f"interp/{module} is in no room of the floor plan; put it where its reader would look"
    )
    return first


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str) -> set[str]:
    """Modules of interp that a source imports, anywhere in it, without the leading `interp.`.

    `from interp.models import tokens` counts as `models`, or as `models.tokens` where that is a file.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}; write it out"
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.add(whole if _is_module(whole) else module)
    return {name.removeprefix("interp.") for name in found if name.startswith("interp.")}


def _is_module(name: str) -> bool:
    place = PACKAGE.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def allowed(module: str, imported: str) -> bool:
    """Whether the floor plan lets a module import another."""
    here, there = room(module), room(imported)
    if here == there:
        return True  # inside a room the test of circles decides
    return {here, there} not in APART and ROOMS.index(there) < ROOMS.index(here)


MODULES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"
]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_from_rooms_above(path: Path) -> None:
    module = name_of(path)
    wrong = [name for name in sorted(imports_of(path.read_text())) if not allowed(module, name)]
    assert not wrong, f"{module} imports {', '.join(wrong)}, which the floor plan puts below it"


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves through what they import."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imports.get(waiting.pop(), set()) - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    return [module for module in imports if module in reached(module)]


def test_no_module_reaches_itself() -> None:
    assert circles({name_of(path): imports_of(path.read_text()) for path in MODULES}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]  # control


def test_the_layering_test_sees_imports_and_judges_them() -> None:
    source = """
import torch, interp.models.chat_model
from interp.models import tokens
from interp.experiments.demo import run
def late():
    from interp.representations.selection import pick
"""
    assert imports_of(source) == {
        "models.chat_model",
        "models.tokens",
        "experiments.demo.run",
        "representations.selection",
    }
    assert {room(name_of(path)) for path in MODULES} == set(ROOMS)
    assert allowed("representations.selection", "evaluation.refusals")
    assert not allowed("evaluation.refusals", "representations.selection")
    assert not allowed("display.charts", "experiments.demo.run")
    assert not allowed("training.finetune", "detectors.latent_guard")
    assert not allowed("detectors.latent_guard", "training.finetune")
    assert allowed("experiments.demo.run", "tracking.tracker")
