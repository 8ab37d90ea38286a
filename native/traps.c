#include "traps.h"

#include "qemu.h"
#include "registers.h"
#include "shared.h"
#include "substitutes.h"
#include "verdict.h"

#define SYSCALL_SIZE 2 /* 0f 05 */
#define RESTART_SYSCALL 219

/* The kernel's sysretq is in the function that begins at its entry. */
#define ENTRY_FUNCTION_SIZE 0x2000

static const enum reg ARGUMENTS[6] = {GUEST_RDI, GUEST_RSI, GUEST_RDX,
				      GUEST_R10, GUEST_R8,  GUEST_R9};

static _Atomic uint64_t lstar;
static _Atomic uint64_t sysret;

void saw_lstar(uint64_t address)
{
	if (atomic_exchange(&lstar, address) != address)
		atomic_store(&sysret, 0); /* another kernel: its own will be translated */
	atomic_store(&shared->header.lstar, address);
	atomic_store(&shared->header.sysret, atomic_load(&sysret));
}

void saw_sysret(uint64_t address)
{
	atomic_store(&sysret, address);
	atomic_store(&shared->header.sysret, address);
}

/* Where the vCPU enters the kernel: as it was told, else as the peer says. */
static uint64_t entry_address(void)
{
	uint64_t known = atomic_load(&lstar);
	return known ? known : atomic_load(&shared->header.lstar_hint);
}

/* SYSCALL leaves the next RIP in RCX, and RSP is the user's yet (SDM vol. 2, SYSCALL). */
static struct call identify(void)
{
	return (struct call){.rip = register_read(GUEST_RCX),
			     .rsp = register_read(GUEST_RSP),
			     .cr3 = register_read(GUEST_CR3) & CR3_PAGE,
			     .fs_base = register_read(GUEST_FS_BASE)};
}

static void write_call(uint64_t number, const uint64_t arguments[6])
{
	register_write(GUEST_RAX, number);
	for (int i = 0; i < 6; i++)
		register_write(ARGUMENTS[i], arguments[i]);
}

/* The call is answered here: on to the kernel's own way out, which finds all as SYSCALL left it. */
static void answer_entry(uint64_t value)
{
	uint64_t way_out = atomic_load(&sysret);
	if (way_out - entry_address() >= ENTRY_FUNCTION_SIZE) {
		COUNT(unanswerable);
		return;
	}
	COUNT(answered);
	register_write(GUEST_RAX, value);
	qemu_plugin_set_pc(way_out);
}

static void remember(const struct call *original, enum substitute_state state, uint64_t number)
{
	struct substitution substitution = {state, (uint32_t)number, *original};
	substitute_put(&substitution);
}

/* Whether this entry is part of a substitution that was decided before. */
static bool continues_substitution(const struct call *call, uint64_t number)
{
	if (!substitutes_any())
		return false;
	struct substitution held = substitute_get(call);
	if (held.state == SUBSTITUTE_NONE)
		return false;
	bool restarts = held.state == SUBSTITUTE_RUNS && number == RESTART_SYSCALL;
	if (number != held.number && !restarts) {
		/* A handler left by longjmp, and the thread makes another call here. */
		substitute_drop(call);
		return false;
	}
	if (held.state == SUBSTITUTE_PASS)
		substitute_drop(call);
	else if (held.state == SUBSTITUTE_REISSUE)
		remember(&held.original, SUBSTITUTE_RUNS, number);
	else /* -ERESTARTSYS and its like without a handler: the kernel issues it once more. */
		COUNT(restarted);
	return true;
}

void on_entry(unsigned int vcpu, void *block_address)
{
	if ((uint64_t)block_address != entry_address() || vcpu >= TRAPS_SLOTS)
		return;
	/* The kernel looks at EAX only (movslq %eax, %rsi in entry_SYSCALL_64). */
	uint64_t number = (uint32_t)register_read(GUEST_RAX);
	count_call(number);
	if (!number_is_trapped(number) && !substitutes_any())
		return;
	struct call call = identify();
	if (!is_enrolled(call.cr3) || continues_substitution(&call, number) ||
	    !number_is_trapped(number))
		return;
	call.number = number;
	for (int i = 0; i < 6; i++)
		call.arguments[i] = register_read(ARGUMENTS[i]);
	struct verdict verdict = ask(vcpu, TRAPS_EVENT_ENTRY, &call, 0);
	if (verdict.kind == TRAPS_ANSWER) {
		answer_entry(verdict.value);
	} else if (verdict.kind == TRAPS_SUBSTITUTE) {
		COUNT(substituted);
		remember(&call, SUBSTITUTE_RUNS, verdict.value);
		write_call(verdict.value, verdict.arguments);
	} else {
		COUNT(let_through);
	}
}

/* Back to the `syscall` instruction. Safe only on a block's first instruction. */
static void issue(const struct call *original, enum substitute_state state, uint64_t number,
		  const uint64_t arguments[6])
{
	remember(original, state, number);
	write_call(number, arguments);
	qemu_plugin_set_pc(original->rip - SYSCALL_SIZE);
}

void on_return(unsigned int vcpu, void *block_address)
{
	if (!substitutes_any() || vcpu >= TRAPS_SLOTS)
		return;
	/* RCX holds the RIP after iret too: the kernel keeps it in pt_regs.cx. */
	struct call who = identify();
	/* Of the block's address only the low bits: its code may be mapped elsewhere too. */
	if (((who.rip ^ (uint64_t)block_address) & 0xfff) != 0)
		return;
	struct substitution held = substitute_get(&who);
	if (held.state != SUBSTITUTE_RUNS)
		return;
	COUNT(returned);
	const struct call *original = &held.original;
	struct verdict verdict =
	    ask(vcpu, TRAPS_EVENT_RETURNED, original, register_read(GUEST_RAX));
	if (verdict.kind == TRAPS_ANSWER) {
		COUNT(answered);
		substitute_drop(original);
		write_call(verdict.value, original->arguments);
	} else if (verdict.kind == TRAPS_SUBSTITUTE) {
		COUNT(substituted);
		issue(original, SUBSTITUTE_REISSUE, verdict.value, verdict.arguments);
	} else {
		COUNT(let_through);
		issue(original, SUBSTITUTE_PASS, original->number, original->arguments);
	}
}
