/* A QEMU of one vCPU, as far as the library asks: registers, a block of code, a page of memory. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "registers.h"

struct fake_insn {
	uint64_t address;
	uint8_t bytes[15];
	size_t size;
};

extern uint64_t fake_registers[GUEST_REGISTERS];
extern bool fake_hides_registers;

/* What set_pc was called with in the last run, or 0. */
extern uint64_t fake_pc;

/* The two bytes before any block; -1: not readable. */
extern int fake_before;

/* Load the library; the exit code of its install. */
int fake_load(const char *target, int vcpus, const char *argument);

/* Translate a block and run it: its callbacks, by their conditions. */
void fake_run(const struct fake_insn *insns, size_t count);

/* How many callbacks the last block was given. */
extern unsigned int fake_callbacks;

void fake_exit(void);
