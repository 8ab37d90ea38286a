#include "substitutes.h"

#include <pthread.h>

#include "shared.h"

#define PLACES 256

struct place {
	struct substitution held;
	uint64_t put_at_ns;
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
		if (at->held.state != SUBSTITUTE_NONE && at->held.original.cr3 == who->cr3 &&
		    at->held.original.fs_base == who->fs_base &&
		    at->held.original.rip == who->rip && at->held.original.rsp == who->rsp)
			return at;
	}
	return NULL;
}

static struct place *free_or_oldest(void)
{
	struct place *oldest = places;
	for (struct place *at = places; at < places + PLACES; at++) {
		if (at->held.state == SUBSTITUTE_NONE)
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

void substitute_put(const struct substitution *substitution)
{
	pthread_mutex_lock(&lock);
	struct place *at = find(&substitution->original);
	if (!at) {
		at = free_or_oldest();
		if (at->held.state == SUBSTITUTE_NONE)
			atomic_fetch_add(&used, 1);
		else
			COUNT(substitutes_forgotten);
	}
	*at = (struct place){.held = *substitution, .put_at_ns = now_ns()};
	pthread_mutex_unlock(&lock);
}

struct substitution substitute_get(const struct call *who)
{
	struct substitution held = {.state = SUBSTITUTE_NONE};
	pthread_mutex_lock(&lock);
	const struct place *at = find(who);
	if (at)
		held = at->held;
	pthread_mutex_unlock(&lock);
	return held;
}

void substitute_drop(const struct call *who)
{
	pthread_mutex_lock(&lock);
	struct place *at = find(who);
	if (at) {
		at->held.state = SUBSTITUTE_NONE;
		atomic_fetch_sub(&used, 1);
	}
	pthread_mutex_unlock(&lock);
}
