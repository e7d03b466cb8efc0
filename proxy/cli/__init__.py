"""The command line: `ringfence serve | check | policy | audit | engine | train | bench`.

Exit status: 0 done or allowed, 1 the answer is no (blocked, rewritten, broken, failed), 2 bad input.
"""

import sys

from ringfence.proxy.cli.root import app


def main() -> None:
    """Run the command line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # text with lone surrogates is printed, not a crash
    app()
