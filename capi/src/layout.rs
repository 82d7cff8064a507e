//! The structs and constants of `consort.h`, field by field. The test `abi` compares each offset and each number with what a C
//! compiler makes of the header.

#![allow(missing_docs, reason = "consort.h says what each field means")]

use std::ffi::{c_char, c_void};
use std::ptr::null;

use crate::border::{Context, Handle, In, Out, Text};

/// `consort_event.kind`.
pub const WAITING: u32 = 1;
pub const EVICTED: u32 = 2;
pub const VIEW: u32 = 3;
pub const MESSAGE: u32 = 4;
pub const SNAPSHOT: u32 = 5;
pub const RESTORE: u32 = 6;
pub const ENDED: u32 = 7;
pub const READ_POINT: u32 = 8;
pub const DIGEST: u32 = 9;
pub const STOPPED: u32 = 10;

/// `consort_group_options.guarantee` and the node's.
pub const ATOMIC: u32 = 0;
pub const AGREED: u32 = 1;
pub const FIFO: u32 = 2;
pub const DURABLE: u32 = 3;
pub const LOGGED: u32 = 4;

/// `consort_group_options.topology` and the node's.
pub const DIRECT: u32 = 0;
pub const CHAIN: u32 = 1;

/// `consort_node_options.fabric`.
pub const AUTO: u32 = 0;
pub const SHM: u32 = 1;
pub const TCP: u32 = 2;
pub const VERBS: u32 = 3;

/// `consort_node_options.wait`.
pub const ADAPTIVE: u32 = 0;
pub const SPIN: u32 = 1;
pub const BLOCK: u32 = 2;

/// `consort_node_options.role` and a member's.
pub const DATA: u32 = 0;
pub const WITNESS: u32 = 1;

/// What `consort_ask` asks.
pub const ASK_STATUS: u32 = 0;
pub const ASK_EXPLAIN: u32 = 1;

/// How `consort_replica_query` looks.
pub const LOCAL: u32 = 0;
pub const LINEARIZABLE: u32 = 1;

/// Where `consort_log_open` begins.
pub const FROM_INDEX: u32 = 0;
pub const FROM_STAMP: u32 = 1;

/// `consort_peer`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Peer {
    pub id: u32,
    pub reserved: u32,
    pub address: Text,
}

/// `consort_node_options`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NodeOptions {
    pub struct_size: usize,
    pub id: u32,
    pub role: u32,
    pub config_file: Text,
    pub cluster: Text,
    pub listen: Text,
    pub advertise: Text,
    pub peers: In<Peer>,
    pub peers_len: usize,
    pub join: In<Text>,
    pub join_len: usize,
    pub groups: In<GroupOptions>,
    pub groups_len: usize,
    pub key: In<u8>,
    pub key_len: usize,
    pub domain: Text,
    pub ring_bytes: u64,
    pub silence_ms: u64,
    pub quorum_within_ms: u64,
    pub start_within_ms: u64,
    pub slow_evict_ms: u64,
    pub digest_every: u64,
    pub listen_fd: i32,
    pub fabric: u32,
    pub guarantee: u32,
    pub wait: u32,
    pub state: u32,
    pub rejoin: u32,
    pub data: Text,
    pub topology: u32,
    pub reserved: u32,
    pub snapshot_every: u64,
}

impl NodeOptions {
    pub(crate) const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        id: 0,
        role: DATA,
        config_file: Text::NONE,
        cluster: Text::NONE,
        listen: Text::NONE,
        advertise: Text::NONE,
        peers: In::NONE,
        peers_len: 0,
        join: In::NONE,
        join_len: 0,
        groups: In::NONE,
        groups_len: 0,
        key: In::NONE,
        key_len: 0,
        domain: Text::NONE,
        ring_bytes: 0,
        silence_ms: 0,
        quorum_within_ms: 0,
        start_within_ms: 0,
        slow_evict_ms: 0,
        digest_every: 4096,
        listen_fd: -1,
        fabric: AUTO,
        guarantee: ATOMIC,
        wait: ADAPTIVE,
        state: 0,
        rejoin: 0,
        data: Text::NONE,
        topology: DIRECT,
        reserved: 0,
        snapshot_every: 0,
    };
}

/// `consort_group_options`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GroupOptions {
    pub struct_size: usize,
    pub name: Text,
    pub nodes: In<u32>,
    pub nodes_len: usize,
    pub ring_bytes: u64,
    pub shards: u32,
    pub replicas: u32,
    pub guarantee: u32,
    pub state: u32,
    pub topology: u32,
    pub reserved: u32,
    pub slow_evict_ms: i64,
}

impl GroupOptions {
    pub(crate) const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        name: Text::NONE,
        nodes: In::NONE,
        nodes_len: 0,
        ring_bytes: 0,
        shards: 0,
        replicas: 0,
        guarantee: ATOMIC,
        state: 0,
        topology: DIRECT,
        reserved: 0,
        slow_evict_ms: 0,
    };
}

/// `consort_group_info`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GroupInfo {
    pub struct_size: usize,
    pub ring_bytes: u64,
    pub shard: u32,
    pub index: u32,
    pub shards: u32,
    pub guarantee: u32,
    pub state: u32,
    pub reserved: u32,
}

/// `consort_stats`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stats {
    pub struct_size: usize,
    pub delivered: u64,
    pub sent: u64,
    pub system_calls: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub sleeps: u64,
    pub wakes: u64,
    pub fabric: [u8; 16],
    pub engine: [u8; 16],
}

/// `consort_room`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Room {
    pub data: *mut u8,
    pub len: usize,
    pub lent: u64,
}

/// `consort_message`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Message {
    pub data: In<u8>,
    pub len: usize,
}

/// `consort_delivered`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Delivered {
    pub view: u64,
    pub seq: u64,
}

/// `consort_member`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Member {
    pub node: u32,
    pub role: u32,
    pub incarnation: u64,
    pub address: *const c_char,
    pub domain: *const c_char,
}

/// `consort_shard`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Shard {
    pub members: *const u32,
    pub members_len: usize,
    pub learners: *const u32,
    pub learners_len: usize,
    pub since: u64,
    pub is_lost: u32,
    pub reserved: u32,
}

/// `consort_view`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct View {
    pub id: u64,
    pub members: *const Member,
    pub members_len: usize,
    pub shards: *const Shard,
    pub shards_len: usize,
}

/// `consort_event`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Event {
    pub kind: u32,
    pub shard: u32,
    pub node: u32,
    pub status: i32,
    pub view: u64,
    pub seq: u64,
    pub ticket: u64,
    pub number: u64,
    pub data: *const u8,
    pub len: usize,
    pub members: *const View,
    pub text: *const c_char,
    pub lent: u64,
    pub stamp: u64,
}

impl Event {
    pub(crate) const NONE: Self = Self {
        kind: 0,
        shard: 0,
        node: 0,
        status: 0,
        view: 0,
        seq: 0,
        ticket: 0,
        number: 0,
        data: null(),
        len: 0,
        members: null(),
        text: null(),
        lent: 0,
        stamp: 0,
    };
}

/// `consort_bytes`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bytes {
    pub data: *const u8,
    pub len: usize,
    pub lent: u64,
}

/// `consort_record`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Record {
    pub kind: u32,
    pub node: u32,
    pub index: u64,
    pub view: u64,
    pub seq: u64,
    pub stamp: u64,
    pub data: *const u8,
    pub len: usize,
    pub members: *const View,
}

impl Record {
    pub(crate) const NONE: Self =
        Self { kind: 0, node: 0, index: 0, view: 0, seq: 0, stamp: 0, data: null(), len: 0, members: null() };
}

/// `consort_reply`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reply {
    pub node: u32,
    pub status: i32,
    pub data: *const u8,
    pub len: usize,
    pub text: *const c_char,
}

/// `consort_update`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Update {
    pub data: *const u8,
    pub len: usize,
    pub view: u64,
    pub seq: u64,
    pub index: u64,
    pub incarnation: u64,
    pub node: u32,
    pub reserved: u32,
}

/// `consort_on_event`.
pub type OnEvent = Option<extern "C" fn(Context, *const Event)>;
/// `consort_on_outcome`.
pub type OnOutcome = Option<extern "C" fn(Context, i32, *const Delivered)>;
/// `consort_on_reply`.
pub type OnReply = Option<extern "C" fn(Context, i32, *const c_void, usize)>;
/// `consort_on_replies`.
pub type OnReplies = Option<extern "C" fn(Context, i32, *const Reply, usize)>;
/// `consort_on_fresh`.
pub type OnFresh = Option<extern "C" fn(Context, i32)>;
/// `consort_look`.
pub type Look = Option<extern "C" fn(Context, Context)>;
/// `consort_read_fn`.
pub type ReadFn = Option<extern "C" fn(Context, Out<u8>, usize, *mut usize) -> i32>;
/// `consort_write_fn`.
pub type WriteFn = Option<extern "C" fn(Context, usize, *mut u8, usize)>;
/// `consort_done_fn`.
pub type DoneFn = Option<extern "C" fn(Context)>;

/// `consort_machine`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Machine {
    pub struct_size: usize,
    pub context: Context,
    pub apply: Option<extern "C" fn(Context, *const Update, Handle) -> i32>,
    pub snapshot: Option<extern "C" fn(Context, Handle) -> i32>,
    pub restore: Option<extern "C" fn(Context, Handle) -> i32>,
    pub view_changed: Option<extern "C" fn(Context, *const View)>,
    pub free: DoneFn,
}

impl Machine {
    pub(crate) const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        context: Context::NONE,
        apply: None,
        snapshot: None,
        restore: None,
        view_changed: None,
        free: None,
    };
}
