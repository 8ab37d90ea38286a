/*
 * The memory shared with the peer. It may hold anything at any time: each value is loaded once,
 * then bounded, and never used as an address or an unchecked index.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "protocol.h"

extern struct region *shared;

/* Map the region; NULL on success, else why not. The memfd must be sealed against shrinking. */
const char *shared_map(int fd);

/* Is this CR3 page enrolled? */
bool is_enrolled(uint64_t page);

/* Does the peer live, by its heartbeat? */
bool peer_lives(void);

bool number_is_trapped(uint64_t number);
void count_call(uint64_t number);

uint64_t now_ns(void);
uint64_t verdict_timeout_ns(void);
uint32_t spin_limit(void);

/* Both bounded by nanoseconds; spurious returns are allowed. */
void futex_wait(_Atomic uint32_t *word, uint32_t while_it_is, uint64_t nanoseconds);
void futex_wake(_Atomic uint32_t *word);

#define COUNT(name) atomic_fetch_add_explicit(&shared->counters.name, 1, memory_order_relaxed)
