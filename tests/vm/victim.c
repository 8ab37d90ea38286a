/*
 * A process whose system calls are trapped: takes commands from /v.in, answers a line to /v.out.
 * Runs in a guest with nothing but busybox, so it is linked statically.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled;

static void on_signal(int number)
{
	(void)number;
	handled++;
}

/* How many registers or flags that the kernel must keep differ after getppid. */
static long disturbed(void)
{
	unsigned long before[12], after[12], flags[2], rcx, next;
	for (int i = 0; i < 12; i++)
		before[i] = 0x1111111111111111ul * (unsigned)(i + 1);
	register unsigned long r10 __asm__("r10") = before[0];
	register unsigned long r8 __asm__("r8") = before[1];
	register unsigned long r9 __asm__("r9") = before[2];
	register unsigned long r12 __asm__("r12") = before[3];
	register unsigned long r13 __asm__("r13") = before[4];
	register unsigned long r14 __asm__("r14") = before[5];
	register unsigned long r15 __asm__("r15") = before[6];
	unsigned long rdi = before[7], rsi = before[8], rdx = before[9], rax = SYS_getppid;
	__asm__ volatile("sub $128, %%rsp\n\t"
			 "lea 1f(%%rip), %[next]\n\t"
			 "cmp $0, %%eax\n\t stc\n\t"
			 "syscall\n"
			 "1:\n\t"
			 "pushfq\n\t pop %%r11\n\t"
			 "add $128, %%rsp\n\t"
			 "mov %%r11, %[flags]"
			 : "+a"(rax), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8),
			   "+r"(r9), "+r"(r12), "+r"(r13), "+r"(r14), "+r"(r15),
			   "=&c"(rcx), [next] "=&b"(next), [flags] "=m"(flags[0])
			 :
			 : "r11", "memory", "cc");
	after[0] = r10, after[1] = r8, after[2] = r9, after[3] = r12, after[4] = r13;
	after[5] = r14, after[6] = r15, after[7] = rdi, after[8] = rsi, after[9] = rdx;
	long wrong = rcx != next;
	for (int i = 0; i < 10; i++)
		wrong += before[i] != after[i];
	/* stc just before: carry set, and from cmp (110 - 0): not zero, not negative. */
	return wrong + ((flags[0] & 0xc1) != 0x01);
}

struct loop {
	long count;
	long expected;
	long wrong;
};

static void *run_loop(void *argument)
{
	struct loop *loop = argument;
	for (long i = 0; i < loop->count; i++)
		loop->wrong += syscall(SYS_getppid) != loop->expected;
	return NULL;
}

/* getppid `count` times in each of `threads` threads; results other than `expected`. */
static long threads(long number, long count, long expected)
{
	pthread_t ids[16];
	struct loop loops[16];
	long wrong = 0;
	for (long i = 0; i < number && i < 16; i++) {
		loops[i] = (struct loop){.count = count, .expected = expected};
		pthread_create(&ids[i], NULL, run_loop, &loops[i]);
	}
	for (long i = 0; i < number && i < 16; i++) {
		pthread_join(ids[i], NULL);
		wrong += loops[i].wrong;
	}
	return wrong;
}

/* Picoseconds a getppid: the least of ten rounds. */
static long cost_ps(long count)
{
	long least = -1;
	for (int round = 0; round < 10; round++) {
		struct timespec from, to;
		clock_gettime(CLOCK_MONOTONIC, &from);
		for (long i = 0; i < count; i++)
			syscall(SYS_getppid);
		clock_gettime(CLOCK_MONOTONIC, &to);
		long ns = (to.tv_sec - from.tv_sec) * 1000000000L + (to.tv_nsec - from.tv_nsec);
		if (least < 0 || ns * 1000 / count < least)
			least = ns * 1000 / count;
	}
	return least;
}

static long do_command(const char *command)
{
	long a, b, c;
	struct utsname name;
	if (strcmp(command, "getppid") == 0)
		return syscall(SYS_getppid);
	if (strcmp(command, "errno") == 0) {
		long result;
		__asm__ volatile("syscall"
				 : "=a"(result)
				 : "a"(SYS_getppid)
				 : "rcx", "r11", "memory");
		return result;
	}
	if (strcmp(command, "getpid") == 0)
		return syscall(SYS_getpid);
	if (strcmp(command, "uname") == 0)
		return syscall(SYS_uname, &name) ? -1 : (long)strlen(name.sysname);
	if (strcmp(command, "disturbed") == 0)
		return disturbed();
	if (strcmp(command, "handled") == 0)
		return handled;
	if (sscanf(command, "threads %ld %ld %ld", &a, &b, &c) == 3)
		return threads(a, b, c);
	if (sscanf(command, "cost %ld", &a) == 1)
		return cost_ps(a);
	return -1000;
}

int main(int argc, char **argv)
{
	char in[64], out[64], line[128];
	const char *name = argc > 1 ? argv[1] : "v";
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGUSR1, &action, NULL);
	snprintf(in, sizeof(in), "/%s.in", name);
	snprintf(out, sizeof(out), "/%s.out", name);
	FILE *commands = fopen(in, "r+");
	FILE *answers = fopen(out, "r+");
	if (!commands || !answers)
		return 1;
	while (fgets(line, sizeof(line), commands)) {
		line[strcspn(line, "\n")] = '\0';
		fprintf(answers, "%ld\n", do_command(line));
		fflush(answers);
	}
	return 0;
}
