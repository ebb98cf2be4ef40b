"""Triton is loaded before OpenGL in every process that draws: the other order ends it with a segmentation fault."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

CAMERA = """
import mujoco
from rl.envs.metaworld.camera import Camera
from world_model.view import View
Camera(mujoco.MjModel.from_xml_string("<mujoco/>"), View(), 16)
"""
WORKERS = """
from rl.envs.cameras import CameraUse
from rl.envs.workers import Workers
from world_model.view import View
Workers("metaworld", ["push"], {}, {"images.front": CameraUse(View(), 16, 16)}, 1).reset({0: 0})
"""
GYMNASIUM = """
from rl.envs.cameras import CameraUse
from rl.envs.gym_env import GymTask
from world_model.view import View
task = GymTask("Pendulum-v1", {"images.front": CameraUse(View(), 16, 16)})
"""

LOGGED = """
import os
from OpenGL import EGL
with open(os.environ["ORDER"], "a") as file:
    file.write("triton after a context\\n" if EGL.eglGetCurrentContext() else "triton\\n")
"""
"""Stands in for triton, and writes down whether there was a context before it."""


@pytest.mark.parametrize("code", [CAMERA, WORKERS, GYMNASIUM], ids=["camera", "workers", "gymnasium"])
def test_triton_is_loaded_before_opengl(tmp_path: Path, code: str) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(LOGGED)
    order = tmp_path / "order"
    path = f"{tmp_path}:{ROOT}"
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "ORDER": str(order), "MUJOCO_GL": "egl"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert order.read_text() == "triton\n"


def test_an_optimizer_after_a_camera_ends_no_process() -> None:
    """With the default torch of Linux, which brings triton, this was a segmentation fault."""
    code = f"{CAMERA}\nimport torch\ntorch.optim.AdamW([torch.zeros(1, requires_grad=True)])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
