"""The house rules that can be read from the source: who imports whom, how long things are, which words are used."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl import shadow
from rl.config import TrainConfig
from rl.envs.names import BUILTIN

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rewards", "world_model", "rl")

ROOMS = (
    ("rewards",),
    ("world_model", "world_model.data"),
    ("world_model.wam",),
    ("rl.shadow",),
    ("rl.seeds", "rl.statistics", "rl.sequential", "rl.ranking"),
    ("rl.config", "rl.compose"),
    ("rl.policies", "rl.robots"),
    ("rl.deploy",),
    ("rl.envs",),
    ("rl.ppo", "rl.build", "rl.world_models", "rl.instructions"),
    ("rl.rounds",),
    ("rl.runs",),
    ("rl.sweeps",),
    ("rl.report",),
    ("rl.play",),
    ("rl.stages",),
    ("rl.verbs",),
    ("rl.api",),
    ("rl.cli",),
)
"""Rooms in the order of imports: each imports only its own row and those before it."""

FRONTS = ("rl", "world_model")
"""Packages themselves, which offer what is in rooms inside them."""

WITHOUT_OUR_MODEL = ("rl.ppo", "rl.envs", "rl.robots", "rl.deploy", "rl.policies", "rl.rounds", "rl.play")
"""Rooms that know the protocols and never `world_model.wam`; of the policies, `wam.py` alone does."""

OURS = {"rewards": {"rewards"}, "world_model": {"world_model", "rewards"}, "rl": {"rl", "world_model", "rewards"}}
"""package -> what of ours it may import, anywhere in a file."""

AT_TOP = {"rewards": {"torch"}, "world_model": {"torch", "numpy", "safetensors"}}
"""package -> what of others' it may import when it is loaded: acting with a checkpoint on a robot needs no more."""

PLUGIN = "lerobot_policy_wamtune"
"""The distribution for LeRobot, which is installed on its own; nothing imports it."""

LOADED_BY_ISAAC_LAB = ("rl/envs/isaac/push/task.py", "rl/envs/isaac/rewards.py")
"""Where a class of Isaac Lab is extended, which cannot be done inside a function; nothing else imports them."""

LINES_OF_FILE, LINES_OF_FUNCTION = 500, 60

OTHER_WORDS = (
    "lr num_steps n_steps_per_env num_epochs update_epochs minibatch_size num_minibatches n_minibatches nsteps lam gae "
    "discount entropy_coef value_coef clip_coef clip_param clip_eps max_kl kl_target grad_clip num_envs nenvs lmbda "
    "n_parallel context_length n_frames chunk_len horizon_steps num_inference_steps denoise_steps"
).split()
"""Names that other projects have for things of the glossary; a config that uses one has two words for one thing."""


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, package: str, at_top: bool) -> Iterator[tuple[str, int]]:
    """Yield (top-level package, line) of each import; with `at_top` only of those that loading the file runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (package if node.level else (node.module or "").split(".")[0]), node.lineno
        elif at_top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_top and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        else:
            yield from imports(node, package, at_top)


def simulators_asked_for(tree: ast.AST) -> Iterator[int]:
    """Yield the line of each place that asks which simulator there is: a name compared, or a class of one imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            words = [leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]
            if any(isinstance(word, str) and (word in BUILTIN or word.startswith("Isaac-")) for word in words):
                yield node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".startswith", ".endswith")):
            if any(word in ast.unparse(node) for word in ("Isaac", *BUILTIN)):
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rl.envs"):
            if {alias.name for alias in node.names} & {
                "SimEnv",
                "MetaWorldSim",
                "GymnasiumSim",
                "IsaacEnv",
                "Recorded",
            }:
                yield node.lineno
        elif isinstance(node, ast.Name) and node.id in ("is_isaac", "RECORDED"):
            yield node.lineno


def module_of(path: Path) -> str:
    """Return the dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def row_of(module: str) -> int:
    """Return the row of `ROOMS` that a module belongs to."""
    names = (".".join(module.split(".")[:n]) for n in (2, 1))
    return next(i for name in names for i, row in enumerate(ROOMS) if name in row)


def modules_imported() -> dict[str, set[str]]:
    """Return, for each module, those of ours that it imports anywhere: in functions and for type checkers as well."""
    modules = {module_of(path): path for path in sources(*PACKAGES)}
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in modules}
            elif isinstance(node, ast.ImportFrom) and node.module in modules:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= members & modules.keys() or {node.module}
    return found


def circles(imported: dict[str, set[str]]) -> list[str]:
    """Return the modules that import each other, directly or through others."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in imported[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    return sorted(name for name in imported if name in reachable(name))


def core_dependencies() -> set[str]:
    """Import names of the dependencies that every installation has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in project["dependencies"]}
    return {
        {"stable-baselines3": "stable_baselines3", "pyyaml": "yaml", "pillow": "PIL"}.get(name, name) for name in names
    }


def test_imports_run_downwards() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {name}"
        for package in PACKAGES
        for path in sources(package)
        for name, line in imports(ast.parse(path.read_text()), package, at_top=False)
        if name in {*PACKAGES, PLUGIN, "tests", "configs", "benchmarks", "examples"} - OURS[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_runs_from_a_room_to_a_later_one() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in modules_imported().items()
        if name not in FRONTS
        for other in sorted(others)
        if row_of(other) > row_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    assert not circles(modules_imported())


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_rooms_that_know_protocols_do_not_import_our_model() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in modules_imported().items()
        if name.startswith(WITHOUT_OUR_MODEL) and name != "rl.policies.wam"
        for other in sorted(others)
        if other.startswith("world_model.wam")
    ]
    assert not wrong, "\n".join(wrong)


def test_stable_baselines3_stays_behind_its_adapters() -> None:
    """The update and the policies do not need it, nor does anybody who acts with a checkpoint."""
    found = {
        name_of(path)
        for package in PACKAGES
        for path in sources(package)
        for name, _ in imports(ast.parse(path.read_text()), package, at_top=False)
        if name == "stable_baselines3"
    }
    assert found == {"rl/envs/adapters.py", *(f"rl/ppo/{name}.py" for name in ("callbacks", "sb3", "schedules"))}


def test_optional_packages_are_imported_inside_functions() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {name} when it is loaded"
        for package in PACKAGES
        for path in sources(package)
        for name, line in imports(ast.parse(path.read_text()), package, at_top=True)
        if name not in OURS[package] | AT_TOP.get(package, core_dependencies()) | sys.stdlib_module_names
        and name_of(path) not in LOADED_BY_ISAAC_LAB
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_simulators_know_which_they_are() -> None:
    """The rest asks the class of the simulator that `rl.build.find_simulator` returns."""
    wrong = [
        f"{name_of(path)}:{line}"
        for path in sources("rewards", "world_model", "rl")
        if not name_of(path).startswith("rl/envs/")
        for line in simulators_asked_for(ast.parse(path.read_text()))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "if env.id == 'metaworld': pass",
        "x = env.id in ('isaac', 'a')",
        "x = env.id.startswith('Isaac-')",
        "from rl.envs.isaac.env import IsaacEnv",
        "x = is_isaac(env.id)",
        "x = env.id != RECORDED",
    ],
)
def test_a_place_that_asks_for_the_simulator_is_found(line: str) -> None:
    assert list(simulators_asked_for(ast.parse(line))) == [1]
    assert not list(simulators_asked_for(ast.parse("x = load(name='metaworld') if env.id == 'push' else None")))


def test_files_are_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in sources(*PACKAGES, PLUGIN)}
    assert not {name: n for name, n in lengths.items() if n > LINES_OF_FILE}


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first, length = node.body[0], (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        length -= (first.end_lineno or 0) - first.lineno + 1
    return length


def test_functions_are_short() -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno} {node.name} has {function_lines(node)} lines"
        for path in sources(*PACKAGES, PLUGIN)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function_lines(node) > LINES_OF_FUNCTION
    ]
    assert not wrong, "\n".join(wrong)


def config_words(schema: Any) -> Iterator[str]:
    for field in dataclasses.fields(schema):
        yield field.name
        if dataclasses.is_dataclass(field.default_factory):
            yield from config_words(field.default_factory)


def test_configs_use_the_words_of_the_glossary() -> None:
    words = set(config_words(TrainConfig))
    assert {"n_envs", "n_epochs", "learning_rate", "horizon", "gae_lambda"} <= words
    for preset in (ROOT / "configs").rglob("*.yaml"):
        words |= set(re.findall(r"(\w+):", preset.read_text()))
    assert not words & set(OTHER_WORDS)


def test_no_path_of_a_machine_in_the_project() -> None:
    """A path below somebody's home works for that one person only."""
    home = re.compile(r"(?<![\w.~-])/(home|root|Users|work|tmp)/")
    wrong = [
        f"{name_of(path)}:{i} {line.strip()}"
        for folder in (*PACKAGES, PLUGIN, "configs", "benchmarks", "examples", "docs")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".py", ".yaml", ".md", ".toml"}
        for i, line in enumerate(path.read_text().splitlines(), start=1)
        if home.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_shadow_guard_is_silent_at_home() -> None:
    assert shadow.foreign_package([str(ROOT), *sys.path]) is None


@pytest.mark.parametrize("name", PACKAGES)
def test_shadow_guard_names_a_foreign_package(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    line = shadow.foreign_package([str(tmp_path), str(ROOT)])
    assert line is not None and "\n" not in line
    assert line.startswith(f"the package {name!r} in {tmp_path / name} hides wamtune's own in {ROOT / name}")
    assert shadow.foreign_package([str(ROOT), str(tmp_path)]) is None  # behind ours it does no harm


def test_shadow_guard_names_a_foreign_module(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("")
    assert str(tmp_path / "rewards.py") in (shadow.foreign_package([str(tmp_path), str(ROOT)]) or "")


def test_shadow_guard_needs_nothing_of_ours() -> None:
    """It must load when a foreign `rewards` breaks everything else; `rl` itself is loaded before it."""
    for name in ("shadow.py", "__init__.py"):
        used = {package for package, _ in imports(ast.parse((ROOT / "rl" / name).read_text()), "rl", at_top=True)}
        assert used <= set(sys.stdlib_module_names), name
