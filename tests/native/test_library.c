/*
 * The library against a QEMU and a peer of our own, under sanitizers. One case a run:
 *   test_library CASE
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_qemu.h"
#include "shared.h"

#define ENTRY 0xffffffff81000000ull
#define SYSRET (ENTRY + 0x150)
#define USER 0x401000ull
#define PAGE 0x1234000ull
#define GETPPID 110
#define SCHED_YIELD 24

#define EXPECT(what)                                                                               \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what);         \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static struct region *ours;
static char argument[32];

static int memory(bool sealed)
{
	int fd = memfd_create("test", MFD_ALLOW_SEALING);
	EXPECT(ftruncate(fd, sizeof(struct region)) == 0);
	if (sealed)
		EXPECT(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	ours = mmap(NULL, sizeof(*ours), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ours->header.magic = TRAPS_MAGIC;
	ours->header.version = TRAPS_VERSION;
	ours->header.size_bytes = sizeof(*ours);
	ours->header.verdict_timeout_ms = 1000;
	ours->header.peer_timeout_ms = 60000;
	ours->header.peer_heartbeat_ns = now_ns();
	snprintf(argument, sizeof(argument), "fd=%d", fd);
	return fd;
}

static void run1(uint64_t address, const char *bytes, size_t size)
{
	struct fake_insn insn = {.address = address, .size = size};
	memcpy(insn.bytes, bytes, size);
	fake_run(&insn, 1);
}

static void load_cr3(uint64_t value)
{
	fake_registers[GUEST_R8] = value;
	run1(ENTRY + 0x1000, "\x41\x0f\x22\xd8", 4);
}

/* A guest whose kernel has been seen to enter and leave. */
static void boot(void)
{
	memory(true);
	EXPECT(fake_load("x86_64", 1, argument) == 0);
	EXPECT(ours->header.library_state == TRAPS_LIBRARY_READY);
	fake_registers[GUEST_RCX] = 0xc0000082;
	fake_registers[GUEST_RDX] = ENTRY >> 32;
	fake_registers[GUEST_RAX] = ENTRY & 0xffffffff;
	run1(ENTRY + 0x2000, "\x0f\x30", 2);
	EXPECT(ours->header.lstar == ENTRY);
	run1(SYSRET, "\x48\x0f\x07", 3);
	EXPECT(ours->header.sysret == SYSRET);
}

static void enroll(void)
{
	ours->enrolled[0] = PAGE;
	ours->header.enrolled_used = 1;
	ours->trapped[GETPPID / 64] = 1ull << GETPPID % 64;
	ours->header.generation++;
	load_cr3(PAGE | 0x801); /* with PCID */
}

static void enter(uint64_t number)
{
	static const struct fake_insn block[] = {
	    {ENTRY, {0xf3, 0x0f, 0x1e, 0xfa}, 4},
	    {ENTRY + 4, {0x0f, 0x01, 0xf8}, 3},
	};
	fake_registers[GUEST_RAX] = number;
	fake_registers[GUEST_RCX] = USER;
	fake_registers[GUEST_RSP] = 0x7fff0000;
	fake_registers[GUEST_CR3] = PAGE | 0x801;
	fake_registers[GUEST_RDI] = 11;
	fake_registers[GUEST_R9] = 66;
	fake_run(block, 2);
}

static void come_back(uint64_t result)
{
	fake_registers[GUEST_RAX] = result;
	fake_registers[GUEST_RCX] = USER;
	fake_before = 0x0f05;
	run1(USER, "\x90", 1);
}

/* A peer that gives one verdict to each request. */
static struct {
	_Atomic uint32_t kind;
	_Atomic uint64_t value;
	atomic_bool over;
} decision;

static void *decide(void *unused)
{
	(void)unused;
	struct slot *slot = &ours->slots[0];
	while (!atomic_load(&decision.over)) {
		uint32_t request = slot->request;
		if (request != 0 && slot->verdict != request) {
			slot->kind = decision.kind;
			slot->value = decision.value;
			slot->substitute_arguments[0] = 99;
			slot->verdict = request;
			futex_wake(&slot->verdict);
		}
	}
	return NULL;
}

static pthread_t peer;

static void start_peer(uint32_t kind, uint64_t value)
{
	decision.kind = kind;
	decision.value = value;
	EXPECT(pthread_create(&peer, NULL, decide, NULL) == 0);
}

static void end_peer(void)
{
	decision.over = true;
	pthread_join(peer, NULL);
}

static void refuses_what_it_cannot_use(void)
{
	memory(false);
	EXPECT(fake_load("x86_64", 1, argument) != 0);
	memory(true);
	EXPECT(fake_load("aarch64", 1, argument) != 0);
	EXPECT(fake_load("x86_64", 65, argument) != 0);
	EXPECT(fake_load("x86_64", 1, NULL) != 0);
	EXPECT(fake_load("x86_64", 1, "fd=") != 0);
	EXPECT(fake_load("x86_64", 1, "fd=-1") != 0);
	EXPECT(fake_load("x86_64", 1, "fd=3x") != 0);
	EXPECT(fake_load("x86_64", 1, "fd=99999999999999999999") != 0);
	EXPECT(fake_load("x86_64", 1, "fd=1000") != 0);
	ours->header.version = TRAPS_VERSION + 1;
	EXPECT(fake_load("x86_64", 1, argument) != 0);
}

static void without_registers_nothing_is_watched(void)
{
	memory(true);
	fake_hides_registers = true;
	EXPECT(fake_load("x86_64", 1, argument) == 0);
	EXPECT(ours->header.library_state != TRAPS_LIBRARY_READY);
	load_cr3(PAGE);
	EXPECT(fake_callbacks == 0);
}

static void answers(void)
{
	boot();
	enroll();
	start_peer(TRAPS_ANSWER, 4242);
	enter(GETPPID);
	EXPECT(fake_pc == SYSRET);
	EXPECT(fake_registers[GUEST_RAX] == 4242);
	EXPECT(ours->slots[0].arguments[0] == 11 && ours->slots[0].arguments[5] == 66);
	enter(GETPPID + 1);
	EXPECT(fake_pc == 0 && ours->counters.asked == 1);
	end_peer();
}

static void nobody_enrolled_is_asked_for(void)
{
	boot();
	load_cr3(PAGE);
	enter(GETPPID);
	EXPECT(ours->counters.asked == 0 && ours->counters.peer_lost == 0);
	enroll();
	ours->enrolled[0] = 0;
	enter(GETPPID); /* the flag is old, the table decides */
	EXPECT(ours->counters.asked == 0 && ours->counters.peer_lost == 0);
}

static void an_enrolled_flag_comes_without_a_cr3_load(void)
{
	boot();
	load_cr3(PAGE);
	ours->enrolled[0] = PAGE;
	ours->header.enrolled_used = 1;
	ours->trapped[GETPPID / 64] = 1ull << GETPPID % 64;
	uint32_t generation = ++ours->header.generation;
	futex_wake(&ours->header.generation);
	for (int i = 0; i < 1000 && ours->header.generation_seen != generation; i++)
		usleep(10000);
	start_peer(TRAPS_ANSWER, 1);
	enter(GETPPID);
	EXPECT(fake_pc == SYSRET);
	end_peer();
}

static void user_code_cannot_load_the_flag(void)
{
	boot();
	enroll();
	fake_registers[GUEST_R8] = 0x5000;
	run1(USER + 0x10, "\x41\x0f\x22\xd8", 4);
	start_peer(TRAPS_ANSWER, 1);
	enter(GETPPID);
	EXPECT(fake_pc == SYSRET);
	end_peer();
}

static void without_sysret_it_is_let_through(void)
{
	boot();
	enroll();
	run1(0xffffffffa0000000ull, "\x48\x0f\x07", 3); /* not the entry's own */
	start_peer(TRAPS_ANSWER, 1);
	enter(GETPPID);
	EXPECT(fake_pc == 0 && fake_registers[GUEST_RAX] == GETPPID);
	EXPECT(ours->counters.unanswerable == 1);
	end_peer();
}

static void a_hint_stands_in_for_lstar(void)
{
	memory(true);
	EXPECT(fake_load("x86_64", 1, argument) == 0);
	run1(SYSRET, "\x48\x0f\x07", 3);
	enroll();
	start_peer(TRAPS_ANSWER, 1);
	enter(GETPPID);
	EXPECT(ours->counters.asked == 0);
	ours->header.lstar_hint = ENTRY;
	enter(GETPPID);
	EXPECT(fake_pc == SYSRET);
	end_peer();
}

static void another_kernel_has_another_way_out(void)
{
	boot();
	fake_registers[GUEST_RCX] = 0xc0000082;
	fake_registers[GUEST_RDX] = 0xffffffff;
	fake_registers[GUEST_RAX] = 0x90000000;
	run1(ENTRY + 0x2000, "\x0f\x30", 2);
	EXPECT(ours->header.lstar == 0xffffffff90000000ull && ours->header.sysret == 0);
}

static void substitutes_then_runs_the_original(void)
{
	boot();
	enroll();
	start_peer(TRAPS_SUBSTITUTE, SCHED_YIELD);
	enter(GETPPID);
	EXPECT(fake_pc == 0 && fake_registers[GUEST_RAX] == SCHED_YIELD);
	EXPECT(fake_registers[GUEST_RDI] == 99);
	decision.kind = TRAPS_LET_THROUGH;
	come_back(7);
	EXPECT(fake_pc == USER - 2 && fake_registers[GUEST_RAX] == GETPPID);
	EXPECT(fake_registers[GUEST_RDI] == 11 && ours->slots[0].result == 7);
	decision.kind = TRAPS_ANSWER;
	enter(GETPPID);
	EXPECT(fake_pc == 0 && ours->counters.answered == 0);
	come_back(1); /* of the original: nothing is pending */
	EXPECT(ours->counters.returned == 1);
	enter(GETPPID);
	EXPECT(fake_pc == SYSRET);
	end_peer();
}

static void substitutes_again_and_answers(void)
{
	boot();
	enroll();
	start_peer(TRAPS_SUBSTITUTE, SCHED_YIELD);
	enter(GETPPID);
	come_back(0);
	EXPECT(fake_pc == USER - 2 && fake_registers[GUEST_RAX] == SCHED_YIELD);
	enter(SCHED_YIELD);
	EXPECT(fake_pc == 0 && ours->counters.asked == 2);
	enter(SCHED_YIELD); /* restarted by the kernel */
	EXPECT(ours->counters.restarted == 1);
	decision.kind = TRAPS_ANSWER;
	decision.value = (uint64_t)-5;
	come_back(0);
	EXPECT(fake_pc == 0 && fake_registers[GUEST_RAX] == (uint64_t)-5);
	EXPECT(fake_registers[GUEST_RDI] == 11);
	end_peer();
}

static void a_handler_may_leave_by_longjmp(void)
{
	boot();
	enroll();
	start_peer(TRAPS_SUBSTITUTE, SCHED_YIELD);
	enter(GETPPID);
	EXPECT(fake_registers[GUEST_RAX] == SCHED_YIELD);
	decision.kind = TRAPS_ANSWER;
	decision.value = 5;
	enter(GETPPID); /* the same place and stack, and not the substitute */
	EXPECT(fake_pc == SYSRET && fake_registers[GUEST_RAX] == 5);
	end_peer();
}

static void the_kernel_reads_eax_and_so_do_we(void)
{
	boot();
	enroll();
	start_peer(TRAPS_ANSWER, 5);
	enter(GETPPID | 1ull << 32);
	EXPECT(fake_pc == SYSRET);
	end_peer();
}

static void a_stack_of_its_own_is_another_call(void)
{
	boot();
	enroll();
	start_peer(TRAPS_SUBSTITUTE, SCHED_YIELD);
	enter(GETPPID);
	fake_registers[GUEST_RSP] -= 0x100; /* a signal handler, at the same instruction */
	come_back(0);
	EXPECT(ours->counters.returned == 0);
	fake_registers[GUEST_RSP] += 0x100;
	come_back(0);
	EXPECT(ours->counters.returned == 1);
	end_peer();
}

static void forgets_the_oldest_substitute(void)
{
	boot();
	enroll();
	start_peer(TRAPS_SUBSTITUTE, SCHED_YIELD);
	for (uint64_t thread = 0; thread < 300; thread++) {
		fake_registers[GUEST_FS_BASE] = thread;
		enter(GETPPID);
	}
	EXPECT(ours->counters.substitutes_forgotten == 300 - 256);
	fake_registers[GUEST_FS_BASE] = 0;
	come_back(0);
	EXPECT(ours->counters.returned == 0);
	fake_registers[GUEST_FS_BASE] = 299;
	come_back(0);
	EXPECT(ours->counters.returned == 1);
	end_peer();
}

static void a_dead_peer_is_not_waited_for(void)
{
	boot();
	enroll();
	ours->header.peer_heartbeat_ns = 1;
	enter(GETPPID);
	EXPECT(fake_pc == 0 && ours->counters.peer_lost == 1);
	ours->header.peer_heartbeat_ns = now_ns() + 3600000000000ull; /* made up */
	ours->header.on_loss = TRAPS_ON_LOSS_EIO;
	enter(GETPPID);
	EXPECT(fake_pc == SYSRET && fake_registers[GUEST_RAX] == (uint64_t)-EIO);
	EXPECT(ours->counters.asked == 0 && ours->counters.peer_lost == 2);
}

static void a_silent_peer_is_waited_for_in_bounds(void)
{
	boot();
	enroll();
	ours->header.verdict_timeout_ms = 1;
	enter(GETPPID);
	EXPECT(fake_pc == 0 && ours->counters.timeouts == 1);
	ours->header.verdict_timeout_ms = 0xffffffff; /* taken as a second */
	enter(GETPPID);
	EXPECT(ours->counters.timeouts == 2);
}

static void a_verdict_that_is_none_is_counted(void)
{
	boot();
	enroll();
	start_peer(1234, 0);
	enter(GETPPID);
	EXPECT(fake_pc == 0 && ours->counters.invalid_verdicts == 1);
	end_peer();
}

static void *scribble(void *unused)
{
	(void)unused;
	_Atomic uint64_t *words = (void *)ours;
	unsigned int seed = 7;
	while (!atomic_load(&decision.over)) {
		size_t at = (size_t)rand_r(&seed) % (sizeof(*ours) / 8);
		uint64_t value = (uint64_t)rand_r(&seed) << 32 | (uint64_t)rand_r(&seed);
		atomic_store(&words[at], seed & 8 ? value : value & 3);
		/* Or it would stand before a closed door. */
		ours->header.peer_heartbeat_ns = now_ns();
		ours->header.verdict_timeout_ms = 1;
		ours->header.enrolled_used = (uint32_t)value;
		ours->enrolled[0] = PAGE;
		ours->trapped[1] = ~0ull;
		ours->slots[0].kind = seed >> 8 & 3;
		ours->slots[0].verdict = ours->slots[0].request;
	}
	return NULL;
}

static void rubbish_from_the_peer_does_no_harm(void)
{
	boot();
	enroll();
	EXPECT(pthread_create(&peer, NULL, scribble, NULL) == 0);
	for (uint64_t i = 0; i < 20000; i++) {
		fake_registers[GUEST_FS_BASE] = i % 3;
		load_cr3(PAGE);
		enter(GETPPID);
		EXPECT(fake_pc == 0 || fake_pc == SYSRET);
		come_back(i);
		EXPECT(fake_pc == 0 || fake_pc == USER - 2);
		enter(i);
	}
	end_peer();
}

static const struct {
	const char *name;
	void (*run)(void);
} CASES[] = {
#define CASE(name) {#name, name}
    CASE(refuses_what_it_cannot_use),
    CASE(without_registers_nothing_is_watched),
    CASE(answers),
    CASE(nobody_enrolled_is_asked_for),
    CASE(an_enrolled_flag_comes_without_a_cr3_load),
    CASE(user_code_cannot_load_the_flag),
    CASE(without_sysret_it_is_let_through),
    CASE(a_hint_stands_in_for_lstar),
    CASE(another_kernel_has_another_way_out),
    CASE(substitutes_then_runs_the_original),
    CASE(substitutes_again_and_answers),
    CASE(a_handler_may_leave_by_longjmp),
    CASE(the_kernel_reads_eax_and_so_do_we),
    CASE(a_stack_of_its_own_is_another_call),
    CASE(forgets_the_oldest_substitute),
    CASE(a_dead_peer_is_not_waited_for),
    CASE(a_silent_peer_is_waited_for_in_bounds),
    CASE(a_verdict_that_is_none_is_counted),
    CASE(rubbish_from_the_peer_does_no_harm),
};

int main(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
		if (argc < 2) {
			puts(CASES[i].name);
		} else if (strcmp(argv[1], CASES[i].name) == 0) {
			CASES[i].run();
			return 0;
		}
	}
	return argc < 2 ? 0 : 2;
}
