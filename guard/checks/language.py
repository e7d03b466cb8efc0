"""Finds which languages a text is in. Knows no meaning.

A text is read in blocks of whole paragraphs; a language that at least `PART` of it is in is a finding. Short texts,
code and numbers are in no language that can be told.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from locale import locale_alias

from ringfence.guard.check import Findable, Finding, Passage, Span
from ringfence.guard.classifier.language import READ, SURE, identifier

PART = 0.25
"""Share of a text from which on a language is found: a quotation, a heading, a name is none."""

LOOKED_AT = 300
"""Code points of a block that tell its language: a paragraph is in one, and more of it only takes longer."""

# A paragraph or more, up to the end of one where it ends in time.
BLOCK = re.compile(rf"(?s).{{200,{READ}}}?(?=\n[ \t\r]{{0,8}}\n|\Z)|.{{1,{READ}}}")

NONE = "zxx"
"""The model's code for what is in no language."""


class LanguageCheck:
    """Reports `language.CODE` (ISO 639: `language.de`) for each language that a good part of the text is in."""

    name = "language"
    categories = frozenset({"language"})

    @property
    def finds(self) -> Sequence[Findable]:
        """Every language that there is a code for; loads the model."""
        codes = sorted({*map(str, identifier().nb_classes)} - {NONE})
        return [Findable(f"language.{code}", called=tuple(_names(code))) for code in codes]

    def warm(self) -> object:
        """Load the model."""
        return identifier()

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return a finding a language, most of the text first: one for most texts, four at most.

        The score is the probability of the language, over the blocks that are in it; a block where none reaches 0.5 is
        in none. Spans are the blocks. Time is linear in the length of the passage.
        """
        text = passage.text
        spoken: dict[str, list[tuple[Span, float]]] = {}
        for block in BLOCK.finditer(text):
            code, probability = identifier().classify(block[0][:LOOKED_AT].encode("utf-8", "replace"))
            if probability >= SURE and code != NONE:
                spoken.setdefault(str(code), []).append((Span(passage.part, *block.span()), float(probability)))
        found = [(sum(map(_length, blocks)), code, blocks) for code, blocks in spoken.items()]
        return [
            Finding(self.name, f"language.{code}", _mean(blocks), tuple(_joined(span for span, _ in blocks)))
            for length, code, blocks in sorted(found, key=lambda one: (-one[0], one[1]))
            if length >= PART * len(text)
        ]


def _names(code: str) -> Iterator[str]:
    """Yield what a language is called, as far as Python knows: in English, and some by themselves."""
    known = (name for name, locale in locale_alias.items() if locale.startswith(f"{code}_"))
    return (name for name in known if name.isalpha() and len(name) > 3)  # the others are codes


def _length(block: tuple[Span, float]) -> int:
    return block[0].end - block[0].start


def _mean(blocks: Sequence[tuple[Span, float]]) -> float:
    return round(sum(_length(block) * block[1] for block in blocks) / sum(map(_length, blocks)), 4)


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Join spans that touch."""
    last: Span | None = None
    for span in spans:
        if last and last.end == span.start:
            last = Span(last.part, last.start, span.end)
            continue
        if last:
            yield last
        last = span
    if last:
        yield last
