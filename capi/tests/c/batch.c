/* Many messages by one call, and many events: what is sent of a batch, what is taken, and loans that are given back by many at once. */
#include "misuse.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>

enum { MANY = 300, LONG = 500, THREADS = 4 };

static consort_message many[MANY];
static uint8_t some_bytes[LONG];

static consort_message message_of(const char *text)
{
    consort_message message = {(const uint8_t *)text, strlen(text)};
    return message;
}

/* A node by itself, and its group, whose first view was told. */
static consort_node *started(consort_group **group)
{
    consort_node_options options = alone(1);
    consort_node *node;
    MUST(consort_node_new(&options, &node));
    MUST(consort_node_group(node, NULL, 0, group));
    until(*group, CONSORT_VIEW, NULL);
    return node;
}

static void end(consort_node *node, consort_group *group)
{
    MUST(consort_node_free(node));
    MUST(consort_group_free(group));
}

/* Takes `count` messages, as many at once as there are, and gives them back. Returns by how many calls. */
static size_t take(consort_group *group, size_t count)
{
    consort_event events[64];
    size_t calls = 0, taken;
    while (count > 0) {
        MUST(consort_next_many(group, 60000, events, count < 64 ? count : 64, &taken));
        SURE(taken >= 1 && taken <= count && taken <= 64);
        for (size_t at = 0; at < taken; at++)
            count -= events[at].kind == CONSORT_MESSAGE;
        MUST(consort_release_many(events, taken));
        calls++;
    }
    return calls;
}

/* What is sent is told, in its order, with its tickets; and nothing else is written. */
static void in_order(void)
{
    consort_group *group;
    consort_node *node = started(&group);
    const consort_message messages[] = {message_of("one"), {NULL, 0}, message_of("three")};
    uint64_t tickets[4] = {7, 7, 7, 7};
    consort_event events[5], none;
    size_t sent = 77, taken = 77, got = 0;

    memset(&none, 0, sizeof none);
    MUST(consort_multicast_many(group, messages, 3, tickets, &sent));
    SURE(sent == 3 && tickets[0] < tickets[1] && tickets[1] < tickets[2] && tickets[3] == 7);
    MUST(consort_try_multicast_many(group, messages, 3, NULL, &sent));
    SURE(sent == 3);
    MUST(consort_multicast_many(group, NULL, 0, NULL, &sent));
    SURE(sent == 0);
    while (got < 6) {
        events[4].kind = 99;
        MUST(consort_next_many(group, 60000, events, 4, &taken));
        SURE(taken >= 1 && taken <= 4 && events[4].kind == 99);
        for (size_t at = 0; at < taken; at++, got++) {
            const consort_message *wanted = &messages[got % 3];
            SURE(events[at].kind == CONSORT_MESSAGE && events[at].node == 1 && events[at].len == wanted->len);
            SURE(wanted->len == 0 || memcmp(events[at].data, wanted->data, wanted->len) == 0);
            SURE(got >= 3 || events[at].ticket == tickets[got]);
        }
        MUST(consort_release_many(events, taken));
        for (size_t at = 0; at < taken; at++)
            SURE(memcmp(&events[at], &none, sizeof none) == 0);
    }
    taken = 77;
    EXPECT(CONSORT_TIMED_OUT, consort_next_many(group, 0, events, 4, &taken));
    EXPECT(CONSORT_TIMED_OUT, consort_next_many(group, 1, events, 4, &taken));
    EXPECT(CONSORT_INVALID, consort_next_many(group, 0, events, 0, &taken));
    EXPECT(CONSORT_INVALID, consort_next_many(group, 0, events, (size_t)-1, &taken));
    SURE(taken == 77);
    end(node, group);
    EXPECT(CONSORT_BAD_HANDLE, consort_next_many(group, -1, events, 4, &taken));
}

typedef struct writing {
    consort_group *group;
    size_t called, nested;
    int nests;
} writing;

/* Of each its index, over all of it. */
static void write_index(void *context, size_t index, void *data, size_t len)
{
    writing *it = (writing *)context;
    memset(data, (int)index + 1, len);
    it->called++;
    if (it->nests && index == 1) { /* what there is room for is sent, and nothing waits for more */
        consort_status status;
        size_t sent = 77;
        while ((status = consort_multicast_many(it->group, many, MANY, NULL, &sent)) == CONSORT_OK)
            it->nested += sent;
        EXPECT(CONSORT_WOULD_DEADLOCK, status);
        SURE(it->nested > 65536 / LONG / 2);
    }
}

/* What is written in place is told as it was written, in its order, and what others sent meanwhile comes after it or between. */
static void written_in_place(void)
{
    const size_t lengths[] = {5, 0, 300};
    consort_event events[64];
    consort_group *group;
    consort_node *node = started(&group);
    writing it;
    uint64_t tickets[4] = {7, 7, 7, 7};
    size_t sent = 77, taken, next = 0, others = 0, wanted;
    memset(&it, 0, sizeof it);
    it.group = group;

    MUST(consort_write_many(group, lengths, 3, write_index, &it, tickets, &sent));
    SURE(sent == 3 && it.called == 3 && tickets[0] < tickets[1] && tickets[1] < tickets[2] && tickets[3] == 7);
    MUST(consort_try_write_many(group, NULL, 0, write_index, &it, NULL, &sent));
    SURE(sent == 0 && it.called == 3);
    EXPECT(CONSORT_INVALID, consort_write_many(group, lengths, (size_t)-1, write_index, &it, NULL, &sent));
    it.nests = 1;
    MUST(consort_try_write_many(group, lengths, 3, write_index, &it, NULL, &sent));
    SURE((sent == 2 || sent == 3) && it.called == 3 + sent);
    wanted = 3 + sent;
    while (next < wanted || others < it.nested) {
        MUST(consort_next_many(group, 60000, events, 64, &taken));
        for (size_t at = 0; at < taken; at++) {
            const uint8_t *bytes = (const uint8_t *)events[at].data;
            size_t index = next % 3;
            SURE(events[at].kind == CONSORT_MESSAGE);
            if (events[at].len == LONG) { /* sent while the second was written */
                SURE(next >= 5);
                others++;
                continue;
            }
            SURE(events[at].len == lengths[index]);
            for (size_t byte = 0; byte < events[at].len; byte++)
                SURE(bytes[byte] == index + 1);
            SURE(next >= 3 || events[at].ticket == tickets[next]);
            next++;
        }
        MUST(consort_release_many(events, taken));
    }
    end(node, group);
}

/* A batch ends where a message can't be sent: if that is the first, the call fails. */
static void that_cant_be_sent(void)
{
    consort_group *group;
    consort_node *node = started(&group);
    static uint8_t bytes[65536];
    consort_message messages[] = {message_of("one"), message_of("two"), {NULL, 5}, message_of("four")};
    uint64_t tickets[4] = {7, 7, 7, 7};
    size_t sent = 77;

    MUST(consort_multicast_many(group, messages, 4, tickets, &sent));
    SURE(sent == 2 && tickets[1] > tickets[0] && tickets[2] == 7 && tickets[3] == 7);
    sent = 77;
    EXPECT(CONSORT_INVALID, consort_multicast_many(group, messages + 2, 2, tickets + 2, &sent));
    EXPECT(CONSORT_INVALID, consort_multicast_many(group, messages, (size_t)-1, NULL, &sent));
    messages[2].data = bytes, messages[2].len = sizeof bytes;
    MUST(consort_try_multicast_many(group, messages + 1, 3, NULL, &sent));
    SURE(sent == 1);
    sent = 77;
    EXPECT(CONSORT_TOO_LONG, consort_try_multicast_many(group, messages + 2, 2, tickets + 2, &sent));
    EXPECT(CONSORT_TOO_LONG, consort_multicast_many(group, messages + 2, 2, tickets + 2, &sent));
    messages[2].len = (size_t)-1;
    EXPECT(CONSORT_INVALID, consort_multicast_many(group, messages + 2, 2, tickets + 2, &sent));
    SURE(sent == 77 && tickets[2] == 7);
    take(group, 3);
    MUST(consort_end(group));
    EXPECT(CONSORT_ENDED, consort_multicast_many(group, messages, 2, NULL, &sent));
    MUST(consort_node_stop(node));
    end(node, group);
}

/* Of more than the ring holds, what fits is sent; and who blocks sends all. */
static void more_than_there_is_room_for(void)
{
    consort_group *group;
    consort_node *node = started(&group);
    consort_event event;
    size_t sent = 0, more = 0;
    consort_status status;

    /* Nobody takes what came first, so nothing makes room. */
    MUST(consort_multicast(group, "first", 5, NULL));
    until(group, CONSORT_MESSAGE, &event);
    while ((status = consort_try_multicast_many(group, many, MANY, NULL, &more)) == CONSORT_OK) {
        SURE(more >= 1 && more < MANY);
        sent += more;
    }
    more = 77;
    EXPECT(CONSORT_FULL, consort_try_multicast_many(group, many, MANY, NULL, &more));
    SURE(status == CONSORT_FULL && more == 77 && sent > 65536 / LONG / 2 && sent < MANY);
    MUST(consort_release(&event));
    take(group, sent);
    end(node, group);
}

static void *send_all(void *context)
{
    size_t sent;
    MUST(consort_multicast_many((consort_group *)context, many, MANY, NULL, &sent));
    SURE(sent == MANY);
    return NULL;
}

static void blocking(void)
{
    consort_group *group;
    consort_node *node = started(&group);
    pthread_t thread;
    pthread_create(&thread, NULL, send_all, group);
    take(group, MANY);
    pthread_join(thread, NULL);
    end(node, group);
}

/* Loans come back once, whoever gives them back, and by whichever call. */
static void given_back(void)
{
    consort_group *group;
    consort_node *node = started(&group);
    const consort_message messages[] = {message_of("a"), message_of("b"), message_of("c")};
    consort_event events[3], copies[3], kept;
    size_t sent, have = 0, taken;

    MUST(consort_multicast_many(group, messages, 3, NULL, &sent));
    for (; have < 3; have += taken)
        MUST(consort_next_many(group, 60000, events + have, 3 - have, &taken));
    MUST(consort_release(&events[1])); /* cleared, so passed over */
    memcpy(copies, events, sizeof events);
    MUST(consort_release_many(events, 3));
    MUST(consort_release_many(events, 3));
    MUST(consort_release_many(events, 0));
    MUST(consort_release_many(NULL, 0));
    EXPECT(CONSORT_BAD_HANDLE, consort_release_many(copies, 3));
    SURE(copies[0].lent != 0 && copies[0].len == 1); /* left as it is */
    EXPECT(CONSORT_INVALID, consort_release_many(events, (size_t)-1));

    /* One of them is kept elsewhere: that is refused, and the others are given back. */
    MUST(consort_multicast_many(group, messages, 3, NULL, &sent));
    for (have = 0; have < 3; have += taken)
        MUST(consort_next_many(group, 60000, events + have, 3 - have, &taken));
    MUST(consort_keep(&events[0], &kept));
    EXPECT(CONSORT_BAD_HANDLE, consort_release_many(events, 3));
    SURE(events[0].lent != 0 && events[1].lent == 0 && events[2].lent == 0);
    SURE(kept.len == 1 && kept.data[0] == 'a');
    MUST(consort_release_many(&kept, 1));
    EXPECT(CONSORT_BAD_HANDLE, consort_release(&kept));
    end(node, group);
}

typedef struct shared {
    consort_event events[MANY];
    size_t count;
    int refused; /* how many were told that something was gone */
    pthread_barrier_t begin;
} shared;

static void *release_copies(void *context)
{
    shared *it = (shared *)context;
    consort_event copies[MANY];
    memcpy(copies, it->events, sizeof copies);
    pthread_barrier_wait(&it->begin);
    consort_status status = consort_release_many(copies, it->count);
    size_t left = 0;
    for (size_t at = 0; at < it->count; at++)
        left += copies[at].lent != 0;
    SURE(status == (left == 0 ? CONSORT_OK : CONSORT_BAD_HANDLE));
    __atomic_fetch_add(&it->refused, (int)left, __ATOMIC_SEQ_CST);
    return NULL;
}

/* Of all who give the same events back, each event has one to whom it belonged; and all its room is there again after that. */
static void by_many_threads(void)
{
    static shared it;
    consort_group *group;
    consort_node *node = started(&group);
    pthread_t threads[THREADS];
    for (int round = 0; round < 5; round++) {
        consort_message messages[100];
        size_t sent = 0, taken;
        for (int at = 0; at < 100; at++)
            messages[at] = message_of("to be given back");
        MUST(consort_multicast_many(group, messages, 100, NULL, &sent));
        for (it.count = 0; it.count < 100; it.count += taken)
            MUST(consort_next_many(group, 60000, it.events + it.count, 100 - it.count, &taken));
        it.refused = 0;
        pthread_barrier_init(&it.begin, NULL, THREADS);
        for (int at = 0; at < THREADS; at++)
            pthread_create(&threads[at], NULL, release_copies, &it);
        for (int at = 0; at < THREADS; at++)
            pthread_join(threads[at], NULL);
        pthread_barrier_destroy(&it.begin);
        SURE(it.refused == (THREADS - 1) * 100);
    }
    pthread_create(&threads[0], NULL, send_all, group);
    take(group, MANY);
    pthread_join(threads[0], NULL);
    end(node, group);
}

/* The descriptor says that there are events until a call has found none. */
static void with_a_descriptor(void)
{
    consort_group *group;
    consort_node *node = started(&group);
    const consort_message messages[] = {message_of("a"), message_of("b")};
    consort_event events[2];
    size_t sent, have = 0, taken;
    consort_status status;
    struct pollfd ready = {0, POLLIN, 0};
    MUST(consort_group_fd(group, &ready.fd));
    MUST(consort_multicast_many(group, messages, 2, NULL, &sent));
    while (have < 2) {
        SURE(poll(&ready, 1, 60000) == 1);
        while ((status = consort_next_many(group, 0, events, 2, &taken)) == CONSORT_OK) {
            have += taken;
            MUST(consort_release_many(events, taken));
        }
        EXPECT(CONSORT_TIMED_OUT, status);
    }
    SURE(poll(&ready, 1, 0) == 0);
    end(node, group);
}

typedef struct seen {
    consort_node *node;
    consort_group *group;
    sem_t told;
    int views, messages;
} seen;

/* In a callback nothing waits: what there is room for is sent. */
static void on_event(void *context, const consort_event *event)
{
    seen *it = (seen *)context;
    consort_event none[2];
    size_t sent = 77, taken = 77;
    if (event->kind != CONSORT_MESSAGE || it->messages++ > 0)
        return;
    EXPECT(CONSORT_TIMED_OUT, consort_next_many(it->group, 0, none, 2, &taken));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_next_many(it->group, -1, none, 2, &taken));
    MUST(consort_multicast_many(it->group, many, MANY, NULL, &sent));
    SURE(sent >= 1 && sent < MANY);
    sent = 77;
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_multicast_many(it->group, many, MANY, NULL, &sent));
    EXPECT(CONSORT_FULL, consort_try_multicast_many(it->group, many, MANY, NULL, &sent));
    SURE(sent == 77 && taken == 77);
    sem_post(&it->told);
}

static void in_callbacks(void)
{
    seen it;
    memset(&it, 0, sizeof it);
    sem_init(&it.told, 0, 0);
    it.node = started(&it.group);
    MUST(consort_listen(it.group, on_event, &it));
    MUST(consort_multicast(it.group, "first", 5, NULL));
    sem_wait(&it.told);
    end(it.node, it.group);
}

static void on_driven(void *context, const consort_event *event)
{
    seen *it = (seen *)context;
    consort_event copy = *event;
    it->views += event->kind == CONSORT_VIEW;
    it->messages += event->kind == CONSORT_MESSAGE;
    if (event->kind == CONSORT_MESSAGE) /* lent for the call only */
        EXPECT(CONSORT_BAD_HANDLE, consort_release_many(&copy, 1));
}

/* Who drives a node sends what there is room for, also by the call that blocks elsewhere. */
static void driving(void)
{
    consort_node_options options = alone(1);
    consort_event events[2];
    size_t sent, taken;
    int all = 0;
    seen it;
    memset(&it, 0, sizeof it);
    MUST(consort_driven_new(&options, &it.node));
    MUST(consort_node_group(it.node, NULL, 0, &it.group));
    EXPECT(CONSORT_NOT_STARTED, consort_try_multicast_many(it.group, many, MANY, NULL, &sent));
    EXPECT(CONSORT_REFUSED, consort_next_many(it.group, 0, events, 2, &taken));
    while (it.views == 0)
        MUST(consort_poll(it.node, on_driven, &it, NULL));
    while (all < MANY) {
        consort_status status = consort_multicast_many(it.group, many, (size_t)(MANY - all), NULL, &sent);
        if (status == CONSORT_OK)
            all += (int)sent;
        else
            EXPECT(CONSORT_WOULD_DEADLOCK, status);
        MUST(consort_poll(it.node, on_driven, &it, NULL));
    }
    while (it.messages < MANY)
        MUST(consort_poll(it.node, on_driven, &it, NULL));
    end(it.node, it.group);
}

int main(void)
{
    for (int at = 0; at < MANY; at++)
        many[at].data = some_bytes, many[at].len = LONG;
    in_order();
    that_cant_be_sent();
    written_in_place();
    more_than_there_is_room_for();
    blocking();
    given_back();
    by_many_threads();
    with_a_descriptor();
    in_callbacks();
    driving();
    puts("all came back");
    return 0;
}
