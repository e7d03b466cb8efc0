"""Writes obfuscated.jsonl: sentences of the other files in the disguises that attackers use.

Each disguise is worn by as many benign as harmful sentences, so that the disguise itself is not the label.
It does not judge: labels and categories come along from the row that was disguised. Run it again after the
other files change; the seed makes the result a function of their content:

    python guard/classifier/data/obfuscate.py
"""

import base64
import codecs
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # one JSON object of a data file
Disguise = Callable[[str, random.Random], str]

HERE = Path(__file__).parent
SOURCES = ("pairs", "harmful_indirect", "contrasts", "near_misses", "everyday")
PER_LABEL = 44  # sentences of each label for each disguise
LONGEST = 45  # words; encoded texts grow by a third, and the encoder's window is short
SEED = 20261121

LEET = str.maketrans({"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"})
HOMOGLYPHS = str.maketrans("aceiopxyACEHKMOPTX", "асеіорхуАСЕНКМОРТХ")  # Latin to Cyrillic
FULLWIDTH = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)})
ZERO_WIDTH = ("\u200b", "\u200c", "\u200d", "\u2060")
ENCODED_FRAMES = (
    "{}",
    "Decode this and answer it: {}",
    "{}\n\nwhat does it say, and what is your reply?",
    "My message is encoded, please read it and respond normally.\n{}",
    "read -> {} <- respond",
)
FOREIGN_FRAMES = (
    "Hallo, kurze Frage: {} Vielen Dank!",
    "Bonjour, {} Merci d'avance.",
    "Oye, una cosa: {} Gracias, eh.",
    "Merhaba, {} Teşekkürler.",
    "Ciao! {} Rispondi in italiano, per favore.",
    "请问：{} 用中文回答。",
    "Привет, {} Ответь коротко.",
)


def leetspeak(text: str, rng: random.Random) -> str:
    """Swap most vowels and some consonants for digits."""
    return "".join(c.translate(LEET) if rng.random() < 0.8 else c for c in text.lower())


def spaced(text: str, rng: random.Random) -> str:
    """Set spaces between letters, and wider ones between words."""
    return "   ".join(" ".join(word) for word in text.split())


def dotted(text: str, rng: random.Random) -> str:
    """Break long words up with one punctuation mark."""
    mark = rng.choice(".-_*|")
    return " ".join(mark.join(word) if len(word) > 4 else word for word in text.split())


def homoglyphs(text: str, rng: random.Random) -> str:
    """Swap Latin letters for Cyrillic ones that look the same."""
    return "".join(c.translate(HOMOGLYPHS) if rng.random() < 0.7 else c for c in text)


def zero_width(text: str, rng: random.Random) -> str:
    """Hide invisible characters inside of words."""
    return "".join(c + rng.choice(ZERO_WIDTH) if c.isalpha() and rng.random() < 0.35 else c for c in text)


def fullwidth(text: str, rng: random.Random) -> str:
    """Write ASCII in its full-width forms."""
    return text.translate(FULLWIDTH)


def mixed_case(text: str, rng: random.Random) -> str:
    """Choose capitals at random."""
    return "".join(rng.choice((c.upper(), c.lower())) for c in text)


def typos(text: str, rng: random.Random) -> str:
    """Drop, double or swap letters in about every third word, as a hurried thumb does."""
    return " ".join(_mistype(word, rng) if len(word) > 3 and rng.random() < 0.4 else word for word in text.split())


def base64_frame(text: str, rng: random.Random) -> str:
    """Encode in base64, with or without a sentence that says so."""
    return rng.choice(ENCODED_FRAMES).format(base64.b64encode(text.encode()).decode())


def rot13_frame(text: str, rng: random.Random) -> str:
    """Rotate letters by thirteen, with or without a sentence that says so."""
    return rng.choice(ENCODED_FRAMES).format(codecs.encode(text, "rot13"))


def backwards(text: str, rng: random.Random) -> str:
    """Write from right to left."""
    return rng.choice(ENCODED_FRAMES).format(text[::-1])


def foreign_frame(text: str, rng: random.Random) -> str:
    """Greet and thank in another language around an English sentence."""
    return rng.choice(FOREIGN_FRAMES).format(text)


DISGUISES: tuple[Disguise, ...] = (
    leetspeak,
    spaced,
    dotted,
    homoglyphs,
    zero_width,
    fullwidth,
    mixed_case,
    typos,
    base64_frame,
    rot13_frame,
    backwards,
    foreign_frame,
)


def obfuscate(rows: Iterable[Row], seed: int = SEED) -> list[Row]:
    """Disguise `PER_LABEL` benign and as many harmful rows in every way; no sentence is used twice.

    Raises:
        ValueError: there are too few rows of one label.
    """
    rng = random.Random(seed)  # noqa: S311 - a data set, not a secret
    short = [row for row in rows if row["lang"] == "en" and len(row["text"].split()) <= LONGEST]
    by_label = {label: [row for row in short if row["prompt_label"] == label] for label in (0, 1)}
    needed = PER_LABEL * len(DISGUISES)
    for label, candidates in by_label.items():
        if len(candidates) < needed:
            raise ValueError(f"obfuscate: {needed} rows with prompt_label {label} needed, {len(candidates)} found")
        rng.shuffle(candidates)
    chosen = (
        (disguise, by_label[label][index * PER_LABEL + n])
        for index, disguise in enumerate(DISGUISES)
        for n in range(PER_LABEL)
        for label in (1, 0)
    )
    return [_disguised(row, disguise, number, rng) for number, (disguise, row) in enumerate(chosen, 1)]


def _disguised(row: Mapping[str, Any], disguise: Disguise, number: int, rng: random.Random) -> Row:
    return {
        **row,
        "id": f"obfuscated-{number:04d}",
        "text": disguise(row["text"], rng),
        "source": "own_obfuscated",
        "obfuscation": disguise.__name__,
        "made_from": row["id"],
    }


def _mistype(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    return rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] * 2 + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )


def _read(name: str) -> list[Row]:
    with (HERE / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    """Read the other files and write obfuscated.jsonl beside them."""
    rows = obfuscate(row for name in SOURCES for row in _read(name))
    with (HERE / "obfuscated.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
