"""Images of a MuJoCo model at training speed.

Stock Meta-World renders 67,000 faces with shadows, reflections and multisampling: ten images a second with software
OpenGL. This module renders a copy of the model with simplified meshes and without those effects. The physics uses the
original model. `benchmarks/camera.py` prints the gain in speed.
"""

from __future__ import annotations

import atexit
import copy
import importlib
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import mujoco
import numpy as np

from rewards.errors import UserError
from rl.envs.opengl import prepare_opengl
from world_model.view import View

Array = np.ndarray

os.environ.setdefault("LP_NUM_THREADS", "0")  # software OpenGL renders small images fastest in the caller's thread

GRID = 12
"""Cells along the longest side of a mesh; all vertices in one cell are merged."""


class Camera:
    """Renders one model; any `MjData` of the same model can be rendered.

    Args:
        model: is copied and thinned.
        view: position of the camera, unless `render` is given another one.
        height: of an image, in pixels.
        width: of an image, in pixels.

    Raises:
        UserError: OpenGL is missing, or the model has no camera of that name.
    """

    def __init__(self, model: mujoco.MjModel, view: View, height: int = 64, width: int = 64) -> None:
        self.height, self.width, self._model = height, width, _thinned(model)
        _context().make_current()
        self._model.vis.quality.offsamples = self._model.vis.quality.shadowsize = 0
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        if not view.shows_goal:  # make the goal marker transparent
            for i in range(self._model.nsite):
                if "goal" in self._model.site(i).name:
                    self._model.site_rgba[i, 3] = 0.0
        self._scene, self._options = mujoco.MjvScene(self._model, 500), mujoco.MjvOption()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self.view = view
        _placed(self._model, view)  # refuses an unknown name at once
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)

    def render(self, data: mujoco.MjData, view: View | None = None, light: Sequence[float] = (1.0, 1.0, 1.0)) -> Array:
        """Render the state in `data`. Shape: (height, width, 3) uint8, the upper row first.

        `view` replaces that of the constructor, except `shows_goal`; `light` are factors of the red, green and blue of
        all lights.
        """
        _context().make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        camera = _placed(self._model, view or self.view)
        mujoco.mjv_updateScene(self._model, data, self._options, None, camera, everything, self._scene)
        if tuple(light) != (1.0, 1.0, 1.0):
            for lamp in self._scene.lights[: self._scene.nlight]:  # copied anew from the model by each update
                for part in (lamp.ambient, lamp.diffuse, lamp.specular):
                    part *= np.asarray(light, np.float32)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rectangle, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL returns the lowest row first


@cache
def _context() -> Any:
    """Return the one OpenGL context of this process; with two contexts, one may render the other one's data."""
    prepare_opengl()
    backend = os.environ.get("MUJOCO_GL") or ("cgl" if sys.platform == "darwin" else "egl")
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(1, 1)
        context.make_current()
        atexit.register(context.free)  # free explicitly; at interpreter exit its destructor comes too late
    except Exception as error:
        raise UserError(
            f"images need OpenGL, and MUJOCO_GL={backend} finds none ({type(error).__name__}: {error}); on Debian: "
            f"apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
        ) from error
    return context


def _placed(model: mujoco.MjModel, view: View) -> mujoco.MjvCamera:
    """Return the camera of a view: one that the model names, or a free one at the view's position."""
    camera = mujoco.MjvCamera()
    if view.camera:
        names = [model.camera(i).name for i in range(model.ncam)]
        if view.camera not in names:
            raise UserError(f"camera={view.camera!r}: the model has {', '.join(names)}")
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, names.index(view.camera)
        return camera
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:], camera.distance = view.lookat, view.distance
    camera.azimuth, camera.elevation = view.azimuth, view.elevation
    return camera


def _thinned(model: mujoco.MjModel) -> mujoco.MjModel:
    """Copy a model with fewer faces, by vertex clustering: each corner moves to the first vertex of its grid cell."""
    thin = copy.copy(model)
    for i in range(thin.nmesh):
        first, n = thin.mesh_vertadr[i], thin.mesh_vertnum[i]
        rows = slice(thin.mesh_faceadr[i], thin.mesh_faceadr[i] + thin.mesh_facenum[i])
        vertices = thin.mesh_vert[first : first + n]
        # Grid cell of each vertex, and for each vertex the first vertex in its cell.
        cell = np.floor((vertices - vertices.min(0)) / (np.ptp(vertices, axis=0).max() / GRID)).astype(int)
        _, kept, of_vertex = np.unique(cell, axis=0, return_index=True, return_inverse=True)
        faces = kept[of_vertex.reshape(-1)][thin.mesh_face[rows]]
        # Keep the faces whose three corners are still distinct, each set of corners once.
        corners = np.sort(faces, axis=1)
        whole = (corners[:, 0] < corners[:, 1]) & (corners[:, 1] < corners[:, 2])
        _, once = np.unique(corners, axis=0, return_index=True)
        drawn = np.intersect1d(once, whole.nonzero()[0])
        if len(drawn) < 4:  # too flat for the grid: keep the mesh as it is
            continue
        # The remaining faces move to the front of the mesh's rows; `mesh_facenum` cuts off the rest.
        left = slice(rows.start, rows.start + len(drawn))
        thin.mesh_face[left] = faces[drawn]
        for name in ("mesh_facenormal", "mesh_facetexcoord"):
            getattr(thin, name)[left] = getattr(thin, name)[rows][drawn]
        thin.mesh_facenum[i] = len(drawn)
    return thin
