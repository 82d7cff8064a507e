"""consort.h in ctypes: the library, its structs, functions and constants. What each means, the header says."""

import ctypes
import os
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64,
                    c_uint8, c_void_p)

SONAME = "libconsort.so.0"


class Peer(Structure):
    _fields_ = [("id", c_uint32), ("reserved", c_uint32), ("address", c_char_p)]


class GroupOptions(Structure):
    _fields_ = [("struct_size", c_size_t), ("name", c_char_p), ("nodes", POINTER(c_uint32)), ("nodes_len", c_size_t),
                ("ring_bytes", c_uint64), ("shards", c_uint32), ("replicas", c_uint32), ("guarantee", c_uint32),
                ("state", c_uint32), ("topology", c_uint32), ("reserved", c_uint32), ("slow_evict_ms", c_int64)]


class NodeOptions(Structure):
    _fields_ = [("struct_size", c_size_t), ("id", c_uint32), ("role", c_uint32), ("config_file", c_char_p),
                ("cluster", c_char_p), ("listen", c_char_p), ("advertise", c_char_p), ("peers", POINTER(Peer)),
                ("peers_len", c_size_t), ("join", POINTER(c_char_p)), ("join_len", c_size_t),
                ("groups", POINTER(GroupOptions)), ("groups_len", c_size_t), ("key", c_char_p), ("key_len", c_size_t),
                ("domain", c_char_p), ("ring_bytes", c_uint64), ("silence_ms", c_uint64), ("quorum_within_ms", c_uint64),
                ("start_within_ms", c_uint64), ("slow_evict_ms", c_uint64), ("digest_every", c_uint64),
                ("listen_fd", c_int32), ("fabric", c_uint32), ("guarantee", c_uint32), ("wait", c_uint32),
                ("state", c_uint32), ("rejoin", c_uint32), ("data", c_char_p), ("topology", c_uint32),
                ("reserved", c_uint32), ("snapshot_every", c_uint64)]


class GroupInfo(Structure):
    _fields_ = [("struct_size", c_size_t), ("ring_bytes", c_uint64), ("shard", c_uint32), ("index", c_uint32),
                ("shards", c_uint32), ("guarantee", c_uint32), ("state", c_uint32), ("reserved", c_uint32)]


class Stats(Structure):
    _fields_ = [("struct_size", c_size_t), ("delivered", c_uint64), ("sent", c_uint64), ("system_calls", c_uint64),
                ("bytes_out", c_uint64), ("bytes_in", c_uint64), ("sleeps", c_uint64), ("wakes", c_uint64),
                ("fabric", c_char * 16), ("engine", c_char * 16)]


class Room(Structure):
    _fields_ = [("data", c_void_p), ("len", c_size_t), ("lent", c_uint64)]


class Message(Structure):
    _fields_ = [("data", c_char_p), ("len", c_size_t)]


class Delivered(Structure):
    _fields_ = [("view", c_uint64), ("seq", c_uint64)]


class Member(Structure):
    _fields_ = [("node", c_uint32), ("role", c_uint32), ("incarnation", c_uint64), ("address", c_char_p), ("domain", c_char_p)]


class Shard(Structure):
    _fields_ = [("members", POINTER(c_uint32)), ("members_len", c_size_t), ("learners", POINTER(c_uint32)),
                ("learners_len", c_size_t), ("since", c_uint64), ("is_lost", c_uint32), ("reserved", c_uint32)]


class View(Structure):
    _fields_ = [("id", c_uint64), ("members", POINTER(Member)), ("members_len", c_size_t), ("shards", POINTER(Shard)),
                ("shards_len", c_size_t)]


class Event(Structure):
    _fields_ = [("kind", c_uint32), ("shard", c_uint32), ("node", c_uint32), ("status", c_int32), ("view", c_uint64),
                ("seq", c_uint64), ("ticket", c_uint64), ("number", c_uint64), ("data", c_void_p), ("len", c_size_t),
                ("members", POINTER(View)), ("text", c_char_p), ("lent", c_uint64), ("stamp", c_uint64)]


class Bytes(Structure):
    _fields_ = [("data", c_void_p), ("len", c_size_t), ("lent", c_uint64)]


class Reply(Structure):
    _fields_ = [("node", c_uint32), ("status", c_int32), ("data", c_void_p), ("len", c_size_t), ("text", c_char_p)]


class Record(Structure):
    _fields_ = [("kind", c_uint32), ("node", c_uint32), ("index", c_uint64), ("view", c_uint64), ("seq", c_uint64),
                ("stamp", c_uint64), ("data", c_void_p), ("len", c_size_t), ("members", POINTER(View))]


class Update(Structure):
    _fields_ = [("data", c_void_p), ("len", c_size_t), ("view", c_uint64), ("seq", c_uint64), ("index", c_uint64),
                ("incarnation", c_uint64), ("node", c_uint32), ("reserved", c_uint32)]


ON_EVENT = CFUNCTYPE(None, c_void_p, POINTER(Event))
ON_OUTCOME = CFUNCTYPE(None, c_void_p, c_int, POINTER(Delivered))
ON_REPLY = CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_size_t)
ON_REPLIES = CFUNCTYPE(None, c_void_p, c_int, POINTER(Reply), c_size_t)
ON_FRESH = CFUNCTYPE(None, c_void_p, c_int)
LOOK = CFUNCTYPE(None, c_void_p, c_void_p)
WRITE_FN = CFUNCTYPE(None, c_void_p, c_size_t, c_void_p, c_size_t)
READ_FN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, POINTER(c_size_t))
DONE_FN = CFUNCTYPE(None, c_void_p)
APPLY = CFUNCTYPE(c_int, c_void_p, POINTER(Update), c_void_p)
SNAPSHOT = CFUNCTYPE(c_int, c_void_p, c_void_p)
RESTORE = CFUNCTYPE(c_int, c_void_p, c_void_p)
VIEW_CHANGED = CFUNCTYPE(None, c_void_p, POINTER(View))


class Machine(Structure):
    _fields_ = [("struct_size", c_size_t), ("context", c_void_p), ("apply", APPLY), ("snapshot", SNAPSHOT),
                ("restore", RESTORE), ("view_changed", VIEW_CHANGED), ("free", DONE_FN)]


STRUCTS = {"consort_peer": Peer, "consort_node_options": NodeOptions, "consort_group_options": GroupOptions,
           "consort_group_info": GroupInfo, "consort_stats": Stats, "consort_room": Room, "consort_message": Message, "consort_delivered": Delivered,
           "consort_member": Member, "consort_shard": Shard, "consort_view": View, "consort_event": Event,
           "consort_bytes": Bytes, "consort_reply": Reply, "consort_record": Record, "consort_update": Update, "consort_machine": Machine}

_HANDLE = c_void_p
_OUT = POINTER(c_void_p)

# Each function's parameters.
FUNCTIONS = {
    "consort_node_options_init": [c_size_t, POINTER(NodeOptions)],
    "consort_group_options_init": [c_size_t, POINTER(GroupOptions)],
    "consort_machine_init": [c_size_t, POINTER(Machine)],
    "consort_node_new": [POINTER(NodeOptions), _OUT],
    "consort_driven_new": [POINTER(NodeOptions), _OUT],
    "consort_node_id": [_HANDLE, POINTER(c_uint32)],
    "consort_node_leave": [_HANDLE, c_int64],
    "consort_node_stop": [_HANDLE],
    "consort_node_free": [_HANDLE],
    "consort_node_stats": [_HANDLE, POINTER(Stats)],
    "consort_node_status": [_HANDLE, POINTER(Bytes)],
    "consort_ask": [c_char_p, c_char_p, c_size_t, c_uint32, c_int64, POINTER(Bytes)],
    "consort_bytes_free": [POINTER(Bytes)],
    "consort_node_group": [_HANDLE, c_char_p, c_uint32, _OUT],
    "consort_group_free": [_HANDLE],
    "consort_group_info_of": [_HANDLE, POINTER(GroupInfo)],
    "consort_group_max_len": [_HANDLE, POINTER(c_size_t)],
    "consort_group_fd": [_HANDLE, POINTER(c_int)],
    "consort_reserve": [_HANDLE, c_size_t, POINTER(Room)],
    "consort_try_reserve": [_HANDLE, c_size_t, POINTER(Room)],
    "consort_send": [POINTER(Room), POINTER(c_uint64)],
    "consort_send_tracked": [POINTER(Room), _OUT],
    "consort_cancel": [POINTER(Room)],
    "consort_multicast": [_HANDLE, c_char_p, c_size_t, POINTER(c_uint64)],
    "consort_try_multicast": [_HANDLE, c_char_p, c_size_t, POINTER(c_uint64)],
    "consort_multicast_many": [_HANDLE, POINTER(Message), c_size_t, POINTER(c_uint64), POINTER(c_size_t)],
    "consort_try_multicast_many": [_HANDLE, POINTER(Message), c_size_t, POINTER(c_uint64), POINTER(c_size_t)],
    "consort_write_many": [_HANDLE, POINTER(c_size_t), c_size_t, WRITE_FN, c_void_p, POINTER(c_uint64), POINTER(c_size_t)],
    "consort_try_write_many": [_HANDLE, POINTER(c_size_t), c_size_t, WRITE_FN, c_void_p, POINTER(c_uint64), POINTER(c_size_t)],
    "consort_multicast_tracked": [_HANDLE, c_char_p, c_size_t, _OUT],
    "consort_reserve_to": [_HANDLE, POINTER(c_uint32), c_size_t, c_size_t, POINTER(Room)],
    "consort_try_reserve_to": [_HANDLE, POINTER(c_uint32), c_size_t, c_size_t, POINTER(Room)],
    "consort_multicast_to": [_HANDLE, POINTER(c_uint32), c_size_t, c_char_p, c_size_t, POINTER(c_uint64)],
    "consort_end": [_HANDLE],
    "consort_read_point": [_HANDLE, POINTER(c_uint64)],
    "consort_publish_digest": [_HANDLE, c_uint64],
    "consort_outcome_wait": [_HANDLE, c_int64, POINTER(Delivered)],
    "consort_outcome_wait_stable": [_HANDLE, c_int64, POINTER(Delivered)],
    "consort_outcome_then": [_HANDLE, ON_OUTCOME, c_void_p],
    "consort_outcome_free": [_HANDLE],
    "consort_next": [_HANDLE, c_int64, POINTER(Event)],
    "consort_release": [POINTER(Event)],
    "consort_next_many": [_HANDLE, c_int64, POINTER(Event), c_size_t, POINTER(c_size_t)],
    "consort_release_many": [POINTER(Event), c_size_t],
    "consort_listen": [_HANDLE, ON_EVENT, c_void_p],
    "consort_keep": [POINTER(Event), POINTER(Event)],
    "consort_snapshot_give": [POINTER(Event), c_char_p, c_size_t],
    "consort_snapshot_stream": [POINTER(Event), READ_FN, DONE_FN, c_void_p],
    "consort_snapshot_refuse": [POINTER(Event), c_char_p],
    "consort_restore_read": [POINTER(Event), c_void_p, c_size_t, POINTER(c_size_t)],
    "consort_restore_finish": [POINTER(Event)],
    "consort_poll": [_HANDLE, ON_EVENT, c_void_p, POINTER(c_uint32)],
    "consort_drive": [_HANDLE, c_int64, ON_EVENT, c_void_p, POINTER(c_uint32)],
    "consort_wait": [_HANDLE],
    "consort_write": [_HANDLE, c_char_p, c_size_t],
    "consort_read": [_HANDLE, c_void_p, c_size_t, POINTER(c_size_t)],
    "consort_replica_new": [POINTER(NodeOptions), POINTER(Machine), _OUT],
    "consort_replica_on": [_HANDLE, _HANDLE, c_uint64, POINTER(Machine), _OUT],
    "consort_replica_update": [_HANDLE, c_char_p, c_size_t, POINTER(Bytes)],
    "consort_replica_submit": [_HANDLE, c_char_p, c_size_t, _OUT],
    "consort_replica_submit_then": [_HANDLE, c_char_p, c_size_t, ON_REPLY, c_void_p],
    "consort_replica_update_all": [_HANDLE, c_char_p, c_size_t, _OUT],
    "consort_replica_submit_all": [_HANDLE, c_char_p, c_size_t, _OUT],
    "consort_replica_submit_all_then": [_HANDLE, c_char_p, c_size_t, ON_REPLIES, c_void_p],
    "consort_pending_wait_all": [_HANDLE, c_int64, _OUT],
    "consort_replies_count": [_HANDLE, POINTER(c_size_t)],
    "consort_replies_at": [_HANDLE, c_size_t, POINTER(Reply)],
    "consort_replies_free": [_HANDLE],
    "consort_pending_wait": [_HANDLE, c_int64, POINTER(Bytes)],
    "consort_pending_free": [_HANDLE],
    "consort_replica_query": [_HANDLE, c_uint32, LOOK, c_void_p],
    "consort_replica_fresh_then": [_HANDLE, ON_FRESH, c_void_p],
    "consort_replica_applied": [_HANDLE, POINTER(c_uint64)],
    "consort_replica_check": [_HANDLE],
    "consort_log_open": [c_char_p, c_uint32, c_uint32, c_uint64, _OUT],
    "consort_log_next": [_HANDLE, POINTER(Record)],
    "consort_log_free": [_HANDLE],
    "consort_replica_leave": [_HANDLE, c_int64],
    "consort_replica_stop": [_HANDLE],
    "consort_replica_free": [_HANDLE],
}


def _load():
    name = os.environ.get("CONSORT_LIBRARY", SONAME)
    try:
        library = ctypes.CDLL(name)
    except OSError as cause:
        raise ImportError(f"{name} can't be loaded ({cause}): install libconsort with `cargo xtask install`, or set "
                          "CONSORT_LIBRARY to its path") from cause
    for function, parameters in FUNCTIONS.items():
        getattr(library, function).argtypes = parameters
        getattr(library, function).restype = c_int
    for text, parameters in (("consort_version", []), ("consort_last_error", []), ("consort_status_name", [c_int])):
        getattr(library, text).argtypes = parameters
        getattr(library, text).restype = c_char_p
    return library


library = _load()
