/* RESP, the protocol of Redis: commands as arrays of byte strings, and replies.
 * https://redis.io/docs/latest/develop/reference/protocol-spec/ */
#ifndef WIRE_H
#define WIRE_H

#include <stddef.h>
#include <stdint.h>

/* Bytes that are somewhere else. */
typedef struct slice {
    const char *data;
    size_t len;
} slice;

/* Bytes that grow. */
typedef struct buffer {
    char *data;
    size_t len, room;
} buffer;

enum { MOST_ARGUMENTS = 1024 };

/* A command, its arguments lying in what it was read from. */
typedef struct command {
    slice arguments[MOST_ARGUMENTS];
    size_t count;
} command;

/* What came of reading one. */
enum parsed { WHOLE, SHORT, WRONG };

/* Reads the command that data begins with; how long it is comes by *used. WRONG: *used is meaningless, and the connection can't go on. */
enum parsed parse_command(slice data, command *into, size_t *used);

/* Whether a slice is that word, in small or capital letters. */
int is_word(slice it, const char *word);

/* Whether a slice is a number that fits. */
int is_number(slice it, int64_t *number);

/* All of these end the program if there is no memory. */
void append(buffer *to, const void *data, size_t len);
void append_number(buffer *to, char kind, int64_t number); /* ":1\r\n", "*1\r\n" */
void append_bulk(buffer *to, slice bytes);
void append_nothing(buffer *to);                           /* "$-1\r\n" */
void append_text(buffer *to, const char *text);            /* as it is */
void *sure(void *memory);

#endif
