"""Does the rollout engine hide how long environments take? Replies after 0, 50 and 500 ms, and a turn-synchronous loop.

    python benchmarks/rollout.py                     # 64 rollouts, 16 slots
    python benchmarks/rollout.py --layers=4 --dim=256 --delays=0,50

A reply takes a log-normal time whose median is the delay (sigma 0.5: one in twenty takes 2.3 times as long); the delays
are the same for both loops. The turn-synchronous loop has the same model, slots and threads: it plays 16 rollouts at a
time, lets all of them speak, asks all environments at once, and waits for the last. Goals: with 50 ms at least 90% of
the throughput without delay; with 500 ms at least 5 times the turn-synchronous loop. No engine can be faster than the
replies of the slowest rollout, one after the other: the last column.
"""

import argparse
import itertools
import math
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import timing  # first: puts the package on the path

import jax
import numpy as np
from flax import nnx

from infopo_jax.lm.chat import Chat
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.tokenizer import train_tokenizer
from infopo_jax.lm.transformer import Transformer
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.rollout.hosted import HostedRollout

TURNS, REPLY_WORDS, SIGMA, GROUP_SIZE = 6, 24, 0.5, 4
STOP_LOGIT = 4.5  # added to the logit that ends an action: one lasts about a dozen tokens
WORDS = [f'w{i}' for i in range(200)]
LIMITS = Limits(
    max_turns=TURNS,
    max_tokens=512,
    max_prompt_tokens=128,
    max_action_tokens=48,
    max_feedback_tokens=64,
    max_bad_actions=TURNS,
)


class Delayed:
    """Answers every action with some words after a while, and ends the episode with the last turn."""

    outcome_range, placeholder, max_turns = 1.0, 'nothing', TURNS

    def __init__(self, delay: float):
        self.delay = delay  # median seconds of a reply
        self.replies, self.spent = 0, 0.0  # answers so far, and the seconds that they took

    def reset(self, *, seed=0, options=None):
        self.draws = random.Random(f'{options["task"]} {options["member"]}')
        return ' '.join(random.Random(options['task']).choices(WORDS, k=2 * REPLY_WORDS)), {}

    def step(self, text):
        seconds = self.delay * self.draws.lognormvariate(0.0, SIGMA)
        time.sleep(seconds)
        self.replies, self.spent = self.replies + 1, self.spent + seconds
        return ' '.join(self.draws.choices(WORDS, k=REPLY_WORDS)), 0.0, False, False, {}


def make_model(chat: Chat, num_layers: int, dim: int):
    """Returns a random model that stops now and then."""
    heads = dict(num_heads=dim // 16, num_kv_heads=dim // 16, head_dim=16)
    config = LMConfig(
        vocab_size=chat.vocab_size, dim=dim, num_layers=num_layers, mlp_dim=3 * dim, tie_embeddings=False, **heads
    )
    model = Transformer(config, nnx.Rngs(0))
    # A channel that is always on scores the stop token; layers that add little leave its share of the norm as it is.
    model.embed[...] = model.embed[...].at[:, 0].set(1.0)
    for layer in (model.blocks.o, model.blocks.down):
        layer.kernel[...] = 0.1 * layer.kernel[...].at[..., 0].set(0.0)
    on = math.sqrt(config.dim / 2)  # of the normed channel: the others of an embedding have norm 1 as well
    model.head[...] = model.head[...].at[:, 0].set(0.0).at[chat.stop_id, 0].set(STOP_LOGIT / on)
    return model


def synchronous(engine: HostedRollout, params, key, tasks, group_size: int, pool: ThreadPoolExecutor):
    """Plays the rollouts turn by turn, as many at a time as there are slots; returns the dialogues."""
    slots, played = engine.slots, []
    slots.begin(params, key)
    rows = [(g, m, task) for g, task in enumerate(tasks) for m in range(group_size)]
    for start in range(0, len(rows), slots.num_slots):
        part = [Dialogue(engine.chat, LIMITS, task, group=g, member=m, seed=g) for g, m, task in
                rows[start : start + slots.num_slots]]  # fmt: skip
        _answer(engine, pool, part)
        for _, same in itertools.groupby(enumerate(part), key=lambda one: one[1].group):
            index, members = zip(*same, strict=True)
            slots.seat(list(index), [(d.group, d.member) for d in members], members[0].ids)
            for d in members:
                d.take(len(d.ids))
        while not all(d.ended for d in part):
            while any(d.speaking for d in part):
                fed, drawn = (np.array([getattr(d, name) for d in part], np.int32) for name in ('fed', 'drawn'))
                budget = np.array([d.budget if d.speaking else 0 for d in part], np.int32)
                tokens, logps, count = slots.decode(fed, drawn, budget, temperature=1.0)
                for i in np.flatnonzero(budget):
                    part[i].hear(tokens[i, : count[i]], logps[i, : count[i]])
            _answer(engine, pool, part)
            fed = np.array([d.fed for d in part], np.int32)
            slots.feed({i: d.take(d.num_pending) for i, d in enumerate(part) if d.pending}, fed)
        played += part
    slots.end()
    return played


def _answer(engine, pool, part):
    """Asks the environments of all whose turn it is, at once, and waits for the last."""
    calls = [(d, d.ask(engine.make_env)) for d in part if d.must_ask]
    for d, future in [(d, pool.submit(call)) for d, call in calls if call is not None]:
        d.receive(future.result())


class Bench:
    """One model, one engine, and both loops over the same rollouts."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.key = args, jax.random.key(0)
        self.tasks = [f'task {i}' for i in range(args.rollouts // GROUP_SIZE)]
        chat = Chat(train_tokenizer([' '.join(WORDS)], WORDS, vocab_size=512))
        graphdef, self.params = nnx.split(make_model(chat, args.layers, args.dim))
        self.engine = HostedRollout(
            lambda: None, chat, graphdef, LIMITS,
            num_slots=args.slots, num_aside=args.rollouts - args.slots, num_workers=args.workers,
        )  # fmt: skip
        self.clocks, self.said = [], {}

    def ours(self):
        """Plays by the engine."""
        dialogues, clock = self.engine.rollout(
            self.params, self.key, self.tasks, group_size=GROUP_SIZE, seed=0, temperature=1.0
        )
        self.clocks.append(clock)
        self.said['engine'] = [d.ids for d in dialogues]

    def loop(self):
        """Plays turn by turn."""
        with ThreadPoolExecutor(self.args.workers) as pool:
            played = synchronous(self.engine, self.params, self.key, self.tasks, GROUP_SIZE, pool)
        self.said['loop'] = [d.ids for d in played]

    def row(self, delay: int) -> dict:
        """Times replies of a median delay, in milliseconds."""
        self.clocks, envs = [], []
        self.engine.make_env = lambda: envs.append(Delayed(delay / 1000)) or envs[-1]
        functions = {'engine': self.ours} | ({} if self.args.without_loop else {'loop': self.loop})
        seconds = timing.measure(functions, repeats=self.args.repeats)
        if 'loop' in seconds and jax.default_backend() == 'cpu':  # elsewhere who is there decides how sums are rounded
            assert self.said['engine'] == self.said['loop'], 'both loops play the same rollouts'
        took = statistics.median_low(seconds['engine'])
        clock = self.clocks[1:][seconds['engine'].index(took)]  # the first call compiled
        return {
            'reply ms': delay,
            'engine s': took,
            'tokens/s': round(clock.sampled / took),
            'turn-synchronous s': statistics.median(seconds.get('loop', [math.nan])),
            'loop/engine': timing.ratio(seconds['loop'], seconds['engine']) if 'loop' in seconds else math.nan,
            'sampling s': clock.decode,
            'feeding s': clock.extend,
            'waiting s': clock.wait,
            'in environments s': clock.env,
            'replies': round(statistics.mean(env.replies for env in envs) * self.args.rollouts),
            'slowest rollout alone s': max(env.spent for env in envs),
        }


def main():
    """Prints the setting and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--delays', default='0,50,500', help='median milliseconds of a reply')
    parser.add_argument('--rollouts', type=int, default=64)
    parser.add_argument('--slots', type=int, default=16)
    parser.add_argument('--workers', type=int, default=64)
    parser.add_argument('--layers', type=int, default=2)
    parser.add_argument('--dim', type=int, default=64)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--without_loop', action='store_true', help='leave the turn-synchronous loop out')
    args = parser.parse_args()
    if args.rollouts % args.slots or args.rollouts % GROUP_SIZE:
        parser.error(f'--rollouts must be a multiple of --slots, and of {GROUP_SIZE}')
    print(timing.machine())
    print(f'{args.rollouts} rollouts of {TURNS} turns, {args.slots} slots, {args.layers} layers of {args.dim}\n')
    bench, rows = Bench(args), []
    for delay in map(int, args.delays.split(',')):
        rows.append(bench.row(delay))
        rows[-1]['of the first'] = f'{rows[0]["engine s"] / rows[-1]["engine s"]:.0%}'
        print(rows[-1], flush=True)
    print('\n' + timing.table(rows))


if __name__ == '__main__':
    main()
