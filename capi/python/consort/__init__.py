"""Consort for Python: processes that must agree.

A group of processes multicasts messages, and every member delivers the same messages in the same order, also when some of them
crash, join or leave. Nothing here needs a compiler: it calls libconsort (``cargo xtask install``) through ctypes.

    import consort

    with consort.Node(1, listen="10.0.0.1:7101", peers={2: "10.0.0.2:7101"}) as node:
        group = node.group()
        group.multicast(b"hello")
        for event in group.events():
            if event.kind == consort.MESSAGE:
                print(event.node, bytes(event.data))

Messages are not copied: ``Event.data`` and ``Room.data`` are memoryviews of ring memory. An event's dies with the event's release
(``events()`` releases each when the next is asked for): copy with ``bytes()`` what you keep. The memory stays lent as long as there is any view
of it, also a slice, and a message's sender can't reuse it before: don't keep slices either.

Times are in seconds, None is for ever. Errors are raised as `Error`, which has the status, and a sentence that says what to do.
"""

import atexit
import ctypes
import os
import sys
import weakref
from collections import namedtuple

from . import _abi
from ._abi import library as _library

__all__ = ["AGREED", "ATOMIC", "ADAPTIVE", "BLOCK", "CHAIN", "DIRECT", "DURABLE", "DrivenNode", "Error", "Event", "FIFO", "Full", "Group", "LOGGED", "Log", "Node",
           "Outcome", "Pending", "PendingReplies", "Record", "Replica", "Replies", "Room", "SHM", "SPIN", "Stopped", "TCP", "TimedOut", "Unknown", "View", "Member", "Update", "WAITING", "EVICTED", "VIEW", "MESSAGE",
           "SNAPSHOT", "RESTORE", "ENDED", "READ_POINT", "DIGEST", "STOPPED", "release_many", "version"]

ATOMIC, AGREED, FIFO, DURABLE, LOGGED = 0, 1, 2, 3, 4
DIRECT, CHAIN = 0, 1
AUTO, SHM, TCP, VERBS = 0, 1, 2, 3
ADAPTIVE, SPIN, BLOCK = 0, 1, 2
WAITING, EVICTED, VIEW, MESSAGE, SNAPSHOT, RESTORE, ENDED, READ_POINT, DIGEST, STOPPED = range(1, 11)

Member = namedtuple("Member", "node is_witness incarnation address domain")
View = namedtuple("View", "id members")
Update = namedtuple("Update", "data node view seq index incarnation")
Delivered = namedtuple("Delivered", "view seq")
Replies = namedtuple("Replies", "replies lost")
Record = namedtuple("Record", "kind node index view seq stamp data members")


class Error(Exception):
    """A call failed. ``status`` is the number, ``name`` the constant of consort.h."""

    def __init__(self, status):
        self.status = status
        self.name = _library.consort_status_name(status).decode()
        super().__init__(f"{_library.consort_last_error().decode()} ({self.name})")


class TimedOut(Error):
    """It isn't there yet."""


class Full(Error):
    """Not just now: the ring is full, the view is changing, or the group hasn't started. Try again."""


class Stopped(Error):
    """The node does nothing more."""


class Unknown(Error):
    """It isn't known whether it was delivered or applied."""


_KINDS = {1: TimedOut, 2: Full, 3: Full, 4: Full, 7: Stopped, 8: Stopped, 15: Unknown}


def _check(status):
    if status != 0:
        raise _KINDS.get(status, Error)(status)


def _ms(seconds):
    """In milliseconds, of which -1 stands for no end; so do more than 64 bits hold, and infinity."""
    return -1 if seconds is None or seconds * 1000 >= 2**63 else max(0, int(seconds * 1000))


class _Lent:
    """What the library lent, and the function that gives it back. Views of its memory are of an array that holds this, so it is given back when
    the last of them is gone, unless it is before; and that it isn't while there are others."""

    def __init__(self, struct, back=None):
        self.struct, self._back, self._array = struct, back, lambda: None

    def view(self):
        """A view of its memory, of bytes."""
        if self.struct.len == 0:
            return memoryview(b"")
        array = self._array()
        if array is None:
            array = (ctypes.c_uint8 * self.struct.len).from_address(self.struct.data)
            array.lent = self
            self._array = weakref.ref(array)
        return memoryview(array).cast("B")

    def is_seen(self):
        """Whether there is a view of it."""
        return self._array() is not None

    def hand_over(self, other):
        """The views of it are the other's from now on, which has the same memory."""
        array = self._array()
        if array is not None:
            array.lent, other._array, self._array = other, self._array, lambda: None

    def done(self):
        """It was given back, and isn't to be once more."""
        self._back = None

    def give_back(self):
        back, self._back = self._back, None
        if back is not None:
            _check(back(ctypes.byref(self.struct)))

    def __del__(self):
        # At the interpreter's end there may be nothing to call any more.
        if self._back is not None and _library is not None:
            self._back(ctypes.byref(self.struct))


def _take(lent):
    """Bytes that the library made: a copy, and they are given back."""
    data = ctypes.string_at(lent.data, lent.len)
    _check(_library.consort_bytes_free(ctypes.byref(lent)))
    return data


def _text(value):
    return None if value is None else value.encode()


def version():
    """The version of libconsort."""
    return _library.consort_version().decode()


def _members(view):
    members = [view.members[at] for at in range(view.members_len)]
    return View(view.id, [Member(it.node, it.role == 1, it.incarnation, it.address.decode(), it.domain.decode()) for it in members])


def _options(id=0, *, listen=None, peers=None, join=None, groups=None, config_file=None, cluster=None, advertise=None, key=None,
             domain=None, ring_bytes=0, silence=0, quorum_within=0, start_within=0, slow_evict=0, digest_every=4096, listen_fd=-1,
             fabric=AUTO, guarantee=ATOMIC, wait=ADAPTIVE, state=False, rejoin=False, witness=False, data=None, topology=DIRECT,
             snapshot_every=0):
    """A node's options; what they mean, consort.h says. ``peers`` is {id: address}, ``join`` a list of addresses, ``groups`` a list
    of dicts with ``name`` and any of ``nodes``, ``shards``, ``replicas``, ``ring_bytes``, ``guarantee``, ``state``, ``topology``,
    ``slow_evict`` (seconds; None waits for slow members, and 0, or nothing, is what the node's ``slow_evict`` says). A
    ``listen_fd`` stays the program's: close it when the node has started. ``data`` is the directory of the node's DURABLE groups, a str or a
    path: they are told everything once more when their members start again."""
    options = _abi.NodeOptions()
    _check(_library.consort_node_options_init(ctypes.sizeof(options), ctypes.byref(options)))
    peers, join, groups = peers or {}, join or [], groups or []
    options.peers = (_abi.Peer * len(peers))(*(_abi.Peer(peer, 0, at.encode()) for peer, at in peers.items()))
    options.join = (ctypes.c_char_p * len(join))(*(at.encode() for at in join))
    options.peers_len, options.join_len, options.groups_len = len(peers), len(join), len(groups)
    array = (_abi.GroupOptions * len(groups))()
    for to, group in zip(array, groups):
        _check(_library.consort_group_options_init(ctypes.sizeof(to), ctypes.byref(to)))
        nodes = list(group.get("nodes", []))
        to.name, to.nodes_len = group["name"].encode(), len(nodes)
        to.nodes = (ctypes.c_uint32 * len(nodes))(*nodes)
        for name in ("shards", "replicas", "ring_bytes", "guarantee", "state", "topology"):
            setattr(to, name, int(group.get(name, 0)))
        slow = group.get("slow_evict", 0)
        to.slow_evict_ms = -1 if slow is None else int(slow * 1000)
    options.groups = array
    options.id, options.role, options.config_file, options.cluster = id, int(witness), _text(config_file), _text(cluster)
    options.listen, options.advertise, options.domain = _text(listen), _text(advertise), _text(domain)
    options.key, options.key_len, options.ring_bytes = key, len(key or b""), ring_bytes
    options.silence_ms, options.quorum_within_ms = int(silence * 1000), int(quorum_within * 1000)
    options.start_within_ms, options.slow_evict_ms = int(start_within * 1000), int(slow_evict * 1000)
    options.digest_every, options.listen_fd, options.fabric, options.guarantee = digest_every, listen_fd, fabric, guarantee
    options.wait, options.state, options.rejoin = wait, int(state), int(rejoin)
    options.data, options.topology = None if data is None else os.fsencode(data), topology
    options.snapshot_every = snapshot_every
    return options


_called = []  # what the library may call for as long as the process lives
_running = weakref.WeakSet()


@atexit.register
def _end():
    """Ends what has threads that call Python, while there is one to call."""
    for it in list(_running):
        try:
            it.stop()
            it.close()
        except Error:
            pass  # it stopped before, or another thread is in a call on it


class _Handle:
    """A handle of the library's, freed once."""

    _free = None
    _calls = ()  # what the library may call until it is freed

    def __init__(self, handle):
        self._handle = handle

    def close(self):
        """Frees it; once is enough. It can't be used after that. What fails can be tried again."""
        if self._handle is not None:
            _check(self._free(self._handle))
            self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None) is not None and _library is not None:
            if self._free(self._handle) != 0:
                _called.append(self._calls)  # in a callback, for one, it can't be freed, and goes on
            self._handle = None


def _made(function, *arguments):
    handle = ctypes.c_void_p()
    _check(function(*arguments, ctypes.byref(handle)))
    return handle.value


class Event:
    """Something that happened: ``kind``, and what consort.h says of it. ``data`` is a memoryview of a message, until it is released.
    ``stamp``, of a message of a DURABLE group, is when it was sent, the same at all members: nanoseconds since 1970."""

    def __init__(self, lent):
        self._lent, struct = lent, lent.struct
        self.kind, self.shard, self.node, self.status = struct.kind, struct.shard, struct.node, struct.status
        self.view, self.seq, self.ticket, self.number = struct.view, struct.seq, struct.ticket, struct.number
        self.stamp = struct.stamp
        self.text = struct.text.decode() if struct.text else None
        self.members = _members(struct.members.contents) if struct.members else None
        self.data = lent.view()

    def _struct(self):
        if self._lent is None:
            raise ValueError("this event was released")
        return ctypes.byref(self._lent.struct)

    def release(self):
        """Gives the message's memory back to its sender. BufferError: there is another view of it, a slice for one."""
        if self._lent is not None:
            self.data.release()
            if self._lent.is_seen():
                self.data = self._lent.view()
                raise BufferError("there are other views of the event's data, slices perhaps: release them first")
            lent, self._lent = self._lent, None
            lent.give_back()

    def keep(self):
        """In a callback: the event, past the call. Release it."""
        kept = _Lent(_abi.Event())
        _check(_library.consort_keep(self._struct(), ctypes.byref(kept.struct)))
        kept._back = _library.consort_release
        self._lent.hand_over(kept)
        return Event(kept)

    def _passed(self):
        """The callback that it was lent to is over."""
        self.data.release()
        if self._lent is not None and self._lent.is_seen():
            try:
                self.keep().data.release()  # the other views have it then
            except Error as error:
                raise BufferError("views of an event's data are left that die with its callback: copy what you keep") from error
        self._lent = None

    def give(self, state):
        """Of a SNAPSHOT: gives the state to who joins."""
        _check(_library.consort_snapshot_give(self._struct(), bytes(state), len(state)))

    def refuse(self, reason):
        """Of a SNAPSHOT: gives none."""
        _check(_library.consort_snapshot_refuse(self._struct(), reason.encode()))

    def restore(self):
        """Of a RESTORE: the state, whole; then go on with what follows."""
        pieces, piece, got = [], ctypes.create_string_buffer(1 << 20), ctypes.c_size_t(1)
        while got.value > 0:
            _check(_library.consort_restore_read(self._struct(), piece, len(piece), ctypes.byref(got)))
            pieces.append(piece.raw[:got.value])
        _check(_library.consort_restore_finish(self._struct()))
        self._lent.done()
        self._lent = None
        return b"".join(pieces)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Where there is another view, as of a variable of the block that is over, that gives it back when it goes.
        self.data.release()
        lent, self._lent = self._lent, None
        if lent is not None and not lent.is_seen():
            lent.give_back()


class Room:
    """Room for a message, in the ring: write to ``data``, then `send`. As a context manager it is sent at the end, or cancelled by an
    exception. BufferError: there is another view of it, a slice for one; release that first."""

    def __init__(self, struct):
        self._lent = _Lent(struct, _library.consort_cancel)
        self.data = self._lent.view()

    def _done(self, function, *arguments):
        self.data.release()
        if self._lent.is_seen():
            self.data = self._lent.view()
            raise BufferError("there are other views of the room, slices perhaps: release them first")
        _check(function(ctypes.byref(self._lent.struct), *arguments))
        self._lent.done()

    def send(self):
        """Multicasts it. Gives the ticket, which the message's event has too."""
        ticket = ctypes.c_uint64()
        self._done(_library.consort_send, ctypes.byref(ticket))
        return ticket.value

    def send_tracked(self):
        """Multicasts it. Gives its `Outcome`."""
        outcome = ctypes.c_void_p()
        self._done(_library.consort_send_tracked, ctypes.byref(outcome))
        return Outcome(outcome.value)

    def cancel(self):
        """Gives it back unsent."""
        self._done(_library.consort_cancel)

    def __enter__(self):
        return self

    def __exit__(self, exception, *_):
        if exception is not None:
            self.data.release()
            if not self._lent.is_seen():  # otherwise by the last view, which the exception may have
                self._lent.give_back()
        elif self._lent.struct.lent:
            self.send()


class Outcome(_Handle):
    """What becomes of a message."""

    _free = _library.consort_outcome_free

    def wait(self, timeout=None):
        """Where it was delivered."""
        delivered = _abi.Delivered()
        _check(_library.consort_outcome_wait(self._handle, _ms(timeout), ctypes.byref(delivered)))
        return Delivered(delivered.view, delivered.seq)

    def wait_stable(self, timeout=None):
        """The step before, in a DURABLE or LOGGED group: where all members have received it, while their disks are at it."""
        delivered = _abi.Delivered()
        _check(_library.consort_outcome_wait_stable(self._handle, _ms(timeout), ctypes.byref(delivered)))
        return Delivered(delivered.view, delivered.seq)


def _told(callback):
    """A callback of Python's as one of C's. What it raises is told by sys.unraisablehook: it can't go anywhere else."""

    def call(_, event):
        told = Event(_Lent(event.contents))
        try:
            callback(told)
        finally:
            told._passed()

    return _abi.ON_EVENT(call)


def release_many(events):
    """Gives many events back, by one call. BufferError: there is another view of one's data, a slice for one; then none is given back."""
    lent = []
    for event in events:
        if event._lent is not None and event._lent not in lent:
            event.data.release()
            lent.append(event._lent)
    if any(it.is_seen() for it in lent):
        for event in events:
            if event._lent is not None:
                event.data = event._lent.view()
        raise BufferError("there are other views of an event's data, slices perhaps: release them first")
    structs = (_abi.Event * len(lent))(*(it.struct for it in lent))
    for event in events:
        event._lent = None
    for it in lent:
        it.done()
    _check(_library.consort_release_many(structs, len(structs)))


class Group(_Handle):
    """A group at a node, or one of its shards. Any threads may use it."""

    _free = _library.consort_group_free

    def __init__(self, handle, node):
        super().__init__(handle)
        self._node = node

    def multicast(self, data, block=True):
        """Multicasts a copy. Gives its ticket."""
        function, ticket = _library.consort_multicast if block else _library.consort_try_multicast, ctypes.c_uint64()
        _check(function(self._handle, bytes(data), len(data), ctypes.byref(ticket)))
        return ticket.value

    def multicast_many(self, messages, block=True):
        """Multicasts copies of many messages, a list of bytes, in their order. Gives the tickets of those that were sent: if they are fewer, the next
        message can't be sent, and a call that begins with that one raises why."""
        function = _library.consort_multicast_many if block else _library.consort_try_multicast_many
        copies, sent = [bytes(message) for message in messages], ctypes.c_size_t()
        batch, tickets = (_abi.Message * len(copies))(), (ctypes.c_uint64 * len(copies))()
        for to, copy in zip(batch, copies):
            to.data, to.len = copy, len(copy)
        _check(function(self._handle, batch, len(copies), tickets, ctypes.byref(sent)))
        return tickets[:sent.value]

    def multicast_to(self, nodes, data):
        """Multicasts a copy to some of the members, by their nodes' numbers. Gives its ticket."""
        nodes, ticket = (ctypes.c_uint32 * len(nodes))(*nodes), ctypes.c_uint64()
        _check(_library.consort_multicast_to(self._handle, nodes, len(nodes), bytes(data), len(data), ctypes.byref(ticket)))
        return ticket.value

    def multicast_tracked(self, data):
        """Multicasts a copy. Gives its `Outcome`."""
        return Outcome(_made(_library.consort_multicast_tracked, self._handle, bytes(data), len(data)))

    def reserve(self, length, block=True):
        """`Room` for a message of so many bytes."""
        function, room = _library.consort_reserve if block else _library.consort_try_reserve, _abi.Room()
        _check(function(self._handle, length, ctypes.byref(room)))
        return Room(room)

    def end(self):
        """Tells the others that nothing more comes from here."""
        _check(_library.consort_end(self._handle))

    def read_point(self):
        """Asks for a read point: READ_POINT comes with this number or a greater one."""
        point = ctypes.c_uint64()
        _check(_library.consort_read_point(self._handle, ctypes.byref(point)))
        return point.value

    def next(self, timeout=None):
        """The next event. Release it when it is read."""
        event = _abi.Event()
        _check(_library.consort_next(self._handle, _ms(timeout), ctypes.byref(event)))
        return Event(_Lent(event, _library.consort_release))

    def next_many(self, most, timeout=None):
        """The next events, as many as there are, `most` at most: a list. Waits for the first alone. Release each when it is read, or all by
        `release_many`."""
        events, taken = (_abi.Event * most)(), ctypes.c_size_t()
        _check(_library.consort_next_many(self._handle, _ms(timeout), events, most, ctypes.byref(taken)))
        # Copies of the structs: an element of an array keeps all of it.
        return [Event(_Lent(_abi.Event.from_buffer_copy(events[at]), _library.consort_release)) for at in range(taken.value)]

    def events(self):
        """All events, until the node stops. Each is released when the next is asked for."""
        while True:
            try:
                event = self.next()
            except Stopped:
                return
            with event:
                yield event

    def listen(self, callback):
        """Has ``callback(event)`` called for each event, on a thread of the library's. The last is STOPPED."""
        told = _told(callback)
        self._node._calls.append(told)
        _check(_library.consort_listen(self._handle, told, None))

    def fileno(self):
        """A descriptor that is readable while there may be events: for select, selectors, asyncio. Then ``next(0)`` until `TimedOut`."""
        descriptor = ctypes.c_int()
        _check(_library.consort_group_fd(self._handle, ctypes.byref(descriptor)))
        return descriptor.value


class Node(_Handle):
    """This process's place in the cluster. Starts at once; returns before its peers are there. For the options see `_options`."""

    _free = _library.consort_node_free
    _new = _library.consort_node_new

    def __init__(self, id=0, **options):
        self._calls = []
        super().__init__(_made(self._new, ctypes.byref(_options(id, **options))))
        _running.add(self)

    def group(self, name=None, shard=0):
        """A group by its name; None is the main one."""
        return Group(_made(_library.consort_node_group, self._handle, _text(name), shard), self)

    def leave(self, timeout=10):
        """Leaves in order. Close it then."""
        _check(_library.consort_node_leave(self._handle, _ms(timeout)))

    def stop(self):
        """Stops at once. Close it then."""
        _check(_library.consort_node_stop(self._handle))

    def stats(self):
        """What was counted, by name."""
        stats = _abi.Stats(struct_size=ctypes.sizeof(_abi.Stats))
        _check(_library.consort_node_stats(self._handle, ctypes.byref(stats)))
        values = {name: getattr(stats, name) for name, _ in _abi.Stats._fields_[1:]}
        return {name: it.decode() if isinstance(it, bytes) else it for name, it in values.items()}

    def status(self):
        """Where it stands, in lines for people."""
        text = _abi.Bytes()
        _check(_library.consort_node_status(self._handle, ctypes.byref(text)))
        return _take(text).decode()


class DrivenNode(Node):
    """A node that the program drives, on one thread: by `drive`, or by `poll`, and `wait` when there was nothing to do."""

    _new = _library.consort_driven_new

    def poll(self, callback):
        """One turn: ``callback(event)`` for all that is due. Whether anything happened."""
        return self._turn(callback, _library.consort_poll, self._handle)

    def drive(self, callback, timeout=None):
        """Turns and waits until ``callback(event)`` was called, or for so many seconds. Whether it was."""
        return self._turn(callback, _library.consort_drive, self._handle, _ms(timeout))

    def _turn(self, callback, function, *arguments):
        happened, raised = ctypes.c_uint32(), []

        def call(_, event):
            told = Event(_Lent(event.contents))
            try:
                if not raised:
                    callback(told)
            except BaseException as exception:  # it goes on where poll or drive was called
                raised.append(exception)
            finally:
                told._passed()

        _check(function(*arguments, _abi.ON_EVENT(call), None, ctypes.byref(happened)))
        if raised:
            raise raised[0]
        return happened.value != 0

    def wait(self):
        """Waits until there may be something to do, a tenth of a second at most."""
        _check(_library.consort_wait(self._handle))


class Pending(_Handle):
    """The reply to an update."""

    _free = _library.consort_pending_free

    def wait(self, timeout=None):
        """The reply, once."""
        reply = _abi.Bytes()
        _check(_library.consort_pending_wait(self._handle, _ms(timeout), ctypes.byref(reply)))
        return _take(reply)


def _replies(handle):
    """A copy of all replies, which are freed."""
    replies, lost, count, reply = {}, {}, ctypes.c_size_t(), _abi.Reply()
    try:
        _check(_library.consort_replies_count(handle, ctypes.byref(count)))
        for at in range(count.value):
            _check(_library.consort_replies_at(handle, at, ctypes.byref(reply)))
            if reply.status == 0:
                replies[reply.node] = ctypes.string_at(reply.data, reply.len)
            else:
                lost[reply.node] = reply.text.decode()
    finally:
        _check(_library.consort_replies_free(handle))
    return Replies(replies, lost)


class PendingReplies(_Handle):
    """The replies of all members to an update."""

    _free = _library.consort_pending_free

    def wait(self, timeout=None):
        """The `Replies`, once."""
        return _replies(_made(_library.consort_pending_wait_all, self._handle, _ms(timeout)))


class Replica(_Handle):
    """A state that all members keep the same. ``machine`` has ``apply(update) -> bytes or None`` (``update.data`` is bytes), ``snapshot() -> bytes``,
    ``restore(bytes)`` and, if it likes, ``view_changed(view)``; what they do must follow from the state and their arguments alone. They are
    called on a thread of the replica's; queries don't run at the same time as `apply`."""

    _free = _library.consort_replica_free

    def __init__(self, machine, id=0, **options):
        self._machine = machine
        self._calls = self._foreign(machine)
        super().__init__(_made(_library.consort_replica_new, ctypes.byref(_options(id, **options)), ctypes.byref(self._calls)))
        _running.add(self)

    @staticmethod
    def _foreign(machine):
        def safely(body):
            def call(*arguments):
                try:
                    body(*arguments)
                    return 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    return 1
            return call

        def apply(_, update, reply):
            it = update.contents
            # A copy: whatever the machine keeps of it may outlive the call.
            data = ctypes.string_at(it.data, it.len) if it.len > 0 else b""
            answer = machine.apply(Update(data, it.node, it.view, it.seq, it.index, it.incarnation)) or b""
            _check(_library.consort_write(reply, answer, len(answer)))

        def snapshot(_, state):
            data = machine.snapshot()
            _check(_library.consort_write(state, data, len(data)))

        def restore(_, state):
            pieces, piece, got = [], ctypes.create_string_buffer(1 << 20), ctypes.c_size_t(1)
            while got.value > 0:
                _check(_library.consort_read(state, piece, len(piece), ctypes.byref(got)))
                pieces.append(piece.raw[:got.value])
            machine.restore(b"".join(pieces))

        functions = _abi.Machine()
        _check(_library.consort_machine_init(ctypes.sizeof(functions), ctypes.byref(functions)))
        functions.apply, functions.snapshot = _abi.APPLY(safely(apply)), _abi.SNAPSHOT(safely(snapshot))
        functions.restore = _abi.RESTORE(safely(restore))
        if hasattr(machine, "view_changed"):
            functions.view_changed = _abi.VIEW_CHANGED(lambda _, view: machine.view_changed(_members(view.contents)))
        return functions

    def update(self, data):
        """Does an update at all members; gives what `apply` answered here."""
        reply = _abi.Bytes()
        _check(_library.consort_replica_update(self._handle, bytes(data), len(data), ctypes.byref(reply)))
        return _take(reply)

    def submit(self, data):
        """The same without waiting: gives a `Pending`."""
        return Pending(_made(_library.consort_replica_submit, self._handle, bytes(data), len(data)))

    def update_all(self, data):
        """Does an update, and gives what every member answered: `Replies`, with ``replies``, bytes by node, and ``lost``, by node why there is
        no reply. Waits for each until it has answered or is gone."""
        return _replies(_made(_library.consort_replica_update_all, self._handle, bytes(data), len(data)))

    def submit_all(self, data):
        """The same without waiting: gives `PendingReplies`."""
        return PendingReplies(_made(_library.consort_replica_submit_all, self._handle, bytes(data), len(data)))

    def query(self, look, linearizable=True):
        """``look(machine)``, on a state with every update that had completed anywhere; or, not linearizable, as it is here."""
        found, raised = [], []

        def call(*_):
            try:
                found.append(look(self._machine))
            except BaseException as exception:  # it goes on where query was called
                raised.append(exception)

        _check(_library.consort_replica_query(self._handle, int(linearizable), _abi.LOOK(call), None))
        if raised:
            raise raised[0]
        return found[0]

    def applied(self):
        """How many updates were applied since the group was founded."""
        applied = ctypes.c_uint64()
        _check(_library.consort_replica_applied(self._handle, ctypes.byref(applied)))
        return applied.value

    def leave(self, timeout=10):
        """Leaves in order. Close it then."""
        _check(_library.consort_replica_leave(self._handle, _ms(timeout)))

    def stop(self):
        """Stops at once. Close it then."""
        _check(_library.consort_replica_stop(self._handle))


class Log(_Handle):
    """A durable shard's log, from a data directory, which a node may be using: from the record of an ``index`` on, from a ``stamp`` on
    (nanoseconds since 1970), or from the first that there is. Iterating gives what is there, and goes on with what has come since when it is done
    again. Each is a `Record`: of a MESSAGE ``data`` are its bytes, of a VIEW ``members`` is that `View`. One thread at a time."""

    _free = _library.consort_log_free

    def __init__(self, data, shard=0, index=0, stamp=None):
        how, start = (0, index) if stamp is None else (1, stamp)
        super().__init__(_made(_library.consort_log_open, os.fsencode(data), shard, how, start))

    def next(self):
        """The next record. TimedOut: there is no more yet. Error: it is damaged there."""
        record = _abi.Record()
        _check(_library.consort_log_next(self._handle, ctypes.byref(record)))
        data = ctypes.string_at(record.data, record.len) if record.len > 0 else b""
        members = _members(record.members.contents) if record.members else None
        return Record(record.kind, record.node, record.index, record.view, record.seq, record.stamp, data, members)

    def __iter__(self):
        while True:
            try:
                record = self.next()
            except TimedOut:
                return
            yield record
