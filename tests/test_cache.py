"""Pages: each is held, remembered or blank; what is remembered is found again and never overwritten."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ringfence.model.cache import PAGE, Cache, Held, OutOfPages
from ringfence.model.config import Config, Layer, Rope

CONFIG = Config(11, 16, 4, 1, 4, 10_000, 1e-5, Rope(), (Layer(True, None, 0, 8),))
PAGES = 12

TEXTS = [[one] * 200 + [other] * 200 for one in range(2) for other in range(3)]
"""Texts that begin alike for some pages, or for none."""


def read(cache, held, text, length):
    """Write for every token what it and all before it make, and let others find it."""
    cache.make_room(held, length)
    for first in range(held.length, length):
        [slot] = held.slots(first, first + 1)
        mark = torch.full((1, 1, 4), float(hash(tuple(text[: first + 1])) % 10_007))
        cache.write(0, torch.tensor([slot.start]), mark, mark)
    held.length = length
    cache.remember(held, text)


def holds_what_was_read(cache, held, text):
    slots = [slot for part in held.slots(0, held.length) for slot in range(part.start, part.stop)]
    return cache.keys[0][0, slots, 0].tolist() == [
        float(hash(tuple(text[: position + 1])) % 10_007) for position in range(held.length)
    ]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["begin", "read", "cut", "leave"]), st.integers(0, 400))))
def test_whoever_shares_a_beginning_reads_his_own_text_and_no_page_is_lost(moves):
    cache = Cache(CONFIG, PAGES * PAGE, torch.float32)
    texts, held = dict.fromkeys(range(5), TEXTS[0]), {index: Held() for index in range(5)}
    for index, move, number in moves:
        one = held[index]
        if move == "begin" and not one.pages:
            texts[index] = TEXTS[number % len(TEXTS)]
            cache.begin(one, texts[index][: number or 1], copies=number % 2 == 0)
            assert one.length < max(number, 1)
        elif move == "read" and number > one.length:
            try:
                read(cache, one, texts[index], number)
            except OutOfPages:
                cache.cut(one, 0)
        elif move == "cut":
            most = min(number, one.length)
            cache.cut(one, number)
            assert most - PAGE < one.length <= most
        elif move == "leave":
            cache.cut(one, 0)
            assert not one.pages
        assert all(holds_what_was_read(cache, held[other], texts[other]) for other in range(5))
        assert len({page for other in range(5) for page in held[other].pages}) == PAGES - cache.free
    for one in held.values():
        cache.cut(one, 0)
    assert cache.free == PAGES


def test_beginning_that_was_read_before_is_found_again_after_its_reader_left():
    cache, text = Cache(CONFIG, PAGES * PAGE, torch.float32), TEXTS[0]
    first, second = Held(), Held()
    read(cache, first, text, 300)
    pages = first.pages[:4]
    cache.cut(first, 0)
    cache.begin(second, [*text[:256], 9, 9])
    assert (second.pages, second.length) == (pages, 256)


def test_one_token_at_least_is_left_to_compute():
    cache, text = Cache(CONFIG, PAGES * PAGE, torch.float32), TEXTS[0]
    first, second = Held(), Held()
    read(cache, first, text, 2 * PAGE)
    cache.begin(second, text[: 2 * PAGE])
    assert second.length == PAGE


def test_what_was_unused_for_the_longest_goes_first_and_its_end_before_its_beginning():
    cache = Cache(CONFIG, 8 * PAGE, torch.float32)
    old, new, third, again = Held(), Held(), Held(), Held()
    read(cache, old, TEXTS[0], 4 * PAGE)
    read(cache, new, TEXTS[5], 4 * PAGE)
    cache.cut(old, 0)
    cache.cut(new, 0)
    cache.make_room(third, PAGE)
    cache.begin(again, TEXTS[0])
    assert again.length == 3 * PAGE
    cache.cut(again, 0)
    cache.begin(again, TEXTS[5])
    assert again.length == 4 * PAGE


def test_cut_into_a_page_that_another_reads_leaves_that_page_alone():
    cache, text = Cache(CONFIG, PAGES * PAGE, torch.float32), TEXTS[0]
    first, second = Held(), Held()
    read(cache, first, text, 3 * PAGE)
    cache.begin(second, text[: 3 * PAGE], copies=False)
    assert second.pages == first.pages[:2]
    cache.cut(second, PAGE + 5)
    assert (second.length, len(second.pages)) == (PAGE, 1)
    assert holds_what_was_read(cache, first, text)


def test_who_begins_like_another_gets_a_copy_in_one_stretch_and_the_other_stays_remembered():
    cache = Cache(CONFIG, 64 * PAGE, torch.float32)
    first, second, again = Held(), Held(), Held()
    read(cache, first, TEXTS[0], 300)
    cache.begin(second, TEXTS[1])  # while the first still speaks
    assert second.length == 3 * PAGE
    read(cache, second, TEXTS[1], 400)
    assert holds_what_was_read(cache, second, TEXTS[1])
    assert len(list(second.slots(0, 400))) == 1
    cache.cut(second, 0)
    pages = first.pages[:4]
    cache.cut(first, 0)
    cache.begin(second, TEXTS[2])  # and when all that remains of the first is memory
    read(cache, second, TEXTS[2], 400)
    assert holds_what_was_read(cache, second, TEXTS[2])
    assert len(list(second.slots(0, 400))) == 1
    cache.begin(again, TEXTS[0][:300])
    assert (again.pages, again.length) == (pages, 4 * PAGE)


def test_sequences_that_grow_side_by_side_stay_each_in_one_stretch():
    pages = Cache(CONFIG, 128 * PAGE, torch.float32)
    many = [Held() for _ in range(8)]
    for length in range(1, 6):
        for held in many:
            pages.make_room(held, length * PAGE)
            held.length = length * PAGE
    assert [len(list(held.slots(0, held.length))) for held in many] == [1] * 8


def test_room_to_grow_is_made_of_what_is_only_remembered():
    pages = Cache(CONFIG, 128 * PAGE, torch.float32)
    for text in range(8):
        held = Held()
        pages.make_room(held, 16 * PAGE)
        held.length = 16 * PAGE
        pages.remember(held, [text] * 16 * PAGE)
        pages.cut(held, 0)
    assert pages.free == 128
    many = [Held() for _ in range(4)]
    for length in (1, 3, 5):
        for held in many:
            pages.make_room(held, length * PAGE)
            held.length = length * PAGE
    assert [len(list(held.slots(0, held.length))) for held in many] == [1] * 4
