"""`ringfence bench guard --guards | --cascade`: several guards on the same rows: what is asked of whom. How it looks
is in `bench_guards_shown.py`."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from ringfence.proxy.cli.curve import require_plots
from ringfence.proxy.cli.failures import kept
from ringfence.proxy.review.visible import visible

if TYPE_CHECKING:
    from ringfence.guard.bench.answers import Answer
    from ringfence.guard.bench.cascade import Band, Want
    from ringfence.guard.bench.formats import Target
    from ringfence.guard.bench.guards import Asked
    from ringfence.guard.bench.items import Item
    from ringfence.guard.bench.side_by_side import Price

BAND = "0.15,0.85"

Guards = Annotated[
    str | None,
    typer.Option(
        help="Guards to put side by side, `a,b`: ringfence, one of its heads, or categories that checks find."
    ),
]
CascadeOf = Annotated[
    str | None,
    typer.Option("--cascade", help="A small guard and a big one, `a,b`: the big one settles what is unsure."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy whose checks are there; else ./policy.yaml, else the shipped.")
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        help="Scores at or above it count as flagged: 0.5 unless given; `name=0.6` for one guard of several. 0.5 is "
        "the measure's, not what the shipped policy blocks at: its thresholds are what `ringfence policy show` prints.",
    ),
]
Prices = Annotated[
    list[str] | None, typer.Option("--price", help="US dollars for a million texts, `name=2.5`; may be given again.")
]
Hours = Annotated[
    list[str] | None,
    typer.Option("--hour", help="US dollars for an hour of this machine; `name=4` for a guard that runs elsewhere."),
]
ScoresFile = Annotated[
    Path | None, typer.Option("--scores", help="File (JSONL) that keeps scores, so that nothing is asked twice.")
]
Shown = Annotated[int, typer.Option("--disagreements", min=0, help="Show so many rows on which guards disagree.")]
ShownIn = Annotated[
    Path | None, typer.Option("--disagreements-to", help="Write all such rows in full into this file (JSONL).")
]
Picture = Annotated[Path | None, typer.Option("--png", help="Draw precision and recall of all guards into this file.")]
BandOf = Annotated[
    str | None, typer.Option("--band", help=f"Scores of the small guard at which the big one is asked; else {BAND}.")
]
Wanted = Annotated[
    str | None,
    typer.Option(
        "--want",
        help="Find the band: `f1=0.8`, the one that reaches it and asks least; `escalated=0.1`, the best that asks so "
        "few; `cost=20`, the best for so many US dollars a million texts, by --price and --hour.",
    ),
]


class Misuse(ValueError):
    """Options do not go together, or one cannot be read; the message says which."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `bench guard` was given beside the rows; see its help."""

    guards: str | None = None
    cascade: str | None = None
    policy: Path | None = None
    thresholds: Sequence[str] = ()
    prices: Sequence[str] = ()
    hours: Sequence[str] = ()
    scores: Path | None = None
    disagreements: int = 0
    disagreements_to: Path | None = None
    png: Path | None = None
    band: str | None = None
    want: str | None = None
    weights: Path | None = None
    as_json: bool = False

    @property
    def several(self) -> bool:
        """Whether it is about several guards at all."""
        return self.guards is not None or self.cascade is not None


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked, and what came of it; answers, thresholds and prices by guard.

    Attributes:
        about: what JSON says of the texts.
    """

    items: Sequence["Item"]
    target: "Target"
    answers: Mapping[str, Sequence["Answer"]]
    revisions: Mapping[str, str]
    thresholds: Mapping[str, float]
    prices: Mapping[str, "Price"]
    about: Mapping[str, Any]


def refuse_strays(options: Options) -> None:
    """Refuse options that would be left unheeded without a word.

    Raises:
        Misuse: there are some, or several that exclude each other.
    """
    alone = {"--policy": options.policy, "--price": options.prices, "--hour": options.hours, "--scores": options.scores}
    table = {
        "--disagreements": options.disagreements,
        "--disagreements-to": options.disagreements_to,
        "--png": options.png,
    }
    cascade = {"--band": options.band, "--want": options.want}
    for given, needed, there in (
        (alone, "--guards or --cascade", options.several),
        (table, "--guards", options.guards),
        (cascade, "--cascade", options.cascade),
    ):
        if not there and (stray := [name for name, value in given.items() if value]):
            raise Misuse(f"{stray[0]} goes with {needed}")
    if options.guards is not None and options.cascade is not None:
        raise Misuse(
            "--guards and --cascade are two tables: ask for one at a time; --scores spares the second its wait"
        )
    if options.band and options.want:
        raise Misuse("--band gives a band and --want finds one; give one of them")


def measure(options: Options, items: Sequence["Item"], target: "Target", about: Mapping[str, Any]) -> None:
    """Ask the guards about every row, and print what they are worth beside each other.

    Args:
        about: what JSON says of the rows.

    Raises:
        Misuse: an option cannot be read, or names a guard that is not asked; none answered any row.
    """
    # Imported here: `ringfence --help` must not wait for scikit-learn.
    from ringfence.guard.bench.answers import Scores, ask_all
    from ringfence.guard.bench.cascade import CannotChoose, Want, refuse_few
    from ringfence.guard.bench.guards import UnknownGuard, find_guards
    from ringfence.guard.check import UnknownCheck
    from ringfence.policies.load import SHIPPED, PolicyError, load_draft
    from ringfence.proxy.cli.curve import NoPlots
    from ringfence.proxy.settings import policy_path

    names = names_of(options)
    thresholds = dict.fromkeys(names, 0.5) | numbers("--threshold", options.thresholds, names, most=1)
    wish = want_of(options.want) if options.want else band_of(options.band or BAND)
    try:
        if options.png:
            require_plots(options.png)
            refuse_one_label([item.label for item in items])
        if isinstance(wish, Want):
            refuse_few([item.label for item in items])
        scores = Scores(options.scores)
        asked = find_guards(names, load_draft(policy_path(options.policy) or SHIPPED), target, options.weights)
        prices = prices_of(options, asked, names)
        refuse_priceless(wish, prices, names)
        for written in filter(None, (options.png, options.disagreements_to)):
            written.open("a").close()  # whether it can be written is said before anybody is asked
        with kept() as raised, tracked() as track:
            found = ask_all(asked, items, target, scores, track)
        for check, why in raised.items():
            typer.echo(visible(f"'{check}' could not answer: {why}"), err=True)
        answers = {name: found[name] for name in names}
        refuse_silence(answers)
        revisions = {name: one.revision for one in asked for name in one.names}
        run = Run(items, target, answers, revisions, thresholds, prices, about)
        if options.cascade:
            show_cascade(options, run, wish)
        else:
            show_guards(options, run)
    except (PolicyError, UnknownCheck, UnknownGuard, NoPlots, OSError) as error:
        raise Misuse(str(error)) from error
    except CannotChoose as error:
        typer.echo(f"ringfence bench guard: {error}", err=True)
        raise typer.Exit(1) from None


def refuse_silence(answers: Mapping[str, Sequence["Answer"]]) -> None:
    """Refuse to measure guards of which none answered any row.

    Raises:
        Misuse: with the reasons.
    """
    from ringfence.guard.bench.side_by_side import failures_of
    from ringfence.proxy.cli import bench_guards_shown as shown

    if all(one.score is None for said in answers.values() for one in said):
        failed = {name: failures_of(said) for name, said in answers.items()}
        raise Misuse(f"no guard answered a single row\n{shown.failures(failed)}")


def names_of(options: Options) -> list[str]:
    """Return the guards that are named, in their order."""
    option, given = ("--cascade", options.cascade) if options.cascade is not None else ("--guards", options.guards)
    names = [name.strip() for name in (given or "").split(",")]
    if not all(names):
        raise Misuse(f"{option} takes names with commas between them, got '{given}'")
    if len(set(names)) < len(names):
        raise Misuse(f"{option} names a guard twice: '{given}'")
    if options.cascade is not None and len(names) != 2:
        raise Misuse(f"--cascade takes a small guard and a big one, `small,big`; got '{given}'")
    return names


def numbers(
    option: str,
    given: Iterable[str],
    names: Sequence[str],
    most: float = inf,
    rest: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return a number for each guard that has one: `0.6` is for all (or `rest`), `name=0.6` for one.

    Raises:
        Misuse: one is no number from 0 to `most`, or for a guard that is not asked.
    """
    from ringfence.policies.document import did_you_mean

    found: dict[str, float] = {}
    for one in sorted(given, key=lambda one: "=" in one):  # what is for one guard comes after what is for all
        name, equals, written = one.rpartition("=")
        number = number_of(option, written, most)
        if equals and name not in names:
            raise Misuse(f"{option} {one}: '{name}' is not among the guards{did_you_mean(name, names)}")
        found |= dict.fromkeys([name] if equals else names if rest is None else rest, number)
    return found


def number_of(option: str, written: str, most: float = 1) -> float:
    """Read a number from 0 to `most`."""
    try:
        number = float(written)
    except ValueError:
        number = -1
    if not (isfinite(number) and 0 <= number <= most):
        raise Misuse(f"{option} takes a number from 0{f' to {most:g}' if most < inf else ''}, got '{written}'")
    return number


def prices_of(options: Options, asked: Sequence["Asked"], names: Sequence[str]) -> dict[str, "Price"]:
    """Return what guards cost, of which that is known."""
    from ringfence.guard.bench.side_by_side import Price

    here = [name for one in asked if one.here for name in one.names]
    hours = numbers("--hour", options.hours, names, rest=here)
    millions = numbers("--price", options.prices, names)
    return {name: Price(usd, "hour") for name, usd in hours.items()} | {
        name: Price(usd, "million") for name, usd in millions.items()
    }


def band_of(written: str) -> "Band":
    """Read `0.15,0.85`."""
    from ringfence.guard.bench.cascade import Band

    ends = [number_of("--band", one) for one in written.split(",")]
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise Misuse(f"--band takes two scores, the lower one first, as {BAND}; got '{written}'")
    return Band(*ends)


def want_of(written: str) -> "Want":
    """Read `f1=0.8`, `escalated=0.1` or `cost=20`."""
    from ringfence.guard.bench.cascade import Want

    what, _, value = written.partition("=")
    match what:
        case "f1" | "escalated":
            return Want(what, number_of("--want", value))
        case "cost":
            return Want(what, number_of("--want", value, most=inf))
    raise Misuse(f"--want takes f1=0.8, escalated=0.1 or cost=20, got '{written}'")


def refuse_priceless(wish: "Band | Want", prices: Mapping[str, "Price"], names: Sequence[str]) -> None:
    """Refuse to look for what costs so much where it is not known what a guard costs.

    Raises:
        Misuse: of one that is not known.
    """
    from ringfence.guard.bench.cascade import Want

    unknown = [name for name in names if name not in prices]
    if isinstance(wish, Want) and wish.what == "cost" and unknown:
        raise Misuse(f"--want cost needs what {unknown[0]} costs: --price {unknown[0]}=USD, or --hour {unknown[0]}=USD")


@contextmanager
def tracked() -> Iterator[Callable[[Sequence["Item"], str], Iterable["Item"]]]:
    """Show how far each guard is."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield lambda items, name: progress.track(items, description=f"asking {name}")


def show_guards(options: Options, run: Run) -> None:
    """Print guards side by side, and write the files that were asked for."""
    from ringfence.guard.bench.side_by_side import comparable, compare
    from ringfence.proxy.cli import bench_guards_shown as shown

    found = compare(run.items, run.answers, run.revisions, run.thresholds, run.prices)
    if options.as_json:
        typer.echo(json.dumps(dict(run.about) | found.to_json(options.disagreements)))
    else:
        shown.show_sides(found, run.target, options.disagreements)
    if options.disagreements_to:
        rows = "".join(json.dumps(one.to_json()) + "\n" for one in found.disagreements)
        options.disagreements_to.write_text(rows)
    if options.png:
        drawn, places = comparable(run.items, run.answers)
        refuse_one_label([run.items[at].label for at in places])
        missing = [name for name in run.answers if name not in drawn]
        if missing:
            typer.echo(visible(f"{options.png} is without {', '.join(missing)}: too few texts were answered"), err=True)
        sides = [side for side in found.sides if side.name in drawn]
        shown.draw(options.png, run.items, run.answers, places, sides, missing)


def show_cascade(options: Options, run: Run, wish: "Band | Want") -> None:
    """Print what two guards do alone and together.

    Raises:
        CannotChoose: no band does what is wanted.
        Misuse: there is no text that both answered.
    """
    from ringfence.guard.bench.cascade import Want, both_of, choose_band, measure_cascade
    from ringfence.guard.bench.guards import category_of
    from ringfence.guard.bench.side_by_side import failures_of
    from ringfence.proxy.cli import bench_guards_shown as shown

    small, big = run.answers
    failed = {name: failures_of(answers) for name, answers in run.answers.items()}
    both, chosen = both_of(run.items, run.target, run.answers[small], run.answers[big]), None
    if not len(both.rows):
        raise Misuse(f"there is no row that both guards answered\n{shown.failures(failed)}")
    thresholds, prices = (run.thresholds[small], run.thresholds[big]), (run.prices.get(small), run.prices.get(big))
    if isinstance(wish, Want):
        chosen, band, both = choose_band(both, run.thresholds[big], wish, prices)
    else:
        band = wish
    found = measure_cascade(both, thresholds, prices, band, chosen)
    line = escalate_line(band, category_of(big, run.target), run.thresholds[big])
    if options.as_json:
        guards = {
            which: {
                "name": name,
                "revision": run.revisions[name],
                "threshold": run.thresholds[name],
                "failures": failed[name],
            }
            for which, name in (("small", small), ("big", big))
        }
        typer.echo(json.dumps(dict(run.about) | guards | found.to_json() | {"escalate": line}))
    else:
        shown.show_cascade(found, run.target, (small, big), failed)
        typer.echo(f"\nin a rule over '{category_of(small, run.target)}':\n    {line}")


def escalate_line(band: "Band", to: str, threshold: float) -> str:
    """Return what has a policy's rule do what was measured."""
    return f"escalate: {{to: {to}, between: [{band.low:g}, {band.high:g}], threshold: {threshold:g}}}"


def refuse_one_label(labels: Sequence[int]) -> None:
    """Refuse a picture of texts of one label, of which there is no curve.

    Raises:
        Misuse: they are.
    """
    if len(set(labels)) < 2:
        raise Misuse("--png draws texts of both labels that all guards answered, and there are none of one")
