/* A replicated store that speaks the protocol of Redis: redis-cli and redis-benchmark work against any replica.
 *
 *   resp --port 6401 --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --peer 3=127.0.0.1:7103
 *
 * Commands that write are ordered through the group, so all replicas do the same ones in the same order, and a client is answered when
 * its own replica has done its command. Commands that read are done here: on the state as it is here (`--reads local`, the default: never
 * older than what this client has written here), or on one that has every write that was answered anywhere (`--reads linearizable`).
 *
 * One thread serves all clients, in epoll. What the replica's thread has to say it puts into a list, and raises an eventfd.
 *
 *   client ─► parse ─► writes: consort_replica_submit_then ─► group ─► apply ─► on_reply ─► list ─┐
 *                └──► reads: consort_replica_query ──────────────────────────────────────────────►└─► the client's answers, in order
 *
 * A client's own commands take effect one after the other, also if it sends many at once: a read behind writes that aren't answered yet is
 * ordered through the group like these, and a write behind reads that aren't waits for them.
 */
#include "../arguments.h"
#include "store.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------------- the machine */

static int apply(void *context, const consort_update *update, consort_writer *reply)
{
    static command command; /* one update at a time */
    buffer answer = {NULL, 0, 0};
    slice bytes;
    size_t used;
    int done;
    bytes.data = (const char *)update->data;
    bytes.len = update->len;
    if (parse_command(bytes, &command, &used) == WHOLE && command.count > 0)
        store_do((store *)context, &command, &answer);
    else
        append_text(&answer, "-ERR a damaged command\r\n");
    done = consort_write(reply, answer.data, answer.len) == CONSORT_OK;
    free(answer.data);
    return done ? 0 : 1;
}

static int snapshot(void *context, consort_writer *state)
{
    buffer bytes = {NULL, 0, 0};
    int done;
    store_write((const store *)context, &bytes);
    done = consort_write(state, bytes.data, bytes.len) == CONSORT_OK;
    free(bytes.data);
    return done ? 0 : 1;
}

static int restore(void *context, consort_reader *state)
{
    buffer bytes = {NULL, 0, 0};
    uint8_t piece[65536];
    size_t got = 1;
    slice all;
    int done;
    while (got > 0) {
        if (consort_read(state, piece, sizeof piece, &got) != CONSORT_OK) {
            free(bytes.data);
            return 1;
        }
        append(&bytes, piece, got);
    }
    all.data = bytes.data;
    all.len = bytes.len;
    done = store_read((store *)context, all);
    free(bytes.data);
    return done ? 0 : 1;
}

static void free_store(void *context)
{
    store_free((store *)context);
}

/* -------------------------------------------------------------------------------------------------------- answers */

typedef struct client client;

/* An answer that a client waits for. */
typedef struct answer {
    client *client;       /* NULL: it is gone */
    struct answer *after; /* the client's next */
    struct answer *done;  /* in the list of those that are told */
    int is_a_read;        /* it waits until the state here is new enough */
    int is_read;          /* ... and is then to be done */
    int waits;            /* for the replica */
    buffer bytes;         /* what to say; or of a read, the command */
} answer;

struct client {
    int socket;
    buffer in, out;
    size_t sent;
    answer *first, *last;
    size_t writes, reads; /* of these, that aren't answered yet */
    int is_held;          /* a write waits for reads */
    int is_over, wants_out, is_dirty;
    client *dirty, *next, *before;
};

/* What the replica's thread tells the loop. */
static pthread_mutex_t told_lock = PTHREAD_MUTEX_INITIALIZER;
static answer *told_first, *told_last;
static int told_event;

static consort_replica *replica;
static int reads_linearizable;
static int epoll;
static client *clients, *dirty;

/* On the replica's thread, or on the loop's. */
static void tell(answer *it)
{
    int was_empty;
    uint64_t one = 1;
    pthread_mutex_lock(&told_lock);
    was_empty = told_first == NULL;
    if (was_empty)
        told_first = it;
    else
        told_last->done = it;
    told_last = it;
    pthread_mutex_unlock(&told_lock);
    if (was_empty && write(told_event, &one, sizeof one) < 0 && errno != EAGAIN)
        abort();
}

static void fail(buffer *to)
{
    append_text(to, "-ERR ");
    append_text(to, consort_last_error());
    append_text(to, "\r\n");
}

static void on_reply(void *context, consort_status status, const void *reply, size_t len)
{
    answer *it = (answer *)context;
    if (status == CONSORT_OK)
        append(&it->bytes, reply, len);
    else
        fail(&it->bytes);
    tell(it);
}

static void on_fresh(void *context, consort_status status)
{
    answer *it = (answer *)context;
    if (status != CONSORT_OK) {
        it->is_read = 0;
        it->bytes.len = 0;
        fail(&it->bytes);
    }
    tell(it);
}

static answer *expect(client *from)
{
    answer *it = (answer *)sure(calloc(1, sizeof *it));
    it->client = from;
    if (from->first == NULL)
        from->first = it;
    else
        from->last->after = it;
    from->last = it;
    return it;
}

static void answer_free(answer *it)
{
    free(it->bytes.data);
    free(it);
}

typedef struct reading {
    const command *command;
    buffer *reply;
} reading;

static void look(void *context, void *machine)
{
    reading *it = (reading *)context;
    store_do((store *)machine, it->command, it->reply);
}

static void read_now(const command *command, buffer *reply)
{
    reading reading;
    reading.command = command;
    reading.reply = reply;
    if (consort_replica_query(replica, CONSORT_LOCAL, look, &reading) != CONSORT_OK)
        fail(reply);
}

/* ------------------------------------------------------------------------------------------------------- commands */

/* What the tools ask that has nothing to do with the store. Returns 0 if it is none of that. */
static int asks(client *from, const command *it, buffer *reply)
{
    slice verb = it->arguments[0];
    if (is_word(verb, "ping")) {
        if (it->count > 1)
            append_bulk(reply, it->arguments[1]);
        else
            append_text(reply, "+PONG\r\n");
    } else if (is_word(verb, "echo") && it->count == 2) {
        append_bulk(reply, it->arguments[1]);
    } else if (is_word(verb, "config") && it->count == 3 && is_word(it->arguments[1], "get")) {
        append_number(reply, '*', 2);
        append_bulk(reply, it->arguments[2]);
        append_text(reply, "$0\r\n\r\n");
    } else if (is_word(verb, "command")) {
        append_text(reply, "*0\r\n");
    } else if (is_word(verb, "info")) {
        uint64_t applied = 0;
        char text[128];
        slice bytes;
        consort_replica_applied(replica, &applied);
        bytes.len = (size_t)snprintf(text, sizeof text, "# Server\r\nredis_mode:standalone\r\n# Consort\r\napplied:%llu\r\n",
                                     (unsigned long long)applied);
        bytes.data = text;
        append_bulk(reply, bytes);
    } else if (is_word(verb, "select") || is_word(verb, "client")) {
        append_text(reply, "+OK\r\n");
    } else if (is_word(verb, "quit")) {
        append_text(reply, "+OK\r\n");
        from->is_over = 1;
    } else {
        return 0;
    }
    return 1;
}

/* Has the group do a command. */
static void order(client *from, slice raw)
{
    answer *it = expect(from);
    it->waits = 1;
    from->writes++;
    if (consort_replica_submit_then(replica, raw.data, raw.len, on_reply, it) != CONSORT_OK) {
        it->waits = 0;
        from->writes--;
        fail(&it->bytes);
    }
}

/* Does a read when it is known that the state here is as new as any. */
static void read_fresh(client *from, slice raw)
{
    answer *it = expect(from);
    it->is_a_read = it->is_read = it->waits = 1;
    from->reads++;
    append(&it->bytes, raw.data, raw.len);
    if (consort_replica_fresh_then(replica, on_fresh, it) != CONSORT_OK) {
        it->is_read = it->waits = 0;
        from->reads--;
        it->bytes.len = 0;
        fail(&it->bytes);
    }
}

/* Does a command, or has it done. Returns 0 if it must wait. */
static int serve(client *from, const command *it, slice raw)
{
    enum effect effect = effect_of(it);
    if (effect == WRITES && from->reads > 0)
        return 0;
    if (effect == WRITES || (effect == READS && from->writes > 0)) {
        order(from, raw);
    } else if (effect == READS && reads_linearizable) {
        read_fresh(from, raw);
    } else {
        buffer *reply = from->first == NULL ? &from->out : &expect(from)->bytes;
        if (effect == READS)
            read_now(it, reply);
        else if (!asks(from, it, reply))
            append_text(reply, "-ERR unknown command, or wrong arguments\r\n");
    }
    return 1;
}

/* -------------------------------------------------------------------------------------------------------- clients */

static void close_client(client *it)
{
    close(it->socket);
    for (answer *each = it->first, *after; each != NULL; each = after) {
        after = each->after;
        each->client = NULL;
        if (!each->waits)
            answer_free(each); /* the others when they are told */
    }
    if (it->before != NULL)
        it->before->next = it->next;
    else
        clients = it->next;
    if (it->next != NULL)
        it->next->before = it->before;
    free(it->in.data);
    free(it->out.data);
    free(it);
}

/* Says what is to be said, in order. Returns 0 if the client is gone. */
static int flush(client *to)
{
    static command command;
    while (to->first != NULL && !to->first->waits) {
        answer *it = to->first;
        if (it->is_read) {
            slice raw;
            size_t used;
            raw.data = it->bytes.data;
            raw.len = it->bytes.len;
            if (parse_command(raw, &command, &used) == WHOLE)
                read_now(&command, &to->out);
        } else {
            append(&to->out, it->bytes.data, it->bytes.len);
        }
        to->first = it->after;
        answer_free(it);
    }
    while (to->sent < to->out.len) {
        ssize_t sent = send(to->socket, to->out.data + to->sent, to->out.len - to->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            to->is_over = 2;
        if (sent < 0)
            break;
        to->sent += (size_t)sent;
    }
    if (to->sent == to->out.len)
        to->sent = to->out.len = 0;
    int is_done = to->is_over == 2 || (to->is_over == 1 && to->first == NULL && to->out.len == 0);
    if (is_done) {
        close_client(to);
        return 0;
    }
    if (to->wants_out != (to->out.len > 0)) {
        struct epoll_event wanted;
        memset(&wanted, 0, sizeof wanted);
        to->wants_out = to->out.len > 0;
        wanted.events = to->wants_out ? EPOLLIN | EPOLLOUT : EPOLLIN;
        wanted.data.ptr = to;
        epoll_ctl(epoll, EPOLL_CTL_MOD, to->socket, &wanted);
    }
    return 1;
}

/* Serves what has come in, as far as it can be. */
static void serve_all(client *from)
{
    static command command;
    size_t at = 0;
    while (from->is_over == 0 && !from->is_held) {
        slice rest;
        size_t used;
        rest.data = from->in.data + at;
        rest.len = from->in.len - at;
        enum parsed parsed = parse_command(rest, &command, &used);
        if (parsed == WRONG) {
            append_text(from->first == NULL ? &from->out : &expect(from)->bytes, "-ERR Protocol error\r\n");
            from->is_over = 1;
        }
        if (parsed != WHOLE)
            break;
        rest.len = used;
        from->is_held = command.count > 0 && !serve(from, &command, rest);
        if (!from->is_held)
            at += used;
    }
    from->in.len -= at;
    if (from->in.len > 0)
        memmove(from->in.data, from->in.data + at, from->in.len);
    flush(from);
}

static void read_client(client *from)
{
    static char piece[65536];
    ssize_t got = recv(from->socket, piece, sizeof piece, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got > 0)
        append(&from->in, piece, (size_t)got);
    else
        from->is_over = 2;
    serve_all(from);
}

static void accept_clients(int door)
{
    int socket;
    while ((socket = accept4(door, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event wanted;
        int yes = 1;
        client *it = (client *)sure(calloc(1, sizeof *it));
        it->socket = socket;
        it->next = clients;
        if (clients != NULL)
            clients->before = it;
        clients = it;
        setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        memset(&wanted, 0, sizeof wanted);
        wanted.events = EPOLLIN;
        wanted.data.ptr = it;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &wanted) != 0)
            close_client(it);
    }
}

/* Takes what the replica's thread has told, and flushes each client once. */
static void hear(void)
{
    uint64_t count;
    answer *it;
    if (read(told_event, &count, sizeof count) < 0 && errno != EAGAIN)
        abort();
    pthread_mutex_lock(&told_lock);
    it = told_first;
    told_first = told_last = NULL;
    pthread_mutex_unlock(&told_lock);
    while (it != NULL) {
        answer *next = it->done;
        client *of = it->client;
        it->waits = 0;
        it->done = NULL;
        if (of == NULL) {
            answer_free(it);
            it = next;
            continue;
        }
        if (it->is_a_read)
            of->reads--;
        else
            of->writes--;
        if (!of->is_dirty) {
            of->is_dirty = 1;
            of->dirty = dirty;
            dirty = of;
        }
        it = next;
    }
    while (dirty != NULL) {
        client *to = dirty;
        dirty = to->dirty;
        to->is_dirty = 0;
        if (flush(to) && to->is_held && to->reads == 0) {
            to->is_held = 0;
            serve_all(to);
        }
    }
}

static int open_door(const char *port, int *number)
{
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    int yes = 1, door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)strtoul(port, NULL, 10));
    if (door < 0 || setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(door, (const struct sockaddr *)&address, len) != 0 || listen(door, 1024) != 0 ||
        getsockname(door, (struct sockaddr *)&address, &len) != 0) {
        fprintf(stderr, "can't listen on port %s: %s; take another --port\n", port, strerror(errno));
        exit(1);
    }
    *number = ntohs(address.sin_port);
    return door;
}

static void watch(int descriptor, void *mark)
{
    struct epoll_event wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.events = EPOLLIN;
    wanted.data.ptr = mark;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &wanted) != 0) {
        perror("epoll");
        exit(1);
    }
}

static volatile sig_atomic_t is_asked_to_end;

static void end(int signal)
{
    (void)signal;
    is_asked_to_end = 1;
}

int main(int argc, char **argv)
{
    arguments arguments;
    consort_machine machine;
    const char *port = "6379";
    int door, number;
    struct sigaction action;
    sigset_t signals, open;

    begin(&arguments);
    arguments.options.digest_every = 0; /* a large state would be read through each time */
    for (int at = 1; at < argc; at += 2) {
        if (at + 1 == argc)
            usage(argv[at]);
        if (strcmp(argv[at], "--port") == 0)
            port = argv[at + 1];
        else if (strcmp(argv[at], "--reads") == 0)
            reads_linearizable = strcmp(argv[at + 1], "linearizable") == 0;
        else if (strcmp(argv[at], "--digest-every") == 0)
            arguments.options.digest_every = strtoull(argv[at + 1], NULL, 10);
        else if (!take(&arguments, argv[at], argv[at + 1]))
            usage(argv[at]);
    }
    memset(&action, 0, sizeof action);
    action.sa_handler = end;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    /* They come only while the loop waits, in all other threads never. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, &open);

    epoll = epoll_create1(EPOLL_CLOEXEC);
    told_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    door = open_door(port, &number);
    watch(door, &door);
    watch(told_event, &told_event);

    check(consort_machine_init(sizeof machine, &machine), "machine");
    machine.context = store_new();
    machine.apply = apply;
    machine.snapshot = snapshot;
    machine.restore = restore;
    machine.free = free_store;
    check(consort_replica_new(&arguments.options, &machine, &replica), "start");
    printf("serves clients on 127.0.0.1:%d\n", number);
    fflush(stdout);

    while (!is_asked_to_end) {
        struct epoll_event ready[64];
        int count = epoll_pwait(epoll, ready, 64, -1, &open);
        for (int at = 0; at < count; at++) {
            void *mark = ready[at].data.ptr;
            if (mark == &door)
                accept_clients(door);
            else if (mark == &told_event)
                continue; /* last: it may free clients that others of these events are of */
            else if (ready[at].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                read_client((client *)mark);
            else
                flush((client *)mark);
        }
        hear();
    }
    check(consort_replica_leave(replica, 10000), "leave");
    hear();
    while (clients != NULL)
        close_client(clients);
    check(consort_replica_free(replica), "free");
    close(door);
    close(told_event);
    close(epoll);
    return 0;
}
