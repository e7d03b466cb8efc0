"""The engine step by step: whoever joins, leaves, waits or is cut back, everybody says what he would have said alone."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Llama4ForCausalLM, Llama4TextConfig

from ringfence.model.assemble import assemble
from ringfence.model.cache import PAGE, Cache, Held
from ringfence.model.config import read_config
from ringfence.model.engine import BESIDE, BUDGET, SEATS, ContextOverflow, Engine
from ringfence.model.sampler import Sampling, SamplingError

VOCABULARY = 97
CONTEXT = 4 * PAGE
GREEDY = Sampling(temperature=0, max_tokens=20)


@cache
def decoder(layers=4):
    """A small network without experts: a router that is almost undecided decides by the last bit of a sum."""
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=24,
        intermediate_size_mlp=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        moe_layers=[],
        no_rope_layer_interval=layers,  # the last one sees everything, the others a chunk
        attention_chunk_size=48,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        initializer_range=0.3,  # wide enough that replies wander instead of repeating one token
    )
    model = Llama4ForCausalLM(config)
    return assemble(read_config(config.to_dict()), model.state_dict().__getitem__)


@pytest.fixture
def network():
    return decoder()


def engine(network, pages=64, ends=()):
    return Engine(network, Cache(network.config, pages * PAGE, torch.float32), frozenset(ends))


def text(seed, length):
    return Random(seed).choices(range(1, VOCABULARY), k=length)


def replies(engine, ids=()):
    """Step until all is said; return the tokens of each sequence, and how each ended."""
    said, ended = defaultdict(list), {}
    while engine.busy:
        for advance in engine.step():
            said[advance.id] += [one.token for one in advance.chosen]
            if advance.end or advance.error:
                ended[advance.id] = advance.end or advance.error
    return dict(said), ended


def alone(network, prompt, sampling=GREEDY, ends=()):
    one = engine(network, ends=ends)
    id = one.add(prompt, sampling)
    return replies(one)[0][id]


@torch.inference_mode()
def whole(network, ids):
    """Last hidden states of some tokens, computed in one go."""
    pages, held = Cache(network.config, CONTEXT, torch.float32), Held()
    pages.make_room(held, len(ids))
    return network([(held, ids)], pages)


def test_greedy_reply_is_what_the_network_says_of_everything_before_read_again(network):
    prompt = text(1, 30)
    said = alone(network, prompt)
    for count, token in enumerate(said):
        assert int(network.logits(whole(network, [*prompt, *said[:count]])[-1:]).argmax()) == token
    assert len(set(said)) > 3


LONGEST = 24

ADDED = st.tuples(
    st.just("add"),
    st.tuples(st.integers(0, 2), st.sampled_from([1, 5, PAGE, 2 * PAGE + 3])),  # which text, and how long
    st.tuples(st.sampled_from([0, 1]), st.integers(0, 2)),  # temperature and seed
    st.integers(1, LONGEST),
)
ABORTED = st.tuples(st.just("abort"), st.integers(0, 9))
STEPPED = st.tuples(st.just("step"), st.integers(1, 12))


@cache
def said_alone(prompt, drawn):
    """What a sequence says by itself; one with a lower limit says the beginning of it."""
    temperature, seed = drawn
    return alone(decoder(2), text(*prompt), Sampling(temperature=temperature, seed=seed, max_tokens=LONGEST))


@settings(max_examples=1000)
@given(st.lists(st.one_of(ADDED, ADDED, ABORTED, STEPPED, STEPPED), max_size=16), st.sampled_from([5, 9, 64]))
def test_everybody_says_what_he_would_have_said_alone_and_no_page_is_lost(events, pages):
    one, asked, said, over = engine(decoder(2), pages), {}, defaultdict(list), {}

    def step():
        for advance in one.step():
            assert advance.id not in over
            said[advance.id] += [chosen.token for chosen in advance.chosen]
            if advance.end:
                over[advance.id] = advance.end

    for event in events:
        match event:
            case "add", prompt, (temperature, seed), most:
                id = one.add(text(*prompt), Sampling(temperature=temperature, seed=seed, max_tokens=most))
                asked[id] = (prompt, (temperature, seed), most)
            case "abort", which if which < len(asked):
                id = sorted(asked)[which]  # one that is over may be aborted, too
                one.abort(id)
                over.setdefault(id, "aborted")
            case "step", count:
                for _ in range(count):
                    step()
    while one.busy:
        step()
    assert one.free == pages
    assert over.keys() == asked.keys()
    for id, (prompt, drawn, most) in asked.items():
        assert said[id] == said_alone(prompt, drawn)[: len(said[id])]
        assert over[id] == "aborted" or len(said[id]) == most


@settings(max_examples=30)
@given(st.integers(0, 1 << 32))
def test_sequence_that_is_cut_back_says_the_same_again(seed):
    random, network = Random(seed), decoder()
    one, said = engine(network, 9), defaultdict(list)
    prompts = {one.add(prompt, GREEDY): prompt for prompt in (text(0, 70), text(0, 70), text(2, 5))}
    going = set(prompts)
    while one.busy:
        for advance in one.step():
            said[advance.id] += [chosen.token for chosen in advance.chosen]
            if advance.end:
                going.discard(advance.id)
        if going and random.random() < 0.2:
            id = random.choice(sorted(going))
            kept = random.randint(0, len(said[id]))
            one.rewind(id, len(prompts[id]) + kept)
            del said[id][kept:]
    assert said == {id: alone(network, prompt) for id, prompt in prompts.items()}
    assert one.free == 9


@settings(max_examples=30)
@given(st.integers(1, 69), st.integers(0, 5), st.sampled_from([1.0, 1.7]))
def test_sequence_that_is_cut_back_into_its_prompt_says_what_is_said_to_what_is_left(length, steps, penalty):
    network, prompt = decoder(), text(0, 70)
    sampling = replace(GREEDY, repetition_penalty=penalty)
    one = engine(network, 9)
    id, other = one.add(prompt, sampling), one.add(text(2, 5), sampling)
    for _ in range(steps):
        one.step()
    one.rewind(id, length)
    said, _ = replies(one)
    assert said[id] == alone(network, prompt[:length], sampling)
    assert other in said
    assert one.free == 9


def test_cut_is_refused_beyond_the_end_to_nothing_and_for_nobody(network):
    one = engine(network)
    id = one.add([1, 2, 3], GREEDY)
    one.step()
    for length in (0, 5):
        with pytest.raises(ValueError, match=f"between 1 and 4 tokens, not {length}"):
            one.rewind(id, length)
    with pytest.raises(KeyError):
        one.rewind(id + 1, 3)


def test_hidden_states_of_every_token_are_told_once_in_order(network):
    one = engine(network)
    prompt, told = text(3, BUDGET // 4), []
    one.add(prompt, GREEDY)
    ids = list(prompt)
    while one.busy:
        [advance] = one.step()
        del told[advance.start :]  # a guess that was wrong is told, too
        told.extend(advance.hidden)
        ids += [chosen.token for chosen in advance.chosen]
    assert len(told) >= len(ids) - 1
    expected = whole(network, ids)
    assert (torch.stack(told[: len(ids) - 1]) - expected[:-1]).abs().max() < 1e-4


def test_long_prompt_is_read_in_larger_parts_where_nobody_speaks(network):
    one = engine(network)
    alone = one.add(text(3, 2 * BESIDE + 20), GREEDY)
    assert [len(advance.hidden) for advance in one.step()] == [2 * BESIDE + 20]
    late = one.add(text(4, 2 * BESIDE + 20), GREEDY)
    steps = [{advance.id: len(advance.hidden) for advance in one.step()} for _ in range(3)]
    assert [step[late] for step in steps] == [BESIDE, BESIDE, 20]
    assert all(alone in step for step in steps)


def test_text_that_repeats_itself_is_guessed_and_takes_fewer_steps(network):
    """The network has three words to say it in, so that it comes round again."""
    words = Sampling(temperature=0, max_tokens=60, logit_bias=dict.fromkeys((5, 6, 7), 100))
    one, prompt = engine(network), text(4, 12) * 6
    one.add(prompt, words)
    said, steps = [], 0
    while one.busy:
        [advance] = one.step()
        said += [chosen.token for chosen in advance.chosen]
        steps += 1
    slow = engine(network)
    slow.add(prompt, words)
    for _ in range(3):
        slow.add(text(9, 3), words)  # among several, nobody guesses
    assert said == replies(slow)[0][1]
    assert set(said) == {5, 6, 7}
    assert steps < len(said)


def test_sequence_whose_guesses_are_wrong_guesses_no_more(network):
    one = engine(network)
    id = one.add([*([5, 6, 7, 8] * 10), 5, 6, 7], Sampling(temperature=100, top_p=1, seed=1, max_tokens=150))
    widths = Counter()
    while one.busy:
        [advance] = one.step()
        widths[len(advance.hidden)] += 1
        assert advance.id == id
    assert sum((width - 1) * count for width, count in widths.items() if 1 < width < 5) <= 24


def test_same_beginning_is_computed_once(network):
    one, prompt = engine(network), text(5, 3 * PAGE + 7)
    one.add(prompt, GREEDY)
    first = replies(one)[0][1]
    one.add(prompt, GREEDY)
    [advance] = one.step()
    assert (advance.start, len(advance.hidden)) == (3 * PAGE, 7)
    assert [advance.chosen[0].token, *replies(one)[0][2]] == first


def computed(engine):
    """Step until all is said; count the tokens that it took."""
    count = 0
    while engine.busy:
        count += sum(len(advance.hidden) for advance in engine.step())
    return count


def test_same_beginning_is_computed_once_by_those_who_come_together(network):
    few = Sampling(temperature=0, max_tokens=2)
    for pages in (64, 12):  # with room for a copy each, and without
        one, prompt = engine(network, pages), text(5, 3 * PAGE + 7)
        for _ in range(4):
            one.add(prompt, few)
        one.add(text(6, 9), few)  # who begins otherwise need not wait for them
        assert {advance.id for advance in one.step()} == {1, 5}
        assert computed(one) == 3 * (7 + 1) + 1 + 1
        assert one.free == pages


def test_who_comes_together_and_does_not_fit_together_is_not_read_twice(network):
    one = engine(network, pages=5)
    for seed in range(4):
        one.add(text(seed, 2 * PAGE + 5), Sampling(temperature=0, max_tokens=2))
    assert computed(one) == 4 * (2 * PAGE + 5 + 1)


def test_end_token_ends_the_reply_and_is_not_part_of_it(network):
    prompt = text(6, 9)
    whole = alone(network, prompt)
    end = next(token for token in whole[2:] if token not in whole[:2])
    one = engine(network, ends=[end])
    id = one.add(prompt, GREEDY)
    said, ended = replies(one)
    assert (said[id], ended[id]) == (whole[: whole.index(end)], "stop")


def test_reply_ends_where_the_context_ends(network):
    one = engine(network)
    id = one.add(text(7, CONTEXT - 3), Sampling(temperature=0, max_tokens=100))
    said, ended = replies(one)
    assert (len(said[id]), ended[id]) == (3, "length")


def test_prompt_that_is_none_or_too_long_is_refused_before_anything_is_computed(network):
    one = engine(network)
    for prompt, told in [([], "no tokens"), ([1, VOCABULARY], f"token id {VOCABULARY}"), ([-1], "token id -1")]:
        with pytest.raises(ValueError, match=told):
            one.add(prompt, GREEDY)
    with pytest.raises(ContextOverflow, match=f"the prompt has {CONTEXT} tokens, the engine's context is {CONTEXT}"):
        one.add([1] * CONTEXT, GREEDY)
    assert not one.busy


class Dumb:
    """A constraint that soon allows nothing."""

    def __init__(self, after):
        self._left = after

    done = False

    def mask(self):
        return np.full(VOCABULARY, self._left > 0)

    def advance(self, token):
        self._left -= 1

    def rewind(self, count):
        self._left += count


def test_sequence_that_cannot_go_on_ends_alone(network):
    one = engine(network)
    bad, good = one.add([1, 2], GREEDY, Dumb(3)), one.add([1, 2], GREEDY)
    said, ended = replies(one)
    assert isinstance(ended[bad], SamplingError)
    assert said[good] == alone(network, [1, 2])
    assert said[bad] == said[good][:3]
    assert one.free == 64


def test_no_more_than_there_are_seats_run_at_once_and_the_others_follow(network):
    one = engine(network)
    ids = [one.add([index + 1], GREEDY) for index in range(SEATS + 3)]
    assert len(one.step()) == SEATS
    assert set(replies(one)[0]) == set(ids)
