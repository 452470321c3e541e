"""Who is given which slot: by hand, with stand-ins for dialogues."""

import types

import pytest

from infopo_jax.rollout.seating import Seating


def dialogue(num_turns=0, *, opened=True, waiting=False, ended=False):
    return types.SimpleNamespace(num_turns=num_turns, opened=opened, waiting=waiting, ended=ended)


def seating(*dialogues, num_slots=2, num_aside=1):
    return Seating(dialogues, num_slots=num_slots, num_aside=num_aside)


def test_fill_seats_the_queue_in_order_and_passes_over_who_has_no_prompt_yet():
    places = seating(dialogue(opened=False), dialogue(), dialogue(), dialogue())
    assert places.fill() == ([], [0, 1])
    assert places.seated == [1, 2] and list(places.queue) == [0, 3] and places.tenants() == places.dialogues[1:3]
    assert places.fill() == ([], []), 'nobody has gone'


def test_fill_puts_who_waits_aside_for_somebody_new():
    places = seating(dialogue(), dialogue(), dialogue(), dialogue())
    places.fill()
    for seated in places.tenants():
        seated.waiting = True
    assert places.fill() == ([(0, 0)], [0]), 'there is one place aside'
    assert places.seated == [2, 1] and places.aside == [0] and list(places.queue) == [3]
    assert places.at(0) is places.dialogues[2]


def test_fill_brings_back_the_fewest_turns_first():
    places = seating(*(dialogue(turns) for turns in (5, 3, 4)), num_slots=1, num_aside=3)
    places.queue.clear()
    places.aside = [0, 1, 2]
    assert places.fill() == ([(0, 1)], []) and places.seated == [1] and places.aside == [0, None, 2]
    places.at(0).waiting = True
    assert places.fill() == ([(0, 2)], []) and places.seated == [2] and places.aside == [0, None, 1]
    places.at(0).ended = True
    assert places.fill() == ([(0, 0)], []) and places.seated == [0] and places.aside == [None, None, 1]


def test_fill_gives_slots_to_those_with_the_most_turns_before_them():
    waiting = [dialogue(1, waiting=True), dialogue(2, waiting=True)]
    places = seating(*waiting, dialogue(3), dialogue(1), dialogue(0), num_slots=2, num_aside=3)
    places.seated, places.aside, places.queue = [0, 1], [2, 3, None], type(places.queue)([4])
    assert places.fill() == ([(0, 2), (1, 1)], [0])
    assert places.seated == [4, 3] and places.aside == [2, 1, 0]


def test_fill_frees_the_place_of_who_has_ended_aside():
    places = seating(dialogue(waiting=True), dialogue(ended=True), dialogue(), num_slots=1)
    places.seated, places.aside, places.queue = [0], [1], type(places.queue)([2])
    assert places.fill() == ([(0, 0)], [0]) and places.seated == [2] and places.aside == [0]


def test_fill_leaves_out_who_failed_in_the_queue():
    places = seating(dialogue(ended=True), dialogue(), num_slots=1)
    assert places.fill() == ([], [0]) and places.seated == [1] and not places.queue


def test_may_ask_is_a_slot_ahead_of_the_queue():
    places = seating(*(dialogue() for _ in range(6)))
    assert places.may_ask() == [0, 1, 2]
    places.fill()
    assert places.may_ask() == [2, 3, 4, 0, 1]
    places.seated[1], places.aside[0] = None, 1
    assert places.may_ask() == [2, 3, 4, 0], 'who is aside has asked'


@pytest.mark.parametrize(
    ('dialogues', 'aside', 'has_work'),
    [
        ([dialogue(waiting=True)], [None], False),
        ([dialogue()], [None], True),
        ([dialogue(waiting=True), dialogue()], [1], True),  # who is aside can change places
        ([dialogue(waiting=True), dialogue(waiting=True)], [1], False),
        ([dialogue(waiting=True), dialogue(waiting=True), dialogue()], [1], False),  # no place to put anybody
        ([dialogue(waiting=True), dialogue()], [None], True),
        ([dialogue(waiting=True), dialogue(opened=False)], [None], False),
        ([dialogue(ended=True), dialogue()], [None], True),
        ([dialogue(waiting=True), dialogue(ended=True)], [1], False),
    ],
)
def test_has_work_where_somebody_can_go_on(dialogues, aside, has_work):
    places = seating(*dialogues, num_slots=1)
    places.seated, places.aside = [0], aside
    places.queue = type(places.queue)(row for row in range(1, len(dialogues)) if row not in aside)
    assert places.has_work() is has_work


def test_begin_anew_gives_up_the_place_and_heads_the_queue():
    places = seating(dialogue(), dialogue(), dialogue(), num_slots=1)
    places.fill()
    again = dialogue(opened=False)
    places.begin_anew(0, again)
    assert places.seated == [None] and list(places.queue) == [0, 1, 2] and places.dialogues[0] is again
    places.begin_anew(2, dialogue())  # one that failed before it had a place keeps its turn
    assert list(places.queue) == [0, 1, 2]
    places.aside = [1]
    places.queue.remove(1)
    places.begin_anew(1, dialogue())
    assert places.aside == [None] and list(places.queue) == [1, 0, 2]
