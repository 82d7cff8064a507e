/* Threads that send, receive and ask while another closes the node, again and again; and that look at what another waits for. */
#include "misuse.h"

#include <pthread.h>
#include <semaphore.h>

enum { SENDERS = 3, HANDLES = 256, LOOKS = 20000, ROUNDS = 30 };

typedef struct round {
    consort_node *node;
    consort_group *group;
    pthread_barrier_t begin;
} round_of;

static int is_an_end(consort_status status)
{
    return status == CONSORT_STOPPED || status == CONSORT_BAD_HANDLE || status == CONSORT_ENDED;
}

static void *send_on(void *context)
{
    round_of *round = (round_of *)context;
    consort_status status = CONSORT_OK;
    pthread_barrier_wait(&round->begin);
    while (status == CONSORT_OK) {
        consort_room room;
        status = consort_reserve(round->group, 100, &room);
        if (status == CONSORT_OK) {
            memset(room.data, 7, room.len);
            status = consort_send(&room, NULL);
        }
    }
    SURE(is_an_end(status));
    return NULL;
}

static void *track_on(void *context)
{
    round_of *round = (round_of *)context;
    consort_status status = CONSORT_OK;
    pthread_barrier_wait(&round->begin);
    while (status == CONSORT_OK) {
        consort_outcome *outcome;
        status = consort_multicast_tracked(round->group, "x", 1, &outcome);
        if (status == CONSORT_OK) {
            status = consort_outcome_wait(outcome, -1, NULL);
            MUST(consort_outcome_free(outcome));
        }
    }
    SURE(is_an_end(status) || status == CONSORT_UNKNOWN);
    return NULL;
}

static void *receive_on(void *context)
{
    round_of *round = (round_of *)context;
    consort_status status;
    consort_event event;
    pthread_barrier_wait(&round->begin);
    while ((status = consort_next(round->group, -1, &event)) == CONSORT_OK)
        MUST(consort_release(&event));
    SURE(is_an_end(status));
    return NULL;
}

static void *send_many_on(void *context)
{
    round_of *round = (round_of *)context;
    const consort_message messages[] = {{(const uint8_t *)"one", 3}, {(const uint8_t *)"two", 3}};
    consort_status status = CONSORT_OK;
    size_t sent;
    pthread_barrier_wait(&round->begin);
    while (status == CONSORT_OK)
        status = consort_multicast_many(round->group, messages, 2, NULL, &sent);
    SURE(is_an_end(status));
    return NULL;
}

static void *receive_many_on(void *context)
{
    round_of *round = (round_of *)context;
    consort_status status;
    consort_event events[8];
    size_t taken;
    pthread_barrier_wait(&round->begin);
    while ((status = consort_next_many(round->group, -1, events, 8, &taken)) == CONSORT_OK)
        MUST(consort_release_many(events, taken));
    SURE(is_an_end(status));
    return NULL;
}

static void *ask_on(void *context)
{
    round_of *round = (round_of *)context;
    consort_status status = CONSORT_OK;
    pthread_barrier_wait(&round->begin);
    while (status == CONSORT_OK) {
        consort_stats stats;
        stats.struct_size = sizeof stats;
        status = consort_node_stats(round->node, &stats);
    }
    SURE(is_an_end(status));
    return NULL;
}

/* Listens by one handle after another until the node has ended; is_over is set when consort_node_free has returned. The handles are there
 * before: a library that still lets the last of them listen then calls back when nobody waits for it. */
typedef struct listener {
    consort_group *groups[HANDLES];
    pthread_barrier_t begin;
    int is_over;
} listener;

static void on_event(void *context, const consort_event *event)
{
    (void)event;
    SURE(!__atomic_load_n(&((listener *)context)->is_over, __ATOMIC_SEQ_CST));
}

static void *listen_on(void *context)
{
    listener *it = (listener *)context;
    consort_status status = CONSORT_OK;
    pthread_barrier_wait(&it->begin);
    for (int at = 0; at < HANDLES && status == CONSORT_OK; at++)
        status = consort_listen(it->groups[at], on_event, it);
    SURE(status == CONSORT_OK || is_an_end(status));
    return NULL;
}

static void listening(void)
{
    consort_node_options options = alone(1);
    consort_node *node;
    pthread_t thread;
    listener it;
    it.is_over = 0;
    pthread_barrier_init(&it.begin, NULL, 2);
    MUST(consort_node_new(&options, &node));
    for (int at = 0; at < HANDLES; at++)
        MUST(consort_node_group(node, NULL, 0, &it.groups[at]));
    pthread_create(&thread, NULL, listen_on, &it);
    pthread_barrier_wait(&it.begin);
    MUST(consort_node_free(node));
    __atomic_store_n(&it.is_over, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
    for (int at = 0; at < HANDLES; at++)
        MUST(consort_group_free(it.groups[at]));
    pthread_barrier_destroy(&it.begin);
}

/* What one thread waits for, and another looks at: which must not wait for the first, since the first may wait for what it does next. */
typedef struct awaited {
    consort_outcome *outcome;
    consort_pending *pending;
    sem_t begins;
} awaited;

static void *wait_on(void *context)
{
    awaited *it = (awaited *)context;
    sem_post(&it->begins);
    MUST(it->outcome != NULL ? consort_outcome_wait(it->outcome, -1, NULL) : consort_pending_wait(it->pending, -1, NULL));
    return NULL;
}

static void count_views(void *context, const consort_event *event)
{
    *(int *)context += event->kind == CONSORT_VIEW;
}

/* Who drives a node looks at an outcome while another thread waits for it. */
static void looking(void)
{
    consort_node_options options = alone(1);
    consort_node *node;
    consort_group *group;
    consort_status status;
    pthread_t thread;
    awaited it;
    int views = 0;
    memset(&it, 0, sizeof it);
    sem_init(&it.begins, 0, 0);
    MUST(consort_driven_new(&options, &node));
    MUST(consort_node_group(node, NULL, 0, &group));
    while (views == 0)
        MUST(consort_poll(node, count_views, &views, NULL));
    MUST(consort_multicast_tracked(group, "x", 1, &it.outcome));
    pthread_create(&thread, NULL, wait_on, &it);
    sem_wait(&it.begins);
    for (int at = 0; at < LOOKS; at++)
        EXPECT(CONSORT_TIMED_OUT, consort_outcome_wait(it.outcome, 0, NULL));
    while ((status = consort_outcome_wait(it.outcome, 0, NULL)) == CONSORT_TIMED_OUT)
        MUST(consort_poll(node, count_views, &views, NULL));
    EXPECT(CONSORT_OK, status);
    pthread_join(thread, NULL);
    MUST(consort_outcome_free(it.outcome));
    MUST(consort_node_free(node));
    MUST(consort_group_free(group));
}

/* A replica that one thread uses, and others end. */
typedef struct used {
    consort_replica *replica;
    sloppy state;
    sem_t looks, go_on;
} used;

static void stay(void *context, void *machine)
{
    used *it = (used *)context;
    (void)machine;
    sem_post(&it->looks);
    sem_wait(&it->go_on);
}

static void *look_on(void *context)
{
    used *it = (used *)context;
    MUST(consort_replica_query(it->replica, CONSORT_LOCAL, stay, it));
    return NULL;
}

static void *free_in_vain(void *context)
{
    used *it = (used *)context;
    for (int at = 0; at < 20000; at++)
        EXPECT(CONSORT_BUSY, consort_replica_free(it->replica));
    return NULL;
}

static void *update_on(void *context)
{
    used *it = (used *)context;
    consort_status status;
    while ((status = consort_replica_update(it->replica, "x", 1, NULL)) == CONSORT_OK)
        ;
    SURE(is_an_end(status) || status == CONSORT_UNKNOWN);
    return NULL;
}

static void *leave_on(void *context)
{
    used *it = (used *)context;
    consort_status status;
    while ((status = consort_replica_leave(it->replica, -1)) == CONSORT_BUSY)
        ;
    SURE(status == CONSORT_OK || is_an_end(status));
    return NULL;
}

/* While a call is in it a replica is not ended, and works for others; and who frees it frees its machine. */
static void replicas(int number)
{
    consort_node_options options = alone(1);
    consort_machine machine;
    consort_status status;
    pthread_t threads[4];
    uint64_t applied;
    awaited reply;
    used it;
    memset(&it, 0, sizeof it);
    memset(&reply, 0, sizeof reply);
    sem_init(&it.looks, 0, 0);
    sem_init(&it.go_on, 0, 0);
    machine = sloppy_machine(&it.state);
    MUST(consort_replica_new(&options, &machine, &it.replica));
    MUST(consort_replica_update(it.replica, "x", 1, NULL));
    if (number == 0) {
        pthread_create(&threads[0], NULL, look_on, &it);
        sem_wait(&it.looks);
        sem_init(&reply.begins, 0, 0);
        MUST(consort_replica_submit(it.replica, "x", 1, &reply.pending)); /* applied when the look is over */
        pthread_create(&threads[3], NULL, wait_on, &reply);
        sem_wait(&reply.begins);
        for (int at = 0; at < LOOKS; at++)
            EXPECT(CONSORT_TIMED_OUT, consort_pending_wait(reply.pending, 0, NULL));
        pthread_create(&threads[1], NULL, free_in_vain, &it);
        pthread_create(&threads[2], NULL, free_in_vain, &it);
        for (int at = 0; at < 20000; at++)
            MUST(consort_replica_applied(it.replica, &applied));
        pthread_join(threads[1], NULL);
        pthread_join(threads[2], NULL);
        sem_post(&it.go_on);
        pthread_join(threads[0], NULL);
        pthread_join(threads[3], NULL);
        MUST(consort_pending_free(reply.pending));
        MUST(consort_replica_free(it.replica));
    } else {
        pthread_create(&threads[0], NULL, update_on, &it);
        pthread_create(&threads[1], NULL, leave_on, &it);
        while ((status = consort_replica_free(it.replica)) == CONSORT_BUSY)
            ;
        EXPECT(CONSORT_OK, status);
        SURE(it.state.is_freed == 1);
        pthread_join(threads[0], NULL);
        pthread_join(threads[1], NULL);
    }
    SURE(it.state.is_freed == 1);
}

/* A node that two threads free while a third puts a replica on it. */
typedef struct shared {
    consort_node *node;
    consort_group *group;
    consort_replica *replica;
    sloppy state;
    pthread_barrier_t begin;
    consort_status replicated, freed[2];
} shared;

static void *replicate(void *context)
{
    shared *it = (shared *)context;
    consort_machine machine = sloppy_machine(&it->state);
    pthread_barrier_wait(&it->begin);
    it->replicated = consort_replica_on(it->node, it->group, 0, &machine, &it->replica);
    return NULL;
}

static void *free_once(void *context)
{
    shared *it = (shared *)context;
    pthread_barrier_wait(&it->begin);
    it->freed[1] = consort_node_free(it->node);
    return NULL;
}

/* Either the replica is there, and the node is; or one of the two has freed it. */
static void sharing(void)
{
    consort_node_options options = alone(1);
    pthread_t threads[2];
    shared it;
    memset(&it, 0, sizeof it);
    options.state = 1;
    pthread_barrier_init(&it.begin, NULL, 3);
    MUST(consort_node_new(&options, &it.node));
    MUST(consort_node_group(it.node, NULL, 0, &it.group));
    pthread_create(&threads[0], NULL, replicate, &it);
    pthread_create(&threads[1], NULL, free_once, &it);
    pthread_barrier_wait(&it.begin);
    it.freed[0] = consort_node_free(it.node);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    int freed = (it.freed[0] == CONSORT_OK) + (it.freed[1] == CONSORT_OK);
    for (int at = 0; at < 2; at++)
        SURE(it.freed[at] == CONSORT_OK || it.freed[at] == CONSORT_BUSY || (it.freed[at] == CONSORT_BAD_HANDLE && freed == 1));
    SURE(freed <= 1);
    if (it.replicated == CONSORT_OK) {
        SURE(freed == 0);
        MUST(consort_replica_update(it.replica, "x", 1, NULL));
        EXPECT(CONSORT_BUSY, consort_node_free(it.node));
        MUST(consort_replica_free(it.replica));
        MUST(consort_node_free(it.node));
    } else {
        SURE(is_an_end(it.replicated));
        if (freed == 0)
            MUST(consort_node_free(it.node)); /* both came while the replica was tried */
    }
    SURE(it.state.is_freed == (it.replicated == CONSORT_OK));
    MUST(consort_group_free(it.group));
    pthread_barrier_destroy(&it.begin);
}

int main(void)
{
    for (int number = 0; number < 3 * ROUNDS; number++)
        sharing();
    for (int number = 0; number < ROUNDS; number++)
        listening();
    looking();
    for (int number = 0; number < ROUNDS; number++)
        replicas(number);
    for (int number = 0; number < ROUNDS; number++) {
        consort_node_options options = alone(1);
        pthread_t threads[SENDERS + 5];
        round_of round;
        size_t count = 0;
        MUST(consort_node_new(&options, &round.node));
        MUST(consort_node_group(round.node, NULL, 0, &round.group));
        pthread_barrier_init(&round.begin, NULL, SENDERS + 6);
        for (int at = 0; at < SENDERS; at++)
            pthread_create(&threads[count++], NULL, send_on, &round);
        pthread_create(&threads[count++], NULL, track_on, &round);
        pthread_create(&threads[count++], NULL, send_many_on, &round);
        pthread_create(&threads[count++], NULL, receive_on, &round);
        pthread_create(&threads[count++], NULL, receive_many_on, &round);
        pthread_create(&threads[count++], NULL, ask_on, &round);
        pthread_barrier_wait(&round.begin);
        if (number % 3 == 0)
            MUST(consort_node_leave(round.node, -1));
        if (number % 3 == 1)
            MUST(consort_node_stop(round.node));
        if (number % 2 == 0)
            MUST(consort_group_free(round.group));
        MUST(consort_node_free(round.node));
        for (size_t at = 0; at < count; at++)
            pthread_join(threads[at], NULL);
        if (number % 2 == 1)
            MUST(consort_group_free(round.group));
        pthread_barrier_destroy(&round.begin);
    }
    puts("all ended");
    return 0;
}
