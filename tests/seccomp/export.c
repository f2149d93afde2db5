/*
 * Compiles a profile with libseccomp and writes the BPF program to standard output: the other opinion
 * in the tests of src/security/seccomp. cc -o export export.c -lseccomp
 *
 * Standard input, a directive a line, numbers in hexadecimal:
 *   default ACTION             first; SECCOMP_RET_* value
 *   arch x86|x32               beside the native one
 *   rule ACTION NAME [INDEX OP A B]...
 * OP is libseccomp's number of the comparison. Standard error gets a line `number NAME X86_64 X86 X32` for
 * every rule, negative for what it does not know or emulates; a name that it does not know at all is skipped.
 */
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int rc, const char *what)
{
	if (rc < 0) {
		fprintf(stderr, "error %s: %s\n", what, strerror(-rc));
		exit(1);
	}
}

static void add_rule(scmp_filter_ctx ctx, char *rest)
{
	struct scmp_arg_cmp args[6];
	unsigned int count = 0;
	char *save, *word = strtok_r(rest, " \n", &save);
	uint32_t action = strtoul(word, NULL, 16);
	char *name = strtok_r(NULL, " \n", &save);
	int number = seccomp_syscall_resolve_name(name);

	fprintf(stderr, "number %s %d %d %d\n", name, number, seccomp_syscall_resolve_name_arch(SCMP_ARCH_X86, name),
		seccomp_syscall_resolve_name_arch(SCMP_ARCH_X32, name));
	if (number == __NR_SCMP_ERROR)
		return;
	while ((word = strtok_r(NULL, " \n", &save)) && count < 6) {
		args[count].arg = strtoul(word, NULL, 16);
		args[count].op = strtoul(strtok_r(NULL, " \n", &save), NULL, 16);
		args[count].datum_a = strtoull(strtok_r(NULL, " \n", &save), NULL, 16);
		args[count].datum_b = strtoull(strtok_r(NULL, " \n", &save), NULL, 16);
		count++;
	}
	check(seccomp_rule_add_array(ctx, action, number, count, args), name);
}

int main(void)
{
	scmp_filter_ctx ctx = NULL;
	char line[4096];

	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "default ", 8)) {
			ctx = seccomp_init(strtoul(line + 8, NULL, 16));
			if (!ctx)
				check(-22, "default action");
		} else if (!strncmp(line, "arch ", 5)) {
			line[strcspn(line, "\n")] = 0;
			check(seccomp_arch_add(ctx, seccomp_arch_resolve_name(line + 5)), "arch");
		} else if (!strncmp(line, "rule ", 5)) {
			add_rule(ctx, line + 5);
		}
	}
	check(seccomp_export_bpf(ctx, 1), "export");
	return 0;
}
