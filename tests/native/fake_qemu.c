#include "fake_qemu.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "qemu.h"

#define MOST_CALLBACKS 16

struct callback {
	qemu_plugin_vcpu_udata_cb_t run;
	void *userdata;
	bool conditional;
};

struct qemu_plugin_tb {
	const struct fake_insn *insns;
	size_t count;
};

struct fake_array {
	uint8_t *data;
	unsigned int len;
	unsigned int room;
};

static const char *const NAMES[GUEST_REGISTERS] = {
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8",
    "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "cr3", "fs_base",
};

uint64_t fake_registers[GUEST_REGISTERS];
bool fake_hides_registers;
uint64_t fake_pc;
int fake_before = -1;
unsigned int fake_callbacks;

static struct callback callbacks[MOST_CALLBACKS];
static uint64_t board[64][2];
static jmp_buf left;
static qemu_plugin_vcpu_udata_cb_t init;
static qemu_plugin_vcpu_tb_trans_cb_t translate;
static qemu_plugin_udata_cb_t at_exit;

GByteArray *g_byte_array_new(void)
{
	return calloc(1, sizeof(struct fake_array));
}

GByteArray *g_byte_array_set_size(GByteArray *array, unsigned int length)
{
	struct fake_array *mine = (struct fake_array *)array;
	if (length > mine->room) {
		mine->data = realloc(mine->data, length);
		mine->room = length;
	}
	mine->len = length;
	return array;
}

char *g_array_free(GArray *array, int free_segment)
{
	(void)free_segment;
	free(array->data);
	free(array);
	return NULL;
}

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_udata_cb_t callback,
				       void *userdata)
{
	(void)id, (void)userdata;
	init = callback;
}

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
					   qemu_plugin_vcpu_tb_trans_cb_t callback, void *userdata)
{
	(void)id, (void)userdata;
	translate = callback;
}

void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, qemu_plugin_udata_cb_t callback,
				    void *userdata)
{
	(void)id, (void)userdata;
	at_exit = callback;
}

void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    qemu_plugin_vcpu_udata_cb_t callback,
					    enum qemu_plugin_cb_flags flags, void *userdata)
{
	(void)insn, (void)flags;
	callbacks[fake_callbacks++] = (struct callback){callback, userdata, false};
}

void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *tb,
					       qemu_plugin_vcpu_udata_cb_t callback,
					       enum qemu_plugin_cb_flags flags,
					       enum qemu_plugin_cond condition,
					       qemu_plugin_u64 entry, uint64_t immediate,
					       void *userdata)
{
	(void)tb, (void)entry;
	if (flags != QEMU_PLUGIN_CB_RW_REGS_PC || condition != QEMU_PLUGIN_COND_NE || immediate)
		abort();
	callbacks[fake_callbacks++] = (struct callback){callback, userdata, true};
}

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb)
{
	return tb->count;
}

uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb)
{
	return tb->insns[0].address;
}

struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index)
{
	return (struct qemu_plugin_insn *)&tb->insns[index];
}

size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *destination, size_t length)
{
	const struct fake_insn *mine = (const void *)insn;
	size_t size = mine->size < length ? mine->size : length;
	memcpy(destination, mine->bytes, size);
	return size;
}

uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn)
{
	return ((const struct fake_insn *)insn)->address;
}

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size)
{
	return element_size == sizeof(board[0]) ? (void *)board : NULL;
}

void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score, unsigned int vcpu)
{
	(void)score;
	return board[vcpu];
}

GArray *qemu_plugin_get_registers(void)
{
	GArray *array = calloc(1, sizeof(*array));
	qemu_plugin_reg_descriptor *all = calloc(GUEST_REGISTERS, sizeof(*all));
	for (uintptr_t i = 0; i < GUEST_REGISTERS; i++)
		all[i] = (qemu_plugin_reg_descriptor){.handle = (void *)i, .name = NAMES[i]};
	array->data = (char *)all;
	array->len = fake_hides_registers ? GUEST_CR3 : GUEST_REGISTERS;
	return array;
}

bool qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *buffer)
{
	unsigned int before = buffer->len; /* QEMU appends */
	g_byte_array_set_size(buffer, before + 8);
	memcpy(buffer->data + before, &fake_registers[(uintptr_t)handle], 8);
	return true;
}

bool qemu_plugin_write_register(struct qemu_plugin_register *handle, GByteArray *buffer)
{
	memcpy(&fake_registers[(uintptr_t)handle], buffer->data, 8);
	return true;
}

bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *data, size_t length)
{
	(void)address;
	if (fake_before < 0)
		return false;
	g_byte_array_set_size(data, (unsigned int)length);
	for (size_t i = 0; i < length; i++)
		data->data[i] = (uint8_t)(fake_before >> 8 * (1 - i));
	return true;
}

void qemu_plugin_set_pc(uint64_t address)
{
	fake_pc = address;
	longjmp(left, 1);
}

int fake_load(const char *target, int vcpus, const char *argument)
{
	qemu_info_t info = {.target_name = target, .system_emulation = true};
	char *argv[] = {(char *)argument};
	info.system.smp_vcpus = info.system.max_vcpus = vcpus;
	int code = qemu_plugin_install(1, &info, argument ? 1 : 0, argv);
	for (int i = 0; code == 0 && i < vcpus; i++)
		init((unsigned int)i, NULL);
	return code;
}

void fake_run(const struct fake_insn *insns, size_t count)
{
	struct qemu_plugin_tb block = {insns, count};
	fake_callbacks = 0;
	fake_pc = 0;
	translate(&block, NULL);
	for (volatile unsigned int i = 0; i < fake_callbacks; i++) {
		if (callbacks[i].conditional && !board[0][0])
			continue;
		if (setjmp(left))
			return;
		callbacks[i].run(0, callbacks[i].userdata);
	}
}

void fake_exit(void)
{
	at_exit(NULL);
}
