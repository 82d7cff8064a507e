"""What the module does, in one process. `python3 -m unittest` here, with CONSORT_LIBRARY set or libconsort installed."""

import os
import pathlib
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import consort


def sockets(count):
    """So many sockets that listen, and what each node is to be told of them."""
    all = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = ["%s:%d" % it.getsockname() for it in all]
    for at, it in enumerate(all):
        peers = {peer + 1: address for peer, address in enumerate(addresses) if peer != at}
        yield dict(id=at + 1, listen_fd=it.detach(), peers=peers)


def started(make, *arguments, **options):
    """A node or a replica, with that socket; the test's own descriptor of it isn't needed any more."""
    it = make(*arguments, **options)
    os.close(options["listen_fd"])
    return it


def until(group, kind):
    while True:
        event = group.next(60)
        if event.kind == kind:
            return event
        event.release()


class Words:
    def __init__(self):
        self.words = []

    def apply(self, update):
        if bytes(update.data) == b"fail":
            raise ValueError("as it was told to")
        self.words.append(bytes(update.data))
        return b"%d" % len(self.words)

    def snapshot(self):
        return b" ".join(self.words)

    def restore(self, state):
        self.words = state.split()


class Test(unittest.TestCase):
    def test_a_time_of_any_length_is_waited(self):
        with consort.Node(1) as node, node.group() as group:
            until(group, consort.VIEW).release()
            for seconds in [2**63 / 1000, 1e300, float("inf")]:
                # What is cut to 64 bits may be over at once.
                threading.Timer(0.1, group.multicast, [b"late"]).start()
                with group.next(seconds) as event:
                    self.assertEqual(bytes(event.data), b"late")

    def test_all_see_the_same(self):
        nodes = [started(consort.Node, **options) for options in sockets(3)]
        groups = [node.group() for node in nodes]
        for number, group in enumerate(groups):
            for line in range(100):
                with group.reserve(8) as room:
                    room.data[:] = b"%02d-%05d" % (number, line)
            group.end()
        orders = []
        for group in groups:
            order, ended = [], 0
            while ended < 3:
                with group.next(60) as event:
                    ended += event.kind == consort.ENDED
                    if event.kind == consort.MESSAGE:
                        order.append(bytes(event.data))
            orders.append(order)
        self.assertEqual(len(orders[0]), 300)
        self.assertTrue(all(order == orders[0] for order in orders))
        self.assertIn("view: 1 of nodes 1, 2, 3", nodes[0].status())
        self.assertEqual(nodes[0].stats()["delivered"], 300)
        # One is lost, and the others go on.
        nodes[2].stop()
        event = until(groups[0], consort.VIEW)
        self.assertEqual([member.node for member in event.members.members], [1, 2])
        for node in nodes:
            node.close()
        with self.assertRaises(consort.Stopped):
            while True:
                groups[0].next().release()

    def test_a_durable_group_begins_again_with_what_it_had(self):
        before = []
        with tempfile.TemporaryDirectory() as place:
            for life in range(2):
                guarantee = (consort.DURABLE, consort.LOGGED)[life]
                nodes = [started(consort.Node, guarantee=guarantee, data=pathlib.Path(place, str(at)), **options)
                         for at, options in enumerate(sockets(3))]
                groups = [node.group() for node in nodes]
                told = [[self.told(group) for _ in before] for group in groups]
                self.assertEqual(told, [before] * 3)
                outcomes = [group.multicast_tracked(b"%d of %d" % (life, at)) for group in groups for at in range(10)]
                for group, all in zip(groups, told):
                    all.extend(self.told(group) for _ in outcomes)
                self.assertEqual(told, [told[0]] * 3)
                stable = [outcome.wait_stable(60) for outcome in outcomes]
                delivered = [outcome.wait(60) for outcome in outcomes]
                self.assertEqual(stable, delivered)
                self.assertEqual(sorted(delivered), [consort.Delivered(*message[:2]) for message in told[0][len(before):]])
                stamps = [message[2] for message in told[0]]
                self.assertEqual(stamps, sorted(set(stamps)))
                self.assertGreater(stamps[0], 10**18)
                before = told[0]
                for node in nodes:
                    node.stop()
                for node in nodes:
                    node.close()

    def test_a_log_is_read_beside_its_node_and_without_it(self):
        with tempfile.TemporaryDirectory() as place:
            with consort.Node(1, guarantee=consort.DURABLE, data=place) as node, node.group() as group:
                group.multicast(b"one")
                told = [self.told(group)]
                log = consort.Log(pathlib.Path(place))
                first = list(log)
                self.assertEqual((first[0].kind, first[0].members.members[0].node), (consort.VIEW, 1))
                group.multicast(b"two")
                told.append(self.told(group))
                messages = [it for it in first + list(log) if it.kind == consort.MESSAGE]
                self.assertEqual([(it.view, it.seq, it.stamp, it.node, it.data) for it in messages], told)
                log.close()
            for start in (dict(index=messages[1].index), dict(stamp=messages[1].stamp), dict(stamp=messages[0].stamp + 1)):
                with consort.Log(place, **start) as log:
                    self.assertEqual(log.next(), messages[1])
                    with self.assertRaises(consort.TimedOut):
                        while True:
                            log.next()
            segment = next(pathlib.Path(place, "shard-0").glob("*.log"))
            content = segment.read_bytes()
            segment.write_bytes(content.replace(b"one", b"eno", 1))
            with consort.Log(place) as log, self.assertRaisesRegex(consort.Error, "damaged") as caught:
                list(log)
            self.assertEqual(caught.exception.name, "CONSORT_MACHINE")
            with self.assertRaisesRegex(consort.Error, "no log of shard 5"):
                consort.Log(place, 5)

    def told(self, group):
        with until(group, consort.MESSAGE) as event:
            return event.view, event.seq, event.stamp, event.node, bytes(event.data)

    def test_a_durable_replica_has_its_state_again(self):
        with tempfile.TemporaryDirectory() as place:
            for life in range(2):
                replicas = [started(consort.Replica, Words(), guarantee=consort.DURABLE, data=os.path.join(place, str(at)), **options)
                            for at, options in enumerate(sockets(3))]
                self.assertEqual([it.update(b"life%d" % life) for it in replicas], [b"%d" % (3 * life + at) for at in (1, 2, 3)])
                self.assertEqual(replicas[2].query(lambda it: list(it.words), linearizable=False), [b"life0"] * 3 + [b"life1"] * 3 * life)
                for it in replicas:
                    it.stop()
                for it in replicas:
                    it.close()

    def test_a_durable_group_needs_a_directory(self):
        for options in (dict(guarantee=consort.DURABLE), dict(guarantee=consort.DURABLE, data=""),
                        dict(groups=[dict(name="ledger", guarantee=consort.DURABLE)])):
            with self.assertRaisesRegex(consort.Error, "`data`.*name a directory") as caught:
                consort.Node(1, **options)
            self.assertEqual(caught.exception.name, "CONSORT_CONFIG")

    def test_which_way_messages_go(self):
        with consort.Node(1, groups=[dict(name="beside", topology=consort.CHAIN)]) as node, node.group("beside") as beside, node.group() as main:
            for group in beside, main:
                until(group, consort.VIEW)
            main.multicast_to([1], b"one hop")
            with self.assertRaises(consort.Error) as caught:
                beside.multicast_to([1], b"along a chain there are none for some")
            self.assertEqual(caught.exception.name, "CONSORT_REFUSED")
            beside.multicast(b"for all")
            event = until(beside, consort.MESSAGE)
            self.assertEqual((bytes(event.data), event.stamp), (b"for all", 0))

    def test_messages_for_some_members(self):
        nodes = [started(consort.Node, **options) for options in sockets(2)]
        groups = [node.group() for node in nodes]
        for group in groups:
            until(group, consort.VIEW)
        groups[0].multicast_to([2], b"for the second")
        groups[0].multicast(b"for both")
        self.assertEqual(bytes(until(groups[0], consort.MESSAGE).data), b"for both")
        self.assertEqual(bytes(until(groups[1], consort.MESSAGE).data), b"for the second")
        self.assertEqual(bytes(until(groups[1], consort.MESSAGE).data), b"for both")
        with self.assertRaises(consort.Error) as caught:
            groups[0].multicast_to([3], b"x")
        self.assertEqual(caught.exception.name, "CONSORT_NOT_MEMBER")
        for node in nodes:
            node.close()

    def test_many_messages_at_once(self):
        with consort.Node(1, ring_bytes=65536) as node, node.group() as group:
            until(group, consort.VIEW).release()
            tickets = group.multicast_many([b"one", b"", b"with\0zero"])
            self.assertEqual(tickets, sorted(set(tickets)))
            self.assertEqual(len(tickets), 3)
            events = []
            while len(events) < 3:
                events += group.next_many(3 - len(events), 60)
            self.assertEqual([bytes(it.data) for it in events], [b"one", b"", b"with\0zero"])
            self.assertEqual([it.ticket for it in events], tickets)
            piece = events[2].data[:4]
            with self.assertRaises(BufferError):
                consort.release_many(events)
            self.assertEqual(bytes(events[0].data), b"one", "none was given back")
            piece.release()
            events[1].release()
            consort.release_many(events + events[:1])
            consort.release_many(events)
            for event in events:
                with self.assertRaises(ValueError):
                    bytes(event.data)
            with self.assertRaises(consort.TimedOut):
                group.next_many(3, 0)
            with self.assertRaises(consort.Error):
                group.next_many(0, 0)
            # What fits is sent; what never fits is said by a call that begins with it.
            long = b"x" * 65536
            self.assertEqual(len(group.multicast_many([b"fits", long, b"fits"])), 1)
            with self.assertRaises(consort.Error) as caught:
                group.multicast_many([long])
            self.assertEqual(caught.exception.name, "CONSORT_TOO_LONG")
            self.assertEqual(group.multicast_many([]), [])
            first = until(group, consort.MESSAGE)
            some, sent = [b"x" * 1000] * 100, 0
            with self.assertRaises(consort.Full):
                while True:
                    sent += len(group.multicast_many(some, block=False))
            self.assertTrue(30 < sent < 100, sent)
            first.release()
            while sent > 0:
                events = group.next_many(100, 60)
                sent -= len(events)
                consort.release_many(events)

    def test_a_view_of_a_message_dies_with_the_event(self):
        with consort.Node(1) as node, node.group() as group:
            outcome = group.multicast_tracked(b"hello")
            self.assertGreater(outcome.wait(60).view, 0)
            event = until(group, consort.MESSAGE)
            data = event.data
            self.assertEqual(bytes(data), b"hello")
            event.release()
            with self.assertRaises(ValueError):
                bytes(data)
            with self.assertRaises(consort.TimedOut):
                group.next(0)
            room = group.reserve(3)
            room.cancel()
            with self.assertRaises(consort.Error) as caught:
                room.send()
            self.assertEqual(caught.exception.name, "CONSORT_BAD_HANDLE")

    def crowd(self, group):
        """Sends and takes more than a ring holds, as far as something that is lent lets it."""
        for _ in range(200):
            try:
                group.multicast(b"x" * 1024, block=False)
            except consort.Full:
                continue
            until(group, consort.MESSAGE).release()

    def go_round(self, group):
        """Sends and takes more than a ring holds, which goes only if nothing of it stays lent."""
        deadline, taken = time.monotonic() + 60, 0
        while taken < 200:
            try:
                group.multicast(b"x" * 1024, block=False)
            except consort.Full:
                self.assertLess(time.monotonic(), deadline)
                continue
            until(group, consort.MESSAGE).release()
            taken += 1

    def test_memory_is_lent_as_long_as_it_is_seen(self):
        with consort.Node(1, ring_bytes=1 << 16) as node, node.group() as group:
            group.multicast(b"hello")
            data = until(group, consort.MESSAGE).data  # the event itself is gone
            self.crowd(group)
            self.assertEqual(bytes(data), b"hello")
            del data
            self.go_round(group)

            group.multicast(b"hello")
            event = until(group, consort.MESSAGE)
            part = event.data[1:3]
            with self.assertRaises(BufferError):
                event.release()
            self.assertEqual((bytes(part), bytes(event.data)), (b"el", b"hello"))
            del part
            event.release()
            with self.assertRaises(ValueError):
                event.keep()
            group.multicast(b"hello")
            with until(group, consort.MESSAGE) as event:
                part = event.data[1:3]
            self.crowd(group)
            self.assertEqual(bytes(part), b"el")
            del part
            self.go_round(group)

            room = group.reserve(4)
            part = room.data[:2]
            with self.assertRaises(BufferError):
                room.send()
            part[:] = b"in"
            part.release()
            room.data[2:] = b"it"
            room.send()
            self.assertEqual(bytes(until(group, consort.MESSAGE).data), b"init")
            data = group.reserve(4).data  # nobody can send it any more
            data[:] = b"none"
            del data
            self.go_round(group)

    def test_a_slice_outlives_its_callback(self):
        parts, told = [], threading.Event()

        def tell(event):
            if event.kind != consort.MESSAGE or told.is_set():
                return
            if not parts:
                parts.append(event.data[1:3])
                parts.append(event.keep())
                parts.append(event.data[3:])
            else:
                parts.append(event.data[:])
                told.set()

        with consort.Node(1, ring_bytes=1 << 16) as node, node.group() as group:
            group.listen(tell)
            group.multicast(b"hello")
            group.multicast(b"again")
            self.assertTrue(told.wait(60))
            with self.assertRaises(BufferError):
                parts[1].release()
            with self.assertRaises(consort.Full):
                for _ in range(200):
                    group.multicast(b"x" * 1024, block=False)
            self.assertEqual([bytes(parts[0]), bytes(parts[2]), bytes(parts[3])], [b"el", b"lo", b"again"])
            parts[0].release(), parts[2].release()
            parts[1].release()
            del parts[:]

    def test_what_cant_be_closed_yet_is_closed_later(self):
        refused, told = [], threading.Event()

        def tell(event):
            if event.kind == consort.MESSAGE:
                try:
                    node.close()
                except consort.Error as error:
                    refused.append(error.name)
                told.set()

        node = consort.Node(1)
        group = node.group()
        group.listen(tell)
        group.multicast(b"x")
        self.assertTrue(told.wait(60))
        self.assertEqual(refused, ["CONSORT_WOULD_DEADLOCK"])
        self.assertEqual(node.stats()["delivered"], 1)
        node.close()
        with self.assertRaises(consort.Stopped):
            group.multicast(b"x")

    def test_a_program_ends_that_closes_nothing(self):
        program = """
import consort
class Machine:
    def apply(self, update): return update.data
    def snapshot(self): return b""
    def restore(self, state): pass
node, replica = consort.Node(1), consort.Replica(Machine(), 2)
group = node.group()
group.listen(lambda event: event.kind)
group.multicast(b"x")
print(replica.update(b"done"))
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, b"b'done'\n", b""))

    def test_callbacks_and_kept_events(self):
        kept, told = [], threading.Event()

        def tell(event):
            if event.kind == consort.MESSAGE:
                kept.append(event.keep())
                told.set()

        with consort.Node(1) as node, node.group() as group:
            group.listen(tell)
            group.multicast(b"kept")
            self.assertTrue(told.wait(60))
            self.assertEqual(bytes(kept[0].data), b"kept")
            kept[0].release()

    def test_a_loop_of_ones_own(self):
        with consort.Node(1) as node, node.group() as group, selectors.DefaultSelector() as selector:
            selector.register(group, selectors.EVENT_READ)
            group.multicast(b"x")
            seen = False
            while not seen:
                self.assertTrue(selector.select(60))
                try:
                    while True:
                        with group.next(0) as event:
                            seen |= event.kind == consort.MESSAGE
                except consort.TimedOut:
                    pass
            selector.unregister(group)

    def test_replicas_answer_and_give_their_state_to_who_joins(self):
        options = list(sockets(2))
        with started(consort.Replica, Words(), **options[0]) as first, started(consort.Replica, Words(), **options[1]) as second:
            self.assertEqual(first.update(b"one"), b"1")
            self.assertEqual(second.submit(b"two").wait(60), b"2")
            self.assertEqual(first.query(lambda it: it.words), [b"one", b"two"])
            with consort.Replica(Words(), 3, join=[options[0]["peers"][2]]) as third:
                self.assertEqual(third.update(b"three"), b"3")
                self.assertEqual(third.query(lambda it: list(it.words), linearizable=False), [b"one", b"two", b"three"])
                third.leave()
            second.leave()
            first.leave()

    def test_all_members_reply_and_who_is_lost_is_named(self):
        begun, go_on = threading.Event(), threading.Event()

        class Named(Words):
            def __init__(self, name):
                super().__init__()
                self.name = name

            def apply(self, update):
                super().apply(update)
                if update.data == b"stay" and self.name == b"3":
                    begun.set()
                    go_on.wait(60)
                return self.name * len(self.words)

        all = [started(consort.Replica, Named(b"%d" % options["id"]), **options) for options in sockets(3)]
        self.assertEqual(all[0].update_all(b"one"), consort.Replies({1: b"1", 2: b"2", 3: b"3"}, {}))
        self.assertEqual(all[1].submit_all(b"two").wait(60), consort.Replies({1: b"11", 2: b"22", 3: b"33"}, {}))
        with all[0].submit_all(b"stay") as pending:
            self.assertTrue(begun.wait(60))
            with self.assertRaises(consort.TimedOut):
                pending.wait(0)
            all[2].stop()
            replies, lost = pending.wait(60)
        self.assertEqual((replies, list(lost)), ({1: b"111", 2: b"222"}, [3]))
        self.assertIn("gone", lost[3])
        go_on.set()
        for it in all:
            it.stop()
            it.close()

    def test_a_machine_that_fails_stops_its_replica(self):
        import contextlib
        import io
        with consort.Replica(Words(), 1) as replica:
            with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(consort.Unknown):
                replica.update(b"fail")
            with self.assertRaises(consort.Error) as caught:
                replica.update(b"more")
            self.assertEqual(caught.exception.name, "CONSORT_HALTED")

    def test_a_node_that_is_driven(self):
        with consort.DrivenNode(1) as node, node.group() as group:
            seen = []

            def tell(event):
                if event.kind == consort.MESSAGE:
                    seen.append(bytes(event.data))
                    raise KeyError("it comes out of poll")

            sent = False
            with self.assertRaises(KeyError):
                while True:
                    node.poll(tell)
                    try:
                        sent = sent or group.multicast(b"driven", block=False) > 0
                    except consort.Full:
                        pass
            self.assertEqual(seen, [b"driven"])

    def test_what_becomes_of_slow_members(self):
        groups = [dict(name="strict", slow_evict=1.5), dict(name="patient", slow_evict=None), dict(name="other")]
        with consort.Node(1, groups=groups, slow_evict=5) as node, node.group("patient") as patient:
            patient.multicast(b"x")
            until(patient, consort.MESSAGE).release()
        with self.assertRaisesRegex(consort.Error, "slow_evict_ms. is -2000: take a time"):
            consort.Node(1, groups=[dict(name="strict", slow_evict=-2)])

    def test_options_that_cant_be(self):
        with self.assertRaises(consort.Error) as caught:
            consort.Node(0)
        self.assertEqual(caught.exception.name, "CONSORT_CONFIG")
        with self.assertRaises(consort.Error):
            consort.Node(1, ring_bytes=3)
        with consort.Node(1, groups=[dict(name="orders", shards=2, replicas=1)]) as node:
            node.group("orders", 1).close()
            with self.assertRaises(consort.Error):
                node.group("nobody")


if __name__ == "__main__":
    unittest.main()
