/*
 * Loads the BPF program on standard input into itself and tries system calls under it:
 *   load FLAGS NUMBER[,ARG...]...    numbers in C's notation
 * Prints the result of each call, or minus its errno, a line each. Static, so that no loader runs first.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static struct sock_filter program[4096];
	ssize_t n, length = 0;

	while ((n = read(0, (char *)program + length, sizeof program - length)) > 0)
		length += n;
	struct sock_fprog prog = { length / sizeof program[0], program };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, strtoul(argv[1], NULL, 0), &prog)) {
		perror("loading the filter");
		return 1;
	}
	for (int i = 2; i < argc; i++) {
		unsigned long args[7] = { 0 };
		char *save, *word = strtok_r(argv[i], ",", &save);
		for (int j = 0; word && j < 7; j++, word = strtok_r(NULL, ",", &save))
			args[j] = strtoul(word, NULL, 0);
		long result = syscall(args[0], args[1], args[2], args[3], args[4], args[5], args[6]);
		printf("%ld\n", result < 0 ? -(long)errno : result);
	}
	return 0;
}
