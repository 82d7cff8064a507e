#include "wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void *sure(void *memory)
{
    if (memory == NULL) {
        fputs("no memory\n", stderr);
        abort();
    }
    return memory;
}

void append(buffer *to, const void *data, size_t len)
{
    if (to->room - to->len < len) {
        size_t room = to->room * 2 > to->len + len ? to->room * 2 : to->len + len + 64;
        to->data = (char *)sure(realloc(to->data, room));
        to->room = room;
    }
    if (len > 0)
        memcpy(to->data + to->len, data, len);
    to->len += len;
}

void append_text(buffer *to, const char *text)
{
    append(to, text, strlen(text));
}

void append_number(buffer *to, char kind, int64_t number)
{
    char text[32];
    int len = snprintf(text, sizeof text, "%c%" PRId64 "\r\n", kind, number);
    append(to, text, (size_t)len);
}

void append_bulk(buffer *to, slice bytes)
{
    append_number(to, '$', (int64_t)bytes.len);
    append(to, bytes.data, bytes.len);
    append_text(to, "\r\n");
}

void append_nothing(buffer *to)
{
    append_text(to, "$-1\r\n");
}

int is_word(slice it, const char *word)
{
    return it.len == strlen(word) && strncasecmp(it.data, word, it.len) == 0;
}

int is_number(slice it, int64_t *number)
{
    int minus = it.len > 0 && it.data[0] == '-';
    uint64_t value = 0, most = (uint64_t)INT64_MAX + (minus ? 1 : 0);
    if (it.len == (size_t)minus || it.len > 20)
        return 0;
    for (size_t at = (size_t)minus; at < it.len; at++) {
        unsigned digit = (unsigned)(it.data[at] - '0');
        if (digit > 9 || value > (most - digit) / 10)
            return 0;
        value = value * 10 + digit;
    }
    *number = minus ? (int64_t)(0 - value) : (int64_t)value;
    return 1;
}

/* The line at the beginning, without its end. */
static enum parsed line_of(slice data, slice *line, size_t *used)
{
    const char *end = (const char *)memchr(data.data, '\n', data.len);
    if (end == NULL)
        return data.len > 65536 ? WRONG : SHORT;
    *used = (size_t)(end - data.data) + 1;
    line->data = data.data;
    line->len = *used - 1 - (*used > 1 && end[-1] == '\r');
    return WHOLE;
}

/* "PING": words in a line, as people type them. */
static enum parsed inline_command(slice data, command *into, size_t *used)
{
    slice line;
    enum parsed parsed = line_of(data, &line, used);
    if (parsed != WHOLE)
        return parsed;
    into->count = 0;
    for (size_t at = 0; at < line.len;) {
        size_t from = at;
        while (at < line.len && line.data[at] != ' ')
            at++;
        if (at > from) {
            if (into->count == MOST_ARGUMENTS)
                return WRONG;
            into->arguments[into->count].data = line.data + from;
            into->arguments[into->count++].len = at - from;
        }
        at++;
    }
    return WHOLE;
}

enum parsed parse_command(slice data, command *into, size_t *used)
{
    slice line, rest = data;
    size_t len;
    int64_t count, bytes;
    enum parsed parsed;
    if (data.len == 0)
        return SHORT;
    if (data.data[0] != '*')
        return inline_command(data, into, used);
    if ((parsed = line_of(rest, &line, &len)) != WHOLE)
        return parsed;
    line.data++, line.len--;
    if (!is_number(line, &count) || count < 0 || count > MOST_ARGUMENTS)
        return WRONG;
    rest.data += len, rest.len -= len;
    for (into->count = 0; into->count < (size_t)count; into->count++) {
        if (rest.len == 0)
            return SHORT;
        if (rest.data[0] != '$')
            return WRONG;
        if ((parsed = line_of(rest, &line, &len)) != WHOLE)
            return parsed;
        line.data++, line.len--;
        if (!is_number(line, &bytes) || bytes < 0 || bytes > (512 << 20))
            return WRONG;
        rest.data += len, rest.len -= len;
        if (rest.len < (size_t)bytes + 2)
            return SHORT;
        into->arguments[into->count].data = rest.data;
        into->arguments[into->count].len = (size_t)bytes;
        rest.data += (size_t)bytes + 2, rest.len -= (size_t)bytes + 2;
    }
    *used = data.len - rest.len;
    return WHOLE;
}
