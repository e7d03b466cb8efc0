"""The fast network says what the specification says: in one step or many, alone or beside others, wherever pages lie."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.model.assemble import assemble
from ringfence.model.cache import PAGE, Cache, Held, OutOfPages
from ringfence.model.config import Config, Layer, Rope, Tuning
from ringfence.model.reference import logits

WIDTH, HEAD, VOCABULARY = 16, 4, 37

layers = st.builds(
    Layer,
    rope=st.booleans(),
    chunk=st.none() | st.integers(2, 9),
    experts=st.sampled_from([0, 1, 3, 8]),
    width=st.sampled_from([4, 12]),
)
configs = st.builds(
    Config,
    vocabulary=st.just(VOCABULARY),
    width=st.just(WIDTH),
    heads=st.just(4),
    kv_heads=st.sampled_from([1, 2, 4]),
    head=st.just(HEAD),
    context=st.just(10_000),
    eps=st.just(1e-5),
    rope=st.sampled_from([Rope(100.0), Rope(10_000.0, factor=8.0, original=16)]),
    layers=st.lists(layers, min_size=1, max_size=4).map(tuple),
    top_k=st.just(1),
    qk_norm=st.booleans(),
    tuning=st.none() | st.just(Tuning(floor=3, scale=0.5)),
    bias=st.booleans(),
    tied=st.booleans(),
    halves=st.just(False),
)


def weights(config, seed):
    """Random tensors by the names that a checkpoint has."""
    torch.manual_seed(seed)
    rows = {"q": config.heads * HEAD, "k": config.kv_heads * HEAD, "v": config.kv_heads * HEAD}
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH), "model.norm": (WIDTH,), "lm_head": (VOCABULARY, WIDTH)}
    for index, layer in enumerate(config.layers):
        of = {f"self_attn.{name}_proj": (count, WIDTH) for name, count in rows.items()}
        of |= {"self_attn.o_proj": (WIDTH, rows["q"]), "input_layernorm": (WIDTH,)}
        of |= {"post_attention_layernorm": (WIDTH,)}
        dense = "feed_forward." + ("shared_expert." if layer.experts else "")
        of |= {f"{dense}{name}_proj": (layer.width, WIDTH) for name in ("gate", "up")}
        of |= {f"{dense}down_proj": (WIDTH, layer.width)}
        if layer.experts:
            of |= {"feed_forward.router": (layer.experts, WIDTH)}
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in of.items()}
    made = {f"{name}.weight": torch.randn(shape) * 0.4 for name, shape in shapes.items()}
    for index, layer in enumerate(config.layers):
        before = f"model.layers.{index}."
        if config.bias:
            biases = {**rows, "o": WIDTH}
            made |= {f"{before}self_attn.{name}_proj.bias": torch.randn(count) for name, count in biases.items()}
        if layer.experts:
            made[f"{before}feed_forward.experts.gate_up_proj"] = torch.randn(layer.experts, WIDTH, 2 * layer.width)
            made[f"{before}feed_forward.experts.down_proj"] = torch.randn(layer.experts, layer.width, WIDTH)
    return made


def scattered(cache, random, tokens):
    """Room for so many tokens in pages that do not lie next to each other."""
    held, between = Held(), Held()
    for end in range(0, tokens + PAGE, PAGE):
        cache.make_room(held, min(end, tokens))
        if random.random() < 0.7:
            cache.make_room(between, PAGE * (len(between.pages) + random.randint(1, 2)))
    return held


@torch.inference_mode()
def told(config, made, texts, random, *, far=False):
    """The logits of several texts that are computed beside each other, in steps of any size."""
    network, cache = assemble(config, made.__getitem__), Cache(config, 40 * PAGE, torch.float32)
    said = [[] for _ in texts]
    held = [scattered(cache, random, len(text)) if far else Held() for text in texts]
    while any(one.length < len(text) for one, text in zip(held, texts, strict=True)):
        new = []
        for index, (one, text) in enumerate(zip(held, texts, strict=True)):
            count = min(random.choice((0, 1, 1, 3, 20)), len(text) - one.length)
            if count:
                cache.make_room(one, one.length + count)
                new.append((index, one, text[one.length : one.length + count]))
        if new:
            hidden = network([(one, ids) for _, one, ids in new], cache)
            for (index, _, _), part in zip(new, hidden.split([len(ids) for *_, ids in new]), strict=True):
                said[index].append(network.logits(part))
    return [torch.cat(parts) for parts in said]


def text(random, length):
    return [random.randrange(VOCABULARY) for _ in range(length)]


@settings(max_examples=60)
@given(configs, st.integers(1, 2), st.integers(0, 9999))
def test_any_steps_beside_any_others_give_what_the_specification_gives(config, top_k, seed):
    random = Random(seed)
    if all(layer.experts != 1 for layer in config.layers):
        config = replace(config, top_k=top_k)
    made = weights(config, seed)
    texts = [text(random, random.choice((1, 2, 30))) for _ in range(random.randint(1, 3))]
    for ids, said in zip(texts, told(config, made, texts, random), strict=True):
        assert (said - logits(config, made, ids)).abs().max() < 1e-4


@pytest.mark.parametrize("chunk", [None, 50, PAGE, 100])
def test_pages_that_lie_apart_change_nothing(chunk):
    random = Random(7)
    config = Config(
        VOCABULARY, WIDTH, 4, 2, HEAD, 10_000, 1e-5, Rope(), (Layer(True, chunk, 3, 8), Layer(False, None, 0, 8))
    )
    made = weights(config, 3)
    texts = [text(random, 5 * PAGE + 3), text(random, 2 * PAGE)]
    for ids, said in zip(texts, told(config, made, texts, random, far=True), strict=True):
        assert (said - logits(config, made, ids)).abs().max() < 1e-4


@torch.inference_mode()
def test_sequence_that_was_cut_back_goes_on_as_if_the_rest_had_never_been():
    random = Random(1)
    config = Config(
        VOCABULARY, WIDTH, 4, 2, HEAD, 10_000, 1e-5, Rope(), (Layer(True, 40, 2, 8), Layer(False, None, 2, 8))
    )
    made, cache = weights(config, 5), Cache(config, 10 * PAGE, torch.float32)
    network, held = assemble(config, made.__getitem__), Held()
    ids, other = text(random, 3 * PAGE), text(random, 20)
    cache.make_room(held, len(ids))
    network([(held, ids)], cache)
    cache.cut(held, 70)
    assert (held.length, len(held.pages), cache.free) == (70, 2, 8)
    cache.make_room(held, 90)
    said = network.logits(network([(held, other)], cache))
    assert (said - logits(config, made, ids[:70] + other)[70:]).abs().max() < 1e-4


def test_only_the_experts_that_a_token_is_given_to_are_computed():
    config = Config(VOCABULARY, WIDTH, 4, 2, HEAD, 10_000, 1e-5, Rope(), (Layer(True, None, 64, 8),))
    counted = []

    def form(weight, bias):
        def product(x):
            counted.append(len(x))
            return x @ weight.T

        return product

    network, cache, held = (
        assemble(config, weights(config, 0).__getitem__, form),
        Cache(config, PAGE, torch.float32),
        Held(),
    )
    cache.make_room(held, 4)
    network([(held, [1, 2, 3])], cache)
    # queries to values, out, and two for the shared expert; then two for each of three experts at the most
    assert counted[:4] == [3, 3, 3, 3]
    assert len(counted[4:]) <= 6
    assert sum(counted[4::2]) == 3
    counted.clear()
    network([(held, [4])], cache)
    assert counted == [1] * 6


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5 * PAGE)), max_size=60))
def test_every_page_is_held_once_or_free(moves):
    config = Config(VOCABULARY, WIDTH, 4, 1, HEAD, 10_000, 1e-5, Rope(), (Layer(True, None, 0, 8),))
    cache = Cache(config, 12 * PAGE, torch.float32)
    holders = [Held() for _ in range(5)]
    for index, length in moves:
        held = holders[index]
        before = list(held.pages)
        try:
            cache.make_room(held, length)
        except OutOfPages:
            assert held.pages == before
            cache.cut(held, length // 2)
        if length % 3 == 0:
            cache.cut(held, length // 2)
        pages = [page for one in holders for page in one.pages]
        assert len(pages) == len(set(pages)) == 12 - cache.free
    for held in holders:
        cache.cut(held, 0)
    assert cache.free == 12


def test_slots_of_neighbouring_pages_are_one_stretch():
    held = Held([3, 4, 9, 1])
    assert list(held.slots(0, 4 * PAGE)) == [
        slice(3 * PAGE, 5 * PAGE),
        slice(9 * PAGE, 10 * PAGE),
        slice(PAGE, 2 * PAGE),
    ]
    assert list(held.slots(PAGE - 1, PAGE + 2)) == [slice(4 * PAGE - 1, 4 * PAGE + 2)]
    assert list(held.slots(5, 5)) == []


def test_checkpoint_that_lacks_a_tensor_or_has_it_in_another_shape_is_refused():
    config = Config(VOCABULARY, WIDTH, 4, 2, HEAD, 10_000, 1e-5, Rope(), (Layer(True, None, 2, 8),))
    made = weights(config, 0)
    with pytest.raises(KeyError, match="router"):
        assemble(config, {name: one for name, one in made.items() if "router" not in name}.__getitem__)
    made["model.norm.weight"] = torch.ones(5)
    with pytest.raises(ValueError, match=r"model.norm.weight is of shape \(5,\), not \(16,\)"):
        assemble(config, made.__getitem__)
