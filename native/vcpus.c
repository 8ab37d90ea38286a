#include "vcpus.h"

#include "shared.h"

/* A peer that counts generations up all the time cannot hold a vCPU here. */
#define TRIES 8

struct vcpu {
	_Atomic uint64_t enrolled;
	_Atomic uint64_t cr3;
};

static struct qemu_plugin_scoreboard *board;
static atomic_uint started;

bool vcpus_prepare(void)
{
	board = qemu_plugin_scoreboard_new(sizeof(struct vcpu));
	return board != NULL;
}

qemu_plugin_u64 vcpus_flag(void)
{
	return (qemu_plugin_u64){board, offsetof(struct vcpu, enrolled)};
}

void vcpu_started(unsigned int vcpu)
{
	unsigned int seen = atomic_load(&started);
	while (vcpu >= seen && !atomic_compare_exchange_weak(&started, &seen, vcpu + 1))
		;
}

/*
 * The vCPU and the keeper's thread may both be here for one flag. Whoever stores last has looked
 * at the page and the generation again after it, so the flag cannot stay wrong.
 */
static void refresh(struct vcpu *vcpu)
{
	for (int tries = 0; tries < TRIES; tries++) {
		uint32_t generation = atomic_load(&shared->header.generation);
		uint64_t page = atomic_load(&vcpu->cr3);
		atomic_store(&vcpu->enrolled, is_enrolled(page));
		if (page == atomic_load(&vcpu->cr3) &&
		    generation == atomic_load(&shared->header.generation))
			return;
	}
}

void vcpu_loads_cr3(unsigned int vcpu, uint64_t page)
{
	struct vcpu *mine = qemu_plugin_scoreboard_find(board, vcpu);
	atomic_store(&mine->cr3, page);
	refresh(mine);
}

void vcpus_refresh(void)
{
	unsigned int count = atomic_load(&started);
	for (unsigned int vcpu = 0; vcpu < count; vcpu++)
		refresh(qemu_plugin_scoreboard_find(board, vcpu));
}
