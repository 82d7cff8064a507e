/* Calls that come back in from callbacks, loans that are given back twice, and the child of a fork. */
#include "misuse.h"

#include <semaphore.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct seen {
    consort_node *node, *other; /* other: driven, too */
    consort_group *group;
    consort_replica *replica;
    consort_event kept;
    sem_t told, over;
    int count;
} seen;

/* Everything that waits is refused; what doesn't, works. */
static void on_event(void *context, const consort_event *event)
{
    seen *it = (seen *)context;
    if (event->kind == CONSORT_MESSAGE && it->count++ == 0) {
        consort_room room;
        consort_outcome *outcome;
        consort_delivered delivered = {77, 77};
        consort_event none;
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_node_free(it->node));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_node_leave(it->node, -1));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_end(it->group));
        EXPECT(CONSORT_WOULD_DEADLOCK, consort_next(it->group, -1, &none));
        EXPECT(CONSORT_TIMED_OUT, consort_next(it->group, 0, &none));
        EXPECT(CONSORT_BUSY, consort_listen(it->group, on_event, it));
        MUST(consort_reserve(it->group, 5, &room));
        memcpy(room.data, "again", 5);
        MUST(consort_send_tracked(&room, &outcome));
        /* The engine may have delivered it by now: either is right, and neither waits. */
        consort_status status = consort_outcome_wait(outcome, -1, &delivered);
        SURE(status == CONSORT_OK || (status == CONSORT_WOULD_DEADLOCK && delivered.view == 77));
        MUST(consort_outcome_free(outcome));
        MUST(consort_keep(event, &it->kept));
        EXPECT(CONSORT_BAD_HANDLE, consort_keep(event, &none));
    }
    if (event->kind == CONSORT_MESSAGE)
        sem_post(&it->told);
    if (event->kind == CONSORT_STOPPED_EVENT) {
        SURE(event->status == CONSORT_STOPPED && strlen(event->text) > 0);
        sem_post(&it->over);
    }
}

static void listening(void)
{
    consort_node_options options = alone(1);
    consort_group *other;
    int fd;
    seen it;
    memset(&it, 0, sizeof it);
    sem_init(&it.told, 0, 0);
    sem_init(&it.over, 0, 0);
    MUST(consort_node_new(&options, &it.node));
    MUST(consort_node_group(it.node, NULL, 0, &it.group));
    MUST(consort_node_group(it.node, NULL, 0, &other));
    MUST(consort_listen(it.group, on_event, &it));
    MUST(consort_multicast(it.group, "hello", 5, NULL));
    sem_wait(&it.told);
    sem_wait(&it.told);
    SURE(it.kept.len == 5 && memcmp(it.kept.data, "hello", 5) == 0);
    consort_event copy = it.kept;
    MUST(consort_release(&it.kept));
    SURE(it.kept.data == NULL && it.kept.lent == 0);
    EXPECT(CONSORT_BAD_HANDLE, consort_release(&it.kept));
    EXPECT(CONSORT_BAD_HANDLE, consort_release(&copy));
    MUST(consort_node_free(it.node));
    sem_wait(&it.over);
    EXPECT(CONSORT_STOPPED, consort_multicast(it.group, "late", 4, NULL));
    EXPECT(CONSORT_STOPPED, consort_next(it.group, -1, &copy));
    MUST(consort_group_free(it.group));
    /* No callback comes after the node's end, which nobody would wait for. */
    EXPECT(CONSORT_STOPPED, consort_listen(other, on_event, &it));
    EXPECT(CONSORT_STOPPED, consort_group_fd(other, &fd));
    MUST(consort_group_free(other));
    SURE(it.count == 2);
}

static void on_outcome(void *context, consort_status status, const consort_delivered *delivered)
{
    seen *it = (seen *)context;
    consort_stats stats;
    consort_bytes text;
    stats.struct_size = sizeof stats;
    SURE(status == CONSORT_OK && delivered->view > 0);
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_node_free(it->node));
    /* The engine answers these, and this is its thread. */
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_node_stats(it->node, &stats));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_node_status(it->node, &text));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_ask("127.0.0.1:1", NULL, 0, CONSORT_ASK_STATUS, -1, &text));
    sem_post(&it->told);
}

/* Rooms, outcomes, sizes. */
static void sending(void)
{
    consort_node_options options = alone(1);
    consort_outcome *outcome;
    consort_delivered delivered;
    consort_room room, copy;
    consort_event event;
    size_t most;
    uint64_t ticket;
    seen it;
    memset(&it, 0, sizeof it);
    sem_init(&it.told, 0, 0);
    MUST(consort_node_new(&options, &it.node));
    MUST(consort_node_group(it.node, NULL, 0, &it.group));
    until(it.group, CONSORT_VIEW, NULL);
    MUST(consort_group_max_len(it.group, &most));
    EXPECT(CONSORT_TOO_LONG, consort_reserve(it.group, most + 1, &room));
    EXPECT(CONSORT_TOO_LONG, consort_reserve(it.group, (size_t)-1, &room));
    EXPECT(CONSORT_INVALID, consort_multicast(it.group, "x", (size_t)-1, NULL));

    MUST(consort_reserve(it.group, 8, &room));
    copy = room;
    memcpy(room.data, "in place", 8);
    MUST(consort_send(&room, &ticket));
    EXPECT(CONSORT_BAD_HANDLE, consort_send(&room, NULL));
    EXPECT(CONSORT_BAD_HANDLE, consort_send(&copy, NULL));
    EXPECT(CONSORT_BAD_HANDLE, consort_cancel(&copy));
    until(it.group, CONSORT_MESSAGE, &event);
    SURE(event.ticket == ticket && event.len == 8 && memcmp(event.data, "in place", 8) == 0 && event.node == 1);
    EXPECT(CONSORT_INVALID, consort_snapshot_give(&event, "x", 1));
    EXPECT(CONSORT_INVALID, consort_restore_read(&event, (uint8_t *)&most, 8, &most));
    MUST(consort_release(&event));

    MUST(consort_reserve(it.group, 8, &room));
    MUST(consort_cancel(&room));
    MUST(consort_multicast(it.group, NULL, 0, NULL)); /* an empty message needs no bytes */
    until(it.group, CONSORT_MESSAGE, &event);
    SURE(event.len == 0);
    MUST(consort_release(&event));

    /* For some members: this one is all there are. */
    const uint32_t here[] = {1}, nobody[] = {1, 2};
    static const uint32_t many[65];
    EXPECT(CONSORT_NOT_MEMBER, consort_multicast_to(it.group, nobody, 2, "x", 1, NULL));
    EXPECT(CONSORT_NOT_MEMBER, consort_reserve_to(it.group, nobody, 2, 8, &room));
    EXPECT(CONSORT_INVALID, consort_multicast_to(it.group, here, 0, "x", 1, NULL));
    EXPECT(CONSORT_INVALID, consort_multicast_to(it.group, many, 65, "x", 1, NULL));
    EXPECT(CONSORT_INVALID, consort_multicast_to(it.group, NULL, 1, "x", 1, NULL));
    EXPECT(CONSORT_TOO_LONG, consort_reserve_to(it.group, here, 1, most, &room));
    MUST(consort_multicast_to(it.group, here, 1, "here", 4, &ticket));
    until(it.group, CONSORT_MESSAGE, &event);
    SURE(event.ticket == ticket && event.len == 4 && memcmp(event.data, "here", 4) == 0);
    MUST(consort_release(&event));
    MUST(consort_try_reserve_to(it.group, here, 1, 8, &room));
    SURE(room.len == 8);
    memcpy(room.data, "in place", 8);
    MUST(consort_send(&room, NULL));
    until(it.group, CONSORT_MESSAGE, &event);
    SURE(event.len == 8 && memcmp(event.data, "in place", 8) == 0);
    MUST(consort_release(&event));

    MUST(consort_multicast_tracked(it.group, "x", 1, &outcome));
    MUST(consort_outcome_wait(outcome, -1, &delivered));
    SURE(delivered.view > 0);
    MUST(consort_outcome_then(outcome, on_outcome, &it));
    EXPECT(CONSORT_BAD_HANDLE, consort_outcome_free(outcome));
    sem_wait(&it.told);
    MUST(consort_multicast_tracked(it.group, "y", 1, &outcome));
    MUST(consort_outcome_then(outcome, on_outcome, &it));
    sem_wait(&it.told);

    /* A ring that nobody empties fills up, and says so. */
    consort_status status;
    while ((status = consort_try_multicast(it.group, &options, sizeof options, NULL)) == CONSORT_OK)
        ;
    SURE(status == CONSORT_FULL);
    MUST(consort_node_stop(it.node));
    MUST(consort_node_free(it.node));
    MUST(consort_group_free(it.group));
}

static void on_driven(void *context, const consort_event *event)
{
    seen *it = (seen *)context;
    uint32_t worked;
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_poll(it->node, on_driven, it, &worked));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_drive(it->node, 0, on_driven, it, &worked));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_wait(it->node));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_drive(it->other, 0, on_driven, it, &worked));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_wait(it->other));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_node_free(it->node));
    if (event->kind == CONSORT_VIEW)
        it->count = 1;
    if (event->kind == CONSORT_MESSAGE) {
        consort_event copy = *event;
        EXPECT(CONSORT_BAD_HANDLE, consort_release(&copy));
        MUST(consort_keep(event, &it->kept));
        EXPECT(CONSORT_BUSY, consort_keep(event, &copy));
    }
}

static void driving(void)
{
    consort_node_options options = alone(1), others = alone(2);
    consort_event event;
    int fd;
    seen it;
    memset(&it, 0, sizeof it);
    MUST(consort_driven_new(&options, &it.node));
    MUST(consort_driven_new(&others, &it.other));
    MUST(consort_node_group(it.node, NULL, 0, &it.group));
    EXPECT(CONSORT_REFUSED, consort_group_fd(it.group, &fd));
    EXPECT(CONSORT_REFUSED, consort_next(it.group, 0, &event));
    EXPECT(CONSORT_REFUSED, consort_listen(it.group, on_driven, &it));
    while (it.count == 0)
        MUST(consort_poll(it.node, on_driven, &it, NULL));
    uint32_t told = 7;
    EXPECT(CONSORT_INVALID, consort_drive(it.node, -2, on_driven, &it, &told));
    EXPECT(CONSORT_INVALID, consort_drive(it.node, 0, NULL, &it, &told));
    SURE(told == 7);
    MUST(consort_drive(it.node, 0, on_driven, &it, &told));
    MUST(consort_drive(it.node, 10, on_driven, &it, &told));
    SURE(told == 0);
    MUST(consort_multicast(it.group, "kept", 4, NULL));
    while (it.kept.len == 0) {
        MUST(consort_drive(it.node, -1, on_driven, &it, &told));
        SURE(told != 0);
    }
    SURE(memcmp(it.kept.data, "kept", 4) == 0);
    EXPECT(CONSORT_BAD_HANDLE, consort_keep(&(consort_event){.kind = CONSORT_MESSAGE, .data = it.kept.data}, &event));
    MUST(consort_release(&it.kept));
    MUST(consort_node_leave(it.node, -1));
    EXPECT(CONSORT_STOPPED, consort_poll(it.node, on_driven, &it, NULL));
    MUST(consort_node_free(it.node));
    MUST(consort_group_free(it.group));
    MUST(consort_node_free(it.other));
}

static void never(void *context, void *machine)
{
    (void)context, (void)machine;
    SURE(!"a query in a query");
}

static void look(void *context, void *machine)
{
    sloppy *it = (sloppy *)machine;
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_free(*(consort_replica **)context));
    /* An update that waits for the state would come between the two. */
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_query(*(consort_replica **)context, CONSORT_LOCAL, never, NULL));
    EXPECT(CONSORT_BAD_HANDLE, consort_write(it->writer, "x", 1));
}

/* The update that stops a replica: who waits for it is told when the replica can be asked why. */
static void on_halt(void *context, consort_status status, const void *reply, size_t len)
{
    seen *it = (seen *)context;
    uint64_t applied;
    consort_pending *pending;
    SURE(status == CONSORT_UNKNOWN && reply == NULL && len == 0);
    EXPECT(CONSORT_HALTED, consort_replica_check(it->replica));
    MUST(consort_replica_applied(it->replica, &applied));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_submit(it->replica, "x", 1, &pending));
    EXPECT(CONSORT_WOULD_DEADLOCK, consort_replica_free(it->replica));
    sem_post(&it->told);
}

static void replicas(void)
{
    consort_node_options options = alone(1);
    sloppy state;
    consort_replica *replica;
    consort_pending *pending;
    consort_bytes reply, copy;
    uint64_t bytes;
    consort_machine machine;
    seen it;
    memset(&state, 0, sizeof state);
    memset(&it, 0, sizeof it);
    sem_init(&it.told, 0, 0);

    machine = sloppy_machine(&state);
    machine.apply = NULL;
    EXPECT(CONSORT_INVALID, consort_replica_new(&options, &machine, &replica));
    machine = sloppy_machine(&state);
    options.guarantee = CONSORT_FIFO;
    EXPECT(CONSORT_CONFIG, consort_replica_new(&options, &machine, &replica));
    options.guarantee = CONSORT_ATOMIC;
    SURE(!state.is_freed);

    MUST(consort_replica_new(&options, &machine, &replica));
    MUST(consort_replica_update(replica, "four", 4, &reply));
    memcpy(&bytes, reply.data, sizeof bytes);
    SURE(reply.len == sizeof bytes && bytes == 4);
    copy = reply;
    MUST(consort_bytes_free(&reply));
    EXPECT(CONSORT_BAD_HANDLE, consort_bytes_free(&reply));
    EXPECT(CONSORT_BAD_HANDLE, consort_bytes_free(&copy));
    EXPECT(CONSORT_BAD_HANDLE, consort_write(state.writer, "x", 1));
    state.replica = replica;
    MUST(consort_replica_submit(replica, "five!", 5, &pending));
    MUST(consort_pending_wait(pending, -1, NULL));
    EXPECT(CONSORT_BAD_HANDLE, consort_pending_wait(pending, -1, NULL));
    MUST(consort_pending_free(pending));
    MUST(consort_replica_query(replica, CONSORT_LINEARIZABLE, look, &replica));
    EXPECT(CONSORT_INVALID, consort_replica_query(replica, 9, look, &replica));
    MUST(consort_replica_check(replica));
    state.replica = NULL;
    it.replica = replica;
    MUST(consort_replica_submit_then(replica, "!", 1, on_halt, &it));
    sem_wait(&it.told);
    EXPECT(CONSORT_HALTED, consort_replica_check(replica));
    SURE(strstr(consort_last_error(), "gave 7") != NULL);
    EXPECT(CONSORT_HALTED, consort_replica_update(replica, "x", 1, NULL));
    MUST(consort_replica_free(replica));
    SURE(state.is_freed == 1);
}

static void forking(void)
{
    consort_node_options options = alone(1);
    consort_node *node, *other;
    consort_group *group;
    int status;
    MUST(consort_node_new(&options, &node));
    MUST(consort_node_group(node, NULL, 0, &group));
    pid_t child = fork();
    if (child == 0) {
        EXPECT(CONSORT_FORKED, consort_multicast(group, "x", 1, NULL));
        EXPECT(CONSORT_FORKED, consort_node_new(&options, &other));
        EXPECT(CONSORT_FORKED, consort_node_free(node));
        SURE(strcmp(consort_status_name(CONSORT_FORKED), "CONSORT_FORKED") == 0);
        _exit(0);
    }
    SURE(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    MUST(consort_multicast(group, "x", 1, NULL));
    MUST(consort_node_free(node));
    MUST(consort_group_free(group));
}

int main(void)
{
    listening();
    sending();
    driving();
    replicas();
    forking();
    puts("all was refused that had to be");
    return 0;
}
