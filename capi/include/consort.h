/* consort.h - atomic multicast with virtual synchrony, for C99 and C++.
 *
 * A group of processes multicasts messages, and every member delivers the same messages in the same order, all or
 * nothing, across crashes, joins and partitions. This file is the library's manual. Examples are in capi/examples of the
 * repository; link with what `pkg-config --cflags --libs consort` says.
 *
 * In short:
 *
 *     consort_node_options options;
 *     consort_node_options_init(sizeof options, &options);
 *     options.id = 1;
 *     options.listen = "10.0.0.1:7101";
 *     options.peers = peers, options.peers_len = 2;
 *     consort_node *node;
 *     if (consort_node_new(&options, &node) != CONSORT_OK)
 *         die(consort_last_error());
 *     consort_group *group;
 *     consort_node_group(node, NULL, 0, &group);
 *     consort_multicast(group, "hello", 5, NULL);
 *     for (consort_event event; consort_next(group, -1, &event) == CONSORT_OK; consort_release(&event))
 *         if (event.kind == CONSORT_MESSAGE)
 *             fwrite(event.data, 1, event.len, stdout);
 *     consort_group_free(group);
 *     consort_node_free(node);
 *
 * WHAT HOLDS FOR ALL FUNCTIONS
 *
 * Status. Every function that can fail returns a consort_status, CONSORT_OK or the reason. What it gives comes by the last
 *   parameters, which are written only if all went well. A place to write to must be there unless it says "may be NULL".
 *
 * Errors. After a failure consort_last_error() gives a sentence for people, which says what to do; each thread has its own.
 *
 * Handles. consort_node, consort_group, consort_outcome, consort_replica, consort_pending, consort_replies and consort_log are handles:
 *   made by a _new or another function that gives one, freed by its _free. They aren't addresses. A NULL, a freed handle or one of another
 *   type is refused (CONSORT_INVALID, CONSORT_BAD_HANDLE), also while another thread frees it: whoever is in a call goes on
 *   to its end. Handles may be used by any threads at once, unless their functions say otherwise.
 *
 * Loans. consort_room, consort_event and consort_bytes are structs of the program's, in which the library lends memory. The
 *   memory is the library's and dies when the loan is given back, by any thread, with one of the functions that say so.
 *   Giving it back twice is refused. Two threads must not use the same struct at once.
 *
 * Pointers that the program passes must be valid during the call, and are not kept longer, unless it says so. NULL is
 *   refused where something is needed; another bad pointer can't be known.
 *
 * Strings end with a zero and are UTF-8. Addresses are like "10.0.0.1:7101" or "[fd00::1]:7101"; a host name is looked up.
 *
 * Times are in milliseconds, 64 bits. A timeout_ms of -1 waits for ever, 0 doesn't wait. Sizes are in bytes.
 *
 * Callbacks are called on the thread that each says. In a callback nothing blocks: a call that would have to wait there
 *   returns CONSORT_WOULD_DEADLOCK, and so do consort_end, those that end a node or a replica, and those that ask a node how it is
 *   (consort_node_stats, consort_node_status, consort_ask). A callback must return: no longjmp, no C++ exception may leave it.
 *
 * Structs that begin with struct_size may grow. Set them up with their _init function (or set struct_size to their sizeof,
 *   where there is none): a program goes on to work with a newer library. Fields called reserved are 0.
 *
 * Processes. After fork the child has neither the library's threads nor its links: there every function returns
 *   CONSORT_FORKED, until it calls exec. Fork first, use the library then.
 *
 * Bugs of the library itself don't take the program down: CONSORT_PANICKED, and that handle can only be freed.
 */
#ifndef CONSORT_H
#define CONSORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header. Before 1.0 a minor version may change the API; the soname changes when the ABI does. */
#define CONSORT_VERSION_MAJOR 0
#define CONSORT_VERSION_MINOR 1
#define CONSORT_VERSION_PATCH 0

/* ---------------------------------------------------------------------------------------------------------- status */

/* How a call went. Numbers never change their meaning; newer libraries may have more. */
typedef enum consort_status {
    CONSORT_OK = 0,
    CONSORT_TIMED_OUT = 1,      /* it isn't there in that time; ask again. No failure */
    CONSORT_FULL = 2,           /* the ring is full: a member has not taken enough yet; try again. No failure */
    CONSORT_CHANGING = 3,       /* the members agree on the next view just now; try again. No failure */
    CONSORT_NOT_STARTED = 4,    /* the group has no view yet; try again. No failure */
    CONSORT_INVALID = 5,        /* an argument can't be */
    CONSORT_BAD_HANDLE = 6,     /* a handle that was freed, or of another type; a loan that was given back */
    CONSORT_STOPPED = 7,        /* the node does nothing more */
    CONSORT_EVICTED = 8,        /* ... because the others went on without it */
    CONSORT_NOT_MEMBER = 9,     /* this node isn't a member of the shard, or whom a message is for isn't */
    CONSORT_TOO_LONG = 10,      /* the message never fits in these rings */
    CONSORT_ENDED = 11,         /* consort_end was called */
    CONSORT_WOULD_DEADLOCK = 12,/* the thread would wait for itself: in a callback, or driving the node */
    CONSORT_CONFIG = 13,        /* the options can't be used */
    CONSORT_MACHINE = 14,       /* the machine refuses something: an address, memory, a thread, a descriptor */
    CONSORT_UNKNOWN = 15,       /* it isn't known whether it was delivered or applied: find out before you repeat it */
    CONSORT_LATE = 16,          /* it did not leave in order in that time, and is stopped without */
    CONSORT_BUSY = 17,          /* something else uses it, or too much is lent */
    CONSORT_REFUSED = 18,       /* that can't be had of this kind of node, group or peer */
    CONSORT_HALTED = 19,        /* the replica stopped: its state can't be believed any more */
    CONSORT_UNREACHED = 20,     /* no connection to the node that was asked */
    CONSORT_FORKED = 21,        /* this is the child of a fork */
    CONSORT_PANICKED = 22       /* a bug of the library; free the handle, and report it */
} consort_status;

/* The version of the library, like "0.1.0". Never NULL; lives for ever. Any thread. */
const char *consort_version(void);

/* What this thread's last call that failed had to say: a sentence for people. "" before the first. Never NULL. It lives until this
 * thread's next call that fails, or its end. */
const char *consort_last_error(void);

/* The name of a status, like "CONSORT_FULL"; "unknown" for a number that is none. Lives for ever. */
const char *consort_status_name(consort_status status);

/* ----------------------------------------------------------------------------------------------------------- types */

typedef struct consort_node consort_node;       /* this process's place in the cluster. Any threads */
typedef struct consort_group consort_group;     /* a group at a node, or one of its shards. Any threads */
typedef struct consort_outcome consort_outcome; /* what becomes of one message. One thread at a time */
typedef struct consort_replica consort_replica; /* a state machine at a member. Any threads */
typedef struct consort_pending consort_pending; /* the reply to an update, or those of all members. One thread at a time */
typedef struct consort_replies consort_replies; /* what all members replied to an update. Any threads */
typedef struct consort_log consort_log;         /* a durable shard's log, to be read. One thread at a time */
typedef struct consort_writer consort_writer;   /* where a machine's functions write. During their call */
typedef struct consort_reader consort_reader;   /* where a machine's restore reads. During its call, on its thread */

/* When a message is delivered. */
enum {
    CONSORT_ATOMIC = 0, /* in one order, and only once every member has it (the default) */
    CONSORT_AGREED = 1, /* in one order; what a member delivered just before it crashed may be lost to the others */
    CONSORT_FIFO = 2,   /* each sender's in its order, no order between senders */
    CONSORT_DURABLE = 3, /* as CONSORT_ATOMIC, and only once every member has it on disk; needs `data`. See DURABLE GROUPS */
    CONSORT_LOGGED = 4  /* when CONSORT_ATOMIC would, and written down: its outcome waits until every member has it on disk; needs `data` */
};

/* Which way the bytes of messages go. All nodes of a cluster use the same for a group. */
enum {
    CONSORT_DIRECT = 0, /* from their sender to every member: one hop (the default) */
    CONSORT_CHAIN = 1   /* from member to member, so that every link carries each byte about once: where messages are large, or a member's
                           link is the bottleneck. Over TCP; over shared memory it changes nothing, over RDMA it is refused. A group along a
                           chain has no messages for some of its members (consort_reserve_to) */
};

/* How messages travel. All nodes of a cluster use the same. */
enum {
    CONSORT_AUTO = 0,  /* for each link the best that both ends have: shared memory, RDMA, TCP (the default) */
    CONSORT_SHM = 1,   /* shared memory: all nodes on one machine */
    CONSORT_TCP = 2,   /* TCP, over io_uring where the kernel has it */
    CONSORT_VERBS = 3  /* RDMA; only in libraries that were built with it */
};

/* What the node's engine does while nothing happens. */
enum {
    CONSORT_ADAPTIVE = 0, /* yields at first, then sleeps (the default) */
    CONSORT_SPIN = 1,     /* never sleeps: for a core that is this node's alone */
    CONSORT_BLOCK = 2     /* sleeps at once */
};

/* What a member does. */
enum {
    CONSORT_DATA = 0,   /* holds data and votes on views (the default) */
    CONSORT_WITNESS = 1 /* only votes */
};

/* Another node. */
typedef struct consort_peer {
    uint32_t id;
    uint32_t reserved;
    const char *address; /* where its control links are accepted: its `listen` */
} consort_peer;

/* A group beside the main one, the same at all nodes. Set up by consort_group_options_init. */
typedef struct consort_group_options {
    size_t struct_size;
    const char *name;      /* 1 to 32 letters, digits, '-', '_', '.'; no two groups have the same */
    const uint32_t *nodes; /* its members, as far as they are in the view; NULL: all nodes that hold data */
    size_t nodes_len;
    uint64_t ring_bytes;   /* each member's ring, a power of two; 0: 1 MiB. A message takes at most half of it */
    uint32_t shards;       /* not 0: split in so many shards, which the library lays out over the nodes, */
    uint32_t replicas;     /* with so many replicas each */
    uint32_t guarantee;    /* CONSORT_ATOMIC, CONSORT_AGREED, CONSORT_FIFO, CONSORT_DURABLE or CONSORT_LOGGED */
    uint32_t state;        /* not 0: who joins gets the application's state first, see CONSORT_SNAPSHOT */
    uint32_t topology;     /* CONSORT_DIRECT or CONSORT_CHAIN */
    uint32_t reserved;
    int64_t slow_evict_ms; /* a member that stands still in it for so long is left out; -1: the group waits for it; 0: as the node's options
                              say. Nodes may have it differently: of a group's members the shortest time counts. See SLOW MEMBERS */
} consort_group_options;

/* What a node is. Set up by consort_node_options_init, which puts in what holds if nothing is said: then set `id` and what else you need. */
typedef struct consort_node_options {
    size_t struct_size;
    uint32_t id;             /* its name in the cluster, from 1, which no other node has */
    uint32_t role;           /* CONSORT_DATA or CONSORT_WITNESS */
    const char *config_file; /* NULL, or a TOML file; then `id` may be 0, and what is set here comes on top */
    const char *cluster;     /* nodes of different clusters refuse each other; NULL: "consort" */
    const char *listen;      /* where its control links are accepted; NULL: 127.0.0.1 and a port of the kernel's choice */
    const char *advertise;   /* the address that peers reach it by, where that isn't `listen`; NULL: `listen` */
    const consort_peer *peers; /* the other members of the first view: every founder lists all others */
    size_t peers_len;
    const char *const *join; /* to join a group that runs instead: addresses of some members */
    size_t join_len;
    const consort_group_options *groups; /* beside the main group, which is always there; the same at all nodes */
    size_t groups_len;
    const uint8_t *key;      /* a secret of the cluster, 16 to 4096 bytes; NULL: none */
    size_t key_len;
    const char *domain;      /* what this node fails with, a rack or a zone; 1 to 16 characters; NULL: none */
    uint64_t ring_bytes;     /* each member's ring in the main group, a power of two; 0: 4 MiB */
    uint64_t silence_ms;     /* how long a member may say nothing before it is taken for gone; 0: 1000 */
    uint64_t quorum_within_ms; /* how long this node tries to reach a majority before it gives up; 0: 10000 */
    uint64_t start_within_ms;  /* gives up if the group hasn't started by then; 0: never */
    uint64_t slow_evict_ms;  /* not 0: a member that stands still for so long is left out, in the main group and in those that don't say
                                otherwise; 0: the group waits. See SLOW MEMBERS */
    uint64_t digest_every;   /* for consort_replica_new: states are compared after every so many updates; 0: never; 4096 after init */
    int32_t listen_fd;       /* a TCP socket that listens already, instead of `listen`; -1: none. The library makes a descriptor of its own of
                                it (dup): the program's stays the program's, to be closed once the node has started; while any is open
                                the address is taken */
    uint32_t fabric;         /* CONSORT_AUTO, CONSORT_SHM, CONSORT_TCP, CONSORT_VERBS */
    uint32_t guarantee;      /* of the main group */
    uint32_t wait;           /* CONSORT_ADAPTIVE, CONSORT_SPIN, CONSORT_BLOCK */
    uint32_t state;          /* not 0: as in consort_group_options, of the main group */
    uint32_t rejoin;         /* not 0: when the others went on without this node, it joins again by itself; see CONSORT_EVICTED_EVENT */
    const char *data;        /* the directory in which its CONSORT_DURABLE groups are written down: no other node's, and made if it isn't there. If
                                relative, it is in the directory that the process works in. NULL: none, and none of its groups can be durable */
    uint32_t topology;       /* of the main group: CONSORT_DIRECT or CONSORT_CHAIN */
    uint32_t reserved;
    uint64_t snapshot_every; /* when the log of a CONSORT_DURABLE shard has grown by so many bytes, its application is asked for a snapshot, if it has
                                a state: see CONSORT_SNAPSHOT; 0: 256 MiB */
} consort_node_options;

/* A member of a view. */
typedef struct consort_member {
    uint32_t node;
    uint32_t role;        /* CONSORT_DATA or CONSORT_WITNESS */
    uint64_t incarnation; /* which of its lives: another after each start */
    const char *address;
    const char *domain;   /* "" if it has none */
} consort_member;

/* Who has a shard, in a view. */
typedef struct consort_shard {
    const uint32_t *members;  /* in rank order */
    size_t members_len;
    const uint32_t *learners; /* get its state, to become members then */
    size_t learners_len;
    uint64_t since;           /* the view with which its session began */
    uint32_t is_lost;         /* not 0: its last member was lost, and its state with it */
    uint32_t reserved;
} consort_shard;

/* An agreed membership. */
typedef struct consort_view {
    uint64_t id; /* a later view has a greater one */
    const consort_member *members; /* in rank order */
    size_t members_len;
    const consort_shard *shards;   /* by the shard's number; 0 is the main group */
    size_t shards_len;
} consort_view;

/* What an event tells. A newer library may have more: pass over those that you don't know. */
enum {
    CONSORT_WAITING = 1,       /* the group can't start yet: `text` says for whom it waits */
    CONSORT_EVICTED_EVENT = 2, /* the others went on without this node, which joins again (`rejoin`): `text` says why. What was delivered
                                  meanwhile is missed */
    CONSORT_VIEW = 3,          /* a view is installed: `members`. After all messages of the one before, at every member */
    CONSORT_MESSAGE = 4,       /* `data`, `len`, `node` (who sent it), `view`, `seq`, `ticket`; in a durable group `stamp` */
    CONSORT_SNAPSHOT = 5,      /* `node` joins and needs the state as it is after all that was told so far, or, in a durable group, this node's log
                                  is to go on from it (`node` is this one): consort_snapshot_give, _stream or _refuse. Released without an
                                  answer it is refused */
    CONSORT_RESTORE = 6,       /* here is a state to begin with, `number` bytes: another member's, where this node joins, or of a durable group the
                                  one that lies beside its log. Read it by consort_restore_read, make it yours instead of whatever there was, then
                                  consort_restore_finish. Nothing more is told before. Released without that the node stops */
    CONSORT_ENDED_EVENT = 7,   /* `node` sends nothing more: it called consort_end, or leaves */
    CONSORT_READ_POINT = 8,    /* the point `number`, and all before it, are reached: see consort_read_point */
    CONSORT_DIGEST = 9,        /* `node` has published `number`: see consort_publish_digest */
    CONSORT_STOPPED_EVENT = 10 /* only to callbacks of consort_listen, and the last: the node stopped; `status`, `text` */
};

/* Something that happened, in its place in the order. What its pointers point to is lent, until consort_release. */
typedef struct consort_event {
    uint32_t kind;
    uint32_t shard;   /* the number of the shard that it is of, as views have it */
    uint32_t node;
    int32_t status;
    uint64_t view;
    uint64_t seq;     /* the message's place in the order of its view, the same at all members (but under CONSORT_FIFO) */
    uint64_t ticket;  /* which of this node's own sends it is, as consort_send told; 0 for others' */
    uint64_t number;
    const uint8_t *data; /* in ring memory: its sender can't reuse that until it is released */
    size_t len;
    const consort_view *members;
    const char *text;
    uint64_t lent;    /* the library's */
    uint64_t stamp;   /* a message of a durable group: when it was sent, as all members have it, also after they have started again: nanoseconds
                         since 1970, and greater than those of all messages before it in its group or shard. Else 0 */
} consort_event;

/* Room for a message, in the ring itself. */
typedef struct consort_room {
    uint8_t *data; /* `len` bytes to be written; what is there is old */
    size_t len;
    uint64_t lent; /* the library's */
} consort_room;

/* A message of a batch that is to be sent. */
typedef struct consort_message {
    const uint8_t *data; /* NULL only where len is 0 */
    size_t len;
} consort_message;

/* Where a message was delivered. */
typedef struct consort_delivered {
    uint64_t view;
    uint64_t seq;
} consort_delivered;

/* Bytes that the library made. A zero follows them, so that a text is a string. Given back by consort_bytes_free. */
typedef struct consort_bytes {
    const uint8_t *data;
    size_t len;
    uint64_t lent; /* the library's */
} consort_bytes;

/* DURABLE GROUPS
 *
 * In a group with CONSORT_DURABLE each member writes each message to a log in its own directory, `data` of the node's options. A message is
 * delivered, and its outcome CONSORT_OK, once all members have flushed it.
 *
 * With CONSORT_LOGGED it is delivered as soon as all members have received it, without waiting for a disk, and its outcome is CONSORT_OK when all have
 * flushed it: programs go on at the speed of the network, and who sent a message knows when nothing can take it back any more. Until then it is lost if
 * all members are, at once: a program tells nobody outside of what hangs on it before the outcome is there. A member whose process alone outlives
 * such a loss, and was told what the group then lacks, is CONSORT_STOPPED when it comes back; started anew it has what the group has.
 * consort_outcome_wait_stable() says, with either, when all members have received a message.
 *
 * When members come again, one or all of them, each with its own `id` and `data`, the program is told everything once more: the views and
 * messages of before, the same in the same order with the same `view`, `seq`, `node` and `stamp`, and then what is new. A message that is told
 * again has the ticket 0, also to who sent it. So a program that keeps its state in memory builds it anew from the events, as a replica does by
 * its machine's `apply`; one that keeps it elsewhere notes the stamp of the last message that is in it, and passes over messages up to that.
 *
 * After the loss of all, the group begins again by itself when a majority of the newest view's members are there, and a log of each shard that is
 * known to have everything; until then CONSORT_WAITING says who is missing, and why. Who had left in order before isn't counted; where all leave
 * one by one, the last has to come again. Configure every node with `peers` for that: who came by `join` alone begins nothing.
 *
 * A node whose disk fails to write stops: CONSORT_STOPPED, and consort_last_error() says why. The others go on without it. A log that is
 * damaged is refused at the start, CONSORT_MACHINE: `consort log verify` and `consort log repair` see to it. What is in a log can be read
 * without a node: consort_log_open.
 */

/* SLOW MEMBERS
 *
 * A group waits for a member that doesn't keep up: what it hasn't taken fills the rings, and senders wait. `slow_evict_ms` of the node or of a
 * group sets a bound: whoever stands still for so long is left out of the next view, CONSORT_EVICTED, and the others go on. A member stands still
 * - in a group, where its program takes no event although some wait. So does one whose callback (consort_listen) or machine (`apply`,
 *   `restore`) takes longer than the bound for one event while others wait;
 * - in all groups of its node, where the engine does nothing at all. That of a driven node runs within consort_poll, _drive and _wait alone: a
 *   callback of it, and whatever is done between two calls, that takes longer than the shortest bound of any of the node's groups has
 *   the node left out, also where the program works at a state that it restores. Hand work that may take so long to another thread, and go on
 *   polling: consort_keep keeps a message for that, and a CONSORT_RESTORE. Or take a bound that is longer than any of this.
 */

/* ----------------------------------------------------------------------------------------------------------- nodes */

/* Puts into options what holds if nothing is said. struct_size is sizeof (consort_node_options), as the program has it. */
consort_status consort_node_options_init(size_t struct_size, consort_node_options *options);

/* The same of a group: struct_size is sizeof (consort_group_options). */
consort_status consort_group_options_init(size_t struct_size, consort_group_options *options);

/* Starts a node, with threads of its own. Returns before its peers are there; CONSORT_VIEW says that the group runs. Blocks only to look up
 * host names, and to read the logs of durable groups. Free it with consort_node_free.
 * CONSORT_CONFIG: the options can't be used; a durable group without `data` for one. CONSORT_MACHINE: the address is taken, `data` is another
 * node's or in use, a log in it is damaged, or the machine refuses what it needs. */
consort_status consort_node_new(const consort_node_options *options, consort_node **node);

/* Starts a node that the program drives, by consort_drive or consort_poll: only control links have a thread of the library. No message changes
 * threads, so this is the fastest way. Otherwise like consort_node_new. */
consort_status consort_driven_new(const consort_node_options *options, consort_node **node);

/* Its number in the cluster. */
consort_status consort_node_id(consort_node *node, uint32_t *id);

/* Leaves the cluster in order: all that this node sent is delivered, then the others agree on a view without it. Events that were not
 * taken are dropped: to see all that others have to say, call consort_end and take events until all have ended, then leave. Blocks for as
 * long, timeout_ms at most. Whoever waits on the node elsewhere gets CONSORT_STOPPED. Free the node then.
 * A driven node: messages that come meanwhile are dropped.
 * CONSORT_LATE: not in that time. CONSORT_STOPPED: it had stopped. Either way it is stopped now. */
consort_status consort_node_leave(consort_node *node, int64_t timeout_ms);

/* Stops at once: the others find it lost. Doesn't block; of a driven node it waits for the thread of its control links. Free the node
 * then. */
consort_status consort_node_stop(consort_node *node);

/* Stops the node if it hasn't left, waits for its threads (no callback of consort_listen is called after this), and frees it. Its groups'
 * handles stay, say CONSORT_STOPPED, and are freed by themselves. Blocks for calls on the node that other threads are in, which end with
 * it. CONSORT_BUSY: a replica lives on it. */
consort_status consort_node_free(consort_node *node);

/* What a node counted since it started. Set struct_size before. */
typedef struct consort_stats {
    size_t struct_size;
    uint64_t delivered;    /* messages delivered here */
    uint64_t sent;         /* of these, this node's own */
    uint64_t system_calls; /* the fabric's */
    uint64_t bytes_out;    /* handed to links; 0 over shared memory, where nothing is copied */
    uint64_t bytes_in;
    uint64_t sleeps;
    uint64_t wakes;        /* of sleeping peers */
    char fabric[16];       /* "shm", "tcp", "verbs"; of CONSORT_AUTO what its links run over, such as "shm+tcp" */
    char engine[16];       /* what drives it: "futex", "io_uring", "epoll", "rc"; of CONSORT_AUTO such as "futex+io_uring" */
} consort_stats;

/* Asks the engine, and blocks until it has answered. CONSORT_WOULD_DEADLOCK in a callback. */
consort_status consort_node_stats(consort_node *node, consort_stats *stats);

/* Where the node stands, in lines for people: its phase, view, for whom it waits, what keeps it. Blocks until the engine has
 * answered. Free the text with consort_bytes_free. CONSORT_WOULD_DEADLOCK in a callback. */
consort_status consort_node_status(consort_node *node, consort_bytes *text);

enum {
    CONSORT_ASK_STATUS = 0, /* how it stands */
    CONSORT_ASK_EXPLAIN = 1 /* what it waits for, and for whom */
};

/* Asks a node of any process that listens at `address`, without being one; the answer is in JSON. key is the cluster's secret, or NULL.
 * Blocks. Free the answer with consort_bytes_free.
 * CONSORT_UNREACHED, CONSORT_TIMED_OUT: no answer. CONSORT_REFUSED: another key, another release, no node.
 * CONSORT_WOULD_DEADLOCK in a callback. */
consort_status consort_ask(const char *address, const uint8_t *key, size_t key_len, uint32_t question, int64_t timeout_ms,
                           consort_bytes *json);

/* Gives bytes back. The struct is cleared. */
consort_status consort_bytes_free(consort_bytes *bytes);

/* ---------------------------------------------------------------------------------------------------------- groups */

/* A group of the node, by name; NULL is the main group. shard is 0, or one of its shards'. Each call gives another handle of the same
 * stream; free each with consort_group_free, before or after the node. */
consort_status consort_node_group(consort_node *node, const char *name, uint32_t shard, consort_group **group);

/* Frees the handle. The node stays in the group, whose events have to be taken by somebody: where nobody takes any the group stands
 * still in time, for all its members. */
consort_status consort_group_free(consort_group *group);

/* What a group is. Set struct_size before. */
typedef struct consort_group_info {
    size_t struct_size;
    uint64_t ring_bytes;
    uint32_t shard;     /* its number in the cluster, as views and events have it */
    uint32_t index;     /* which of the group's shards it is, from 0 */
    uint32_t shards;    /* how many the group has */
    uint32_t guarantee;
    uint32_t state;
    uint32_t reserved;
} consort_group_info;

consort_status consort_group_info_of(consort_group *group, consort_group_info *info);

/* The longest message that fits. CONSORT_NOT_STARTED: not known before the first view. */
consort_status consort_group_max_len(consort_group *group, size_t *max_len);

/* A descriptor that is readable while there may be events: for poll, epoll and the like. When it is, take events with a timeout_ms
 * of 0 until CONSORT_TIMED_OUT, which makes it unreadable again. It stays readable when the node has stopped. It is the library's: don't read,
 * write or close it. It is there as long as the node or the handle that gave it; take it out of your loop before you free the last of the
 * two, for its number may be another descriptor's then.
 * CONSORT_REFUSED: the node is driven by the program. CONSORT_STOPPED: the node was freed before this handle was first asked. */
consort_status consort_group_fd(consort_group *group, int *fd);

/* --------------------------------------------------------------------------------------------------------- sending */

/* Lends room for a message of len bytes, in the ring: write it, then consort_send, consort_send_tracked or consort_cancel. Until then
 * nothing that this node reserved later goes out, so don't keep it. Blocks until the group has started, or has come through a
 * change of the view, and there is room.
 * CONSORT_TOO_LONG, CONSORT_NOT_MEMBER, CONSORT_ENDED, CONSORT_STOPPED; CONSORT_WOULD_DEADLOCK in a callback or on the thread that drives
 * the node, where it would have to wait. */
consort_status consort_reserve(consort_group *group, size_t len, consort_room *room);

/* The same, and never blocks: CONSORT_FULL, CONSORT_CHANGING, CONSORT_NOT_STARTED when it isn't possible just now. */
consort_status consort_try_reserve(consort_group *group, size_t len, consort_room *room);

/* As consort_reserve, for a message to some of the members: count node numbers at nodes, at most 64. It has a place in the one order that all
 * members agree on, and is delivered to these alone; the others are not sent its bytes. This node gets it only if it is in the list. If the
 * view changes first, it goes to those in the list who remain. The longest message is 8 bytes shorter than others.
 * CONSORT_NOT_MEMBER: one of them is none; and CONSORT_INVALID: an empty list; CONSORT_REFUSED: the group's guarantee isn't
 * CONSORT_ATOMIC, or its messages travel along a chain. */
consort_status consort_reserve_to(consort_group *group, const uint32_t *nodes, size_t count, size_t len, consort_room *room);

/* The same, and never blocks, like consort_try_reserve. */
consort_status consort_try_reserve_to(consort_group *group, const uint32_t *nodes, size_t count, size_t len, consort_room *room);

/* Multicasts the message that was written there, to all members of the group, this one too, or to those that the room was reserved for. Never
 * blocks. The room is given back, and its struct cleared. ticket (may be NULL) names the send, over all views: its event has it. Any
 * thread. */
consort_status consort_send(consort_room *room, uint64_t *ticket);

/* The same, and tells what becomes of it. Free the outcome with consort_outcome_free, or by consort_outcome_then. */
consort_status consort_send_tracked(consort_room *room, consort_outcome **outcome);

/* Gives room back, unsent. */
consort_status consort_cancel(consort_room *room);

/* Multicasts a copy of data. Blocks, and fails, like consort_reserve. ticket may be NULL. For messages of a few hundred bytes this one call is
 * cheaper than the two that write in place. */
consort_status consort_multicast(consort_group *group, const void *data, size_t len, uint64_t *ticket);

/* The same, and never blocks, like consort_try_reserve. */
consort_status consort_try_multicast(consort_group *group, const void *data, size_t len, uint64_t *ticket);

/* Multicasts copies of count messages, in their order; for small ones that is cheaper than a call for each. A batch is no unit: between two
 * of its messages there may be others' in the order, and a view may end. Blocks like consort_reserve, until all are sent.
 * How many were sent stands in *sent: if it is fewer than count, the next of them can't be sent, and a call with that one first says why. A
 * call that fails has sent none. tickets is NULL, or an array of count: tickets of those that were sent are written there, and the rest of it
 * is untouched.
 * As consort_multicast, and CONSORT_INVALID: the first has a length, and no data. In a callback, or on the thread that drives the node, it
 * sends what there is room for, and if there is none returns CONSORT_WOULD_DEADLOCK. */
consort_status consort_multicast_many(consort_group *group, const consort_message *messages, size_t count, uint64_t *tickets, size_t *sent);

/* The same, and never blocks: it sends as many as there is room for. CONSORT_FULL, CONSORT_CHANGING, CONSORT_NOT_STARTED when there is room for
 * none just now. */
consort_status consort_try_multicast_many(consort_group *group, const consort_message *messages, size_t count, uint64_t *tickets, size_t *sent);

/* Writes a message, all of it: len bytes at data, where anything may lie before. index says which of the batch it is. It is to wait for nothing, for
 * what other threads send in this group waits for it; calls of this library that would have to wait refuse (CONSORT_WOULD_DEADLOCK). */
typedef void (*consort_write_fn)(void *context, size_t index, void *data, size_t len);

/* As consort_multicast_many, of count messages that write writes in place, in the ring: it is called for each that there is room for, with its
 * length, which is one of lengths. */
consort_status consort_write_many(consort_group *group, const size_t *lengths, size_t count, consort_write_fn write, void *context, uint64_t *tickets, size_t *sent);

/* The same, and never blocks, like consort_try_multicast_many. */
consort_status consort_try_write_many(consort_group *group, const size_t *lengths, size_t count, consort_write_fn write, void *context, uint64_t *tickets, size_t *sent);

/* Multicasts a copy of data to some of the members: see consort_reserve_to. ticket may be NULL. */
consort_status consort_multicast_to(consort_group *group, const uint32_t *nodes, size_t count, const void *data, size_t len, uint64_t *ticket);

/* As consort_multicast, and tells what becomes of it. */
consort_status consort_multicast_tracked(consort_group *group, const void *data, size_t len, consort_outcome **outcome);

/* Tells the members that nothing more comes from here: CONSORT_ENDED_EVENT there, after all that was sent. Blocks like
 * consort_reserve; calling it again changes nothing. */
consort_status consort_end(consort_group *group);

/* Asks for a read point: a place in this node's events at which all was told that any member had been told before this call. A state that is
 * kept by applying messages is fresh enough there for a linearizable read. Costs a round trip and no message. Never blocks:
 * CONSORT_READ_POINT comes with this number or a greater one. CONSORT_REFUSED: the group is CONSORT_AGREED or CONSORT_FIFO. */
consort_status consort_read_point(consort_group *group, uint64_t *point);

/* Publishes a word to the other members: CONSORT_DIGEST there. Only the last counts. Never blocks. */
consort_status consort_publish_digest(consort_group *group, uint64_t digest);

/* -------------------------------------------------------------------------------------------------------- outcomes */

/* Waits until it is known what became of a message. With a timeout_ms of 0 it only looks.
 * CONSORT_OK: it was delivered, here and as far as the guarantee says everywhere; `delivered` (may be NULL) says where. With CONSORT_DURABLE
 * that is: it is on disk at every member, and stays in its place in the order when all are lost and come again.
 * CONSORT_TIMED_OUT: not known yet. CONSORT_UNKNOWN: the node stopped or was left out before; others may have delivered it.
 * CONSORT_NOT_MEMBER: nobody has delivered it, nor will. */
consort_status consort_outcome_wait(consort_outcome *outcome, int64_t timeout_ms, consort_delivered *delivered);

/* The same of the step before, in a CONSORT_DURABLE or CONSORT_LOGGED group: CONSORT_OK once all members have received the message and it has its place
 * in the order, while their disks are at it. It stays CONSORT_OK, whatever becomes of the message. In other groups as consort_outcome_wait(). */
consort_status consort_outcome_wait_stable(consort_outcome *outcome, int64_t timeout_ms, consort_delivered *delivered);

/* What became of it: the status as consort_outcome_wait returns it, and where it was delivered if so. `delivered` dies with the call. */
typedef void (*consort_on_outcome)(void *context, consort_status status, const consort_delivered *delivered);

/* Has on_outcome called once: on the engine's thread, which delivers nothing meanwhile, so be quick; or, if it is known already, on this one
 * before this returns. Frees the outcome. */
consort_status consort_outcome_then(consort_outcome *outcome, consort_on_outcome on_outcome, void *context);

/* Loses interest in what becomes of the message, not the message. */
consort_status consort_outcome_free(consort_outcome *outcome);

/* ---------------------------------------------------------------------------------------------------------- events */

/* The next event of a group. Waits for it, timeout_ms at most. Several threads may call it: each event goes to one of them. Give the
 * event back with consort_release, soon: a message's sender can't reuse its room, nor any that came after it, before.
 * CONSORT_TIMED_OUT: none in that time. CONSORT_STOPPED, CONSORT_EVICTED: the node stopped, and all events before were taken. */
consort_status consort_next(consort_group *group, int64_t timeout_ms, consort_event *event);

/* Gives an event back, on any thread. What it points to is gone, and the struct is cleared. */
consort_status consort_release(consort_event *event);

/* The next events of a group, in their order: those that are there, at most as many as `most`, for which there is room at `events`. Waits for the
 * first, timeout_ms at most, and for no other; *taken says how many there are, and the rest of the array is untouched. For many small messages
 * that is cheaper than a call for each. Otherwise as consort_next: each is lent by itself, and given back by consort_release, or together
 * with others by consort_release_many.
 * CONSORT_INVALID: `most` is 0. */
consort_status consort_next_many(consort_group *group, int64_t timeout_ms, consort_event *events, size_t most, size_t *taken);

/* Gives count events back, of whichever groups, on any thread. What they point to is gone, and the structs are cleared; those that
 * consort_release has cleared are passed over. Never blocks.
 * CONSORT_BAD_HANDLE: one of them is not lent, and its struct is left as it is; the others are given back all the same. */
consort_status consort_release_many(consort_event *events, size_t count);

/* An event, lent for the call. */
typedef void (*consort_on_event)(void *context, const consort_event *event);

/* Has on_event called with each event of the group, on a thread of the library's own, from now on until CONSORT_STOPPED_EVENT, which is the
 * last. Don't call consort_next beside it: it would get some of the events. Once for a handle; it goes on when the handle is freed.
 * While the callback doesn't return nothing more of this group is told, and the group waits.
 * CONSORT_BUSY: by this handle it listens already. CONSORT_STOPPED: the node was freed. */
consort_status consort_listen(consort_group *group, consort_on_event on_event, void *context);

/* In a callback: keeps the event past it, without a copy. Give `kept` back with consort_release. The callback's own struct is not to be
 * kept by itself. */
consort_status consort_keep(const consort_event *event, consort_event *kept);

/* On CONSORT_SNAPSHOT: gives the state, a copy of data. Never blocks. Only the first answer counts. */
consort_status consort_snapshot_give(const consort_event *event, const void *data, size_t len);

/* Writes the next piece of a state to buffer, at most len bytes, and how many to *got; 0 is the end. Gives 0; another number is a failure,
 * and the joiner asks another member, or the log grows on. */
typedef int (*consort_read_fn)(void *context, uint8_t *buffer, size_t len, size_t *got);

/* Called when context is needed no more. */
typedef void (*consort_done_fn)(void *context);

/* On CONSORT_SNAPSHOT: gives the state piece by piece, as fast as the joiner takes it. read is called on a thread of the library's own, later,
 * and must give the state as it is now: copy it before, or share what doesn't change. done (may be NULL) is called once, after the last
 * read, which may be after the node's end. */
consort_status consort_snapshot_stream(const consort_event *event, consort_read_fn read, consort_done_fn done, void *context);

/* On CONSORT_SNAPSHOT: gives no state, and says why. */
consort_status consort_snapshot_refuse(const consort_event *event, const char *reason);

/* On CONSORT_RESTORE: reads on in the state, at most len bytes, and says how many; 0 is the end. Blocks for a file.
 * CONSORT_MACHINE: it can't be read, or isn't what was written. */
consort_status consort_restore_read(const consort_event *event, uint8_t *buffer, size_t len, size_t *got);

/* On CONSORT_RESTORE: the state is restored; go on. Releases the event: consort_release is not to be called for it. */
consort_status consort_restore_finish(const consort_event *event);

/* ----------------------------------------------------------------------------------------------------- driven nodes */

/* A driven node is one thread's: while that is in consort_poll, consort_drive or consort_wait, also in its callbacks, whatever needs the node
 * returns CONSORT_WOULD_DEADLOCK: these three, consort_node_group, _leave, _stop, _free, _stats and _status. Groups' handles, once there, are
 * for any threads, to send; events come by consort_poll and consort_drive alone. */

/* One turn of a driven node: takes in what has come, sends what was committed, and calls on_event on this thread for what is due, of all
 * groups (`shard` tells which). How long a callback may take, SLOW MEMBERS says. Never blocks once the group runs. worked (may be NULL)
 * is not 0 if anything happened; if nothing did, consort_wait may be called. One thread at a time. On this thread consort_reserve refuses to
 * wait for itself: use consort_try_reserve, and go on polling. Where there are more than four groups and shards, a turn may pass over some in which nothing
 * has happened lately. Their turn comes in the next ones; right after a turn in which nothing happened, and after a sleep, all have it.
 * CONSORT_STOPPED, CONSORT_EVICTED: the node stopped. */
consort_status consort_poll(consort_node *node, consort_on_event on_event, void *context, uint32_t *worked);

/* Turns and waits until on_event was called, or for timeout_ms (-1: for ever): consort_poll, and consort_wait whenever there was nothing to do, in
 * one call. Who has nothing else to do meanwhile is told of a message soonest by this. told (may be NULL) is not 0 if on_event was called. Room
 * in a ring is no event: who waits for that, with nothing under way that is delivered here, says how long.
 * CONSORT_WOULD_DEADLOCK in a callback. CONSORT_STOPPED, CONSORT_EVICTED: the node stopped. */
consort_status consort_drive(consort_node *node, int64_t timeout_ms, consort_on_event on_event, void *context, uint32_t *told);

/* Waits until there may be something to do, as the option `wait` says: spins, yields or sleeps, a tenth of a second at most. After a turn of
 * consort_poll in which nothing happened. */
consort_status consort_wait(consort_node *node);

/* --------------------------------------------------------------------------------------------------------- replicas */

/* An update, as it is applied. */
typedef struct consort_update {
    const uint8_t *data;
    size_t len;
    uint64_t view;        /* where it is in the order: pairs of view and seq grow */
    uint64_t seq;
    uint64_t index;       /* how many updates were applied before it since the group was founded */
    uint64_t incarnation; /* in which of its lives the sender sent it */
    uint32_t node;        /* who sent it */
    uint32_t reserved;
} consort_update;

/* A state that all members keep the same: what an update does to it, and how it is written and read. What these functions do must follow
 * from the state and their arguments alone: no clock, no random numbers, no addresses. They are called on a thread of the replica's own, one
 * at a time; but `snapshot` while readers of consort_replica_query may read the state too. Each gives 0; with another number from `apply` the
 * replica stops (CONSORT_HALTED), as it will have done at every member. Set up by consort_machine_init. */
typedef struct consort_machine {
    size_t struct_size;
    void *context; /* the first argument of all of them: the state */
    /* Does an update. What it writes to reply (consort_write) is what its sender is told. */
    int (*apply)(void *context, const consort_update *update, consort_writer *reply);
    /* Writes the state, with the same bytes at all members: they are compared. It is not changed meanwhile. */
    int (*snapshot)(void *context, consort_writer *state);
    /* Becomes what is read (consort_read), instead of whatever it was. */
    int (*restore)(void *context, consort_reader *state);
    /* The members changed; after the last update of the view before, at every member. `view` dies with the call. May be NULL. */
    void (*view_changed)(void *context, const consort_view *view);
    /* The replica is no more: frees the state. May be NULL. */
    void (*free)(void *context);
} consort_machine;

/* Puts NULL everywhere. struct_size is sizeof (consort_machine). */
consort_status consort_machine_init(size_t struct_size, consort_machine *machine);

/* Writes on. Only while the function runs that was given the writer. */
consort_status consort_write(consort_writer *writer, const void *data, size_t len);

/* Reads on, at most len bytes, and says how many; 0 is the end. Only in `restore`, on its thread. */
consort_status consort_read(consort_reader *reader, uint8_t *buffer, size_t len, size_t *got);

/* Starts a node with a state machine on its main group, which begins as it is; the same at all members. The machine is the
 * replica's from now on, which calls its `free` in the end; not if this fails: then its state stays the program's. Returns before the
 * others are there. Free it with consort_replica_free. Failures are those of consort_node_new. */
consort_status consort_replica_new(const consort_node_options *options, const consort_machine *machine, consort_replica **replica);

/* A state machine on a group of a node that others use too; configure the group with a state. One replica of a shard at a node. Free it
 * before the node. digest_every: as in the node's options. */
consort_status consort_replica_on(consort_node *node, consort_group *group, uint64_t digest_every, const consort_machine *machine,
                                  consort_replica **replica);

/* Does an update: sends it to all members, and gives the reply that was computed here, in its place in the order. Blocks until then, also over
 * changes of the view. It is applied once. Free the reply with consort_bytes_free; it may be NULL.
 * CONSORT_UNKNOWN: the node stopped or was left out first, and it may have been applied. After any other failure it was not.
 * CONSORT_BUSY: too many consort_bytes are lent for one more, so it was not sent. */
consort_status consort_replica_update(consort_replica *replica, const void *update, size_t len, consort_bytes *reply);

/* The same, without waiting for the reply: many may be under way, and are applied in the order of a thread's calls. Blocks only for room in
 * the ring, and until the group has started; refused in callbacks. Free it with consort_pending_free. */
consort_status consort_replica_submit(consort_replica *replica, const void *update, size_t len, consort_pending **pending);

/* A reply, or the status that says why there is none (consort_last_error has the sentence). `reply` dies with the call. */
typedef void (*consort_on_reply)(void *context, consort_status status, const void *reply, size_t len);

/* As consort_replica_submit; has on_reply called once: on the replica's thread, which applies nothing meanwhile, so be quick; or on this one
 * before this returns. If this fails it isn't called. */
consort_status consort_replica_submit_then(consort_replica *replica, const void *update, size_t len, consort_on_reply on_reply,
                                           void *context);

/* What a member replied to an update, or why it didn't. */
typedef struct consort_reply {
    uint32_t node;
    int32_t status;      /* CONSORT_OK: here is its reply. CONSORT_UNKNOWN: it was gone, from the view or from the shard, before its reply was
                            here; whether it applied the update before, nobody knows. CONSORT_REFUSED: it applied it, and its reply can't be
                            sent, being too long for a ring, or can't be read */
    const uint8_t *data; /* the reply, and a zero behind it; NULL without one */
    size_t len;
    const char *text;    /* why there is none, for people; NULL with one */
} consort_reply;

/* Does an update, and gives what every member of the shard replied: each that was one in the view in which the update was delivered, this
 * one too. Blocks until each has replied or is gone, also over changes of the view, and as long as a member that is in the view keeps still: use
 * consort_replica_submit_all to wait for some time only. A node that is a member and has freed its replica, never had one, or called consort_end,
 * replies nothing until it is gone.
 * Replies are messages: they take room in the ring of who replies. Free them with consort_replies_free.
 * Failures are those of consort_replica_update; what others had replied before is not told then. */
consort_status consort_replica_update_all(consort_replica *replica, const void *update, size_t len, consort_replies **replies);

/* The same, without waiting for the replies: take them by consort_pending_wait_all. Blocks as consort_replica_submit does, and while 64
 * such updates of this replica are under way, also those that nobody waits for any more. Free it with consort_pending_free. */
consort_status consort_replica_submit_all(consort_replica *replica, const void *update, size_t len, consort_pending **pending);

/* What all members replied, by node, len of them; or the status that says why that isn't known (consort_last_error has the sentence).
 * `replies` and all that they point to die with the call. */
typedef void (*consort_on_replies)(void *context, consort_status status, const consort_reply *replies, size_t len);

/* As consort_replica_submit_all; has on_replies called once: on the replica's thread, which applies nothing meanwhile, so be quick; or on
 * this one before this returns. If this fails it isn't called. */
consort_status consort_replica_submit_all_then(consort_replica *replica, const void *update, size_t len, consort_on_replies on_replies,
                                               void *context);

/* Waits for what consort_replica_submit_all is to give; otherwise as consort_pending_wait. CONSORT_INVALID: it is of consort_replica_submit;
 * so is consort_pending_wait the other way round. */
consort_status consort_pending_wait_all(consort_pending *pending, int64_t timeout_ms, consort_replies **replies);

/* How many members there are in it. Never blocks. */
consort_status consort_replies_count(consort_replies *replies, size_t *count);

/* One member's reply: at counts from 0, by node. What it points to is the handle's, and dies with consort_replies_free. Never blocks.
 * CONSORT_INVALID: there are not so many. */
consort_status consort_replies_at(consort_replies *replies, size_t at, consort_reply *reply);

/* Frees them, and all that they point to. */
consort_status consort_replies_free(consort_replies *replies);

/* Waits for a reply. It is given once. Otherwise as consort_replica_update; CONSORT_TIMED_OUT: not there yet. CONSORT_BUSY: too many
 * consort_bytes are lent for one more; free some, and wait again. */
consort_status consort_pending_wait(consort_pending *pending, int64_t timeout_ms, consort_bytes *reply);

/* Loses interest in the reply, not the update. */
consort_status consort_pending_free(consort_pending *pending);

enum {
    CONSORT_LOCAL = 0,       /* the state as it is here: never older than what this replica showed before. Costs nothing */
    CONSORT_LINEARIZABLE = 1 /* a state with every update that had completed anywhere when this was called. Costs a round trip */
};

/* Reads the state: machine is the machine's context. Many may read at once; updates wait meanwhile. */
typedef void (*consort_look)(void *context, void *machine);

/* Looks at the state. look is called once, on this thread, before this returns; not if it fails. Blocks for a round trip if linearizable.
 * CONSORT_WOULD_DEADLOCK in look, and in the functions of a machine, of whichever replica: a state is locked there already. */
consort_status consort_replica_query(consort_replica *replica, uint32_t how, consort_look look, void *context);

/* A local query is as good as a linearizable one now; or the status says why that isn't known. */
typedef void (*consort_on_fresh)(void *context, consort_status status);

/* Waits for what a linearizable query waits for, without blocking: has on_fresh called once, on the replica's thread or on this one. */
consort_status consort_replica_fresh_then(consort_replica *replica, consort_on_fresh on_fresh, void *context);

/* How many updates have been applied here since the group was founded. */
consort_status consort_replica_applied(consort_replica *replica, uint64_t *applied);

/* CONSORT_OK while it works; CONSORT_STOPPED or CONSORT_HALTED when it doesn't any more, and why. */
consort_status consort_replica_check(consort_replica *replica);

/* Leaves in order: what was submitted is applied, then the others agree on a view without this node. Blocks, timeout_ms at most. Free it then.
 * CONSORT_BUSY: another thread is in a call on it, or ends it. */
consort_status consort_replica_leave(consort_replica *replica, int64_t timeout_ms);

/* Stops at once. Calls that wait for it get CONSORT_STOPPED or CONSORT_UNKNOWN. Doesn't block. */
consort_status consort_replica_stop(consort_replica *replica);

/* Stops it if it hasn't left, waits for its thread, frees its machine and it.
 * CONSORT_BUSY: another thread is in a call on it, or ends it: stop it first, and let that thread come back. */
consort_status consort_replica_free(consort_replica *replica);

/* ------------------------------------------------------------------------------------------------------------ logs */

/* Where to begin in a log. */
enum {
    CONSORT_FROM_INDEX = 0, /* with the record of that index; 0: with the first that there is */
    CONSORT_FROM_STAMP = 1  /* with the first record that has this stamp or a later one: nanoseconds since 1970 */
};

/* A record of a log. What its pointers point to is the log's, until the next call of consort_log_next on it, or consort_log_free. */
typedef struct consort_record {
    uint32_t kind;   /* CONSORT_MESSAGE, or CONSORT_VIEW where a view began. A newer library may have more: pass over those that you don't know */
    uint32_t node;   /* who sent it; 0 for a view */
    uint64_t index;  /* its number in the log, from 1, through all views; the same at all members */
    uint64_t view;   /* as events have it, */
    uint64_t seq;    /* and this, */
    uint64_t stamp;  /* and this; a view has one too */
    const uint8_t *data; /* a message */
    size_t len;
    const consort_view *members; /* a view */
} consort_record;

/* Opens a shard's log for reading. `data` is a node's data directory, as in its options; shard the number that views and events have (0 is
 * the main group). The node may run, in this process or another, and is not disturbed: what it writes meanwhile is read too. Needs no node. Reads
 * files. Free it with consort_log_free.
 * CONSORT_MACHINE: there is no such log, or it can't be read, or is damaged. CONSORT_REFUSED: the record was there, and a snapshot has taken its
 * place: begin with index 0, or with what consort_last_error() names. */
consort_status consort_log_open(const char *data, uint32_t shard, uint32_t how, uint64_t from, consort_log **log);

/* The next record. Reads files, and waits for nobody.
 * CONSORT_TIMED_OUT: there are no more yet; a node may write more, and then the next call gives it. What was being written when a machine failed, and
 * was not told to anybody, is no more than the end.
 * CONSORT_REFUSED: the next record was there, and a snapshot has taken its place meanwhile: open the log anew.
 * CONSORT_MACHINE: it can't be read on, or is damaged there: what had been flushed isn't as it was. That is looked for where a reader comes to
 * the end of a log that no node writes to, and takes as long as reading all of it. `consort log verify` and `consort log repair` see to it. */
consort_status consort_log_next(consort_log *log, consort_record *record);

/* Closes it. Its last record's memory is gone. */
consort_status consort_log_free(consort_log *log);

#ifdef __cplusplus
}
#endif

#endif /* CONSORT_H */
