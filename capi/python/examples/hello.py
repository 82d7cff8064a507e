"""A group says hello, and whatever is typed: every member prints the same lines in the same order."""

import sys
import threading

import arguments
import consort


def main():
    options = arguments.parse(__doc__)
    begun, over = threading.Event(), threading.Event()

    def tell(event):
        if event.kind == consort.VIEW:
            print("# view", event.members.id, "of", *(member.node for member in event.members.members), flush=True)
            begun.set()
        elif event.kind == consort.MESSAGE:
            print(f"{event.node}: {bytes(event.data).decode()}", flush=True)
        elif event.kind == consort.STOPPED or event.kind == consort.ENDED and event.node == options["id"]:
            over.set()

    with consort.Node(**options) as node, node.group() as group:
        group.listen(tell)
        begun.wait()
        with group.reserve(5) as room:  # in place: written where the others read it
            room.data[:] = b"hello"
        for line in sys.stdin:
            group.multicast(line.rstrip("\n").encode())
        group.end()
        over.wait()
        node.leave()


main()
