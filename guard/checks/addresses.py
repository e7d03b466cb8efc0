"""Finds addresses in Markdown, in HTML and in CSS, and says how a browser reads them.

An address is read as what it stands in is (escapes of Markdown, HTML and CSS), and then as a browser does: without
breaks and tabs wherever they stand, and with a backslash for a slash.
"""

import re
import sys
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple

# A destination as CommonMark has it, and with placeholders that hold spaces. Nothing need follow it, so that nothing
# is read twice: that is what keeps it linear. Parentheses go as deep as CommonMark asks of everybody.
_DEEPEST = 32
_PARENTHESES = r"\((?:\\[()]|[^\s()]|" * _DEEPEST + "(?!)" + r")*+\)" * _DEEPEST
_PLACEHOLDER = r"\{[^{}\n()]{0,80}\}|<[^<>\n]{0,80}>|\[[A-Za-z _]{1,80}\]"
_DESTINATION = rf"(?:\\[()<>]|{_PARENTHESES}|{_PLACEHOLDER}|[^\s()<>])+"
_ANGLE = r"(?:\\[<>]|[^<>\n])*"
_AROUND_DESTINATION = r"[ \t]*+(?:\r?\n[ \t]*+)?"
_LABEL = r"(?:\\.|[^\[\]\\]){1,999}+"
LABEL = re.compile(_LABEL)
MARKDOWN = re.compile(
    r"\\[\[\]\\!]"
    r"|(?P<open>!?\[)"
    rf"|\](?:\({_AROUND_DESTINATION}(?:<(?P<angle>{_ANGLE})|(?P<inline>{_DESTINATION}))"
    rf"|\[(?P<to>(?:{_LABEL})?)\]|(?P<define>:))?"
    r"|\n[ \t]*\n"
)
_WITHIN = r"(?:[ \t]*+(?:>|[-*+]|[0-9]{1,9}[.)])){0,8}+[ \t]*+"  # quotes and lists
DEFINITION = re.compile(
    rf"(?m)^{_WITHIN}\[(?P<label>{_LABEL})\]:{_AROUND_DESTINATION}(?:<(?P<angle>{_ANGLE})|(?P<url>[^\s<>]+))"
)
_QUOTE = r"(?P<quote>\\{0,3}[\"'])?"
ATTRIBUTE = re.compile(
    r"(?<![\w-])(?P<name>src|srcset|imagesrcset|poster|background|data|content|href|action|formaction|ping)\s*+=\s*+"
    + _QUOTE,
    re.IGNORECASE,
)
LOADS = {"src", "srcset", "imagesrcset", "poster", "background", "data", "content"}
SETS = {"srcset", "imagesrcset"}
UNQUOTED = re.compile(r"[^\s>]*")
UNQUOTED_ELSEWHERE = re.compile(r"[^\s\"'<>]*")


def _escapable(word: str) -> str:
    """Return what a word of CSS is, each of its letters as it is or escaped."""
    return "".join(rf"(?:\\?{c}|\\0{{0,4}}(?:{ord(c):x}|{ord(c.upper()):x})\s?)" for c in word)


STYLE = re.compile(
    rf"(?=[ui@\\-])(?<![\w-])(?:{_escapable('url')}\(|(?:-webkit-)?image-set\(|@{_escapable('import')}(?:/\*[^*]*+\*/)?)"
    rf"\s*+{_QUOTE}",
    re.IGNORECASE,
)
UNQUOTED_IN_CSS = re.compile(r"(?:\\(?:[0-9A-Fa-f]{1,6}\s?|.)|[^\s\"'()\\])*")
QUOTED_IN_CSS = {
    quote: re.compile(rf"(?s:(?!{re.escape(quote)})\\?.)*+")
    for n in range(4)
    for quote in ("\\" * n + '"', "\\" * n + "'")
}
REFRESH = re.compile(r"\s*+[0-9.]++[\s;,]*+(?:url\s*+=\s*+[\"']?)?", re.IGNORECASE)  # `<meta content="0; url=…">`
# A comma ends a candidate after its size, and begins the next without a blank (`1x,//…`).
CANDIDATE = re.compile(r"(?:(?<!,)[^\s,:/]*+,++)?(?P<url>[^\s,](?:\S*[^\s,])?)")
# An address without syntax around it ends before what a sentence ends with, and before entities that end what it is in.
BARE = re.compile(
    r"(?<![A-Za-z0-9])(?:https?|ftp)://(?:[^\s<>\"'`\[\](){}|^&]|&(?!(?:quot|apos|[lg]t|#0*+(?:3[49]|6[02]));))+",
    re.IGNORECASE,
)
TRAILING = ".,;:!?*_~\\"
SCHEME = re.compile(r"https?:|ftp:|[/\\]{2}|data:|(?:java|vb|live)script:", re.IGNORECASE)  # nothing else leads out
SLASHES = re.compile(r"(https?:|ftp:)?[/\\]*", re.IGNORECASE)  # `https:\\host` and `https:/host` lead there too
SPACE = re.compile(r"\s")
AROUND = "".join(map(chr, range(0x21)))
BREAKS = str.maketrans("", "", "\t\n\r")
LONG_REFERENCE = re.compile(r"&#0*([0-9]{1,8})[0-9]*")
ESCAPED_IN_MARKDOWN = re.compile(r"\\([!-/:-@\[-`{-~])")
ESCAPED_IN_CSS = re.compile(r"\\(?:([0-9A-Fa-f]{1,6})(?:\r\n|\s)?|(?:\r\n|[\n\r\f])|(.))")


class Address(NamedTuple):
    """An address, `[start, end)` in code points of the text, whether it loads by itself, and how a browser reads it."""

    start: int
    end: int
    image: bool
    read: str


def addresses(text: str) -> list[Address]:
    """Return every address in a text, by its start. Two may overlap: what a browser makes of it depends on the page."""
    found: list[Address] = []
    taken = bytearray(len(text))
    images = set[str]()
    for address in (*_inline(text, images), *_defined(text, images), *_attributes(text), *_styled(text)):
        if SCHEME.match(address.read):
            found.append(address)
            # What holds blanks may only look like an address, and hides none.
            if not SPACE.search(text, address.start, address.end):
                taken[address.start : address.end] = b"\1" * (address.end - address.start)
    found += (one for one in _bare(text) if not taken[one.start])
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
                label = (match["to"] and LABEL.fullmatch(match["to"])) or LABEL.fullmatch(text, start, match.start())
                images.update([_label(label[0])] if label else [])
        elif match[0][0] == "\n":
            opened.clear()


def _defined(text: str, images: set[str]) -> Iterator[Address]:
    for match in DEFINITION.finditer(text) if "]:" in text else ():
        group = "url" if match["url"] else "angle"
        yield Address(*match.span(group), _label(match["label"]) in images, _in_markdown(match[group]))


def _label(label: str) -> str:
    return " ".join(label.casefold().split())


def _attributes(text: str) -> Iterator[Address]:
    """Yield the values of attributes.

    A value in quotes ends where they do, however many lines on, and the next may begin within it: quotes that only look
    like an attribute's hide none. It ends at the next that begins with its quotes at the latest: time stays linear.
    """
    done = 0
    for match in ATTRIBUTE.finditer(text) if "=" in text else ():
        name, quote, start = match["name"].lower(), match["quote"], match.end()
        if quote:
            end = text.find(quote, start)
            end = len(text) if end < 0 else end  # a page goes on where the text does not
        elif start < done:
            continue
        else:
            done = end = _end_of(_unquoted(text[max(0, match.start() - 1) : match.start()]), text, start)
        if name in SETS:
            for one in CANDIDATE.finditer(text, start, end):
                yield Address(*one.span("url"), True, _read(one["url"]))
        elif name == "content":
            read = _read(text[start:end])
            # What is written before the address in entities stays a part of it.
            yield Address(_end_of(REFRESH, text, start, end), end, True, read[_end_of(REFRESH, read, 0) :])
        else:
            yield Address(start, end, name in LOADS, _read(text[start:end]))


def _unquoted(before: str) -> re.Pattern[str]:
    """Return what a value without quotes is: in a tag even quotes belong to it, in `?src=…` they end the address."""
    return UNQUOTED if before.isspace() or before in "/\"'" else UNQUOTED_ELSEWHERE


def _styled(text: str) -> Iterator[Address]:
    """Yield what CSS loads. As with attributes, a value ends at the next that begins with its quotes at the latest."""
    done = 0
    for match in STYLE.finditer(text) if "(" in text or "@" in text else ():
        quote, start = match["quote"], match.end()
        if not quote and start < done:
            continue
        end = _end_of(QUOTED_IN_CSS[quote] if quote else UNQUOTED_IN_CSS, text, start)
        done = done if quote else end
        yield Address(start, end, True, _in_css(text[start:end]))


def _end_of(run: re.Pattern[str], text: str, start: int, end: int = sys.maxsize) -> int:
    match = run.match(text, start, end)
    return match.end() if match else start


def _bare(text: str) -> Iterator[Address]:
    for match in BARE.finditer(text) if "://" in text else ():
        written = match[0].rstrip(TRAILING)
        yield Address(match.start(), match.start() + len(written), False, _read(written))


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
