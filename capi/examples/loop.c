/* One loop for everything: a program that waits in epoll for its input and for its group, on one thread.
 *
 *   loop --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102
 *
 * Multicasts what comes in, prints what is delivered, and ends when all members have come to the end of their input.
 */
#include "arguments.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/epoll.h>
#include <unistd.h>

/* Input that found no room in the ring yet. */
typedef struct input {
    char bytes[4096];
    size_t len;
    int is_watched, is_over, was_ended;
} input;

/* Sends lines as long as there is room. The last needs no end; one that is longer than the buffer goes in pieces. */
static void send_lines(consort_group *group, input *input)
{
    while (input->len > 0) {
        const char *end = (const char *)memchr(input->bytes, '\n', input->len);
        if (end == NULL && !input->is_over && input->len < sizeof input->bytes)
            return; /* the rest of the line is to come */
        size_t len = end != NULL ? (size_t)(end - input->bytes) : input->len;
        consort_status status = consort_try_multicast(group, input->bytes, len, NULL);
        if (status == CONSORT_FULL || status == CONSORT_CHANGING || status == CONSORT_NOT_STARTED)
            return; /* when events come, there may be room */
        check(status, "multicast");
        size_t taken = end != NULL ? len + 1 : len;
        input->len -= taken;
        memmove(input->bytes, input->bytes + taken, input->len);
    }
}

/* Standard input is watched while there is room for it: to read none would look like its end, and epoll would tell of it again and again. */
static void watch_input(int epoll, input *input)
{
    int is_wanted = !input->is_over && input->len < sizeof input->bytes;
    struct epoll_event wanted;
    if (is_wanted == input->is_watched)
        return;
    memset(&wanted, 0, sizeof wanted);
    wanted.events = EPOLLIN;
    wanted.data.fd = STDIN_FILENO;
    if (epoll_ctl(epoll, is_wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, STDIN_FILENO, &wanted) != 0) {
        perror("standard input");
        exit(1);
    }
    input->is_watched = is_wanted;
}

int main(int argc, char **argv)
{
    arguments arguments;
    consort_node *node = NULL;
    consort_group *group = NULL;
    input input = {0};
    size_t members = 0, ended = 0;
    int has_view = 0, fd;

    parse(&arguments, argc, argv);
    check(consort_node_new(&arguments.options, &node), "start");
    check(consort_node_group(node, NULL, 0, &group), "group");
    check(consort_group_fd(group, &fd), "descriptor");

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.events = EPOLLIN;
    wanted.data.fd = fd;
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted) != 0) {
        perror("epoll");
        return 1;
    }
    if (fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK) != 0) {
        perror("standard input");
        return 1;
    }
    watch_input(epoll, &input);

    while (!has_view || ended < members) {
        struct epoll_event ready[2];
        int count = epoll_wait(epoll, ready, 2, -1);
        for (int at = 0; at < count; at++) {
            if (ready[at].data.fd == STDIN_FILENO) {
                ssize_t got = read(STDIN_FILENO, input.bytes + input.len, sizeof input.bytes - input.len);
                if (got > 0)
                    input.len += (size_t)got;
                else if (got == 0 || (errno != EAGAIN && errno != EINTR))
                    input.is_over = 1;
                continue;
            }
            consort_event event;
            consort_status status;
            while ((status = consort_next(group, 0, &event)) == CONSORT_OK) {
                if (event.kind == CONSORT_VIEW) {
                    has_view = 1;
                    members = event.members->members_len;
                } else if (event.kind == CONSORT_MESSAGE) {
                    printf("%" PRIu32 ": %.*s\n", event.node, (int)event.len, (const char *)event.data);
                } else if (event.kind == CONSORT_ENDED_EVENT) {
                    ended++;
                }
                check(consort_release(&event), "release");
            }
            if (status != CONSORT_TIMED_OUT)
                check(status, "next");
        }
        send_lines(group, &input);
        watch_input(epoll, &input);
        if (input.is_over && has_view && !input.was_ended && input.len == 0) {
            check(consort_end(group), "end");
            input.was_ended = 1;
        }
    }
    fflush(stdout);
    close(epoll);
    check(consort_node_leave(node, 10000), "leave");
    check(consort_group_free(group), "free");
    check(consort_node_free(node), "free");
    return 0;
}
