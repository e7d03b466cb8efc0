"""Images of requests: taken out of addresses, refused where nobody could look into them, shown to who reads them."""

import base64
import io
import json
import struct
import sys
import tracemalloc
import zlib
from dataclasses import dataclass, field, replace

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from PIL import Image as Pillow

from ringfence.guard.audit.store import Store
from ringfence.guard.call import Call
from ringfence.guard.check import CannotAnswer, Finding, Span
from ringfence.guard.exchange import Exchange, Kind, Part, image_part
from ringfence.guard.guard import MOST_IMAGES, Guard
from ringfence.guard.images import MOST_BYTES, Image, Unreadable, address_of, opened, read_image, why_unreadable
from ringfence.guard.pipeline import Pipeline
from ringfence.guard.replay.replay import replay
from ringfence.policies.document import PolicyError
from ringfence.policies.own import GuardModel
from ringfence.policies.types import Action, Escalate, Exemption, Limits, Policy, Rule, Stage
from ringfence.proxy.app import create_app
from ringfence.proxy.upstreams.fake import FakeUpstream
from ringfence.proxy.wire import anthropic_messages, litellm_guardrail, openai_chat, openai_moderations


def picture(kind="PNG", size=(40, 24), colour=(10, 80, 160), **options):
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, kind, **options)
    return file.getvalue()


def url_of(data, media_type="image/png"):
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(side):
    """A PNG of a few hundred bytes that says it is `side` pixels wide and high."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def moving(kind):
    file = io.BytesIO()
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def drawn(mode, colour, kind="PNG", **options):
    file = io.BytesIO()
    Pillow.new(mode, (8, 8), colour).save(file, kind, **options)
    return file.getvalue()


PNG = picture()


# --- addresses


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_an_image_is_read_from_its_address_as_it_came(kind):
    data = picture(kind.upper())
    image = read_image(url_of(data, f"image/{kind}"))
    assert (image.media_type, image.data) == (f"image/{kind}", data)
    seen = opened(image)
    assert (seen.size, seen.mode) == ((40, 24), "RGB")
    assert why_unreadable(image) == ""
    assert image.url == url_of(data, f"image/{kind}")
    assert "data" not in repr(image)


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        ("image/png", drawn("RGBA", (9, 9, 9, 255))),
        ("image/png", drawn("1", 1)),
        ("image/png", drawn("P", 0)),
        ("image/jpeg", drawn("CMYK", (1, 2, 3, 4), "JPEG")),
        ("image/jpeg", picture("JPEG", progressive=True)),
    ],
)
def test_whatever_everybody_sees_alike_can_be_read(media_type, data):
    assert why_unreadable(Image(media_type, data)) == ""
    assert opened(Image(media_type, data)).mode == "RGB"


@pytest.mark.parametrize("url", ["http://cats.example/a.png", "HTTPS://cats.example/a.png"])
def test_what_lies_elsewhere_is_not_fetched(url):
    with pytest.raises(Unreadable, match=r"^it was not fetched$"):
        read_image(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "no PNG, JPEG, WebP or GIF"),
        ("file:///etc/passwd", "no PNG, JPEG, WebP or GIF"),
        (url_of(b"<svg/>", "image/svg+xml"), "no PNG, JPEG, WebP or GIF"),
        (url_of(PNG, "image/tiff"), "no PNG, JPEG, WebP or GIF"),
        ("data:image/png,raw", "no PNG, JPEG, WebP or GIF"),
        (url_of(PNG).replace("base64", "note=words;base64"), "no PNG, JPEG, WebP or GIF"),
        (url_of(PNG)[:-3], "base64 is damaged"),
        ("data:image/png;base64,ab cd", "base64 is damaged"),
        ("data:image/png;base64,äöü=", "base64 is damaged"),
        ("data:image/png;base64," + "A" * (MOST_BYTES * 4 // 3 + 8), f"larger than {MOST_BYTES:,} bytes"),
    ],
)
def test_an_address_that_holds_no_image_says_why(url, told):
    with pytest.raises(Unreadable, match=told) as failure:
        read_image(url)
    assert len(str(failure.value)) < 80


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (Image("image/jpeg", PNG), "damaged, or no image/jpeg"),
        (Image("image/png", b"<html>"), "damaged, or no image/png"),
        (Image("image/png", b""), "damaged, or no image/png"),
        (Image("image/png", PNG[: len(PNG) // 2]), "damaged, or no image/png"),
        (Image("image/jpeg", picture("JPEG", (400, 400))[:-600]), "damaged, or no image/jpeg"),
        (Image("image/webp", picture("WEBP")[:40]), "damaged, or no image/webp"),
        (Image("image/png", bomb(5_000)), "more than 16,777,216 pixels"),
        (Image("image/png", bomb(60_000)), "more than 16,777,216 pixels"),
        (Image("image/png", bomb(2**31 - 1)), "more than 16,777,216 pixels"),
        (Image("image/gif", moving("GIF")), "it moves"),
        (Image("image/webp", moving("WEBP")), "it moves"),
        (Image("image/png", moving("PNG")), "it moves"),
        (Image("image/png", drawn("RGBA", (0, 0, 0, 254))), "it can be seen through"),
        (Image("image/webp", drawn("RGBA", (0, 0, 0, 0), "WEBP", lossless=True)), "it can be seen through"),
        (Image("image/gif", drawn("P", 0, "GIF", transparency=0)), "it can be seen through"),
        (Image("image/png", drawn("RGB", (1, 2, 3), transparency=(1, 2, 3))), "it can be seen through"),
        (Image("image/png", drawn("I;16", 40_000)), "its colours are not the same"),
        (Image("image/jpeg", picture("JPEG") + b"\xff\xda" * 200), "more than 100 scans"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_nobody_could_look_into_says_why(image, told):
    assert told in why_unreadable(image)


def test_without_pillow_nobody_is_shown_an_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    eye = Eye()
    exchange = shown(PNG)
    decision = Guard(of(NO_RED, NO_MEDIA), checks={"eye": eye}).judge_request(exchange)
    assert (decision.rules, eye.seen) == (("no-media",), [])
    assert "ringfence[images]" in coverage(exchange)[1][1]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_takes_room():
    tracemalloc.start()
    why_unreadable(Image("image/png", bomb(9_000)))
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("cut", range(0, len(PNG), 7))
def test_no_damage_is_anything_but_an_image_or_a_reason(cut):
    for spoilt in (PNG[:cut], PNG[:cut] + b"\xff" + PNG[cut + 1 :]):
        assert isinstance(why_unreadable(Image("image/png", spoilt)), str)


# --- wires

SHOWN = {"type": "image_url", "image_url": {"url": url_of(PNG), "detail": "low"}}
ANTHROPIC = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
    "cache_control": {"type": "ephemeral"},
}


def chat(*content, **fields):
    return {"model": "fake", "messages": [{"role": "user", "content": list(content)}], **fields}


def kinds(parts):
    return [(part.kind, part.image and part.image.data, part.why) for part in parts]


@pytest.mark.parametrize(
    "read",
    [
        lambda: openai_chat.read_request(chat({"type": "text", "text": "Look."}, SHOWN))[0].request,
        lambda: anthropic_messages.read_request(chat({"type": "text", "text": "Look."}, ANTHROPIC))[0].request,
        lambda: openai_moderations.read_request({"input": [{"type": "text", "text": "Look."}, SHOWN]})[0].request,
        lambda: (
            litellm_guardrail.read_request({"input_type": "request", "texts": ["Look."], "images": [url_of(PNG)]})[
                0
            ].request
        ),
        lambda: (
            Call(
                Guard(Policy("p", ()), checks={}), chat({"type": "text", "text": "Look."}, SHOWN)["messages"]
            )._exchange.request
        ),
    ],
    ids=["chat", "messages", "moderations", "litellm", "python"],
)
def test_every_way_in_reads_an_image_and_no_letter_of_it_as_text(read):
    parts = read()
    assert [(p.kind, p.image.data) for p in parts if p.image] == [(Kind.MEDIA, PNG)]
    texts = "".join(part.text for part in parts)
    assert "Look." in texts
    assert base64.b64encode(PNG).decode()[:40] not in texts
    assert Kind.UNKNOWN not in [part.kind for part in parts]


def test_responses_have_the_address_without_a_mapping():
    assert address_of({"type": "input_image", "image_url": "https://x.example/a.png"}) == "https://x.example/a.png"
    assert address_of({"type": "input_audio", "input_audio": {"data": "QUJD"}}) is None
    assert address_of({"type": "image_url", "image_url": {"url": 7}}) is None
    assert address_of("text") is None


@pytest.mark.parametrize("url", ["https://cats.example/a.png", "data:image/png;base64,AAA"])
def test_an_image_that_is_not_there_is_media_as_ever_and_says_why(url):
    exchange, _ = openai_chat.read_request(chat({"type": "image_url", "image_url": {"url": url}}))
    ((kind, image, why),) = kinds(exchange.request)
    assert (kind, image) == (Kind.MEDIA, None)
    assert why


def test_words_beside_an_image_are_a_field_that_nobody_reads():
    hidden = {**SHOWN, "note": "Here is how a lock is picked"}
    for item in (hidden, {**SHOWN, "image_url": {**SHOWN["image_url"], "how a lock is picked": 1}}):
        exchange, _ = openai_chat.read_request(chat(item))
        assert [part.kind for part in exchange.request] == [Kind.MEDIA, Kind.UNKNOWN]
    exchange, _ = anthropic_messages.read_request(chat({**ANTHROPIC, "note": "Here is how a lock is picked"}))
    assert [part.kind for part in exchange.request] == [Kind.MEDIA, Kind.UNKNOWN]


# --- checks


@dataclass
class Eye:
    """Finds what is red, surely; keeps what it was shown."""

    name: str = "eye"
    categories: frozenset = frozenset({"red"})
    reads: frozenset = frozenset({"image"})
    broken: bool = False
    seen: list = field(default_factory=list)

    def find(self, passage):
        self.seen.append(passage)
        if self.broken:
            raise CannotAnswer("dazzled")
        red = passage.image and opened(passage.image).getpixel((0, 0))[0] / 255
        return [Finding(self.name, "red", red or 0.0, (Span(passage.part, 0, 0),))]


RED = picture(colour=(255, 0, 0))
NO_RED = Rule("no-red", "red", Action.BLOCK, threshold=0.8, message="No red.")
NO_BOMBS = Rule("no-bombs", "bomb", Action.BLOCK)
NO_MEDIA = Rule("no-media", "unjudged.media", Action.BLOCK)


def of(*rules, **more):
    return Policy("p", rules, revision="r", **more)


def shown(*images, text="Look.", earlier=()):
    """An exchange whose last message has a text and images."""
    at = len(earlier)
    said = [Part(Kind.TEXT, role, ("messages", i, "content"), words) for i, (role, words) in enumerate(earlier)]
    parts = [Part(Kind.TEXT, "user", ("messages", at, "content"), text)]
    urls = [one if isinstance(one, str) else url_of(one) for one in images]
    parts += [image_part("user", ("messages", at, "content", 1 + i), url) for i, url in enumerate(urls)]
    return Exchange("test", "m", [*said, *parts])


def coverage(exchange):
    return [(one.status.value, one.why) for one in exchange.coverage]


def test_an_image_is_shown_to_who_reads_images_with_its_text_and_to_nobody_else(checks):
    eye = Eye()
    guard = Guard(of(NO_RED, NO_BOMBS), checks={"eye": eye, **checks})
    exchange = shown(PNG, earlier=(("user", "Hi."), ("assistant", "Hello.")))
    assert guard.judge_request(exchange).action is Action.ALLOW
    assert checks["word-bomb"].seen == ["Hi.", "Hello.", "Look."]
    (passage,) = eye.seen
    assert (passage.image.data, passage.text, passage.prompt) == (PNG, "", "Look.")
    assert passage.earlier == (("user", "Hi."), ("assistant", "Hello."))
    assert coverage(exchange) == [("judged", "")] * 4


def test_what_is_found_in_an_image_is_decided_like_anything_else(checks):
    exchange = shown(PNG, RED)
    decision = Guard(of(NO_RED, NO_MEDIA), checks={"eye": Eye()}).judge_request(exchange)
    assert (decision.action, decision.rules, decision.message) == (Action.BLOCK, ("no-red",), "No red.")
    assert {(one.category, one.spans, one.rewritable) for one in decision.findings} == {
        ("red", (Span(1, 0, 0),), False),
        ("red", (Span(2, 0, 0),), False),
    }


def test_an_image_cannot_be_rewritten_and_is_blocked():
    decision = Guard(of(replace(NO_RED, action=Action.REWRITE)), checks={"eye": Eye()}).judge_request(shown(RED))
    assert (decision.action, decision.rules) == (Action.BLOCK, ("no-red",))


def test_where_no_check_reads_images_one_is_not_called_judged_and_rules_over_media_settle_it(checks):
    exchange = shown(RED)
    decision = Guard(of(NO_BOMBS, NO_MEDIA), checks=checks).judge_request(exchange)
    assert decision.rules == ("no-media",)
    assert coverage(exchange) == [("judged", ""), ("unjudged", "no check reads media")]


def test_an_image_of_a_role_that_no_rule_looks_at_is_media_that_nobody_reads():
    eye = Eye()
    exchange = shown(RED)
    decision = Guard(of(replace(NO_RED, roles=("tool",)), NO_MEDIA), checks={"eye": eye}).judge_request(exchange)
    assert (decision.rules, eye.seen, coverage(exchange)[1]) == (
        ("no-media",),
        [],
        ("unjudged", "no check reads media"),
    )


def test_a_text_of_which_only_images_are_read_is_not_called_judged():
    exchange = shown(PNG)
    Guard(of(NO_RED), checks={"eye": Eye()}).judge_request(exchange)
    assert coverage(exchange) == [
        ("unjudged", "no rule of the policy has a check read the input"),
        ("judged", ""),
    ]


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("https://cats.example/a.png", "it was not fetched"),
        (PNG[:40], "it is damaged, or no image/png"),
        (bomb(5_000), "it has more than 16,777,216 pixels"),
        (url_of(PNG, "image/jpeg"), "it is damaged, or no image/jpeg"),
    ],
)
def test_an_image_that_no_check_could_look_into_is_shown_to_none_and_stays_unjudged(checks, image, why):
    eye = Eye()
    exchange = shown(image)
    decision = Guard(of(NO_RED, NO_BOMBS, NO_MEDIA), checks={"eye": eye, **checks}).judge_request(exchange)
    assert (decision.rules, eye.seen) == (("no-media",), [])
    assert coverage(exchange) == [("judged", ""), ("unjudged", f"no check reads media: {why}")]


def test_more_images_than_are_looked_into_stay_unjudged():
    eye = Eye()
    exchange = shown(*[PNG] * (MOST_IMAGES + 2))
    decision = Guard(of(NO_RED, NO_MEDIA), checks={"eye": eye}).judge_request(exchange)
    assert (decision.action, len(eye.seen)) == (Action.BLOCK, MOST_IMAGES)
    assert [status for status, _ in coverage(exchange)[1:]] == ["judged"] * MOST_IMAGES + ["unjudged"] * 2


@pytest.mark.parametrize("on_error", [Action.BLOCK, Action.LOG])
def test_a_check_that_fails_on_an_image_leaves_that_unjudged_and_its_text_judged(checks, on_error):
    exchange = shown(PNG)
    rules = (replace(NO_RED, on_error=on_error), NO_BOMBS)
    decision = Guard(of(*rules), checks={"eye": Eye(broken=True), **checks}).judge_request(exchange)
    assert (decision.action, decision.unanswered) == (on_error, {"no-red": on_error})
    assert coverage(exchange) == [("judged", ""), ("unjudged", "eye: dazzled")]


def test_a_check_that_fails_on_a_text_leaves_an_image_judged(broken_check):
    exchange = shown(PNG)
    rules = (NO_RED, Rule("r", "broken", Action.LOG, on_error=Action.LOG))
    Guard(of(*rules), checks={"eye": Eye(), "broken": broken_check}).judge_request(exchange)
    assert coverage(exchange) == [("unjudged", "broken: failed with RuntimeError"), ("judged", "")]


def test_a_check_of_both_that_fails_on_images_has_still_read_the_text():
    class Both(Eye):
        def find(self, passage):
            if passage.image:
                raise CannotAnswer("dazzled")
            return [Finding(self.name, "red", float("red" in passage.text), (Span(passage.part, 0, 3),))]

    exchange = shown(PNG, text="red")
    rule = replace(NO_RED, on_error=Action.LOG)
    decision = Guard(of(rule), checks={"eye": Both(reads=frozenset({"text", "image"}))}).judge_request(exchange)
    assert (decision.action, decision.rules) == (Action.BLOCK, ("no-red",))
    assert coverage(exchange) == [("judged", ""), ("unjudged", "eye: dazzled")]


def test_an_image_of_an_exempt_role_is_left_alone_where_images_are_read():
    eye = Eye()
    exchange = shown(RED)
    guard = Guard(of(NO_RED, NO_MEDIA, exempt=(Exemption("user", "ours"),)), checks={"eye": eye})
    assert (guard.judge_request(exchange).action, eye.seen) == (Action.ALLOW, [])
    assert [status for status, _ in coverage(exchange)] == ["exempt"] * 2


def test_a_rule_that_is_not_sure_of_an_image_asks_who_reads_images_about_that_image():
    first, second = Eye(), Eye("second", frozenset({"again"}))
    second.find = lambda passage: (
        second.seen.append(passage) or [Finding("second", "again", 0.9, (Span(passage.part, 0, 0),))]
    )
    rule = replace(NO_RED, threshold=0.2, escalate=Escalate("again", (0.2, 0.9)))
    dim = picture(colour=(128, 0, 0))
    decision = Guard(of(rule), checks={"eye": first, "second": second}).judge_request(shown(PNG, dim))
    assert (decision.action, decision.escalated) == (Action.BLOCK, {"no-red": "again"})
    assert [passage.image.data for passage in second.seen] == [dim]


def test_a_rule_may_not_ask_about_images_who_reads_none(checks):
    rule = replace(NO_RED, threshold=0.2, escalate=Escalate("bomb", (0.2, 0.9)))
    with pytest.raises(PolicyError, match="rule 'no-red' escalates to 'bomb', whose check reads no images"):
        Pipeline(of(rule), {"eye": Eye(), **checks})


# --- the record


@pytest.mark.parametrize("keep", ["masked", "full", "none"])
def test_a_record_knows_an_image_by_its_digest_and_never_keeps_it(tmp_path, keep):
    made = of(NO_RED)
    store = Store.open(tmp_path / "log.db")
    guard = Guard(replace(made, audit=replace(made.audit, text=keep)), checks={"eye": Eye()}, store=store)
    exchange = shown(RED, "https://cats.example/a.png")
    guard.judge_request(exchange)
    guard.record(exchange)
    [kept] = store.list(limit=1)
    _, image, elsewhere = kept.body["request"]
    assert image["media_type"] == "image/png"
    assert image["digest"] == Image("image/png", RED).digest
    assert image["bytes"] == len(RED)
    assert elsewhere == {"kind": "media", "role": "user", "where": "messages[0].content[2]"}
    assert base64.b64encode(RED).decode()[:60] not in json.dumps(kept.body)
    assert "cats.example" not in json.dumps(kept.body)


@dataclass
class Bombs:
    """Finds bombs in texts."""

    name: str = "bombs"
    categories: frozenset = frozenset({"bomb"})

    def find(self, passage):
        return [Finding("bombs", "bomb", float("bomb" in passage.text), (Span(passage.part, 0, 4),))]


def replayed(path, before, after, *exchanges):
    """Judge exchanges by one policy, and decide what is on record by both."""
    checks = {"bombs": Bombs(), "eye": Eye()}
    full = [
        replace(one, revision=name, audit=replace(one.audit, text="full"))
        for name, one in (("before", before), ("after", after))
    ]
    store = Store.open(path)
    guard = Guard(full[0], checks=checks, store=store)
    for exchange in exchanges:
        guard.judge_request(exchange)
        guard.record(exchange)
    store.close()
    return replay(path, *full, checks)


def test_an_image_cannot_be_judged_again_and_a_replay_says_so(tmp_path):
    found = replayed(tmp_path / "log.db", of(NO_BOMBS), of(NO_BOMBS, NO_RED), shown(RED), shown())
    assert (found.undecided, found.rejudged) == (1, 1)
    assert any("its image is not kept" in why for why in found.reasons)


@pytest.mark.parametrize(
    ("before", "after"), [((NO_BOMBS, NO_MEDIA), (NO_BOMBS, NO_MEDIA, NO_RED)), ((NO_RED, NO_MEDIA), (NO_MEDIA,))]
)
def test_a_replay_under_a_policy_that_reads_images_otherwise_is_not_decided_by_what_was_unread(tmp_path, before, after):
    found = replayed(tmp_path / "log.db", of(*before), of(*after), shown(PNG), shown())
    assert found.undecided == 1
    assert any("'unjudged.media' then, in the same way" in why for why in found.reasons)


def test_images_that_two_policies_read_otherwise_than_a_third_are_not_taken_for_read_alike(tmp_path):
    third = replace(of(replace(NO_RED, roles=("user",)), NO_BOMBS), revision="third")
    neither = replace(of(NO_BOMBS, NO_MEDIA), revision="neither")
    both = replace(of(replace(NO_RED, action=Action.ALLOW), NO_BOMBS, NO_MEDIA), revision="both")
    checks, actions, store = {"bombs": Bombs(), "eye": Eye()}, [], Store.open(tmp_path / "log.db")
    for by in (third, neither, both):
        exchange = shown(PNG)
        exchange.request.append(image_part("tool", ("messages", 1, "content", 0), url_of(PNG)))
        guard = Guard(by, checks=checks, store=store)
        actions.append(guard.judge_request(exchange).action)
        if by is third:
            guard.record(exchange)
    store.close()
    assert actions == [Action.ALLOW, Action.BLOCK, Action.ALLOW]
    assert replay(tmp_path / "log.db", neither, both, checks).undecided == 1


def test_a_policys_own_decision_about_an_image_that_nobody_could_look_into_is_reproduced(tmp_path):
    made = of(NO_RED, NO_MEDIA)
    found = replayed(tmp_path / "log.db", made, replace(made, message="No."), shown(bomb(5_000)), shown(RED))
    assert (found.undecided, found.reproduced, found.decided_then) == (0, 2, 2)


# --- through the proxy


@pytest.fixture
def seeing(serve, service_of, store):
    """A proxy with a Llama Guard 4 behind a server, which finds every image unsafe, and whom each of them asked."""
    asked, upstream = [], FakeUpstream()
    server = FastAPI()

    async def answer(request: Request):
        body = json.loads(await request.body())
        asked.append(body["messages"])
        unsafe = isinstance(body["messages"][-1]["content"], list)
        message = {"role": "assistant", "content": "unsafe\nS1" if unsafe else "safe"}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    server.post("/v1/chat/completions")(answer)
    spec = GuardModel("llama-guard-4", "guard", f"{serve(server)}/v1", "m", images=True)
    rule = Rule("guarded", "guard.S1", Action.BLOCK, message="Not that.")
    made = of(rule, checks=(spec,), limits=Limits(body_bytes=40_000_000))
    url = serve(create_app(service_of(Guard(made, checks={}, store=store), upstream)))
    return url, asked, upstream


def test_an_image_goes_through_the_proxy_to_a_served_guard_and_is_blocked(seeing, store):
    url, asked, upstream = seeing
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    harmless = client.chat.completions.with_raw_response.create(
        model="fake", messages=[{"role": "user", "content": "Look."}]
    )
    assert harmless.headers["x-ringfence-coverage"].startswith("judged=2 exempt=0 unjudged=0")
    with pytest.raises(openai.APIStatusError, match="Not that"):
        client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": [{"type": "text", "text": "Look."}, SHOWN]}]
        )
    assert len(upstream.seen) == 1
    image = {"type": "image_url", "image_url": {"url": url_of(PNG)}}
    assert [{"role": "user", "content": [image, {"type": "text", "text": "Look."}]}] in asked
    [kept] = store.list(limit=1)
    assert [one["status"] for one in kept.body["coverage"]] == ["judged", "judged"]
    assert [part.get("digest") for part in kept.body["request"]][1] == Image("image/png", PNG).digest
    assert kept.body["action"] == "block"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("https://cats.example/a.png", "no check reads media: it was not fetched"),
        (url_of(bomb(5_000)), "no check reads media: it has more than 16,777,216 pixels"),
        (url_of(PNG[:50]), "no check reads media: it is damaged, or no image/png"),
        (url_of(PNG, "image/webp"), "no check reads media: it is damaged, or no image/webp"),
        (url_of(bytes(7_500_000)), "no check reads media: it is damaged, or no image/png"),
        (url_of(bytes(9_000_000)), f"no check reads media: it is larger than {MOST_BYTES:,} bytes"),
    ],
    ids=["elsewhere", "bomb", "truncated", "another type", "10 MB of base64", "12 MB of base64"],
)
def test_a_hostile_image_is_on_record_as_unjudged_with_the_reason(seeing, store, address, why):
    url, asked, _ = seeing
    item = {"type": "image_url", "image_url": {"url": address}}
    body = chat({"type": "text", "text": "Look."}, item)
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "unjudged=1" in answer.headers["x-ringfence-coverage"]
    assert not any(isinstance(messages[-1]["content"], list) for messages in asked)
    [kept] = store.list(limit=1)
    assert kept.body["coverage"][1] == {"where": "messages[0].content[1]", "status": "unjudged", "why": why}
    assert ("guard", "unjudged.media") in {
        (one["check"], one["category"]) for one in kept.body["decisions"][0]["findings"]
    }


def test_only_its_form_is_asked_of_an_image_at_the_output_stage():
    """Replies have no images: what reads nothing else reads nothing there."""
    pipeline = Pipeline(of(NO_RED), {"eye": Eye()})
    assert (pipeline.reads(Stage.OUTPUT), pipeline.reads(Stage.OUTPUT, "image")) == (False, True)
