"""Finds what identifies a person by its form: e-mail, phone, card, bank account, social security number, IP address.

It knows forms and check digits; it does not know names, postal addresses or dates of birth, which have none.

Scores say how sure the form alone makes it:
    0.99  a check digit or a country's length rule agrees (IBAN, grouped card number)
    0.95  a form that hardly anything else has (e-mail address, hyphenated SSN)
    0.9   a valid value, written as people write it (phone number with its separators, global IP address)
    0.8   the right shape, though not a number that is in use (555-123-4567)
    0.3   digits only, or digits and dots, that could as well be an order number or a version: below any usual threshold
"""

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from phonenumbers import Leniency, PhoneNumberMatcher, PhoneNumberType, number_type
from stdnum import iban, luhn
from stdnum.us import ssn

from ringfence.guard.check import Finding, Passage
from ringfence.guard.checks.formats import Finder, Format, Hit, before, by_pattern, find_formats

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
NUMBER_OF_ELSE = re.compile(
    r"(?:order|invoice|isbn|issn|doi|tracking|ticket|serial|part|sku|version|#|№)[^,;\n]{0,12}\Z"
)
NUMBER_OF_PHONE = re.compile(
    r"(?:phone|call|tel|mobile|cell|fax|whatsapp|sms|text me|reach me|my number)[^,;\n]{0,16}\Z"
)
NUMBER_OF_SSN = re.compile(r"(?:ssn|social security|social)[^,;\n]{0,20}\Z")
VERSION = re.compile(r"(?:version|release|build|firmware|section|chapter|clause|v|§)[ .:]*\Z")


class PiiCheck:
    """Reports `pii.email`, `pii.iban`, `pii.card`, `pii.ssn`, `pii.ip`, `pii.phone`.

    Args:
        region: whose national phone numbers are recognised without a country code, as ISO 3166 says it.
    """

    name = "pii"
    categories = frozenset({"pii"})

    def __init__(self, region: str = "US") -> None:
        self._formats = (*FORMATS, Format("pii.phone", "phone number", _phones_of(region)))

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return every stretch of the passage that has one of the forms. Time is linear in its length."""
        return find_formats(self.name, self._formats, passage)


def _cards(text: str) -> Iterator[Hit]:
    for match in CARD_SHAPE.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if CARD.fullmatch(digits) and luhn.is_valid(digits):
            yield Hit(*match.span(), 0.9 if match[0] == digits else 0.99)


CARD_SHAPE = re.compile(
    r"(?<![\w+])(?<!\d[.,-])"
    r"(?:[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5}|[0-9]{13,19})"
    r"(?!\w|[.,-]\d)"
)


def _ibans(text: str) -> Iterator[Hit]:
    for match in IBAN_SHAPE.finditer(text):
        # In capitals a following word looks like one more group, so the longest beginning that is valid is taken.
        for end in range(match.end(), match.start() + 14, -1):
            whole = end == match.end() or not text[end].isalnum()
            if whole and iban.is_valid(text[match.start() : end].strip()) and text[end - 1] != " ":
                yield Hit(match.start(), end, 0.99)
                break


IBAN_SHAPE = re.compile(
    r"(?<!\w)(?:[A-Z]{2}[0-9]{2}(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?|[A-Za-z]{2}[0-9]{2}[A-Za-z0-9]{11,30})(?!\w)"
)


def _social_security_numbers(text: str) -> Iterator[Hit]:
    for match in SSN_SHAPE.finditer(text):
        said = NUMBER_OF_SSN.search(before(text, match.start(), 32))
        if (match[1] == "-" or said) and ssn.is_valid(re.sub(r"\D", "", match[0])):
            yield Hit(*match.span(), 0.95)


SSN_SHAPE = re.compile(r"(?<![\w+])(?<!\w-)[0-9]{3}([- ]?)[0-9]{2}\1[0-9]{4}(?!\w|-\w)")


def _addresses(text: str) -> Iterator[Hit]:
    for match in IP_SHAPE.finditer(text):
        try:
            address = ip_address(match[0])
        except ValueError:
            continue
        # Addresses that mean the same machine or building to everybody identify nobody.
        if address.is_global:
            version_like = len(match[0]) == len("1.2.3.4") or VERSION.search(before(text, match.start()))
            yield Hit(*match.span(), GUESS if version_like else 0.9)


IP_SHAPE = re.compile(
    r"(?<![\w.-])(?<![^/]/)(?<!==)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.\d)"
    r"|(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:]|\.\d)"
)


def _phones_of(region: str) -> Finder:
    def well_grouped(number: str) -> bool:
        return PhoneNumberMatcher(number, region, leniency=Leniency.STRICT_GROUPING).has_next()

    def find(text: str) -> Iterator[Hit]:
        # The library gives up after so many wrong tries; text full of digits must not be a way past it.
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=len(text) + 1):
            number, said = match.raw_string, before(text, match.start)
            if number_type(match.number) in PUBLIC_NUMBERS or NUMBER_OF_ELSE.search(said):
                continue
            # Without a country code, digits grouped as no phone number is are a row of a table or a case number.
            if number.startswith(("+", "(+")) or well_grouped(number):
                bare = number.isdigit() and not NUMBER_OF_PHONE.search(said)
                yield Hit(match.start, match.end, GUESS if bare else 0.9)
        yield from _north_american(text)

    return find


# Lines that everybody may call, help lines among them: taking those out of an answer would harm.
PUBLIC_NUMBERS = {
    PhoneNumberType.TOLL_FREE,
    PhoneNumberType.PREMIUM_RATE,
    PhoneNumberType.SHARED_COST,
    PhoneNumberType.UAN,
}

# The numbers that films, forms and examples use; in use or not, whoever writes one means a phone.
_north_american = by_pattern(
    r"(?<![\w.+/-])(?:\+?1[ .-])?(?!\(?8(?:00|33|44|55|66|77|88)\D)(?:\([0-9]{3}\) ?|[0-9]{3}[.-])"
    r"[0-9]{3}[.-][0-9]{4}(?!\w|[.-]\d)",
    score=0.8,
)

FORMATS = (
    Format(
        "pii.email",
        "e-mail address",
        by_pattern(
            r"[\w%+-][\w.%+'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])",
            score=0.95,
            valid=lambda address: not address.startswith("git@"),  # `git@host:path` is a place, not a person
            hint="@",
        ),
    ),
    Format("pii.iban", "bank account (IBAN)", _ibans),
    Format("pii.card", "payment card number", _cards),
    Format("pii.ssn", "US social security number", _social_security_numbers),
    Format("pii.ip", "IP address", _addresses),
)
