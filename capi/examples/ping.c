/* How long a message takes until it is delivered here, which under CONSORT_ATOMIC is: until every member has it.
 *
 *   ping --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --count 100000 --size 64
 *   ping --id 2 --listen 127.0.0.1:7102 --peer 1=127.0.0.1:7101
 *
 * The one that has a --count pings, one message after the other; or with a --window of more than one so many at once, for
 * throughput. With --copy 1 it sends copies, by one call each, which for small messages is cheaper than to write them in place by two. The
 * others deliver. All drive their nodes themselves, so no message changes threads.
 */
#include "arguments.h"

#include <inttypes.h>
#include <time.h>

static uint64_t now_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t now(void)
{
    return now_of(CLOCK_MONOTONIC);
}

typedef struct course {
    uint32_t me;
    int has_view, has_ended;
    uint64_t delivered; /* own messages that came back */
} course;

static void on_event(void *context, const consort_event *event)
{
    course *course = (struct course *)context;
    if (event->kind == CONSORT_VIEW)
        course->has_view = 1;
    else if (event->kind == CONSORT_MESSAGE && event->node == course->me)
        course->delivered++;
    else if (event->kind == CONSORT_ENDED_EVENT)
        course->has_ended = 1;
}

/* A turn, and a rest if it had nothing to do. */
static void turn(consort_node *node, course *course)
{
    uint32_t worked;
    check(consort_poll(node, on_event, course, &worked), "poll");
    if (!worked)
        check(consort_wait(node), "wait");
}

/* Sends a message of so many bytes, all of them `fill`. */
static consort_status send_one(consort_group *group, const uint8_t *copied, size_t size, int fill)
{
    consort_room room;
    if (copied != NULL)
        return consort_try_multicast(group, copied, size, NULL);
    consort_status status = consort_try_reserve(group, size, &room);
    if (status == CONSORT_OK) {
        memset(room.data, fill, room.len);
        status = consort_send(&room, NULL);
    }
    return status;
}

static int compare(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

int main(int argc, char **argv)
{
    arguments arguments;
    consort_node *node = NULL;
    consort_group *group = NULL;
    course course = {0};
    uint64_t count = 0, size = 64, window = 1, copies = 0;

    begin(&arguments);
    for (int at = 1; at < argc; at += 2) {
        if (at + 1 == argc)
            usage(argv[at]);
        if (strcmp(argv[at], "--count") == 0)
            count = strtoull(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--size") == 0)
            size = strtoull(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--window") == 0)
            window = strtoull(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--copy") == 0)
            copies = strtoull(argv[at + 1], NULL, 10);
        else if (!take(&arguments, argv[at], argv[at + 1]))
            usage(argv[at]);
    }
    course.me = arguments.options.id;
    check(consort_driven_new(&arguments.options, &node), "start");
    check(consort_node_group(node, NULL, 0, &group), "group");
    while (!course.has_view)
        turn(node, &course);

    if (count > 0) {
        uint64_t warm = count / 10, sent = 0, began = 0, busy = 0;
        uint64_t *took = (uint64_t *)calloc(count, sizeof *took);
        uint8_t *copied = copies ? (uint8_t *)calloc(1, size + 1) : NULL;
        if (took == NULL || (copies && copied == NULL))
            return 1;
        while (course.delivered < warm + count) {
            if (sent < warm + count && sent - course.delivered < window) {
                uint64_t at = now();
                consort_status status = send_one(group, copied, size, (int)(sent & 0xff));
                if (status == CONSORT_OK) {
                    if (sent == warm)
                        began = at, busy = now_of(CLOCK_THREAD_CPUTIME_ID);
                    if (sent >= warm)
                        took[sent - warm] = at;
                    sent++;
                    if (window > 1 && sent % 64 != 0)
                        continue;
                } else if (status != CONSORT_FULL && status != CONSORT_CHANGING) {
                    check(status, "send");
                }
            }
            uint64_t before = course.delivered;
            turn(node, &course);
            uint64_t there = now();
            for (uint64_t at = before; at < course.delivered; at++)
                if (at >= warm)
                    took[at - warm] = there - took[at - warm];
        }
        uint64_t all = now() - began;
        busy = now_of(CLOCK_THREAD_CPUTIME_ID) - busy;
        qsort(took, count, sizeof *took, compare);
        printf("%" PRIu64 " messages of %" PRIu64 " bytes: %.0f a second, median %" PRIu64 " ns, p99 %" PRIu64 " ns, takes %.0f ns of processor time each\n",
               count, size,
               (double)count * 1e9 / (double)all, took[count / 2], took[count / 100 * 99], (double)busy / (double)count);
        fflush(stdout);
        free(took);
        free(copied);
        consort_status ended;
        while ((ended = consort_end(group)) == CONSORT_WOULD_DEADLOCK)
            turn(node, &course);
        check(ended, "end");
    }
    while (!course.has_ended)
        turn(node, &course);
    check(consort_node_leave(node, 10000), "leave");
    check(consort_group_free(group), "free");
    check(consort_node_free(node), "free");
    return 0;
}
