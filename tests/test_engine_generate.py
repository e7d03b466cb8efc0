"""The decode loop, on a tiny random checkpoint, against a slow twin without a cache."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from ringfence.model import engine as engine_module
from ringfence.model.engine import (
    PREFILL,
    SEQUENCES,
    ContextOverflow,
    Engine,
    Sampling,
    WeightsDamaged,
    choose,
)
from ringfence.model.weights import WeightsMissing

CONTEXT = 700
GREEDY = Sampling(temperature=0, max_tokens=24)
PROMPT = [7, 3, 99, 250, 12]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,  # wide enough that replies wander instead of repeating one token
        eos_token_id=None,
    )
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    """In float32, where the order of additions does not change which token is likeliest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "best_dtype", lambda: torch.float32)
        return Engine.load(checkpoint, threads=1)


def counting(limit: int) -> Callable[[], bool]:
    """Answer False `limit` times, then True."""
    calls = iter(range(limit))
    return lambda: next(calls, None) is None


def slow_greedy(checkpoint: Path, prompt: list[int], count: int) -> list[int]:
    """Read everything again for each token: the definition."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 5, PREFILL, PREFILL + 1, 2 * PREFILL + 3])
def test_greedy_reply_is_the_slow_twins(engine: Engine, checkpoint: Path, length: int) -> None:
    prompt = [(7 * i * i + 3) % 300 for i in range(length)]
    reply = list(engine.generate(prompt, GREEDY))
    assert reply == slow_greedy(checkpoint, prompt, GREEDY.max_tokens)
    assert len(set(reply)) > 3  # else the twins agree on nothing worth saying


def test_same_seed_gives_the_same_reply_and_another_seed_another(engine: Engine) -> None:
    replies = [
        list(engine.generate(PROMPT, Sampling(temperature=1, top_p=1, seed=seed, max_tokens=20))) for seed in (5, 5, 6)
    ]
    assert replies[0] == replies[1] != replies[2]


def test_without_a_seed_replies_differ(engine: Engine) -> None:
    sampling = Sampling(temperature=1, top_p=1, max_tokens=20)
    assert list(engine.generate(PROMPT, sampling)) != list(engine.generate(PROMPT, sampling))


def test_process_wide_randomness_is_left_alone(engine: Engine) -> None:
    before = torch.get_rng_state()
    list(engine.generate(PROMPT, Sampling(temperature=1, seed=3, max_tokens=5)))
    list(engine.generate(PROMPT, Sampling(temperature=1, max_tokens=5)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrap", [lambda id: id, lambda id: [299, id]])
def test_end_token_ends_the_reply_and_is_not_part_of_it(
    engine: Engine, checkpoint: Path, tmp_path: Path, wrap: Callable[[int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(engine.generate(PROMPT, GREEDY))
    end = next(id for id in whole[3:] if id not in whole[:3])
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrap(end)}))
    monkeypatch.setattr(engine_module, "best_dtype", lambda: torch.float32)
    ending = Engine.load(tmp_path, threads=1)
    assert end in ending.eos_ids
    assert list(ending.generate(PROMPT, GREEDY)) == whole[: whole.index(end)]


def test_reply_ends_where_the_context_ends(engine: Engine) -> None:
    prompt = [5] * (CONTEXT - 3)
    assert len(list(engine.generate(prompt, Sampling(temperature=0, max_tokens=100)))) == 3


def test_prompt_longer_than_the_context_is_refused_at_the_call(engine: Engine) -> None:
    with pytest.raises(
        ContextOverflow, match=f"the prompt has 701 tokens, the engine's context is {CONTEXT}"
    ) as caught:
        engine.generate([5] * 701, GREEDY)
    assert (caught.value.prompt, caught.value.context) == (701, CONTEXT)


@pytest.mark.parametrize(("prompt", "told"), [([], "no tokens"), ([1, 300], "token id 300"), ([-1], "token id -1")])
def test_prompt_that_is_none_is_refused_at_the_call(engine: Engine, prompt: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        engine.generate(prompt, GREEDY)


def test_cancelled_reply_ends_before_the_next_step(engine: Engine) -> None:
    # Asked once before the prompt, then before each token but the first.
    assert len(list(engine.generate(PROMPT, GREEDY, counting(4)))) == 4


def test_cancelling_stops_in_the_middle_of_a_long_prompt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = engine._forward
    monkeypatch.setattr(engine, "_forward", lambda ids, cache: read.append(len(ids)) or forward(ids, cache))
    assert list(engine.generate([5] * (2 * PREFILL + 1), GREEDY, counting(2))) == []
    assert read == [PREFILL, PREFILL]


def test_replies_read_in_turns_are_the_ones_read_alone(engine: Engine) -> None:
    prompts = [PROMPT, [1, 2, 3], [200, 100]]
    alone = [list(engine.generate(prompt, GREEDY)) for prompt in prompts]
    together = zip(*(engine.generate(prompt, GREEDY) for prompt in prompts), strict=True)
    assert [list(reply) for reply in zip(*together, strict=True)] == alone


def test_replies_on_several_threads_are_the_ones_read_alone(engine: Engine) -> None:
    prompts = [[n, n + 1, n + 2] for n in range(2 * SEQUENCES)]
    alone = [list(engine.generate(prompt, GREEDY)) for prompt in prompts]
    together: list[list[int]] = [[] for _ in prompts]

    def read(n: int) -> None:
        together[n] = list(engine.generate(prompts[n], GREEDY))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_waiting_for_a_seat_can_be_cancelled_and_a_closed_reply_gives_its_seat_back(engine: Engine) -> None:
    open_replies = [engine.generate(PROMPT, GREEDY) for _ in range(SEQUENCES)]
    for reply in open_replies:
        next(reply)
    assert list(engine.generate(PROMPT, GREEDY, counting(0))) == []
    open_replies.pop().close()  # type: ignore[attr-defined]
    assert len(list(engine.generate(PROMPT, GREEDY))) == GREEDY.max_tokens
    for reply in open_replies:
        reply.close()  # type: ignore[attr-defined]


def test_loading_and_generating_need_no_network(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"went to the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(list(Engine.load(checkpoint).generate(PROMPT, GREEDY))) == GREEDY.max_tokens


def test_revision_is_the_digest_of_the_weights_file(engine: Engine, checkpoint: Path) -> None:
    said = subprocess.run(["sha256sum", checkpoint / "model.safetensors"], capture_output=True, text=True, check=True)
    assert engine.revision == said.stdout.split()[0]
    assert engine.context_length == CONTEXT


def test_missing_checkpoint_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="ringfence engine pull"):
        Engine.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_truncated_weights_are_told_with_what_to_do(checkpoint: Path, tmp_path: Path, keep: int) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:keep])
    with pytest.raises(WeightsDamaged, match="delete it and run `ringfence engine pull`"):
        Engine.load(tmp_path)


def test_broken_configuration_is_told(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsDamaged):
        Engine.load(tmp_path)


def test_importing_the_engine_loads_no_torch() -> None:
    code = (
        "import sys, ringfence.model.engine, ringfence.model.chat; print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_tokens", 0),
        ("repetition_penalty", 0),
        ("seed", 1 << 63),
    ],
)
def test_sampling_out_of_bounds_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be between"):
        Sampling(**{field: value})  # type: ignore[arg-type]


def pick(logits: list[float], sampling: Sampling, seen: tuple[int, ...] = (), seed: int = 0) -> int:
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[list(seen)] = True
    return choose(torch.tensor(logits), mask, sampling, torch.Generator().manual_seed(seed))


values = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12)


@given(values, st.floats(0.01, 3), st.floats(0, 1), st.integers(0, 14), st.integers(0, 1000))
@settings(deadline=None)
def test_chosen_token_is_one_that_top_k_and_top_p_leave(
    logits: list[float], temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    chosen = pick(logits, Sampling(temperature=temperature, top_p=top_p, top_k=top_k), seed=seed)
    likelier = [value for value in logits if value > logits[chosen]]
    assert len(likelier) < (top_k or len(logits))
    kept = torch.tensor(sorted(logits, reverse=True)[: top_k or None], dtype=torch.float64)
    probabilities = (kept / temperature).softmax(0)
    assert float(probabilities[: len(likelier)].sum()) <= top_p + 1e-5


@given(values)
def test_temperature_near_zero_is_greedy_and_never_nan(logits: list[float]) -> None:
    best = max(logits)
    assert logits[pick(logits, Sampling(temperature=1e-30, top_p=1))] == pytest.approx(best)
    assert logits[pick(logits, Sampling(temperature=0))] == best


def test_tokens_come_as_often_as_their_probability() -> None:
    sampling = Sampling(temperature=2, top_p=1)
    count = 4000
    drawn = torch.bincount(torch.tensor([pick([2.0, 0.0, 4.0], sampling, seed=s) for s in range(count)]), minlength=3)
    expected = torch.tensor([1.0, 0.0, 2.0]).softmax(0)
    torch.testing.assert_close(drawn / count, expected, atol=0.03, rtol=0)


def test_repetition_penalty_makes_seen_tokens_less_likely_on_both_sides_of_zero() -> None:
    sampling = Sampling(temperature=0, repetition_penalty=2)
    assert pick([3.0, 2.0], sampling) == 0
    assert pick([3.0, 2.0], sampling, seen=(0,)) == 1
    assert pick([-1.0, -1.5], sampling, seen=(0,)) == 1
