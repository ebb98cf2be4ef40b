"""The tests of Isaac Lab run where it is installed, by `make test-isaac`; elsewhere they are not even collected."""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("isaaclab") else ["test_*.py"]

if find_spec("isaaclab"):
    import tempfile
    from pathlib import Path

    if "ISAACSIM_ASSET_ROOT" not in os.environ:  # read when Isaac Lab is imported
        from rl.envs.isaac.assets import lay_out

        os.environ["ISAACSIM_ASSET_ROOT"] = tempfile.mkdtemp()
        lay_out(Path(os.environ["ISAACSIM_ASSET_ROOT"]))
