"""The command line: `ringfence serve | check | policy | audit | engine | train | bench`.

Exit status: 0 done or allowed, 1 the answer is no (blocked, rewritten, broken, failed), 2 bad input, 3 ringfence itself
broke: the traceback is on standard error.
"""

import sys
import traceback

from ringfence.proxy.cli.root import app


def main() -> None:
    """Run the command line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # text with lone surrogates is printed, not a crash
    try:
        app()
    except Exception:  # noqa: BLE001  # Python's own status would be 1, which says that the answer is no
        traceback.print_exc()
        sys.exit(3)
