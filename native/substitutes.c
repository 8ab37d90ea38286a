#include "substitutes.h"

#include <pthread.h>

#include "shared.h"

#define PLACES 256

struct place {
	enum substitute_state state;
	uint64_t put_at_ns;
	struct call call;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct place places[PLACES];
static atomic_uint used;

/*
 * A thread is known by address space and FS base, a call of it by where it goes on and its stack:
 * a signal handler that runs in between uses the stack below.
 */
static struct place *find(const struct call *who)
{
	for (struct place *at = places; at < places + PLACES; at++) {
		if (at->state != SUBSTITUTE_NONE && at->call.cr3 == who->cr3 &&
		    at->call.fs_base == who->fs_base && at->call.rip == who->rip &&
		    at->call.rsp == who->rsp)
			return at;
	}
	return NULL;
}

static struct place *free_or_oldest(void)
{
	struct place *oldest = places;
	for (struct place *at = places; at < places + PLACES; at++) {
		if (at->state == SUBSTITUTE_NONE)
			return at;
		if (at->put_at_ns < oldest->put_at_ns)
			oldest = at;
	}
	return oldest;
}

bool substitutes_any(void)
{
	return atomic_load(&used) != 0;
}

void substitute_put(const struct call *call, enum substitute_state state)
{
	pthread_mutex_lock(&lock);
	struct place *at = find(call);
	if (!at) {
		at = free_or_oldest();
		if (at->state == SUBSTITUTE_NONE)
			atomic_fetch_add(&used, 1);
		else
			COUNT(substitutes_forgotten);
	}
	*at = (struct place){.state = state, .put_at_ns = now_ns(), .call = *call};
	pthread_mutex_unlock(&lock);
}

enum substitute_state substitute_get(const struct call *who, struct call *found)
{
	enum substitute_state state = SUBSTITUTE_NONE;
	pthread_mutex_lock(&lock);
	const struct place *at = find(who);
	if (at) {
		state = at->state;
		*found = at->call;
	}
	pthread_mutex_unlock(&lock);
	return state;
}

void substitute_drop(const struct call *who)
{
	pthread_mutex_lock(&lock);
	struct place *at = find(who);
	if (at) {
		at->state = SUBSTITUTE_NONE;
		atomic_fetch_sub(&used, 1);
	}
	pthread_mutex_unlock(&lock);
}
