#include "translation.h"

#include <string.h>

#include "registers.h"
#include "traps.h"
#include "vcpus.h"

#define IA32_LSTAR 0xc0000082u
#define PAGE_OFFSET_MASK 0xfffull

struct code {
	uint8_t bytes[4];
	size_t size;
};

static struct code code_of(const struct qemu_plugin_insn *insn)
{
	struct code code = {.size = 0};
	code.size = qemu_plugin_insn_data(insn, code.bytes, sizeof(code.bytes));
	return code;
}

static bool is(const struct code *code, const void *bytes, size_t size)
{
	return code->size >= size && memcmp(code->bytes, bytes, size) == 0;
}

/* The number of the register in `mov %reg,%cr3` (0f 22 /3, perhaps with REX.B), else -1. */
static int source_of_cr3(const struct code *code)
{
	const uint8_t *at = code->bytes;
	size_t left = code->size;
	int high = 0;
	if (left == 4 && (at[0] & 0xf0) == 0x40) {
		high = (at[0] & 1) << 3;
		at++;
		left--;
	}
	if (left < 3 || at[0] != 0x0f || at[1] != 0x22 || (at[2] >> 3 & 7) != 3)
		return -1;
	return high | (at[2] & 7);
}

static void on_cr3(unsigned int vcpu, void *source)
{
	vcpu_loads_cr3(vcpu, register_read((enum reg)(uintptr_t)source) & CR3_PAGE);
}

static void on_wrmsr(unsigned int vcpu, void *unused)
{
	(void)vcpu, (void)unused;
	if ((uint32_t)register_read(GUEST_RCX) == IA32_LSTAR)
		saw_lstar(register_read(GUEST_RDX) << 32 | (uint32_t)register_read(GUEST_RAX));
}

static void watch_kernel(struct qemu_plugin_insn *insn)
{
	struct code code = code_of(insn);
	int source = source_of_cr3(&code);
	if (source >= 0)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_cr3, QEMU_PLUGIN_CB_R_REGS,
						       (void *)(uintptr_t)source);
	else if (is(&code, "\x0f\x30", 2))
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_wrmsr, QEMU_PLUGIN_CB_R_REGS, NULL);
	else if (is(&code, "\x48\x0f\x07", 3))
		saw_sysret(qemu_plugin_insn_vaddr(insn));
}

/*
 * The entry begins with swapgs, perhaps after endbr64 (arch/x86/entry/entry_64.S). Going by that
 * and not by LSTAR, blocks that were translated before LSTAR is known are watched as well.
 */
static bool may_be_entry(const struct qemu_plugin_tb *block, size_t count)
{
	struct code code = code_of(qemu_plugin_tb_get_insn(block, 0));
	if (is(&code, "\xf3\x0f\x1e\xfa", 4) && count > 1)
		code = code_of(qemu_plugin_tb_get_insn(block, 1));
	return is(&code, "\x0f\x01\xf8", 3);
}

/* At a page's start the bytes before may differ from mapping to mapping: then always look. */
static bool may_follow_syscall(uint64_t address)
{
	uint8_t before[2];
	if ((address & PAGE_OFFSET_MASK) < sizeof(before))
		return true;
	return guest_read(address - sizeof(before), before, sizeof(before)) && before[0] == 0x0f &&
	       before[1] == 0x05;
}

static void watch_block(struct qemu_plugin_tb *block, qemu_plugin_vcpu_udata_cb_t callback)
{
	qemu_plugin_register_vcpu_tb_exec_cond_cb(block, callback, QEMU_PLUGIN_CB_RW_REGS_PC,
						  QEMU_PLUGIN_COND_NE, vcpus_flag(), 0,
						  (void *)qemu_plugin_tb_vaddr(block));
}

void watch(struct qemu_plugin_tb *block)
{
	size_t count = qemu_plugin_tb_n_insns(block);
	uint64_t address = qemu_plugin_tb_vaddr(block);
	if (count == 0)
		return;
	if (address >> 63 == 0) {
		if (may_follow_syscall(address))
			watch_block(block, on_return);
		return;
	}
	/* Only the kernel's half: a program may hold these bytes too, and would fault on them. */
	for (size_t i = 0; i < count; i++)
		watch_kernel(qemu_plugin_tb_get_insn(block, i));
	if (may_be_entry(block, count))
		watch_block(block, on_entry);
}
