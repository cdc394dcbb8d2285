"""The table of checks, one after the other on one server; see scripts/endurance.sh."""

from __future__ import annotations

import argparse
import sys
import time

from .checks import Failed, checks
from .jobs import prepare, server


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the endurance checks on a server with tiny random weights.")
    parser.add_argument("--jobs", type=int, default=100, help="how many mixed jobs; default: 100")
    parser.add_argument("--only", default="", help="those checks alone that have this in their name")
    arguments = parser.parse_args()
    failed = 0
    with server() as comfy:
        prepare(comfy)
        for name, check in checks(arguments.jobs).items():
            if arguments.only not in name:
                continue
            start = time.monotonic()
            try:
                result = check(comfy)
            except (Failed, RuntimeError, OSError, TimeoutError) as error:
                failed += 1
                result = f"FAILED: {error}"
            print(f"{name:24}{time.monotonic() - start:7.1f} s   {result}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
