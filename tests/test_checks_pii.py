import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guard.check import Passage
from ringfence.guard.checks.pii import PiiCheck
from ringfence.policies.types import Stage

CHECK = PiiCheck()
SURE = 0.5


def find(text, check=CHECK, part=0):
    return check.find(Passage(Stage.INPUT, "user", text, part=part))


def seen(text, check=CHECK):
    """What a rule at the usual threshold would meet: (category, matched text)."""
    return [
        (f.category.removeprefix("pii."), text[f.spans[0].start : f.spans[0].end])
        for f in find(text, check)
        if f.score >= SURE
    ]


@pytest.mark.parametrize(
    ("text", "category", "value"),
    [
        ("mail jane.doe+x@mail.example.co.uk.", "email", "jane.doe+x@mail.example.co.uk"),
        ("<a@b.io>", "email", "a@b.io"),
        ("login('you@example.com')", "email", "you@example.com"),
        ("an müller@bücher.de bitte", "email", "müller@bücher.de"),
        ("mailto:o'neil@example.com?subject=x", "email", "o'neil@example.com"),
        ("🙂🙂 bob@example.com", "email", "bob@example.com"),
        ("(415) 555-2671", "phone", "(415) 555-2671"),
        ("415.555.2671", "phone", "415.555.2671"),
        ("+44 20 7946 0958", "phone", "+44 20 7946 0958"),
        ("tel:+14155552671", "phone", "+14155552671"),
        ("+39 06 698 83712", "phone", "+39 06 698 83712"),
        ("call 4155552671 now", "phone", "4155552671"),
        ("555-123-4567", "phone", "555-123-4567"),
        ("4111 1111 1111 1111", "card", "4111 1111 1111 1111"),
        ("5500-0000-0000-0004", "card", "5500-0000-0000-0004"),
        ("pan=6011111111111117;", "card", "6011111111111117"),
        ("3782 822463 10005", "card", "3782 822463 10005"),
        ("2223003122003222", "card", "2223003122003222"),
        ("DE89 3704 0044 0532 0130 00 IS MINE", "iban", "DE89 3704 0044 0532 0130 00"),
        ("de89370400440532013000", "iban", "de89370400440532013000"),
        ("(NL91ABNA0417164300)", "iban", "NL91ABNA0417164300"),
        ("\u5e10\u53f7\u662fDE89370400440532013000\u3002", "iban", "DE89370400440532013000"),
        ("ssn: 536-90-4399", "ssn", "536-90-4399"),
        ("SSN 536 90 4399", "ssn", "536 90 4399"),
        ("social security number is 536904399", "ssn", "536904399"),
        ("http://93.184.216.34:80/x", "ip", "93.184.216.34"),
        ("ip=93.184.216.34.", "ip", "93.184.216.34"),
        ("[2001:4860:4860::8888]", "ip", "2001:4860:4860::8888"),
        ("beacon to 93[.]184[.]216[.]34", "ip", "93[.]184[.]216[.]34"),
        ("name [at] firm [dot] com", "email", "name [at] firm [dot] com"),
        ("j.doe AT firm DOT co DOT uk", "email", "j.doe AT firm DOT co DOT uk"),
        ("ann dot lee at firm dot com, please", "email", "ann dot lee at firm dot com"),
        ("ask jane dot doe (at) example dot com", "email", "jane dot doe (at) example dot com"),
        ("jane [dot] m [dot] doe [at] example [dot] com.", "email", "jane [dot] m [dot] doe [at] example [dot] com"),
        ("jane DOT doe AT example DOT com", "email", "jane DOT doe AT example DOT com"),
        ("user=ann%40example.com&x", "email", "ann%40example.com"),
        ("Mobil: 0171 3920017", "phone", "0171 3920017"),
        ("mon portable est le 06 39 98 12 47", "phone", "06 39 98 12 47"),
        ("手机号13800000427，", "phone", "13800000427"),
        ("write to +44 7700 900417", "phone", "+44 7700 900417"),
        ("Ich bin heute nicht bei der Arbeit, sondern unter 030 901820 da", "phone", "030 901820"),
        ("4111.1111.1111.1111", "card", "4111.1111.1111.1111"),
        ("6759 6498 2643 8453", "card", "6759 6498 2643 8453"),
        ("DE89-3704-0044-0532-0130-00", "iban", "DE89-3704-0044-0532-0130-00"),
        ("social security: 536/90/4399", "ssn", "536/90/4399"),
        ("BSN 111222333", "national_id", "111222333"),
        ('{"pesel": "44051401359"}', "national_id", "44051401359"),
        ("NHS number 943 476 5919", "national_id", "943 476 5919"),
        ("CPF390.533.447-05", "national_id", "390.533.447-05"),
        ("o número 390.533.447-05 é meu", "national_id", "390.533.447-05"),
        # Words that only capitals make a name of a number.
        ("my SIN is 130-692-544", "national_id", "130-692-544"),
        ("NAS 130 692 544", "national_id", "130 692 544"),
        ("n° AVS : 7569217076985", "national_id", "7569217076985"),
        ("C.C. No. 52.123.456", "national_id", "52.123.456"),
        ("RČ 736028/5163", "national_id", "736028/5163"),
        ("r. č.: 736028/5163", "national_id", "736028/5163"),
        ("PAN: ABCPV1234D", "national_id", "ABCPV1234D"),
        ("pan card number abcpv1234d", "national_id", "abcpv1234d"),
        ("CF RCC MNL 83S18 D969H", "national_id", "RCC MNL 83S18 D969H"),
        # Letters apart from the digits, and other marks that the numbers are printed with.
        ("National Insurance number: AB 12 34 56 C.", "national_id", "AB 12 34 56 C"),
        ("NINO AB-12-34-56-C", "national_id", "AB-12-34-56-C"),
        ("NI no. AB 123456 C", "national_id", "AB 123456 C"),
        ("NI: AB123456C", "national_id", "AB123456C"),
        ("NIE X-2482300-W", "national_id", "X-2482300-W"),
        ("N.I.E. n.º X 2.482.300 W", "national_id", "X 2.482.300 W"),
        ("DNI 54 362 315 K", "national_id", "54 362 315 K"),
        ("PPS No: 6433435 OA", "national_id", "6433435 OA"),
        ("PAN ACUPA-7085-R", "national_id", "ACUPA-7085-R"),
        ("ITALIA RCC MNL 83S18 D969 H", "national_id", "RCC MNL 83S18 D969 H"),
        ("CURP BOXW-310820-HNERXN-09", "national_id", "BOXW-310820-HNERXN-09"),
        ("身份证号 110105 19491231 002X", "national_id", "110105 19491231 002X"),
        ("passport no. C01X00T47", "passport", "C01X00T47"),
        ("Passport No. AB 1234567", "passport", "AB 1234567"),
        ("PASSPORT NO 123456789", "passport", "123456789"),
        ("passeport 12 AB 34567", "passport", "12 AB 34567"),
        ("Reisepassnummer: C01X00T47", "passport", "C01X00T47"),
        ("born in Lyon on 14 July 1985", "birth_date", "14 July 1985"),
        ("dob=1990-05-06&x=1", "birth_date", "1990-05-06"),
        ("geb. 01.12.2001,", "birth_date", "01.12.2001"),
        ("1990年4月12日生まれ", "birth_date", "1990年4月12日"),
    ],
)
def test_personal_data_is_found_to_the_character(text, category, value):
    assert seen(text) == [(category, value)]


@pytest.mark.parametrize(
    "text",
    [
        "version 10.2.33.41, v11.0.20.5, Chrome/120.0.60.10, requests==2.31.0.1, section 3.1.2.4",
        "1.2.3.4 Introduction",
        "127.0.0.1 10.0.0.1 192.168.0.1 172.16.0.9 169.254.0.1 0.0.0.0 ::1 fe80::1 fd00::1",
        "256.1.1.1 and 93.184.216.34.5 and 1.93.184.216.345",
        "ISBN 978-3-16-148410-0, 9783161484100, 0-306-40615-2",
        "order 4155552671, invoice no. 4155552672, tracking number 1Z999AA10123456784",
        "2024-11-05T12:30:45Z 2024-11-05 11/05/2024 1700000000 1700000000123 20241105123045",
        "$1,234,567.89 and 1.234.567,89 EUR and 100,000,000",
        "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "37.774929, -122.419416",
        "3.14159265358979323846",
        "4111 1111 1111 1112, 1234 5678 9012 3456, 0000 0000 0000 0000",
        "0.4111111111111111",
        "DE89 3704 0044 0532 0130 01 and XX82WEST12345698765432",
        "000-12-3456, 666-12-3456, 987-65-4321, 123-456-789, 536904399",
        "git@github.com:org/repo.git @types/node@18.0.0 @app.get user@host a@b",
        "aa:bb:cc:dd:ee:ff std::vector 12:30:45 a::b",
        "help is at 1-800-273-8255, (800) 745-3000 or +1 888 407 4747",
        "case 2017/130617, row 3    10    10  1.0, key 2016-86-3396",
        "111222333, 44051401359, 536 90 4399, BSN 111222334, order 06 39 98 12 47",
        "original sin 130 692 544, nas 130692544, a pan ABCPV1234D, see cf. 130692544, r. 736028/5163, c.c. 52.123.456",
        "AB 12 34 56 C, NINO of AB and 12 34 56 C, National Insurance for DF 12 34 56 C, order AB 12 34 56 C",
        "NIE X-2482300-A, PAN ref ABCPV1234D, BSN abc111222333, passport fee for AB 1234567, PASSPORT ON 20240115",
        "passport expires on 04.08.2033, passport application, order 123456789, C01X00T47",
        "founded on 14 July 1985, due 1990-05-06, born 27 January 1756, born 45.67.1999, birthday party on 12/05/2020",
        "Look at example dot com, meet me at firm dot com, LOOK AT THIS DOT COM",
        "les numéros du loto : 05 12 23 34 41 07, +5 000 000 people, mobile users: 612 345 670 people",
        "Upgraded libfoo from 93.1.0.12 to 93.1.0.13",
        "Hotline: 0331 123 4567, tel. 0800 111 222, phone 2023-11-05, call 192.168.1.200",
        "1914-1918, 10:30-11:45, 555-1234, 1-2-3-4, 12 345 678 90, 1920x1080",
        "",
        "Nothing to see here; the meeting is at 9 in room 404.",
    ],
)
def test_what_only_looks_like_personal_data_is_left_alone(text):
    assert seen(text) == []


def test_every_occurrence_is_found_in_order():
    text = "a@x.io, 415-555-2671, b@x.io;c@x.io"
    assert [value for _, value in seen(text)] == ["a@x.io", "415-555-2671", "b@x.io", "c@x.io"]


def test_bare_digits_are_reported_below_every_usual_threshold():
    (finding,) = find("6502530000")
    assert (finding.category, finding.score) == ("pii.phone", 0.3)


def test_region_says_whose_national_numbers_are_known():
    assert seen("ring 020 7946 0958") == []
    assert seen("ring 020 7946 0958", PiiCheck("GB")) == [("phone", "020 7946 0958")]


def test_finding_carries_the_part_and_never_the_matched_text():
    (finding,) = find("bob@example.com", part=3)
    assert (finding.check, finding.spans[0].part) == ("pii", 3)
    assert "bob" not in finding.detail


@given(st.text(max_size=80), st.text(max_size=80))
def test_address_is_found_whatever_stands_around_it(before, after):
    text = f"{before} bob@example.com {after}"
    start = len(before) + 1
    assert any(
        f.category == "pii.email" and f.spans[0].start <= start and f.spans[0].end >= start + len("bob@example.com")
        for f in find(text)
    )


@given(st.text(alphabet="0123456789 -.+()@:/aDE\u00a0\U0001f642", max_size=200))
def test_spans_lie_in_the_text_and_do_not_overlap(text):
    end = 0
    for finding in find(text):
        (span,) = finding.spans
        assert end <= span.start < span.end <= len(text)
        end = span.end


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a@",
        "x@a.",
        "x@a-",
        "1",
        "1 ",
        "1.",
        "1111 ",
        "DE12 3456 7890 ",
        "2001:",
        "(",
        "650-253-0000 ",
        "+",
        "+1 ",
        "0 ",
        "cpf 123456 ",
        "tel 0123 4567 ",
        "geb. 1.1.1999 ",
        "a at b dot ",
        "a[at]",
        "A1",
        "1[.]",
        "P<",
        "NI NI A B 123456 ",
        "PAN ABCPV-",
        "passport AB 123456",
        "AAA ",
    ],
)
def test_time_grows_with_the_length_and_no_faster(unit, grows_with_its_length):
    assert grows_with_its_length(find, unit)
