"""A counter that every member has, the same at all. A line is a number to add, `get` or `local`."""

import sys

import arguments
import consort


class Counter:
    def __init__(self):
        self.value = 0

    def apply(self, update):
        self.value += int(bytes(update.data))
        return b"%d" % self.value

    def snapshot(self):
        return b"%d" % self.value

    def restore(self, state):
        self.value = int(state)


with consort.Replica(Counter(), **arguments.parse(__doc__)) as counter:
    for line in map(str.strip, sys.stdin):
        if line in ("get", "local"):
            print(counter.query(lambda it: it.value, linearizable=line == "get"), flush=True)
        else:
            print(counter.update(line.encode()).decode(), flush=True)
    counter.leave()
