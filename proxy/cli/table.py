"""How policies and what came of them look in a terminal: tables, colours, short names of places."""

from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from ringfence.policies.types import Action
from ringfence.policies.words import Origin

COLOURS = {Action.BLOCK: "red", Action.REWRITE: "yellow", Action.LOG: "cyan", Action.ALLOW: "green"}


def table_of(*columns: str, wraps: str = "") -> Table:
    """Return an empty table; a column called `text` takes the room that is left, everything else is shown whole.

    Args:
        wraps: the column that may take several lines.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, expand="text" in columns)
    for name in columns:
        overflow: Literal["fold", "ellipsis"] = "fold" if name == wraps else "ellipsis"
        table.add_column(name, no_wrap=name != wraps, overflow=overflow, ratio=1 if name == "text" else None)
    return table


def coloured(action: Action) -> Text:
    """Return an action's name in its colour."""
    return Text(action, COLOURS[action])


def place(origin: Origin) -> str:
    """Return the last folder, the file and the line: enough to tell `packs/pii.yaml:8` from `policy.yaml:8`."""
    return f"{'/'.join(Path(origin.file).parts[-2:])}:{origin.line}"
