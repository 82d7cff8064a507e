/* A counter that every member has, the same at all of them.
 *
 *   counter --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --peer 3=127.0.0.1:7103
 *
 * A line of its input is a number, to be added; or `get`, for the counter with all that was added anywhere before; or `local`,
 * for what it is here. Prints what comes of each line.
 */
#include "arguments.h"

#include <inttypes.h>

/* The state, and what may be done to it. */
typedef struct counter {
    int64_t value;
} counter;

static int apply(void *context, const consort_update *update, consort_writer *reply)
{
    counter *counter = (struct counter *)context;
    int64_t by;
    if (update->len == sizeof by) {
        memcpy(&by, update->data, sizeof by);
        counter->value += by;
    }
    return consort_write(reply, &counter->value, sizeof counter->value) == CONSORT_OK ? 0 : 1;
}

static int snapshot(void *context, consort_writer *state)
{
    const counter *counter = (const struct counter *)context;
    return consort_write(state, &counter->value, sizeof counter->value) == CONSORT_OK ? 0 : 1;
}

static int restore(void *context, consort_reader *state)
{
    counter *counter = (struct counter *)context;
    uint8_t bytes[sizeof counter->value];
    size_t have = 0, got = 1;
    while (have < sizeof bytes && got > 0) {
        if (consort_read(state, bytes + have, sizeof bytes - have, &got) != CONSORT_OK)
            return 1;
        have += got;
    }
    memcpy(&counter->value, bytes, sizeof bytes);
    return have == sizeof bytes ? 0 : 1;
}

static void look(void *context, void *machine)
{
    *(int64_t *)context = ((const counter *)machine)->value;
}

int main(int argc, char **argv)
{
    arguments arguments;
    consort_machine machine;
    consort_replica *replica = NULL;
    counter state = {0};
    char line[256];

    parse(&arguments, argc, argv);
    check(consort_machine_init(sizeof machine, &machine), "machine");
    machine.context = &state;
    machine.apply = apply;
    machine.snapshot = snapshot;
    machine.restore = restore;
    check(consort_replica_new(&arguments.options, &machine, &replica), "start");

    while (fgets(line, sizeof line, stdin) != NULL) {
        int64_t value = 0;
        if (strncmp(line, "get", 3) == 0) {
            check(consort_replica_query(replica, CONSORT_LINEARIZABLE, look, &value), "query");
        } else if (strncmp(line, "local", 5) == 0) {
            check(consort_replica_query(replica, CONSORT_LOCAL, look, &value), "query");
        } else {
            int64_t by = strtoll(line, NULL, 10);
            consort_bytes reply;
            check(consort_replica_update(replica, &by, sizeof by, &reply), "update");
            memcpy(&value, reply.data, sizeof value);
            check(consort_bytes_free(&reply), "free");
        }
        printf("%" PRId64 "\n", value);
        fflush(stdout);
    }
    check(consort_replica_leave(replica, 10000), "leave");
    check(consort_replica_free(replica), "free");
    return 0;
}
