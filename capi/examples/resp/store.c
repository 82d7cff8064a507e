#include "store.h"

#include <stdlib.h>
#include <string.h>

/* A byte string of its own. */
typedef struct owned {
    char *data;
    size_t len;
} owned;

static owned own(slice it)
{
    owned copy;
    copy.data = (char *)sure(malloc(it.len + 1));
    copy.len = it.len;
    if (it.len > 0)
        memcpy(copy.data, it.data, it.len);
    return copy;
}

static slice of(owned it)
{
    slice slice;
    slice.data = it.data;
    slice.len = it.len;
    return slice;
}

static int compare(slice left, slice right)
{
    size_t both = left.len < right.len ? left.len : right.len;
    int order = both > 0 ? memcmp(left.data, right.data, both) : 0;
    return order != 0 ? order : left.len < right.len ? -1 : left.len > right.len;
}

/* ------------------------------------------------------------------------------------------------------- tables */

enum kind { STRING, LIST, SET, HASH };

typedef struct value value;

typedef struct entry {
    owned key;
    value *value;
    struct entry *next;
} entry;

/* By hash, in chains. */
typedef struct table {
    entry **chains;
    size_t room, count;
} table;

/* A queue with two ends, in a ring. */
typedef struct list {
    owned *items;
    size_t room, first, count;
} list;

struct value {
    enum kind kind;
    owned string;
    list list;
    table table; /* of a SET: without values; of a HASH: of strings */
};

static void value_free(value *value);

static size_t hash_of(slice key)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t at = 0; at < key.len; at++)
        hash = (hash ^ (unsigned char)key.data[at]) * 1099511628211u;
    return (size_t)(hash ^ hash >> 32);
}

/* Where the entry of that key is pointed to from, or would be. */
static entry **place_of(const table *table, slice key)
{
    entry **place = &table->chains[hash_of(key) & (table->room - 1)];
    while (*place != NULL && compare(of((*place)->key), key) != 0)
        place = &(*place)->next;
    return place;
}

static entry *table_find(const table *table, slice key)
{
    return table->room == 0 ? NULL : *place_of(table, key);
}

static void table_grow(table *table)
{
    size_t room = table->room == 0 ? 16 : table->room * 2;
    entry **chains = (entry **)sure(calloc(room, sizeof *chains));
    for (size_t at = 0; at < table->room; at++) {
        for (entry *it = table->chains[at], *next; it != NULL; it = next) {
            entry **place = &chains[hash_of(of(it->key)) & (room - 1)];
            next = it->next;
            it->next = *place;
            *place = it;
        }
    }
    free(table->chains);
    table->chains = chains;
    table->room = room;
}

/* The entry of that key, made if it isn't there. */
static entry *table_put(table *table, slice key)
{
    entry **place;
    if (table->count >= table->room)
        table_grow(table);
    place = place_of(table, key);
    if (*place == NULL) {
        *place = (entry *)sure(calloc(1, sizeof **place));
        (*place)->key = own(key);
        table->count++;
    }
    return *place;
}

static int table_remove(table *table, slice key)
{
    entry **place, *it;
    if (table->room == 0 || (it = *(place = place_of(table, key))) == NULL)
        return 0;
    *place = it->next;
    free(it->key.data);
    value_free(it->value);
    free(it);
    table->count--;
    return 1;
}

static void table_clear(table *table)
{
    for (size_t at = 0; at < table->room; at++) {
        for (entry *it = table->chains[at], *next; it != NULL; it = next) {
            next = it->next;
            free(it->key.data);
            value_free(it->value);
            free(it);
        }
    }
    free(table->chains);
    memset(table, 0, sizeof *table);
}

static int by_key(const void *left, const void *right)
{
    return compare(of((*(entry *const *)left)->key), of((*(entry *const *)right)->key));
}

/* All entries in the order of their keys. To be freed. */
static entry **sorted(const table *table)
{
    size_t count = 0;
    entry **all = (entry **)sure(malloc((table->count + 1) * sizeof *all));
    for (size_t at = 0; at < table->room; at++)
        for (entry *it = table->chains[at]; it != NULL; it = it->next)
            all[count++] = it;
    qsort(all, count, sizeof *all, by_key);
    return all;
}

/* -------------------------------------------------------------------------------------------------------- values */

static value *value_new(enum kind kind)
{
    value *it = (value *)sure(calloc(1, sizeof *it));
    it->kind = kind;
    return it;
}

static owned *item(const list *list, size_t at)
{
    return &list->items[(list->first + at) & (list->room - 1)];
}

static void value_free(value *it)
{
    if (it == NULL)
        return;
    free(it->string.data);
    for (size_t at = 0; at < it->list.count; at++)
        free(item(&it->list, at)->data);
    free(it->list.items);
    table_clear(&it->table);
    free(it);
}

static value *string_new(slice bytes)
{
    value *it = value_new(STRING);
    it->string = own(bytes);
    return it;
}

static void list_grow(list *list)
{
    size_t room = list->room == 0 ? 8 : list->room * 2;
    owned *items = (owned *)sure(malloc(room * sizeof *items));
    for (size_t at = 0; at < list->count; at++)
        items[at] = *item(list, at);
    free(list->items);
    list->items = items;
    list->room = room;
    list->first = 0;
}

static void list_push(list *list, slice bytes, int front)
{
    if (list->count == list->room)
        list_grow(list);
    if (front)
        list->first = (list->first + list->room - 1) & (list->room - 1);
    list->count++;
    *item(list, front ? 0 : list->count - 1) = own(bytes);
}

static owned list_pop(list *list, int front)
{
    owned it = *item(list, front ? 0 : list->count - 1);
    if (front)
        list->first = (list->first + 1) & (list->room - 1);
    list->count--;
    return it;
}

/* ------------------------------------------------------------------------------------------------------- commands */

struct store {
    table keys;
};

store *store_new(void)
{
    return (store *)sure(calloc(1, sizeof(store)));
}

void store_free(store *store)
{
    table_clear(&store->keys);
    free(store);
}

/* A command: what it is called, how many arguments it has at least and at most with its name, and what it does. */
typedef struct verb {
    const char *name;
    size_t least, most;
    enum effect effect;
    void (*act)(store *store, const command *command, buffer *reply);
} verb;

static void wrong_kind(buffer *reply)
{
    append_text(reply, "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n");
}

/* The value of a key, if it is of that kind; says so if it is of another. */
static value *value_of(store *store, slice key, enum kind kind, buffer *reply, int *is_wrong)
{
    entry *it = table_find(&store->keys, key);
    *is_wrong = it != NULL && it->value->kind != kind;
    if (*is_wrong)
        wrong_kind(reply);
    return it == NULL || *is_wrong ? NULL : it->value;
}

/* The same, made if it isn't there. NULL: it is of another kind, and that was said. */
static value *value_for(store *store, slice key, enum kind kind, buffer *reply)
{
    int is_wrong;
    value *it = value_of(store, key, kind, reply, &is_wrong);
    if (it == NULL && !is_wrong) {
        it = value_new(kind);
        table_put(&store->keys, key)->value = it;
    }
    return it;
}

/* What has nothing in it is no key. */
static void drop_empty(store *store, slice key, const value *it)
{
    if (it->kind == LIST ? it->list.count == 0 : it->table.count == 0)
        table_remove(&store->keys, key);
}

static void put(store *store, slice key, slice bytes)
{
    entry *it = table_put(&store->keys, key);
    value_free(it->value);
    it->value = string_new(bytes);
}

static void do_set(store *store, const command *it, buffer *reply)
{
    put(store, it->arguments[1], it->arguments[2]);
    append_text(reply, "+OK\r\n");
}

static void do_mset(store *store, const command *it, buffer *reply)
{
    if (it->count % 2 == 0) {
        append_text(reply, "-ERR wrong number of arguments for 'mset' command\r\n");
        return;
    }
    for (size_t at = 1; at < it->count; at += 2)
        put(store, it->arguments[at], it->arguments[at + 1]);
    append_text(reply, "+OK\r\n");
}

static void get(store *store, slice key, buffer *reply)
{
    int is_wrong;
    value *it = value_of(store, key, STRING, reply, &is_wrong);
    if (it != NULL)
        append_bulk(reply, of(it->string));
    else if (!is_wrong)
        append_nothing(reply);
}

static void do_get(store *store, const command *it, buffer *reply)
{
    get(store, it->arguments[1], reply);
}

static void do_mget(store *store, const command *it, buffer *reply)
{
    append_number(reply, '*', (int64_t)it->count - 1);
    for (size_t at = 1; at < it->count; at++) {
        entry *found = table_find(&store->keys, it->arguments[at]);
        if (found != NULL && found->value->kind == STRING)
            append_bulk(reply, of(found->value->string));
        else
            append_nothing(reply);
    }
}

static void do_del(store *store, const command *it, buffer *reply)
{
    int64_t removed = 0;
    for (size_t at = 1; at < it->count; at++)
        removed += table_remove(&store->keys, it->arguments[at]);
    append_number(reply, ':', removed);
}

static void do_exists(store *store, const command *it, buffer *reply)
{
    int64_t found = 0;
    for (size_t at = 1; at < it->count; at++)
        found += table_find(&store->keys, it->arguments[at]) != NULL;
    append_number(reply, ':', found);
}

static void do_type(store *store, const command *it, buffer *reply)
{
    static const char *const names[] = {"+string\r\n", "+list\r\n", "+set\r\n", "+hash\r\n"};
    entry *found = table_find(&store->keys, it->arguments[1]);
    append_text(reply, found == NULL ? "+none\r\n" : names[found->value->kind]);
}

static void add(store *store, slice key, int64_t by, buffer *reply)
{
    int is_wrong;
    int64_t number = 0;
    buffer text = {NULL, 0, 0};
    slice bytes;
    value *it = value_of(store, key, STRING, reply, &is_wrong);
    if (is_wrong)
        return;
    if (it != NULL && !is_number(of(it->string), &number)) {
        append_text(reply, "-ERR value is not an integer or out of range\r\n");
        return;
    }
    if (by > 0 ? number > INT64_MAX - by : number < INT64_MIN - by) {
        append_text(reply, "-ERR increment or decrement would overflow\r\n");
        return;
    }
    append_number(&text, ':', number + by);
    bytes.data = text.data + 1;
    bytes.len = text.len - 3;
    put(store, key, bytes);
    append(reply, text.data, text.len);
    free(text.data);
}

static void do_incr(store *store, const command *it, buffer *reply)
{
    add(store, it->arguments[1], 1, reply);
}

static void do_decr(store *store, const command *it, buffer *reply)
{
    add(store, it->arguments[1], -1, reply);
}

static void do_incrby(store *store, const command *it, buffer *reply)
{
    int64_t by;
    if (is_number(it->arguments[2], &by))
        add(store, it->arguments[1], by, reply);
    else
        append_text(reply, "-ERR value is not an integer or out of range\r\n");
}

static void push(store *store, const command *it, buffer *reply, int front)
{
    value *to = value_for(store, it->arguments[1], LIST, reply);
    if (to == NULL)
        return;
    for (size_t at = 2; at < it->count; at++)
        list_push(&to->list, it->arguments[at], front);
    append_number(reply, ':', (int64_t)to->list.count);
}

static void do_lpush(store *store, const command *it, buffer *reply)
{
    push(store, it, reply, 1);
}

static void do_rpush(store *store, const command *it, buffer *reply)
{
    push(store, it, reply, 0);
}

static void pop(store *store, const command *it, buffer *reply, int front)
{
    int is_wrong;
    value *from = value_of(store, it->arguments[1], LIST, reply, &is_wrong);
    if (from != NULL) {
        owned popped = list_pop(&from->list, front);
        append_bulk(reply, of(popped));
        free(popped.data);
        drop_empty(store, it->arguments[1], from);
    } else if (!is_wrong) {
        append_nothing(reply);
    }
}

static void do_lpop(store *store, const command *it, buffer *reply)
{
    pop(store, it, reply, 1);
}

static void do_rpop(store *store, const command *it, buffer *reply)
{
    pop(store, it, reply, 0);
}

static void do_llen(store *store, const command *it, buffer *reply)
{
    int is_wrong;
    value *from = value_of(store, it->arguments[1], LIST, reply, &is_wrong);
    if (!is_wrong)
        append_number(reply, ':', from == NULL ? 0 : (int64_t)from->list.count);
}

static void do_lrange(store *store, const command *it, buffer *reply)
{
    int is_wrong;
    int64_t first, last, count;
    value *from;
    if (!is_number(it->arguments[2], &first) || !is_number(it->arguments[3], &last)) {
        append_text(reply, "-ERR value is not an integer or out of range\r\n");
        return;
    }
    from = value_of(store, it->arguments[1], LIST, reply, &is_wrong);
    if (is_wrong)
        return;
    count = from == NULL ? 0 : (int64_t)from->list.count;
    first = first < -count ? 0 : first < 0 ? first + count : first;
    last = last < -count ? -1 : last < 0 ? last + count : last >= count ? count - 1 : last;
    append_number(reply, '*', first > last ? 0 : last - first + 1);
    for (int64_t at = first; at <= last; at++)
        append_bulk(reply, of(*item(&from->list, (size_t)at)));
}

static void do_sadd(store *store, const command *it, buffer *reply)
{
    value *to = value_for(store, it->arguments[1], SET, reply);
    size_t before;
    if (to == NULL)
        return;
    before = to->table.count;
    for (size_t at = 2; at < it->count; at++)
        table_put(&to->table, it->arguments[at]);
    append_number(reply, ':', (int64_t)(to->table.count - before));
}

static void take(store *store, const command *it, buffer *reply, enum kind kind)
{
    int is_wrong;
    int64_t removed = 0;
    value *from = value_of(store, it->arguments[1], kind, reply, &is_wrong);
    if (is_wrong)
        return;
    for (size_t at = 2; from != NULL && at < it->count; at++)
        removed += table_remove(&from->table, it->arguments[at]);
    if (from != NULL)
        drop_empty(store, it->arguments[1], from);
    append_number(reply, ':', removed);
}

static void do_srem(store *store, const command *it, buffer *reply)
{
    take(store, it, reply, SET);
}

static void do_hdel(store *store, const command *it, buffer *reply)
{
    take(store, it, reply, HASH);
}

/* The first of all in the order of their bytes: any will do, if it is the same at all members. */
static void do_spop(store *store, const command *it, buffer *reply)
{
    int is_wrong;
    value *from = value_of(store, it->arguments[1], SET, reply, &is_wrong);
    entry *first = NULL;
    owned popped;
    if (from == NULL) {
        if (!is_wrong)
            append_nothing(reply);
        return;
    }
    for (size_t at = 0; at < from->table.room; at++)
        for (entry *each = from->table.chains[at]; each != NULL; each = each->next)
            if (first == NULL || compare(of(each->key), of(first->key)) < 0)
                first = each;
    popped = own(of(first->key));
    append_bulk(reply, of(popped));
    table_remove(&from->table, of(popped));
    drop_empty(store, it->arguments[1], from);
    free(popped.data);
}

static void count_of(store *store, const command *it, buffer *reply, enum kind kind)
{
    int is_wrong;
    value *from = value_of(store, it->arguments[1], kind, reply, &is_wrong);
    if (!is_wrong)
        append_number(reply, ':', from == NULL ? 0 : (int64_t)from->table.count);
}

static void do_scard(store *store, const command *it, buffer *reply)
{
    count_of(store, it, reply, SET);
}

static void do_hlen(store *store, const command *it, buffer *reply)
{
    count_of(store, it, reply, HASH);
}

static void do_sismember(store *store, const command *it, buffer *reply)
{
    int is_wrong;
    value *from = value_of(store, it->arguments[1], SET, reply, &is_wrong);
    if (!is_wrong)
        append_number(reply, ':', from != NULL && table_find(&from->table, it->arguments[2]) != NULL);
}

static void all_of(store *store, const command *it, buffer *reply, enum kind kind)
{
    int is_wrong;
    entry **all;
    value *from = value_of(store, it->arguments[1], kind, reply, &is_wrong);
    if (is_wrong)
        return;
    append_number(reply, '*', from == NULL ? 0 : (int64_t)from->table.count * (kind == HASH ? 2 : 1));
    if (from == NULL)
        return;
    all = sorted(&from->table);
    for (size_t at = 0; at < from->table.count; at++) {
        append_bulk(reply, of(all[at]->key));
        if (kind == HASH)
            append_bulk(reply, of(all[at]->value->string));
    }
    free(all);
}

static void do_smembers(store *store, const command *it, buffer *reply)
{
    all_of(store, it, reply, SET);
}

static void do_hgetall(store *store, const command *it, buffer *reply)
{
    all_of(store, it, reply, HASH);
}

static void do_hset(store *store, const command *it, buffer *reply)
{
    value *to;
    size_t before;
    if (it->count % 2 != 0) {
        append_text(reply, "-ERR wrong number of arguments for 'hset' command\r\n");
        return;
    }
    to = value_for(store, it->arguments[1], HASH, reply);
    if (to == NULL)
        return;
    before = to->table.count;
    for (size_t at = 2; at < it->count; at += 2) {
        entry *field = table_put(&to->table, it->arguments[at]);
        value_free(field->value);
        field->value = string_new(it->arguments[at + 1]);
    }
    append_number(reply, ':', (int64_t)(to->table.count - before));
}

static void do_hget(store *store, const command *it, buffer *reply)
{
    int is_wrong;
    value *from = value_of(store, it->arguments[1], HASH, reply, &is_wrong);
    entry *field = from == NULL ? NULL : table_find(&from->table, it->arguments[2]);
    if (field != NULL)
        append_bulk(reply, of(field->value->string));
    else if (!is_wrong)
        append_nothing(reply);
}

static void do_dbsize(store *store, const command *it, buffer *reply)
{
    (void)it;
    append_number(reply, ':', (int64_t)store->keys.count);
}

static void do_flush(store *store, const command *it, buffer *reply)
{
    (void)it;
    table_clear(&store->keys);
    append_text(reply, "+OK\r\n");
}

static const verb verbs[] = {
    {"get", 2, 2, READS, do_get},
    {"set", 3, 3, WRITES, do_set},
    {"mget", 2, MOST_ARGUMENTS, READS, do_mget},
    {"mset", 3, MOST_ARGUMENTS, WRITES, do_mset},
    {"del", 2, MOST_ARGUMENTS, WRITES, do_del},
    {"exists", 2, MOST_ARGUMENTS, READS, do_exists},
    {"type", 2, 2, READS, do_type},
    {"incr", 2, 2, WRITES, do_incr},
    {"decr", 2, 2, WRITES, do_decr},
    {"incrby", 3, 3, WRITES, do_incrby},
    {"lpush", 3, MOST_ARGUMENTS, WRITES, do_lpush},
    {"rpush", 3, MOST_ARGUMENTS, WRITES, do_rpush},
    {"lpop", 2, 2, WRITES, do_lpop},
    {"rpop", 2, 2, WRITES, do_rpop},
    {"llen", 2, 2, READS, do_llen},
    {"lrange", 4, 4, READS, do_lrange},
    {"sadd", 3, MOST_ARGUMENTS, WRITES, do_sadd},
    {"srem", 3, MOST_ARGUMENTS, WRITES, do_srem},
    {"spop", 2, 2, WRITES, do_spop},
    {"scard", 2, 2, READS, do_scard},
    {"sismember", 3, 3, READS, do_sismember},
    {"smembers", 2, 2, READS, do_smembers},
    {"hset", 4, MOST_ARGUMENTS, WRITES, do_hset},
    {"hget", 3, 3, READS, do_hget},
    {"hdel", 3, MOST_ARGUMENTS, WRITES, do_hdel},
    {"hlen", 2, 2, READS, do_hlen},
    {"hgetall", 2, 2, READS, do_hgetall},
    {"dbsize", 1, 1, READS, do_dbsize},
    {"flushall", 1, 2, WRITES, do_flush},
    {"flushdb", 1, 2, WRITES, do_flush},
};

static const verb *verb_of(const command *command)
{
    for (size_t at = 0; at < sizeof verbs / sizeof *verbs; at++)
        if (is_word(command->arguments[0], verbs[at].name))
            return &verbs[at];
    return NULL;
}

enum effect effect_of(const command *command)
{
    const verb *verb = verb_of(command);
    return verb == NULL ? NEITHER : verb->effect;
}

void store_do(store *store, const command *command, buffer *reply)
{
    const verb *verb = verb_of(command);
    if (verb == NULL)
        append_text(reply, "-ERR unknown command\r\n");
    else if (command->count < verb->least || command->count > verb->most)
        append_text(reply, "-ERR wrong number of arguments\r\n");
    else
        verb->act(store, command, reply);
}

/* --------------------------------------------------------------------------------------------------------- snapshots
 *
 * Numbers are 8 bytes, in the machine's own order: members run the same program on the same kind of machine.
 *
 *   state = count, entries    entry = key, kind, (string | count, strings | count, strings | count, pairs of strings)
 */

static void write_number(buffer *to, uint64_t number)
{
    append(to, &number, sizeof number);
}

static void write_bytes(buffer *to, slice bytes)
{
    write_number(to, bytes.len);
    append(to, bytes.data, bytes.len);
}

static void write_value(buffer *to, const value *it)
{
    write_number(to, it->kind);
    if (it->kind == STRING) {
        write_bytes(to, of(it->string));
    } else if (it->kind == LIST) {
        write_number(to, it->list.count);
        for (size_t at = 0; at < it->list.count; at++)
            write_bytes(to, of(*item(&it->list, at)));
    } else {
        entry **all = sorted(&it->table);
        write_number(to, it->table.count);
        for (size_t at = 0; at < it->table.count; at++) {
            write_bytes(to, of(all[at]->key));
            if (it->kind == HASH)
                write_bytes(to, of(all[at]->value->string));
        }
        free(all);
    }
}

void store_write(const store *store, buffer *to)
{
    entry **all = sorted(&store->keys);
    write_number(to, store->keys.count);
    for (size_t at = 0; at < store->keys.count; at++) {
        write_bytes(to, of(all[at]->key));
        write_value(to, all[at]->value);
    }
    free(all);
}

static int read_number(slice *from, uint64_t *number)
{
    if (from->len < sizeof *number)
        return 0;
    memcpy(number, from->data, sizeof *number);
    from->data += sizeof *number, from->len -= sizeof *number;
    return 1;
}

static int read_bytes(slice *from, slice *bytes)
{
    uint64_t len;
    if (!read_number(from, &len) || from->len < len)
        return 0;
    bytes->data = from->data;
    bytes->len = (size_t)len;
    from->data += len, from->len -= (size_t)len;
    return 1;
}

static int read_value(slice *from, value *it)
{
    uint64_t count;
    slice first, second;
    if (it->kind == STRING) {
        if (!read_bytes(from, &first))
            return 0;
        it->string = own(first);
        return 1;
    }
    if (!read_number(from, &count))
        return 0;
    for (; count > 0; count--) {
        if (!read_bytes(from, &first))
            return 0;
        if (it->kind == LIST) {
            list_push(&it->list, first, 0);
            continue;
        }
        entry *made = table_put(&it->table, first);
        if (it->kind == HASH) {
            if (!read_bytes(from, &second))
                return 0;
            value_free(made->value);
            made->value = string_new(second);
        }
    }
    return 1;
}

int store_read(store *store, slice from)
{
    uint64_t count, kind;
    slice key;
    table_clear(&store->keys);
    if (!read_number(&from, &count))
        return 0;
    for (; count > 0; count--) {
        if (!read_bytes(&from, &key) || !read_number(&from, &kind) || kind > HASH)
            return 0;
        entry *made = table_put(&store->keys, key);
        value_free(made->value);
        made->value = value_new((enum kind)kind);
        if (!read_value(&from, made->value))
            return 0;
    }
    return from.len == 0;
}
