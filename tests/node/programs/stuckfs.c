/* A file system with one file, `file`, which is never read to the end: a program that reads it sleeps
   and no signal wakes it, until this one ends.

   usage: stuckfs DIRECTORY
   output: "ready" once it is mounted; "stuck" when somebody reads */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int device;

static void answer(const struct fuse_in_header *to, int error, const void *body, size_t length) {
	char buffer[1024];
	struct fuse_out_header header = {.len = sizeof header + length, .error = error, .unique = to->unique};
	memcpy(buffer, &header, sizeof header);
	if (length)
		memcpy(buffer + sizeof header, body, length);
	if (write(device, buffer, header.len) < 0)
		perror("stuckfs: answering");
}

static struct fuse_attr attributes(uint64_t node) {
	struct fuse_attr attr = {.ino = node, .nlink = 1, .size = 1000};
	attr.mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0644;
	return attr;
}

int main(int argc, char **argv) {
	char options[128];
	static char request[1 << 17];
	setvbuf(stdout, NULL, _IOLBF, 0);
	device = open("/dev/fuse", O_RDWR);
	snprintf(options, sizeof options, "fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", device);
	if (argc != 2 || device < 0 || mount("stuckfs", argv[1], "fuse", MS_NOSUID | MS_NODEV, options) != 0) {
		perror("stuckfs: mounting");
		return 1;
	}
	puts("ready");
	for (;;) {
		if (read(device, request, sizeof request) <= 0) {
			if (errno == EINTR || errno == ENOENT)
				continue;
			return 0;
		}
		struct fuse_in_header *in = (void *)request;
		switch (in->opcode) {
		case FUSE_INIT: {
			struct fuse_init_out out = {.major = 7, .minor = 31, .max_write = 4096};
			answer(in, 0, &out, sizeof out);
			break;
		}
		case FUSE_LOOKUP: {
			struct fuse_entry_out out = {.nodeid = 2, .attr = attributes(2)};
			if (strcmp(request + sizeof *in, "file") != 0)
				answer(in, -ENOENT, NULL, 0);
			else
				answer(in, 0, &out, sizeof out);
			break;
		}
		case FUSE_GETATTR: {
			struct fuse_attr_out out = {.attr = attributes(in->nodeid)};
			answer(in, 0, &out, sizeof out);
			break;
		}
		case FUSE_STATFS: {
			struct fuse_statfs_out out = {.st = {.bsize = 512, .namelen = 255}};
			answer(in, 0, &out, sizeof out);
			break;
		}
		case FUSE_OPEN:
		case FUSE_OPENDIR: {
			struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO};
			answer(in, 0, &out, sizeof out);
			break;
		}
		case FUSE_READ:
			puts("stuck");
			break;
		case FUSE_INTERRUPT:
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
			break;
		default:
			answer(in, -ENOSYS, NULL, 0);
		}
	}
}
