"""Finds what identifies a person by its form: e-mail, phone, card, bank account, IP address, what a state gave them.

It knows forms, check digits and the words that name a number; it does not know names and postal addresses, which have
no form. Phones, and what a state's registers know of a person, have modules of their own and rows in the table here.

Scores say how sure the form alone makes it:
    0.99  a check digit or a country's length rule agrees (IBAN, grouped card number)
    0.95  a form that hardly anything else has (e-mail address, hyphenated SSN)
    0.9   a valid value, written as people write it (phone number with its separators, global IP address)
    0.8   the right shape, though not a number that is in use (555-123-4567), or one that has no check digit, after a
          word that names it (a passport's, a date of birth)
    0.3   digits only, or digits and dots, that could as well be an order number or a version: below any usual threshold
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import ip_address

from stdnum import iban, luhn
from stdnum.us import ssn

from ringfence.guard.check import Findable, Finding, Passage
from ringfence.guard.checks.disguise import in_every_spelling
from ringfence.guard.checks.formats import Format, Hit, before, find_formats, hint_of
from ringfence.guard.checks.identity import IDENTITY
from ringfence.guard.checks.phones import phones_of

GUESS = 0.3

# Prefix ranges and lengths in use, from the networks' public tables.
CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[68]\d)\d{11}"  # Diners
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
)
NUMBER_OF_SSN = re.compile(r"(?:ssn|s\.s\.n\.|ss (?:number|no)|social security|social)[^,;\n]{0,28}\Z")
VERSION = re.compile(r"(?:version|release|build|firmware|section|chapter|clause|v|§)[ .:]*\Z")


class PiiCheck:
    """Reports `pii.email`, `.iban`, `.card`, `.ssn`, `.ip`, `.phone`, `.national_id`, `.passport`, `.birth_date`.

    Args:
        region: whose national phone numbers are recognised without a country code, as ISO 3166 says it.
    """

    name = "pii"
    categories = frozenset({"pii"})

    def __init__(self, region: str = "US") -> None:
        self._formats = (*FORMATS, Format("pii.phone", "phone number", phones_of(region)))
        self.finds = tuple(Findable(name, 0.99) for name in sorted({row.category for row in self._formats}))

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return every stretch of the passage that has one of the forms, in whatever spelling; time is linear."""
        return in_every_spelling(partial(find_formats, self.name, self._formats), passage)


def _cards(text: str) -> Iterator[Hit]:
    for match in CARD_SHAPE.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if not luhn.is_valid(digits):
            continue
        if CARD.fullmatch(digits):
            yield Hit(*match.span(), 0.9 if match[0] == digits else 0.99)
        # Maestro's ranges are so wide that ungrouped digits of them need a word.
        elif MAESTRO.fullmatch(digits) and (match[0] != digits or CARD_WORD.search(before(text, match.start(), 32))):
            yield Hit(*match.span(), 0.9)


# What may not stand before comes second in these, so that the engine can leap from digit to digit.
CARD_SHAPE = re.compile(
    r"[0-9](?<![\w+].)(?<!\d[.,-].)"
    r"(?:[0-9]{3}([ .-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,3})?|(?<=3)[0-9]{3}([ .-])[0-9]{6}\2[0-9]{4,5}"
    r"|[0-9]{12,18})(?!\w|[.,-]\d)"
)
MAESTRO = re.compile(r"(?:50|5[6-8]|6[37])\d{10,17}")
CARD_WORD = re.compile(r"(?:card|maestro|karte|kaart|carte|tarjeta|cart[aã]o?|kort|kart[aey]?)\b[^,;\n]{0,16}\Z")


def _ibans(text: str) -> Iterator[Hit]:
    for match in IBAN_SHAPE.finditer(text) if IBAN_BEGINS.search(text) else ():
        # In capitals a following word looks like one more group, so the longest beginning that is valid is taken.
        for end in range(match.end(), match.start() + 14, -1):
            whole = end == match.end() or not text[end].isalnum()
            if whole and text[end - 1].isalnum() and iban.is_valid(text[match.start() : end]):
                yield Hit(match.start(), end, 0.99)
                break


IBAN_BEGINS = re.compile(r"[0-9](?<=[A-Za-z]{2}.)[0-9]")
IBAN_SHAPE = re.compile(
    r"(?<![A-Za-z0-9_])(?:[A-Z]{2}[0-9]{2}([ .-])[A-Z0-9]{4}(?:\1[A-Z0-9]{4}){1,6}(?:\1[A-Z0-9]{1,3})?"
    r"|[A-Za-z]{2}[0-9]{2}[A-Za-z0-9]{11,30})(?![A-Za-z0-9_])"
)


def _social_security_numbers(text: str) -> Iterator[Hit]:
    for match in SSN_SHAPE.finditer(text):
        said = NUMBER_OF_SSN.search(before(text, match.start(), 48))
        if (match[1] == "-" or said) and ssn.is_valid(re.sub(r"\D", "", match[0])):
            yield Hit(*match.span(), 0.95)


SSN_SHAPE = re.compile(r"[0-9](?<![\w+].)(?<!\w-.)[0-9]{2}([-./ ]?)[0-9]{2}\1[0-9]{4}(?!\w|[-./]\w)")


def _addresses(text: str) -> Iterator[Hit]:
    for match in IP_SHAPE.finditer(text):
        try:
            address = ip_address(DEFANGED_DOT.sub(".", match[0]))
        except ValueError:
            continue
        # Addresses that mean the same machine or building to everybody identify nobody.
        if address.is_global:
            version_like = len(match[0]) == len("1.2.3.4") or _is_version(text, match.start())
            yield Hit(*match.span(), GUESS if version_like else 0.9)


def _is_version(text: str, start: int) -> bool:
    return bool(VERSION.search(before(text, start)) or UPGRADE.search(before(text, start, 64)))


IP_SHAPE = re.compile(
    r"[0-9](?:"
    r"(?<![\w.-].)(?<![^/]/.)(?<!==.)[0-9]{0,2}(?:(?:\.|\[\.\]|\(\.\)|\[dot\])[0-9]{1,3}){3}(?![\w-]|\.\d)"
    r"|(?<=[23])(?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:]|\.\d))"
)
# Written so that nobody follows it by mistake: `93[.]184[.]216[.]34`.
DEFANGED_DOT = re.compile(r"\[\.\]|\(\.\)|\[dot\]")
# `Upgraded libfoo from 9.0.0.12 to 9.0.0.13`: what is moved from or to a number is a version.
UPGRADE = re.compile(
    r"(?:upgrad|downgrad|bump|roll(?:ed|ing)? ?back|migrat)\w*(?: [\w@/-]+){0,3} (?:from|to)(?: [\w-]+)?"
    r"(?: [\d.]+ to)? \Z"
)


def _mailboxes(text: str) -> Iterator[Hit]:
    if "@" in text or "%40" in text:
        for match in EMAIL.finditer(text):
            if not match[0].startswith("git@"):  # `git@host:path` is a place, not a person
                yield Hit(*match.span(), 0.95)
    if may_dot(text) and DOT_WORD.search(text):
        for shape in DISGUISED:
            for match in shape.finditer(text):
                yield Hit(*match.span(), 0.9)
        for match in SPOKEN.finditer(text):
            # "Look at example dot com" names a site; a name in parts, or a word for mail before it, names a box.
            if SPOKEN_PARTS.search(match[1]) or MAIL_WORD.search(before(text, match.start(), 32)):
                yield Hit(*match.span(), 0.8)


EMAIL = re.compile(
    r"(?:[\w%+-][\w.%+'-]{0,63}(?:@|%40)|(?<![\w\"])\"[^\"@\n]{1,62}\"@)"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
# The words for the two signs, in the languages that put them into brackets.
_AT = r"[\[({<] ?(?:at|ät|arroba|arobase|chiocciola|kukac|małpa|apenstaartje|snabel-?a|собака|@) ?[\])}>]"
_DOT_WORDS = r"(?:dot|punkt|punt|punto|point|ponto|kropka|piste|prik|pont|точка)"
_DOT_SAID = rf"(?: ?[\[({{<] ?(?:{_DOT_WORDS}|\.) ?[\])}}>] ?| {_DOT_WORDS} )"
_DOT = rf"(?:{_DOT_SAID}|\.)"
DOT_WORD = re.compile(rf"[\[({{< _](?:(?<=[\[({{<]) ?(?:at|ät|@)|{_DOT_WORDS}[\])}}> _])", re.IGNORECASE)
may_dot = hint_of(DOT_WORD)
DISGUISED = (
    re.compile(
        rf"(?<![\w.])\w[\w.+-]{{0,40}}(?:{_DOT_SAID}[\w+-]{{1,40}}){{0,4}} ?{_AT} ?"
        rf"[^\W_][\w-]{{0,40}}(?:{_DOT}[^\W_][\w-]{{0,40}}){{0,4}}?{_DOT}[^\W\d_]{{2,24}}(?![\w-])(?!{_DOT}\w)",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?<![^\W_])(?=[A-Z]*[a-z0-9._])[^\W_][\w.+-]{0,40}?(?:(?: DOT |_DOT_)[A-Za-z0-9-]{1,40}){0,4}(?: AT |_AT_)"
        r"[^\W_][A-Za-z0-9-]{0,40}(?:(?: DOT |_DOT_)[A-Za-z0-9-]{2,24}){1,4}"
    ),
)
SPOKEN = re.compile(
    rf"(?<!\w)(\w[\w.+-]{{0,40}}(?: (?:dot|punkt|point|punto|ponto|underscore|dash) [\w-]{{1,40}}){{0,4}})"
    rf" (?:at|arobase|arroba|chiocciola) [^\W_][\w-]{{0,40}}(?: {_DOT_WORDS} [^\W_][\w-]{{1,40}}){{1,4}}(?![\w-])",
    re.IGNORECASE,
)
SPOKEN_PARTS = re.compile(r"\w[._]\w| (?:dot|punkt|point|punto|ponto|underscore|dash) ", re.IGNORECASE)
MAIL_WORD = re.compile(r"(?:e-?mail|mail|courriel|correo|reach (?:me|us|him|her)|write to|contact)\b[^.;\n]{0,20}\Z")


FORMATS = (
    Format("pii.email", "e-mail address", _mailboxes),
    Format("pii.iban", "bank account (IBAN)", _ibans),
    Format("pii.card", "payment card number", _cards),
    Format("pii.ssn", "US social security number", _social_security_numbers),
    Format("pii.ip", "IP address", _addresses),
    *IDENTITY,
)
