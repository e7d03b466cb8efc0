"""The command line: `ringfence serve | check | policy | audit | engine | train | bench`.

Exit status: 0 done or allowed, 1 the answer is no (blocked, rewritten, broken, failed), 2 bad input, 3 ringfence itself
broke: the traceback is on standard error; 141 nobody read standard output to its end, as with `| head`.
"""

import os
import sys
import traceback
from io import TextIOWrapper
from typing import NoReturn

from ringfence.proxy.cli.root import app

UNREAD = 141
"""What a shell says of a program that a broken pipe ended: 128 and the number of SIGPIPE."""


class Stdout(TextIOWrapper):
    """Standard output that ends the program where nobody reads it; the libraries' own status would be 1."""

    def write(self, text: str, /) -> int:
        """Write as `TextIOWrapper` does."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._end()

    def flush(self) -> None:
        """Flush as `TextIOWrapper` does."""
        try:
            super().flush()
        except BrokenPipeError:
            self._end()

    def _end(self) -> NoReturn:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for what is still to be written
        sys.exit(UNREAD)


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout is sys.__stdout__:
        # Text with lone surrogates is printed, not a crash.
        sys.stdout = Stdout(
            sys.stdout.detach(), sys.stdout.encoding, "backslashreplace", line_buffering=sys.stdout.line_buffering
        )
    try:
        app()
    except Exception:  # noqa: BLE001  # Python's own status would be 1, which says that the answer is no
        traceback.print_exc()
        sys.exit(3)
    finally:
        sys.stdout.flush()
