"""How long a message takes until every member has it. The one with the lowest number pings; all drive their nodes themselves."""

import statistics
import time

import arguments
import consort

COUNT = 2000
options = arguments.parse(__doc__)
me, seen, members, ended = options["id"], 0, [], False


def tell(event):
    global seen, members, ended
    if event.kind == consort.VIEW:
        members = [member.node for member in event.members.members]
    elif event.kind == consort.MESSAGE and event.node == me:
        seen += 1
    elif event.kind == consort.ENDED:
        ended = True


with consort.DrivenNode(**options) as node, node.group() as group:
    def until(condition):
        while not condition():
            node.drive(tell, 0.1)

    until(lambda: members)
    if me == min(members):
        took = []
        for number in range(COUNT):
            began = time.perf_counter_ns()
            with group.reserve(64) as room:
                room.data[0] = number & 0xff
            until(lambda: seen > number)
            took.append(time.perf_counter_ns() - began)
        print(f"{COUNT} messages of 64 bytes: median {statistics.median(took):.0f} ns", flush=True)

        def end():
            try:
                group.end()
                return True
            except consort.Error:
                return False
        until(end)
    until(lambda: ended)
    node.leave()
