#include "registers.h"

#include <string.h>

#include "qemu.h"

static const char *const NAMES[GUEST_REGISTERS] = {
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8",
    "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "cr3", "fs_base",
};

static struct qemu_plugin_register *handles[GUEST_REGISTERS];

/* GLib gives an array's memory no other owner; one a thread lives as long as the vCPU. */
static _Thread_local GByteArray *buffer;

static GByteArray *own_buffer(unsigned int length)
{
	if (!buffer)
		buffer = g_byte_array_new();
	return g_byte_array_set_size(buffer, length);
}

bool registers_find(void)
{
	GArray *found = qemu_plugin_get_registers();
	const qemu_plugin_reg_descriptor *all = (void *)found->data;
	unsigned int missing = GUEST_REGISTERS;
	for (unsigned int which = 0; which < GUEST_REGISTERS; which++) {
		for (unsigned int i = 0; i < found->len; i++) {
			if (strcmp(all[i].name, NAMES[which]) == 0) {
				handles[which] = all[i].handle;
				missing--;
				break;
			}
		}
	}
	g_array_free(found, true);
	return missing == 0;
}

uint64_t register_read(enum reg which)
{
	uint64_t value = 0;
	GByteArray *bytes = own_buffer(0);
	if (qemu_plugin_read_register(handles[which], bytes) && bytes->len == sizeof(value))
		memcpy(&value, bytes->data, sizeof(value));
	return value;
}

void register_write(enum reg which, uint64_t value)
{
	GByteArray *bytes = own_buffer(sizeof(value));
	memcpy(bytes->data, &value, sizeof(value));
	qemu_plugin_write_register(handles[which], bytes);
}

bool guest_read(uint64_t address, void *destination, size_t size)
{
	GByteArray *bytes = own_buffer((unsigned int)size);
	if (!qemu_plugin_read_memory_vaddr(address, bytes, size) || bytes->len < size)
		return false;
	memcpy(destination, bytes->data, size);
	return true;
}
