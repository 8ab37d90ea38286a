/* What happens to an enrolled process's calls, at their entry and when a substitute returns. */
#pragma once

#include <stdint.h>

/* A vCPU is at the first instruction of a translation block that may be the kernel's entry. */
void on_entry(unsigned int vcpu, void *block_address);

/* A vCPU is at the first instruction of a user block that follows a `syscall`. */
void on_return(unsigned int vcpu, void *block_address);

/* Learned from the guest's code as it is translated and run. */
void saw_lstar(uint64_t address);
void saw_sysret(uint64_t address);

#define CR3_PAGE                                                                                   \
	0x000ffffffffff000ull /* without PCID (11:0) and no-flush (63): SDM vol. 3, 2.5            \
			       */
