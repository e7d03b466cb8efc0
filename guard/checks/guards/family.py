"""What a family of guard models is: how it is asked about an exchange, and how its answer is read. Asks nobody.

A family's module is data and small functions that say what its model card says. The prompt is the interface: it is
written as the card has it, word for word, and a text that is judged cannot get out of its place in it.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from itertools import pairwise
from typing import Any, Literal

from ringfence.guard.check import CannotAnswer
from ringfence.guard.images import Image
from ringfence.policies.own import FAMILIES

CONTROL = r"<(?=\|)|\|(?=>)"
"""Where a control token of the form `<|…|>` comes apart."""

SECTION = r"<(?=[\s/]{0,8}(?:BEGIN|END)\b)"
"""Where a mark such as `<END CONVERSATION>` does."""


BREAKS = r"\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
"""After which a line begins, for whoever reads Unicode; the tokens of a guard may be read so."""

BLANK = rf"[^\S{BREAKS}]"

LINE = rf"(?<![^{BREAKS}]){BLANK}*"
"""Where what a line says begins."""

LEAST = 0.5
"""The share of all probability that the deciding words must have: less, and the model does not answer as its family.

Of a guard it is nearly all. What is divided by a small share looks sure whatever it is.
"""

FILLERS = frozenset("\u115f\u1160\u2800")
"""Letters and a sign that show nothing."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, as guards have them: whoever is not the assistant is the user; of one, the image in it."""

    role: Literal["user", "assistant"]
    text: str
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Wording:
    """What a category is, as the model is told where a user's message is judged, and where a reply is."""

    asked: str
    answered: str


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer looks like.

    Attributes:
        answer: a whole answer, from what every answer begins with; group `verdict`, and `codes` where it names
            categories.
        lists: what stands in an unsafe answer between the place of the deciding word and that of the first category;
            None where it has none.
        until: what stands before the deciding word, where the model writes something of its own before that; empty
            where the answer begins with it.
    """

    answer: re.Pattern[str]
    lists: str | None = None
    until: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What the model is asked.

    Attributes:
        prompt: all that comes before the answer, without the token that opens every text; None of a templated family.
        messages: the same for a server that has the model's own template, as chat messages; None where that template
            cannot be told to ask this.
        code: the one category that it is about; empty where the answer names them.
        form: what its answer looks like, where that is another than the family's.
        image: what stands in the prompt where the family's word for an image does.
    """

    prompt: str | None
    messages: tuple[Mapping[str, Any], ...] | None
    code: str = ""
    form: Form | None = None
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One family of guard models.

    Attributes:
        name: as `kind` in a policy.
        architectures: what `architectures` in its `config.json` may say.
        categories: those it was made for, by its own names.
        default: those it is asked about where a policy names none; all where empty.
        custom: whether it can be asked about categories of a policy.
        ask: gives the questions about the last turn of an exchange; turns alternate, the user's first.
        seams: every stretch after which a space is put in a text that is judged, so that it cannot be taken for a part
            of the prompt.
        safe, unsafe: the words that decide, exactly as the model writes them; of several unsafe ones each is a finding
            of its own.
        opens: what every text begins with, as a token; a server's `completions` puts it there itself.
        form: what its answers look like.
        begins: what every answer begins with.
        longest: tokens of the longest answer.
        languages: what it was made for, for people.
        templated: whether its prompt is made of messages by the template that comes with the model, as its card does.
        reasons: whether it thinks before it answers, so that no server tells how probable the deciding word was.
        image: what stands in a prompt for an image; empty where it reads none.
    """

    name: str
    architectures: frozenset[str]
    categories: Mapping[str, Wording]
    ask: Callable[[Sequence[Turn], Mapping[str, Wording]], Sequence[Question]]
    seams: re.Pattern[str]
    safe: str
    unsafe: tuple[str, ...]
    form: Form
    longest: int
    languages: str
    default: tuple[str, ...] = ()
    custom: bool = True
    opens: str = ""
    begins: str = ""
    templated: bool = False
    reasons: bool = False
    image: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a guard makes of one question.

    Attributes:
        unsafe: the probability of each of the family's unsafe words.
        codes: that of each category, given that something is unsafe.
        calibrated: False where the guard only said a word, and every probability is 0 or 1.
        named: False where an answer names none of them, as a safe one does not: whichever it would be, nobody knows.
    """

    unsafe: Mapping[str, float]
    codes: Mapping[str, float]
    calibrated: bool = True
    named: bool = True


class UnusableFamily(LookupError):
    """A family of guards that is installed cannot be used; the message says why."""


class NoVerdict(Exception):
    """An answer is not of the family's form; it is not told, as it may quote the text."""


def find_families() -> Mapping[str, Family]:
    """Return every installed family by name; see `find_family`."""
    return {name: find_family(name) for name in sorted(entry_points(group=FAMILIES).names)}


def find_family(name: str) -> Family:
    """Load an installed family; it may be anybody's.

    Raises:
        UnusableFamily: what its package has in its place is none.
    """
    (point, *others) = entry_points(group=FAMILIES, name=name)
    if others:
        packages = " and ".join(sorted(str(one.dist and one.dist.name) for one in (point, *others)))
        raise UnusableFamily(f"the packages {packages} both have a family '{name}'; uninstall one")
    try:
        family = point.load()
    except Exception as error:
        raise UnusableFamily(f"'{point.value}' cannot be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(family, Family) or family.name != name:
        raise UnusableFamily(f"'{point.value}' is no Family of the name '{name}'")
    return family


def neutral(text: str, seams: re.Pattern[str]) -> str:
    """Return a text in which nothing can be taken for a part of the prompt around it.

    Neither as it stands, nor as it reads: without what is not shown, and with other forms of a character as that.
    """
    forms = [*map(_as_read, text)]
    places = [0, *(at for at, form in enumerate(forms, 1) for _ in form)]  # so much of the text is so much of its forms
    ends = {seam.end() for seam in seams.finditer(text)}
    ends |= {places[seam.end()] for seam in seams.finditer("".join(forms))}
    cuts = [0, *sorted(ends), len(text)]
    return " ".join(text[start:end] for start, end in pairwise(cuts))


@lru_cache(maxsize=1 << 16)
def _as_read(character: str) -> str:
    """Return the plain form of a character; nothing for one that shows nothing by itself, or only marks another."""
    form = unicodedata.normalize("NFKC", character)
    shown = character.isspace() or unicodedata.category(character)[0] not in "CM"
    return form if shown and form not in FILLERS else ""


def unfinished(family: Family) -> CannotAnswer:
    """Return the error that a guard thought for as long as it may, and came to no verdict."""
    what = f"{family.name} thought for all of its {family.longest:,} tokens and came to no verdict"
    return CannotAnswer(f"{what}; a policy that is shorter, or leaves less open, takes less thought")


def read_answer(family: Family, form: Form, written: str, codes: Sequence[str]) -> Judgement:
    """Return what a written answer says, in ones and zeros.

    Args:
        form: what it has to look like.
        written: all of it, with what the family's answers begin with.
        codes: the categories that it may name; others that it names count for nothing by themselves.

    Raises:
        NoVerdict: it is not of the family's form.
    """
    found = form.answer.fullmatch(written)
    if found is None:
        raise NoVerdict
    said = found["verdict"]  # none where it is the safe one and stands for itself
    named = listed(found.groupdict().get("codes") or "")
    unsafe = {word: float(word.strip() == said) for word in family.unsafe}
    told = {code: float(code in named) for code in codes}
    return Judgement(unsafe, told, calibrated=False, named=any(told.values()))


def listed(written: str) -> set[str]:
    """Return the categories that a list in an answer names."""
    return {one.strip().rstrip(".") for one in written.split(",")}


def written_roles(*names: str) -> str:
    """Return a pattern of names that open a line as a turn of the prompt does (`User:`), up to the colon."""
    return rf"{LINE}(?:{'|'.join(map(phrase, names))})(?={BLANK}*:)"


def phrase(words: str) -> str:
    """Return a pattern of words in one line, however far apart."""
    return rf"{BLANK}+".join(map(re.escape, words.split()))
