"""A checkpoint at work: loaded from disk in every form, for callers on many threads; and the stock way for other kinds."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from ringfence.model import memory
from ringfence.model.checkpoint import opened, read_shape
from ringfence.model.delta import Delta
from ringfence.model.engine import SEATS, ContextOverflow
from ringfence.model.loading import load
from ringfence.model.sampler import Sampling, SamplingError
from ringfence.model.service import EngineEnded, Service
from ringfence.model.stock import PREFILL, StockService
from ringfence.model.upcycle import start, upcycle
from ringfence.model.weights import DELTA, NotEnoughMemory, WeightsDamaged, WeightsMissing, revision
from ringfence.proxy.upstreams.embedded import EmbeddedUpstream

CONTEXT = 700
GREEDY = Sampling(temperature=0, max_tokens=24)
PROMPT = [7, 3, 99, 250, 12]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,  # wide enough that replies wander instead of repeating one token
    "eos_token_id": None,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A Llama, which our own network computes, and a Mixtral, which it does not."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path / "own")
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).save_pretrained(path / "stock")
    return path


@pytest.fixture(scope="module", params=["own", "stock"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def service(checkpoints, kind):
    """In float32, where the order of additions does not change which token is likeliest."""
    service = load(checkpoints / kind, bits=32, threads=1)
    assert isinstance(service, Service if kind == "own" else StockService)
    yield service
    service.close()


def tokens(replies):
    return [one.token for advance in replies for one in advance.chosen]


@pytest.mark.parametrize("length", [1, 5, PREFILL + 1, 2 * PREFILL + 3])
def test_greedy_reply_is_what_transformers_says_without_any_cache(service, checkpoints, kind, length):
    prompt = [(7 * i * i + 3) % 300 for i in range(length)]
    model = {"own": LlamaForCausalLM, "stock": MixtralForCausalLM}[kind].from_pretrained(checkpoints / kind)
    expected = list(prompt)
    with torch.inference_mode():
        for _ in range(GREEDY.max_tokens):
            expected.append(int(model(torch.tensor([expected]), use_cache=False).logits[0, -1].argmax()))
    said = tokens(service.generate(prompt, GREEDY))
    assert said == expected[length:]
    assert len(set(said)) > 3  # else the two agree on nothing worth saying


def test_same_seed_gives_the_same_reply_and_another_seed_or_none_another(service):
    def say(seed):
        return tokens(service.generate(PROMPT, Sampling(temperature=1, top_p=1, seed=seed, max_tokens=20)))

    assert say(5) == say(5) != say(6)
    assert say(None) != say(None)


def test_process_wide_randomness_is_left_alone(service):
    before = torch.get_rng_state()
    tokens(service.generate(PROMPT, Sampling(temperature=1, seed=3, max_tokens=5)))
    assert torch.equal(before, torch.get_rng_state())


def test_hidden_states_of_all_that_was_read_are_told(service):
    advances = list(service.generate(PROMPT, GREEDY))
    assert [advances[0].start, *advances[0].hidden.shape] == [0, len(PROMPT), SIZES["hidden_size"]]


def test_prompt_that_is_none_or_too_long_is_refused_at_the_call(service):
    for prompt, told in [([], "no tokens"), ([1, 300], "token id 300"), ([-1], "token id -1")]:
        with pytest.raises(ValueError, match=told):
            service.generate(prompt, GREEDY)
    with pytest.raises(ContextOverflow, match=f"the prompt has 701 tokens, the engine's context is {CONTEXT}"):
        service.generate([5] * 701, GREEDY)


def test_reply_ends_where_the_context_ends(service):
    assert len(tokens(service.generate([5] * (CONTEXT - 3), Sampling(temperature=0, max_tokens=100)))) == 3


def test_replies_to_callers_on_many_threads_are_the_ones_given_alone(service):
    prompts = [[n, n + 1, n + 2] for n in range(SEATS + 4)]
    alone = [tokens(service.generate(prompt, GREEDY)) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(lambda prompt: tokens(service.generate(prompt, GREEDY)), prompts)) == alone


def test_reply_that_nobody_reads_on_is_given_up_and_its_seat_serves_others(service, kind, monkeypatch):
    steps = []
    if kind == "own":
        engine = type(service._engine)
        step = engine.step
        monkeypatch.setattr(engine, "step", lambda self: steps.append(self.busy) or step(self))
    long = Sampling(temperature=0, max_tokens=600)
    begun = [service.generate(PROMPT, long) for _ in range(SEATS)]
    for replies in begun:
        next(replies)
    for replies in begun:
        replies.close()
    assert len(tokens(service.generate(PROMPT, GREEDY))) == GREEDY.max_tokens
    assert len(steps) < long.max_tokens / 2  # nobody waited for those 600 tokens


class Forbids:
    """A constraint that allows nothing."""

    done = False

    def mask(self):
        return torch.zeros(300, dtype=torch.bool).numpy()

    def advance(self, token):
        raise AssertionError

    def rewind(self, count):
        raise AssertionError


def test_error_of_one_sequence_reaches_its_caller_and_nobody_else(service):
    other = service.generate(PROMPT, GREEDY)
    first = next(other)
    with pytest.raises(SamplingError, match="leave no token to choose from"):
        tokens(service.generate(PROMPT, GREEDY, Forbids()))
    with pytest.raises(ValueError, match="token 4000"):
        tokens(service.generate(PROMPT, Sampling(logit_bias={4000: 1})))
    assert [*tokens([first]), *tokens(other)] == tokens(service.generate(PROMPT, GREEDY))


def test_failure_of_a_step_reaches_everybody_in_it_and_the_engine_serves_on(checkpoints, monkeypatch):
    service = load(checkpoints / "own", bits=32, threads=1)
    engine, told, both = service._engine, [], threading.Event()

    def tell(news):
        told.append(news)
        if sum(isinstance(one, MemoryError) for one in told) == 2:
            both.set()

    with monkeypatch.context() as patch:
        patch.setattr(type(engine), "step", lambda self: (_ for _ in ()).throw(MemoryError("no room")))
        service.submit(PROMPT, GREEDY, tell)
        service.submit(PROMPT, GREEDY, tell)
        assert both.wait(10)
    assert len(tokens(service.generate(PROMPT, GREEDY))) == GREEDY.max_tokens
    service.close()


def broken(*args):
    raise MemoryError("no room")


def test_failure_of_joining_reaches_its_caller_and_the_engine_serves_on(checkpoints, monkeypatch):
    service = load(checkpoints / "own", bits=32, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(service._engine, "add", broken)
        with pytest.raises(MemoryError, match="no room"):
            tokens(service.generate(PROMPT, GREEDY))
    assert len(tokens(service.generate(PROMPT, GREEDY))) == GREEDY.max_tokens
    assert service.problem() is None
    service.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_engine_that_has_ended_tells_everybody_and_is_not_ready(checkpoints, monkeypatch):
    service = load(checkpoints / "own", bits=32, threads=1)
    upstream = EmbeddedUpstream("own", "", service, None)
    assert asyncio.run(upstream.ready()) is None
    for name in ("step", "abort"):
        monkeypatch.setattr(service._engine, name, broken)
    with pytest.raises(MemoryError, match="no room"):
        tokens(service.generate(PROMPT, GREEDY))
    service._thread.join(60)
    assert asyncio.run(upstream.ready()) == "the engine has ended"
    with pytest.raises(RuntimeError, match="has ended"):
        service.submit(PROMPT, GREEDY, print)


def test_who_is_under_way_or_about_to_join_when_the_engine_is_closed_is_told(checkpoints):
    service = load(checkpoints / "own", bits=32, threads=1)
    heard = SimpleQueue()
    first = service.generate(PROMPT, Sampling(temperature=0, max_tokens=CONTEXT // 2))
    next(first)
    service._orders.put(None)
    with suppress(EngineEnded):  # the thread may be as quick
        service.submit(PROMPT, GREEDY, heard.put)
        assert isinstance(heard.get(timeout=60), EngineEnded)
    with pytest.raises(EngineEnded):
        tokens(first)
    with pytest.raises(EngineEnded):
        service.submit(PROMPT, GREEDY, print)
    service.close()


TWISTS = {
    "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 8.0}),
    "cohere": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 3.0, "head_dim": 16}),
}


@pytest.mark.parametrize("twist", TWISTS)
def test_what_a_network_does_to_its_logits_after_the_head_is_done(twist, tmp_path):
    config, kind, more = TWISTS[twist]
    torch.manual_seed(1)
    model = kind(config(**SIZES | {"pad_token_id": 0} | more)).eval()
    model.save_pretrained(tmp_path)
    service = load(tmp_path, bits=32, threads=1)
    first, *_ = service.generate(PROMPT, Sampling(temperature=0, max_tokens=2, logprobs=5))
    service.close()
    with torch.inference_mode():
        said = model(torch.tensor([PROMPT]), output_hidden_states=True)
        last = model.base_model(torch.tensor([PROMPT])).last_hidden_state[0]
        bare = model.get_output_embeddings()(last[-1]).log_softmax(-1)
    expected = said.logits[0, -1].log_softmax(-1)
    assert (first.hidden - last).abs().max() < 1e-4
    for token, told in first.chosen[0].top:
        assert told == pytest.approx(float(expected[token]), abs=1e-3)
    assert (bare - expected).abs().max() > 0.1


@pytest.mark.parametrize("wrap", [lambda id: id, lambda id: [299, id]])
def test_end_token_ends_the_reply_and_is_not_part_of_it(service, checkpoints, kind, tmp_path, wrap):
    whole = tokens(service.generate(PROMPT, GREEDY))
    end = next(id for id in whole[3:] if id not in whole[:3])
    for file in (checkpoints / kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrap(end)}))
    ending = load(tmp_path, bits=32, threads=1)
    advances = list(ending.generate(PROMPT, GREEDY))
    assert (tokens(advances), advances[-1].end) == (whole[: whole.index(end)], "stop")
    ending.close()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_checkpoint_of_fewer_bits_says_nearly_the_same(checkpoints, bits):
    service, exact = load(checkpoints / "own", bits=bits, threads=1), load(checkpoints / "own", bits=32, threads=1)
    probable = Sampling(temperature=0, max_tokens=1, logprobs=1)
    near = [
        abs(a.chosen[0].logprob - b.chosen[0].logprob)
        for start in range(40)
        for a, b in zip(service.generate([start, 9, 4], probable), exact.generate([start, 9, 4], probable), strict=True)
        if a.chosen[0].token == b.chosen[0].token
    ]
    assert len(near) > (10 if bits == 4 else 20)  # of 40; by chance it would be none
    assert sum(near) / len(near) < {4: 0.5, 8: 0.15, 16: 0.1}[bits]
    service.close()
    exact.close()


@pytest.fixture
def grown(checkpoints, tmp_path):
    """A dense checkpoint with experts in its folder, and the same written out as a checkpoint of a mixture."""
    for file in (checkpoints / "own").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with opened(tmp_path) as take:
        fresh = start(read_shape(tmp_path), take, revision(tmp_path), 4, 8, torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    tensors = {
        name: one if one.dtype == torch.bool else one + 0.3 * torch.randn(one.shape)
        for name, one in fresh.tensors.items()
    }
    delta = replace(fresh, tensors=tensors)
    delta.save(tmp_path / DELTA)
    upcycle(checkpoints / "own", tmp_path / "whole", 4, delta)
    return tmp_path


def test_experts_in_a_checkpoints_folder_say_what_the_whole_mixture_says(checkpoints, grown):
    said = []
    for folder in (grown, grown / "whole", checkpoints / "own"):
        service = load(folder, bits=32, threads=1)
        said.append(tokens(service.generate(PROMPT, GREEDY)))
        service.close()
    assert said[0] == said[1] != said[2]


def test_experts_in_four_bits_say_nearly_the_same(grown):
    service, exact = load(grown, bits=4, threads=1), load(grown, bits=32, threads=1)
    probable = Sampling(temperature=0, max_tokens=1)
    same = [
        tokens(service.generate([first, 9, 4], probable)) == tokens(exact.generate([first, 9, 4], probable))
        for first in range(40)
    ]
    assert sum(same) > 4  # of 40, with weights that are noise; by chance it would be none
    service.close()
    exact.close()


def test_experts_of_other_weights_are_refused(checkpoints, grown):
    other = grown / "other"
    shutil.copytree(checkpoints / "own", other)
    delta = Delta.load(grown / DELTA)
    replace(delta, parent="0" * 64).save(other / DELTA)
    with pytest.raises(WeightsDamaged, match="is to weights of sha256 000"):
        load(other, threads=1)
    (other / DELTA).write_bytes((grown / DELTA).read_bytes()[:100])
    with pytest.raises(WeightsDamaged, match=DELTA):
        load(other, threads=1)


def test_loading_and_generating_need_no_network(checkpoints, kind, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"went to the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    service = load(checkpoints / kind, threads=1)
    assert len(tokens(service.generate(PROMPT, GREEDY))) == GREEDY.max_tokens
    service.close()


def test_missing_checkpoint_names_the_command(tmp_path):
    with pytest.raises(WeightsMissing, match="ringfence engine pull"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_truncated_weights_are_told_with_what_to_do(checkpoints, kind, tmp_path, keep):
    for file in (checkpoints / kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((checkpoints / kind / "model.safetensors").read_bytes()[:keep])
    with pytest.raises(WeightsDamaged, match="delete it and run `ringfence engine pull`"):
        load(tmp_path)


def test_broken_configuration_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsDamaged):
        load(tmp_path)


def test_checkpoint_that_does_not_fit_is_refused_before_it_is_read(checkpoints, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(NotEnoughMemory, match=r"own at 4 bits takes about .* GB in memory"):
        load(checkpoints / "own")


def test_naming_what_the_engine_offers_loads_no_torch():
    code = (
        "import sys, ringfence.model.sampler, ringfence.model.weights, ringfence.model.chat;"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
