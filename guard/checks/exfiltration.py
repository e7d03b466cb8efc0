"""Finds addresses that carry data away: images that load by themselves and links that wait for a click.

It reads what a model says and what a tool returned, where an injected instruction gets its way out; what a user writes
is the user's own. It knows addresses, and asks nobody who owns a host; it does not know data spread over many
addresses, a letter each, nor text in a cipher of its own.

An image is whatever loads without a click: `![](…)`, its reference, `<img src>`, `srcset`, `poster`, CSS `url(…)`. A
finding's span is the address, all that a browser reads as one and nothing else, so that any other can take its place.

Scores say how sure the address alone makes it, for an image:
    0.99  base64, base32 or hex that reads as text; the words of the prompt
    0.9   a sentence; a placeholder or a field for the conversation, a password or a cookie; base64 of JSON; eight
          characters or more that nobody sees
    0.6   an e-mail address; 256 characters or more of no known meaning
    0.3   65 characters or more of no known meaning, as signed addresses have; anything that a known service draws
A link needs a click and is often meant to carry things, so what it carries scores one grade less: 0.9, 0.6, 0.3, 0.1.

What an address is scores the same in both:
    0.99  a script (`javascript:`)
    0.9   a document in itself (`data:text/html`); a user name that looks like a host; a host in mixed scripts or in
          lookalike letters; an IP address in disguise
    0.6   a password before the host; an image from an IP address
    0.3   a link to an IP address
Ordinary addresses are no finding: hashes and ids up to 64 characters, `utm_…`, searches, badges, embedded pictures,
names in one script, private IP addresses. An address that the prompt holds too brings nothing out that was not there.

Where addresses are and how they read, `addresses` says. They are also read without the characters that nobody sees,
with other forms of ASCII's characters as those, and with the entities of HTML undone, as a page within a page has them.
"""

import re
from array import array
from base64 import b32decode, b64decode
from binascii import Error as NotEncoded
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import ip_address
from typing import NamedTuple
from unicodedata import name, normalize
from urllib.parse import SplitResult, quote, unquote, unquote_plus, urlsplit

from ringfence.guard.check import Findable, Finding, Passage, Span
from ringfence.guard.checks.addresses import SLASHES, SPACE, addresses
from ringfence.guard.checks.disguise import in_disguise
from ringfence.guard.normalise.carriers import all_entities
from ringfence.guard.normalise.readings import spellings
from ringfence.guard.normalise.variant import Variant, edited
from ringfence.policies.types import Stage
from ringfence.policies.words import Voice

SURE, LIKELY, ODD, GUESS, FAINT = 0.99, 0.9, 0.6, 0.3, 0.1
LESS = {SURE: LIKELY, LIKELY: ODD, ODD: GUESS, GUESS: FAINT}

TOOLS: tuple[Voice, ...] = ("tool", "function")

UNSEEN = re.compile(
    "[\u00ad\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)
BYTE = 8
"""Characters that nobody sees from which on they may say something: a letter takes as many bits."""

PLAIN = re.compile(r"[\t\n\r -~]*")
SEEN = {"invisible", "lookalike"}
"""What `spellings` calls the readings that change characters and decode nothing."""

SCRIPTS = ("javascript:", "vbscript:", "livescript:")
NO_SCRIPT = re.compile(r"javascript:\s*+(?:void\s*+\(?\s*+0?\s*+\)?|//|#|undefined|false)?+\s*+;?\s*+", re.IGNORECASE)
LOGIN = re.compile(r"(?<=//)[^/]*@")
LOGIN_SIGNS = "%:@!$&'()*+,;="
LONGEST_LABEL = 63

# Services that draw what the address says, and searches: their addresses carry text, and nobody else reads it there.
_GOOGLE = r"(?:(?:www|m|maps|scholar|translate)\.)?google\.(?:com|[a-z]{2}|co\.[a-z]{2}|com\.[a-z]{2})"
DRAWN_BY = re.compile(
    r"(?:img\.shields\.io|badgen\.net|badge\.fury\.io|latex\.codecogs\.com|(?:via\.)?placeholder\.com|placehold\.co"
    r"|dummyimage\.com|quickchart\.io|chart\.googleapis\.com/chart|api\.qrserver\.com|image\.pollinations\.ai"
    r"|mermaid\.ink|kroki\.io|www\.plantuml\.com|maps\.googleapis\.com/maps/api/staticmap|ui-avatars\.com)(?:/|$)"
)
SEARCHED_BY = re.compile(
    rf"(?:{_GOOGLE}/(?:search|maps|scholar|$)|(?:www\.)?bing\.com/(?:search|images|maps)|duckduckgo\.com/"
    r"|(?:www\.)?youtube\.com/results|[a-z-]+\.(?:m\.)?wikipedia\.org/|github\.com/(?:search|[^/]+/[^/]+/issues)"
    r"|stackoverflow\.com/search|(?:www\.)?amazon\.[a-z.]{2,6}/s|(?:twitter|x)\.com/(?:intent|share|search)"
    r"|search\.[a-z]+\.com/|wa\.me/|t\.me/share|(?:www\.)?(?:facebook|linkedin|reddit)\.com/)"
)

# What an instruction calls what it wants: `?q={conversation}`, `?history=…`.
_WANTED = (
    r"conversations?|chats?|chat_?history|history|prompts?|system_?prompt|secrets?|passwords?|passwd|pwd|cookies?"
    r"|credentials?|creds|ssn|stolen|leak(?:ed)?|exfil\w*|user_?(?:data|info|input|secrets?)|private_?(?:data|key)"
    r"|transcript|memor(?:y|ies)|context"
)
WANTED = re.compile(rf"(?:{_WANTED})", re.IGNORECASE)
# What `placeholders.numbered` gives a model to read: put into an address, it is an original on its way out.
# In JSON it is one in any number of backslashes too, or with signs as `\u005b` that nobody need write so in an address.
GIVEN = re.compile(r"\[(?:\\*+[A-Z0-9_])+?\\*+_\d+\\*+\]|\\u00(?:3[0-9]|[4-7][0-9A-Fa-f])")
PLACEHOLDER = re.compile(
    r"\{\{?[^{}]{1,80}\}|\$\{?[A-Za-z_]{3,40}|<[^<>]{1,80}>|\[[A-Za-z _]{3,80}\]|%[A-Za-z_]{3,40}%"
    r"|(?<![A-Z_-])(?:INSERT|BASE64|ENCODED|YOUR|DATA|REPLACE)(?:[_-][A-Z0-9]{1,30}){1,6}(?![a-z])"
)
ANYTHING_SAID = re.compile(
    rf"(?<![a-z])(?:{_WANTED}|data|base_?64|encoded?|messages?|summary|answers?|e-?mails?|tokens?|everything"
    r"|user_?name|text|above|previous|documents?|content)(?![a-z])",
    re.IGNORECASE,
)
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}\.[A-Za-z0-9.-]{2,64}")
SHORTEST = 20
ENCODED = re.compile(rf"[A-Za-z0-9+/_-]{{{SHORTEST},}}={{0,2}}")
OPAQUE = re.compile(r"[A-Za-z0-9+/_.~=-]{65,}")
DIGEST = re.compile(r"[0-9a-fA-F]{1,128}")
WEB_TOKEN = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*")
WORD = re.compile(r"[^\W\d_]{2,}")
BETWEEN = re.compile(r"[\W_]+")
FILE = re.compile(r"\.[A-Za-z0-9]{2,5}\Z")
CYRILLIC_LIKE_LATIN = frozenset("асԁеһіјӏорԛѕԝхуѵ")
LOOKALIKE_SCRIPTS = {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"}
DISGUISED_IP = re.compile(r"(?:0x[0-9a-f]+|[0-9]+)(?:\.(?:0x[0-9a-f]+|[0-9]+)){0,3}")
EXAMPLE_LOGIN = re.compile(
    r"(?:(?:your_?)?(?:db_?)?(?:user|username|name|login))?:(?:(?:your_?)?(?:db_?)?(?:pass|password|pw))?"
)


class Reason(NamedTuple):
    """What speaks against an address, and how much."""

    score: float
    what: str


NONE = Reason(0.0, "")


class ExfiltrationCheck:
    """Reports `exfiltration.image` and `exfiltration.link` in what a model says and in what a tool returned."""

    name = "exfiltration"
    categories = frozenset({"exfiltration"})
    finds = tuple(
        found
        for name in ("exfiltration.image", "exfiltration.link")
        for found in (Findable(name, SURE, (Stage.INPUT,), TOOLS), Findable(name, SURE, (Stage.OUTPUT,)))
    )

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return every address of the passage that something speaks against. Time is linear in its length."""
        if passage.stage is Stage.INPUT and passage.role not in TOOLS:
            return ()
        prompt = Prompt(passage.prompt)
        found = list(self._read(passage, passage.text, prompt))
        for reading in others(passage.text):
            found += (in_disguise(finding, reading) for finding in self._read(passage, reading.text, prompt))
        return _apart(found)

    def _read(self, passage: Passage, text: str, prompt: "Prompt") -> Iterator[Finding]:
        for start, end, image, address in addresses(text):
            score, what = judged(text[start:end], address, image, prompt)
            if score:
                category = "exfiltration.image" if image else "exfiltration.link"
                yield Finding(self.name, category, score, (Span(passage.part, start, end),), what)


def others(text: str) -> list[Variant]:
    """Return the readings of a text without what is not seen and with its letters in ASCII, and with no entities.

    A browser sends such characters along, and whoever gets them takes them out; entities it reads before it reads a
    style or a page within a page. What else is encoded it does not decode.
    """
    readings = [] if PLAIN.fullmatch(text) else spellings(text)
    found = [reading for reading in readings if SEEN.issuperset(reading.kind.split("+"))]
    if edits := all_entities(text):
        found.append(edited(Variant("", text, array("I"), array("I")), "entities", edits))
    return found


def _apart(found: Iterable[Finding]) -> list[Finding]:
    """Make one of findings that overlap, in order: the surest, over all that any of them covers."""
    apart: list[Finding] = []
    for finding in sorted(found, key=lambda one: one.spans[0].start):
        (span,) = finding.spans
        if apart and span.start < (last := apart[-1].spans[0]).end:
            surest = max(apart[-1], finding, key=lambda one: one.score)
            apart[-1] = replace(surest, spans=(replace(last, end=max(last.end, span.end)),))
        else:
            apart.append(finding)
    return apart


@dataclass(frozen=True)
class Prompt:
    """What the user said, read at the first address that needs it."""

    text: str

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words in lower case."""
        return frozenset(BETWEEN.split(self.text.lower()))

    @cached_property
    def addresses(self) -> frozenset[str]:
        """The addresses in it, and as they are in plain letters."""
        texts = (self.text, *(reading.text for reading in others(self.text)))
        return frozenset(text[found.start : found.end] for text in texts for found in addresses(text))


def judged(written: str, address: str, image: bool, prompt: Prompt) -> Reason:
    """Return the strongest of what speaks against an address; a score of 0 where nothing does.

    Args:
        written: the address as it stands in the text.
        address: as a browser reads it.
        image: whether it loads by itself.
    """
    scheme = address[:40].lower()
    if scheme.startswith(SCRIPTS):
        return NONE if NO_SCRIPT.fullmatch(address) else Reason(SURE, "a script in place of an address")
    if scheme.startswith("data:"):
        return _embedded(scheme, image)
    try:
        head, *query = re.split(r"(?=[?#])", address, maxsplit=1)
        head = SLASHES.sub(lambda match: f"{match[1] or ''}//", head, count=1).replace("\\", "/")
        head = LOGIN.sub(lambda match: quote(match[0], LOGIN_SIGNS), head, count=1)
        parts = urlsplit("".join([head, *query]))
        host = normalize("NFKC", unquote(parts.hostname or "")).replace("\u3002", ".").rstrip(".")
    except ValueError:
        return NONE  # no browser goes there either
    if SPACE.search(host) and not PLACEHOLDER.search(host):
        return NONE  # nor there: `content = "// what a comment says"`
    reasons = [_host(host, image), _login(parts, host)]
    if written not in prompt.addresses:
        reasons += _carried(parts, host, image, prompt)
        if len(UNSEEN.findall(address)) >= BYTE:
            reasons.append(Reason(LIKELY if image else ODD, "characters that nobody sees"))
    return max(reasons, key=lambda reason: reason.score)


def _embedded(scheme: str, image: bool) -> Reason:
    if scheme.startswith("data:image/"):
        svg_link = scheme.startswith("data:image/svg") and not image
        return Reason(ODD, "a drawing that can hold a script, as a link") if svg_link else NONE
    if image and scheme.startswith(("data:font/", "data:audio/", "data:video/")):
        return NONE
    active = re.match(r"data:(?:text/html|text/xml|application/xhtml|application/xml|text/javascript)", scheme)
    return (
        Reason(LIKELY, "a document in place of an address") if active else Reason(GUESS, "data in place of an address")
    )


def _host(host: str, image: bool) -> Reason:
    try:
        address = ip_address(host)
    except ValueError:
        if DISGUISED_IP.fullmatch(host):
            return Reason(LIKELY, "an IP address in disguise")
        return max((_label_of_host(label) for label in host.split(".")), key=lambda reason: reason.score)
    if not address.is_global:
        return NONE
    return Reason(ODD if image else GUESS, "an IP address in place of a host name")


def _label_of_host(label: str) -> Reason:
    if label.startswith("xn--"):
        if len(label) > LONGEST_LABEL:  # reading it takes the square of its length
            return Reason(ODD, "a host name that cannot be read")
        try:
            label = label[4:].encode("ascii").decode("punycode")
        except (UnicodeError, ValueError, OverflowError):
            return Reason(ODD, "a host name that cannot be read")
    if label.isascii():
        return NONE
    scripts = {name(c, "").split(" ")[0] for c in label if c.isalpha()}
    if "LATIN" in scripts and scripts & (LOOKALIKE_SCRIPTS - {"LATIN"}):
        return Reason(LIKELY, "a host name in mixed scripts")
    if set(label) - set("0123456789-") <= CYRILLIC_LIKE_LATIN:
        return Reason(LIKELY, "a host name in letters that look like others")
    return NONE


def _login(parts: SplitResult, host: str) -> Reason:
    login, at, _ = parts.netloc.rpartition("@")
    if not at:
        return NONE
    user, _, password = unquote_plus(login).partition(":")
    if re.search(r"\w\.[A-Za-z]{2,}", user):
        return Reason(LIKELY, "a user name that looks like a host")
    local = host in ("localhost", "127.0.0.1") or EXAMPLE_LOGIN.fullmatch(re.sub(r"[^\w:]", "", unquote(login).lower()))
    return Reason(ODD, "a password in an address") if password and not local else NONE


def _carried(parts: SplitResult, host: str, image: bool, prompt: Prompt) -> Iterator[Reason]:
    """Yield what an address carries, as a link or as an image."""
    place = f"{host}{parts.path[:200]}"
    known = DRAWN_BY.match(place) if image else SEARCHED_BY.match(place) or DRAWN_BY.match(place)

    def graded(reason: Reason) -> Reason:
        if reason.score and known:
            return Reason(GUESS if image else FAINT, reason.what)
        return reason if image else reason._replace(score=LESS.get(reason.score, 0.0))

    fields, steps = list(_fields(parts.query)), parts.path.split("/")
    for field, value in fields:
        # A campaign's name is words with hyphens between; anywhere else in a query that is a way to write a sentence.
        yield graded(_value(value, image, prompt, slugs=field.startswith("utm_")))
        if len(value) >= 6 and WANTED.fullmatch(field):
            yield graded(Reason(LIKELY, "a field for what was said"))
    for step in (*steps, *host.replace("+", " ").split(".")):
        yield graded(_value(unquote(step), image, prompt, slugs=True))
    # Short pieces, which say nothing each by itself, are read as one.
    for pieces in ([value for field, value in fields if field], steps):
        yield graded(_encoded("".join(piece for piece in pieces if len(piece) < SHORTEST)))
    login = unquote_plus(parts.netloc.rpartition("@")[0])
    if not PLACEHOLDER.search(login):
        yield graded(_value(login, image, prompt, slugs=True))


def _fields(query: str) -> Iterator[tuple[str, str]]:
    """Yield the fields of a query and their values; a name says something too."""
    for pair in re.split("[&;]", query):
        field, equals, value = map(unquote_plus, pair.partition("="))
        yield "", field
        if equals:
            yield field, value


def _value(value: str, image: bool, prompt: Prompt, slugs: bool) -> Reason:
    """Judge one field of the query, or one step of the path or host, as an image's.

    Args:
        slugs: whether words joined by hyphens are ordinary there.
    """
    value = unquote(value)  # some encode twice
    if len(value) < 6:
        return NONE
    if GIVEN.search(value):
        return Reason(LIKELY, "a placeholder for what the caller said")
    if placeholder := PLACEHOLDER.search(value):
        if ANYTHING_SAID.search(placeholder[0]):
            return Reason(LIKELY, "a placeholder for what was said")
        return Reason(GUESS, "a placeholder") if image else NONE
    token = WEB_TOKEN.fullmatch(value)
    if not token and (encoded := _encoded(value)).score:
        return encoded
    if EMAIL.search(value):
        return Reason(ODD, "an e-mail address")
    words = [word for word in BETWEEN.split(value.lower()) if len(word) > 1 and word.isalpha()]
    spaced = " " in value.strip() or (image and not slugs)
    file = slugs and bool(FILE.search(value))
    said = sum(word in prompt.words for word in words) if len(words) >= 4 else 0
    if spaced and not file and said >= max(4 if image else 8, 0.8 * len(words)):
        return Reason(SURE, "words of the prompt")
    if spaced and len(words) >= (6 if image and not file else 12):
        return Reason(LIKELY, "a sentence")
    if OPAQUE.fullmatch(value) and any(map(str.isdigit, value)) and any(map(str.isalpha, value)):
        if DIGEST.fullmatch(value):
            return NONE
        long = len(value) >= 256 and not token
        return Reason(ODD if long else GUESS, "many characters of no known meaning")
    return NONE


def _encoded(value: str) -> Reason:
    runs = ENCODED.finditer(value.replace(" ", "+"))
    read = next(filter(None, (_decoded(run[0].rstrip("=")) for run in runs)), "")
    if not read:
        return NONE
    return Reason(LIKELY, "encoded JSON") if read[0] in "{[" else Reason(SURE, "encoded text")


def _decoded(bare: str) -> str:
    """Return the text that some characters are an encoding of; empty where they are none."""
    for decode in (_from_hex, _from_base32, _from_base64):
        try:
            read = decode(bare)
        except (ValueError, NotEncoded):
            continue
        if len(read) >= 10 and (text := _readable(read)):
            return text
    return ""


def _from_hex(value: str) -> bytes:
    return bytes.fromhex(value)


def _from_base32(value: str) -> bytes:
    return b32decode(value.upper() + "=" * (-len(value) % 8))


def _from_base64(value: str) -> bytes:
    value = value.replace("-", "+").replace("_", "/")
    # A cut-off value has a character too many; what stands before it can be read.
    return b64decode(value[: len(value) - (len(value) % 4 == 1)] + "=" * (-len(value) % 4), validate=True)


def _readable(read: bytes) -> str:
    """Return bytes as text where they are UTF-8, or for the most part ASCII, and are made of words."""
    try:
        text = read.decode()
    except UnicodeDecodeError:
        text = read.decode("ascii", "replace")
    printable = sum((c.isprintable() and c != "\ufffd") or c in "\n\t\r" for c in text)
    wordy = sum(map(len, WORD.findall(text)))
    return text if printable >= 0.9 * len(text) and wordy >= 0.4 * len(text) else ""
