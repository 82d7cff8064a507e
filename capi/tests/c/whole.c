/* What no example does: groups and shards, state that joiners get, read points and digests, replicas on a shared node, questions. */
#include "misuse.h"

#include <pthread.h>
#include <unistd.h>

enum { MEMBERS = 3 };

/* Nodes of one process: the first two found the group, the third joins. */
typedef struct cluster {
    char addresses[MEMBERS][32];
    consort_peer peers[MEMBERS][1];
    const char *join[1];
    uint32_t both[2];
    consort_group_options groups[2];
    consort_node_options options[MEMBERS];
} cluster;

static void prepare(cluster *it)
{
    memset(it, 0, sizeof *it);
    it->both[0] = 1, it->both[1] = 2;
    MUST(consort_group_options_init(sizeof it->groups[0], &it->groups[0]));
    MUST(consort_group_options_init(sizeof it->groups[1], &it->groups[1]));
    it->groups[0].name = "pair";
    it->groups[0].nodes = it->both;
    it->groups[0].nodes_len = 2;
    it->groups[0].guarantee = CONSORT_AGREED;
    it->groups[0].ring_bytes = 65536;
    it->groups[1].name = "orders";
    it->groups[1].shards = 2;
    it->groups[1].replicas = 2;
    it->groups[1].state = 1;
    for (uint32_t at = 0; at < MEMBERS; at++) {
        it->options[at] = alone(at + 1);
        it->options[at].listen_fd = bound_socket(it->addresses[at], sizeof it->addresses[at]);
        it->options[at].groups = it->groups;
        it->options[at].groups_len = 2;
        it->options[at].state = 1;
    }
    for (uint32_t at = 0; at < 2; at++) {
        it->peers[at][0].id = 2 - at;
        it->peers[at][0].address = it->addresses[1 - at];
        it->options[at].peers = it->peers[at];
        it->options[at].peers_len = 1;
    }
    it->join[0] = it->addresses[0];
    it->options[2].join = it->join;
    it->options[2].join_len = 1;
}

/* A state, as a stream of its own. */
typedef struct stream {
    char bytes[100000];
    size_t len, at;
    int fails;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int is_done;
} stream;

static int read_piece(void *context, uint8_t *buffer, size_t len, size_t *got)
{
    stream *it = (stream *)context;
    if (it->fails)
        return 5;
    *got = it->len - it->at < len ? it->len - it->at : len;
    *got = *got > 7000 ? 7000 : *got;
    memcpy(buffer, it->bytes + it->at, *got);
    it->at += *got;
    return 0;
}

static void done(void *context)
{
    stream *it = (stream *)context;
    pthread_mutex_lock(&it->lock);
    it->is_done = 1;
    pthread_cond_signal(&it->changed);
    pthread_mutex_unlock(&it->lock);
}

static void wait_until_done(stream *it)
{
    pthread_mutex_lock(&it->lock);
    while (!it->is_done)
        pthread_cond_wait(&it->changed, &it->lock);
    pthread_mutex_unlock(&it->lock);
}

static void told_by(consort_group *group, const char *message)
{
    consort_event event;
    until(group, CONSORT_MESSAGE, &event);
    SURE(event.len == strlen(message) && memcmp(event.data, message, event.len) == 0);
    MUST(consort_release(&event));
}

static sloppy states[MEMBERS][2];

static consort_replica *replica_of(consort_node *node, consort_group *group, sloppy *state)
{
    consort_machine machine = sloppy_machine(state);
    consort_replica *replica;
    MUST(consort_replica_on(node, group, 0, &machine, &replica));
    return replica;
}

static void joining(void)
{
    static cluster cluster;
    static stream state, broken;
    static char copy[sizeof state.bytes];
    consort_node *nodes[MEMBERS];
    consort_group *main_groups[MEMBERS], *pairs[MEMBERS];
    consort_event event, second;
    consort_group_info info;
    consort_bytes text;
    consort_stats stats;
    uint64_t point;
    uint32_t id;
    size_t got = 1, have = 0;

    prepare(&cluster);
    for (int at = 0; at < 2; at++) {
        MUST(consort_node_new(&cluster.options[at], &nodes[at]));
        SURE(close(cluster.options[at].listen_fd) == 0); /* the library has one of its own */
        MUST(consort_node_group(nodes[at], NULL, 0, &main_groups[at]));
        MUST(consort_node_group(nodes[at], "pair", 0, &pairs[at]));
    }
    MUST(consort_node_id(nodes[1], &id));
    SURE(id == 2);
    MUST(consort_multicast(main_groups[0], "to all", 6, NULL));
    MUST(consort_multicast(pairs[1], "to two", 6, NULL));
    for (int at = 0; at < 2; at++) {
        told_by(main_groups[at], "to all");
        told_by(pairs[at], "to two");
    }

    info.struct_size = sizeof info;
    MUST(consort_group_info_of(pairs[0], &info));
    SURE(info.shards == 1 && info.guarantee == CONSORT_AGREED && info.ring_bytes == 65536 && info.state == 0 && info.shard == 3);
    EXPECT(CONSORT_REFUSED, consort_read_point(pairs[0], &point));
    MUST(consort_read_point(main_groups[0], &point));
    until(main_groups[0], CONSORT_READ_POINT, &event);
    SURE(event.number >= point);
    MUST(consort_release(&event));
    MUST(consort_publish_digest(main_groups[1], 4711));
    until(main_groups[0], CONSORT_DIGEST, &event);
    SURE(event.number == 4711 && event.node == 2);
    MUST(consort_release(&event));

    /* The third joins, and is given a state. Whom it asks first can't read its own. */
    memset(state.bytes, 's', sizeof state.bytes);
    state.len = sizeof state.bytes;
    broken.fails = 1;
    pthread_mutex_init(&state.lock, NULL);
    pthread_cond_init(&state.changed, NULL);
    pthread_mutex_init(&broken.lock, NULL);
    pthread_cond_init(&broken.changed, NULL);
    MUST(consort_node_new(&cluster.options[2], &nodes[2]));
    SURE(close(cluster.options[2].listen_fd) == 0);
    MUST(consort_node_group(nodes[2], NULL, 0, &main_groups[2]));
    int has_failed = 0, is_given = 0;
    while (!is_given) {
        for (int at = 0; at < 2; at++) {
            consort_status status = consort_next(main_groups[at], 0, &event);
            if (status == CONSORT_TIMED_OUT)
                continue;
            MUST(status);
            if (event.kind == CONSORT_SNAPSHOT && !has_failed) {
                SURE(event.node == 3);
                MUST(consort_snapshot_stream(&event, read_piece, done, &broken));
                has_failed = 1;
            } else if (event.kind == CONSORT_SNAPSHOT) {
                MUST(consort_snapshot_stream(&event, read_piece, done, &state));
                is_given = 1;
            }
            MUST(consort_release(&event));
        }
    }
    until(main_groups[2], CONSORT_RESTORE, &event);
    SURE(event.number == state.len);
    while (got > 0) {
        MUST(consort_restore_read(&event, (uint8_t *)copy + have, 30000 < sizeof copy - have ? 30000 : sizeof copy - have, &got));
        have += got;
        if (have == sizeof copy)
            got = 0;
    }
    SURE(have == sizeof copy && memcmp(copy, state.bytes, have) == 0);
    MUST(consort_restore_finish(&event));
    EXPECT(CONSORT_BAD_HANDLE, consort_restore_finish(&event));
    EXPECT(CONSORT_BAD_HANDLE, consort_release(&event));
    wait_until_done(&state);
    wait_until_done(&broken);

    /* Now all three are in. A member of a view says who they are. */
    do {
        until(main_groups[2], CONSORT_VIEW, &event);
        got = event.members->members_len;
        if (got == MEMBERS) {
            SURE(event.members->members[2].node == 3 && event.members->members[2].role == CONSORT_DATA);
            SURE(strcmp(event.members->members[2].address, cluster.addresses[2]) == 0);
            SURE(event.members->shards_len == 4 && event.members->shards[3].members_len == 2);
        }
        MUST(consort_release(&event));
    } while (got != MEMBERS);
    MUST(consort_multicast(main_groups[2], "from three", 10, NULL));
    told_by(main_groups[0], "from three");
    MUST(consort_node_group(nodes[2], "pair", 0, &pairs[2]));
    EXPECT(CONSORT_NOT_MEMBER, consort_multicast(pairs[2], "x", 1, NULL));

    /* Questions. */
    MUST(consort_node_status(nodes[0], &text));
    SURE(strstr((const char *)text.data, "of nodes 1, 2, 3") != NULL && strlen((const char *)text.data) == text.len);
    MUST(consort_bytes_free(&text));
    MUST(consort_ask(cluster.addresses[1], NULL, 0, CONSORT_ASK_STATUS, 60000, &text));
    SURE(text.data[0] == '{');
    MUST(consort_bytes_free(&text));
    EXPECT(CONSORT_INVALID, consort_ask(cluster.addresses[1], NULL, 0, 9, 60000, &text));
    EXPECT(CONSORT_CONFIG, consort_ask("nowhere", NULL, 0, CONSORT_ASK_STATUS, 60000, &text));
    stats.struct_size = offsetof(consort_stats, system_calls); /* of an older header */
    stats.system_calls = 77;
    MUST(consort_node_stats(nodes[0], &stats));
    SURE(stats.delivered >= 3 && stats.sent >= 1 && stats.system_calls == 77);

    /* Shards, with a machine each at each node. */
    consort_group *shards[MEMBERS][2];
    consort_replica *replicas[MEMBERS][2];
    for (int at = 0; at < MEMBERS; at++) {
        for (uint32_t shard = 0; shard < 2; shard++) {
            MUST(consort_node_group(nodes[at], "orders", shard, &shards[at][shard]));
            replicas[at][shard] = replica_of(nodes[at], shards[at][shard], &states[at][shard]);
        }
    }
    EXPECT(CONSORT_INVALID, consort_node_group(nodes[0], "orders", 2, &main_groups[0]));
    EXPECT(CONSORT_INVALID, consort_node_group(nodes[0], "nobody", 0, &main_groups[0]));
    EXPECT(CONSORT_BUSY, consort_node_free(nodes[0]));
    {
        consort_machine machine = sloppy_machine(&states[0][0]);
        consort_replica *none;
        EXPECT(CONSORT_CONFIG, consort_replica_on(nodes[0], pairs[0], 0, &machine, &none));
        EXPECT(CONSORT_INVALID, consort_replica_on(nodes[1], shards[0][0], 0, &machine, &none));
    }
    for (int shard = 0; shard < 2; shard++) {
        int members = 0;
        for (int at = 0; at < MEMBERS; at++) {
            consort_status status = consort_replica_update(replicas[at][shard], "order", 5, NULL);
            members += status == CONSORT_OK;
            SURE(status == CONSORT_OK || status == CONSORT_NOT_MEMBER);
        }
        SURE(members >= 1);
    }
    for (int at = 0; at < MEMBERS; at++) {
        for (int shard = 0; shard < 2; shard++) {
            MUST(consort_replica_free(replicas[at][shard]));
            MUST(consort_group_free(shards[at][shard]));
            SURE(states[at][shard].is_freed == 1);
        }
    }

    /* One leaves, and the others are told. */
    MUST(consort_node_leave(nodes[2], -1));
    do {
        until(main_groups[0], CONSORT_VIEW, &second);
        got = second.members->members_len;
        MUST(consort_release(&second));
    } while (got != 2);
    for (int at = 0; at < MEMBERS; at++) {
        MUST(consort_node_free(nodes[at]));
        MUST(consort_group_free(main_groups[at]));
        MUST(consort_group_free(pairs[at]));
    }
}

static void on_view(void *context, const consort_event *event)
{
    if (event->kind == CONSORT_VIEW)
        *(int *)context += 1;
}

/* A driven node has groups too, and options of an older header. */
static void driving(void)
{
    consort_group_options group;
    consort_group_info info;
    consort_group *found;
    consort_node *node;
    int views = 0;
    struct {
        consort_node_options known;
        uint64_t later;
    } newer;
    memset(&newer, 0, sizeof newer);
    newer.known = alone(1);
    newer.known.struct_size = sizeof newer;
    MUST(consort_group_options_init(sizeof group, &group));
    group.name = "other";
    newer.known.groups = &group;
    newer.known.groups_len = 1;
    newer.later = 1;
    EXPECT(CONSORT_INVALID, consort_driven_new(&newer.known, &node));
    newer.later = 0;
    MUST(consort_driven_new(&newer.known, &node));
    MUST(consort_node_group(node, "other", 0, &found));
    info.struct_size = sizeof info;
    MUST(consort_group_info_of(found, &info));
    SURE(info.shard == 1 && info.ring_bytes == 1 << 20);
    while (views < 2)
        MUST(consort_poll(node, on_view, &views, NULL));
    MUST(consort_node_stop(node));
    EXPECT(CONSORT_STOPPED, consort_poll(node, on_view, &views, NULL));
    MUST(consort_node_free(node));
    MUST(consort_group_free(found));
}

/* The program's socket stays its own, whatever becomes of the node. */
static void sockets(void)
{
    consort_node_options options = alone(1);
    consort_node *node;
    char address[32];
    options.listen_fd = bound_socket(address, sizeof address);
    options.ring_bytes = 3;
    EXPECT(CONSORT_CONFIG, consort_node_new(&options, &node));
    options.ring_bytes = 65536;
    MUST(consort_node_new(&options, &node));
    MUST(consort_node_free(node));
    MUST(consort_node_new(&options, &node));
    MUST(consort_node_free(node));
    SURE(close(options.listen_fd) == 0);
    EXPECT(CONSORT_INVALID, consort_node_new(&options, &node));
}

int main(void)
{
    joining();
    driving();
    sockets();
    puts("all is there");
    return 0;
}
