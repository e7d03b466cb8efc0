"""Other people's guards: `kind: llama-guard-3` and the like in a policy, run here or asked of a server.

It lives here and not among the checks as it asks an upstream. A verdict is an answer of the family's own form and
nothing else; where the server tells how probable the deciding word was, that is the score.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from ringfence.guard.check import CannotAnswer
from ringfence.guard.checks.guards.check import GuardCheck, refuse_without_pillow, wordings_of
from ringfence.guard.checks.guards.family import (
    LEAST,
    Family,
    Form,
    Judgement,
    NoVerdict,
    Question,
    Turn,
    UnusableFamily,
    find_family,
    neutral,
    read_answer,
    unfinished,
)
from ringfence.guard.unicode import readable
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.own import GuardModel
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.asking import Asking
from ringfence.proxy.reply import UpstreamError
from ringfence.proxy.upstreams.http import HttpUpstream, open_upstream

LOCAL = "local"

TOP = 5
"""Alternatives asked for of every token: no family has more words that decide, and many servers give no more."""

MOST = 1.01
"""What the probabilities in one place come to at most: 1, and what rounding adds."""


def open_guard(spec: GuardModel) -> GuardCheck:
    """Make the check for a guard; no weights are loaded and nobody is asked yet.

    Raises:
        PolicyError: the weights are not there or of another kind, the address is none, its key is not set, or the
            guard cannot be asked about the policy's categories; its family's package has none.
    """
    what = f"the guard of '{spec.category}'"
    try:
        family = find_family(spec.kind)
    except UnusableFamily as error:
        raise PolicyError([Problem(spec.origin, f"{what}: {error}")]) from error
    if spec.images:
        _refuse_blind(spec, family)
    if spec.use == LOCAL:
        from ringfence.guard.checks.guards.local import open_local

        return open_local(spec, family)
    if not spec.use.startswith(("http://", "https://")):
        told = f"{what}: 'use' is 'local' or the base URL of a server (http://…/v1), and not '{spec.use}'"
        raise PolicyError([Problem(spec.origin, told)])
    if spec.bits:
        raise PolicyError([Problem(spec.origin, f"{what}: 'bits' is for local weights; a server has its own")])
    asked = family.ask((Turn("user", ""),), wordings_of(spec, family))
    if spec.api == "chat" and any(question.messages is None for question in asked):
        told = f"{what}: by chat, a server asks {family.name} only what the template that it has can ask"
        raise PolicyError([Problem(spec.origin, f"{told}; say `api: completions`, where the prompt is ours")])
    if spec.api == "completions" and family.templated:
        told = f"{what}: the prompt of {family.name} is made by the template that comes with it; say `api: chat`"
        raise PolicyError([Problem(spec.origin, told)])
    try:
        upstream = open_upstream(UpstreamChoice(spec.use, spec.api_key_env, spec.timeout_s))
    except ValueError as error:
        raise PolicyError([Problem(spec.origin, f"{what} cannot be asked: {error}")]) from None
    return GuardCheck(spec, family, ServedGuard(spec, family, upstream))


def _refuse_blind(spec: GuardModel, family: Family) -> None:
    what = f"the guard of '{spec.category}'"
    if not family.image:
        raise PolicyError([Problem(spec.origin, f"{what}: {family.name} reads no images; leave `images` out")])
    if spec.use != LOCAL and spec.api != "chat":
        raise PolicyError([Problem(spec.origin, f"{what}: an image is sent by chat alone; say `api: chat`")])
    refuse_without_pillow(what, spec.origin)


class ServedGuard:
    """The verdicts of a guard behind an OpenAI-compatible server. Thread-safe.

    Args:
        upstream: closed when nobody holds this any more.
        clock: that of `Passage.until` and of the budgets.
    """

    def __init__(
        self, spec: GuardModel, family: Family, upstream: HttpUpstream, clock: Callable[[], float] = monotonic
    ) -> None:
        self._spec = spec
        self._family = family
        self._upstream = upstream
        self._server: Asking[Judgement] = Asking(spec, upstream, clock)
        self._logprobs = not family.reasons

    @property
    def revision(self) -> str:
        """By what name it answers, and where; what answers there, nobody can see."""
        return f"{self._spec.use} {self._spec.model} {self._spec.api}"

    def warm(self) -> None:
        """See whether the server is there, and say so in the log where it is not."""
        self._server.warm()

    def away(self) -> str | None:
        """Return why the server cannot be asked at present; see `Distant`."""
        return self._server.away()

    def is_replaced(self) -> bool:
        """It runs elsewhere."""
        return False

    def clear(self, text: str) -> str:
        """Return a text without what the family takes for control tokens."""
        return neutral(readable(text), self._family.seams)

    def judge(self, questions: Sequence[Question], codes: Sequence[str], until: float | None) -> Sequence[Judgement]:
        """Ask the server; see `Oracle`."""
        asked = [question.prompt if self._spec.api == "completions" else question.messages for question in questions]
        key = hashlib.sha256(json.dumps([self.revision, asked, list(codes)]).encode()).digest()
        try:
            return self._server.ask(key, [partial(self._judged, question, codes) for question in questions], until)
        except NoVerdict:
            what = f"{self._server.who}: the answer of '{self._spec.model}' is no verdict"
            raise CannotAnswer(f"{what}; check that this model is a {self._spec.kind}, and `api`") from None

    async def _judged(self, question: Question, codes: Sequence[str]) -> Judgement:
        logprobs = self._logprobs
        try:
            return self._read(question, await self._answer(question, logprobs), codes)
        except UpstreamError as error:
            if not (logprobs and error.status < 500 and "logprob" in error.told.lower()):
                raise
        judged = self._read(question, await self._answer(question, logprobs=False), codes)
        self._logprobs = False  # only now: an error that quotes the text may have the word from there
        return judged

    async def _answer(self, question: Question, logprobs: bool) -> Any:
        ask = self._chat if self._spec.api == "chat" else self._completion
        path, body = ask(question, logprobs)
        return await self._upstream.ask(path, {"model": self._spec.model, "temperature": 0, "stream": False, **body})

    def _chat(self, question: Question, logprobs: bool) -> tuple[str, Mapping[str, Any]]:
        more = {"logprobs": True, "top_logprobs": TOP} if logprobs else {}
        return "chat/completions", {"messages": question.messages, "max_tokens": self._family.longest, **more}

    def _completion(self, question: Question, logprobs: bool) -> tuple[str, Mapping[str, Any]]:
        more = {"logprobs": TOP} if logprobs else {}
        prompt = f"{question.prompt}{self._family.begins}"
        return "completions", {"prompt": prompt, "max_tokens": self._family.longest, **more}

    def _read(self, question: Question, body: Any, codes: Sequence[str]) -> Judgement:
        """Return what an answer says, with the probabilities that came with it.

        Raises:
            NoVerdict: it is no answer, or not of the family's form.
            CannotAnswer: it ends before there is one, or was filtered.
        """
        form = question.form or self._family.form
        try:
            choice = body["choices"][0]
            if choice.get("finish_reason") == "content_filter":
                told = "a filter of the server's own took something out of the answer; have it leave this model's alone"
                raise CannotAnswer(f"{self._server.who}: {told}")
            if self._family.reasons and choice.get("finish_reason") == "length":
                raise unfinished(self._family)
            chat = self._spec.api == "chat"
            written = choice["message"]["content"] if chat else f"{self._family.begins}{choice['text']}"
            judged = read_answer(self._family, form, written, codes)
            tokens = _tokens(choice.get("logprobs") or {})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise NoVerdict from None
        unsafe = _probabilities(self._family, form, judged, tokens)
        return judged if unsafe is None else replace(judged, unsafe=unsafe, calibrated=True)


Tokens = Sequence[tuple[str, Mapping[str, float]]]
"""The tokens of an answer, each with its own probability and those of others that might have been in its place."""


def _tokens(told: Mapping[str, Any]) -> Tokens:
    """Return what a server tells of an answer's tokens: as chats have it, as some servers do of completions too, or as
    completions have it.
    """
    if content := told.get("content"):
        return [
            (
                str(one["token"]),
                _likely((top["token"], top["logprob"]) for top in (one, *(one.get("top_logprobs") or []))),
            )
            for one in content
        ]
    tokens, own = told.get("tokens") or [], told.get("token_logprobs") or []
    tops = told.get("top_logprobs") or [{}] * len(tokens)
    return [
        (str(token), _likely([(token, logprob), *(top or {}).items()]))
        for token, logprob, top in zip(tokens, own, tops, strict=True)
    ]


def _likely(told: Iterable[tuple[Any, Any]]) -> Mapping[str, float]:
    """Return the probabilities of what might stand in one place, by their logarithms.

    Raises:
        ValueError: they are none: one is no number, or they come to more than 1.
    """
    each = [(str(token), math.exp(min(float(logprob), 1.0))) for token, logprob in told]  # `nan` stays that
    by_token = dict(each)  # a token may be told twice
    if not all(chance <= MOST for chance in (*(chance for _, chance in each), sum(by_token.values()))):
        raise ValueError
    return by_token


def _probabilities(family: Family, form: Form, judged: Judgement, tokens: Tokens) -> Mapping[str, float] | None:
    """Return the probability of each unsafe word where the answer decides, among the words that decide; None where
    that cannot be seen.

    Args:
        judged: what the answer says, in ones and zeros: its word stands in the place that decides.
    """
    words = {word.strip(): word for word in (family.safe, *family.unsafe)}
    said = next((word for word, certain in judged.unsafe.items() if certain), family.safe).strip()
    written, before = "".join(token for token, _ in tokens), ""
    for token, tops in tokens:
        # A word may be several tokens: what decides then is the first.
        begins = _begun(token.strip(), words) == words[said]
        if form.until in before and begins and re.match(rf"\s*{re.escape(said)}\b", written[len(before) :]):
            return _weighed(family, words, words[said], tops)
        before += token
    return None


def _weighed(
    family: Family, words: Mapping[str, str], said: str, tops: Mapping[str, float]
) -> Mapping[str, float] | None:
    """Return the probability of each unsafe word by what might have stood in one place, where `said` does."""
    mass = dict.fromkeys(words.values(), 0.0)
    for token, chance in tops.items():
        if word := _begun(token.strip(), words):
            mass[word] += chance
    told, alone = sum(mass.values()), len(tops) == 1
    if alone and (len(mass) > 2 or told < LEAST):
        return None  # of two words the other has the rest, at most; of more, nobody knows
    # Where safe was likelier than the unsafe word that is written, or another word than all of these, they cannot be
    # believed.
    if not 0 < told >= max(tops.values()) or mass[said] < mass[family.safe]:
        return None
    # An unsafe word that is left out may be as likely as the least that is told, and has no more than what is left of
    # all: its score is the most that it can be. Safe is given what is left only where nothing else is told.
    untold = [word for word in (mass if alone else family.unsafe) if not mass[word]]
    for word in untold:
        mass[word] = min(*tops.values(), max(0.0, 1 - sum(tops.values())) / len(untold))
    return {word: mass[word] / sum(mass.values()) for word in family.unsafe}


def _begun(token: str, words: Mapping[str, str]) -> str | None:
    """Return the one deciding word that a token is, or can only be the beginning of."""
    fitting = [whole for short, whole in words.items() if token and short.startswith(token)]
    return words.get(token) or (fitting[0] if len(fitting) == 1 else None)
