"""Finds what a state gave a person, or a register knows of one: national numbers, passports, dates of birth.

Such numbers are seldom more than digits, so the word in front is what tells them ("BSN", "numéro de sécurité sociale",
"born on"); only forms that nothing else has, with a check digit that agrees, are found without one. It knows the
numbers of persons, not of firms; no driving licences, and nothing that only the heading of its column names. Check
digits are python-stdnum's.
"""

import datetime
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from importlib import import_module
from typing import NamedTuple

from ringfence.guard.checks.formats import END_OF_NUMBER, Format, Hit, by_pattern, hint_of, lead

CHECKED = 0.99  # a check digit agrees, or the date that the number holds
SHAPED = 0.8  # the word in front and the right shape; the country has no check digit
FAR = 24  # characters between the word and its number


class Document(NamedTuple):
    """One country's number.

    Attributes:
        cue: words that name it, as a regular expression without groups.
        shape: the number with the marks that people put into it, likewise.
        module: of stdnum, which knows its check digits; none where the country has none.
    """

    cue: str
    shape: str
    module: str = ""


def _groups(*groups: str) -> str:
    """Return the shape of groups that stand together or with a mark between: `AB123456C`, `AB 12-34-56 C`."""
    return "[ ./-]?".join(groups)


def _digits(count: int) -> str:
    return rf"[0-9](?:[ ./-]?[0-9]){{{count - 1}}}"


CODICE_FISCALE = _groups("[A-Z]{3}", "[A-Z]{3}", "[0-9]{2}[A-Z][0-9]{2}", "[A-Z][0-9]{3}", "[A-Z]")
CURP = _groups("[A-Z]{4}", "[0-9]{6}", "[HM][A-Z]{5}", "[0-9A-Z][0-9]")

DOCUMENTS = (
    Document(r"tfn|tax file(?: number| no)?", _digits(9), "au.tfn"),
    Document(r"tfn|tax file(?: number| no)?", _digits(8), "au.tfn"),
    Document(r"sv-?n(?:umme)?r|sozialversicherungsnummer|svnr", _digits(10), "at.vnr"),
    Document(
        r"rijksregister(?:nummer|nr)|insz|niss|num[ée]ro national|registre national|national register number",
        _digits(11),
        "be.nn",
    ),
    Document(r"егн|egn", _digits(10), "bg.egn"),
    Document(r"cpf", _digits(11), "br.cpf"),
    Document(
        r"(?-i:SIN|NAS)|sin (?:number|no)|social insurance (?:number|no)|num[ée]ro d['’]assurance sociale",
        _digits(9),
        "ca.sin",
    ),
    Document(r"ahv(?:-?n(?:umme)?r)?|(?-i:AVS)|oasi|sozialversicherungsnummer", _digits(13), "ch.ssn"),
    Document(r"ru[tn]", _groups("[1-4]?[0-9]", "[0-9]{3}", "[0-9]{3}", "[0-9K]"), "cl.rut"),
    Document(
        r"身份证(?:号码|号)?|公民身份号码|(?:chinese|resident) id(?:entity)?(?: card)?(?: number| no)?",
        _groups("[0-9]{6}", "[0-9]{8}", "[0-9]{3}[0-9X]"),
        "cn.ric",
    ),
    Document(r"c[ée]dula(?: de ciudadan[íi]a)?|(?-i:C\.C\.)", r"[0-9]{1,2}(?:\.[0-9]{3}){2,3}"),
    Document(r"c[ée]dula(?: de identidad)?", _digits(11), "do.cedula"),
    Document(r"c[ée]dula(?: de identidad)?", _digits(10), "ec.ci"),
    Document(r"rodn[ée] [čc][íi]slo|(?-i:RČ)|r\. ?č\.", _groups("[0-9]{6}", "[0-9]{3,4}"), "cz.rc"),
    Document(
        r"steuer-?id(?:entifikationsnummer|nr)?|steuerliche identifikationsnummer|idnr|steueridentnummer|tax id",
        _digits(11),
        "de.idnr",
    ),
    Document(r"cpr(?:-?(?:nummer|nr|number))?|personnummer", r"[0-9]{6}[- ]?[0-9]{4}", "dk.cpr"),
    Document(r"isikukood|personal identification code", _digits(11), "ee.ik"),
    Document(r"الرقم القومي|egyptian national id(?: number| no)?", _digits(14), "eg.tn"),
    Document(r"dni|nif|d\.n\.i\.|n\.i\.f\.", _groups("[0-9]{2}", "[0-9]{3}", "[0-9]{3}", "[A-Z]"), "es.dni"),
    Document(
        r"nie|nif|dni|n\.i\.[ef]\.|d\.n\.i\.",
        _groups("[XYZ]", "[0-9]", "[0-9]{3}", "[0-9]{3}", "[A-Z]"),
        "es.nie",
    ),
    Document(r"dni|d\.n\.i\.", r"[0-9]{2}\.[0-9]{3}\.[0-9]{3}"),  # Argentina
    Document(r"cui[tl]", _groups("2[0347]", "[0-9]{8}", "[0-9]"), "ar.cuit"),
    Document(
        r"nir|num[ée]ro de s[ée]cu(?:rit[ée] sociale)?|s[ée]curit[ée] sociale|n° ?s[ée]cu",
        _groups("[12]", "[0-9]{2}", "[0-9]{2}", "[0-9][0-9AB]", "[0-9]{3}", "[0-9]{3}", "[0-9]{2}"),
        "fr.nir",
    ),
    Document(r"nhs(?: ?(?:number|no|num|nr))?", _digits(10), "gb.nhs"),
    Document(
        r"national insurance(?: number| no)?|ni (?:number|no)|(?-i:NI|N\.I\.)|nino",
        _groups("[A-CEGHJ-PR-TW-Z]", "[A-CEGHJ-NPR-TW-Z]", _digits(6), "[A-D]"),
    ),
    Document(r"αμκα|amka", _digits(11), "gr.amka"),
    Document(r"oib", _digits(11), "hr.oib"),
    Document(r"nik|no(?:mor|\.)? ktp", _digits(16), "id.nik"),
    Document(r"pps(?:n| number| no)?", _groups(_digits(7), "[A-W][A-IW]?"), "ie.pps"),
    Document(r"תעודת זהות|ת\.ז\.?|teudat zehut|israeli id(?: number| no)?", _digits(9), "il.idnr"),
    Document(r"aa?dh?aar(?: card)?(?: number| no)?|uidai|आधार", _digits(12), "in_.aadhaar"),
    Document(
        r"(?-i:PAN)|pan (?:card|number|no)|permanent account number",
        _groups("[A-Z]{5}", "[0-9]{4}", "[A-Z]"),
        "in_.pan",
    ),
    Document(r"kennitala", _digits(10), "is_.kennitala"),
    Document(r"codice fiscale|cod\. ?fisc|(?-i:CF|C\.F\.)", CODICE_FISCALE, "it.codicefiscale"),
    Document(r"주민(?:등록)?번호|rrn|resident registration number", _groups("[0-9]{6}", "[1-8][0-9]{6}"), "kr.rrn"),
    Document(r"asmens koda\w*", _digits(11), "lt.asmens"),
    Document(r"curp", CURP, "mx.curp"),
    Document(r"nric|mykad|(?:no\.? )?kad pengenalan|my ?kad", _groups("[0-9]{6}", "[0-9]{2}", "[0-9]{4}"), "my.nric"),
    Document(r"bsn|burgerservicenummer|sofi-?nummer", _digits(9), "nl.bsn"),
    Document(r"f[øo]dselsn(?:umme|ummer)?r|personnummer", r"[0-9]{6}[ -]?[0-9]{5}", "no.fodselsnummer"),
    Document(r"ird(?: number| no)?", _groups("[0-9]{2,3}", "[0-9]{3}", "[0-9]{3}"), "nz.ird"),
    Document(r"cnic|شناختی کارڈ", _groups("[0-9]{5}", "[0-9]{7}", "[0-9]"), "pk.cnic"),
    Document(r"pesel", _digits(11), "pl.pesel"),
    Document(r"nif|contribuinte", _groups("[123][0-9]{2}", "[0-9]{3}", "[0-9]{3}"), "pt.nif"),
    Document(r"cnp|cod numeric personal", _digits(13), "ro.cnp"),
    Document(r"emšo|emso", _digits(13), "si.emso"),
    Document(r"rodn[ée] [čc][íi]slo", _groups("[0-9]{6}", "[0-9]{3,4}"), "sk.rc"),
    Document(r"person(?:nummer|nr)|personal identity number", r"(?:19|20)?[0-9]{6}[-+ ]?[0-9]{4}", "se.personnummer"),
    Document(r"henkil[öo]tunnus|hetu|sotu", r"[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-Y]", "fi.hetu"),
    Document(r"เลข(?:ประจำตัว|บัตร)ประชาชน|thai (?:national )?id(?: number| no)?", _digits(13), "th.pin"),
    Document(
        r"t\.?c\.? ?kimlik(?: n(?:o|umaras[ıi]))?|kimlik n(?:o|umaras[ıi])|tckn|tc ?no", _digits(11), "tr.tckimlik"
    ),
    Document(r"рнокпп|іпн|rnokpp", _digits(10), "ua.rntrc"),
    Document(
        r"itin|individual taxpayer(?: identification)?(?: number)?",
        _groups("9[0-9]{2}", "[0-9]{2}", "[0-9]{4}"),
        "us.itin",
    ),
    Document(r"(?:south african |sa |rsa )?id(?:entity)? (?:number|no)", _digits(13), "za.idnr"),
)

# Forms that nothing else has, check digits counted in: found without a word in front.
DISTINCTIVE = (
    Document("", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", "br.cpf"),
    Document("", r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}", "ch.ssn"),
    Document("", r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", "be.nn"),
    Document("", r"[12] [0-9]{2} [0-9]{2} [0-9][0-9AB] [0-9]{3} [0-9]{3} [0-9]{2}", "fr.nir"),
    Document("", r"[0-9]{6}[-+A][0-9]{3}[A-FHJ-NPR-Y]", "fi.hetu"),
    Document("", r"[0-9]{6}-[1-4][0-9]{6}", "kr.rrn"),
    Document("", CODICE_FISCALE, "it.codicefiscale"),
    Document("", CURP, "mx.curp"),
)


class Known(NamedTuple):
    """A document that is ready to be looked for."""

    shape: re.Pattern[str]
    valid: Callable[[str], bool]
    score: float


def _validator(module: str) -> Callable[[str], bool]:
    if not module:
        return lambda _: True
    is_valid: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    if module == "fi.hetu":  # the mark in its middle is the century
        return lambda number: is_valid(number.upper())
    return lambda number: is_valid(re.sub(r"[^0-9A-Za-z]", "", number).upper())


@cache
def _known(document: Document) -> Known:
    shape = re.compile(rf"(?:{document.shape})(?![0-9A-Za-z]|[.,/-][0-9])", re.IGNORECASE)
    return Known(shape, _validator(document.module), CHECKED if document.module else SHAPED)


def _national_ids(text: str) -> Iterator[Hit]:
    for match in DISTINCTIVE_SHAPE.finditer(text) if DISTINCTIVE_DIGITS.search(text) else ():
        if DISTINCTIVE_VALID[match.lastgroup or ""](match[0]):
            yield Hit(*match.span(), CHECKED)
    for start, name, _ in _named_numbers(text, NAMES, may_name):
        for shape, valid, score in _documents_of(name):
            found = shape.match(text, start)
            if found and valid(found[0]):
                yield Hit(*found.span(), score)
                break


def _named_numbers(
    text: str, names: re.Pattern[str], may_name: Callable[[str], bool]
) -> Iterator[tuple[int, str, str]]:
    """Yield where a number may begin, a word before it that names it, and what stands between the two."""
    for match in NUMBER.finditer(text):
        digit = match.start()
        # Numbers close to the one before have no name between: rows of numbers are gone through quickly.
        alone = digit < 3 or END_OF_NUMBER.search(text, digit - 3, digit) is None
        words = lead(text, digit) if alone else ""
        for name in names.finditer(words) if len(words) > 1 and may_name(words) else ():
            between = words[name.end() :]
            for begin in reversed([*BEGINNING.finditer(between)]):
                said = between[: begin.start()]
                if len(said) <= FAR and not OTHER_NUMBER.search(said):
                    yield digit - len(between) + len(said), name[0], said


@lru_cache(maxsize=512)
def _documents_of(word: str) -> tuple[Known, ...]:
    """Return what a word may name: a DNI is a Spanish number and an Argentine one. Case counts: `PAN` is no pan."""
    return tuple(_known(document) for document in DOCUMENTS if re.fullmatch(document.cue, word, re.IGNORECASE))


# Five signs at least; the look behind comes second so that the engine can leap from digit to digit.
NUMBER = re.compile(r"[0-9](?<![0-9]{2})(?=(?:[ ./-]?[0-9A-Za-z]){4})")
# Its first digit, or up to two groups of letters before that: `AB 12 34 56 C`; not `b1` of `ab1`.
BEGINNING = re.compile(r"(?<![0-9A-Za-z])(?=(?:[A-Za-z]{1,6}[ ./-]?){0,2}\Z)")
NAMES = re.compile(
    rf"(?<![A-Za-zÀ-ɏ])(?:{'|'.join(dict.fromkeys(document.cue for document in DOCUMENTS))})(?![A-Za-zÀ-ɏ])",
    re.IGNORECASE,
)
may_name = hint_of(NAMES)
DISTINCTIVE_SHAPE = re.compile(
    rf"(?<![\w.-])(?:{'|'.join(f'(?P<n{row}>{document.shape})' for row, document in enumerate(DISTINCTIVE))})(?![\w-])"
)
# What each of them has in it; the engine leaps from digit to digit.
DISTINCTIVE_DIGITS = re.compile(r"[0-9]{2}(?:[. A-Z][0-9]{2}|[0-9]{4})")
DISTINCTIVE_VALID = {f"n{row}": _validator(document.module) for row, document in enumerate(DISTINCTIVE)}
OTHER_NUMBER = re.compile(
    r"(?:order|invoice|ticket|tracking|serial|reference|ref|case|flight|model|part|sku|receipt|version|bestell|rechnung"
    r"|commande|facture|pedido|factura)\w*[^,;\n]{0,12}\Z",
    re.IGNORECASE,
)


def _passports(text: str) -> Iterator[Hit]:
    for start, _, said in _named_numbers(text, PASSPORT, may_be_passport) if may_be_passport(text) else ():
        match = PASSPORT_NUMBER.match(text, start)
        # Digits alone or apart from letters could be anything, so the word must stand right before them.
        if match and ((match[0].isalnum() and not match[0].isdigit()) or PASSPORT_SAYS.fullmatch(said)):
            yield Hit(*match.span(), SHAPED)
    if "<" in text:
        yield from _machine_readable(text)


PASSPORT = re.compile(
    r"(?:pass?(?:e|a)?ports?|reisep(?:ass|äss)\w*|pasaportes?|passaport[oei]|paspoort\w*|pas(?:s)nummer|paszport\w*"
    r"|паспорт\w*|pasaport\w*|travel doc(?:ument)?s?|护照|護照|旅券|パスポート|여권|جواز (?:ال)?سفر)",
    re.IGNORECASE,
)
may_be_passport = hint_of(PASSPORT)
PASSPORT_SAYS = re.compile(
    r"[\s\W_]{0,4}(?:number|no|nr|num|n|nummer|numéro|número|numero|号码|号|號碼|番号|번호)?[\s\W_]{0,4}"
    r"(?:is|ist|est|es|é|è|:)?[\s\W_]{0,3}",
    re.IGNORECASE,
)
PASSPORT_NUMBER = re.compile(
    r"(?:(?=[A-Z]*[0-9][A-Z]*[0-9][A-Z]*[0-9])(?!(?:19|20)[0-9]{6}(?![0-9A-Z]))[A-Z0-9]{7,9}"
    r"|[A-Z]{1,2}[ -](?!(?:19|20)[0-9]{6})[0-9]{6,8}|[0-9]{2} [A-Z]{2} [0-9]{5})(?![0-9A-Za-z]|[.,/-][0-9])"
)
_machine_readable = by_pattern(
    r"(?<![A-Z0-9<])(?:P[A-Z<][A-Z]{3}[A-Z]{1,30}(?:<[A-Z]{1,30}){0,4}<<[A-Z<]{5,38}"
    r"|[A-Z0-9<]{9}[0-9][A-Z<]{3}[0-9]{7}[MFX<][0-9]{7}[A-Z0-9<]{14}[0-9<]{2})(?![A-Z0-9<])",
    score=0.95,
)


def _birth_dates(text: str) -> Iterator[Hit]:
    for shape in (NUMBERED_DATE, NAMED_DATE):
        for match in shape.finditer(text):
            if _is_birth(lead(text, match.start()), text, match) and _is_day(match[0]):
                yield Hit(*match.span(), SHAPED)


def _is_birth(words: str, text: str, match: re.Match[str]) -> bool:
    if BORN_AFTER.match(text, match.end()):
        return True
    return len(words) > 2 and bool(BORN.search(words) or BIRTH_DATE.search(words))


def _is_day(date: str) -> bool:
    """Whether somebody who lives can be born on it, as far as its numbers tell."""
    numbers = [int(number) for number in re.findall(r"[0-9]+", date)]
    year = numbers.pop(0 if numbers[0] > 999 else -1)
    lived = year < 100 or OLDEST <= year <= datetime.date.today().year
    return lived and all(1 <= number <= 31 for number in numbers) and min(numbers) <= 12 + 19 * (len(numbers) == 1)


OLDEST = 1905  # earlier dates of birth stand in books, and are of the dead
MONTHS = (
    r"(?:jan|feb|fév|fev|mar|mär|mrt|maa|apr|avr|abr|ma[iyjï]|mag|jun|juin|jui|giu|jul|lug|aug|ago|août|aoû|sep|set"
    r"|oct|okt|out|ott|nov|dec|dez|déc|dic|ene|gen|янв|фев|мар|апр|ма|июн|июл|авг|сен|окт|ноя|дек|sty|lut|kwi|cze|lip"
    r"|sie|wrz|paź|lis|gru)"
)
YEAR = r"(?:19|20)[0-9]{2}"
NUMBERED_DATE = re.compile(
    r"[0-9](?<![0-9]{2})(?<![0-9][./-][0-9])(?:"
    rf"(?<=[12])(?:9|0)[0-9]{{2}}([./-])[0-9]{{1,2}}\1[0-9]{{1,2}}"
    rf"|(?<=[12])(?:9|0)[0-9]{{2}} ?[年년] ?[0-9]{{1,2}} ?[月월] ?[0-9]{{1,2}} ?[日일]"
    rf"|[0-9]?([./-]) ?[0-9]{{1,2}}\2 ?(?:{YEAR}|[0-9]{{2}})"
    rf"|[0-9]?(?:st|nd|rd|th|er|\.|º)?[ -](?:de |of )?{MONTHS}[^\W\d_]{{0,8}}\.?,?[ -](?:de |del |of )?{YEAR}"
    r")(?![0-9A-Za-z]|[./-][0-9])",
    re.IGNORECASE,
)
NAMED_DATE = re.compile(
    rf"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)(?<![A-Za-z]...)[a-z]{{0,6}}\.? "
    rf"[0-9]{{1,2}}(?:st|nd|rd|th)?,? {YEAR}(?![0-9A-Za-z]|[./-][0-9])"
)
# Verbs leave room for a place ("born in Lyon on"); a birthday's day of this year is nobody's date of birth.
BORN = re.compile(
    r"(?<![^\W_])(?:born|geboren|geb\.|né\(?e?\)?|nacid[oa]|nac\.|nascid[oa]|nat[oa]|født|född|fødd|syntynyt|urodzon[ya]|ur\."
    r"|родил(?:ся|ась)|род\.)(?![^\W_])[^\d\n,;]{0,24}\Z"
    r"|(?:生于|生於|出生于|وُلد|ولد|وُلدت|ولدت)[^\d\n,;]{0,12}\Z",
    re.IGNORECASE,
)
BIRTH_DATE = re.compile(
    r"(?:(?<![^\W_])(?:dob|d\.o\.b\.?|birth[ _-]?(?:date|day)?|date[ _]of[ _]birth|born[ _]on"
    r"|geburts(?:datum|tag)|geb-?datum"
    r"|(?:date|lieu et date) de naissance|fecha de nac(?:imiento|\.)|data de nasc(?:imento|\.)|data di nascita"
    r"|geboortedatum|fødselsdato|fødselsdag|födelsedatum|syntymäaika|data urodzenia|дата рождения|дата народження"
    r"|doğum tarihi)|出生日期|出生年月日|生年月日|生日|생년월일|تاريخ الميلاد|जन्म ?तिथि)(?![^\W_])"
    r"[\s\W_]{0,8}(?:is|was|ist|war|est|es|é|è|on|am)?[\s\W_]{0,4}\Z",
    re.IGNORECASE,
)
BORN_AFTER = re.compile(r" (?:geboren|geboortedag|Geburtstag|geb\.)(?![^\W_])| ?(?:出生|生まれ|출생|생(?![^\W_]))")

IDENTITY = (
    Format("pii.national_id", "national identity or tax number", _national_ids),
    Format("pii.passport", "passport number", _passports),
    Format("pii.birth_date", "date of birth", _birth_dates),
)
