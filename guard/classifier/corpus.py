"""From a folder of labelled texts to training examples: caps, splits, doubles, weights. Knows nothing of tensors.

A pool is a folder of `NAME/*.jsonl.gz` with rows `{id, text, response, prompt_label, response_label, category, attack,
refusal, source, lang}`; `sources` knows what their labels mean.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from random import Random

from ringfence.guard.classifier.examples import Example, Recipe, Source, Use
from ringfence.guard.classifier.heads import HAZARDS
from ringfence.guard.classifier.rows import Row, RowError, exchange_of, read_rows
from ringfence.guard.classifier.sources import SOURCES, own_rows

OWN_DATA = Path(__file__).parent / "data"


REPORTED = 300
"""Of a report source, at most so many of either label are measured."""


SPARE = 100
"""Of what a training source's cap leaves over, at most so many of either label calibrate."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples by what they are for, and what they were made from.

    Attributes:
        hazards: of each report source every text that is labelled by hazard, as `report` has too few of each.
        ours: by source what is only measured, with labels of our own.
        licences, calibrated: by file of the pool, those of the sources that teach, and of those that only calibrate.
    """

    train: Sequence[Example]
    calibrate: Sequence[Example]
    report: Mapping[str, Sequence[Example]]
    hazards: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    ours: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    calibrated: Mapping[str, str] = field(default_factory=dict)


def load_corpus(
    pool: Path, recipe: Recipe, *, seed: int = 13, own: Path = OWN_DATA, sources: Sequence[Source] | None = None
) -> Corpus:
    """Read the pool and the project's own rows, drop duplicates, cap each source, and split by source.

    Sources that the recipe may not learn from become report sources. Calibration has sources of its own, and of the
    training sources some of the rows that their caps leave over: the one says what unseen text does, the other keeps
    hard sources from passing for the ordinary. Sources quote each other: of what is learnt from, neither a text nor its
    prompt is calibrated on, nor either reported.

    Raises:
        RowError: the pool lacks a source, or a line cannot be read or lacks a field.
    """
    random = Random(seed)  # noqa: S311
    by_use: dict[Use, list[Example]] = {Use.TRAIN: [], Use.CALIBRATE: []}
    report: dict[str, list[Example]] = defaultdict(list)
    hazards: dict[str, list[Example]] = defaultdict(list)
    ours: dict[str, list[Example]] = defaultdict(list)
    licences: dict[Use, dict[str, str]] = {use: {} for use in Use}
    for source in sources or SOURCES:
        examples = list(read_examples(pool / f"{source.file}.jsonl.gz", source.read))
        family = source.family or source.file.split("/")[0]
        examples = distinct(replace(example, family=family) for example in examples)
        if source.use is Use.OURS:  # nothing is drawn: what others draw is the same with and without it
            ours[f"{family}, read anew"].extend(examples)
            continue
        apart = source.use is Use.REPORT or not (source.free or recipe is Recipe.EVERYTHING)
        caps = (min(source.caps[0], REPORTED), min(source.caps[1], REPORTED)) if apart else source.caps
        drawn, spare = cap(examples, caps, random)
        if apart:
            report[family].extend(drawn)
            hazards[family].extend(one for one in examples if HAZARDS.keys() & one.labels.keys() - one.doubt)
        else:
            by_use[source.use].extend(drawn)
            licences[source.use][source.file] = source.licence
            if source.use is Use.TRAIN:
                by_use[Use.CALIBRATE].extend(spare)
    own_train, own_calibrate = load_own(own)
    for path in sorted((own / "measured").glob("*.jsonl")):
        family = f"own_{path.stem}"
        ours[family].extend(replace(example, family=family) for example in read_examples(path, own_rows))
    by_use[Use.TRAIN].extend((*own_train, *noise(random)))
    by_use[Use.CALIBRATE].extend(own_calibrate)
    if own_train:
        licences[Use.TRAIN]["guard/classifier/data"] = "Apache-2.0"
    kept = {sketch(example) for examples in (by_use[Use.CALIBRATE], *report.values()) for example in examples}
    train = [example for example in distinct(by_use[Use.TRAIN]) if sketch(example) not in kept]
    random.shuffle(train)
    met = set(chain.from_iterable(map(said, train)))
    calibrate = [example for example in distinct(by_use[Use.CALIBRATE]) if met.isdisjoint(said(example))]
    met.update(chain.from_iterable(map(said, calibrate)))
    taught = set(map(sketch, train))  # of the reported ones training left out the near-duplicates already

    def unmet(examples: Iterable[Example]) -> list[Example]:
        return [example for example in examples if met.isdisjoint(said(example))]

    return Corpus(
        train,
        calibrate,
        {family: unmet(examples) for family, examples in report.items()},
        {family: unmet(one for one in examples if sketch(one) not in taught) for family, examples in hazards.items()},
        {family: unmet(one for one in examples if sketch(one) not in taught) for family, examples in ours.items()},
        licences[Use.TRAIN],
        licences[Use.CALIBRATE],
    )


def read_examples(path: Path, read: Callable[[Row], Iterable[Example]]) -> Iterator[Example]:
    """Read the examples of a file of the pool."""
    for where, row in read_rows(path):
        with expecting(row, where):
            yield from read(row)


@contextmanager
def expecting(row: Row, where: str) -> Iterator[None]:
    """See that a row holds a text, unless it is one of messages, and name the row whose fields cannot be read.

    Raises:
        RowError: they cannot.
    """
    if "messages" not in row:
        exchange_of(row, where)
    try:
        yield
    except KeyError as error:
        raise RowError(f"{where}: the field {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise RowError(f"{where}: a field is not as expected ({error})") from error


def load_own(folder: Path) -> tuple[list[Example], list[Example]]:
    """Read the project's own rows; one block in nine is kept for calibration.

    Blocks of twenty, because rows that belong together (a matched pair, one aim in several wordings) stand next to each
    other and must not be parted. All answers to one prompt go together, and a row made from another goes where that one
    goes.

    Raises:
        RowError: a line cannot be read or lacks a field.
    """
    train: list[Example] = []
    calibrate: list[Example] = []
    for path in sorted((*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz"))):
        for where, row in read_rows(path):
            family = f"own_{path.name.split('.')[0]}"
            with expecting(row, where):
                file, _, number = (row.get("made_from") or row["id"]).rpartition("-")
                block = row["text"] if row.get("response") else f"{file}/{(int(number) - 1) // 20}"
                examples = [replace(example, family=family) for example in own_rows(row)]
            (calibrate if zlib.crc32(block.encode()) % 9 == 0 else train).extend(examples)
    return train, calibrate


def noise(random: Random, count: int = 200) -> Iterator[Example]:
    """Make texts without words, of which nothing should be said: digits, punctuation, symbols, keys mashed."""
    alphabets = (
        "0123456789 ",
        "!?.,;:-_()[]{} ",
        "asdfghjkl qwertyuiop",
        "🙂🎉👍🌧️ ",
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "字漢試 ",
    )
    for index in range(count):
        text = "".join(random.choices(alphabets[index % len(alphabets)], k=random.randint(1, 120)))
        response = index // len(alphabets) % 3 == 0  # of every alphabet some
        tasks = ("response_harm", "refusal") if response else ("prompt_harm",)
        labels = dict.fromkeys((*tasks, "attack", "toxicity"), 0.0)
        yield Example(text, labels, "own_noise", prompt="" if response else None)


def distinct(examples: Iterable[Example]) -> list[Example]:
    """Keep the first of every group of near-duplicates."""
    return list({sketch(example): example for example in reversed(list(examples))}.values())[::-1]


def sketch(example: Example) -> tuple[tuple[int, ...], ...]:
    """Reduce an example to what near-duplicates share, an answer and its prompt each by itself."""
    return tuple(map(smallest, [example.text] if example.prompt is None else [example.text, example.prompt]))


def smallest(text: str) -> tuple[int, ...]:
    """Return the four smallest hashes of a text's word 4-grams.

    Bottom-k sketch (Broder 1997); texts under eight words are compared word for word, those without any as they are.
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) < 8:
        return zlib.crc32((" ".join(words) or text).encode()), len(words)
    grams = {zlib.crc32(" ".join(words[i : i + 4]).encode()) for i in range(len(words) - 3)}
    return tuple(sorted(grams)[:4])


def said(example: Example) -> list[str]:
    """Return what an example says and what it answers, down to letters and digits: two of one family share neither."""
    plain = (re.sub(r"[\W_]+", " ", text.lower()).strip() for text in (example.text, example.prompt or ""))
    return [text for text in plain if text]


def cap(examples: Sequence[Example], caps: tuple[int, int], random: Random) -> tuple[list[Example], list[Example]]:
    """Draw at most so many examples whose first label is positive, and so many whose first label is negative.

    Returns:
        those drawn, and up to `SPARE` of either label that were not.
    """
    by_label: dict[bool, list[Example]] = {True: [], False: []}
    for example in examples:
        by_label[bool(next(iter(example.labels.values())))].append(example)
    kept, spare = [], []
    for label, limit in zip((True, False), caps, strict=True):
        drawn = by_label[label]
        random.shuffle(drawn)
        kept.extend(drawn[:limit])
        spare.extend(drawn[limit : limit + SPARE])
    return kept, spare


def style_weights(examples: Sequence[Example], head: str) -> list[float]:
    """Weigh examples so that within one style neither label of `head` outweighs the other by much.

    A style is a length and a way to open. Where every short "How can I" is harmful, a model learns the
    opening; half the imbalance (its square root, within 3) is taken back here. Rows without the label get 1.
    """
    count: Counter[tuple[object, ...]] = Counter()
    for example in examples:
        if head in example.labels:
            count[*style(example), example.labels[head]] += 1
    weights = []
    for example in examples:
        if head not in example.labels:
            weights.append(1.0)
            continue
        label = example.labels[head]
        ratio = count[*style(example), 1 - label] / count[*style(example), label]
        weights.append(min(max(ratio**0.5, 1 / 3), 3.0))
    return weights


def style(example: Example) -> tuple[object, ...]:
    """Describe how a text looks, whatever it says."""
    opening = re.match(r"\W*(\w+)", example.text.lower())
    word = opening.group(1) if opening else ""
    return example.prompt is not None, min(len(example.text).bit_length(), 11), word if word in OPENINGS else ""


OPENINGS = frozenset(
    re.findall(
        r"\w+",
        "how what why where when who is are can could should would give write create explain describe develop provide "
        "generate tell imagine you i as act",
    )
)
