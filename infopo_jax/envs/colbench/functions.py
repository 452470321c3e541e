"""The functions that collaborators want: templates whose slots are what they do not say."""

import dataclasses

MARKER = 'I WANT TO ANSWER:'  # what follows it, is the answer

# What may be hidden: slot -> its values, as they stand in code and in talk. No value is in two pools.
POOLS: dict[str, tuple[str, ...]] = {
    'limit': tuple(map(str, range(110, 310, 10))),
    'rate': tuple(map(str, range(12, 48, 3))),
    'fee': tuple(map(str, range(61, 97, 3))),
    'group': ('gold', 'silver', 'staff', 'student', 'senior', 'family', 'club', 'press', 'guest', 'local'),
    'rounding': ('upwards', 'downwards', 'nearest'),
    'cap': tuple(map(str, range(510, 910, 20))),
}
ASKS = {slot: f'Which {slot}?' for slot in POOLS}


@dataclasses.dataclass(frozen=True)
class Function:
    """A function with slots: ``template`` is its source, ``openings`` describe it without them."""

    openings: tuple[str, str]
    template: str
    slots: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the function that is asked for; a helper may stand before it."""
        return self.template.rpartition('def ')[2].partition('(')[0]

    @property
    def has_group(self) -> bool:
        """Whether it takes a number and a group, or a number alone."""
        return ', group)' in self.template

    def source(self, values: dict[str, str]) -> str:
        """Returns the code with its slots filled."""
        return self.template.format(**values)

    def answer(self, values: dict[str, str]) -> str:
        """Returns the agent's final action that hands the code in."""
        return f'{MARKER}\n{self.source(values)}'

    def pieces(self) -> list[str]:
        """Returns the fixed parts of ``answer``, between which the values of the slots stand."""
        return [part for part in self.answer(dict.fromkeys(self.slots, '\0')).split('\0') if part]


_DISCOUNT = (
    'I need discount(total). Large orders get cheaper.',
    'Write discount(total): large orders cost less.',
)
_SHIPPING = ('I need shipping(total). Small orders pay for it.', 'Write shipping(total): free for large orders.')
_BONUS = ('I need bonus(points, group). One group gets more.', 'Write bonus(points, group): more points for one group.')
_TICKET = ('I need ticket(price, group). One group pays less.', 'Write ticket(price, group): cheaper for one group.')
_REFUND = ('I need refund(total). A share comes back, and a fee.', 'Write refund(total): a share of it, and a fee.')
_ENTRY = ('I need entry(price, group). One group pays extra.', 'Write entry(price, group): extra for one group.')

_MATH = 'from math import ceil as upwards, floor as downwards\n\nnearest = round\n\n\n'
_CAPPED = _MATH + 'def capped(value):\n    return min(value, {cap})\n\n\n'


def _define(head: str, signature: str, result: str) -> str:
    return f'{head}def {signature}:\n    return {result}'


_FUNCTIONS: dict[int, tuple[Function, ...]] = {
    1: (
        Function(
            _DISCOUNT,
            _define('', 'discount(total)', 'total * (100 - {rate}) / 100 if total > {limit} else total'),
            ('limit', 'rate'),
        ),
        Function(_SHIPPING, _define('', 'shipping(total)', '0 if total > {limit} else {fee}'), ('limit', 'fee')),
        Function(
            _BONUS,
            _define('', 'bonus(points, group)', "points * {rate} if group == '{group}' else points"),
            ('group', 'rate'),
        ),
        Function(
            _TICKET,
            _define('', 'ticket(price, group)', "price - {fee} if group == '{group}' else price"),
            ('group', 'fee'),
        ),
    ),
    2: (
        Function(
            _DISCOUNT,
            _define(_MATH, 'discount(total)', '{rounding}(total * (100 - {rate}) / 100) if total > {limit} else total'),
            ('limit', 'rate', 'rounding'),
        ),
        Function(
            _SHIPPING,
            _define(_MATH, 'shipping(total)', '0 if total > {limit} else {fee} + {rounding}(total / 7)'),
            ('limit', 'fee', 'rounding'),
        ),
        Function(
            _BONUS,
            _define(
                '', 'bonus(points, group)', "points * {rate} if group == '{group}' and points > {limit} else points"
            ),
            ('limit', 'rate', 'group'),
        ),
        Function(
            _TICKET,
            _define(_MATH, 'ticket(price, group)', "{rounding}(price / 3) + {fee} if group == '{group}' else price"),
            ('fee', 'group', 'rounding'),
        ),
        Function(
            _REFUND,
            _define(_MATH, 'refund(total)', '{rounding}(total * {rate} / 100) + {fee}'),
            ('rate', 'fee', 'rounding'),
        ),
        Function(
            _ENTRY,
            _define('', 'entry(price, group)', "price + {fee} if group == '{group}' and price > {limit} else price"),
            ('limit', 'fee', 'group'),
        ),
    ),
    3: (
        Function(
            _DISCOUNT,
            _define(
                _CAPPED,
                'discount(total)',
                'capped({rounding}(total * (100 - {rate}) / 100)) if total > {limit} else total',
            ),
            ('limit', 'rate', 'rounding', 'cap'),
        ),
        Function(
            _SHIPPING,
            _define(_CAPPED, 'shipping(total)', 'capped({fee} + {rounding}(total / 7)) if total > {limit} else 0'),
            ('limit', 'fee', 'rounding', 'cap'),
        ),
        Function(
            _BONUS,
            _define(
                _CAPPED,
                'bonus(points, group)',
                "capped(points + points * {rate} / 100) if group == '{group}' and points > {limit} else points",
            ),
            ('limit', 'rate', 'group', 'cap'),
        ),
        Function(
            _TICKET,
            _define(
                _CAPPED,
                'ticket(price, group)',
                "capped({rounding}(price / 3) + {fee}) if group == '{group}' else price",
            ),
            ('fee', 'group', 'rounding', 'cap'),
        ),
    ),
}
LEVELS = tuple(_FUNCTIONS)


def by_name(level: int) -> dict[str, Function]:
    """Returns the functions of a level."""
    return {function.name: function for function in _FUNCTIONS[level]}


def slots(level: int) -> list[str]:
    """Returns what may be asked for at a level."""
    used = {slot for function in _FUNCTIONS[level] for slot in function.slots}
    return [slot for slot in POOLS if slot in used]
