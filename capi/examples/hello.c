/* A group says hello, and whatever you type: every member prints the same lines in the same order.
 *
 *   hello --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --peer 3=127.0.0.1:7103
 *
 * At the end of its input a member leaves, and the others go on. So they do when it is killed.
 */
#include "arguments.h"

#include <inttypes.h>
#include <semaphore.h>
#include <unistd.h>

/* What the callback knows. */
typedef struct hall {
    uint32_t me;
    sem_t begun; /* the group runs */
    sem_t over;  /* all that this member had to say was told */
    int has_begun;
} hall;

/* On a thread of the library's. */
static void on_event(void *context, const consort_event *event)
{
    hall *hall = (struct hall *)context;
    switch (event->kind) {
    case CONSORT_WAITING:
        printf("# %s\n", event->text);
        break;
    case CONSORT_VIEW:
        printf("# view %" PRIu64 " of", event->view);
        for (size_t at = 0; at < event->members->members_len; at++)
            printf(" %" PRIu32, event->members->members[at].node);
        printf("\n");
        if (!hall->has_begun) {
            hall->has_begun = 1;
            sem_post(&hall->begun);
        }
        break;
    case CONSORT_MESSAGE:
        printf("%" PRIu32 ": %.*s\n", event->node, (int)event->len, (const char *)event->data);
        break;
    case CONSORT_ENDED_EVENT:
        printf("# %" PRIu32 " has ended\n", event->node);
        if (event->node == hall->me)
            sem_post(&hall->over);
        break;
    case CONSORT_STOPPED_EVENT:
        printf("# %s\n", event->text);
        sem_post(&hall->begun);
        sem_post(&hall->over);
        break;
    default:
        break;
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    arguments arguments;
    consort_node *node = NULL;
    consort_group *group = NULL;
    hall hall = {0};
    char line[4096];

    parse(&arguments, argc, argv);
    hall.me = arguments.options.id;
    sem_init(&hall.begun, 0, 0);
    sem_init(&hall.over, 0, 0);
    check(consort_node_new(&arguments.options, &node), "start");
    check(consort_node_group(node, NULL, 0, &group), "group");
    check(consort_listen(group, on_event, &hall), "listen");
    sem_wait(&hall.begun);

    /* In place: the message is written where the others read it. */
    consort_room room;
    check(consort_reserve(group, 5, &room), "reserve");
    memcpy(room.data, "hello", room.len);
    check(consort_send(&room, NULL), "send");

    while (fgets(line, sizeof line, stdin) != NULL) {
        size_t len = strcspn(line, "\n");
        check(consort_multicast(group, line, len, NULL), "multicast");
    }
    check(consort_end(group), "end");
    sem_wait(&hall.over);
    check(consort_node_leave(node, 10000), "leave");
    check(consort_group_free(group), "free");
    check(consort_node_free(node), "free");
    return 0;
}
