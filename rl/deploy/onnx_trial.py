"""Try out an ONNX graph: load and run it once, in a separate process with limits on memory and time.

An ONNX file is a program. A file from an unknown source can fill the memory, run forever, or crash the library that
reads it; in this process it does no harm. The process runs this file as a script, which reads a line of JSON and then
the graph from standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

MEMORY, MEMORY_PER_BYTE = 400_000_000, 5
"""Memory limit: this many bytes, plus this many for each byte of the file."""

CPU_S, WALL_S = 5, 60
"""Time limits in seconds for loading and one call: CPU time and wall-clock time."""


def complaint(onnx: bytes, inputs: Mapping[str, tuple[str, Sequence[int]]], output: Sequence[int]) -> str:
    """Return why a graph cannot be used, or an empty string if it can.

    Args:
        onnx: the graph.
        inputs: name -> (dtype, shape with the batch axis).
        output: shape of its only output, `actions`.
    """
    head = json.dumps({"inputs": inputs, "output": list(output)}).encode() + b"\n"
    try:  # -P: do not add this file's folder to the import path
        command = [sys.executable, "-P", __file__]
        done = subprocess.run(command, input=head + onnx, capture_output=True, timeout=WALL_S, check=False)
    except subprocess.TimeoutExpired:
        return f"it takes more than {WALL_S} s"
    if done.returncode == 0:
        return ""
    # Exit code 1 is a Python exception, whose last line is the reason; other codes are limits or crashes.
    lines = done.stderr.decode(errors="replace").strip().splitlines() if done.returncode == 1 else []
    return lines[-1][:300] if lines else f"it takes more than {CPU_S} s or too much memory, or crashes onnxruntime"


def main() -> None:
    """Read a graph from standard input and run it once on zeros; raise an exception if it does not work."""
    import importlib
    import resource

    import numpy as np

    ort = importlib.import_module("onnxruntime")

    head, onnx = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    given = json.loads(head)
    # Set the limits before the graph is loaded.
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
