#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NS_PER_MS 1000000ull

struct region *shared;

const char *shared_map(int fd)
{
	struct stat seen;
	if (fstat(fd, &seen) != 0)
		return "the descriptor is not open";
	if (seen.st_size < (off_t)sizeof(struct region))
		return "the shared memory is too small";
	/* Whoever shortened a mapped file would end QEMU by SIGBUS. */
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return "the shared memory is not a memfd sealed against shrinking";
	void *at = mmap(NULL, sizeof(struct region), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return "the shared memory cannot be mapped";
	struct region *region = at;
	if (region->header.magic != TRAPS_MAGIC || region->header.version != TRAPS_VERSION ||
	    region->header.size_bytes != sizeof(struct region)) {
		munmap(at, sizeof(struct region));
		return "the shared memory is of another version of dvisor";
	}
	shared = region;
	return NULL;
}

bool is_enrolled(uint64_t page)
{
	uint32_t used = atomic_load_explicit(&shared->header.enrolled_used, memory_order_relaxed);
	if (page == 0)
		return false;
	for (uint32_t i = 0; i < used && i < TRAPS_ENROLLED; i++) {
		if (atomic_load_explicit(&shared->enrolled[i], memory_order_relaxed) == page)
			return true;
	}
	return false;
}

static uint64_t bounded(uint64_t value, uint64_t least, uint64_t most)
{
	return value < least ? least : value > most ? most : value;
}

bool peer_lives(void)
{
	uint64_t beat = atomic_load(&shared->header.peer_heartbeat_ns);
	uint64_t timeout_ms = bounded(atomic_load(&shared->header.peer_timeout_ms), 10, 60000);
	uint64_t now = now_ns();
	/* One from the future has been made up. */
	return beat != 0 && (beat > now ? beat - now : now - beat) <= timeout_ms * NS_PER_MS;
}

static bool bit(const _Atomic uint64_t *words, uint64_t number)
{
	if (number >= TRAPS_NUMBERS)
		return false;
	return atomic_load_explicit(&words[number / 64], memory_order_relaxed) >> (number % 64) & 1;
}

bool number_is_trapped(uint64_t number)
{
	return bit(shared->trapped, number);
}

void count_call(uint64_t number)
{
	if (bit(shared->counted, number))
		atomic_fetch_add_explicit(&shared->calls[number], 1, memory_order_relaxed);
}

uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 * NS_PER_MS + (uint64_t)now.tv_nsec;
}

uint64_t verdict_timeout_ns(void)
{
	return bounded(atomic_load(&shared->header.verdict_timeout_ms), 1, 1000) * NS_PER_MS;
}

uint32_t spin_limit(void)
{
	return (uint32_t)bounded(atomic_load(&shared->header.spins), 0, 20000);
}

void futex_wait(_Atomic uint32_t *word, uint32_t while_it_is, uint64_t nanoseconds)
{
	struct timespec limit = {.tv_sec = (time_t)(nanoseconds / (1000 * NS_PER_MS)),
				 .tv_nsec = (long)(nanoseconds % (1000 * NS_PER_MS))};
	int before = errno;
	syscall(SYS_futex, word, FUTEX_WAIT, while_it_is, &limit, NULL, 0);
	errno = before;
}

void futex_wake(_Atomic uint32_t *word)
{
	int before = errno;
	syscall(SYS_futex, word, FUTEX_WAKE, 64, NULL, NULL, 0);
	errno = before;
}
