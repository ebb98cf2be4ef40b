"""The wheel holds our three packages with presets and built-in checkpoints, nothing else, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **env: str) -> str:
    """Run a command and return its output; its errors are the test's."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def files_below(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file()}


def test_wheel_holds_just_our_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"rl", "world_model", "rewards", "wamtune-0.1.0.dist-info"}
    assert "wamtune-0.1.0.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".tmp"))]


def test_wheel_holds_presets_and_built_ins(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = files_below(ROOT / "configs", "*.yaml")
    assert presets and {f"rl/presets/{name}" for name in presets} <= names
    built_ins = files_below(ROOT / "world_model" / "builtin", "*")
    assert any(name.endswith("model.safetensors") for name in built_ins)
    assert {f"world_model/builtin/{name}" for name in built_ins if "__pycache__" not in name} <= names


def test_wheel_says_that_its_packages_are_typed(wheel: Path) -> None:
    assert {f"{name}/py.typed" for name in ("rl", "world_model", "rewards")} <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_names_itself_where_an_extra_is_missing(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from world_model.extras import pip_line; print(pip_line('data'))"
    line = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert line.strip().endswith(f"pip install '{wheel.name}[data]'")


def test_wheel_forbids_upload_and_declares_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert b"Classifier: Private :: Do Not Upload" in archive.read("wamtune-0.1.0.dist-info/METADATA")
        assert b"wamtune = rl.cli:main" in archive.read("wamtune-0.1.0.dist-info/entry_points.txt")


def test_presets_are_found_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from rl.compose import list_presets, preset_folder; print(preset_folder()); print(len(list_presets()))"
    folder, count = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).split()
    assert Path(folder) == (tmp_path / "site" / "rl" / "presets").resolve()
    assert int(count) == len(files_below(ROOT / "configs", "*.yaml"))


def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Install it with its dependencies, then list and train from a folder that is not the checkout."""
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / "bin"
    run(bin_folder / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    listed = run(bin_folder / "wamtune", "ls", cwd=tmp_path, PYTHONPATH="")
    assert "metaworld-tuned" in listed and "demo" in listed
    small = ("total_timesteps=10_000", "n_rounds=1", "eval.n_episodes=8", "gate.enabled=false")
    run(bin_folder / "wamtune", "train", "demo", *small, cwd=tmp_path, PYTHONPATH="")
    assert list((tmp_path / "runs").rglob("metrics.jsonl"))
