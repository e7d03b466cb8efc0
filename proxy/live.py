"""The policy in force in a running server, and how another takes its place. Knows files and guards, and no HTTP.

Whoever answers an exchange takes the guard once and keeps it to the end, so that an exchange is wholly by one policy.
"""

import logging
import signal
from collections.abc import Callable, Mapping, Set
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import Lock, open_signal_receiver, to_thread
from watchfiles import awatch

from ringfence.guard.check import UnknownCheck
from ringfence.guard.guard import Guard
from ringfence.guard.stamps import Stamp, stamp
from ringfence.policies.document import PolicyError

log = logging.getLogger(__name__)

SETTLED_MS = 200
"""A folder counts as written once nothing has happened in it for so long: a save may take several steps."""

LOOK_AGAIN_MS = 2_000
"""Folders are looked at this often in any case: there are file systems that tell nobody of a change."""

Stamps = Mapping[Path, frozenset[Stamp]]
"""By folder, what tells one state of its YAML files from another."""


class Refused(Exception):
    """What stands in the policy's files is not put in force; the text has one line a problem."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A policy was read again: the revision in force since then, and the one until then.

    Attributes:
        weights: names of the checks that were made anew, as other weights stood in the place of theirs.
    """

    revision: str
    previous: str
    weights: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether something else is in force than before."""
        return self.revision != self.previous or bool(self.weights)


class Live:
    """The guard in force, until a reload puts another in its place.

    Args:
        make: reads the policy and puts it to use; raises where that cannot be, now as well as later.
        path: the file that it reads; None for one that has none, and does not change.

    Attributes:
        guard: for every exchange that begins now.
        refused: why what stands in the files is not in force, one line a problem; empty where it is.
    """

    def __init__(self, make: Callable[[], Guard], path: Path | None = None) -> None:
        self._make = make
        self._named = (path,) if path else ()  # where links have led since, the policy's own files say
        self._files: tuple[Path, ...] = ()
        self._one_at_a_time = Lock()
        before = self._stamps()
        self.guard = make()
        self.refused: tuple[str, ...] = ()
        self._files = self.guard.policy.files
        self._seen = self._stamps(before)

    @property
    def folders(self) -> frozenset[Path]:
        """Where the files stand that the policy was read from, or that keep another from being in force."""
        return frozenset(file.parent for file in (*self._named, *self._files) if file.parent.is_dir())

    def is_stale(self) -> bool:
        """Whether a file has changed since the policy was last read, be it in force or refused."""
        return self._stamps() != self._seen

    async def reload(self) -> Reloaded:
        """Read the policy and put it in force for whatever begins from now on; the log says so.

        A policy that says what it said before changes nothing, unless other weights stand in the place of those that a
        check runs on. Of several calls, each waits for the one before.

        Raises:
            Refused: it cannot be put to use; the log says why, and what was in force still is.
        """
        async with self._one_at_a_time:
            old = self.guard.policy
            try:
                weights = await to_thread.run_sync(self._renew)
            except Refused as error:
                self.refused = tuple(str(error).splitlines())
                for problem in self.refused:
                    log.error("policy refused: %s", problem)
                log.error("policy %s, revision %s, stays in force", old.name, old.revision[:16])
                raise
            self.refused = ()
            new = self.guard.policy
            if new.revision != old.revision:
                log.info(
                    "policy %s, revision %s, is in force; until now %s", new.name, new.revision[:16], old.revision[:16]
                )
            elif not weights:
                log.info("policy %s, revision %s: nothing has changed", new.name, new.revision[:16])
            if weights:
                log.info("other weights are in force: those of %s", ", ".join(weights))
            return Reloaded(new.revision, old.revision, weights)

    def _renew(self) -> tuple[str, ...]:
        """Put what the files hold in force; return the names of the checks that run on other weights since."""
        before = self._stamps()  # what changes while the files are read is read again
        try:
            replaced = self.guard.replaced()
            guard = self._make()
            self._files = guard.policy.files
            if replaced or guard.policy.revision != self.guard.policy.revision:
                guard.warm()
                # INVARIANT: a guard is whole and warm before anyone sees it, and this one assignment is the reload.
                # Nobody closes the old one: it is let go, threads and all, with the last exchange that holds it.
                self.guard = guard
            return replaced
        except (PolicyError, UnknownCheck) as error:
            if isinstance(error, PolicyError):
                wrong = (Path(problem.origin.file) for problem in error.problems)
                self._files = (*self.guard.policy.files, *wrong)
            raise Refused(str(error)) from error
        except Exception as error:
            # A check may be anybody's, and so may what it raises; the policy in force stays all the same.
            log.exception("the policy could not be put to use")
            raise Refused(f"{type(error).__name__}: {error}") from error
        finally:
            self._seen = self._stamps(before)

    def _stamps(self, before: Stamps | None = None) -> Stamps:
        """Return how the folders look now, or as they did before where they were looked at then."""
        known = {*self._named, *self._files}
        now = {folder: frozenset(map(stamp, _policies_in(folder, known))) for folder in self.folders}
        return {folder: (before or {}).get(folder, stamps) for folder, stamps in now.items()}


async def reload_on_change(live: Live) -> None:
    """Reload whenever the policy's files change, until cancelled.

    What is watched is the folders, and whatever is YAML in them: an editor that saves puts a new file in the place of
    the old one, a deployment a new link, and a pack that was missing comes into being.
    """
    while True:
        folders = live.folders
        looks = awatch(
            *folders,
            watch_filter=None,
            recursive=False,
            step=SETTLED_MS,
            rust_timeout=LOOK_AGAIN_MS,
            yield_on_timeout=True,
        )
        try:
            async with aclosing(looks):
                async for _ in looks:
                    if await to_thread.run_sync(live.is_stale):
                        await _reload(live)
                    if live.folders != folders:
                        break
        except FileNotFoundError:
            continue  # a folder went just now: it is not among them any more
        except (OSError, RuntimeError) as error:  # its inner errors are of the second kind
            log.error("the policy's files cannot be watched: %s; send SIGHUP, or POST /admin/reload", error)
            return


async def reload_on_hangup(live: Live) -> None:
    """Reload on every SIGHUP, until cancelled. On the main thread only, as signals are."""
    with open_signal_receiver(signal.SIGHUP) as hangups:
        async for _ in hangups:
            await _reload(live)


async def _reload(live: Live) -> None:
    with suppress(Refused):  # the log has it, and nobody waits for an answer
        await live.reload()


def _policies_in(folder: Path, known: Set[Path]) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.suffix in (".yaml", ".yml") or file in known]
    except OSError:
        return []
