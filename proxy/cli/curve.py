"""Shows how a rule would do at every threshold, as text and as a picture. Knows scores; loads matplotlib when asked."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from ringfence.policies.fit import Scored, curve
from ringfence.policies.types import Fitted, Stage

Curves = Mapping[tuple[str, Stage], Scored]
"""The scores of each rule, by id and stage."""

PICTURES = (".png", ".svg", ".pdf")
"""How the name of a picture may end."""

COARSE = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
FINE = tuple(step / 200 for step in range(201))
WIDTH = 24


class NoPlots(RuntimeError):
    """There is no matplotlib to draw with, or no such kind of picture."""


def require_plots(path: Path) -> None:
    """Raise where a picture could not be drawn, before anybody has waited for it.

    Raises:
        NoPlots: the file is of no kind of picture, or matplotlib is not installed.
    """
    if path.suffix.lower() not in PICTURES:
        raise NoPlots(f"--png {path}: the name must end in {', '.join(PICTURES)}")
    if find_spec("matplotlib") is None:
        raise NoPlots("--png needs matplotlib: pip install 'ringfence[plots]'")


def as_text(scored: Scored, chosen: float) -> Table:
    """Return a bar for each threshold, the chosen one in bold: what fires of the others, and of the positives."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("from", "fires on others", "fires on positives"):
        table.add_column(name, no_wrap=True)
    for point in curve(scored, sorted({*COARSE, chosen})):
        bars = (_bar(point.false_positive_rate), _bar(point.recall))
        table.add_row(f"{point.threshold:g}", *bars, style="bold green" if point.threshold == chosen else "")
    return table


def draw(path: Path, curves: Curves, found: Mapping[str, Fitted]) -> None:
    """Draw a panel for each rule and stage; the ending of the name says which kind of picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), squeeze=False)[:, 0]
    for panel, ((rule, stage), scored) in zip(panels, curves.items(), strict=True):
        points = curve(scored, FINE)
        for label, shares in (
            ("fires on others", [point.false_positive_rate for point in points]),
            ("fires on positives", [point.recall for point in points]),
        ):
            if None not in shares:
                panel.plot(FINE, shares, drawstyle="steps-pre", label=label)
        fitted = found[rule]
        panel.axvline(fitted.threshold, color="black", linestyle=":", label=f"fitted: {fitted.threshold:g}")
        panel.set(
            title=f"{rule}, {stage}: {fitted.target}", xlabel="threshold", ylabel="share of texts", ylim=(0, 1.02)
        )
        panel.legend()
    figure.savefig(path, dpi=150)


def _bar(share: float | None) -> str:
    return "–" if share is None else f"{share:7.2%} {'█' * round(share * WIDTH)}"
