/* What the programs of the misuse tests share. */
#ifndef MISUSE_H
#define MISUSE_H

#include <arpa/inet.h>
#include <consort.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* The call must give that status; and if it isn't CONSORT_OK, a sentence that says why. */
#define EXPECT(wanted, call)                                                                                                       \
    do {                                                                                                                           \
        consort_status status_ = (call);                                                                                           \
        if (status_ != (wanted)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n    gives %s (%s), not %s\n", __FILE__, __LINE__, #call, consort_status_name(status_),      \
                    consort_last_error(), consort_status_name(wanted));                                                            \
            exit(1);                                                                                                               \
        }                                                                                                                          \
        if (status_ != CONSORT_OK && strlen(consort_last_error()) < 20) {                                                          \
            fprintf(stderr, "%s:%d: %s\n    doesn't say why: %s\n", __FILE__, __LINE__, #call, consort_last_error());               \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)

#define MUST(call) EXPECT(CONSORT_OK, call)

#define SURE(condition)                                                                                                            \
    do {                                                                                                                           \
        if (!(condition)) {                                                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                                 \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)

/* A socket that listens, and its address. */
static inline int bound_socket(char *address, size_t len)
{
    struct sockaddr_in at;
    socklen_t size = sizeof at;
    int it = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    SURE(it >= 0 && bind(it, (const struct sockaddr *)&at, size) == 0 && listen(it, 100) == 0);
    SURE(getsockname(it, (struct sockaddr *)&at, &size) == 0);
    snprintf(address, len, "127.0.0.1:%d", ntohs(at.sin_port));
    return it;
}

/* A node that is a group by itself. */
static inline consort_node_options alone(uint32_t id)
{
    consort_node_options options;
    MUST(consort_node_options_init(sizeof options, &options));
    options.id = id;
    options.fabric = getenv("OVER_TCP") != NULL ? CONSORT_TCP : CONSORT_SHM;
    options.ring_bytes = 65536;
    return options;
}

/* Makes all of the `len` nodes that have these addresses peers of the one at `at`, in `peers`, which has room for them. */
static inline void with_peers(consort_node_options *options, consort_peer *peers, char (*addresses)[32], uint32_t at, uint32_t len)
{
    memset(peers, 0, (len - 1) * sizeof *peers);
    for (uint32_t other = 0; other < len; other++) {
        if (other != at) {
            peers[options->peers_len].id = other + 1;
            peers[options->peers_len++].address = addresses[other];
        }
    }
    options->peers = peers;
}

/* Takes events until one is of that kind; NULL: whatever it says is dropped. */
static inline void until(consort_group *group, uint32_t kind, consort_event *found)
{
    for (;;) {
        consort_event event;
        MUST(consort_next(group, 60000, &event));
        if (event.kind == kind) {
            if (found != NULL)
                *found = event;
            else
                MUST(consort_release(&event));
            return;
        }
        MUST(consort_release(&event));
    }
}

/* A machine that counts bytes, and keeps the writer and the reader that it was given last, as no sound program does. */
typedef struct sloppy {
    uint64_t bytes;
    consort_writer *writer;
    consort_reader *reader;
    consort_replica *replica; /* to be called from within */
    int is_freed;
} sloppy;

static inline int sloppy_apply(void *context, const consort_update *update, consort_writer *reply)
{
    sloppy *it = (sloppy *)context;
    it->bytes += update->len;
    it->writer = reply;
    if (update->len > 0 && update->data[0] == '!')
        return 7;
    if (it->replica != NULL) {
        consort_pending *pending;
        consort_replies *replies;
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_update(it->replica, "x", 1, NULL));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_submit(it->replica, "x", 1, &pending));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_update_all(it->replica, "x", 1, &replies));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_submit_all(it->replica, "x", 1, &pending));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_leave(it->replica, -1));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_free(it->replica));
    }
    return consort_write(reply, &it->bytes, sizeof it->bytes) == CONSORT_OK ? 0 : 1;
}

static inline int sloppy_snapshot(void *context, consort_writer *state)
{
    const sloppy *it = (const sloppy *)context;
    return consort_write(state, &it->bytes, sizeof it->bytes) == CONSORT_OK ? 0 : 1;
}

static inline int sloppy_restore(void *context, consort_reader *state)
{
    sloppy *it = (sloppy *)context;
    size_t got;
    it->reader = state;
    return consort_read(state, (uint8_t *)&it->bytes, sizeof it->bytes, &got) == CONSORT_OK && got == sizeof it->bytes ? 0 : 1;
}

static inline void sloppy_free(void *context)
{
    ((sloppy *)context)->is_freed++;
}

static inline consort_machine sloppy_machine(sloppy *state)
{
    consort_machine machine;
    MUST(consort_machine_init(sizeof machine, &machine));
    machine.context = state;
    machine.apply = sloppy_apply;
    machine.snapshot = sloppy_snapshot;
    machine.restore = sloppy_restore;
    machine.free = sloppy_free;
    return machine;
}

#endif
