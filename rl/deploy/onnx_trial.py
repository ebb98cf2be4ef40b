"""Load a graph and run it once, in a process of its own that may take little memory and time.

An ONNX file is a program of arithmetic: one from elsewhere can fill the memory, never end, or crash the library that
reads it. Here it does no harm. Run as a script, which reads a line of JSON and the graph from its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

MEMORY, MEMORY_PER_BYTE = 400_000_000, 5
"""Bytes that a graph may take: so many, and for each byte of its file."""

CPU_S, WALL_S = 5, 60
"""Seconds that loading and one call may take, of a processor and of a clock."""


def complaint(onnx: bytes, inputs: Mapping[str, tuple[str, Sequence[int]]], output: Sequence[int]) -> str:
    """Return why a graph cannot be used, empty if it can.

    Args:
        onnx: the graph.
        inputs: dtype and shape of each input, batch included.
        output: shape of its only output, `actions`.
    """
    head = json.dumps({"inputs": inputs, "output": list(output)}).encode() + b"\n"
    try:  # -P: the folder of this file is no place to import from
        command = [sys.executable, "-P", __file__]
        done = subprocess.run(command, input=head + onnx, capture_output=True, timeout=WALL_S, check=False)
    except subprocess.TimeoutExpired:
        return f"it takes more than {WALL_S} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines() if done.returncode == 1 else []
    return lines[-1][:300] if lines else f"it takes more than {CPU_S} s or too much memory, or crashes onnxruntime"


def main() -> None:
    """Read a graph, run it once on zeros, and raise what is wrong with it."""
    import importlib
    import resource

    import numpy as np

    ort = importlib.import_module("onnxruntime")

    head, onnx = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    given = json.loads(head)
    limit = MEMORY + MEMORY_PER_BYTE * len(onnx)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    feed = {name: np.zeros(shape, dtype) for name, (dtype, shape) in given["inputs"].items()}
    (actions,) = session.run(["actions"], feed)
    if actions.dtype != np.float32 or list(actions.shape) != given["output"]:
        raise ValueError(f"it returns {actions.dtype} {list(actions.shape)}, the contract says {given['output']}")


if __name__ == "__main__":
    main()
