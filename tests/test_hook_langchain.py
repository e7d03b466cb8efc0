"""A guard in LangChain's own chains, around its fake models."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import Field

from ringfence import Blocked, Guard, guarded_runnable
from ringfence.guard.audit.store import Store

LONG = "There is a lot to say about it and little of it is new. " * 6
CALL = {"name": "look", "args": {"where": "here"}, "id": "t1", "type": "tool_call"}


class Model(FakeListChatModel):
    """Says what it is told to, message or text; keeps what it was told."""

    says: Any = ""
    told: list[BaseMessage] = Field(default_factory=list)
    responses: list[str] = Field(default_factory=list)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.told += messages
        says = self.says if isinstance(self.says, AIMessage) else AIMessage(self.says)
        return GenericFakeChatModel(messages=iter([says]))._generate(messages)

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        return self._generate(messages)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        message = self._generate(messages).generations[0].message
        text = message.content if isinstance(message.content, str) else ""
        for piece in text:
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        rest = {} if text else {"content": message.content}
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                **({"content": ""} | rest),
                tool_call_chunks=[
                    {"name": call["name"], "args": json.dumps(call["args"]), "id": call["id"], "index": at}
                    for at, call in enumerate(message.tool_calls)
                ],
                additional_kwargs=message.additional_kwargs,
                response_metadata=message.response_metadata,
                usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
            )
        )

    async def _astream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        for chunk in self._stream(messages):
            yield chunk


def joined(pieces: list[Any]) -> Any:
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    return whole


async def streamed(runnable: Runnable[Any, Any], given: Any) -> Any:
    return joined([piece async for piece in runnable.astream(given)])


WAYS: dict[str, Callable[[Runnable[Any, Any], Any], Any]] = {
    "invoke": lambda runnable, given: runnable.invoke(given),
    "ainvoke": lambda runnable, given: asyncio.run(runnable.ainvoke(given)),
    "stream": lambda runnable, given: joined(list(runnable.stream(given))),
    "astream": lambda runnable, given: asyncio.run(streamed(runnable, given)),
    "batch": lambda runnable, given: runnable.batch([given])[0],
    "abatch": lambda runnable, given: asyncio.run(runnable.abatch([given]))[0],
}


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Callable[[Runnable[Any, Any], Any], Any]:
    """Run a Runnable in each way that there is."""
    return WAYS[request.param]


Run = Callable[[Runnable[Any, Any], Any], Any]


def test_text_is_rewritten_both_ways_and_leaves_one_record(run: Run, guard: Guard, store: Store) -> None:
    model = Model(says=f"it was 987654 {LONG}")
    assert run(guarded_runnable(model, policy=guard), "is it 123456?").content == f"it was [NUMBER] {LONG}"
    assert [message.content for message in model.told] == ["is it [NUMBER]?"]
    assert store.count("rewrite") == store.count() == 1


def test_blocked_prompt_never_reaches_the_model(run: Run, guard: Guard, store: Store) -> None:
    model = Model(says="fine")
    with pytest.raises(Blocked, match="No bombs here"):
        run(guarded_runnable(model, policy=guard), [("system", "be brief"), ("user", "a bomb")])
    assert model.told == []
    assert store.count("block") == store.count() == 1


def test_another_word_for_what_to_do_is_refused(guard: Guard) -> None:
    with pytest.raises(ValueError, match="on_block is 'raise' or 'return', and not 'explode'"):
        guarded_runnable(Model(says="fine"), policy=guard, on_block="explode")  # type: ignore[arg-type]


def test_blocked_reply_raises_or_is_the_policys_message(run: Run, guard: Guard, store: Store) -> None:
    model = Model(says="a leak")
    with pytest.raises(Blocked, match="That stays here"):
        run(guarded_runnable(model, policy=guard), "go on")
    reply = run(guarded_runnable(model, policy=guard, on_block="return"), "go on")
    assert isinstance(reply, AIMessage)
    assert reply.content == "That stays here."
    assert reply.response_metadata["finish_reason"] == "content_filter"
    assert store.count("block") == 2


def test_guard_stands_in_a_chain(run: Run, guard: Guard, store: Store) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    model = Model(says="it was 987654")
    chain = prompt | guarded_runnable(model, policy=guard) | StrOutputParser()
    assert run(chain, {"question": "is it 123456?"}) == "it was [NUMBER]"
    assert [(type(m), m.content) for m in model.told] == [
        (SystemMessage, "Be brief."),
        (HumanMessage, "is it [NUMBER]?"),
    ]


def test_guard_stands_around_a_chain_that_ends_in_text(run: Run, guard: Guard, store: Store) -> None:
    prompt = ChatPromptTemplate.from_messages([("user", "{question} {why}")])
    model = Model(says=f"{LONG} it was 987654")
    chain = guarded_runnable(prompt | model | StrOutputParser(), policy=guard, on_block="return")
    assert run(chain, {"question": "is it 123456?", "why": "so"}) == f"{LONG} it was [NUMBER]"
    assert model.told[0].content == "is it [NUMBER]? so"
    assert run(chain, {"question": "bomb", "why": "so"}) == "No bombs here."


def test_guard_stands_around_a_language_model(run: Run, guard: Guard) -> None:
    assert run(guarded_runnable(FakeListLLM(responses=["it was 987654"]), policy=guard), "go on") == "it was [NUMBER]"


def test_calls_of_tools_are_judged_and_pass(run: Run, guard: Guard) -> None:
    model = Model(says=AIMessage("one moment", tool_calls=[CALL | {"args": {"where": "123456"}}]))
    reply = run(guarded_runnable(model, policy=guard), "go on")
    assert reply.content == "one moment"
    assert [(call["name"], call["args"], call["id"]) for call in reply.tool_calls] == [
        ("look", {"where": "[NUMBER]"}, "t1")
    ]
    model.says = AIMessage("one moment", tool_calls=[CALL | {"args": {"where": "a leak"}}])
    with pytest.raises(Blocked, match="That stays here"):
        run(guarded_runnable(model, policy=guard), "go on")


def test_every_text_beside_the_reply_is_judged_or_left_out(run: Run, guard: Guard) -> None:
    reasoned = AIMessage([{"type": "reasoning", "reasoning": "a leak"}, {"type": "text", "text": "fine"}])
    for says in (reasoned, AIMessage("fine", additional_kwargs={"reasoning_content": "a leak"})):
        with pytest.raises(Blocked):
            run(guarded_runnable(Model(says=says), policy=guard), "go on")
    tokens = {"logprobs": {"content": [{"token": "secret"}]}, "finish_reason": "stop"}
    image = {"type": "image", "base64": "QUJD"}
    message = AIMessage([{"type": "text", "text": "fine"}, image], response_metadata=tokens)
    reply = run(guarded_runnable(Model(says=message), policy=guard), "go on")
    assert reply.text == "fine"
    assert reply.response_metadata["finish_reason"] == "stop"
    assert "secret" not in str(reply)
    assert "QUJD" not in str(reply)


def test_every_text_of_a_conversation_is_judged(guard: Guard) -> None:
    guarded = guarded_runnable(Model(says="fine"), policy=guard)
    said = AIMessage("", tool_calls=[CALL | {"args": {"where": "a bomb"}}])
    for messages in (
        [HumanMessage("hi"), said, ToolMessage("x", tool_call_id="t1")],
        [HumanMessage("hi"), AIMessage("", tool_calls=[CALL]), ToolMessage("a bomb", tool_call_id="t1")],
        [HumanMessage([{"type": "text", "text": "a bomb"}])],
        [SystemMessage("a bomb"), HumanMessage("hi")],
        [HumanMessage("hi", name="bomb")],
    ):
        with pytest.raises(Blocked):
            guarded.invoke(messages)


def test_rewritten_message_keeps_everything_else(guard: Guard) -> None:
    model = Model(says="fine")
    said = AIMessage("", tool_calls=[CALL | {"args": {"where": "123456"}}], id="m1")
    guarded_runnable(model, policy=guard).invoke([HumanMessage("hi"), said, ToolMessage("it", tool_call_id="t1")])
    assert model.told[1] == said.model_copy(update={"tool_calls": [CALL | {"args": {"where": "[NUMBER]"}}]})
    assert model.told[2] == ToolMessage("it", tool_call_id="t1")


def test_stream_leaves_as_it_is_judged(guard: Guard) -> None:
    pieces = list(guarded_runnable(Model(says=LONG * 4), policy=guard).stream("go on"))
    assert len(pieces) > 3
    whole = joined(pieces)
    assert whole.content == LONG * 4
    assert whole.usage_metadata["total_tokens"] == 3


def test_callbacks_of_the_chain_are_not_told_what_nobody_judged(guard: Guard) -> None:
    heard: list[str] = []

    class Listener(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, **_: Any) -> None:
            heard.append(token)

        def on_llm_end(self, response: Any, **_: Any) -> None:
            heard.append(str(response))

        def on_chain_end(self, outputs: Any, **_: Any) -> None:
            heard.append(str(outputs))

    async def events(chain: Runnable[Any, Any]) -> str:
        return str([event async for event in chain.astream_events("go on")])

    chain = guarded_runnable(Model(says="it was 987654"), policy=guard) | StrOutputParser()
    config = {"callbacks": [Listener()]}
    chain.invoke("go on", config)
    list(chain.stream("go on", config))
    asyncio.run(chain.ainvoke("go on", config))
    heard.append(asyncio.run(events(chain)))
    assert "[NUMBER]" in "".join(heard)
    assert "987654" not in "".join(heard)


def test_reader_that_stops_early_leaves_a_record(guard: Guard, store: Store) -> None:
    reading = guarded_runnable(Model(says=LONG * 9), policy=guard).stream("go on")
    next(reading)
    reading.close()
    [kept] = store.list()
    assert kept.body is not None
    assert kept.body["error"] == "the caller stopped reading"


def test_what_is_not_text_is_refused(guard: Guard, store: Store) -> None:
    for given in (7, {"question": 7}, [], {}):
        with pytest.raises(TypeError, match="guarded_runnable takes"):
            guarded_runnable(Model(says="fine"), policy=guard).invoke(given)
    for way in ("invoke", "stream"):
        with pytest.raises(TypeError, match="guard the model, before"):
            WAYS[way](guarded_runnable(RunnableLambda(lambda _: {"answer": "a leak"}), policy=guard), "go on")
