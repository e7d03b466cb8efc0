"""`@guarded` around every kind of function."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ringfence import Blocked, Guard, PolicyError, guarded
from ringfence.guard.audit.store import Store
from ringfence.guard.check import Finding, Passage
from ringfence.policies.types import Policy

Ask = Callable[[str], str]
LONG = "There is a lot to say about it and little of it is new. " * 6


@dataclass
class Model:
    """Repeats what it is told; keeps what it was told."""

    reply: str = ""
    told: list[str] = field(default_factory=list)

    def answer(self, prompt: str) -> str:
        self.told.append(prompt)
        return self.reply or prompt


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture(params=["function", "coroutine", "generator", "async generator"])
def ask(request: pytest.FixtureRequest, guard: Guard, model: Model) -> Callable[..., Ask]:
    """Return a guarded function of each kind, called in the same way: `ask()(prompt)` gives the whole text."""

    def build(**options: object) -> Ask:
        guard_it = guarded(policy=guard, **options)

        @guard_it
        def function(prompt: str) -> str:
            return model.answer(prompt)

        @guard_it
        async def coroutine(prompt: str) -> str:
            return model.answer(prompt)

        @guard_it
        def generator(prompt: str) -> Iterator[str]:
            yield from model.answer(prompt)

        @guard_it
        async def async_generator(prompt: str) -> AsyncIterator[str]:
            for character in model.answer(prompt):
                yield character

        async def collected(prompt: str) -> str:
            return "".join([piece async for piece in async_generator(prompt)])

        kinds: dict[str, Ask] = {
            "function": function,
            "coroutine": lambda prompt: asyncio.run(coroutine(prompt)),
            "generator": lambda prompt: "".join(generator(prompt)),
            "async generator": lambda prompt: asyncio.run(collected(prompt)),
        }
        return kinds[request.param]

    return build


def test_harmless_text_passes_and_leaves_one_record(ask: Callable[..., Ask], model: Model, store: Store) -> None:
    model.reply = LONG
    assert ask()("tell me about it") == LONG
    assert model.told == ["tell me about it"]
    assert store.count() == 1


def test_blocked_prompt_never_reaches_the_function(ask: Callable[..., Ask], model: Model, store: Store) -> None:
    with pytest.raises(Blocked, match="No bombs here"):
        ask()("a bomb, please")
    assert model.told == []
    assert store.count("block") == 1


def test_blocked_reply_raises(ask: Callable[..., Ask], model: Model, store: Store) -> None:
    model.reply = LONG + "then a leak"
    with pytest.raises(Blocked, match="That stays here"):
        ask()("go on")
    assert store.count("block") == 1


def test_another_word_for_what_to_do_is_refused(ask: Callable[..., Ask]) -> None:
    with pytest.raises(ValueError, match="on_block is 'raise' or 'return', and not 'explode'"):
        ask(on_block="explode")


def test_on_block_return_gives_the_policys_message(ask: Callable[..., Ask], model: Model, store: Store) -> None:
    assert ask(on_block="return")("a bomb, please") == "No bombs here."
    model.reply = "a leak"
    assert ask(on_block="return")("go on") == "That stays here."
    assert store.count("block") == 2


def test_rewriting_works_in_both_directions(ask: Callable[..., Ask], model: Model, store: Store) -> None:
    model.reply = "it was 987654 all along"
    assert ask()("is it 123456?") == "it was [NUMBER] all along"
    assert model.told == ["is it [NUMBER]?"]
    assert store.count("rewrite") == 1


def test_an_error_in_the_function_is_raised_and_on_record(ask: Callable[..., Ask], model: Model, store: Store) -> None:
    def fail(_: str) -> str:
        raise OSError("the model is gone")

    model.answer = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the model is gone"):
        ask()("hello")
    [kept] = store.list()
    assert kept.body is not None
    assert kept.body["error"] == "OSError"


def test_a_reader_that_stops_early_closes_the_source_and_leaves_a_record(guard: Guard, store: Store) -> None:
    closed = []

    @guarded(policy=guard)
    def talk(prompt: str) -> Iterator[str]:
        try:
            while True:
                yield LONG
        finally:
            closed.append(prompt)

    reading = talk("go")
    next(reading)
    reading.close()
    assert closed == ["go"]
    [kept] = store.list()
    assert kept.body is not None
    assert kept.body["error"] == "the caller stopped reading"


def test_messages_are_prompts_too(guard: Guard) -> None:
    @guarded(policy=guard, prompt="messages")
    def chat(temperature: float, messages: list[dict[str, str]]) -> str:
        return messages[-1]["content"]

    assert chat(0.0, [{"role": "user", "content": "it is 123456"}]) == "it is [NUMBER]"
    with pytest.raises(Blocked):
        chat(0.0, messages=[{"role": "system", "content": "bomb"}, {"role": "user", "content": "hi"}])


def test_what_is_not_text_is_refused(guard: Guard) -> None:
    @guarded(policy=guard)
    def number(prompt: str) -> int:
        return 7

    with pytest.raises(TypeError, match="gave int, not text"):
        number("hi")
    with pytest.raises(TypeError, match="must be a string or a list of messages"):
        number(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no parameter 'question'"):
        guarded(policy=guard, prompt="question")(number)


def test_without_settings_the_parentheses_may_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    @guarded
    def repeat(prompt: str) -> str:
        return prompt

    assert repeat("Write to jane.roe@example.com") == "Write to [PII_EMAIL]"


def test_a_wrong_policy_is_refused_where_the_decorator_stands(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("rulez: []\n")
    with pytest.raises(PolicyError, match="rulez"):
        guarded(policy=tmp_path / "policy.yaml")


def test_a_call_that_is_cancelled_while_it_is_judged_leaves_no_text_behind(policy: Policy, store: Store) -> None:
    started, let_go = threading.Event(), threading.Event()

    class Slow:
        name = "slow"
        categories = frozenset({"bomb", "leak", "number", "knife"})

        def find(self, passage: Passage) -> list[Finding]:
            started.set()
            let_go.wait(10)
            return []

    @guarded(policy=Guard(policy, checks={"slow": Slow()}, store=store))
    async def answer(prompt: str) -> str:
        return prompt

    async def cancelled() -> None:
        call = asyncio.ensure_future(answer("my pin is 123456"))
        await asyncio.to_thread(started.wait)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        let_go.set()

    asyncio.run(cancelled())
    [kept] = store.list()
    assert "123456" not in kept.raw


def test_every_text_of_a_message_is_judged(guard: Guard) -> None:
    @guarded(policy=guard, prompt="messages")
    def chat(messages: object) -> str:
        return "fine"

    call = {"function": {"name": "f", "arguments": '{"a": "bomb"}'}}
    for message in (
        {"content": "x", "name": "a bomb"},
        {"content": None, "tool_calls": [call]},
        {"content": ["a bomb"]},
        {"role": "a bomb", "content": "x"},
        {"content": "x", "a bomb": ""},
        {"content": [{"type": "image_url", "image_url": {"url": PNG}, "title": "a bomb"}]},
        {"content": [{"type": "text", "text": "a bo"}, {"type": "text", "text": "mb"}]},
        {"content": [{"type": "text", "text": "fine", "caption": "a bomb"}]},
    ):
        with pytest.raises(Blocked):
            chat([{"role": "user", **message}])
    for nothing in ([], b"", 7, ["bomb"]):
        with pytest.raises(TypeError):
            chat(nothing)
    assert chat(({"role": "user", "content": "it is 123456"},)) == "fine"


PNG = "data:image/png;base64," + "a+bomb+" * 12 + "AAAA"


class Block:
    """What some SDK has for content."""

    text = "a bomb"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ([Block()], "messages[0].content[0]"),
        ({"a bomb"}, "messages[0].content"),
        (b"a bomb", "messages[0].content"),
        ([{"type": "tool_result", "content": [{"type": "image", "source": "x"}]}], "messages[0].content[0].content[0]"),
        ({"type": "image", "source": "x"}, "messages[0].content"),
        ([{"inline_data": {"mime_type": "image/png", "data": "aaaa"}}], "messages[0].content[0]"),
    ],
)
def test_what_is_no_text_is_never_called_judged(guard: Guard, store: Store, content: object, where: str) -> None:
    @guarded(policy=guard, prompt="messages")
    def chat(messages: object) -> str:
        return "fine"

    chat([{"role": "user", "content": content}])
    [kept] = store.list()
    assert kept.body is not None
    assert {one["where"]: one["status"] for one in kept.body["coverage"]}[where] == "unjudged"


def test_letters_of_an_image_are_text_wherever_else_they_stand(guard: Guard) -> None:
    @guarded(policy=guard, prompt="messages")
    def chat(messages: object) -> str:
        return "fine"

    shown = {"type": "image_url", "image_url": {"url": PNG}}
    assert chat([{"role": "user", "content": [shown]}]) == "fine"
    for content in ([shown, {"type": "text", "text": PNG[-80:]}], [{**shown, "alt": PNG[-80:]}]):
        with pytest.raises(Blocked):
            chat([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"name": "f", "args": {"schema": {"type": ["string", "null"]}}}]},
        {"tool_calls": [{"name": "open", "args": {"type": "file", "path": "x"}}]},
        {"content": [{"type": "tool_use", "name": "open", "input": {"type": "file", "path": "x"}}]},
        {"parts": [{"text": "hello", "inline_data": None}]},
        {"content": "hi", "annotations": None, "audio": None, "refusal": None},
    ],
)
def test_what_is_no_media_is_not_taken_for_it(guard: Guard, store: Store, message: dict[str, object]) -> None:
    @guarded(policy=guard, prompt="messages")
    def chat(messages: object) -> str:
        return "fine"

    chat([{"role": "assistant", **message}])
    [kept] = store.list()
    assert kept.body is not None
    assert {one["status"] for one in kept.body["coverage"]} == {"judged"}
    assert "annotations" not in kept.raw


def test_methods_and_callable_objects_are_guarded_too(guard: Guard) -> None:
    class Client:
        @guarded(policy=guard)
        def ask(self, prompt: str) -> str:
            return prompt

        def __call__(self, prompt: str) -> str:
            return prompt

    assert Client().ask("it is 123456") == "it is [NUMBER]"
    assert guarded(policy=guard)(Client())("it is 123456") == "it is [NUMBER]"
