/*
 * Calls whose place another call has taken, by thread: the thread may come back on another vCPU.
 * A thread that never comes back (exec, exit) leaves its entry until newer ones need the place.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "verdict.h"

enum substitute_state {
	SUBSTITUTE_NONE,
	SUBSTITUTE_RUNS,    /* the guest kernel does the substitute */
	SUBSTITUTE_REISSUE, /* the thread is about to enter with the next substitute */
	SUBSTITUTE_PASS,    /* the thread is about to enter with its own call again */
};

/* Whether any thread has one: nothing else need be looked at if not. */
bool substitutes_any(void);

struct substitution {
	enum substitute_state state;
	uint64_t number; /* EAX when the thread enters the kernel for it */
	struct call original;
};

/* Remember, or change, what the original's thread is about, at the original's place. */
void substitute_put(const struct substitution *substitution);

/* What who's thread is about at who's rip and rsp; SUBSTITUTE_NONE if nothing. */
struct substitution substitute_get(const struct call *who);

void substitute_drop(const struct call *who);
