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

/* Remember, or change, the state of call's thread at call's place. */
void substitute_put(const struct call *call, enum substitute_state state);

/* The entry of who's thread at who's rip and rsp; its call goes to found. */
enum substitute_state substitute_get(const struct call *who, struct call *found);

void substitute_drop(const struct call *who);
