#include "verdict.h"

#include <errno.h>

#include "shared.h"

/* Between looks at the peer's heartbeat. */
#define SLICE_NS 10000000ull

/* Ours alone: the peer cannot make a request be taken for another. */
static uint32_t requests[TRAPS_SLOTS];

static struct verdict on_loss(void)
{
	if (atomic_load(&shared->header.on_loss) == TRAPS_ON_LOSS_EIO)
		return (struct verdict){.kind = TRAPS_ANSWER, .value = (uint64_t)-EIO};
	return (struct verdict){.kind = TRAPS_LET_THROUGH};
}

static uint32_t post(struct slot *slot, unsigned int vcpu, uint32_t event, const struct call *call,
		     uint64_t result)
{
	slot->event = event;
	slot->vcpu = vcpu;
	slot->number = call->number;
	for (int i = 0; i < 6; i++)
		slot->arguments[i] = call->arguments[i];
	slot->rip = call->rip;
	slot->rsp = call->rsp;
	slot->cr3 = call->cr3;
	slot->fs_base = call->fs_base;
	slot->time_ns = now_ns();
	slot->result = result;
	uint32_t request = ++requests[vcpu];
	if (request == 0)
		request = ++requests[vcpu];
	atomic_store(&slot->request, request);
	/* A full barrier: either we see that the peer sleeps, or it sees the new number. */
	atomic_fetch_add(&shared->header.doorbell, 1);
	if (atomic_load(&shared->header.peer_sleeping))
		futex_wake(&shared->header.doorbell);
	return request;
}

/* True when the peer decided; false when it did not in time, or died. */
static bool await_verdict(struct slot *slot, uint32_t request)
{
	for (uint32_t left = spin_limit(); left > 0; left--) {
		if (atomic_load_explicit(&slot->verdict, memory_order_acquire) == request)
			return true;
		__builtin_ia32_pause();
	}
	uint64_t end = now_ns() + verdict_timeout_ns();
	for (uint64_t now = now_ns(); now < end && peer_lives(); now = now_ns()) {
		uint32_t seen = atomic_load(&slot->verdict);
		if (seen == request)
			return true;
		futex_wait(&slot->verdict, seen, end - now < SLICE_NS ? end - now : SLICE_NS);
	}
	return atomic_load(&slot->verdict) == request;
}

static struct verdict taken(struct slot *slot)
{
	struct verdict verdict = {.kind = slot->kind, .value = slot->value};
	for (int i = 0; i < 6; i++)
		verdict.arguments[i] = slot->substitute_arguments[i];
	switch (verdict.kind) {
	case TRAPS_LET_THROUGH:
	case TRAPS_ANSWER:
	case TRAPS_SUBSTITUTE:
		return verdict;
	default:
		COUNT(invalid_verdicts);
		return on_loss();
	}
}

struct verdict ask(unsigned int vcpu, uint32_t event, const struct call *call, uint64_t result)
{
	if (!peer_lives()) {
		COUNT(peer_lost);
		return on_loss();
	}
	struct slot *slot = &shared->slots[vcpu];
	COUNT(asked);
	uint32_t request = post(slot, vcpu, event, call, result);
	bool decided = await_verdict(slot, request);
	atomic_store(&slot->request, 0);
	if (decided)
		return taken(slot);
	if (peer_lives())
		COUNT(timeouts);
	else
		COUNT(peer_lost);
	return on_loss();
}
