"""What a step computes: everybody who speaks goes on, nobody who reads waits for ever, and no step is too long."""

from hypothesis import given
from hypothesis import strategies as st

from ringfence.model.scheduler import Share, share

UNREAD = st.lists(st.integers(1, 3000), max_size=20)


@given(UNREAD, st.integers(1, 600))
def test_step_holds_to_its_budget_and_everybody_who_speaks_goes_on(unread, budget):
    shares = list(share(unread, budget, 2))
    assert len({part.index for part in shares}) == len(shares)
    assert all(1 <= part.tokens <= unread[part.index] for part in shares)
    speaking = {index for index, count in enumerate(unread) if count == 1}
    assert speaking <= {part.index for part in shares}
    read = sum(part.tokens for part in shares if part.index not in speaking)
    assert read == min(budget, sum(unread[index] for index in range(len(unread)) if index not in speaking))


@given(UNREAD, st.integers(1, 600))
def test_nobody_who_reads_gets_less_than_an_equal_part_of_the_step_unless_it_needs_less(unread, budget):
    reading = [index for index, count in enumerate(unread) if count > 1]
    given = {part.index: part.tokens for part in share(unread, budget, 2)}
    for index in reading:
        assert given.get(index, 0) >= min(unread[index], budget // len(reading))


def test_few_who_speak_may_guess_where_nobody_reads():
    assert [part.guesses for part in share([1, 1], 100, 2)] == [True, True]
    assert [part.guesses for part in share([1, 1, 1], 100, 2)] == [False] * 3
    assert [part.guesses for part in share([1, 50], 100, 2)] == [False, False]


def test_short_prompt_is_read_whole_beside_a_long_one():
    assert sorted(share([5000, 30], 512, 2), key=lambda part: part.index) == [Share(0, 482), Share(1, 30)]
