/* Threads that send, receive and ask while another closes the node, again and again. */
#include "misuse.h"

#include <pthread.h>

enum { SENDERS = 3, ROUNDS = 30 };

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

int main(void)
{
    for (int number = 0; number < ROUNDS; number++) {
        consort_node_options options = alone(1);
        pthread_t threads[SENDERS + 4];
        round_of round;
        size_t count = 0;
        MUST(consort_node_new(&options, &round.node));
        MUST(consort_node_group(round.node, NULL, 0, &round.group));
        pthread_barrier_init(&round.begin, NULL, SENDERS + 5);
        for (int at = 0; at < SENDERS; at++)
            pthread_create(&threads[count++], NULL, send_on, &round);
        pthread_create(&threads[count++], NULL, track_on, &round);
        pthread_create(&threads[count++], NULL, receive_on, &round);
        pthread_create(&threads[count++], NULL, receive_on, &round);
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
