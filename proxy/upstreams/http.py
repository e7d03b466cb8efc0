"""Any OpenAI-compatible server as an upstream."""

import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import httpx
from httpx_sse import EventSource, SSEError

from ringfence.guard.exchange import Exchange
from ringfence.guard.unicode import readable
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.reply import Event, UpstreamError
from ringfence.proxy.wire import openai_chat
from ringfence.proxy.wire.body import is_identifier, parse
from ringfence.proxy.wire.dialect import Dialect, Reader
from ringfence.proxy.wire.parts import is_plain

PASSED_ON = ("authorization", "openai-organization", "openai-project")
LONGEST_TOLD = 500

TOLD_WITH_ERRORS = re.compile(r"retry-after(-ms)?|x-should-retry|([a-z]+-)?ratelimit-[a-z-]+")
"""Headers of an upstream's error that say when to try again."""

TIME = re.compile(r"[\w.:+-]{1,64}|\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", re.ASCII)
"""What such a header may hold: a number, a duration or a date, and no words in a row."""

NAMES_OF_MODEL = frozenset({"id", "object", "owned_by", "parent", "root"})
"""Fields of an entry in a list of models that hold a name each."""

LONGEST_ANSWER = 1_000_000
"""Bytes of an answer that is asked for by `HttpUpstream.ask`."""

LONGEST_REPLY = 64_000_000
"""Bytes of a model's whole reply, or of several; the longest that models give are a few megabytes."""

LONGEST_STREAM = 4 * LONGEST_REPLY
"""Bytes of a stream, in which a token of a few letters comes in an event of some hundred."""

LONGEST_LIST = 10_000_000
"""Bytes of a list of models: a hub's has hundreds, and tells a lot of each."""


def open_upstream(choice: UpstreamChoice) -> "HttpUpstream":
    """Open the server at `choice.use`.

    Raises:
        ValueError: it is not a URL, names no host, or `api_key_env` names a variable that is not set.
    """
    headers = {}
    if choice.api_key_env is not None:
        key = os.environ.get(choice.api_key_env)
        if not key:
            what = f"the api_key_env of '{choice.use}' names {choice.api_key_env}"
            raise ValueError(f"{what}, which is not set in the environment")
        headers["authorization"] = f"Bearer {key}"
    try:
        base = httpx.URL(choice.use.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise ValueError(f"upstream '{choice.use}' is not a URL: {error}") from None
    if not base.host:
        raise ValueError(f"upstream '{choice.use}' names no host; a base URL looks like http://127.0.0.1:8000/v1")
    timeout = httpx.Timeout(choice.timeout_s, connect=min(10.0, choice.timeout_s))
    return HttpUpstream(httpx.AsyncClient(base_url=base, timeout=timeout), headers)


class HttpUpstream:
    """Speaks Chat Completions over HTTP.

    Args:
        client: its base URL ends where `chat/completions` begins.
        headers: sent with every request; an `authorization` here replaces the caller's.
    """

    def __init__(self, client: httpx.AsyncClient, headers: Mapping[str, str]) -> None:
        self._client = client
        self._headers = dict(headers)

    async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
        """Send the body as it is and read the answer, streamed or whole as the body asks."""
        request = self._client.build_request("POST", "chat/completions", json=exchange.body, headers=self._for(headers))
        async with aclosing(
            ask(self._client, request, openai_chat, streamed=bool(exchange.body.get("stream")))
        ) as events:
            async for event in events:
                yield event

    async def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a body to a path below the base URL, and return the JSON of the answer as it is.

        Raises:
            UpstreamError: there is no such answer, it is longer than `LONGEST_ANSWER`, or says something twice.
        """
        with failing_as_upstream("JSON, or has a name twice"):
            async with self._client.stream("POST", path, json=body, headers=self._for({})) as response:
                raw = await _read(response, LONGEST_ANSWER)
                if response.status_code != httpx.codes.OK:
                    raise _refused(response.status_code, raw, response.headers)
                return parse(raw.decode(), once=True)

    async def models(self, headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """Ask the upstream for its list."""
        try:
            async with self._client.stream("GET", "models", headers=self._for(headers)) as response:
                if (status := response.status_code) != httpx.codes.OK:
                    raise UpstreamError(f"the upstream answered {status}", status=502, code="upstream_error")
                raw = await _read(response, LONGEST_LIST)
            return [_model(item) for item in parse(raw.decode())["data"]]
        except httpx.HTTPError as error:
            raise UpstreamError(
                f"the upstream could not be reached ({type(error).__name__})", status=502, code="upstream_unreachable"
            ) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UpstreamError(
                "the upstream's list of models is malformed", status=502, code="upstream_malformed"
            ) from error

    async def ready(self) -> str | None:
        """Ask for the list of models, and read none of it: any answer below 500 shows that it is there."""
        try:
            async with self._client.stream("GET", "models", headers=self._headers) as response:
                status = response.status_code
        except httpx.HTTPError as error:
            return f"upstream {self._client.base_url} cannot be reached ({type(error).__name__})"
        return f"upstream answers {status}" if status >= 500 else None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _for(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {name: headers[name] for name in PASSED_ON if name in headers} | self._headers


async def ask(
    client: httpx.AsyncClient, request: httpx.Request, dialect: Dialect, *, streamed: bool
) -> AsyncGenerator[Event, None]:
    """Send a request and read the answer as its API has it, streamed or whole; closing hangs up.

    Raises:
        UpstreamError: there is no such answer, or it is longer than `LONGEST_REPLY`, a stream than `LONGEST_STREAM`.
    """
    with failing_as_upstream(f"one of {dialect.DIALECT}"):
        response = await client.send(request, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                raise _refused(response.status_code, await _read(response, LONGEST_ANSWER), response.headers)
            if streamed:
                async for event in _chunks(response, dialect.ChunkReader()):
                    yield event
            else:
                for event in dialect.read_reply(parse((await _read(response, LONGEST_REPLY)).decode())):
                    yield event
        finally:
            await response.aclose()


@contextmanager
def failing_as_upstream(wanted: str) -> Iterator[None]:
    """Turn whatever goes wrong on the way to an answer into an `UpstreamError`.

    Args:
        wanted: what the answer should be.
    """
    try:
        yield
    except httpx.TimeoutException as error:
        raise UpstreamError(
            f"the upstream did not answer in time ({type(error).__name__})", status=504, code="upstream_timeout"
        ) from error
    except SSEError as error:  # one of httpx's own
        raise UpstreamError(
            "the upstream was asked for a stream and answered with something else",
            status=502,
            code="upstream_malformed",
        ) from error
    except httpx.HTTPError as error:
        raise UpstreamError(
            f"the upstream could not be reached, or broke off ({type(error).__name__})",
            status=502,
            code="upstream_unreachable",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UpstreamError(f"the upstream's answer is not {wanted}", status=502, code="upstream_malformed") from error


async def _read(response: httpx.Response, most: int) -> bytes:
    raw = bytearray()
    async for some in _bounded(response, most):
        raw += some
    return bytes(raw)


async def _bounded(response: httpx.Response, most: int) -> AsyncIterator[bytes]:
    """Yield the bytes of an answer, unpacked, as long as they are no more than `most`."""
    length = 0
    async for some in response.aiter_bytes():
        length += len(some)
        if length > most:
            what = f"the upstream's answer is longer than {most:,} bytes"
            raise UpstreamError(what, status=502, code="upstream_malformed")
        yield some


async def _chunks(response: httpx.Response, reader: Reader) -> AsyncIterator[Event]:
    kind = {"content-type": response.headers.get("content-type", "")}
    bounded = httpx.Response(response.status_code, headers=kind, content=_bounded(response, LONGEST_STREAM))
    async for message in EventSource(bounded).aiter_sse():
        if message.data == "[DONE]":
            break
        if not message.data.strip():
            continue
        chunk = parse(message.data)
        if isinstance(chunk, dict) and (chunk.get("error") or chunk.get("object") == "error"):
            raise _refused(502, message.data.encode(), {})
        for event in reader.read(chunk):
            yield event
    # Some servers leave [DONE] out; a stream in which nothing ended is broken all the same.
    if not reader.ended:
        raise UpstreamError(
            "the upstream broke off in the middle of its answer", status=502, code="upstream_unreachable"
        )
    for event in reader.end():
        yield event


def _model(item: Any) -> dict[str, Any]:
    """Return an entry of a list of models, as far as it is names and numbers."""
    if not isinstance(item["id"], str) or not is_identifier(item["id"]):
        raise ValueError("a model's id is not a name")
    told = {key: value for key, value in item.items() if is_plain(key, value, NAMES_OF_MODEL)}
    return {"object": "model", "created": 0, "owned_by": ""} | told


def _refused(status: int, raw: bytes, headers: Mapping[str, str]) -> UpstreamError:
    """Turn the upstream's own error into ours: a 4xx is the caller's affair and keeps its status, the rest is a 502."""
    try:
        error = _error_in(json.loads(raw))
    except (ValueError, RecursionError):
        error = NO_ERROR
    said, code = error.get("message") or "", error.get("code")
    return UpstreamError(
        f"the upstream answered {status}",
        status=status if 400 <= status < 500 else 502,
        code=code if isinstance(code, int) else _word(code),
        kind=_word(error.get("type")),
        param=_word(error.get("param")),
        told=readable(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))[:LONGEST_TOLD],
        headers={k: v for k, v in headers.items() if TOLD_WITH_ERRORS.fullmatch(k) and TIME.fullmatch(v)},
    )


NO_ERROR: Mapping[str, Any] = {"code": "upstream_error"}
"""What is told of an answer that holds no error of the API's shape."""


def _error_in(body: Any) -> Mapping[str, Any]:
    match body:
        case {"error": Mapping() as error}:
            return error
        case {"error": said} | {"detail": said}:
            return {**NO_ERROR, "message": said}
        case Mapping() if "message" in body:  # vLLM's, before it had an `error`
            return body
        case _:
            return NO_ERROR


def _word(value: object) -> str | None:
    """Return a name, or the place of a field, as it came; None where it is none, and could say anything."""
    if isinstance(value, str) and is_identifier(value.replace("[", "").replace("]", "")):
        return value
    return None
