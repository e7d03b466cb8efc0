"""The graph says what the network says with the same weights: wherever its sequence lies, alone or in turns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from ringfence.model.assemble import assemble
from ringfence.model.cache import PAGE, Cache, Held
from ringfence.model.config import read_config
from ringfence.model.engine import Engine
from ringfence.model.graph import Both, Four, Graph, drawable
from ringfence.model.linear import FEW
from ringfence.model.sampler import Sampling

TOKENS = 8 * PAGE


def made(width=64, bias=False, **more):
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=TOKENS,
        attention_bias=bias,
        initializer_range=0.1,
        **more,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    return read_config(config.to_dict()), model.state_dict().__getitem__


@pytest.fixture(scope="module", params=[{}, {"bias": True}, {"width": 96, "tie_word_embeddings": True}])
def both(request):
    """A graph, and a decoder of the very weights that it has."""
    config, take = made(**request.param)
    decoder = assemble(config, take, Four.exact, inner=Four.of)
    return Both(decoder, Graph(decoder, TOKENS, 1))


def near(one, other):
    """Differ by no more than what rounding each token to eight bits makes of it."""
    return float((one - other).norm() / other.norm()) < 0.06


@torch.inference_mode()
def test_graph_says_what_the_network_says_wherever_the_sequence_lies(both):
    pages, others = Cache(both.config, TOKENS, torch.float32), Cache(both.config, TOKENS, torch.float32)
    before, one, other = Held(), Held(), Held()
    pages.make_room(before, 2 * PAGE)
    pages.make_room(one, 2 * PAGE)
    others.make_room(other, 2 * PAGE)
    for start in range(0, PAGE + 20, 3):
        ids = [(start + index) ** 2 % 90 for index in range(1 + start % FEW)]
        assert both.graph.takes(one, len(ids))
        hidden, logits = both.graph(one, ids, pages)
        exact, said = both.decoder.compute([(other, ids)], others, [len(ids)])
        assert near(hidden, exact)
        assert near(logits, said)
    assert one.length == other.length > PAGE


@torch.inference_mode()
def test_what_the_graph_wrote_the_network_reads_and_the_other_way_round(both):
    pages, held = Cache(both.config, TOKENS, torch.float32), Held()
    pages.make_room(held, PAGE)
    both.decoder.compute([(held, [5, 6, 7, 8, 9, 10])], pages, [1])
    both.graph(held, [11], pages)
    after, _ = both.decoder.compute([(held, [12, 13, 14, 15, 16])], pages, [1])
    whole = Held()
    pages.make_room(whole, PAGE)
    exact, _ = both.decoder.compute([(whole, list(range(5, 17)))], pages, [1])
    assert near(after, exact[-5:])


@torch.inference_mode()
def test_nobody_elses_keys_and_values_are_touched(both):
    pages, held = Cache(both.config, TOKENS, torch.float32), Held()
    pages.make_room(Held(), PAGE)
    pages.make_room(held, PAGE)
    pages.keys.fill_(7)
    pages.values.fill_(7)
    for id in range(5):
        both.graph(held, [id], pages)
    for kept in (pages.keys, pages.values):
        mine = kept[:, :, PAGE : PAGE + 5]
        assert not (mine == 7).all(-1).any()
        assert (kept[:, :, :PAGE] == 7).all()
        assert (kept[:, :, PAGE + 5 :] == 7).all()


def test_sequence_in_pieces_and_many_tokens_are_left_to_the_network(both):
    pages, held, between = Cache(both.config, TOKENS, torch.float32), Held(), Held()
    pages.make_room(held, PAGE)
    assert both.graph.takes(held, FEW)
    assert not both.graph.takes(held, FEW + 1)
    pages.make_room(between, PAGE)
    pages.make_room(held, 2 * PAGE)
    held.length = PAGE - 1
    assert both.graph.takes(held, 1)
    assert not both.graph.takes(held, 2)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_engine_on_both_says_the_reply_that_the_graph_alone_says(both, lengths):
    """Two that speak take turns on the graph; a third makes the decoder compute all three."""

    def say(prompts, network):
        engine = Engine(network, Cache(both.config, TOKENS, torch.float32), frozenset())
        for prompt in prompts:
            engine.add(prompt, Sampling(temperature=0, max_tokens=6, logprobs=1))
        said = {}
        while engine.busy:
            for advance in engine.step():
                said.setdefault(advance.id, []).extend(advance.chosen)
        return said

    prompts = [[(length * 7 + index) % 90 for index in range(length)] for length in lengths]
    together, exact = say(prompts, both), say(prompts, both.decoder)
    for id, chosen in together.items():
        # as far as the same is said; where two tokens are as likely, either may be
        for one, other in zip(chosen, exact[id], strict=True):
            if one.token != other.token:
                assert abs(one.logprob - other.logprob) < 0.5
                break
            assert abs(one.logprob - other.logprob) < 0.5


def test_networks_without_a_graph_are_told(both):
    assert drawable(both.config)
    assert not drawable(made(rope_scaling=None, width=80)[0])


def test_weights_of_sixteen_steps_stay_what_they_are_and_others_lose_little():
    torch.manual_seed(0)
    steps = torch.randint(0, 16, (32, 40, 32))
    steps[..., 0], steps[..., 1] = 0, 15
    stored = (steps * torch.rand(32, 40, 1) + torch.randn(32, 40, 1)).view(32, -1)
    free, x = torch.randn(32, 1280), torch.randn(3, 1280)

    def error(product, weight):
        return float((product(x) - x @ weight.T).norm() / (x @ weight.T).norm())

    assert error(Four.exact(stored), stored) < 0.01
    assert error(Four.exact(free), free) < 0.1
    assert error(Four.of(free), free) < 0.1
