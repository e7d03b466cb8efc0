"""Tells which language a text is in, where that can be told. Knows no model but its own."""

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

READ = 2000
"""Code points that are looked at: a third each of the start, the middle and the end."""

SURE = 0.5
"""Probability from which on an answer is given; two words are mostly too few for it."""


def language(text: str) -> str | None:
    """Return the ISO 639 code of a text's language; None where it cannot be told, or there is none (code, digits).

    Of a text in several, one that is not English, as that is what the guard model cannot read; the last of these.
    """
    size = READ // 3
    starts = (len(text) - size, (len(text) - size) // 2, 0) if len(text) > size else (0,)
    told = [code for start in starts if (code := language_of_part(text[start : start + size]))]
    return min(told, key=lambda code: code == "en", default=None)


def language_of_part(text: str) -> str | None:
    """Return the same of a text that is read in full."""
    code, probability = identifier().classify(text.encode("utf-8", "replace"))
    return str(code) if probability >= SURE and code != "zxx" else None


@cache
def identifier() -> LanguageIdentifier:
    """Load the model of py3langid (naive Bayes over byte n-grams; Lui & Baldwin 2012), once."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
