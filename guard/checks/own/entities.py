"""Finds names of people, places and organisations with a spaCy pipeline that somebody trained: no rules of ours.

spaCy is loaded at the first text, or by `warm`, and by no policy without this kind. Nothing is downloaded.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as NoConfig
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from ringfence.guard.check import Findable, Finding, Passage, Span
from ringfence.guard.checks.guards.batches import due
from ringfence.guard.stamps import Stamp, stamps
from ringfence.guard.unicode import whole
from ringfence.policies.document import PolicyError, Problem, did_you_mean
from ringfence.policies.own import Entities, written_at

METHOD = 1
"""Part of a check's revision: raised when the same pipeline comes to find otherwise."""

NAMED: Mapping[str, str] = {
    label: name
    for name, labels in {
        "name": ("PERSON", "PER", "PRS", "PS", "persName"),
        "place": ("GPE", "LOC", "FAC", "FACILITY", "GPE_LOC", "LC", "geogName", "placeName"),
        "organisation": ("ORG", "ORGANIZATION", "GPE_ORG", "OG", "orgName"),
    }.items()
    for label in labels
}
"""What the labels of spaCy's own pipelines are called where a policy names none: they differ by language."""

RECOGNISERS = frozenset({"ner", "beam_ner"})
FINDERS = RECOGNISERS | {"entity_ruler", "future_entity_ruler"}
"""Components whose labels are those of entities; of a tagger's or a parser's nothing would ever be found."""

READ = frozenset({"tok2vec", "transformer", "curated_transformer"})
UNREAD = frozenset(
    {"tagger", "morphologizer", "parser", "senter", "attribute_ruler", "lemmatizer", "trainable_lemmatizer"}
)
"""What a recogniser reads of the components before it, and what it does not: half the time."""

WINDOW = 4_000
"""Characters that are read at once: what spaCy needs for 100,000 of them is 300 MB and more."""

MARGIN = 200
"""At both ends of a window: what begins there is told by the next one, which reads what stands around it."""

LATE = "the pipeline was not done in time (timeout_s, or the rule's seconds)"

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
"""What spaCy raises of a pipeline that is not as it should be, or needs a library that is not here."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline that is there, not yet loaded.

    Attributes:
        folder: where its files are.
        labels: of what it finds, in order.
        unread: components that are left out.
        seen: what tells the files from others, as they were before they were read.
    """

    folder: Path
    labels: tuple[str, ...]
    unread: tuple[str, ...]
    seen: frozenset[Stamp]

    @property
    def revision(self) -> str:
        """The sha256 of its files and their names."""
        digest = hashlib.sha256()
        for file in sorted(one for one in self.folder.rglob("*") if one.is_file()):
            with file.open("rb") as stored:
                content = hashlib.file_digest(stored, "sha256").hexdigest()
            digest.update(f"{file.relative_to(self.folder)}:{content}\n".encode())
        return digest.hexdigest()


class EntitiesCheck:
    """Reports what a pipeline takes for an entity, by the category of its label, each with its exact place.

    A recogniser says what it takes for a name and not how surely: every score is 1.0. Thread-safe: one thread reads at
    a time, a window at a time.

    Args:
        names: by label, what its findings are called.
    """

    def __init__(self, spec: Entities, pipeline: Pipeline, names: Mapping[str, str]) -> None:
        self.name = spec.category
        self.categories = frozenset({spec.category})
        self.finds = tuple(map(Findable, dict.fromkeys(names.values())))
        asked = [METHOD, pipeline.revision, sorted(names.items())]
        self.revision = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        self._spec = spec
        self._pipeline = pipeline
        self._names = names
        self._lock = Lock()
        self._nlp: Any = None

    def warm(self) -> Any:
        """Load the pipeline.

        Raises:
            PolicyError: it cannot be used.
        """
        with self._lock:
            if self._nlp is None:
                self._nlp = _loaded(self._spec, self._pipeline)
            return self._nlp

    def is_replaced(self) -> bool:
        """Whether other files stand in the place of the pipeline's."""
        return _seen(self._pipeline.folder) != self._pipeline.seen

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return a finding with score 1.0 for each entity, in the order of their ends.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than anybody waits.
        """
        if not passage.text.strip():
            return ()
        until = due(passage.until, self._spec.timeout_s)
        return [
            Finding(
                self.name, self._names[label], 1.0, (Span(passage.part, start, end),), f"{label}, calibrated: false"
            )
            for start, end, label in self._read(whole(passage.text), until)
            if label in self._names
        ]

    def _read(self, text: str, until: float) -> Iterator[tuple[int, int, str]]:
        nlp, done = self.warm(), 0
        for start, first, last in windows(len(text)):
            with self._turn(until), nlp.memory_zone():  # else its vocabulary grows with every word that it ever reads
                told = [
                    (start + one.start_char, start + one.end_char, str(one.label_))
                    for one in nlp(text[start : start + WINDOW]).ents
                ]
            for entity in told:
                # Two windows may say otherwise where a name at their seam begins: one of them tells it, or both do.
                if entity[0] < last and entity[1] > max(first, done):
                    yield entity
                    done = entity[1]

    @contextmanager
    def _turn(self, until: float) -> Iterator[None]:
        # A memory zone is of all that reads with one vocabulary: two threads may not be in it.
        left = until - monotonic()
        if left <= 0 or not self._lock.acquire(timeout=left):
            raise TimeoutError(LATE)
        try:
            yield
        finally:
            self._lock.release()


def windows(length: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each window of a text starts, and between which places what begins is told by it."""
    start = first = 0
    while start + WINDOW < length:
        last = start + WINDOW - MARGIN
        yield start, first, last
        start, first = last - MARGIN, last
    yield start, first, length


def open_entities(spec: Entities) -> EntitiesCheck:
    """Make the check for a spaCy pipeline, which is found, and not loaded yet.

    Raises:
        PolicyError: spaCy or the pipeline is not installed, it recognises no entities, or has no such label.
    """
    pipeline = _found(spec)
    if not (known := pipeline.labels):
        raise _refused(spec, f"it has no named-entity recogniser ({', '.join(sorted(FINDERS))}); choose one that has")
    problems = [
        _problem(spec, f"it has no label '{one.label}'{did_you_mean(one.label, known)}", "labels", index)
        for index, one in enumerate(spec.labels)
        if one.label not in known
    ]
    if problems:
        raise PolicyError(problems)
    chosen = {one.label: one.category for one in spec.labels}
    below = chosen or {label: NAMED[label] for label in known if label in NAMED}
    if not below:
        raise _refused(spec, f"it has the labels {', '.join(known)}; name under `labels` those that count")
    names = {label: f"{spec.category}.{name}" if name else spec.category for label, name in below.items()}
    return EntitiesCheck(spec, pipeline, names)


def _found(spec: Entities) -> Pipeline:
    if find_spec("spacy") is None:
        raise _refused(spec, "spaCy is not installed; install `ringfence[names]`")
    folder = _folder(spec)
    seen = _seen(folder)
    config = ConfigParser(interpolation=None, strict=False)
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        config.read_string((folder / "config.cfg").read_text("utf-8"))
        kinds = {name: json.loads(config[f"components.{name}"]["factory"]) for name in meta["pipeline"]}
        labels = [label for name in kinds if kinds[name] in FINDERS for label in meta["labels"][name]]
    except FileNotFoundError as error:
        what = f"the folder has no {Path(error.filename).name}; give the one that `nlp.to_disk` wrote"
        raise _refused(spec, what) from None
    except (*DAMAGED, NoConfig) as error:
        raise _refused(spec, f"{_first_line(error)}; download or save it anew") from None
    # Where there is a component of somebody's own, or a ruler, nobody knows what it reads.
    known = frozenset(kinds.values()) <= RECOGNISERS | READ | UNREAD
    unread = tuple(name for name in kinds if known and kinds[name] in UNREAD)
    return Pipeline(folder, tuple(dict.fromkeys(labels)), unread, seen)


def _folder(spec: Entities) -> Path:
    if "/" in spec.model:
        if not (folder := Path(spec.model)).is_dir():
            raise _refused(spec, "there is no such folder; give one that `nlp.to_disk` wrote")
        return folder
    package = find_spec(spec.model) if spec.model.isidentifier() else None
    if package is None or not package.submodule_search_locations:
        what = f"no package of that name is installed; install it (`python -m spacy download {spec.model}`"
        raise _refused(spec, f"{what} for one of spaCy's own), or name a folder, which begins with `./`")
    root = Path(next(iter(package.submodule_search_locations)))
    try:
        meta = json.loads((root / "meta.json").read_bytes())
        return root / f"{meta['lang']}_{meta['name']}-{meta['version']}"
    except DAMAGED:
        raise _refused(spec, "the package of that name is no pipeline of spaCy's; choose another") from None


def _loaded(spec: Entities, pipeline: Pipeline) -> Any:
    util = import_module("spacy.util")
    try:
        if "/" in spec.model:
            return util.load_model_from_path(pipeline.folder, exclude=pipeline.unread)
        return util.load_model_from_package(spec.model, exclude=pipeline.unread)  # which may bring code of its own
    except DAMAGED as error:
        raise _refused(spec, f"{_first_line(error)}; download or save it anew") from None


def _seen(folder: Path) -> frozenset[Stamp]:
    return stamps(folder, "**/*")


def _refused(spec: Entities, what: str) -> PolicyError:
    return PolicyError([_problem(spec, what, "model")])


def _problem(spec: Entities, what: str, key: str, index: int | None = None) -> Problem:
    return Problem(written_at(spec, key, index), f"'{spec.category}' cannot use {spec.model}: {what}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
