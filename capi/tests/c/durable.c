/* Durable groups: three nodes of one process lose what they have in memory, begin again from their directories, and tell the same once more.
 * And which way messages go. Its directories are in the one that it runs in. */
#include "misuse.h"

#include <unistd.h>

enum { MEMBERS = 3, GROUPS = 2, EACH = 20, LIVES = 3, MOST = MEMBERS * EACH * LIVES };

/* The last failure says this, and says it to people. */
static void says(const char *words)
{
    if (strstr(consort_last_error(), words) == NULL) {
        fprintf(stderr, "\"%s\" says nothing of \"%s\"\n", consort_last_error(), words);
        exit(1);
    }
}

/* A message, as it was told. */
typedef struct told {
    uint64_t view, seq, stamp;
    uint32_t node, len;
    char data[32];
} told;

/* All that a group told at a node. */
typedef struct history {
    told all[MOST];
    size_t len;
    uint64_t tickets; /* of how many of them it was said which of this node's own sends they are */
} history;

static void put(history *it, const consort_event *event)
{
    told one;
    memset(&one, 0, sizeof one);
    SURE(it->len < MOST && event->len < sizeof one.data);
    one.view = event->view, one.seq = event->seq, one.stamp = event->stamp;
    one.node = event->node, one.len = (uint32_t)event->len;
    memcpy(one.data, event->data, event->len);
    /* Every message of a durable group has a stamp, and they grow. */
    SURE(one.stamp > (it->len > 0 ? it->all[it->len - 1].stamp : 1000000000000000000));
    it->all[it->len++] = one;
    it->tickets += event->ticket != 0;
}

static void hear(consort_group *group, history *to, size_t len)
{
    while (to->len < len) {
        consort_event event;
        until(group, CONSORT_MESSAGE, &event);
        put(to, &event);
        MUST(consort_release(&event));
        SURE(event.stamp == 0);
    }
}

static void same(const history *one, const history *other, size_t len)
{
    SURE(one->len >= len && other->len >= len && memcmp(one->all, other->all, len * sizeof *one->all) == 0);
}

/* Three founders; the main group, durable, and one beside it, logged and along a chain. */
typedef struct cluster {
    consort_node *nodes[MEMBERS];
    consort_group *groups[MEMBERS][GROUPS];
} cluster;

static void begin(cluster *it, uint32_t fabric)
{
    char addresses[MEMBERS][32], data[8];
    consort_node_options options[MEMBERS];
    consort_group_options ledger;
    MUST(consort_group_options_init(sizeof ledger, &ledger));
    ledger.name = "ledger";
    ledger.ring_bytes = 65536;
    ledger.guarantee = CONSORT_LOGGED;
    ledger.topology = CONSORT_CHAIN;
    for (uint32_t at = 0; at < MEMBERS; at++) {
        options[at] = alone(at + 1);
        options[at].listen_fd = bound_socket(addresses[at], sizeof addresses[at]);
        options[at].fabric = fabric;
        options[at].guarantee = CONSORT_DURABLE;
        options[at].groups = &ledger;
        options[at].groups_len = 1;
    }
    for (uint32_t at = 0; at < MEMBERS; at++) {
        consort_peer peers[MEMBERS - 1];
        with_peers(&options[at], peers, addresses, at, MEMBERS);
        snprintf(data, sizeof data, "%u", at + 1);
        options[at].data = data;
        MUST(consort_node_new(&options[at], &it->nodes[at]));
        SURE(close(options[at].listen_fd) == 0);
        MUST(consort_node_group(it->nodes[at], NULL, 0, &it->groups[at][0]));
        MUST(consort_node_group(it->nodes[at], "ledger", 0, &it->groups[at][1]));
    }
}

/* Who has ended its stream sends nothing more in this life. */
static void end(cluster *it)
{
    for (int at = 0; at < MEMBERS; at++) {
        for (int group = 0; group < GROUPS; group++)
            MUST(consort_end(it->groups[at][group]));
    }
    for (int at = 0; at < MEMBERS; at++) {
        for (int group = 0; group < GROUPS; group++) {
            for (int of = 0; of < MEMBERS; of++)
                until(it->groups[at][group], CONSORT_ENDED_EVENT, NULL);
            EXPECT(CONSORT_ENDED, consort_multicast(it->groups[at][group], "late", 4, NULL));
        }
    }
}

/* All at once, and without a word to the others. */
static void lose(cluster *it)
{
    for (int at = 0; at < MEMBERS; at++)
        MUST(consort_node_stop(it->nodes[at]));
    for (int at = 0; at < MEMBERS; at++) {
        MUST(consort_node_free(it->nodes[at]));
        for (int group = 0; group < GROUPS; group++)
            MUST(consort_group_free(it->groups[at][group]));
    }
}

static void is_told(const history *it, const consort_delivered *delivered)
{
    size_t at = 0;
    while (at < it->len && (it->all[at].view != delivered->view || it->all[at].seq != delivered->seq))
        at++;
    SURE(at < it->len);
}

static void all_come_again(void)
{
    static history before[GROUPS], now[MEMBERS][GROUPS];
    static consort_outcome *outcomes[MEMBERS][GROUPS][EACH];
    for (int life = 0; life < LIVES; life++) {
        cluster cluster;
        begin(&cluster, life == 1 ? CONSORT_TCP : CONSORT_SHM);
        memset(now, 0, sizeof now);
        /* What was, once more, from the first message on. */
        for (int at = 0; at < MEMBERS; at++) {
            for (int group = 0; group < GROUPS; group++) {
                hear(cluster.groups[at][group], &now[at][group], before[group].len);
                same(&now[at][group], &before[group], before[group].len);
                SURE(now[at][group].tickets == 0);
            }
        }
        /* And what is new. */
        for (int number = 0; number < EACH; number++) {
            for (int at = 0; at < MEMBERS; at++) {
                for (int group = 0; group < GROUPS; group++) {
                    char message[32];
                    int len = snprintf(message, sizeof message, "%d of %d, life %d", number, at + 1, life);
                    MUST(consort_multicast_tracked(cluster.groups[at][group], message, (size_t)len, &outcomes[at][group][number]));
                }
            }
        }
        for (int at = 0; at < MEMBERS; at++) {
            for (int group = 0; group < GROUPS; group++) {
                hear(cluster.groups[at][group], &now[at][group], before[group].len + MEMBERS * EACH);
                same(&now[at][group], &now[0][group], now[0][group].len);
                SURE(now[at][group].tickets == EACH);
                for (int number = 0; number < EACH; number++) {
                    consort_delivered delivered, stable;
                    MUST(consort_outcome_wait_stable(outcomes[at][group][number], 60000, &stable));
                    MUST(consort_outcome_wait(outcomes[at][group][number], 60000, &delivered));
                    is_told(&now[at][group], &delivered);
                    SURE(stable.view == delivered.view && stable.seq == delivered.seq);
                    MUST(consort_outcome_free(outcomes[at][group][number]));
                }
            }
        }
        if (life == 1)
            end(&cluster);
        lose(&cluster);
        memcpy(before, now[0], sizeof before);
    }
}

static void keep(void *context, const consort_event *event)
{
    if (event->kind == CONSORT_MESSAGE)
        MUST(consort_keep(event, (consort_event *)context));
}

/* Who drives the node is told stamps too, and an event that is kept has its own. */
static void driven(void)
{
    consort_node_options options = alone(7);
    consort_node *node;
    consort_group *group;
    consort_event kept, again;
    consort_status sent = CONSORT_NOT_STARTED;
    options.guarantee = CONSORT_DURABLE;
    options.data = "7";
    MUST(consort_driven_new(&options, &node));
    MUST(consort_node_group(node, NULL, 0, &group));
    memset(&kept, 0, sizeof kept);
    while (kept.kind != CONSORT_MESSAGE) {
        uint32_t worked;
        if (sent != CONSORT_OK)
            sent = consort_try_multicast(group, "kept", 4, NULL);
        MUST(consort_poll(node, keep, &kept, &worked));
        if (!worked)
            MUST(consort_wait(node));
    }
    SURE(kept.stamp > 0 && kept.len == 4);

    /* The directory is taken. */
    consort_node *other;
    EXPECT(CONSORT_MACHINE, consort_node_new(&options, &other));
    says("in use");
    MUST(consort_node_free(node));
    MUST(consort_group_free(group));
    options.id = 8;
    EXPECT(CONSORT_MACHINE, consort_node_new(&options, &other));
    says("the data of node 7");
    options.id = 7;
    MUST(consort_node_new(&options, &node));
    MUST(consort_node_group(node, NULL, 0, &group));
    until(group, CONSORT_MESSAGE, &again);
    SURE(again.stamp == kept.stamp && again.view == kept.view && again.seq == kept.seq);
    MUST(consort_release(&again));
    MUST(consort_release(&kept));
    MUST(consort_node_free(node));
    MUST(consort_group_free(group));
}

/* What can't be is refused with a remedy. */
static void is_refused(consort_status wanted, const consort_node_options *options, const char *remedy)
{
    consort_node *node = NULL;
    EXPECT(wanted, consort_node_new(options, &node));
    says(remedy);
    SURE(node == NULL);
}

static void refused(void)
{
    const char *const name_one = "name a directory that is this node's alone";
    consort_group_options group;
    consort_node_options options = alone(1);
    options.guarantee = CONSORT_DURABLE;
    is_refused(CONSORT_CONFIG, &options, name_one);
    options.data = "";
    is_refused(CONSORT_CONFIG, &options, name_one);
    FILE *file = fopen("file", "w");
    SURE(file != NULL && fclose(file) == 0);
    options.data = "file";
    is_refused(CONSORT_MACHINE, &options, "file");

    options = alone(1);
    MUST(consort_group_options_init(sizeof group, &group));
    group.name = "ledger";
    group.guarantee = CONSORT_DURABLE;
    options.groups = &group;
    options.groups_len = 1;
    is_refused(CONSORT_CONFIG, &options, name_one);
    group.guarantee = CONSORT_ATOMIC;
    group.topology = 2;
    is_refused(CONSORT_INVALID, &options, "CONSORT_CHAIN");
    group.topology = CONSORT_CHAIN;
    group.reserved = 1;
    is_refused(CONSORT_INVALID, &options, "_init");
    group.reserved = 0;
    options.topology = 2;
    is_refused(CONSORT_INVALID, &options, "CONSORT_CHAIN");
    options.topology = CONSORT_DIRECT;
    options.reserved = 1;
    is_refused(CONSORT_INVALID, &options, "_init");
}

/* Where a configuration file says the directory, which is beside it then. */
static void by_file(void)
{
    consort_node_options options = alone(1);
    consort_group_info info;
    consort_group *group;
    consort_node *node;
    FILE *config = fopen("node.toml", "w");
    SURE(config != NULL);
    fputs("id = 1\nlisten = \"127.0.0.1:0\"\ndata = \"by-file\"\n", config);
    SURE(fclose(config) == 0);
    options.config_file = "node.toml";
    options.guarantee = CONSORT_DURABLE;
    MUST(consort_node_new(&options, &node));
    SURE(access("by-file", F_OK) == 0);
    MUST(consort_node_group(node, NULL, 0, &group));
    info.struct_size = sizeof info;
    MUST(consort_group_info_of(group, &info));
    SURE(info.guarantee == CONSORT_DURABLE);
    MUST(consort_multicast(group, "kept", 4, NULL));
    until(group, CONSORT_MESSAGE, NULL);
    MUST(consort_node_free(node));
    MUST(consort_group_free(group));
}

/* Along a chain go messages for all alone: that shows which group has one. */
static void chains(void)
{
    const uint32_t me = 1;
    for (uint32_t at = 0; at < 4; at++) {
        const uint32_t topologies[GROUPS] = {at & 1 ? CONSORT_CHAIN : CONSORT_DIRECT, at & 2 ? CONSORT_CHAIN : CONSORT_DIRECT};
        consort_node_options options = alone(me);
        consort_group_options beside;
        consort_node *node;
        MUST(consort_group_options_init(sizeof beside, &beside));
        beside.name = "beside";
        beside.topology = topologies[1];
        options.topology = topologies[0];
        options.groups = &beside;
        options.groups_len = 1;
        MUST(consort_node_new(&options, &node));
        for (int of = 0; of < GROUPS; of++) {
            consort_group *group;
            consort_event event;
            MUST(consort_node_group(node, of == 0 ? NULL : "beside", 0, &group));
            until(group, CONSORT_VIEW, NULL);
            EXPECT(topologies[of] == CONSORT_CHAIN ? CONSORT_REFUSED : CONSORT_OK, consort_multicast_to(group, &me, 1, "some", 4, NULL));
            MUST(consort_multicast(group, "all", 3, NULL));
            until(group, CONSORT_MESSAGE, &event);
            SURE(event.stamp == 0);
            MUST(consort_release(&event));
            MUST(consort_group_free(group));
        }
        MUST(consort_node_free(node));
    }
}

/* A program that was compiled against a header without these options: its structs end before them, and what lies behind is not looked at. */
static void older(void)
{
    const size_t options_len = offsetof(consort_node_options, data), group_len = offsetof(consort_group_options, topology);
    consort_node_options options = alone(1);
    consort_group_options group;
    consort_node *node;
    uint64_t groups[2 * sizeof group / sizeof(uint64_t)];
    memset(&options, 0xA5, sizeof options);
    MUST(consort_node_options_init(options_len, &options));
    SURE(options.struct_size == options_len && options.topology == 0xA5A5A5A5);
    memset(groups, 0xA5, sizeof groups);
    for (int at = 0; at < 2; at++) {
        memset(&group, 0xA5, sizeof group);
        MUST(consort_group_options_init(group_len, &group));
        group.name = at == 0 ? "orders" : "trades";
        group.ring_bytes = 65536;
        memcpy((char *)groups + (size_t)at * group_len, &group, group_len);
    }
    options.id = 1;
    options.fabric = alone(1).fabric;
    options.ring_bytes = 65536;
    options.groups = (const consort_group_options *)groups;
    options.groups_len = 2;
    MUST(consort_node_new(&options, &node));
    for (int at = 0; at < 2; at++) {
        consort_group *found;
        MUST(consort_node_group(node, at == 0 ? "orders" : "trades", 0, &found));
        MUST(consort_multicast(found, "x", 1, NULL));
        until(found, CONSORT_MESSAGE, NULL);
        MUST(consort_group_free(found));
    }
    MUST(consort_node_free(node));
}

int main(void)
{
    refused();
    by_file();
    chains();
    older();
    driven();
    all_come_again();
    puts("all came again");
    return 0;
}
