/*
 * dvisor's library inside QEMU: traps at the guest kernel's system call entry. Mechanism only; a
 * peer process decides, over shared memory (traps_protocol.toml). Loaded by
 *   -plugin dvisor_traps.so,fd=N
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu.h"
#include "registers.h"
#include "shared.h"
#include "translation.h"
#include "vcpus.h"

#define KEEPER_PERIOD_NS 50000000ull

/* QEMU moves a scoreboard of more entries than this when vCPUs are added (plugins/core.c). */
#define SCOREBOARD_NEVER_MOVES 16

QEMU_PLUGIN_EXPORT int qemu_plugin_version = 7;

static unsigned int expected_vcpus;
static atomic_uint ready_vcpus;
static atomic_bool registers_missing;
static atomic_bool ending;

static void complain(const char *what)
{
	fprintf(stderr, "dvisor_traps: %s\n", what);
}

/* Lives beside the vCPUs: tells the peer that we live, and takes over what it enrols. */
static void *keeper(void *unused)
{
	(void)unused;
	struct header *header = &shared->header;
	while (!atomic_load(&ending)) {
		atomic_store(&header->library_heartbeat_ns, now_ns());
		uint32_t generation = atomic_load(&header->generation);
		if (atomic_load(&ready_vcpus) >= expected_vcpus &&
		    generation != atomic_load(&header->generation_seen)) {
			vcpus_refresh();
			atomic_store(&header->generation_seen, generation);
			futex_wake(&header->generation_seen);
		}
		futex_wait(&header->generation, generation, KEEPER_PERIOD_NS);
	}
	return NULL;
}

static bool start_keeper(void)
{
	pthread_t thread;
	sigset_t all, before;
	/* QEMU's signals are for QEMU's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int failed = pthread_create(&thread, NULL, keeper, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!failed)
		pthread_detach(thread);
	return !failed;
}

static void on_vcpu(unsigned int vcpu, void *unused)
{
	(void)unused;
	if (!registers_find()) {
		if (!atomic_exchange(&registers_missing, true))
			complain("this QEMU does not show the registers that traps need: no traps");
		return;
	}
	vcpu_started(vcpu);
	if (atomic_fetch_add(&ready_vcpus, 1) + 1 == expected_vcpus)
		atomic_store(&shared->header.library_state, TRAPS_LIBRARY_READY);
}

static void translate(struct qemu_plugin_tb *block, void *unused)
{
	(void)unused;
	if (!atomic_load_explicit(&registers_missing, memory_order_relaxed))
		watch(block);
}

static void on_end(void *unused)
{
	(void)unused;
	atomic_store(&ending, true);
	atomic_store(&shared->header.library_state, TRAPS_LIBRARY_ENDED);
}

static const char *unsuitable(const qemu_info_t *info)
{
	if (strcmp(info->target_name, "x86_64") != 0 || !info->system_emulation)
		return "traps are for x86-64 system emulation";
	if (info->system.max_vcpus > (int)TRAPS_SLOTS)
		return "too many vCPUs: at most 64 can have traps";
	if (info->system.max_vcpus > SCOREBOARD_NEVER_MOVES &&
	    info->system.max_vcpus != info->system.smp_vcpus)
		return "more than 16 vCPUs must all be there from the start to have traps";
	return NULL;
}

static int descriptor(int argc, char **argv)
{
	char *end;
	if (argc != 1 || strncmp(argv[0], "fd=", 3) != 0)
		return -1;
	long fd = strtol(argv[0] + 3, &end, 10);
	return *end != '\0' || end == argv[0] + 3 || fd < 0 || fd > 1 << 20 ? -1 : (int)fd;
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
					   char **argv)
{
	const char *problem = unsuitable(info);
	int fd = descriptor(argc, argv);
	if (!problem && fd < 0)
		problem = "give it one argument, fd=N: the shared memory";
	if (!problem)
		problem = shared_map(fd);
	expected_vcpus = (unsigned int)info->system.smp_vcpus;
	if (!problem && (!vcpus_prepare() || !start_keeper()))
		problem = "out of memory";
	if (problem) {
		complain(problem);
		return 1;
	}
	shared->header.vcpus = (uint32_t)info->system.max_vcpus;
	qemu_plugin_register_vcpu_init_cb(id, on_vcpu, NULL);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate, NULL);
	qemu_plugin_register_atexit_cb(id, on_end, NULL);
	return 0;
}
