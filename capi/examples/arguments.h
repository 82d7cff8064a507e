/* What the examples share: a node's options from the command line.
 *
 *   --id N  --listen ADDRESS  --peer ID=ADDRESS ...  --join ADDRESS ...  --fabric auto|shm|tcp|verbs  --listen-fd N
 */
#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#include <consort.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 64

typedef struct arguments {
    consort_node_options options;
    consort_peer peers[MOST];
    const char *join[MOST];
} arguments;

/* Ends the program if a call failed, and says why. */
static inline void check(consort_status status, const char *what)
{
    if (status != CONSORT_OK) {
        fprintf(stderr, "%s: %s (%s)\n", what, consort_last_error(), consort_status_name(status));
        exit(1);
    }
}

static inline void usage(const char *option)
{
    fprintf(stderr, "%s: it takes --id N --listen ADDRESS, and --peer ID=ADDRESS for each other or --join ADDRESS\n", option);
    exit(2);
}

/* Takes one option and its value; returns 0 if it is none of these. */
static inline int take(arguments *to, const char *option, char *value)
{
    if (strcmp(option, "--id") == 0) {
        to->options.id = (uint32_t)strtoul(value, NULL, 10);
    } else if (strcmp(option, "--listen") == 0) {
        to->options.listen = value;
    } else if (strcmp(option, "--listen-fd") == 0) {
        to->options.listen_fd = (int32_t)strtol(value, NULL, 10);
    } else if (strcmp(option, "--peer") == 0) {
        char *address = strchr(value, '=');
        if (address == NULL || to->options.peers_len == MOST)
            usage(value);
        to->peers[to->options.peers_len].id = (uint32_t)strtoul(value, NULL, 10);
        to->peers[to->options.peers_len].address = address + 1;
        to->options.peers_len++;
    } else if (strcmp(option, "--join") == 0) {
        if (to->options.join_len == MOST)
            usage(value);
        to->join[to->options.join_len++] = value;
    } else if (strcmp(option, "--fabric") == 0) {
        static const char *const names[] = {"auto", "shm", "tcp", "verbs"};
        static const uint32_t fabrics[] = {CONSORT_AUTO, CONSORT_SHM, CONSORT_TCP, CONSORT_VERBS};
        int at = 0;
        while (at < 4 && strcmp(value, names[at]) != 0)
            at++;
        if (at == 4)
            usage(value);
        to->options.fabric = fabrics[at];
    } else if (strcmp(option, "--ring") == 0) {
        to->options.ring_bytes = strtoull(value, NULL, 10);
    } else {
        return 0;
    }
    return 1;
}

/* Sets everything as it is if nothing is said. */
static inline void begin(arguments *to)
{
    memset(to, 0, sizeof *to);
    check(consort_node_options_init(sizeof to->options, &to->options), "options");
    to->options.peers = to->peers;
    to->options.join = to->join;
}

/* All options, for programs that have no others. */
static inline void parse(arguments *to, int argc, char **argv)
{
    begin(to);
    for (int at = 1; at < argc; at += 2) {
        if (at + 1 == argc || !take(to, argv[at], argv[at + 1]))
            usage(argv[at]);
    }
}

#endif
