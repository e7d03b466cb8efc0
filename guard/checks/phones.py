"""Finds telephone numbers: by Google's tables of the world's numbers, and by the words that stand before one.

A national number is told from an order number in one of three ways: the tables know it for the check's own region; a
word says that it is a phone ("Tel.", "mon portable", "手机"), whose country then hardly matters; or the words around it
are of a language, and the tables know the number where that is spoken. A number with + needs a country code and a
length that its country has, no more: numbers of films and of tomorrow are somebody's too. Lines that everybody may call
are left out, help lines among them. It does not read numbers in words.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from phonenumbers import (
    Leniency,
    NumberParseException,
    PhoneMetadata,
    PhoneNumberMatch,
    PhoneNumberMatcher,
    PhoneNumberType,
    ValidationResult,
    is_possible_number_with_reason,
    is_valid_number,
    number_type,
    parse,
    region_codes_for_country_code,
)

from ringfence.guard.checks.formats import Finder, Hit, before, by_pattern, hint_of, lead

GUESS = 0.3
VALID = 0.9
SHAPED = 0.8

NUMBER_OF_ELSE = re.compile(
    r"(?:order|invoice|isbn|issn|doi|tracking|ticket|serial|part|sku|version|#|№)[^,;\n]{0,12}\Z"
)
NUMBER_OF_PHONE = re.compile(
    r"(?:phone|call|tel|mobile|cell|fax|whatsapp|sms|text me|reach me|my number)[^,;\n]{0,16}\Z"
)


def phones_of(region: str) -> Finder:
    """Return a finder that knows one region's national numbers without a word in front, as ISO 3166 names it."""

    known = _known_numbers(region)
    digits = re.compile(rf"\d(?:[\WxXー]{{0,4}}\d){{{min(SHORTEST, known.shortest) - 1}}}")

    def well_grouped(number: str) -> bool:
        return PhoneNumberMatcher(number, region, leniency=Leniency.STRICT_GROUPING).has_next()

    def find(text: str) -> Iterator[Hit]:
        if not digits.search(text):  # nearly every text, whatever years and amounts stand in it
            return
        for match in _Matcher(text, region, known):
            number, said = match.raw_string, before(text, match.start)
            if number_type(match.number) in PUBLIC_NUMBERS or NUMBER_OF_ELSE.search(said):
                continue
            # Without a country code, digits grouped as no phone number is are a row of a table or a case number.
            if number.startswith(("+", "(+")) or well_grouped(number):
                bare = number.isdigit() and not NUMBER_OF_PHONE.search(said)
                yield Hit(match.start, match.end, GUESS if bare else VALID)
        yield from _north_american(text)
        yield from _international(text)
        yield from _national(text)

    return find


class _Known(NamedTuple):
    """What the digits of the numbers that the tables know in a region look like.

    Attributes:
        whole: all the digits of such a number, prefixes included.
        within: is found in any digits that hold such a number.
        shortest: characters that a number has at least, of any country.
    """

    whole: re.Pattern[str]
    within: re.Pattern[str]
    shortest: int = 1


SHORTEST = 6
"""Digits that the shortest number of the world has, country code and all, however they are set apart."""


def _known_numbers(region: str) -> _Known:
    """Join a region's own patterns, and those of its neighbours under the same country code, to one."""
    own = PhoneMetadata.metadata_for_region(region)
    if own is None or own.country_code is None or own.national_prefix_transform_rule:
        anything = re.compile("")  # some regions add digits of their own to what was written
        return _Known(re.compile(".*"), anything)
    regions = region_codes_for_country_code(own.country_code)
    lands = [land for region in regions if (land := PhoneMetadata.metadata_for_region(region))]
    kinds = [getattr(land, kind) for land in lands for kind in KINDS]
    patterns = dict.fromkeys(kind.national_number_pattern for kind in kinds if kind and kind.national_number_pattern)
    number, abroad = "|".join(patterns), own.international_prefix or r"\Z."
    prefix = own.national_prefix_for_parsing or ""
    return _Known(
        re.compile(rf"(?:{abroad}).*|(?:{own.country_code})?(?:{prefix})?(?:{number})"),
        re.compile(rf"{abroad}|{number}"),
        # With + and its country code, the shortest number of the world has seven characters.
        shortest=min(
            1 + SHORTEST, *(n for land in lands if land.general_desc for n in land.general_desc.possible_length)
        ),
    )


KINDS = (
    *("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "personal_number", "voip", "pager", "uan"),
    "voicemail",
)
# Digits and marks between them; a number with anything else (+, an extension, other digits) is left to the library.
PLAIN = re.compile(r"[0-9 ()\[\]./-]+")


class _Matcher(PhoneNumberMatcher):
    """The library's matcher, which asks its tables only where the digits can be a number: they are slow to say no.

    What it overrides the library has not promised; should a release rename it, time is lost, and no number.
    """

    def __init__(self, text: str, region: str, known: _Known) -> None:
        # The library gives up after so many wrong tries; text full of digits must not be a way past it.
        super().__init__(
            text, region, leniency=Leniency.VALID, max_tries=len(text) + 1, min_candidate_length=known.shortest
        )
        self._known = known

    def _extract_match(self, candidate: str, offset: int) -> PhoneNumberMatch | None:
        if PLAIN.fullmatch(candidate) and not self._known.within.search(NO_DIGIT.sub("", candidate)):
            return None
        return super()._extract_match(candidate, offset)

    def _parse_and_verify(self, candidate: str, offset: int) -> PhoneNumberMatch | None:
        if PLAIN.fullmatch(candidate) and not self._known.whole.fullmatch(NO_DIGIT.sub("", candidate)):
            return None
        return super()._parse_and_verify(candidate, offset)


NO_DIGIT = re.compile("[^0-9]+")

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
    score=SHAPED,
)


def _international(text: str) -> Iterator[Hit]:
    for match in INTERNATIONAL.finditer(text):
        number = "+" + match[0].removeprefix("00").lstrip("+")
        try:
            parsed = parse(number)
        except NumberParseException:
            continue
        possible = is_possible_number_with_reason(parsed) == ValidationResult.IS_POSSIBLE
        if possible and number_type(parsed) not in PUBLIC_NUMBERS and not COUNT.fullmatch(match[0]):
            yield Hit(*match.span(), SHAPED)


# `00` opens one only where it is set apart as a country code is: `0044 7700 900318`.
INTERNATIONAL = re.compile(
    r"(?:\+[1-9]|(?<![0-9A-Za-z+])(?<![0-9][ ./-])00[1-9][0-9]{0,2}[ /.-](?=[0-9(]))(?<![\w.+/-]\+[1-9])"
    r"(?:(?: ?\(0?\) ?|[ ()./–-]{0,2})[0-9]){6,14}(?!\w|[.,-][0-9])"
)
COUNT = re.compile(r"\+[0-9]{1,3}(?:[ .]?000)+")  # `+5 000 000` is growth


def _national(text: str) -> Iterator[Hit]:
    spoken: tuple[str, ...] | None = None
    for match in NATIONAL.finditer(text):
        number, words = match[0], lead(text, match.start())
        named = (len(words) > 2 and may_name(words) and NAMED.search(words)) or NAMED_AFTER.match(text, match.end())
        groups = re.findall(r"[0-9]+", number)
        bare = len(groups) == 1
        if named:
            likely = number[0] == "0" or (len(number) >= 9 if bare else len(groups[0]) > 1 or number[0] in "(8")
        elif bare or number[0] not in "(0":
            likely = False
        else:
            spoken = _regions_where(text) if spoken is None else spoken
            likely = any(_is_somebodys(number, region) for region in spoken)
        if likely and not _is_no_phone(text, match, groups):
            yield Hit(*match.span(), SHAPED)


def _is_no_phone(text: str, match: re.Match[str], groups: list[str]) -> bool:
    return bool(
        PUBLIC_GROUP.fullmatch(groups[0])
        or NO_PHONE.fullmatch(match[0])
        or COUNTED_AFTER.match(text, match.end())
        or NUMBER_OF_ELSE.search(before(text, match.start()))
        or PUBLIC_LINE.search(before(text, match.start(), 48))
    )


def _is_somebodys(number: str, region: str) -> bool:
    try:
        parsed = parse(number, region)
    except NumberParseException:
        return False
    return is_valid_number(parsed) and number_type(parsed) not in PUBLIC_NUMBERS


def _regions_where(text: str) -> tuple[str, ...]:
    """Return the regions of the language that the text's beginning is in; none where small words do not tell."""
    words = set(re.findall(r"[^\W\d_]+", text[:4000].lower()))
    regions = [of for small, of in LANGUAGES if len(words.intersection(small.split())) >= 3]
    return regions[0] if len(regions) == 1 else ()


LANGUAGES = (
    ("der die das und ist nicht ein eine mit für auf bei ich sie von zu", ("DE", "AT", "CH")),
    ("le la les et est une des pour dans je vous sur avec du au", ("FR", "BE", "CH")),
    ("het een en van voor niet ik met op dat zijn aan", ("NL", "BE")),
    ("och att det som är på för med inte jag av till", ("SE",)),
    ("il di che non per una sono con della del è", ("IT",)),
)

NATIONAL = re.compile(
    r"\(?[0-9](?<![0-9A-Za-z+/.,-].)(?<![0-9A-Za-z+/.,-]\(.)(?:[ ()./–\u00a0-]{0,2}[0-9]){6,11}"
    r"(?![0-9A-Za-z]|[.,:/-][0-9])"
)
# `0800`, `1-800`, `0900`, `1300`: free, dear or shared, and nobody's own.
PUBLIC_GROUP = re.compile(r"(?:0?8008?|0?900|1[38]00|0?80[0358]|0?808)")
PUBLIC_LINE = re.compile(
    r"(?:hot|help|crisis|support|advice|life|info)[ -]?line|samaritans|seelsorge|customer (?:service|care)|switchboard"
    r"|service client|kundendienst|atención al cliente|emergency (?:number|services)",
)
# Dates, spans of years, addresses of machines, amounts of money.
NO_PHONE = re.compile(
    r"(?:19|20)[0-9]{2}([./-])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([./ -])[0-9]{1,2}\2(?:19|20)[0-9]{2}"
    r"|(?:19|20)[0-9]{2}(?:[ –-]+(?:19|20)[0-9]{2})+|[1-9][0-9]?(?:[ -][1-9][0-9]?)+"
    r"|(?:19|20)[0-9]{6}|(?:[0-9]{1,3}\.){3}[0-9]{1,3}"
    r"|[0-9]{1,3}(?:\.[0-9]{3})+|[0-9]{1,2}(?: [0-9]{3}){2,}"
)
COUNTED_AFTER = re.compile(
    r" ?(?:[€$£%]|(?:eur|usd|euros?|dollars?|people|users?|units?|customers"
    r"|subscribers|downloads|calls|times|bytes|[km]b|last (?:year|month)|million)(?![^\W_]))",
    re.IGNORECASE,
)
_NOUNS = (
    r"tel(?:e(?:ph|f)[^\W\d_]*)?|tfno|tlf|tél(?:éphone)?|teléfono|\w{0,10}phones?|mob(?:il[^\W\d_]{0,12})?|móvil|telemóvel"
    r"|cel(?:l|ular|lulare)?|cell ?phone|handy(?:nummer)?|fax|whatsapp|sms|msisdn|portable|puhelin|komórka|gsm|ring mig"
    r"|(?:my|her|his|their|your) (?:new |old |work |home )?number|(?:mon|son|ton|votre) numéro"
    r"|(?:mi|tu|su) número|(?:meine?|seine?|ihre?|deine?|eure?) (?:neue )?nummer|(?:il )?mio numero"
    r"|(?:mijn|zijn|haar) nummer"
    r"|тел|телефон[^\W\d_]{0,3}|моб(?:ильный)?|τηλ(?:έφωνο)?|κινητό"
)
_VERBS = (
    r"call|dial|text (?:me|her|him|us)|calling from|phone|reach (?:me|her|him) (?:at|on)"
    r"|llám(?:ame|alo|eme)|appelle[zr]?|ruf[^\W\d_]{0,3}|bel(?: me)?|chiama(?:mi)?|ligue"
)
NAMED = re.compile(
    rf"(?<![^\W_])(?:{_NOUNS}|{_VERBS})(?![^\W_])[^,;\n]{{0,20}}\Z"
    r"|(?:电话|電話|手机|手機|手机号|連絡先|携帯|전화|휴대폰|핸드폰|연락처|फ़?ोन|मोबाइल|هاتف|جوال|موبايل|טלפון|נייד|โทร)[^,;\n。]{0,12}\Z",
    re.IGNORECASE,
)
may_name = hint_of(NAMED)
NAMED_AFTER = re.compile(
    r"[ ,]{1,2}\(?(?:mobile|cell|fax|landline|home phone|work phone|handy|portable|móvil"
    r"|is (?:my|the|her|his) (?:number|landline|mobile|cell|phone))(?![^\W_])"
)
