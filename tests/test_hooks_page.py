"""docs/hooks.md: every example runs as it stands, in a folder with a policy and a model, against servers that answer."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ringfence.guard.audit.store import Store

PAGE = (Path(__file__).parents[1] / "docs" / "hooks.md").read_text()
EXAMPLES = dict(re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE, re.DOTALL))
EXAMPLES["Anthropic"] = re.findall(r"```python\n(import anthropic.*?)```", PAGE, re.DOTALL)[0]
TINY = run_path(str(Path(__file__).parent / "tiny_speaker.py"))

POLICY = """
version: 1
name: hooks
audit: { path: hooks.db }
checks:
  - { kind: keywords, category: bomb, words: [bomb] }
  - { kind: regex, category: number, patterns: ['\\d{4,}'] }
rules:
  - { id: no-bombs, category: bomb, action: block, message: No bombs here. }
  - { id: no-numbers, category: number, action: rewrite }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def vendor(serve: Callable[[FastAPI], str], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Both vendors' APIs, saying what they were told; returns what that was."""
    app, told = FastAPI(), []

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        told.append((await request.json())["messages"][-1]["content"])
        message = {"role": "assistant", "content": "You said: 987654."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        told.append((await request.json())["messages"][-1]["content"])
        message = {"id": "m1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": {}}
        block = {"type": "text", "text": ""}
        events = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "You said: 987654."}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
            {"type": "message_stop"},
        ]

        def frames() -> Iterator[str]:
            for event in events:
                yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"

        return StreamingResponse(frames(), media_type="text/event-stream")

    url = serve(app)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    return told


def run(name: str) -> dict[str, Any]:
    """Run an example; return what it named."""
    named: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLES[name], f"hooks.md: {name}", "exec"), named)
    return named


@pytest.mark.parametrize("name", ["OpenAI and Anthropic clients", "Anthropic"])
def test_client_example_runs(name: str, folder: Path, vendor: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    run(name)["client"].close()
    assert vendor == ["It is [NUMBER]."]
    assert capsys.readouterr().out == "You said: [NUMBER].\n"
    assert Store.open("hooks.db").count("rewrite") == 1


def test_transformers_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TINY["save_speaker"](folder / "model", ["good", "day", "friend"])
    run("transformers")
    assert set(capsys.readouterr().out.split()) <= {"good", "day", "friend"}
    assert Store.open("hooks.db").count("allow") == 1


def test_langchain_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("LangChain")
    assert capsys.readouterr().out == "It is [NUMBER].\n"
    assert Store.open("hooks.db").count("rewrite") == 1


def test_llama_index_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("LlamaIndex")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "It is [NUMBER]."
    assert "".join(rest).endswith("It is [NUMBER].assistant: ")
    assert Store.open("hooks.db").count("rewrite") == 2


def test_pytest_example_runs_and_fails_as_the_page_says(folder: Path) -> None:
    failing = 'def test_failing(assert_safe):\n    assert_safe("How about a bomb?")\n'
    (folder / "test_bot.py").write_text(EXAMPLES["pytest"] + "\n\n" + failing)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ringfence-policy", "policy.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "1 failed, 1 passed" in done.stdout
    shown = re.findall(r"```\n(expected.*?)```", PAGE, re.DOTALL)[0]
    assert shown in done.stdout
