"""The graph says what the network says with the same weights: wherever its sequence lies, alone or in turns."""

from dataclasses import replace

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from transformers import LlamaConfig, LlamaForCausalLM

from ringfence.model.assemble import assemble
from ringfence.model.cache import PAGE, Cache, Held
from ringfence.model.config import read_config
from ringfence.model.drawing import Drawing
from ringfence.model.engine import Engine
from ringfence.model.graph import LANES, Both, Graph, drawable, whole
from ringfence.model.grouped import Grouped
from ringfence.model.linear import FEW, GROUP
from ringfence.model.llama4 import Grown
from ringfence.model.loading import DRAWN
from ringfence.model.sampler import Sampling
from ringfence.model.upcycle import start

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


def experts(config, take, interleave):
    """What a training could have added: four experts of rank 8, all of them in use."""
    fresh = start(config, take, "", 4, 8, torch.Generator().manual_seed(1), interleave=interleave)
    torch.manual_seed(3)
    touched = {
        name: tensor if tensor.dtype == torch.bool else tensor + 0.05 * torch.randn(tensor.shape)
        for name, tensor in fresh.tensors.items()
    }
    return replace(fresh, tensors=touched)


KINDS = {
    "plain": {},
    "with biases": {"bias": True},
    "tied": {"width": 96, "tie_word_embeddings": True},
    "grown": {"interleave": 1},
    "grown in every other layer": {"interleave": 2},
}


@pytest.fixture(scope="module", params=[(kind, bits) for kind in KINDS for bits in DRAWN], ids=str)
def both(request):
    """A graph, and a decoder of the very weights that it has."""
    kind, bits = request.param
    shape = dict(KINDS[kind])
    interleave = shape.pop("interleave", None)
    config, take = made(**shape)
    decoder = assemble(config, take, DRAWN[bits], delta=experts(config, take, interleave) if interleave else None)
    return Both(decoder, decoder, TOKENS, 1)


def near(one, other):
    """Differ by no more than what rounding each token to eight bits makes of it."""
    return float((one - other).norm() / other.norm()) < 0.06


def may_differ(decoder, told):
    """Where a token is rounded, a router that is almost undecided gives it to another expert; rarely."""
    return len(told) // 8 if any(isinstance(block.feed_forward, Grown) for block in decoder.blocks) else 0


@torch.inference_mode()
def test_graph_says_what_the_network_says_wherever_the_sequence_lies(both):
    pages, others = Cache(both.config, TOKENS, torch.float32), Cache(both.config, TOKENS, torch.float32)
    before, one, other = Held(), Held(), Held()
    pages.make_room(before, 2 * PAGE)
    pages.make_room(one, 2 * PAGE)
    others.make_room(other, 2 * PAGE)
    told = []
    for at in range(0, PAGE + 20, 3):
        ids = [(at + index) ** 2 % 90 for index in range(1 + at % FEW)]
        assert whole(one, len(ids))
        ((hidden, logits),) = both.graph([(one, ids)], pages)
        ((exact, said),) = both.decoder.compute([(other, ids)], others, [len(ids)])
        told.append(near(hidden, exact) and near(logits, said))
    assert told.count(False) <= may_differ(both.decoder, told)
    assert one.length == other.length > PAGE


@torch.inference_mode()
def test_what_the_graph_wrote_the_network_reads_and_the_other_way_round(both):
    pages, held = Cache(both.config, TOKENS, torch.float32), Held()
    pages.make_room(held, PAGE)
    both.decoder.compute([(held, [5, 6, 7, 8, 9, 10])], pages, [1])
    both.graph([(held, [11])], pages)
    ((after, _),) = both.decoder.compute([(held, [12, 13, 14, 15, 16])], pages, [1])
    whole = Held()
    pages.make_room(whole, PAGE)
    ((exact, _),) = both.decoder.compute([(whole, list(range(5, 17)))], pages, [1])
    assert near(after, exact[-5:])


@pytest.mark.parametrize(
    ("form", "width", "other"),
    [
        (Grouped.of, 96, Grouped.of),
        (Grouped.exact, 96, Grouped.of),
        (Grouped.fine, 128, Grouped.fine),
        (Grouped.fine, 96, Grouped.fine),
        (Grouped.fine, 128, Grouped.of),
    ],
    ids=["four bits", "means", "eight bits", "other groups", "other bits"],
)
def test_two_products_in_one_are_their_sum(form, width, other):
    torch.manual_seed(4)
    product, more = form(torch.randn(48, width) + 0.5), other(torch.randn(48, 64))
    # Rounding to eight bits leaves them: each group has the same whole numbers, so that its mean is the others', too.
    steps = torch.arange(GROUP) * 8.0 - 121
    x, y = (
        torch.stack([steps[torch.randperm(GROUP)] for _ in range(3 * inputs // GROUP)]).view(1, 3, inputs)
        for inputs in (width, 64)
    )
    drawing = Drawing(made()[0], 1)
    for name, value in (("x", x), ("y", y)):
        drawing.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(value.shape)))
    said = drawing.summed("x", product, "y", more)
    drawing.outputs.append(helper.make_tensor_value_info(said, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in drawing.weights.values()]
    options.add_external_initializers(list(drawing.weights), values)
    session = onnxruntime.InferenceSession(drawing.model(), options)
    (one,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
    two = product(x[0]) + more(y[0])
    assert torch.allclose(torch.from_numpy(one[0]), two, atol=1e-4 * float(two.abs().max()))


@torch.inference_mode()
def test_nobody_elses_keys_and_values_are_touched(both):
    pages, held = Cache(both.config, TOKENS, torch.float32), Held()
    pages.make_room(Held(), PAGE)
    pages.make_room(held, PAGE)
    pages.keys.fill_(7)
    pages.values.fill_(7)
    for id in range(5):
        both.graph([(held, [id])], pages)
    for kept in (pages.keys, pages.values):
        start = held.pages[0] * PAGE
        assert not (kept[:, :, start : start + 5] == 7).all(-1).any()
        assert (kept[:, :, :start] == 7).all()
        assert (kept[:, :, start + 5 :] == 7).all()


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 3, LANES])
def test_sequences_together_say_what_each_says_alone(both, count):
    """Prompts of unlike lengths, in a cache in float32; a lane changes hands on the way."""
    decoder = both.decoder
    many = Graph(decoder, TOKENS, 1, LANES)
    pages, others = (Cache(many.config, 40 * PAGE, torch.float32) for _ in range(2))
    pairs = [(Held(), Held()) for _ in range(count + 1)]
    for index, (one, other) in enumerate(pairs):
        for held, cache in ((one, pages), (other, others)):
            cache.make_room(held, 2 * PAGE)
            decoder.compute([(held, [(index * 11 + at) % 90 for at in range(PAGE - 3 + index)])], cache, [0])
    told = []
    for step in range(8):
        some = pairs[:count] if step < 4 else pairs[-count:]
        said = many([(one, [step + index]) for index, (one, _) in enumerate(some)], pages)
        for index, (_, other) in enumerate(some):
            ((exact, logits),) = decoder.compute([(other, [step + index])], others, [1])
            told.append(near(said[index][0], exact.float()) and near(said[index][1], logits))
    assert told.count(False) <= may_differ(decoder, told)


@torch.inference_mode()
def test_more_sequences_than_lanes_say_what_each_says_alone(both):
    pages, others = (Cache(both.config, 2 * LANES * PAGE, torch.float32) for _ in range(2))
    told = []
    new, same = ([(Held(), [id]) for id in range(LANES + 2)] for _ in range(2))
    for group, cache in ((new, pages), (same, others)):
        for held, _ in group:
            cache.make_room(held, 1)
    together = both.compute(new, pages, [1] * len(new))
    alone = [both.decoder.compute([one], others, [1])[0] for one in same]
    told = [near(logits, exact) for (_, logits), (_, exact) in zip(together, alone, strict=True)]
    assert len(told) == LANES + 2
    assert told.count(False) <= may_differ(both.decoder, told)


@torch.inference_mode()
def test_sequence_in_pieces_and_prompts_are_left_to_the_decoder_beside_those_who_speak(both):
    pages, exact = (Cache(both.config, 20 * PAGE, torch.float32) for _ in range(2))

    def scattered(cache):
        """A prompt, a sequence in pieces, and four that speak."""
        reading, pieces, *speaking = all_held = [Held() for _ in range(6)]
        for held in all_held:
            cache.make_room(held, 2 * PAGE)
        pieces.pages.reverse()
        both.decoder.compute([(pieces, list(range(PAGE)))], cache, [0])
        for held in speaking:
            both.decoder.compute([(held, list(range(9)))], cache, [0])
        return [(reading, list(range(20))), *((held, [7]) for held in (pieces, *speaking))]

    asked = [1, 1, 0, 1, 1, 1]
    new, same = scattered(pages), scattered(exact)
    assert [whole(held, len(ids)) for held, ids in new] == [True, False, True, True, True, True]
    told, true = both.compute(new, pages, asked), both.decoder.compute(same, exact, asked)
    assert [held.length for held, _ in new] == [held.length for held, _ in same]
    assert [len(logits) for _, logits in told] == asked
    alike = [
        near(hidden, same_hidden) and near(logits, same_logits)
        for (hidden, logits), (same_hidden, same_logits) in zip(told, true, strict=True)
        if len(logits)
    ]
    assert alike.count(False) <= may_differ(both.decoder, alike * 2)


@torch.inference_mode()
def test_where_there_is_no_memory_for_many_lanes_the_decoder_does_their_work(both):
    alone = Both(both.decoder, both.decoder, TOKENS, 1, together=False)
    cache, exact = (Cache(both.config, 4 * PAGE, torch.float32) for _ in range(2))
    told, true = [], []
    for pages, network, said in ((cache, alone, told), (exact, both.decoder, true)):
        new = [(Held(), [id]) for id in (5, 6, 7)]
        for held, _ in new:
            pages.make_room(held, 1)
        said += network.compute(new, pages, [1, 1, 1])
    assert all(torch.equal(logits, same) for (_, logits), (_, same) in zip(told, true, strict=True))


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_engine_on_both_says_the_reply_that_the_graph_alone_says(both, lengths):
    """Two that speak take turns on a graph; with a third, another computes all of them together."""

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

    assert error(Grouped.exact(stored), stored) < 0.01
    assert error(Grouped.exact(free), free) < 0.1
    assert error(Grouped.of(free), free) < 0.1
    assert error(Grouped.fine(free), free) < 0.01
