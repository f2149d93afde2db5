/* What a program has from whoever started it and cannot be read in /proc: a line "name value" each. */
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
	int death = -1;
	prctl(PR_GET_PDEATHSIG, &death);
	printf("keyring %ld\n", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
	printf("pdeathsig %d\n", death);
	printf("subreaper %d\n", ({ int is = -1; prctl(PR_GET_CHILD_SUBREAPER, &is); is; }));
	printf("ioprio %ld\n", syscall(SYS_ioprio_get, 1, 0));
	printf("policy %d\n", sched_getscheduler(0));
	printf("nice %d\n", getpriority(PRIO_PROCESS, 0));
	printf("timerslack %d\n", prctl(PR_GET_TIMERSLACK));
	printf("keepcaps %d\n", prctl(PR_GET_KEEPCAPS));
	printf("securebits %d\n", prctl(PR_GET_SECUREBITS));
	printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
	for (int number = 1; number < 32; number++) {
		struct sigaction action;
		if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL)
			printf("handled %d\n", number);
	}
	return 0;
}
