"""Export a policy as `policy.onnx`, which runs without torch, with a contract that says how to use it.

The graph contains everything from an observation to a chunk of actions within bounds: normaliser, encoder, all steps
of the sampler, the held actions at the start of a chunk, and clipping. It needs the extra `export`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.deploy.contract import CONTRACT, ONNX, load_contract, make_contract
from rl.deploy.pilots import onnx_session
from rl.policies.exportable import Exportable
from rl.policies.wam import load_exportable
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.extras import import_extra
from world_model.files import to_json, write_folder
from world_model.spec import LATENTS

N_PARITY, MAX_DIFFERENCE = 1000, 1e-4
"""Number of inputs on which onnxruntime and torch are compared, and the largest allowed difference of an action."""


def export_policy(
    checkpoint: str | Path,
    folder: str | Path,
    n_denoising_steps: int = 0,
    n_action_steps: int = 0,
    command: str = "",
    episodes: str = "",
) -> dict[str, Any]:
    """Write the policy of a checkpoint into `folder` and return its contract; after an error, nothing is written.

    Args:
        checkpoint: a built-in name, a checkpoint folder or a run folder.
        folder: target folder; an earlier export in it is replaced.
        n_denoising_steps: of the sampler; 0: as in the run that trained it, or 2 if unknown.
        n_action_steps: actions to execute of each chunk; 0: as in the run that trained it, or the whole chunk.
        command: the command that the contract names as its origin.
        episodes: folder of recorded episodes to compare on; empty: those of the checkpoint, or random states.

    Raises:
        UserError: a package, the checkpoint or the episodes are missing, a count is invalid, `folder` holds other
            files, or onnxruntime and torch differ by more than MAX_DIFFERENCE.
    """
    final = Path(folder)
    _check_replaceable(final)
    _check_packages()
    policy = load_exportable(checkpoint, n_denoising_steps, n_action_steps)
    inputs, compared_on = parity_inputs(policy, episodes)  # before the graph, which takes a minute
    onnx = to_onnx(policy)
    difference = largest_difference(policy, onnx, inputs)
    if not difference <= MAX_DIFFERENCE:  # written with `not`, so that NaN fails too
        raise UserError(
            f"{checkpoint}: actions of onnxruntime and torch differ by {difference:.1e}, expected at most "
            f"{MAX_DIFFERENCE:.0e}; nothing was written, try other versions of onnxscript and onnxruntime"
        )
    contract = make_contract(policy, onnx, difference, compared_on, command)
    # `write_folder` makes a temporary folder next to the target; for a path such as `.` that needs the full path.
    write_folder(final.resolve(), {ONNX: onnx, CONTRACT: to_json(contract)})
    return load_contract(final)


def to_onnx(policy: Exportable) -> bytes:
    """Return the graph and its weights as the bytes of an ONNX file, for any batch size."""
    inputs = policy.graph.random_inputs(3, torch.Generator().manual_seed(0))
    shapes = _dynamic_shapes(policy, torch.export.Dim("batch"))
    # Use torch.export instead of TorchScript, whose archives are unpickled on loading and so can run any code.
    with torch.no_grad(), _quiet():
        # strict=True keeps `len(tensor)` as the batch size; otherwise it becomes the constant 3 of these inputs.
        program = torch.export.export(policy.graph, inputs, dynamic_shapes=shapes, strict=True)
        onnx = torch.onnx.export(
            program,
            input_names=policy.input_names,
            output_names=["actions"],
            dynamic_shapes=_dynamic_shapes(policy, "batch"),  # sets the name of the axis in the file
            external_data=False,
            verbose=False,
        )
    assert onnx is not None
    parts: list[Any] = [onnx.model, onnx.model.graph, *onnx.model.graph.all_nodes()]
    for part in parts:
        part.metadata_props.clear()  # remove paths and source lines of the exporting machine
    data: bytes = onnx.model_proto.SerializeToString(deterministic=True)
    return data


def _dynamic_shapes(policy: Exportable, batch: Any) -> tuple[Any, ...]:
    """Return for each argument of the graph that its first axis is `batch`; images are one argument, a tuple."""
    n_images = len(policy.spec.images)
    others = ({0: batch},) * (len(policy.input_names) - n_images)
    return (*others, ({0: batch},) * n_images) if n_images else others


def parity_inputs(policy: Exportable, episodes: str) -> tuple[tuple[Tensor, ...], str]:
    """Return N_PARITY inputs of the graph, and their description for the contract."""
    folder, generator = Path(episodes or find_checkpoint(policy.checkpoint)), torch.Generator().manual_seed(1)
    recorded = [e for e in EpisodeStore(folder).load(tasks=policy.spec.tasks) if e.length >= policy.chunk_size]
    if recorded:
        # Episodes in a checkpoint may have latents in place of images, which the graph decodes.
        spec, drawn = policy.spec, LATENTS in recorded[0].obs and bool(policy.spec.images)
        vectors = {name: spec.features[name] for name in spec.vectors}
        recorded[0].check_fits(replace(spec, features=vectors) if drawn else spec, str(folder))
        note = ", whose images were decoded from latents" if drawn else ""
        return policy.graph.recorded_inputs(recorded, N_PARITY, generator), f"{N_PARITY} recorded observations{note}"
    if episodes:
        raise UserError(f"{episodes}: no episodes of {', '.join(policy.spec.tasks)} here; name others or leave it out")
    return policy.graph.random_inputs(N_PARITY, generator), f"{N_PARITY} random observations"


def largest_difference(policy: Exportable, onnx: bytes, inputs: tuple[Tensor, ...]) -> float:
    """Return the largest difference of any action between onnxruntime and torch, on `inputs` of the graph."""
    session = onnx_session(onnx, torch.get_num_threads())
    with torch.no_grad():
        expected = policy.graph(*inputs)
    feed = {name: value.numpy() for name, value in zip(policy.input_names, inputs, strict=True)}
    (found,) = session.run(["actions"], feed)
    return float((torch.from_numpy(found) - expected).abs().max())


def _check_replaceable(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = names - {ONNX, CONTRACT}
    if folder.is_file() or foreign or names == {ONNX}:
        what = f"it holds {min(foreign)}, which is not of an export" if foreign else "it exists and is not an export"
        raise UserError(f"{folder}: {what}; nothing was replaced, choose another folder with out=...")


def _check_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, "export", f"export needs {package}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log lines; its errors are still raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
