"""A streamer around the real `generate`, of a tiny random Llama whose words are ours."""

import threading
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ringfence import Blocked, Guard, GuardedStreamer, load_policy
from ringfence.guard.audit.store import Store

save_speaker = run_path(str(Path(__file__).parent / "tiny_speaker.py"))["save_speaker"]
WORDS = ["good", "day", "friend", "how", "are", "you", "today", "and", "again", "1234", "please", "bomb"]
POLICY = """
version: 1
name: words
stream: {{ window: 40, context: 40, reach: 30 }}
checks:
  - {{ kind: keywords, category: bomb, words: [{word}] }}
  - {{ kind: regex, category: number, patterns: ['\\d{{4,}}'] }}
rules:
  - {{ id: no-bombs, category: bomb, action: block, message: No bombs here. }}
  - {{ id: no-numbers, category: number, action: rewrite }}
"""


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path = tmp_path_factory.mktemp("speaker")
    save_speaker(path, WORDS)
    return AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)


@pytest.fixture
def guard_against(tmp_path: Path, store: Store) -> Any:
    def build(word: str) -> Guard:
        (tmp_path / "policy.yaml").write_text(POLICY.format(word=word))
        return Guard(load_policy(tmp_path / "policy.yaml"), store=store)

    return build


def generate(speaker: tuple[Any, Any], prompt: str, **options: Any) -> str:
    """Return what the model says, by chance that is always the same."""
    tokenizer, model = speaker
    torch.manual_seed(3)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=300, do_sample=True, pad_token_id=0, **options)
    return str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_harmless_text_is_what_generate_says_and_leaves_one_record(
    speaker: tuple[Any, Any], guard_against: Any, store: Store
) -> None:
    said = generate(speaker, "good day")
    with GuardedStreamer(speaker[0], guard_against("war"), prompt="good day") as streamer:
        generate(speaker, streamer.prompt, streamer=streamer, stopping_criteria=streamer.stopping_criteria)
    assert streamer.text == said.replace("1234", "[NUMBER]")
    assert store.count("rewrite") == store.count() == 1


def test_generation_stops_at_a_block_and_nothing_after_it_leaves(
    speaker: tuple[Any, Any], guard_against: Any, store: Store
) -> None:
    said = generate(speaker, "good day")
    before = said.partition("bomb")[0].replace("1234", "[NUMBER]")
    with pytest.raises(Blocked, match="No bombs here"):  # noqa: SIM117
        with GuardedStreamer(speaker[0], guard_against("bomb"), prompt="good day") as streamer:
            guarded = generate(
                speaker, streamer.prompt, streamer=streamer, stopping_criteria=streamer.stopping_criteria
            )
    assert before.startswith(streamer.text)
    assert "bomb" in guarded
    assert len(guarded) < len(said)  # it was stopped
    assert store.count("block") == store.count() == 1


def test_blocked_prompt_is_never_generated_from(speaker: tuple[Any, Any], guard_against: Any, store: Store) -> None:
    with pytest.raises(Blocked, match="No bombs here"):
        GuardedStreamer(speaker[0], guard_against("bomb"), prompt=[{"role": "user", "content": "a bomb please"}])
    assert store.count("block") == store.count() == 1


def test_rewritten_prompt_is_what_the_streamer_gives(
    speaker: tuple[Any, Any], guard_against: Any, store: Store
) -> None:
    with GuardedStreamer(speaker[0], guard_against("bomb"), prompt="it is 4321") as streamer:
        assert streamer.prompt == "it is [NUMBER]"
    messages = [{"role": "user", "content": "it is 4321"}]
    with GuardedStreamer(speaker[0], guard_against("bomb"), prompt=messages) as streamer:
        assert streamer.prompt == [{"role": "user", "content": "it is [NUMBER]"}]
    assert store.count() == 2


def test_text_can_be_read_while_another_thread_generates(speaker: tuple[Any, Any], guard_against: Any) -> None:
    with GuardedStreamer(speaker[0], guard_against("war"), prompt="good day", timeout=60) as streamer:
        options = {"streamer": streamer, "stopping_criteria": streamer.stopping_criteria}
        thread = threading.Thread(target=generate, args=(speaker, "good day"), kwargs=options)
        thread.start()
        pieces = list(streamer)
        thread.join()
    assert "".join(pieces) == streamer.text
    assert len([piece for piece in pieces if piece]) > 2


def test_generation_that_fails_is_on_record_and_lets_its_reader_go(
    speaker: tuple[Any, Any], guard_against: Any, store: Store
) -> None:
    with pytest.raises(OSError, match="the model is gone"):  # noqa: SIM117, PT012
        with GuardedStreamer(speaker[0], guard_against("bomb"), prompt="good day") as streamer:
            streamer.put(torch.tensor([[1, 2]]))
            streamer.put(torch.tensor([1, 2, 3]))
            raise OSError("the model is gone")
    assert "".join(streamer) == ""
    [kept] = store.list()
    assert kept.body is not None
    assert kept.body["error"] == "OSError"


def test_streamer_outside_of_a_with_refuses_text_that_nobody_would_record(
    speaker: tuple[Any, Any], guard_against: Any
) -> None:
    streamer = GuardedStreamer(speaker[0], guard_against("bomb"), prompt="good day")
    with pytest.raises(RuntimeError, match="stands in a `with`"):
        generate(speaker, streamer.prompt, streamer=streamer)


def test_prompt_that_is_none_is_refused_with_what_is_wanted(speaker: tuple[Any, Any], guard_against: Any) -> None:
    with pytest.raises(TypeError, match="'prompt' must be a string or a list of messages, got int"):
        GuardedStreamer(speaker[0], guard_against("bomb"), prompt=5)


def test_several_texts_at_once_are_refused(speaker: tuple[Any, Any], guard_against: Any) -> None:
    streamer = GuardedStreamer(speaker[0], guard_against("bomb"), prompt="good day")
    with pytest.raises(ValueError, match="batch size 1"), streamer:
        streamer.put(torch.tensor([[1, 2], [3, 4]]))
