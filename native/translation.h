#pragma once

#include "qemu.h"

/* Find, in a block that is being translated, the places where the library must look. */
void watch(struct qemu_plugin_tb *block);
