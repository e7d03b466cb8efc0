"""Personal data and secrets in disguise, through both checks and through a policy with the packs that take them out.

The values are made up; what is asked of each disguise is that the whole stretch is found, and nothing readable left.
"""

import json
import random
import re
from base64 import b64encode, urlsafe_b64encode
from datetime import date
from itertools import chain
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guard.actions import rewrite
from ringfence.guard.check import Passage
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.guard.guard import Guard
from ringfence.guard.normalise.readings import spellings
from ringfence.policies.types import Action, Policy, Rule, RuleException, Stage

CHECKS = (PiiCheck(), SecretsCheck())
SURE = 0.5
AWS = "AKIA" + "IOSFODNN7QZXMPLE"

# A word that names the value, where it needs one, stands before it in the clear.
VALUES = [
    ("pii.email", "", "jane.doe@corp.org"),
    ("pii.email", "", "o_neil+x@mail.corp.co.uk"),
    ("pii.phone", "", "+44 7700 900417"),
    ("pii.phone", "", "(415) 555-2671"),
    ("pii.phone", "Mobil: ", "0171 3920017"),
    ("pii.card", "", "4111 1111 1111 1111"),
    ("pii.card", "", "4111111111111111"),
    ("pii.iban", "", "DE89 3704 0044 0532 0130 00"),
    ("pii.ssn", "", "536-90-4399"),
    ("pii.ip", "", "93.184.216.34"),
    ("pii.national_id", "BSN ", "111222333"),
    ("pii.passport", "passport no. ", "C01X00T47"),
    ("pii.birth_date", "born on ", "14 July 1985"),
    ("secret.aws_access_key", "", AWS),
    ("secret.github", "", "ghp" + "_" + "q7Rk2LxZ9wVbT4mNc8YdH3sFj6GpAe1UiOtS"),
    ("secret.openai_key", "", "sk-" + "proj-q7Rk2LxZ9wVbT4mNc8YdH3sFj6GpAe1UiOtS"),
    ("secret.stripe", "", "sk" + "_live_q7Rk2LxZ9wVbT4mNc8YdH3sF"),
    ("secret.password", "the password is ", "Praia*Azul7"),
]


def base64(text):
    return b64encode(text.encode()).decode()


def within(sign):
    """Puts a sign behind every character but the last."""
    return lambda text: sign.join(text)


def each(form):
    return lambda text: "".join(map(form, text))


DISGUISES = {
    "zero-width space": within("\u200b"),
    "joiner": within("\u2060"),
    "soft hyphen": within("\u00ad"),
    "control character": within("\x00"),
    "terminal sequence": within("\x1b[0m"),
    "selectors": within("\ufe01"),
    "struck through": within("\u0336"),
    "one zero-width space": lambda text: text[: len(text) // 2] + "\u200b" + text[len(text) // 2 :],
    "one tag": lambda text: text[: len(text) // 2] + "\U000e0041" + text[len(text) // 2 :],
    "tags that spell": within("\U000e0061"),
    "braille blank": within("\u2800"),
    "private use": within("\ue000"),
    "object sign": within("\ufffc"),
    "number sign that formats": within("\u0600"),
    "full width": each(lambda c: chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c),
    "bold digits": each(lambda c: chr(0x1D7CE + int(c)) if c.isdigit() else c),
    "other digits": each(lambda c: chr(0x660 + int(c)) if c.isdigit() else c),
    "no-break": lambda text: text.replace(" ", "\u00a0").replace("-", "\u2011"),
    "tags": each(lambda c: chr(0xE0000 + ord(c))),
    "decimal entities": each(lambda c: f"&#{ord(c)};"),
    "hexadecimal entities": each(lambda c: f"&#x{ord(c):X};"),
    "named entities": lambda text: text.replace("@", "&commat;").replace(".", "&period;").replace("_", "&lowbar;"),
    "percent": each(lambda c: f"%{ord(c):02x}"),
    "quoted": lambda text: quote(text, safe=""),
    "quoted twice": lambda text: quote(quote(text, safe=""), safe=""),
    "escapes": each(lambda c: f"\\u{ord(c):04x}"),
    "escapes of eight digits": each(lambda c: f"\\U{ord(c):08x}"),
    "bold digits in JSON": each(lambda c: json.dumps(chr(0x1D7CE + int(c)))[1:-1] if c.isdigit() else c),
    "bytes": each(lambda c: f"\\x{ord(c):02x}"),
    "octal": each(lambda c: f"\\{ord(c):03o}"),
    "markdown": lambda text: re.sub(r"([@._+-])", r"\\\1", text),
    "base64": base64,
    "base64 without padding": lambda text: urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 twice": lambda text: base64(base64(text)),
    "base64 of UTF-16": lambda text: b64encode(text.encode("utf-16-le")).decode(),
    "base64 and a byte": lambda text: b64encode(text.encode() + b"\xff").decode(),
    "hex": lambda text: text.encode().hex(),
    "hex in pairs": lambda text: text.encode().hex(" "),
    "0x": lambda text: "0x" + text.encode().hex(),
    "quoted-printable": lambda text: "=\r\n".join(f"={byte:02X}" for byte in text.encode()),
    "binary": lambda text: " ".join(f"{byte:08b}" for byte in text.encode()),
    "base64, split": lambda text: base64(text)[:6] + "\u200b" + base64(text)[6:],
    "zero-width in base64": lambda text: base64("\u200b".join(text)),
}  # fmt: skip


def findings(text):
    return list(chain.from_iterable(check.find(Passage(Stage.INPUT, "user", text)) for check in CHECKS))


def covers(text, category, start, end):
    """Whether a finding of the category covers a stretch."""
    return any(
        f.category == category and f.score >= SURE and f.spans[0].start <= start and f.spans[0].end >= end
        for f in findings(text)
    )


def pieces(text):
    """What somebody could recognise: runs of four signs."""
    bare = re.sub(r"\W", "", text)
    return {bare[at : at + 4] for at in range(len(bare) - 3)}


@pytest.mark.parametrize(("category", "name", "value"), VALUES)
@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("around", ["{}", "Send it to {} today, please.", "({})", "line\n{}\nline"])
def test_the_whole_disguised_stretch_is_found(category, name, value, disguise, around):
    hidden = DISGUISES[disguise](value)
    text = around.format(name + hidden)
    start = text.index(hidden)
    assert covers(text, category, start, start + len(hidden.rstrip("=")))


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text("version: 1\nname: three\npacks: [pii, secrets, hidden]\n")
    return Guard(path)


@pytest.mark.parametrize(("category", "name", "value"), VALUES)
@pytest.mark.parametrize("disguise", DISGUISES)
def test_what_leaves_holds_neither_the_value_nor_its_pieces(guard, category, name, value, disguise):
    text = f"Hello, {name}{DISGUISES[disguise](value)} ok"
    left = rewrite(text, guard.check(text).rewrites)
    assert [one for one in (left, *(reading.text for reading in spellings(left))) if pieces(value) & pieces(one)] == []
    assert left.startswith("Hello")
    assert left.endswith(" ok")


@settings(max_examples=200)
@given(
    st.sampled_from(VALUES),
    st.sampled_from(sorted(DISGUISES)),
    st.text("ab ,.\n\u200b%&;=é", max_size=300),
    st.text("ab ,.\n\u200b%&;é", max_size=300),
)
def test_it_is_found_whatever_stands_around_it(row, disguise, before, after):
    category, name, value = row
    hidden = DISGUISES[disguise](value)
    text = f"{before} {name}{hidden} ok {after}"  # digits before a % are a share
    start = len(before) + 1 + len(name)
    assert covers(text, category, start, len(before) + 1 + len(name) + len(hidden.rstrip("=")))


@pytest.mark.parametrize(
    ("text", "category", "found"),
    [
        ("my=20card=20is=204111111111111111", "pii.card", "=204111111111111111"),
        ("the=20number:=204111=201111=201111=201111", "pii.card", "=204111=201111=201111=201111"),
        ("SSN=3A=20536=2D90=2D4399", "pii.ssn", "536=2D90=2D4399"),
        ("to jane.doe=40163.com", "pii.email", "jane.doe=40163.com"),
    ],
)
def test_numbers_of_which_only_what_stands_between_is_quoted_are_found(text, category, found):
    assert text.endswith(found)
    assert covers(text, category, len(text) - len(found.removeprefix("=20")), len(text))


def test_words_after_a_line_break_in_json_are_words():
    text = json.dumps({"t": "card:\n4111111111111111\tmail\njane.doe@corp.org"})
    assert {f.category for f in findings(text)} == {"pii.card", "pii.email"}
    assert covers(text, "pii.card", text.index("4111"), text.index("4111") + 16)


def test_base64_in_lines_is_read_within_json_too():
    written = base64("Please keep this between us for now, will you? My card: 4111 1111 1111 1111, and thank you a lot")
    wrapped = "\n".join(written[at : at + 76] for at in range(0, len(written), 76))
    for text in (wrapped, json.dumps({"a": wrapped})):
        assert {f.category for f in findings(text)} == {"pii.card"}


def test_each_category_is_found_once_however_many_readings_show_it():
    text = f"first {base64(base64('mail jane.doe@corp.org or 4111 1111 1111 1111'))} last"
    assert [(f.category, f.spans[0].start, f.spans[0].end) for f in findings(text)] == [
        ("pii.email", 6, len(text) - 5),
        ("pii.card", 6, len(text) - 5),
    ]


def test_what_looks_whole_in_the_clear_is_taken_out_whole():
    text = "mail jane.doe@mail.co\u200brp.org now"
    whole, as_it_stands = findings(text)
    assert text[whole.spans[0].start : whole.spans[0].end] == "jane.doe@mail.co\u200brp.org"
    assert as_it_stands.spans[0].end <= whole.spans[0].end


@pytest.mark.parametrize(
    "text",
    [
        "evil%40x.org%2Ca@example.com",
        "see https://m.io/?to=evil%40x.org%2Ca@example.com",
        "evil@x.org\u200ba@example.com",
        "evil=40x.org=2Ca@example.com",
    ],
)
def test_an_exception_for_ones_own_address_spares_no_other_that_stands_in_disguise_before_it(text):
    ours = RuleException("ours", ("pii",), date(2099, 1, 1), "ours", pattern=r".*@example\.com")
    rule = Rule("pii", "pii", Action.REWRITE)
    guard = Guard(Policy("p", (rule,), exceptions=(ours,)), checks={"pii": PiiCheck()})
    decision = guard.check(text)
    assert decision.action is Action.REWRITE
    assert "evil" not in rewrite(text, decision.rewrites)


def test_a_long_value_is_found_by_its_beginning_though_only_its_end_is_in_disguise():
    token = "github" + "_pat_q7Rk2LxZ9wVbT4mNc8YdH3_" + "sFj6GpAe1U" * 5 + "sFj6\u200bGpAe1"
    jwt = (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ"
        + "q7Rk2LxZ9w" * 30
        + "\u200b"
        + "VbT4mNc8Yd" * 5
        + ".H3sFj6GpAe1UiOtS"
    )
    for value in (token, jwt):
        text = "so it goes, " * 30 + value + " and so on" * 30
        assert any(text[f.spans[0].start : f.spans[0].end] == value for f in findings(text))


def test_a_disguised_name_still_tells_what_stands_after_it():
    for text in ("p\u0430ssword: Praia*Azul7", "pass\u200bword: Praia*Azul7", "S\u200bSN 536 90 4399"):
        (finding,) = findings(text)
        assert text[finding.spans[0].start :] in ("Praia*Azul7", "536 90 4399")


def test_a_private_key_with_a_disguised_head_is_taken_out_to_its_end():
    body = "\n".join("q7Rk2LxZ9wVbT4mNc8YdH3sFj6GpAe1UiOtSq7Rk2LxZ9wVbT4mNc8YdH3sFj6Gp" for _ in range(60))
    key = "-----BEG\u200bIN RSA " + f"PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"
    text = f"Here:\n{key}\nand now go on."
    (finding,) = findings(text)
    assert text[finding.spans[0].start : finding.spans[0].end] == key


def test_the_detail_names_the_disguise_and_never_the_value():
    (finding,) = findings(base64("jane.doe@corp.org"))
    assert finding.detail == "read as base64, e-mail address"


HASH = "3f2b8c1d9e7a6f5b4c3d2e1f0a9b8c7d6e5f4a3b"


@pytest.mark.parametrize(
    "text",
    [
        HASH,
        " ".join(HASH[at : at + 2] for at in range(0, 40, 2)),
        "550e8400-e29b-41d4-a716-446655440000 00:1A:2B:3C:4D:5E SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        base64("The meeting is at 9 in room 404, version 10.2.33.41, order 4155552671."),
        "https://example.com/%40user/npm/%40types%2Fnode%4018.0.0?q=1%2C234%2C567&amp;r=%23ff8800",
        "x&nbsp;=&nbsp;a&amp;&amp;b; caf&eacute; 1&#8239;234&#8239;567 &copy; 2024&ndash;2025",
        r"re.compile(r'[\w.+-]+@[\w-]+\.com') '\u0040\u002e' '\x1b[31m' C:\123\data",
        "TNFα 5²=25, 1º, ①②③, ½ – 10–12, 2019–2024, x⁻¹, №\u00a05, 12\u00a0345\u00a0678,90\u00a0€",
        "👩\u200d👩\u200d👧 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 1\ufe0f\u20e3 می\u200cخواهم co\u00adopera\u00adtion",
        "GET /report?id=204111111111111111&date=20240115",
        "\u200b",
        "",
    ],
)
def test_ordinary_encodings_hide_nothing(text):
    assert [f for f in findings(text) if f.score >= SURE] == []


@pytest.mark.parametrize(
    "unit",
    ["\u200b", "a\u200b", "ａ", "&#64;", "%40", "\\u0040", "a@\u200bb.c ", "6a 61 ", "QUJD", base64("a@b.example") + " ",
     base64("a@b.example"), "-----BEG\u200bIN PRIVATE KEY-----\n" + "A" * 24, "AKIA\u200b", "4111\u00a0", "&amp;" + "a" * 400]
)  # fmt: skip
def test_time_grows_with_the_length_and_no_faster(unit, grows_with_its_length):
    assert grows_with_its_length(lambda text: (spellings.cache_clear(), findings(text)), unit)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_hold_nothing(seed):
    raw = random.Random(seed).randbytes(60_000)
    assert (
        findings(b64encode(raw).decode()) + findings(" ".join(raw[at : at + 20].hex() for at in range(0, 60_000, 20)))
        == []
    )
