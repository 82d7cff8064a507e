/* Who stands still in a group that has a bound of its own for that is left out; the node has none. */
#include "misuse.h"

#include <pthread.h>
#include <unistd.h>

/* Who stands still is cut off, and may take those who did that for gone. Were there three, it would need one more to leave them out, one that has
 * not heard of it yet. */
enum { MEMBERS = 4, LAST = MEMBERS - 1, BOUND_MS = 2000 };

/* Founders with a group beside the main one. Of all but the last the program takes what comes. */
typedef struct cluster {
    consort_node *nodes[MEMBERS];
    consort_group *strict[MEMBERS];
} cluster;

static void begin(cluster *it, consort_status (*last)(const consort_node_options *, consort_node **))
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
        MUST((at == LAST ? last : consort_node_new)(&options[at], &it->nodes[at]));
        SURE(close(options[at].listen_fd) == 0);
        MUST(consort_node_group(it->nodes[at], "strict", 0, &it->strict[at]));
    }
}

/* All but the last take what comes, by turns so that none stands still itself, until all were told a view of so many members. */
static void until_members(cluster *it, size_t len)
{
    int told[LAST] = {0}, left = LAST;
    while (left > 0) {
        for (int at = 0; at < LAST; at++) {
            consort_event event;
            consort_status status = consort_next(it->strict[at], 10, &event);
            if (status == CONSORT_TIMED_OUT)
                continue;
            MUST(status);
            if (event.kind == CONSORT_VIEW && event.members->members_len == len && !told[at]) {
                told[at] = 1;
                left--;
            }
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

/* The last takes nothing of what waits for it. */
static void takes_nothing(void)
{
    cluster it;
    consort_event event;
    consort_status status;
    begin(&it, consort_node_new);
    until_members(&it, MEMBERS);
    MUST(consort_multicast(it.strict[0], "untaken", 7, NULL));
    until_members(&it, LAST);
    while ((status = consort_next(it.strict[LAST], 60000, &event)) == CONSORT_OK)
        MUST(consort_release(&event));
    EXPECT(CONSORT_EVICTED, status);
    end(&it);
}

/* The last is driven, and stays in a callback until the others have gone on. */
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
    driver last;
    pthread_t thread;
    begin(&it, consort_driven_new);
    memset(&last, 0, sizeof last);
    last.node = it.nodes[LAST];
    pthread_mutex_init(&last.lock, NULL);
    pthread_cond_init(&last.changed, NULL);
    SURE(pthread_create(&thread, NULL, drive, &last) == 0);
    until_members(&it, MEMBERS);
    MUST(consort_multicast(it.strict[0], "stay", 4, NULL));
    until_members(&it, LAST);
    pthread_mutex_lock(&last.lock);
    last.may_return = 1;
    pthread_cond_signal(&last.changed);
    pthread_mutex_unlock(&last.lock);
    SURE(pthread_join(thread, NULL) == 0);
    EXPECT(CONSORT_EVICTED, last.status);
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
