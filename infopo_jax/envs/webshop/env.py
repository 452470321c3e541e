"""The embedded shop as an environment: find, choose and buy what the instruction asks for."""

import random
from collections.abc import Mapping

from infopo_jax.envs.text import Message, step_info
from infopo_jax.envs.webshop import catalog, pages
from infopo_jax.envs.webshop.catalog import Product
from infopo_jax.envs.webshop.goals import FEATURE, LEVELS, PRICE, goals, reward
from infopo_jax.users.styles import Manner, check_style

RULES = (
    'Buy what the instruction asks for. Each turn, search[words] or click[something on the page]: a product, its '
    'options, then Buy Now.'
)
ASKING = ' What the instruction leaves out, ask: ask[feature], ask[color], ask[price] and the like.'
NO_WISH = 'i have no wish about that'

_HIDE = 0.15  # share of replies in warm-start examples that show the placeholder
_REPEATS = 40  # of the texts that stand in every prompt, in the corpus


class WebShop:
    """WebShop's task (arXiv 2207.01206) in a shop of 300 generated products; implements ``TextEnv`` and ``Teachable``.

    The outcome is the published reward (``goals.reward``) of what is bought, 0 if nothing is; success is 1.0. It
    differs from the real shop in size (300 products of 12 kinds against 1.18 million), in its products and wishes,
    which are generated, in pages of four results, and in that an action that does nothing is answered with an error.

    Args:
        turn_limit: turns of the agent, 9 as in RAGEN.
        level: 1, wishes of an attribute, an option and a price; 2, of two attributes, two options and a price.
        num_hidden: facts that the instruction leaves out and the customer tells when asked; 0 is WebShop's own task.
        page_size: products on a page of results (10 in the real shop).
        user_style: how the customer talks when asked; see ``users.styles``. The instruction is the same in all of them.
            An evaded question costs a turn: four hidden facts then want a ``turn_limit`` of 11.

    Raises:
        ValueError: a knob outside its range, or a style for a customer who has nothing to be asked about.
    """

    outcome_range = 1.0
    placeholder = 'No information found.'

    def __init__(
        self,
        *,
        turn_limit: int = 9,
        level: int = 1,
        num_hidden: int = 0,
        page_size: int = 4,
        user_style: str = 'plain',
    ):
        most = 2 + LEVELS[level][1] if level in LEVELS else 0
        rules = {
            'turn_limit': (turn_limit, turn_limit >= 1, 'at least 1'),
            'level': (level, level in LEVELS, f'one of {list(LEVELS)}'),
            'num_hidden': (num_hidden, 0 <= num_hidden <= most, f'from 0 to {most}, the facts of a wish of the level'),
            'page_size': (page_size, page_size >= 1, 'at least 1'),
        }
        for knob, (value, fits, wanted) in rules.items():
            if not fits:
                raise ValueError(f'{knob} must be {wanted}, got {value!r}')
        check_style(user_style)
        if user_style != 'plain' and not num_hidden:
            raise ValueError(f'user_style={user_style!r} is for a customer who is asked: set num_hidden to 1 or more')
        self.max_turns, self.level, self.num_hidden, self.page_size = turn_limit, level, num_hidden, page_size
        self.user_style = user_style
        self._visit: pages.Visit | None = None

    def tasks(self, split: str) -> list[str]:
        """Returns the task ids of split 'train' or 'test'; no product is wanted in both."""
        splits = goals(self.level)
        if split not in splits:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        return list(splits[split])

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default a training task drawn by the seed, which drives the customer's manner.

        Raises:
            ValueError: the task is none of this level.
        """
        splits = goals(self.level)
        task = (options or {}).get('task')
        task = random.Random(seed).choice(list(splits['train'])) if task is None else task
        goal = next((split[task] for split in splits.values() if isinstance(task, str) and task in split), None)
        if goal is None:
            example = next(iter(splits['train']))
            raise ValueError(
                f'unknown task {task!r} of level {self.level}; tasks(split) lists them, such as {example!r}'
            )
        self._goal, self._visit, self._num_turns = goal, pages.Visit(self.page_size), 0
        # Every member of a group, whatever its seed, misses the same facts.
        self._hidden = tuple(random.Random(task).sample(list(goal.facts()), self.num_hidden))
        self._untold = list(self._hidden)
        self._manner = Manner(self.user_style, random.Random(f'{seed} {task}'))
        asking = ASKING if self.num_hidden else ''
        opening = pages.SEP.join([f'Instruction: {goal.instruction(self._hidden)}', self._visit.text()])
        messages = [{'role': 'system', 'content': RULES + asking}, {'role': 'user', 'content': opening}]
        return messages, {'task': task}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Does what the text says and shows the page that is open then, or the customer's answer.

        Raises:
            ValueError: there is no episode to go on with.
        """
        if self._visit is None:
            raise ValueError('no episode is running: call reset first')
        self._num_turns += 1
        action = pages.parse(text, can_ask=self.num_hidden > 0)
        content, is_error = self._answer(action)
        terminated = self._visit.bought
        truncated = not terminated and self._num_turns >= self.max_turns
        earned, info = 0.0, step_info(is_error=is_error, is_malformed=action is None)
        if terminated or truncated:
            earned = reward(self._goal, self._visit.product, self._visit.options) if terminated else 0.0
            info |= {'success': earned == 1.0, 'outcome': earned}
            self._visit = None
        return [{'role': 'user', 'content': content}], earned, terminated, truncated, info

    def expert(self) -> str:
        """Returns what one does who knows the wish and the shop: asks what was left out, searches, chooses, buys."""
        visit, goal = self._visit, self._goal
        if self._untold:
            return f'ask[{self._untold[0]}]'
        if visit.product is None and not visit.shown:
            return f'search[{" ".join([*goal.attributes, goal.product.kind, *goal.options.values()])}]'
        if visit.product is None:
            good = [product for product in visit.shown if self._worth(product) == 1.0]
            if not good and pages.NEXT in visit.clickables:
                return f'click[{pages.NEXT}]'
            return f'click[{(good or [max(visit.shown, key=self._worth)])[0].asin}]'
        if pages.BUY not in visit.clickables:
            return f'click[{pages.PREV}]'
        left = self._choice(visit.product).items() - visit.options.items()
        return f'click[{min(left)[1] if left else pages.BUY}]'

    def random_action(self, rng: random.Random) -> str:
        """Returns a random legal action: a search for words of the wish, a click, a question where there are any."""
        visit, goal = self._visit, self._goal
        facts = [name for name in goal.facts() if name in self._hidden]
        known = [goal.product.kind, *(() if FEATURE in self._hidden else goal.attributes)]
        known += [value for name, value in goal.options.items() if name not in self._hidden]
        words = rng.sample(known, rng.randint(1, len(known)))
        actions = [f'click[{thing}]' for thing in visit.clickables] + [f'ask[{fact}]' for fact in facts]
        return rng.choice([*actions, f'search[{" ".join(words)}]'])

    def special_tokens(self) -> list[str]:
        """Returns ids' syllables, words of wishes, prices, and the fixed parts of pages and actions."""
        words = [*catalog.BRANDS, *sum(catalog.KINDS.values(), ()), *sum(catalog.ATTRIBUTES.values(), ())]
        for options in catalog.OPTIONS.values():
            words += [*options, *sum(options.values(), ())]
        prices = [f'${value:.2f}' for value in catalog.PRICES]
        bounds = [f'{10 * tens}.00' for tens in range(1, len(prices) + 4)]
        buttons = [pages.SEARCH, pages.BACK, pages.NEXT, pages.PREV, pages.DESCRIPTION, pages.FEATURES, pages.BUY]
        marks = [pages.SEP, 'search[', 'click[', 'ask[', ']', 'B0', PRICE, FEATURE, NO_WISH]
        return list(dict.fromkeys([*catalog.SYLLABLES, *words, *prices, *bounds, *buttons, *marks]))

    def corpus(self) -> list[str]:
        """Returns what an agent meets or writes on training tasks: pages, errors, rules, placeholder."""
        rng = random.Random(0)
        drawn = [self.example(rng) for _ in range(200)]
        texts = [message['content'] for history, _ in drawn for message in history[1:]]
        env = self._clone()
        opening = env.reset()[0][0]['content']
        errors = [env.step(text)[0][0]['content'] for text in ('hello', 'click[hello]')]
        return [*texts, *(target for _, target in drawn), *[opening, *errors, self.placeholder] * _REPEATS]

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws one warm-start transition: random legal actions, the last of which is the target.

        Words, ids and options are copied from what is shown; which ones, is random. A purchase that would be the right
        one is never the target. Some replies are replaced by the placeholder, to make it familiar.
        """
        env = self._clone()
        while True:
            history, _ = env.reset(options={'task': rng.choice(env.tasks('train'))})
            for _ in range(rng.randrange(min(6, env.max_turns))):
                action = env.random_action(rng)
                if pages.BUY in action:
                    continue
                [message] = env.step(action)[0]
                hidden = {'content': env.placeholder} if rng.random() < _HIDE else {}
                history += [{'role': 'assistant', 'content': action}, message | hidden]
            target = env.random_action(rng)
            if not env.step(target)[4].get('success'):
                return history, target

    def _answer(self, action: tuple[str, str] | None) -> tuple[str, bool]:
        """Returns what the agent reads next, and whether it is an error message."""
        if action is None:
            return 'Error: write search[keywords] or click[something on the page].', True
        verb, argument = action
        if verb == 'ask':
            return self._tell(argument), False
        if verb == 'search' and argument:
            self._visit.search(argument)
        elif verb == 'search' or not self._visit.click(argument):
            return 'Error: nothing like that is on the page.', True
        return self._visit.text(), False

    def _tell(self, fact: str) -> str:
        """Returns the customer's answer to a question, or how he evades it."""
        evasion = self._manner.evade()
        if evasion is not None:
            return evasion
        if fact in self._untold:
            self._untold.remove(fact)
        text = self._goal.facts().get(fact, NO_WISH)
        values = self._goal.options | {PRICE: f'{self._goal.price_upper:.2f}'}
        return self._manner.say(text, values.get(fact, text))

    def _choice(self, product: Product) -> Mapping[str, str]:
        """Returns the wanted options that a product offers."""
        return {name: value for name, value in self._goal.options.items() if value in product.options.get(name, ())}

    def _worth(self, product: Product) -> float:
        return reward(self._goal, product, self._choice(product))

    def _clone(self) -> 'WebShop':
        """Returns a fresh environment with the same knobs, so that drawing examples leaves a running episode alone."""
        return WebShop(
            turn_limit=self.max_turns,
            level=self.level,
            num_hidden=self.num_hidden,
            page_size=self.page_size,
            user_style=self.user_style,
        )
