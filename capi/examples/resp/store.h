/* What is replicated: keys with strings, lists, sets and hashes, and what a command does to them. It depends on nothing but the
 * commands, so that it is the same at all members; where an order shows, it is that of the keys' bytes. */
#ifndef STORE_H
#define STORE_H

#include "wire.h"

typedef struct store store;

store *store_new(void);
void store_free(store *store);

/* What a command is to the store. */
enum effect { READS, WRITES, NEITHER };

/* NEITHER: the store doesn't know it. */
enum effect effect_of(const command *command);

/* Does a command that WRITES, or READS, and appends the reply. A command that READS changes nothing. */
void store_do(store *store, const command *command, buffer *reply);

/* The whole state, with the same bytes wherever it is the same. */
void store_write(const store *store, buffer *to);

/* Becomes what store_write wrote. Gives 0 if that can't be read; the store is then empty or half full. */
int store_read(store *store, slice from);

#endif
