"""Take the picture of a report that the README shows, with Chromium: the top of the page, as a browser shows it.

python benchmarks/report_picture.py runs/demo/20250101-120000-s0 docs/report.png
python benchmarks/report_picture.py runs/demo phone.png --width 400 --height 2000 --dark
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from rewards.errors import UserError
from rl.report.page import write_report
from world_model.runs import find_run

FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1160)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise UserError("there is no Chromium here; install it, for example apt-get install chromium")
    page = write_report(find_run(args.run) or args.run)
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, f"--window-size={args.width},{args.height}", f"--user-data-dir={profile}"]
        command += ["--blink-settings=preferredColorScheme=0"] if args.dark else []
        command += [f"--screenshot={args.out.resolve()}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(args.out)


if __name__ == "__main__":
    main()
