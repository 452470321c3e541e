"""Who sits where: a batch's rollouts in the queue, in the slots that decode, and aside while others use their slot."""

import collections
import itertools
from collections.abc import Sequence

from infopo_jax.rollout.dialogue import Dialogue


class Seating:
    """The places of a batch's rollouts, by their rows; what moves on the device is the caller's.

    Args:
        dialogues: by row; all are queued.
        num_slots: rollouts that are decoded at once.
        num_aside: places of rollouts that wait for their environment.
    """

    def __init__(self, dialogues: Sequence[Dialogue], *, num_slots: int, num_aside: int):
        self.dialogues = list(dialogues)
        self.seated: list[int | None] = [None] * num_slots  # row in each slot
        self.aside: list[int | None] = [None] * num_aside
        self.queue = collections.deque(range(len(self.dialogues)))  # rows that have no slot yet, in order

    def at(self, slot: int) -> Dialogue:
        """Returns the dialogue in a slot that is taken."""
        return self.dialogues[self.seated[slot]]

    def tenants(self) -> list[Dialogue | None]:
        """Returns the dialogue in each slot, None where nobody sits who goes on."""
        return list(map(self._going, self.seated))

    def may_ask(self) -> list[int]:
        """Returns the rows that may turn to their environment: those in slots, and the queue as far as places go."""
        ahead = itertools.islice(self.queue, len(self.seated) + len(self.aside))
        return [*ahead, *(row for row in self.seated if row is not None)]

    def has_work(self) -> bool:
        """Whether a seated dialogue can be fed or can speak, or one that can go on finds a slot."""
        places = [*self.tenants(), *map(self._going, self.aside)]
        if any(d is not None and not d.waiting for d in places):
            return True
        return None in places and self._next() is not None

    def begin_anew(self, row: int, dialogue: Dialogue) -> None:
        """Puts another dialogue in a row's place, at the head of the queue."""
        self.dialogues[row] = dialogue
        self.seated = [None if other == row else other for other in self.seated]
        self.aside = [None if other == row else other for other in self.aside]
        if row not in self.queue:
            self.queue.appendleft(row)

    def fill(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Gives slots that are free, or whose tenant waits, to dialogues that can go on, the fewest turns first.

        Who has the most turns before him then does not play them alone at the end, when nobody hides his waiting.

        Returns:
            Pairs (slot, place aside) whose tenants have changed places, and slots with new tenants, in order; one that
            makes room for a new tenant is in both.
        """
        self.seated, self.aside = (
            [None if self._going(row) is None else row for row in rows] for rows in (self.seated, self.aside)
        )
        back = [i for i, row in enumerate(self.aside) if row is not None and not self.dialogues[row].waiting]
        back.sort(key=lambda i: self.dialogues[self.aside[i]].num_turns)
        room = [i for i, row in enumerate(self.aside) if row is None]
        free = [slot for slot, row in enumerate(self.seated) if row is None]
        free += [slot for slot, row in enumerate(self.seated) if row is not None and self.dialogues[row].waiting]
        swaps, new = [], []
        for slot in free:
            if (row := self._next()) is not None and (self.seated[slot] is None or room):
                if self.seated[slot] is not None:
                    self._swap(slot, room.pop(0), swaps)
                self.queue.remove(row)
                self.seated[slot] = row
                new.append(slot)
            elif back:
                self._swap(slot, back.pop(0), swaps)
        return swaps, new

    def _swap(self, slot, place, swaps):
        self.seated[slot], self.aside[place] = self.aside[place], self.seated[slot]
        swaps.append((slot, place))

    def _going(self, row):
        """Returns the dialogue of a row, None where there is none or it has ended."""
        return None if row is None or self.dialogues[row].ended else self.dialogues[row]

    def _next(self):
        """Returns the first row of the queue whose opening is there; failed ones leave the queue."""
        self.queue = collections.deque(row for row in self.queue if not self.dialogues[row].ended)
        return next((row for row in self.queue if self.dialogues[row].opened), None)
