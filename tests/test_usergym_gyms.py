"""One literal episode of each of our own gyms."""

import pytest
from usergym_play import LEVELS, deal, say, start

from infopo_jax.envs.usergym.function import rules, value
from infopo_jax.envs.usergym.moves import found
from infopo_jax.envs.usergym.search import NAMES, facts, search


def test_intention_pays_by_importance():
    values = ('monday', '$200', 'garden', 'pasta', 'jazz', 'ten')
    puzzle = deal('intention', occasion='wedding', values=values)  # place, guests, music, date
    env, messages = start('intention', puzzle, level=2)
    assert messages[1]['content'] == 'Please plan a wedding.'
    text, info = say(env, 'action', 'Which GUESTS, and which date?')
    assert 'ten' in text and 'monday' not in text and not info['is_error']
    assert say(env, 'action', 'What else?')[1] == {'is_error': True, 'malformed': False}  # a move, which helps nobody
    assert env.step('What else?')[4] == {'is_error': True}
    for answer, outcome in (('garden', 1.0), ('ten jazz', 1.1), ('garden ten jazz', 2.1), ('garden castle ten', 0.7)):
        env, _ = start('intention', puzzle, level=2)
        info = say(env, 'answer', answer)[1]
        assert info['outcome'] == pytest.approx(outcome / 2.1) and info['success'] == (outcome == 2.1)


def test_travel_pays_the_cheapest_that_matches():
    rows = (('inn_1', '$55', ('lake', 'loft', 'vegan')), ('inn_2', '$60', ('beach', 'loft', 'vegan')),
            ('inn_3', '$65', ('beach', 'loft', 'grill')), ('inn_4', '$70', ('beach', 'suite', 'grill')))  # fmt: skip
    puzzle = deal('travel', preferences=(('area', 'beach'), ('room', 'loft')), inns=rows)
    env, _ = start('travel', puzzle, level=2)
    assert say(env, 'action', 'Which meal?')[0] == 'Any will do.'
    assert 'beach' in say(env, 'action', 'area?')[0]
    assert say(env, 'search', 'loft')[0] == 'inn_1 $55, inn_2 $60.'
    assert say(env, 'search', 'a loft at the beach')[0] == 'inn_2 $60, inn_3 $65.'
    assert say(env, 'search', 'lake grill')[0] == 'No inn has all of that.'
    for answer, outcome in (('inn_2', 1.0), ('inn_3', 0.8), ('inn_1', 0.0), ('inn_2 inn_3', 0.0), ('', 0.0)):
        env, _ = start('travel', puzzle, level=2)
        info = say(env, 'answer', answer)[1]
        assert info['outcome'] == outcome and info['success'] == (outcome == 1.0)


def test_turtle_answers_yes_and_no_and_pays_by_facts():
    puzzle = deal(
        'turtle', scene='A scene.', candidates=(('widow', 'thief'), ('debt', 'fear')), story=('thief', 'debt')
    )
    env, messages = start('turtle', puzzle)
    assert messages[1]['content'] == 'A scene. who: widow thief. why: debt fear.'
    assert say(env, 'action', 'Was it the widow?')[0] == 'no.'
    assert say(env, 'action', 'A thief?')[0] == 'yes.'
    assert say(env, 'action', 'A sailor?')[1]['is_error']
    for answer, outcome in (('thief debt', 1.0), ('thief fear', 0.5), ('widow thief debt', 0.5), ('widow', 0.0)):
        env, _ = start('turtle', puzzle)
        assert say(env, 'answer', answer)[1]['outcome'] == outcome


def test_telepathy_answers_about_the_table():
    puzzle = deal('telepathy', table=(('ibex', 'small', 'red'), ('wren', 'large', 'red')), target='wren')
    env, messages = start('telepathy', puzzle)
    assert messages[1]['content'] == 'ibex small red. wren large red.'
    assert [say(env, 'action', text)[0] for text in ('Is it large?', 'red?', 'the ibex?')] == ['yes.', 'yes.', 'no.']
    for answer, outcome in (('wren', 1.0), ('ibex', 0.0), ('ibex wren', 0.0)):
        env, _ = start('telepathy', puzzle)
        assert say(env, 'answer', answer)[1]['outcome'] == outcome


def test_function_applies_rules_from_left_to_right():
    assert [len(rules(level)) for level in LEVELS] == [4, 4 * 3 * 3, 24 * 27]
    assert value(('b', '-', 'a', '*', 'c', '+', 'd'), (2, 7, 3, 1)) == 16
    env, _ = start('function', deal('function', rule=('b', '*', 'd'), test=(2, 7, 3, 9)), level=2)
    assert say(env, 'search', 'Test')[0] == '2 7 3 9.'
    assert say(env, 'action', 'f(1, 2, 3, 4)')[0] == '8.'
    for choice, content in (('action', '2 7 3 9'), ('action', '1 2 3'), ('search', 'me')):
        assert say(env, choice, content)[1]['is_error']
    assert say(env, 'answer', 'It is 63.')[1]['success']


def test_persuade_moves_on_only_for_the_right_argument_and_leaves_after_two_misses():
    puzzle = deal('persuade', claim='No.', concerns=(('cost', 'figures'), ('time', 'studies')))
    env, _ = start('persuade', puzzle)
    text = say(env, 'action', 'Why?')[0]
    assert 'cost' in text and 'figures' in text
    assert say(env, 'action', 'On cost: here are figures')[0] == 'Fair enough, but still.'
    assert say(env, 'action', 'cost time studies')[1]['is_error']
    assert say(env, 'action', 'time figures')[0] == 'That misses my point.'
    assert say(env, 'action', 'cost figures')[1]['outcome'] == 0.5  # the second miss
    env, _ = start('persuade', puzzle)
    say(env, 'action', 'cost figures')
    assert say(env, 'action', 'time studies')[1] == {'is_error': False, 'success': True, 'outcome': 1.0}


def test_search_follows_texts():
    known = facts(3)
    person = known['founder', 'Orix']
    env, messages = start('search', deal('search', world=3, start='Orix', path=('founder', 'home')), level=2)
    assert messages[1]['content'] == 'What is the home of the founder of Orix?'
    assert f'The founder of Orix is {person}.' in say(env, 'search', 'Who is the founder of Orix?')[0]
    assert say(env, 'search', 'xyzzy')[1]['is_error']
    assert say(env, 'answer', f'In {known["home", person]}.')[1]['success']


def test_search_finds_every_fact_of_a_library():
    for (relation, name), target in facts(0).items():
        assert f'The {relation} of {name} is {target}.' in search(0, f'{relation} {name}')
    assert not any(name == target for (_, name), target in facts(0).items())
    assert len(set(NAMES)) == len(NAMES)


def test_found_reads_whole_words_in_order():
    assert found('The Debt? No, $20 or fear-less.', ['fear', 'no', 'debt', '$20', 'deb', 'ebt']) == [
        'debt',
        'no',
        '$20',
        'fear',
    ]
    assert found('', ['a']) == []
