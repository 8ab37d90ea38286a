/* Asking the peer what to do with a call, within bounded time. */
#pragma once

#include <stdint.h>

/* A call as its process made it, and who made it. */
struct call {
	uint64_t number;
	uint64_t arguments[6]; /* rdi rsi rdx r10 r8 r9 */
	uint64_t rip;          /* where the process goes on */
	uint64_t rsp;
	uint64_t cr3; /* the page, without PCID */
	uint64_t fs_base;
};

struct verdict {
	uint32_t kind;
	uint64_t value;
	uint64_t arguments[6];
};

/*
 * The peer's verdict, or the one of on_loss; kind is always a valid one. event is
 * TRAPS_EVENT_ENTRY or TRAPS_EVENT_RETURNED, result what the substitute returned.
 */
struct verdict ask(unsigned int vcpu, uint32_t event, const struct call *call, uint64_t result);
