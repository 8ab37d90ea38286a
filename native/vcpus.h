/*
 * Which vCPUs run an enrolled process now: a flag a vCPU, kept where translated code can test it
 * by itself, so that all other processes pay nothing.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "qemu.h"

/* Allocate; false when out of memory. */
bool vcpus_prepare(void);

/* The flag, for conditional callbacks: not 0 while an enrolled process is on the vCPU. */
qemu_plugin_u64 vcpus_flag(void);

void vcpu_started(unsigned int vcpu);

/* The vCPU loads CR3; page is without PCID. */
void vcpu_loads_cr3(unsigned int vcpu, uint64_t page);

/* The peer changed the table: bring all flags up to date. */
void vcpus_refresh(void);
