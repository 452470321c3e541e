"""Talks with a model in the terminal: launch/chat.py --workdir=runs/<run>, or --config=FILE --config.model.path=..."""

import argparse
import functools
import pathlib
import sys
import tempfile

# Run from a clone, installed or not: the package beside this folder is the one that is meant.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import command_line
import run_folder

USAGE = """
Talks with a model: a line is a message, what it says is streamed. After each of its answers stands how much your
reply before it had told it: the information gain that training would credit, in nats per token of the answer, by
config.info.kind and at config.rollout.temperature. (Of the later answers that config.info.horizon may look at, none is
there yet.) Where config.chat.keep_thinking = False leaves its thoughts out of the talk, nothing can be credited.

  python launch/chat.py --workdir=runs/mine
  python launch/chat.py --config=configs/taubench.py --config.model.path=Qwen/Qwen2.5-7B-Instruct
  echo 'I want to cancel my order' | python launch/chat.py --workdir=runs/mine --temperature=0

  --workdir=FOLDER                  a run of launch/train.py with text; or --config=FILE and --config.model.path=FOLDER
  --checkpoint=best|last            of the run; best: highest held-out success (default)
  --system=TEXT                     a system message in front; a run's default: what its environment opens with
  --temperature=X                   of sampling; 0 is greedy; default: config.eval.temperature
  --top_k=N --top_p=X --min_p=X     keep the likeliest tokens only; default: all
  --max_new_tokens=N                most tokens of an answer; default: config.rollout.max_action_tokens
  --seed=N                          of what is drawn

An empty line or the end of input ends the talk.
"""

OPTIONS = {
    'checkpoint': {'default': 'best', 'choices': ('best', 'last')},
    'system': {},
    'temperature': {'type': float},
    'top_k': {'type': int, 'default': 0},
    'top_p': {'type': float, 'default': 1.0},
    'min_p': {'type': float, 'default': 0.0},
    'max_new_tokens': {'type': int},
    'seed': {'type': int, 'default': 0},
}

COLUMNS = 64  # least size of a scored row; sizes grow by a third to a half, so that little is compiled


class Talk:
    """One conversation as the row that training would make of it.

    Args:
        model: a ``lm.transformer.Transformer``.
        chat: a ``lm.chat.Chat``.
        placeholder: ids that stand for a reply in the counterfactual.
        system: text of a system message, '' for none.
        tools: that the model is shown; None for none.
        max_new_tokens: most tokens of an answer.
        cache_dtype: see ``lm.generate.Sampler``.
        seed: of what is drawn.
        scoring: temperature and kind of the information gain; see ``score.score``.
        **draw: temperature, top_k, top_p, min_p.
    """

    def __init__(
        self, model, chat, placeholder, *, system, tools, max_new_tokens, cache_dtype, seed, scoring, **draw
    ):  # fmt: skip
        import jax

        from infopo_jax.lm import generate

        self.model, self.chat, self.placeholder = model, chat, placeholder
        self.system, self.tools, self.scoring = system, tools, scoring
        self.max_new_tokens, self.draw = max_new_tokens, draw
        self.sampler = generate.Sampler(model, cache_dtype=cache_dtype, chunk=4)
        self.key = jax.random.key(seed)
        self.ids, self.roles, self.turns = [], [], []
        self.opening, self.past = [], []  # messages; of each answer its ids, and the messages that followed
        self.num_turns = 0

    def say(self, text: str, write) -> float | None:
        """Answers a message; ``write`` gets the answer piece by piece.

        Returns:
            The information gain of the message for the answer, nats per token; None for the first, which opens the
            talk, and in a talk whose thoughts are left out, which is no row of training.
        """
        import jax

        from infopo_jax.types import Role

        self._hear({'role': 'user', 'content': text})
        pieces = Pieces(self.chat, write)
        out = self.sampler.generate(
            [self.ids],
            key=jax.random.fold_in(self.key, self.num_turns),
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.chat.stop_ids,
            on_tokens=lambda row, new: pieces.add(new),
            **self.draw,
        )
        pieces.end()
        said = out.ids(0)
        self.past.append((said, []))
        self._append(said, [int(Role.ACTION)] * len(said), self.num_turns)
        self.num_turns += 1
        return self._gain() if self.num_turns > 1 and self.chat.append_only else None

    def _hear(self, message):
        """Puts a message behind the talk, or renders it anew where that changes what was said before."""
        from infopo_jax.types import Role

        if not self.past:
            self.opening = [*([{'role': 'system', 'content': self.system}] if self.system else []), message]
            ids = self.chat.prompt(self.opening, self.tools)
            self._append(ids, [int(Role.PROMPT)] * len(ids), -1)
            return
        said, answer = self.past[-1]
        answer.append(message)
        if self.chat.append_only:
            self._append(*self.chat.reply(answer, stopped=said[-1] in self.chat.stop_ids), self.num_turns - 1)
        else:
            self.ids, self.roles, self.turns = self.chat.history(self.opening, self.past, self.tools)

    def _append(self, ids, roles, turn):
        self.ids += ids
        self.roles += roles
        self.turns += [turn] * len(ids)

    def _gain(self) -> float | None:
        """Scores the row with the last reply and with the placeholder in its place."""
        import jax
        import numpy as np

        from infopo_jax import info_gain, packing, score
        from infopo_jax.lm.decoding import bucket

        turns = self._row(bucket(len(self.ids), COLUMNS), bucket(self.num_turns, 4))
        branch, target = (bucket(n, 16) for n in packing.bounds(turns, self.placeholder, multiple=1))
        scores = score.score(
            self.model,
            turns,
            np.asarray(self.placeholder, np.int32),
            **self.scoring,
            branch_len=branch,
            target_len=target,
        )
        masks = turns.action_mask, turns.feedback_mask
        gain_of = jax.jit(info_gain.info_gain, static_argnames='num_turns')
        gain, exists = gain_of(scores.token_gain, turns.turn, *masks, num_turns=turns.turn_reward.shape[1])
        last = self.num_turns - 2
        return float(gain[0, last]) if exists[0, last] else None

    def _row(self, length, num_turns):
        import numpy as np

        from infopo_jax.types import EndReason, Turns

        def padded(values, fill, dtype):
            return np.array([[*values, *[fill] * (length - len(values))]], dtype)

        return Turns(
            tokens=padded(self.ids, 0, np.int32),
            role=padded(self.roles, 0, np.int8),
            turn=padded(self.turns, -1, np.int32),
            sampled_logp=np.zeros((1, length), np.float32),
            turn_reward=np.zeros((1, num_turns), np.float32),
            outcome=np.zeros((1,), np.float32),
            success=np.zeros((1,), bool),
            valid=np.ones((1,), bool),
            num_turns=np.array([self.num_turns], np.int32),
            end_reason=np.array([EndReason.TURN_LIMIT], np.int8),
        )


class Pieces:
    """Turns a growing list of ids into pieces of text; a character whose bytes are not all there yet waits."""

    def __init__(self, chat, write):
        self.chat, self.write, self.ids, self.shown = chat, write, [], ''

    def add(self, new: list[int]) -> None:
        """Takes further ids."""
        self.ids += new
        text = self.chat.action_text(self.ids)
        if not text.endswith('\ufffd'):
            self._show(text)

    def end(self) -> None:
        """Writes what still waits."""
        self._show(self.chat.action_text(self.ids))

    def _show(self, text):
        if len(text) > len(self.shown):
            self.write(text[len(self.shown) :])
            self.shown = text


def main(
    config, workdir: str, *, from_run: bool, checkpoint: str, system, temperature, max_new_tokens, **options
) -> None:
    """Loads the model and talks until the input ends."""
    from flax import nnx

    from infopo_jax import build, build_state, train

    if config.env.kind != 'hosted':
        raise command_line.UsageError(
            f'the model of environment {config.env.name!r} speaks in ids of that world and has no text: '
            "talk with runs of config.env.kind = 'hosted'"
        )
    if from_run:
        loop, _, state = train.open_run(config, workdir, best=checkpoint == 'best')
        weights, graphdef = state.weights, loop.rule.graphdef
        own, tools = _scene(loop)
        system = own if system is None else system
    elif config.model.path is None:
        raise command_line.UsageError('which model? Pass --config.model.path=FOLDER, or --workdir=FOLDER of a run')
    else:
        config.lora.rank = 0  # the checkpoint itself
        loop, model_config = build.make_loop(config)
        weights, graphdef, tools = build_state.load_base(config, loop), build.graph_of(model_config), None
    talk = Talk(
        nnx.merge(graphdef, weights),
        loop.chat,
        loop.rule.placeholder,
        system=system or '',
        tools=tools,
        max_new_tokens=max_new_tokens or config.rollout.max_action_tokens,
        cache_dtype=config.rollout.cache_dtype,
        temperature=config.eval.temperature if temperature is None else temperature,
        scoring={'temperature': config.rollout.temperature, 'kind': config.info.kind},
        **options,
    )
    if talk.system:
        print(f'system {talk.system}')
    if not loop.chat.append_only:
        print("its thoughts are left out of the talk (config.chat.keep_thinking = False): no reply's gain is shown")
    try:
        _converse(talk, sys.stdin, sys.stdout)
    except KeyboardInterrupt:
        print()


def _scene(loop):
    """Returns the system message ('' if there is none) and the tools that the environment of a run opens with."""
    from infopo_jax.rollout import contract

    env = loop.make_env()
    messages, tools = contract.opening(env.reset(options={'task': loop.tasks['train'][0]}))
    getattr(env, 'close', lambda: None)()
    return next((message['content'] for message in messages if message['role'] == 'system'), ''), tools


def _converse(talk, source, sink):
    """Reads lines and writes answers, with prompts where a person types."""
    typed = source.isatty()

    def write(text):
        sink.write(text)
        sink.flush()

    while True:
        write('you    ' if typed else '')
        line = source.readline().strip()
        if not line:
            return
        if not typed:
            write(f'you    {line}\n')
        write('agent  ')
        gain = talk.say(line, write)
        write('\n' if gain is None else f'\n       your reply told it {gain:+.3f} nats per token\n')


def run(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    if any(word.lstrip('-') in ('h', 'help', 'helpfull', 'helpshort') for word in argv[1:]):
        print(USAGE.strip())
        return 0
    if any(word.lstrip('-').split('=')[0] == 'workdir' for word in argv[1:]):
        return run_folder.run(functools.partial(main, from_run=True), argv, usage=USAGE, options=OPTIONS)
    parser = argparse.ArgumentParser(prog=argv[0], add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, keywords in OPTIONS.items():
        parser.add_argument(f'--{name}', **keywords)
    try:
        own, rest = parser.parse_known_args(argv[1:])
    except argparse.ArgumentError as error:
        return run_folder.complain(str(error))
    with tempfile.TemporaryDirectory() as folder:  # nothing is written, but the shared command line wants a place
        program = [argv[0], *rest, f'--workdir={folder}']
        return command_line.run(functools.partial(main, from_run=False, **vars(own)), program, usage=USAGE)


if __name__ == '__main__':
    sys.exit(run(sys.argv))
