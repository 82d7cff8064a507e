/* Who stands still in a group that has a bound of its own for that is left out; the node has none. */
#include "misuse.h"

#include <pthread.h>
#include <unistd.h>

enum { MEMBERS = 3, BOUND_MS = 2000 };

/* Three founders with a group beside the main one. Of the first two the program takes what comes. */
typedef struct cluster {
    consort_node *nodes[MEMBERS];
    consort_group *strict[MEMBERS];
} cluster;

static void begin(cluster *it, consort_status (*third)(const consort_node_options *, consort_node **))
{
    char addresses[MEMBERS][32];
    consort_node_options options[MEMBERS];
    consort_group_options strict;
    MUST(consort_group_options_init(sizeof strict, &strict));
    SURE(strict.slow_evict_ms == 0);
    strict.name = "strict";
    strict.ring_bytes = 65536;
    strict.slow_evict_ms = BOUND_MS;
    for (uint32_t at = 0; at < MEMBERS; at++) {
        options[at] = alone(at + 1);
        options[at].listen_fd = bound_socket(addresses[at], sizeof addresses[at]);
        options[at].groups = &strict;
        options[at].groups_len = 1;
        options[at].silence_ms = options[at].quorum_within_ms = 60000;
    }
    for (uint32_t at = 0; at < MEMBERS; at++) {
        consort_peer peers[MEMBERS - 1];
        with_peers(&options[at], peers, addresses, at, MEMBERS);
        MUST((at == MEMBERS - 1 ? third : consort_node_new)(&options[at], &it->nodes[at]));
        SURE(close(options[at].listen_fd) == 0);
        MUST(consort_node_group(it->nodes[at], "strict", 0, &it->strict[at]));
    }
}

/* The first two take what comes, by turns so that neither stands still itself, until both were told a view of so many members. */
static void until_members(cluster *it, size_t len)
{
    int told[2] = {0, 0};
    while (!told[0] || !told[1]) {
        for (int at = 0; at < 2; at++) {
            consort_event event;
            consort_status status = consort_next(it->strict[at], 10, &event);
            if (status == CONSORT_TIMED_OUT)
                continue;
            MUST(status);
            told[at] |= event.kind == CONSORT_VIEW && event.members->members_len == len;
            MUST(consort_release(&event));
        }
    }
}

static void end(cluster *it)
{
    for (int at = 0; at < MEMBERS; at++) {
        MUST(consort_node_free(it->nodes[at]));
        MUST(consort_group_free(it->strict[at]));
    }
}

/* The third takes nothing of what waits for it. */
static void takes_nothing(void)
{
    cluster it;
    consort_event event;
    consort_status status;
    begin(&it, consort_node_new);
    until_members(&it, 3);
    MUST(consort_multicast(it.strict[0], "untaken", 7, NULL));
    until_members(&it, 2);
    while ((status = consort_next(it.strict[2], 60000, &event)) == CONSORT_OK)
        MUST(consort_release(&event));
    EXPECT(CONSORT_EVICTED, status);
    end(&it);
}

/* The third is driven, and stays in a callback until the others have gone on. */
typedef struct driver {
    consort_node *node;
    consort_status status;
    int may_return;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} driver;

static void stay(void *context, const consort_event *event)
{
    driver *it = (driver *)context;
    if (event->kind != CONSORT_MESSAGE)
        return;
    pthread_mutex_lock(&it->lock);
    while (!it->may_return)
        pthread_cond_wait(&it->changed, &it->lock);
    pthread_mutex_unlock(&it->lock);
}

static void *drive(void *context)
{
    driver *it = (driver *)context;
    uint32_t worked;
    while ((it->status = consort_poll(it->node, stay, it, &worked)) == CONSORT_OK) {
        if (!worked)
            MUST(consort_wait(it->node));
    }
    return NULL;
}

static void stays_in_a_callback(void)
{
    cluster it;
    driver third;
    pthread_t thread;
    begin(&it, consort_driven_new);
    memset(&third, 0, sizeof third);
    third.node = it.nodes[2];
    pthread_mutex_init(&third.lock, NULL);
    pthread_cond_init(&third.changed, NULL);
    SURE(pthread_create(&thread, NULL, drive, &third) == 0);
    until_members(&it, 3);
    MUST(consort_multicast(it.strict[0], "stay", 4, NULL));
    until_members(&it, 2);
    pthread_mutex_lock(&third.lock);
    third.may_return = 1;
    pthread_cond_signal(&third.changed);
    pthread_mutex_unlock(&third.lock);
    SURE(pthread_join(thread, NULL) == 0);
    EXPECT(CONSORT_EVICTED, third.status);
    end(&it);
}

/* What means nothing is refused. */
static void refused(void)
{
    consort_group_options group;
    consort_node_options options = alone(1);
    consort_node *node;
    MUST(consort_group_options_init(sizeof group, &group));
    group.name = "strict";
    group.slow_evict_ms = -2;
    options.groups = &group;
    options.groups_len = 1;
    EXPECT(CONSORT_INVALID, consort_node_new(&options, &node));
}

int main(void)
{
    refused();
    takes_nothing();
    stays_in_a_callback();
    puts("who stood still is out");
    return 0;
}
