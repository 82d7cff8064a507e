/* What all members of a replica reply to one update, and who was lost: three replicas of one process. */
#include "misuse.h"

#include <pthread.h>
#include <semaphore.h>
#include <unistd.h>

enum { MEMBERS = 3, RING_BYTES = 65536 };

/* Replies with its own number, as often as the update says; or, to "stay", when it is told to go on. (What a real machine does must be the same
 * everywhere; its replies may differ.) */
typedef struct machine {
    unsigned char number;
    sem_t begun, go_on;
} machine;

static int apply(void *context, const consort_update *update, consort_writer *reply)
{
    machine *it = (machine *)context;
    static char text[RING_BYTES];
    uint32_t len = 1;
    if (update->len == 4 && memcmp(update->data, "stay", 4) == 0) {
        if (it->number == MEMBERS) {
            sem_post(&it->begun);
            sem_wait(&it->go_on);
        }
    } else if (update->len == sizeof len) {
        memcpy(&len, update->data, sizeof len);
    }
    SURE(len <= sizeof text);
    for (uint32_t at = 0; at < len; at++)
        MUST(consort_write(reply, &it->number, 1));
    return 0;
}

static int snapshot(void *context, consort_writer *state)
{
    (void)context, (void)state;
    return 0;
}

static int restore(void *context, consort_reader *state)
{
    (void)context, (void)state;
    return 0;
}

static void begin(consort_replica **replicas, machine *machines)
{
    char addresses[MEMBERS][32];
    consort_node_options options[MEMBERS];
    for (uint32_t at = 0; at < MEMBERS; at++) {
        options[at] = alone(at + 1);
        options[at].listen_fd = bound_socket(addresses[at], sizeof addresses[at]);
        options[at].ring_bytes = RING_BYTES;
    }
    for (uint32_t at = 0; at < MEMBERS; at++) {
        consort_peer peers[MEMBERS - 1];
        consort_machine machine;
        with_peers(&options[at], peers, addresses, at, MEMBERS);
        machines[at].number = (unsigned char)(at + 1);
        sem_init(&machines[at].begun, 0, 0);
        sem_init(&machines[at].go_on, 0, 0);
        MUST(consort_machine_init(sizeof machine, &machine));
        machine.context = &machines[at];
        machine.apply = apply;
        machine.snapshot = snapshot;
        machine.restore = restore;
        MUST(consort_replica_new(&options[at], &machine, &replicas[at]));
        SURE(close(options[at].listen_fd) == 0);
    }
}

/* Each member's reply is its own number, so often. */
static void is_reply(const consort_reply *reply, uint32_t node, size_t len)
{
    SURE(reply->node == node && reply->status == CONSORT_OK && reply->text == NULL && reply->len == len);
    for (size_t at = 0; at < len; at++)
        SURE(reply->data[at] == node);
    SURE(reply->data[len] == 0);
}

static void is_lost(const consort_reply *reply, uint32_t node, consort_status status, const char *words)
{
    SURE(reply->node == node && reply->status == (int32_t)status && reply->data == NULL && reply->len == 0);
    SURE(strstr(reply->text, words) != NULL);
}

/* What a callback was told. */
typedef struct told {
    consort_replica *replica;
    sem_t done;
    consort_status status;
    size_t len;
} told;

static void on_replies(void *context, consort_status status, const consort_reply *replies, size_t len)
{
    told *it = (told *)context;
    consort_replies *more;
    it->status = status;
    it->len = len;
    for (uint32_t at = 0; at < len; at++)
        is_reply(&replies[at], at + 1, 1);
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_update_all(it->replica, "x", 1, &more));
    sem_post(&it->done);
}

static void all_reply(consort_replica **replicas)
{
    consort_replies *replies;
    consort_pending *pending, *one;
    consort_reply reply;
    consort_bytes own;
    size_t count;
    for (int by = 0; by < MEMBERS; by++) {
        for (uint32_t len = 0; len < 3; len++) {
            MUST(consort_replica_update_all(replicas[by], &len, sizeof len, &replies));
            MUST(consort_replies_count(replies, &count));
            SURE(count == MEMBERS);
            for (uint32_t at = 0; at < count; at++) {
                MUST(consort_replies_at(replies, at, &reply));
                is_reply(&reply, at + 1, len);
            }
            reply.node = 77;
            EXPECT(CONSORT_INVALID, consort_replies_at(replies, count, &reply));
            EXPECT(CONSORT_INVALID, consort_replies_at(replies, (size_t)-1, &reply));
            SURE(reply.node == 77);
            MUST(consort_replies_free(replies));
            EXPECT(CONSORT_BAD_HANDLE, consort_replies_free(replies));
        }
    }

    /* Without waiting; each kind is waited for by its own, and is there still after the other was tried. */
    MUST(consort_replica_submit_all(replicas[0], "x", 1, &pending));
    MUST(consort_replica_submit(replicas[0], "x", 1, &one));
    EXPECT(CONSORT_INVALID, consort_pending_wait(pending, -1, &own));
    EXPECT(CONSORT_INVALID, consort_pending_wait_all(one, -1, &replies));
    EXPECT(CONSORT_INVALID, consort_pending_wait_all(pending, -2, &replies));
    MUST(consort_pending_wait_all(pending, 60000, &replies));
    MUST(consort_replies_count(replies, &count));
    SURE(count == MEMBERS);
    EXPECT(CONSORT_BAD_HANDLE, consort_pending_wait_all(pending, -1, &replies));
    MUST(consort_pending_free(pending));
    MUST(consort_replies_at(replies, 2, &reply)); /* the replies are no part of what waited for them */
    is_reply(&reply, 3, 1);
    MUST(consort_replies_free(replies));
    MUST(consort_pending_wait(one, -1, &own));
    SURE(own.len == 1 && own.data[0] == 1);
    MUST(consort_bytes_free(&own));
    MUST(consort_pending_free(one));

    /* Told to a callback. */
    told told;
    memset(&told, 0, sizeof told);
    told.replica = replicas[0];
    sem_init(&told.done, 0, 0);
    MUST(consort_replica_submit_all_then(replicas[0], "x", 1, on_replies, &told));
    sem_wait(&told.done);
    SURE(told.status == CONSORT_OK && told.len == MEMBERS);

    /* The others' replies don't fit in a ring; its own it has all the same. */
    const uint32_t len = RING_BYTES - 100;
    MUST(consort_replica_update_all(replicas[1], &len, sizeof len, &replies));
    MUST(consort_replies_at(replies, 0, &reply));
    is_lost(&reply, 1, CONSORT_REFUSED, "can't be sent");
    MUST(consort_replies_at(replies, 1, &reply));
    is_reply(&reply, 2, len);
    MUST(consort_replies_at(replies, 2, &reply));
    is_lost(&reply, 3, CONSORT_REFUSED, "can't be sent");
    MUST(consort_replies_free(replies));
}

/* More than may be under way: some of them wait until others are over. */
static void *crowd(void *replica)
{
    for (int number = 0; number < 100; number++) {
        consort_pending *pending;
        MUST(consort_replica_submit_all((consort_replica *)replica, "x", 1, &pending));
        MUST(consort_pending_free(pending));
    }
    return NULL;
}

/* The third has the update, and stops before it replies. */
static void one_is_lost(consort_replica **replicas, machine *machines)
{
    consort_replies *replies = NULL;
    consort_pending *pending;
    consort_reply reply;
    pthread_t thread;
    size_t count;
    MUST(consort_replica_submit_all(replicas[0], "stay", 4, &pending));
    sem_wait(&machines[2].begun);
    SURE(pthread_create(&thread, NULL, crowd, replicas[1]) == 0);
    EXPECT(CONSORT_TIMED_OUT, consort_pending_wait_all(pending, 0, &replies));
    EXPECT(CONSORT_TIMED_OUT, consort_pending_wait_all(pending, 1, &replies));
    SURE(replies == NULL);
    MUST(consort_replica_stop(replicas[2]));
    MUST(consort_pending_wait_all(pending, 60000, &replies));
    MUST(consort_replies_count(replies, &count));
    SURE(count == MEMBERS);
    for (uint32_t at = 0; at < 2; at++) {
        MUST(consort_replies_at(replies, at, &reply));
        is_reply(&reply, at + 1, 1);
    }
    MUST(consort_replies_at(replies, 2, &reply));
    is_lost(&reply, 3, CONSORT_UNKNOWN, "gone from the shard");
    MUST(consort_replies_free(replies));
    MUST(consort_pending_free(pending));
    SURE(pthread_join(thread, NULL) == 0);
    sem_post(&machines[2].go_on);
    MUST(consort_replica_free(replicas[2]));

    /* The next is answered by those who are left. */
    MUST(consort_replica_update_all(replicas[1], "x", 1, &replies));
    MUST(consort_replies_count(replies, &count));
    SURE(count == 2);
    MUST(consort_replies_free(replies));
}

int main(void)
{
    static machine machines[MEMBERS];
    consort_replica *replicas[MEMBERS];
    consort_pending *pending;
    consort_replies *replies = NULL;
    begin(replicas, machines);
    all_reply(replicas);
    one_is_lost(replicas, machines);

    /* Who stops is told nothing of what others said. What is sent while it stops may still be applied, or nobody knows. */
    consort_status status;
    MUST(consort_replica_stop(replicas[0]));
    while ((status = consort_replica_update_all(replicas[0], "x", 1, &replies)) == CONSORT_OK || status == CONSORT_UNKNOWN) {
        if (status == CONSORT_OK)
            MUST(consort_replies_free(replies));
        replies = NULL;
    }
    EXPECT(CONSORT_STOPPED, status);
    EXPECT(CONSORT_STOPPED, consort_replica_submit_all(replicas[0], "x", 1, &pending));
    SURE(replies == NULL);
    MUST(consort_replica_free(replicas[0]));
    MUST(consort_replica_free(replicas[1]));
    puts("all have replied");
    return 0;
}
