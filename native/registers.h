/* Registers of the vCPU whose callback runs. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The first sixteen are in the order of their numbers in instructions (SDM vol. 2, 2.1.5). */
enum reg {
	GUEST_RAX,
	GUEST_RCX,
	GUEST_RDX,
	GUEST_RBX,
	GUEST_RSP,
	GUEST_RBP,
	GUEST_RSI,
	GUEST_RDI,
	GUEST_R8,
	GUEST_R9,
	GUEST_R10,
	GUEST_R11,
	GUEST_R12,
	GUEST_R13,
	GUEST_R14,
	GUEST_R15,
	GUEST_CR3,
	GUEST_FS_BASE,
	GUEST_REGISTERS,
};

/* Look the registers up, once, in a vCPU's init callback. False: QEMU does not offer them all. */
bool registers_find(void);

/* The value; 0 when QEMU does not give 64 bits. */
uint64_t register_read(enum reg which);

void register_write(enum reg which, uint64_t value);

/* size bytes of guest memory at a virtual address of the vCPU; false when nothing is there. */
bool guest_read(uint64_t address, void *destination, size_t size);
