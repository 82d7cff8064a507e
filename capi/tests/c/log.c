/* A durable group's log is read while its node writes to it and after, from a record on or from a time on; and when it is damaged. Its directory is
 * in the one that it runs in. */
#include "misuse.h"

#include <unistd.h>

enum { MESSAGES = 40 };

/* All records of a log. */
typedef struct records {
    consort_record all[MESSAGES + 10];
    char data[MESSAGES + 10][32];
    size_t len;
    consort_status end;
} records;

static void put(records *it, const consort_record *record)
{
    SURE(it->len < MESSAGES + 10 && record->len < sizeof *it->data);
    it->all[it->len] = *record;
    if (record->len > 0)
        memcpy(it->data[it->len], record->data, record->len);
    it->len++;
}

/* Reads to the end. */
static void read_on(consort_log *log, records *it)
{
    consort_record record;
    while ((it->end = consort_log_next(log, &record)) == CONSORT_OK)
        put(it, &record);
}

static void read_from(uint32_t how, uint64_t from, records *it)
{
    consort_log *log;
    memset(it, 0, sizeof *it);
    it->end = consort_log_open("data", 0, how, from, &log);
    if (it->end != CONSORT_OK)
        return;
    read_on(log, it);
    MUST(consort_log_free(log));
}

/* The records of one are those of the other from number `first` on, as far as it has any. */
static void same(const records *one, const records *other, size_t first)
{
    SURE(first + one->len <= other->len);
    for (size_t at = 0; at < one->len; at++) {
        const consort_record *it = &one->all[at], *wanted = &other->all[first + at];
        SURE(it->kind == wanted->kind && it->node == wanted->node && it->index == wanted->index && it->view == wanted->view);
        SURE(it->seq == wanted->seq && it->stamp == wanted->stamp && it->len == wanted->len);
        SURE(memcmp(one->data[at], other->data[first + at], it->len) == 0);
    }
}

static void refused(void)
{
    consort_log *log = NULL;
    EXPECT(CONSORT_MACHINE, consort_log_open("nowhere", 0, CONSORT_FROM_INDEX, 0, &log));
    SURE(strstr(consort_last_error(), "there is no log of shard 0 in nowhere") != NULL);
    EXPECT(CONSORT_MACHINE, consort_log_open("data", 7, CONSORT_FROM_INDEX, 0, &log));
    SURE(strstr(consort_last_error(), "shard 7") != NULL);
    EXPECT(CONSORT_INVALID, consort_log_open("data", 0, 2, 0, &log));
    SURE(log == NULL);
}

/* What a node writes is read while it runs, as it tells it. */
static void written(records *told)
{
    consort_node_options options = alone(7);
    consort_node *node;
    consort_group *group;
    consort_log *log;
    consort_record record;
    static records read;
    options.guarantee = CONSORT_DURABLE;
    options.data = "data";
    MUST(consort_node_new(&options, &node));
    MUST(consort_node_group(node, NULL, 0, &group));
    until(group, CONSORT_VIEW, NULL);
    MUST(consort_log_open("data", 0, CONSORT_FROM_INDEX, 0, &log));
    refused();
    for (int number = 0; number < MESSAGES; number++) {
        char text[32];
        consort_event event;
        int len = snprintf(text, sizeof text, "message %d", number);
        MUST(consort_multicast(group, text, (size_t)len, NULL));
        until(group, CONSORT_MESSAGE, &event);
        /* What was delivered is on disk. */
        do
            MUST(consort_log_next(log, &record));
        while (record.kind != CONSORT_MESSAGE && (put(told, &record), 1));
        SURE(record.view == event.view && record.seq == event.seq && record.stamp == event.stamp && record.node == 7);
        SURE(record.len == (size_t)len && memcmp(record.data, text, record.len) == 0 && record.members == NULL);
        SURE(record.index == told->len + 1);
        put(told, &record);
        MUST(consort_release(&event));
    }
    EXPECT(CONSORT_TIMED_OUT, consort_log_next(log, &record));
    EXPECT(CONSORT_TIMED_OUT, consort_log_next(log, &record));
    MUST(consort_node_stop(node));
    MUST(consort_node_free(node));
    MUST(consort_group_free(group));
    read_on(log, told);
    SURE(told->end == CONSORT_TIMED_OUT && told->len > MESSAGES);
    MUST(consort_log_free(log));
    EXPECT(CONSORT_BAD_HANDLE, consort_log_next(log, &record));

    /* And without a node, from everywhere on. */
    for (size_t at = 0; at < told->len; at++) {
        read_from(CONSORT_FROM_INDEX, told->all[at].index, &read);
        SURE(read.end == CONSORT_TIMED_OUT && read.len == told->len - at);
        same(&read, told, at);
        read_from(CONSORT_FROM_STAMP, told->all[at].stamp, &read);
        SURE(read.end == CONSORT_TIMED_OUT && read.len == told->len - at);
        same(&read, told, at);
    }
    read_from(CONSORT_FROM_INDEX, 1000, &read);
    SURE(read.end == CONSORT_TIMED_OUT && read.len == 0);

    /* A view has its members. */
    MUST(consort_log_open("data", 0, CONSORT_FROM_STAMP, 0, &log));
    do
        MUST(consort_log_next(log, &record));
    while (record.kind != CONSORT_VIEW);
    SURE(record.members->id == record.view && record.members->members_len == 1 && record.members->members[0].node == 7);
    SURE(record.data == NULL && record.node == 0);
    MUST(consort_log_free(log));
}

static int byte_at(FILE *file, long at)
{
    SURE(fseek(file, at, SEEK_SET) == 0);
    return fgetc(file);
}

static void set_byte(FILE *file, long at, int byte)
{
    SURE(fseek(file, at, SEEK_SET) == 0 && fputc(byte, file) == byte && fflush(file) == 0);
}

/* Whatever byte is another one: what is read is the log up to there, and then its damage is told, or nothing is if nobody was told of what
 * lay there. */
static void damaged(const records *told)
{
    const char *const segment = "data/shard-0/0000000000000001.log";
    static records read;
    FILE *file = fopen(segment, "r+b");
    long used = 0, step = 61;
    int damages = 0;
    SURE(file != NULL);
    for (long at = 0; at < 65536; at++) {
        if (byte_at(file, at) != 0)
            used = at + 1;
    }
    SURE(used > MESSAGES * 60);
    for (long at = 0; at < used; at += step) {
        const int was = byte_at(file, at);
        set_byte(file, at, was ^ 0x40);
        read_from(CONSORT_FROM_INDEX, 0, &read);
        SURE(read.end == CONSORT_MACHINE || read.end == CONSORT_TIMED_OUT);
        same(&read, told, 0);
        if (read.end == CONSORT_MACHINE) {
            SURE(strstr(consort_last_error(), "damaged") != NULL && strstr(consort_last_error(), "consort log verify") != NULL);
            damages++;
        }
        set_byte(file, at, was);
    }
    SURE(damages > 10);

    /* A part of it is gone as if nothing had ever been written there: that is no end either. */
    static char kept[200];
    const long hole = used / 2;
    SURE(fseek(file, hole, SEEK_SET) == 0 && fread(kept, sizeof kept, 1, file) == 1);
    for (long at = 0; at < (long)sizeof kept; at++)
        set_byte(file, hole + at, 0);
    read_from(CONSORT_FROM_INDEX, 0, &read);
    SURE(read.end == CONSORT_MACHINE && read.len > 0 && read.len < told->len);
    for (long at = 0; at < (long)sizeof kept; at++)
        set_byte(file, hole + at, kept[at] & 0xFF);
    SURE(fclose(file) == 0);

    /* And one that is cut off. */
    SURE(truncate(segment, hole) == 0);
    read_from(CONSORT_FROM_INDEX, 0, &read);
    SURE(read.end == CONSORT_MACHINE || read.end == CONSORT_TIMED_OUT);
    same(&read, told, 0);
    SURE(truncate(segment, 10) == 0);
    read_from(CONSORT_FROM_INDEX, 0, &read);
    SURE((read.end == CONSORT_MACHINE || read.end == CONSORT_TIMED_OUT) && read.len == 0);
    SURE(unlink(segment) == 0);
    read_from(CONSORT_FROM_INDEX, 1, &read);
    SURE(read.end == CONSORT_TIMED_OUT && read.len == 0);
}

int main(void)
{
    static records told;
    written(&told);
    damaged(&told);
    puts("all was read");
    return 0;
}
