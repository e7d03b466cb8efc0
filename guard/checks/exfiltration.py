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

An address is read as what it stands in is (escapes of Markdown, HTML and CSS), and then as a browser does: without
breaks and tabs wherever they stand, and with a backslash for a slash.

Addresses are also read without the characters that nobody sees, and with other forms of ASCII's characters as those.
"""

import re
import sys
from base64 import b32decode, b64decode
from binascii import Error as NotEncoded
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import unescape
from ipaddress import ip_address
from typing import NamedTuple
from unicodedata import name, normalize
from urllib.parse import SplitResult, unquote, unquote_plus, urlsplit

from ringfence.guard.check import Findable, Finding, Passage, Span
from ringfence.guard.checks.disguise import in_disguise
from ringfence.guard.normalise.readings import spellings
from ringfence.guard.normalise.variant import Variant
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

# A destination as CommonMark has it, and with placeholders that hold spaces. Nothing need follow it, so that nothing
# is read twice: that is what keeps it linear.
_PARENTHESES = r"\((?:[^\s()]|\((?:[^\s()]|\([^\s()]*+\))*+\))*+\)"
_PLACEHOLDER = r"\{[^{}\n()]{0,80}\}|<[^<>\n]{0,80}>|\[[A-Za-z _]{1,80}\]"
_DESTINATION = rf"(?:\\[()<>]|{_PARENTHESES}|{_PLACEHOLDER}|[^\s()<>])+"
_AROUND_DESTINATION = r"[ \t]*+(?:\r?\n[ \t]*+)?"
MARKDOWN = re.compile(
    r"\\[\[\]\\!]"
    r"|(?P<open>!?\[)"
    rf"|\](?:\({_AROUND_DESTINATION}(?:<(?P<angle>(?:\\[<>]|[^<>\n])*)|(?P<inline>{_DESTINATION}))"
    r"|\[(?P<to>[^\[\]\n]{0,200})\]|(?P<define>:))?"
    r"|\n[ \t]*\n"
)
DEFINITION = re.compile(
    rf"(?m)^ {{0,3}}\[(?P<label>[^\[\]\n]{{1,200}})\]:{_AROUND_DESTINATION}(?:<(?P<angle>[^<>\n]*)|(?P<url>[^\s<>]+))"
)
ATTRIBUTE = re.compile(
    r"(?<![\w-])(?:(?P<name>src|srcset|imagesrcset|poster|background|data|content|href|action|formaction|ping)\s*+=\s*+"
    r"|(?:url\(|@import)\s*+)(?P<quote>\\{0,3}[\"'])?",
    re.IGNORECASE,
)
LOADS = {"src", "srcset", "imagesrcset", "poster", "background", "data", "content"}
SETS = {"srcset", "imagesrcset"}
UNQUOTED = re.compile(r"[^\s>]*")
UNQUOTED_ELSEWHERE = re.compile(r"[^\s\"'<>]*")
UNQUOTED_IN_CSS = re.compile(r"(?:\\(?:[0-9A-Fa-f]{1,6}\s?|.)|[^\s\"'()\\])*")
REFRESH = re.compile(r"\s*+[0-9.]++[\s;,]*+(?:url\s*+=\s*+[\"']?)?", re.IGNORECASE)  # `<meta content="0; url=…">`
CANDIDATE = re.compile(r"[^\s,](?:\S*[^\s,])?")
# An address without syntax around it ends before what a sentence ends with.
BARE = re.compile(r"(?<![A-Za-z0-9])(?:https?|ftp)://[^\s<>\"'`\[\](){}|^]+", re.IGNORECASE)
TRAILING = ".,;:!?*_~"
SCHEME = re.compile(r"https?:|ftp:|[/\\]{2}|data:|(?:java|vb|live)script:", re.IGNORECASE)  # nothing else leads out
SLASHES = re.compile(r"(https?:|ftp:)?[/\\]*", re.IGNORECASE)  # `https:\\host` and `https:/host` lead there too
AROUND = "".join(map(chr, range(0x21)))
BREAKS = str.maketrans("", "", "\t\n\r")
LONG_REFERENCE = re.compile(r"&#0*([0-9]{1,8})[0-9]*")
ESCAPED_IN_MARKDOWN = re.compile(r"\\([!-/:-@\[-`{-~])")
ESCAPED_IN_CSS = re.compile(r"\\(?:([0-9A-Fa-f]{1,6})(?:\r\n|\s)?|(?:\r\n|[\n\r\f])|(.))")
SCRIPTS = ("javascript:", "vbscript:", "livescript:")
NO_SCRIPT = re.compile(r"javascript:\s*(?:void\s*\(?\s*0?\s*\)?|//|#|undefined|false)?;?\s*", re.IGNORECASE)

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
ENCODED = re.compile(r"[A-Za-z0-9+/_-]{20,}={0,2}")
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


class Address(NamedTuple):
    """An address, `[start, end)` in code points of the text, whether it loads by itself, and how a browser reads it."""

    start: int
    end: int
    image: bool
    read: str


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
        for reading in plainer(passage.text):
            found += (in_disguise(finding, reading) for finding in self._read(passage, reading.text, prompt))
        return _apart(found)

    def _read(self, passage: Passage, text: str, prompt: "Prompt") -> Iterator[Finding]:
        for start, end, image, address in addresses(text):
            score, what = judged(text[start:end], address, image, prompt)
            if score:
                category = "exfiltration.image" if image else "exfiltration.link"
                yield Finding(self.name, category, score, (Span(passage.part, start, end),), what)


def plainer(text: str) -> list[Variant]:
    """Return the readings of a text without what is not seen, and with its letters in ASCII.

    A browser sends such characters along, and whoever gets them takes them out; what is encoded it does not decode.
    """
    if PLAIN.fullmatch(text):
        return []
    return [reading for reading in spellings(text) if SEEN.issuperset(reading.kind.split("+"))]


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
        texts = (self.text, *(reading.text for reading in plainer(self.text)))
        return frozenset(text[found.start : found.end] for text in texts for found in addresses(text))


def addresses(text: str) -> list[Address]:
    """Return every address in a text, by its start. Two may overlap: what a browser makes of it depends on the page."""
    found: list[Address] = []
    taken = bytearray(len(text))
    images = set[str]()
    for address in (*_inline(text, images), *_defined(text, images), *_attributes(text)):
        if SCHEME.match(address.read):
            taken[address.start : address.end] = b"\1" * (address.end - address.start)
            found.append(address)
    # Within a value that only looks like one, a word by itself is an address of its own.
    found += (one for one in _bare(text) if not taken[one.start] or text[one.start - 1 : one.start].isspace())
    return sorted(found)


def _inline(text: str, images: set[str]) -> Iterator[Address]:
    """Yield the destinations of inline links and images, and note the labels that images refer to."""
    if "](" not in text and "![" not in text:
        return
    opened: list[tuple[bool, int]] = []
    for match in MARKDOWN.finditer(text):
        if match["open"]:
            opened.append((match["open"] == "![", match.end()))
        elif match[0][0] == "]":
            image, start = opened.pop() if opened else (False, match.start())
            for group in ("angle", "inline"):
                if match[group]:
                    yield Address(*match.span(group), image, _in_markdown(match[group]))
            if image:
                label = match["to"] or text[start : min(match.start(), start + 200)]
                images.add(_label(label))
        elif match[0][0] == "\n":
            opened.clear()


def _defined(text: str, images: set[str]) -> Iterator[Address]:
    for match in DEFINITION.finditer(text) if "]:" in text else ():
        group = "url" if match["url"] else "angle"
        yield Address(*match.span(group), _label(match["label"]) in images, _in_markdown(match[group]))


def _label(label: str) -> str:
    return " ".join(label.casefold().split())


def _attributes(text: str) -> Iterator[Address]:
    """Yield the values of attributes, and what CSS loads.

    A value in quotes ends where they do, however many lines on, and the next may begin within it: quotes that only look
    like an attribute's hide none. It ends at the next that begins with its quotes at the latest: time stays linear.
    """
    done = 0
    may = "=" in text or "url(" in (lower := text.lower()) or "@import" in lower
    for match in ATTRIBUTE.finditer(text) if may else ():
        name, quote, start = (match["name"] or "").lower(), match["quote"], match.end()
        if quote:
            end = text.find(quote, start)
            end = len(text) if end < 0 else end  # a page goes on where the text does not
        elif start < done:
            continue
        else:
            done = end = _end_of(_unquoted(name, text[max(0, match.start() - 1) : match.start()]), text, start)
        if name in SETS:
            for one in CANDIDATE.finditer(text, start, end):
                yield Address(*one.span(), True, _read(one[0]))
        else:
            if name == "content":
                start = _end_of(REFRESH, text, start, end)
            value = text[start:end]
            yield Address(start, end, not name or name in LOADS, _read(value) if name else _in_css(value))


def _unquoted(name: str, before: str) -> re.Pattern[str]:
    """Return what a value without quotes is: in a tag even quotes belong to it, in `?src=…` they end the address."""
    if not name:
        return UNQUOTED_IN_CSS
    return UNQUOTED if before.isspace() or before in "/\"'" else UNQUOTED_ELSEWHERE


def _end_of(run: re.Pattern[str], text: str, start: int, end: int = sys.maxsize) -> int:
    match = run.match(text, start, end)
    return match.end() if match else start


def _bare(text: str) -> Iterator[Address]:
    for match in BARE.finditer(text) if "://" in text else ():
        written = match[0].rstrip(TRAILING)
        yield Address(match.start(), match.start() + len(written), False, _read(written))


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
        parts = urlsplit("".join([head, *query]))
        host = normalize("NFKC", unquote_plus(parts.hostname or "")).rstrip(".")
    except ValueError:
        return NONE  # no browser goes there either
    reasons = [_host(host, image), _login(parts, host)]
    if written not in prompt.addresses:
        reasons += _carried(parts, host, image, prompt)
        if len(UNSEEN.findall(address)) >= BYTE:
            reasons.append(Reason(LIKELY if image else ODD, "characters that nobody sees"))
    return max(reasons, key=lambda reason: reason.score)


def _read(written: str) -> str:
    """Return an address in HTML as a browser reads it: it leaves out breaks and tabs, and what stands around."""
    return _decoded_in_html(written).translate(BREAKS).strip(AROUND)


def _in_markdown(written: str) -> str:
    return _read(ESCAPED_IN_MARKDOWN.sub(r"\1", written))


def _in_css(written: str) -> str:
    """Return an address in CSS as a browser reads it, in a sheet or in an attribute."""

    def said(escape: re.Match[str]) -> str:
        number = int(escape[1] or "0", 16)
        return (chr(number) if number <= sys.maxunicode else "\ufffd") if number else escape[2] or ""

    return ESCAPED_IN_CSS.sub(said, _decoded_in_html(written)).translate(BREAKS).strip(AROUND)


def _decoded_in_html(written: str) -> str:
    # `unescape` refuses numbers of thousands of digits, which a browser reads.
    return unescape(LONG_REFERENCE.sub(r"&#\1", written) if "&#" in written else written)


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
    local = host in ("localhost", "127.0.0.1") or EXAMPLE_LOGIN.fullmatch(re.sub(r"[^\w:]", "", login.lower()))
    return Reason(ODD, "a password in an address") if password and not local else NONE


def _carried(parts: SplitResult, host: str, image: bool, prompt: Prompt) -> Iterator[Reason]:
    """Yield what an address carries, as a link or as an image."""
    place = f"{host}{parts.path[:200]}"
    known = DRAWN_BY.match(place) if image else SEARCHED_BY.match(place) or DRAWN_BY.match(place)

    def graded(reason: Reason) -> Reason:
        if reason.score and known:
            return Reason(GUESS if image else FAINT, reason.what)
        return reason if image else reason._replace(score=LESS.get(reason.score, 0.0))

    for field, value in _fields(parts.query):
        # A campaign's name is words with hyphens between; anywhere else in a query that is a way to write a sentence.
        yield graded(_value(value, image, prompt, slugs=field.startswith("utm_")))
        if len(value) >= 6 and WANTED.fullmatch(field):
            yield graded(Reason(LIKELY, "a field for what was said"))
    for step in (*parts.path.split("/"), *host.split(".")):
        yield graded(_value(unquote(step), image, prompt, slugs=True))


def _fields(query: str) -> Iterator[tuple[str, str]]:
    for pair in re.split("[&;]", query):
        field, equals, value = pair.partition("=")
        yield (unquote_plus(field), unquote_plus(value)) if equals else ("", unquote_plus(field))


def _value(value: str, image: bool, prompt: Prompt, slugs: bool) -> Reason:
    """Judge one field of the query, or one step of the path or host, as an image's.

    Args:
        slugs: whether words joined by hyphens are ordinary there.
    """
    if len(value) < 6:
        return NONE
    if GIVEN.search(value):
        return Reason(LIKELY, "a placeholder for what the caller said")
    if placeholder := PLACEHOLDER.search(value):
        if ANYTHING_SAID.search(placeholder[0]):
            return Reason(LIKELY, "a placeholder for what was said")
        return Reason(GUESS, "a placeholder") if image else NONE
    token = WEB_TOKEN.fullmatch(value)
    if not token and (read := _decoded(value)):
        return Reason(LIKELY, "encoded JSON") if read[:1] in "{[" else Reason(SURE, "encoded text")
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


def _decoded(value: str) -> str:
    """Return the text that a value is an encoding of; empty where it is none."""
    value = value.partition(".")[0].replace(" ", "+")
    if not ENCODED.fullmatch(value):
        return ""
    bare = value.rstrip("=")
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
