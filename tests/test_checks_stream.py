"""The pattern checks under the hold-back window: what stands in a stream is found as it is found in the whole text."""

import random
import string
from base64 import b64encode
from textwrap import wrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guard.actions import rewrite
from ringfence.guard.check import Passage, own_checks
from ringfence.guard.checks.exfiltration import ExfiltrationCheck
from ringfence.guard.checks.hidden import HiddenCheck
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.guard.pipeline import Pipeline
from ringfence.guard.stream import StreamGuard
from ringfence.policies.cases import read_cases
from ringfence.policies.load import PACKS, loads_policy
from ringfence.policies.types import Stage

POLICY = loads_policy("version: 1\nname: patterns\npacks: [pii, secrets]\n")
PIPELINE = Pipeline(POLICY, {"pii": PiiCheck(), "secrets": SecretsCheck()})

PEM = "PRIVATE KEY-----"
BODY = "MIIEowIBAAKCAQEA4fKq9ZtWm2Xv7LbN0cRs8Yd3HgJu6PeA1oTi5BnQ2wE7rK9x"
PIECES = [
    *("hello world ", "\n", ". ", "12 345 ", "1 2 3 4 ", "version ", "the order number is ", BODY + " "),
    *("call me at ", "415-555-2671 ", "(415) 555-2671 ", "4155552671 ", "+44 20 7946 0958 ", "jane@example.com "),
    *("card ", "4111 1111 1111 1111 ", "4111111111111111 ", "DE89 3704 0044 0532 0130 00 ", "93.184.216.34 "),
    *("my ssn is ", "536-90-4399 ", "536 90 4399 ", "password is ", "hunter2 ", "postgres://u:s3cr3tPw@h/db "),
    *("ghp" + "_" + BODY[:36] + " ", "api_key = ", "bearer ", "sk-" + BODY[:40] + " "),
    *("-----BEGIN RSA " + PEM + "\n" + BODY + "\n-----END RSA " + PEM + "\n", "-----BEGIN " + PEM + " is a header "),
]


def judge(pipeline, text):
    return pipeline.judge(Stage.OUTPUT, [Passage(Stage.OUTPUT, "assistant", text)])


def streamed(pipeline, text, chunk):
    """What comes out of a stream that the text goes into in chunks."""
    stream, released = StreamGuard(pipeline.policy.stream), ""
    for start in range(0, len(text) + 1, chunk):
        stream.feed(text[start : start + chunk])
        if start + chunk > len(text):
            stream.close()
        while window := stream.window():
            released += stream.settle(window, judge(pipeline, window.text))
    return released


@settings(max_examples=60)
@given(st.lists(st.sampled_from(PIECES), min_size=10, max_size=60).map("".join), st.integers(1, 50))
def test_stream_is_rewritten_as_the_whole_text_is(text, chunk):
    assert streamed(PIPELINE, text, chunk) == rewrite(text, judge(PIPELINE, text).rewrites)


WAYS_OUT = Pipeline(
    loads_policy("version: 1\nname: ways-out\npacks: [hidden, exfiltration]\n"),
    {"hidden": HiddenCheck(), "exfiltration": ExfiltrationCheck()},
)
LINES = [case.text for pack in ("hidden", "exfiltration") for case in read_cases(PACKS / f"{pack}.cases.yaml")]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(LINES), min_size=3, max_size=25).map("\n".join), st.integers(1, 50))
def test_stream_with_hidden_text_and_ways_out_is_rewritten_as_the_whole_text_is(text, chunk):
    assert streamed(WAYS_OUT, text, chunk) == rewrite(text, judge(WAYS_OUT, text).rewrites)


# ---- in disguise


def drawn(length, seed):
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=length))


VALUES = {
    "address": "jane.doe@corp.org",
    "card": "4111 1111 1111 1111",
    "account": "DE89 3704 0044 0532 0130 00",
    "phone": "+44 7700 900417",
    "birth": "born on 14 July 1985",
    "password": "the password is Praia*Azul7",
    "token": "github" + "_pat_" + drawn(22, 1) + "_" + drawn(59, 2),
    "web token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ" + drawn(180, 3) + "." + drawn(43, 4),
    "private key": "-----BEGIN RSA " + PEM + "\n" + "\n".join(wrap(drawn(1600, 5), 64)) + "\n-----END RSA " + PEM,
}


def base64(text):
    return b64encode(text.encode()).decode()


def within(text, sign):
    return text[: len(text) // 2] + sign + text[len(text) // 2 :]


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def mathematical(text):
    kinds = ((string.ascii_uppercase, 0x1D670), (string.ascii_lowercase, 0x1D68A), (string.digits, 0x1D7F6))
    return text.translate({ord(c): base + at for signs, base in kinds for at, c in enumerate(signs)})


DISGUISES = {
    "none": str,
    **{name: sign.join for name, sign in {
        "zero width": "\u200b",
        "zero width, thrice": "\u200b" * 3,
        "joiner": "\u2060",
        "soft hyphen": "\u00ad",
        "separator": "\x1c",
        "selectors": "\ufe01",
        "struck through": "\u0336",
        "style": "\x1b[0m",
        "title": "\x1b]0;a title of some length\x07",
        "filler": "\u17b5",
        "braille blank": "\u2800",
        "a tag": "\U000e0041",
    }.items()},
    "title of many words": lambda text: within(text, "\x1b]0;" + "and so on " * 200 + "\x07"),
    "zero width in the middle": lambda text: within(text, "\u200b"),
    "zero width by the thousand": lambda text: within(text, "\u200b" * 6_000),
    "full width": full_width,
    "mathematical": mathematical,
    "tags": lambda text: "".join(chr(0xE0000 + ord(c)) for c in text),
    "entities": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "entities for spaces": lambda text: text.replace(" ", "&#8195;"),
    "percent": lambda text: "".join(f"%{ord(c):02X}" for c in text),
    "escapes": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "base64": base64,
    "base64, twice": lambda text: base64(base64(text)),
    "base64 in lines": lambda text: "\n".join(wrap(base64(text), 64)),
    "base64, split": lambda text: "\u200b".join(wrap(base64(text), 10)),
    "base64 in a long text": lambda text: base64("so it goes, " * 500 + text + ", and on it goes" * 30),
    "base64 in full width": lambda text: full_width(base64(text)),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal, apart": lambda text: text.encode().hex(" "),
    "hexadecimal, in a list": lambda text: ",  ".join(f"0x{byte:02X}" for byte in text.encode()),
    "hexadecimal, behind Chinese": lambda text: ("\u6625\u7720" * 40 + " " + text).encode().hex(" "),
    "hexadecimal in entities": lambda text: "".join(f"&#{ord(c)};" if c != " " else c for c in text.encode().hex(" ")),
    "binary": lambda text: " ".join(f"{byte:08b}" for byte in text.encode()),
    "quoted-printable": lambda text: "=\r\n".join(wrap("".join(f"={ord(c):02X}" for c in text), 60)),
    "soft breaks": lambda text: "=\n".join(wrap(text, 20, drop_whitespace=False)),
}  # fmt: skip
PROSE = "the weather is fine and some clouds come in, as they do; "
LATE = Pipeline(
    loads_policy("version: 1\nname: narrow\npacks: [pii, secrets]\nstream: {window: 16, context: 0, reach: 64}\n"),
    {"pii": PiiCheck(), "secrets": SecretsCheck()},
)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(VALUES)), st.sampled_from(sorted(DISGUISES))), min_size=1, max_size=2),
    st.integers(0, 400),
    st.sampled_from([" ", "\n", ': "', "\u200b "]),
    st.integers(1, 200),
    st.sampled_from([PIPELINE, LATE]),
)
def test_a_value_in_disguise_is_rewritten_in_a_stream_as_in_the_whole_text(rows, offset, before, chunk, pipeline):
    hidden = [DISGUISES[disguise](VALUES[value]) for value, disguise in rows]
    text = "".join((PROSE * 8)[:offset] + before + one + " . " for one in hidden) + PROSE * 3
    whole = judge(pipeline, text).rewrites
    assert streamed(pipeline, text, chunk) == rewrite(text, whole)
    assert len(whole) >= len({value for value, _ in rows})


OWN_POLICY = loads_policy("""
version: 1
name: ours
checks:
  - { kind: regex, category: ticket, patterns: ['\\bINC-[0-9]{6}\\b'] }
  - { kind: keywords, category: names, words: [Zqx7Kd, heron-7, проект альфа, résumé] }
rules:
  - { id: ticket, category: ticket, action: rewrite }
  - { id: names, category: names, action: rewrite }
stream: { window: 16, context: 0, reach: 24 }
""")
OWN = Pipeline(OWN_POLICY, own_checks(OWN_POLICY.checks))
OURS = ["INC-123456", "Zqx7Kd", "heron-7", "проект альфа", "пpoeкт aльфa", "re\u0301sume\u0301"]
ASCII_ONLY = {"tags", "full width", "mathematical", "percent", "quoted-printable", "escapes"}
ANY_SCRIPT = sorted({*DISGUISES} - ASCII_ONLY)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(OURS), st.sampled_from(ANY_SCRIPT)), min_size=1, max_size=3),
    st.integers(0, 400),
    st.sampled_from([PROSE, "Погода сегодня хорошая, и облака идут; "]),
    st.integers(1, 200),
)
def test_what_a_policy_looks_for_itself_is_rewritten_in_a_stream_as_in_the_whole_text(rows, offset, around, chunk):
    hidden = [DISGUISES[disguise](value) for value, disguise in rows]
    text = "".join((around * 10)[:offset] + " " + one + " . " for one in hidden) + around * 3
    whole = judge(OWN, text).rewrites
    assert streamed(OWN, text, chunk) == rewrite(text, whole)


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("value", ["INC-123456", "heron-7"])
def test_what_a_policy_looks_for_itself_is_found_in_every_disguise_that_a_key_is_found_in(value, disguise):
    text = PROSE * 3 + "Look: " + DISGUISES[disguise](value) + " . " + PROSE * 3
    left = streamed(OWN, text, 7)
    assert left == rewrite(text, judge(OWN, text).rewrites)
    assert left != text


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("value", VALUES)
def test_each_value_in_each_disguise_is_rewritten_in_a_stream_as_in_the_whole_text(value, disguise):
    text = PROSE * 3 + "Look: " + DISGUISES[disguise](VALUES[value]) + " . " + PROSE * 3
    left = streamed(PIPELINE, text, 7)
    assert left == rewrite(text, judge(PIPELINE, text).rewrites)
    assert left != text
