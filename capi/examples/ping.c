/* How long a message takes until it is delivered here, which under CONSORT_ATOMIC is: until every member has it.
 *
 *   ping --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --count 100000 --size 64
 *   ping --id 2 --listen 127.0.0.1:7102 --peer 1=127.0.0.1:7101
 *
 * The one that has a --count pings, one message after the other; or with a --window of more than one so many at once, for
 * throughput. With --copy 1 it sends copies, by one call each, which for small messages is cheaper than to write them in place by two; with a
 * --batch it sends so many copies by each call, which is cheaper still. The others deliver. All drive their nodes themselves, so no message
 * changes threads.
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

/* Goes on until there is something, or for a tenth of a second: a ring that is full may have room then. */
static void turn(consort_node *node, course *course)
{
    check(consort_drive(node, 100, on_event, course, NULL), "drive");
}

/* What is to be sent, and how. */
typedef struct load {
    uint64_t count, size, window, batch;
    uint8_t *copied;           /* NULL: messages are written in place */
    consort_message *messages; /* `batch` of them */
    uint64_t *took;            /* when each was sent, then how long it took */
} load;

/* Sends as many messages as there is room for, at most `most`. Those that are written in place are all `fill`. */
static consort_status send_some(consort_group *group, const load *load, size_t most, int fill, size_t *sent)
{
    consort_room room;
    consort_status status;
    if (load->batch > 1)
        return consort_try_multicast_many(group, load->messages, most < load->batch ? most : load->batch, NULL, sent);
    *sent = 1;
    if (load->copied != NULL)
        return consort_try_multicast(group, load->copied, load->size, NULL);
    status = consort_try_reserve(group, load->size, &room);
    if (status == CONSORT_OK) {
        memset(room.data, fill, room.len);
        status = consort_send(&room, NULL);
    }
    return status;
}

/* Sends all, and waits until all have come back. What the first tenth takes isn't counted. Gives the nanoseconds that the rest took, and those in
 * which this thread was busy. */
static void exchange(consort_node *node, consort_group *group, course *course, const load *load, uint64_t *all, uint64_t *busy)
{
    uint64_t warm = load->count / 10, most = warm + load->count, sent = 0, turned = 0, began = 0;
    *busy = 0;
    while (course->delivered < most) {
        uint64_t under_way = sent - course->delivered;
        if (sent < most && under_way < load->window) {
            uint64_t at = now(), end = most - sent < load->window - under_way ? most : sent + load->window - under_way;
            size_t more;
            consort_status status = send_some(group, load, (size_t)(end - sent), (int)(sent & 0xff), &more);
            if (status == CONSORT_OK) {
                for (; more > 0; more--, sent++) {
                    if (sent == warm)
                        began = at, *busy = now_of(CLOCK_THREAD_CPUTIME_ID);
                    if (sent >= warm)
                        load->took[sent - warm] = at;
                }
                if (load->window > 1 && sent - turned < 64)
                    continue;
            } else if (status != CONSORT_FULL && status != CONSORT_CHANGING) {
                check(status, "send");
            }
        }
        uint64_t before = course->delivered;
        turn(node, course);
        turned = sent;
        uint64_t there = now();
        for (uint64_t at = before; at < course->delivered; at++)
            if (at >= warm)
                load->took[at - warm] = there - load->took[at - warm];
    }
    *all = now() - began;
    *busy = now_of(CLOCK_THREAD_CPUTIME_ID) - *busy;
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
    load load = {0};
    uint64_t copies = 0, all, busy;

    load.size = 64, load.window = 1, load.batch = 1;
    begin(&arguments);
    for (int at = 1; at < argc; at += 2) {
        if (at + 1 == argc)
            usage(argv[at]);
        if (strcmp(argv[at], "--count") == 0)
            load.count = strtoull(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--size") == 0)
            load.size = strtoull(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--window") == 0)
            load.window = strtoull(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--copy") == 0)
            copies = strtoull(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--batch") == 0)
            load.batch = strtoull(argv[at + 1], NULL, 10);
        else if (!take(&arguments, argv[at], argv[at + 1]))
            usage(argv[at]);
    }
    course.me = arguments.options.id;
    check(consort_driven_new(&arguments.options, &node), "start");
    check(consort_node_group(node, NULL, 0, &group), "group");
    while (!course.has_view)
        turn(node, &course);

    if (load.count > 0) {
        load.took = (uint64_t *)calloc(load.count, sizeof *load.took);
        load.messages = (consort_message *)calloc(load.batch, sizeof *load.messages);
        load.copied = copies || load.batch > 1 ? (uint8_t *)calloc(1, load.size + 1) : NULL;
        if (load.took == NULL || load.messages == NULL || ((copies || load.batch > 1) && load.copied == NULL))
            return 1;
        for (uint64_t at = 0; at < load.batch; at++)
            load.messages[at].data = load.copied, load.messages[at].len = load.size;
        exchange(node, group, &course, &load, &all, &busy);
        qsort(load.took, load.count, sizeof *load.took, compare);
        printf("%" PRIu64 " messages of %" PRIu64 " bytes: %.0f a second, median %" PRIu64 " ns, p99 %" PRIu64 " ns, takes %.0f ns of processor time each\n",
               load.count, load.size, (double)load.count * 1e9 / (double)all, load.took[load.count / 2],
               load.took[load.count / 100 * 99], (double)busy / (double)load.count);
        fflush(stdout);
        free(load.took);
        free(load.messages);
        free(load.copied);
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
