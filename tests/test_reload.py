"""A policy that changes while the server runs: what takes its place and when, and what keeps its place."""

import gc
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from runpy import run_path

import anyio
import httpx
import pytest
from safetensors.torch import load_file, save_file

from ringfence.guard.audit.store import Store
from ringfence.guard.check import Check, Finding, Passage, is_replaced, own_checks
from ringfence.guard.checks.guards.family import find_families
from ringfence.guard.classifier.ordinary import ORDINARY
from ringfence.guard.classifier.scorer import CALIBRATION, ELSEWHERE, FILES, WEIGHTS, Scorer
from ringfence.guard.exchange import Exchange
from ringfence.guard.guard import Guard
from ringfence.policies.load import load_policy
from ringfence.policies.lock import LockFile, dumps_lock, entry_of
from ringfence.policies.own import GuardModel
from ringfence.policies.types import Action, Fitted, Policy, Rule, Sample, Stage, Target
from ringfence.proxy.app import create_app
from ringfence.proxy.live import Live, Refused, reload_on_change
from ringfence.proxy.reply import Event, Finish, Text
from ringfence.proxy.service import Service, build
from ringfence.proxy.settings import Settings
from ringfence.proxy.upstreams.fake import FakeUpstream

TINY = run_path(str(Path(__file__).parent / "tiny_guards.py"))
RINGFENCE = str(Path(sys.executable).with_name("ringfence"))
Wait = Callable[[Callable[[], bool]], None]

PLAIN = """\
version: 1
name: plain
rules:
  - id: no-mail
    category: pii.email
    action: block
    stages: [input]
    message: said by MARK
  - id: nobody-out
    category: pii
    action: rewrite
    stages: [output]
    replacement: "[MARK]"
"""


def policy_of(mark: str) -> str:
    """Return a policy whose every decision names it."""
    return PLAIN.replace("MARK", mark)


def put(path: Path, text: str) -> None:
    """Replace a file as editors do: another is written beside it and renamed."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


@dataclass
class Running:
    """A server, the file its policy is read from, and what it answers."""

    url: str
    path: Path

    def reload(self) -> httpx.Response:
        return httpx.post(f"{self.url}/admin/reload", timeout=60)

    @property
    def policy(self) -> dict[str, object]:
        policy: dict[str, object] = httpx.get(f"{self.url}/admin/policy", timeout=60).json()
        return policy

    def ask(self, text: str, **fields: object) -> httpx.Response:
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    path = tmp_path / "policies" / "policy.yaml"
    path.parent.mkdir()
    path.write_text(policy_of("one"))
    return build(Settings(policy=path, upstream="fake", audit_path=tmp_path / "audit.db"))


@pytest.fixture
def running(service: Service, serve: Callable[..., str]) -> Running:
    assert service.settings.policy is not None
    return Running(serve(create_app(service)), service.settings.policy)


@pytest.fixture
def watching(service: Service, serve: Callable[..., str]) -> Running:
    assert service.settings.policy is not None
    return Running(serve(create_app(service, partial(reload_on_change, service.live))), service.settings.policy)


@contextmanager
def process(folder: Path, *arguments: str, wait_until: Wait) -> Iterator[tuple[Running, subprocess.Popen[bytes], Path]]:
    """Run `ringfence serve` in a folder; yield what answers, the process, and the file that it writes its log to."""
    path, said = folder / "policy.yaml", folder / "stderr.txt"
    path.write_text(policy_of("one"))
    command = [RINGFENCE, "serve", "--port", "0", "--upstream", "fake", *arguments]
    with said.open("w") as stderr, subprocess.Popen(command, cwd=folder, stderr=stderr) as child:
        try:
            wait_until(lambda: "/audit\n" in said.read_text() or child.poll() is not None)
            found = re.search(r"(http://[\d.:]+)/audit", said.read_text())
            assert found, said.read_text()
            yield Running(found[1], path), child, said
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) in (0, -signal.SIGTERM)


def test_a_reload_puts_the_new_policy_in_force_and_says_so(running: Running) -> None:
    before = running.policy
    assert running.ask("to a@example.com").json()["error"]["message"] == "said by one"
    running.path.write_text(policy_of("two"))
    assert running.ask("to a@example.com").json()["error"]["message"] == "said by one", "nobody asked for a reload"
    answer = running.reload()
    after = running.policy
    revisions = {"revision": after["revision"], "previous": before["revision"]}
    assert answer.json() == revisions | {"changed": True, "weights": []}
    assert before["revision"] != after["revision"] == load_policy(running.path).revision
    response = running.ask("to a@example.com")
    assert response.json()["error"]["message"] == "said by two"
    assert str(after["revision"]).startswith(response.headers["x-ringfence-policy"])
    assert running.reload().json()["changed"] is False
    assert httpx.get(f"{running.url}/health/readiness").json()["policy"] == after["revision"]


def test_comments_change_nothing(running: Running, service: Service) -> None:
    guard = service.live.guard
    running.path.write_text("# only a comment\n" + policy_of("one"))
    assert running.reload().json()["changed"] is False
    assert service.live.guard is guard


def test_what_was_counted_stays_counted(running: Running) -> None:
    counting = """\
  - {id: enough, category: count.tries, action: block, stages: [input], message: Enough.}
counters:
  - {id: tries, rules: [no-mail], at_least: 2, within: 10m, hold: 10m}
"""
    put(running.path, policy_of("one") + counting)
    assert running.reload().json()["changed"]
    assert [running.ask("to a@example.com").status_code for _ in range(2)] == [400, 400]
    put(running.path, policy_of("two") + counting)
    assert running.reload().json()["changed"]
    assert running.ask("say: hi").json()["error"]["message"] == "Enough."


RULE = "version: 1\nname: x\nrules:\n  - id: a\n    category: pii\n"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (RULE + "    action: blok\n", "policy.yaml:6:5: 'action' cannot be \"blok\"; did you mean 'block'?"),
        (RULE + "    action: log\n    target: {min_recall: 0.9}\n", "ringfence policy fit"),
        (RULE.replace("pii", "pies") + "    action: log\n", "'pies'"),
        ("version: 1\nname: x\npacks: [./gone.yaml]\n", "there is no pack file"),
        ("", "the file is empty"),
        ("version: 1\nname: plain\n", "there is no rule any more, so that everything would pass"),
        ("a: &a [x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n", "anchor"),
        ("a: " + "[" * 100_000, "policy.yaml:1:"),
        ("{" * 3_000, "policy.yaml:1:"),
        (b"name: \xff\n", "is not UTF-8"),
        (policy_of("two") + "upstream: {use: fake, timeout_s: 1}\n", "policy.yaml:14:23: 'upstream.timeout_s' is 60.0"),
        (None, "cannot read the file"),
        (Path, "cannot read the file"),
    ],
    ids=lambda value: str(value)[-24:] if value is not None else "gone",
)
def test_what_cannot_be_put_in_force_leaves_the_old_policy_there_and_says_why(
    running: Running, caplog: pytest.LogCaptureFixture, written: object, says: str
) -> None:
    revision = running.policy["revision"]
    running.path.unlink()
    if written is Path:
        running.path.mkdir()  # cannot be read, whoever runs the test
    elif isinstance(written, bytes):
        running.path.write_bytes(written)
    elif written is not None:
        running.path.write_text(str(written))
    answer = running.reload()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], set(error)) == (
        422,
        "policy_refused",
        {"message", "type", "param", "code"},
    )
    assert says in error["message"]
    assert "Traceback" not in caplog.text
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        *(f"policy refused: {line}" for line in error["message"].splitlines()),
        f"policy plain, revision {str(revision)[:16]}, stays in force",
    ]
    assert running.policy == {"name": "plain", "revision": revision, "refused": error["message"].splitlines()}
    ready = httpx.get(f"{running.url}/health/readiness")
    assert ready.status_code == 200
    assert "refused" in ready.json()["reload"]
    assert running.ask("to a@example.com").json()["error"]["message"] == "said by one"
    if written is Path:
        running.path.rmdir()
    put(running.path, policy_of("one"))
    assert running.reload().json()["changed"] is False
    assert running.policy["refused"] == []
    assert "reload" not in httpx.get(f"{running.url}/health/readiness").json()


def test_another_audit_log_needs_a_restart(tmp_path: Path, serve: Callable[..., str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_of("one") + f"audit:\n  path: {tmp_path / 'one.db'}\nupstream: {{use: fake}}\n")
    running = Running(serve(create_app(build(Settings(policy=path)))), path)
    put(path, path.read_text().replace("one.db", "two.db").replace("use: fake", "use: embedded"))
    first, second = running.reload().json()["error"]["message"].splitlines()
    assert re.search(r"policy\.yaml:15:3: 'audit\.path' is '.*one\.db' .* cannot become '.*two\.db'; restart", first)
    assert "policy.yaml:16:12: 'upstream.use' is 'fake'" in second
    assert not (tmp_path / "two.db").exists()


def test_what_a_flag_settles_a_policy_may_say_otherwise(running: Running) -> None:
    put(running.path, policy_of("two") + "audit: {path: nowhere/at/all.db}\nupstream: {use: embedded}\n")
    assert running.reload().json()["changed"]
    assert running.ask("say: hi").status_code == 200


def test_only_who_has_the_key_may_reload(tmp_path: Path, serve: Callable[..., str], service: Service) -> None:
    settings = service.settings.model_copy(update={"api_key": Settings(api_key="open sesame").api_key})
    url = serve(create_app(Service(settings, service.live, service.upstream, service.store)))
    for ask in (partial(httpx.post, f"{url}/admin/reload"), partial(httpx.get, f"{url}/admin/policy")):
        assert ask().status_code == 401
        assert ask(headers={"authorization": "Bearer open sesame"}).status_code == 200
        assert ask(headers={"authorization": "Bearer open sesame", "origin": "https://evil.example"}).status_code == 403


def revision_changes(running: Running, wait_until: Wait, change: Callable[[], object]) -> None:
    before = running.policy["revision"]
    change()
    wait_until(lambda: running.policy["revision"] != before)


def test_the_files_are_watched_however_they_are_written(watching: Running, wait_until: Wait, tmp_path: Path) -> None:
    path = watching.path
    changes = partial(revision_changes, watching, wait_until)
    changes(lambda: path.write_text(policy_of("written in place")))
    changes(lambda: put(path, policy_of("put in its place")))

    def leave_a_backup() -> None:
        path.rename(path.with_name("policy.yaml~"))
        path.write_text(policy_of("moved away and written"))

    changes(leave_a_backup)

    def link() -> None:  # as a mounted folder of configuration is changed
        for name in ("..1", "..2"):
            (path.parent / name).mkdir()
            (path.parent / name / "policy.yaml").write_text(policy_of(f"link {name}"))
        (path.parent / "..data").symlink_to("..1")
        path.unlink()
        path.symlink_to("..data/policy.yaml")

    def link_elsewhere() -> None:
        (path.parent / "..new").symlink_to("..2")
        (path.parent / "..new").rename(path.parent / "..data")

    changes(link)
    changes(link_elsewhere)


def test_packs_are_watched_in_their_own_folders_and_before_they_are_there(
    watching: Running, wait_until: Wait, tmp_path: Path
) -> None:
    changes = partial(revision_changes, watching, wait_until)
    pack = tmp_path / "elsewhere" / "ours.yaml"
    text = "version: 1\nname: ours\nrules:\n  - {id: ours, category: secret, action: log}\n"
    pack.parent.mkdir()
    pack.write_text(text.replace("log", "lock"))
    put(watching.path, policy_of("one") + "packs: [../elsewhere/ours.yaml]\n")
    wait_until(lambda: "cannot be" in str(watching.policy["refused"]))
    changes(lambda: put(pack, text))
    assert watching.policy["refused"] == []
    changes(lambda: pack.write_text(text.replace("log", "block")))
    put(watching.path, policy_of("one") + "packs: [./here.yaml]\n")
    wait_until(lambda: "there is no pack file" in str(watching.policy["refused"]))
    changes(lambda: (watching.path.parent / "here.yaml").write_text(text.replace("ours", "here")))


def test_what_a_policy_extends_and_its_lock_file_are_watched(
    watching: Running, wait_until: Wait, tmp_path: Path
) -> None:
    changes = partial(revision_changes, watching, wait_until)
    base = tmp_path / "base" / "base.yaml"
    base.parent.mkdir()
    base.write_text("version: 1\nname: base\n")
    put(watching.path, policy_of("one") + "extends: ../base/base.yaml\n")
    assert watching.reload().json()["changed"] is False
    changes(lambda: base.write_text("version: 1\nname: base\nmessage: First.\n"))
    changes(lambda: base.write_text("version: 1\nname: base\nmessage: Second.\n"))
    promise = "    target: {max_false_positive_rate: 0.01}\n"
    put(watching.path, RULE + "    action: block\n    stages: [input]\n" + promise)
    wait_until(lambda: "no threshold was fitted" in str(watching.policy["refused"]))
    sample = Sample(900, 100, 0, 0.0, (0.0, 0.004), 0.9, (0.83, 0.95), 0.004)
    target = Target(max_false_positive_rate=0.01)
    entry = entry_of(Fitted(0.75, target, "pii", {Stage.INPUT: sample}, "", {"pii": None}, date(2026, 11, 1), (), None))
    lock = dumps_lock(LockFile(rules={"a": entry}))
    changes(lambda: put(watching.path.with_suffix(".lock.yaml"), lock))
    assert watching.policy["refused"] == []


def test_a_policy_may_have_any_name(tmp_path: Path, serve: Callable[..., str], wait_until: Wait) -> None:
    path = tmp_path / "policy"
    path.write_text(policy_of("one"))
    service = build(Settings(policy=path, upstream="fake", audit_path=tmp_path / "audit.db"))
    watching = Running(serve(create_app(service, partial(reload_on_change, service.live))), path)
    revision_changes(watching, wait_until, lambda: put(path, policy_of("two")))


def test_a_folder_that_goes_and_comes_back_is_still_watched(watching: Running, wait_until: Wait) -> None:
    folder = watching.path.parent
    away = folder.rename(folder.with_name("away"))
    wait_until(lambda: "cannot read the file" in str(watching.policy["refused"]))
    away.joinpath("policy.yaml").write_text(policy_of("back again"))
    revision_changes(watching, wait_until, lambda: away.rename(folder))


class Held(FakeUpstream):
    """Gives an address away in two halves of a reply, the second once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.half_way, self.go_on = threading.Event(), threading.Event()

    async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
        words = "nothing to see here, only words. " * 12
        yield Text(0, "content", f"first@example.com {words}")
        self.half_way.set()
        await anyio.to_thread.run_sync(self.go_on.wait)
        yield Text(0, "content", f"last@example.com {words}")
        yield Finish(0, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_an_exchange_in_flight_ends_under_the_policy_that_it_began_with_and_then_lets_it_go(
    tmp_path: Path, serve: Callable[..., str], wait_until: Wait, stream: bool
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_of("one"))
    upstream = Held()
    service = build(Settings(policy=path, audit_path=tmp_path / "audit.db"), upstream=upstream)
    running = Running(serve(create_app(service)), path)
    old, one = weakref.ref(service.live.guard.pipeline), service.live.guard.policy.revision
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(running.ask, "hello", stream=stream)
        assert upstream.half_way.wait(10)
        put(path, policy_of("two"))
        assert running.reload().json()["changed"]
        two = service.live.guard.policy.revision
        assert old() is not None, "it is still needed"
        upstream.go_on.set()
        text = answer.result(20).text
        assert text.count("[one]") == 2
        assert "[two]" not in text
        assert answer.result().headers["x-ringfence-policy"] == one[:16]
    assert "[two]" in running.ask("hello", stream=stream).text
    second, first = (kept.body for kept in service.store.list())
    assert first is not None
    assert second is not None
    assert {decision["revision"] for decision in first["decisions"]} == {one}
    assert {decision["revision"] for decision in second["decisions"]} == {two}

    def let_go() -> bool:
        gc.collect()  # an answer leaves frames behind that refer to each other
        return old() is None

    wait_until(let_go)


JUDGED = """\
version: 1
name: judged
rules:
  - {id: harm, category: harm, action: block, threshold: 0.9}
"""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the guard's weights in use."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in (*FILES, ORDINARY):
        (folder / name).symlink_to(WEIGHTS / name)
    monkeypatch.setenv(ELSEWHERE, str(folder))
    return folder


def alarmed(folder: Path) -> str:
    """Return the calibration of weights that take everything for harm."""
    calibration = json.loads((folder / CALIBRATION).read_text())
    return json.dumps(calibration | {"curves": {head: {"slope": 1, "offset": 50} for head in calibration["curves"]}})


def test_other_weights_behind_the_same_policy_are_in_force_from_a_reload_on_and_not_for_what_began_before(
    tmp_path: Path, serve: Callable[..., str], weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(JUDGED)
    caplog.set_level(logging.INFO, "ringfence")
    upstream = Held()
    service = build(Settings(policy=path, audit_path=tmp_path / "audit.db"), upstream=upstream)
    running = Running(serve(create_app(service)), path)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(running.ask, "What is the capital of France?")
        assert upstream.half_way.wait(60)
        assert running.reload().json()["changed"] is False
        put(weights / CALIBRATION, alarmed(weights))
        reloaded = running.reload().json()
        upstream.go_on.set()
        assert answer.result(60).status_code == 200, "it ends under the weights that it began with"
    assert (reloaded["changed"], reloaded["weights"]) == (True, ["classifier"])
    assert reloaded["revision"] == reloaded["previous"]
    assert "other weights are in force: those of classifier" in caplog.text
    assert running.ask("What is the capital of France?").status_code == 400
    assert running.reload().json()["changed"] is False
    second, first = (kept.body["revisions"]["classifier"] for kept in service.store.list() if kept.body)
    assert first != second


def test_weights_that_cannot_be_used_or_that_no_threshold_was_fitted_to_leave_the_old_ones_in_force(
    tmp_path: Path, serve: Callable[..., str], weights: Path
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(JUDGED.replace("threshold: 0.9", "stages: [input], target: {min_recall: 0.9}"))
    sample = Sample(100, 60, 0, 0.0, (0.0, 0.07), 0.95, (0.91, 0.98), 0.91)
    revision = {"harm": Scorer.load(weights).revision}
    target = Target(min_recall=0.9)
    entry = entry_of(Fitted(0.9, target, "harm", {Stage.INPUT: sample}, "", revision, date(2026, 11, 1), (), None))
    path.with_suffix(".lock.yaml").write_text(dumps_lock(LockFile(rules={"harm": entry})))
    service = build(Settings(policy=path, upstream="fake", audit_path=tmp_path / "audit.db"))
    running = Running(serve(create_app(service)), path)
    guard = service.live.guard
    for text, told in (("{", "WeightsError"), (alarmed(weights), "was fitted to scores of revision")):
        put(weights / CALIBRATION, text)
        answer = running.reload()
        assert (answer.status_code, told in answer.json()["error"]["message"]) == (422, True)
        assert service.live.guard is guard
        assert running.ask("What is the capital of France?").status_code == 200
    put(weights / CALIBRATION, (WEIGHTS / CALIBRATION).read_text())
    assert running.reload().json()["weights"] == ["classifier"]
    assert running.policy["refused"] == []


def test_a_local_model_and_what_was_learnt_with_replaced_weights_are_made_anew(tmp_path: Path, weights: Path) -> None:
    model = TINY["save_classifier"](tmp_path / "model", "roberta", {0: "fine", 1: "bad"}) / "model.safetensors"
    sides = "match: [a red car, a blue car, my old car, cars, the car], leave: [a cat, my dog, a bird, fish, the cow]"
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\nname: own\nchecks:\n"
        f"  - {{kind: classifier-model, category: bad, model: {model.parent}, labels: [{{label: bad}}]}}\n"
        f"  - {{kind: examples, category: car, description: what drives, {sides}}}\n"
        "  - {kind: keywords, category: word, words: [word]}\n"
        "rules:\n" + "".join(f"  - {{id: {name}, category: {name}, action: log}}\n" for name in ("bad", "car", "word"))
    )
    live = Live(lambda: Guard(load_policy(path), checks={}), path)
    live.guard.warm()

    def scores() -> dict[str, float]:
        return {one.category: one.score for one in live.guard.check("a word of a car").findings}

    first, old = scores(), live.guard
    assert anyio.run(live.reload).weights == ()
    assert live.guard is old
    turned = {name: -tensor if "out_proj" in name else tensor for name, tensor in load_file(model).items()}
    save_file(turned, model.with_suffix(".new"), {"format": "pt"})
    assert model.with_suffix(".new").stat().st_size == model.stat().st_size
    model.with_suffix(".new").replace(model)
    assert anyio.run(live.reload).weights == ("bad",)
    second = scores()
    assert second["bad"] != first["bad"]
    assert (second["car"], second["word"]) == (first["car"], first["word"])
    assert {one.category: one.score for one in old.check("a word of a car").findings} == first
    put(weights / CALIBRATION, alarmed(weights))
    assert anyio.run(live.reload).weights == ("car",)
    assert anyio.run(live.reload).weights == ()


def test_a_guard_that_runs_here_is_made_anew_where_its_files_are_others_and_one_elsewhere_never(tmp_path: Path) -> None:
    folder = TINY["save_guard"](tmp_path / "guard", find_families()["shieldgemma"], "template")
    here = GuardModel("shieldgemma", "here", "local", str(folder))
    there = GuardModel("shieldgemma", "there", "http://127.0.0.1:9/v1", str(folder))
    first, far = own_checks([here, there]).values()
    assert list(own_checks([here, there]).values()) == [first, far]
    put(folder / "config.json", (folder / "config.json").read_text())
    second, still = own_checks([here, there]).values()
    assert (is_replaced(first), is_replaced(second), still is far) == (True, False, True)
    assert own_checks([here])["checks.here"] is second is not first


def test_two_hundred_reloads_leave_no_thread_behind(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_of("0"))
    service = build(Settings(policy=path, upstream="fake", audit_path=tmp_path / "audit.db"))

    def pool_threads() -> int:
        return sum(thread.name.startswith("check") for thread in threading.enumerate())

    async def flip() -> int:
        most = 0
        for turn in range(1, 201):
            await anyio.to_thread.run_sync(service.live.guard.check, "to a@example.com")
            path.write_text(policy_of(str(turn)))
            assert (await service.live.reload()).changed
            most = max(most, pool_threads())
        return most

    gc.disable()  # without its help
    try:
        before = pool_threads()
        most = anyio.run(flip)
    finally:
        gc.enable()
    assert most - before <= 3, "threads of the guards before are gone or going"


class Slow:
    """A check that takes its time to load, and looks at who is in force meanwhile."""

    name = "slow"
    categories = frozenset({"slow"})

    def __init__(self) -> None:
        self.warmed: list[str] = []
        self.live: Live | None = None
        self.at_a_time = self.most = 0
        self.error: Exception | None = None

    def warm(self) -> None:
        assert self.live is not None
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        threading.Event().wait(0.01)
        self.warmed.append(self.live.guard.policy.revision)
        self.at_a_time -= 1
        if self.error:
            raise self.error

    def find(self, passage: Passage) -> Sequence[Finding]:
        return [Finding(self.name, "slow", 1.0)]


def numbered(check: Check) -> Callable[[], Guard]:
    """Return what makes a guard of another revision each time."""
    revisions = iter(range(1_000))

    def make() -> Guard:
        policy = Policy("slow", (Rule("slow", "slow", Action.LOG),), revision=str(next(revisions)))
        return Guard(policy, checks={"slow": check})

    return make


def test_checks_are_warm_before_anyone_meets_them() -> None:
    check = Slow()
    live = check.live = Live(numbered(check))
    anyio.run(live.reload)
    assert check.warmed == ["0"], "the old policy was in force while the new one's checks were loaded"
    assert live.guard.policy.revision == "1"


def test_reloads_at_the_same_time_come_one_after_the_other() -> None:
    check = Slow()
    live = check.live = Live(numbered(check))

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(live.reload)

    anyio.run(all_at_once)
    assert check.most == 1
    assert check.warmed == [str(n) for n in range(20)]
    assert live.guard.policy.revision == "20"


def test_a_check_that_cannot_be_loaded_keeps_the_old_policy_in_force(caplog: pytest.LogCaptureFixture) -> None:
    check = Slow()
    live = check.live = Live(numbered(check))
    check.error = KeyError("weights")
    with pytest.raises(Refused, match="KeyError: 'weights'"):
        anyio.run(live.reload)
    assert live.guard.policy.revision == "0"
    assert live.refused == ("KeyError: 'weights'",)
    assert "Traceback" in caplog.text
    assert live.guard.check("x", Stage.INPUT).rules == ("slow",)


LONG = "and so on and on " * 20


def test_fifty_at_a_time_lose_nothing_while_the_policy_flips(tmp_path: Path, wait_until: Wait) -> None:
    done = threading.Event()

    def keep_asking(running: Running, number: int) -> list[httpx.Response]:
        text = "mail a@example.com" if number % 3 == 0 else f"say: +1 415 555 2671 {LONG} +1 415 555 2672 {LONG}"
        answers = []
        while not done.is_set() or not answers:
            answers.append(running.ask(text, stream=number % 3 == 1))
        return answers

    with process(tmp_path, "--no-watch", wait_until=wait_until) as (running, _, _):
        marks = {str(running.policy["revision"]): "one"}
        with ThreadPoolExecutor(50) as pool:
            asking = [pool.submit(keep_asking, running, number) for number in range(50)]
            for turn in map(str, range(20)):
                put(running.path, policy_of(turn))
                answer = running.reload().json()
                assert answer["changed"], "nobody but us asks for a reload"
                marks[answer["revision"]] = turn
            done.set()
            answers = [answer for future in asking for answer in future.result(60)]
    assert len(marks) == 21
    store = Store.open(tmp_path / "ringfence.db", read_only=True)
    assert store.count() == len(answers) > 50
    used = set()
    for answer in answers:
        kept = store.get(answer.headers["x-ringfence-exchange"])
        assert kept is not None
        assert kept.body is not None
        [revision] = {decision["revision"] for decision in kept.body["decisions"]}
        assert answer.headers["x-ringfence-policy"] == revision[:16]
        used.add(revision)
        if answer.status_code == 400:
            assert answer.json()["error"]["message"] == f"said by {marks[revision]}"
        else:
            assert answer.status_code == 200
            assert re.findall(r"\[(\w+)\]", answer.text.replace("[DONE]", "")) == [marks[revision]] * 2
    assert len(used) > 5, "they came while it flipped"
    store.close()


def test_a_hangup_reloads_and_the_log_says_what_came_of_it(tmp_path: Path, wait_until: Wait) -> None:
    with process(tmp_path, "--no-watch", wait_until=wait_until) as (running, child, said):
        put(running.path, policy_of("two"))
        revision_changes(running, wait_until, lambda: child.send_signal(signal.SIGHUP))
        revision = str(running.policy["revision"])
        assert f"INFO policy plain, revision {revision[:16]}, is in force; until now " in said.read_text()
        put(running.path, RULE + "    action: blok\n    treshold: 1\n")
        child.send_signal(signal.SIGHUP)
        wait_until(lambda: "stays in force" in said.read_text())
        assert len(re.findall(r"ERROR policy refused: policy\.yaml:\d:5: ", said.read_text())) == 2
        assert running.policy["revision"] == revision
        assert running.ask("to a@example.com").json()["error"]["message"] == "said by two"


def test_a_server_watches_its_policy_unless_told_not_to(tmp_path: Path, wait_until: Wait) -> None:
    with process(tmp_path, wait_until=wait_until) as (running, _, _):
        revision_changes(running, wait_until, lambda: put(running.path, policy_of("two")))
