"""The tests of LeRobot's policies run where lerobot is installed, offline and without the warnings of its packages."""

import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

if find_spec("lerobot"):  # elsewhere these would only disturb other tests
    # Read when the packages are imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["DIFFUSERS_VERBOSITY"] = "error"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence what the policies say on every load and on every machine without a GPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="CUDA is not available")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)
