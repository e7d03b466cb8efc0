"""What several tests share: checks that need no model, policies built in memory, a service around the fake upstream."""

import gc
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, thread_time

import hypothesis
import pytest
import uvicorn
from starlette.types import ASGIApp

from ringfence.guard.audit.store import Store
from ringfence.guard.check import Check, Finding, Passage, Span
from ringfence.guard.guard import Guard
from ringfence.policies.types import Action, Policy, Rule, Stage
from ringfence.proxy.live import Live
from ringfence.proxy.reply import Upstream
from ringfence.proxy.service import Service
from ringfence.proxy.settings import Settings
from ringfence.proxy.upstreams.fake import FakeUpstream

# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """A socket or file that nobody closed is told (as an error) of the module that left it, not of any later one."""
    yield
    gc.collect()


@dataclass
class WordCheck:
    """Finds a pattern, surely; keeps what it read."""

    category: str
    pattern: str
    seen: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"word-{self.category}"

    @property
    def categories(self) -> frozenset[str]:
        return frozenset({self.category})

    def find(self, passage: Passage) -> Sequence[Finding]:
        self.seen.append(passage.text)
        return [
            Finding(self.name, self.category, 1.0, (Span(0, *match.span()),))
            for match in re.finditer(self.pattern, passage.text)
        ]


class SureOfWar:
    """Stands in for the classifier: harm is what mentions war; asked about peace, it breaks."""

    name = "classifier"
    categories = frozenset({"harm", "attack", "toxicity"})

    def find(self, passage: Passage) -> Sequence[Finding]:
        if passage.text == "peace":
            raise RuntimeError("cannot imagine")
        return [Finding("classifier", "harm", float("war" in passage.text), (Span(0, 0, len(passage.text)),))]


@pytest.fixture
def sure_of_war() -> SureOfWar:
    return SureOfWar()


@dataclass
class BrokenCheck:
    """Cannot answer."""

    category: str = "broken"
    name: str = "broken"

    @property
    def categories(self) -> frozenset[str]:
        return frozenset({self.category})

    def find(self, passage: Passage) -> Sequence[Finding]:
        raise RuntimeError("no such luck")


RULES = (
    Rule("no-bombs", "bomb", Action.BLOCK, message="No bombs here."),
    Rule("no-numbers", "number", Action.REWRITE),
    Rule("note-knives", "knife", Action.LOG),
    Rule("no-leaks", "leak", Action.BLOCK, stages=(Stage.OUTPUT,), message="That stays here."),
)


@pytest.fixture
def word_check() -> type[WordCheck]:
    return WordCheck


@pytest.fixture
def broken_check() -> BrokenCheck:
    return BrokenCheck()


@pytest.fixture
def seconds() -> Callable[[Callable[[], object]], float]:
    """Processor time of a call: the least of two, without the collector, whose work grows with the whole run."""

    def once(call: Callable[[], object]) -> float:
        started = thread_time()
        call()
        return thread_time() - started

    def measured(call: Callable[[], object]) -> float:
        gc.collect()
        gc.disable()
        try:
            return min(once(call), once(call))
        finally:
            gc.enable()

    return measured


@pytest.fixture
def grows_with_its_length(seconds: Callable[[Callable[[], object]], float]) -> Callable[..., bool]:
    """Whether the time that a text takes grows with its length and no faster."""

    def linear(read: Callable[[str], object], unit: str, before: str = "", after: str = "") -> bool:
        def taken(length: int) -> float:
            text = before + unit * (length // len(unit)) + after
            return seconds(lambda: read(text))

        read(unit)
        # Eight times the text: eight times the time if linear, sixty-four times if quadratic.
        return taken(64_000) < 24 * taken(8_000) + 0.05

    return linear


@pytest.fixture
def policy() -> Policy:
    """`bomb` blocks, `leak` does so in replies only, runs of four or more digits are rewritten, `knife` is logged."""
    return Policy(name="test", rules=RULES, revision="test-revision")


@pytest.fixture
def checks() -> dict[str, Check]:
    patterns = {"bomb": "bomb", "number": r"\d{4,}", "knife": "knife", "leak": "leak"}
    words = [WordCheck(category, pattern) for category, pattern in patterns.items()]
    return {check.name: check for check in words}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "audit.db")


@pytest.fixture
def guard(policy: Policy, checks: dict[str, Check], store: Store) -> Guard:
    return Guard(policy, checks=checks, store=store)


@pytest.fixture
def service_of(store: Store) -> Callable[..., Service]:
    """Build a service around a guard: `service_of(guard, upstream)`."""

    def build(guard: Guard, upstream: Upstream | None = None, settings: Settings | None = None) -> Service:
        return Service(settings or Settings(), Live(lambda: guard), upstream or FakeUpstream(), store)

    return build


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Run an application in a real server on a free port; yield its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[[ASGIApp], str]]:
    """Start real servers: `serve(app)` returns a URL."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(running(app))


@pytest.fixture(scope="session")
def built() -> Callable[[Path, str], Path]:
    """Return a program of another environment. Without it a test is skipped; where `RINGFENCE_NEEDED` names it, it fails."""

    def there(program: Path, name: str) -> Path:
        if not program.exists():
            needed = name in os.environ.get("RINGFENCE_NEEDED", "").split(",")
            (pytest.fail if needed else pytest.skip)(f"{program} is not there: `make {name}` builds it")
        return program

    return there


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait for something that another thread does, ten seconds at most."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = monotonic() + 10
        tick = threading.Event()
        while not condition():
            assert monotonic() < deadline, "it never came"
            tick.wait(0.01)

    return wait
