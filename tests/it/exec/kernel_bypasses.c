/* Tries one way into the kernel and says what came of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Is this no socket of a family that there is none of? */
static int there(long family, int type, int protocol)
{
    long fd = syscall(SYS_socket, family, type, protocol);
    if (fd >= 0)
        close(fd);
    return fd >= 0 || errno != EAFNOSUPPORT;
}

static void families(void)
{
    int pair[2];
    for (int family = 0; family < 64; family++) {
        int any = 0;
        for (int type = 1; type < 11 && family != AF_NETLINK; type++)
            for (int protocol = 0; protocol < 300 && !any; protocol++)
                any = there(family, type, protocol);
        if (any)
            printf("%d ", family);
    }
    for (int protocol = 0; protocol < 64; protocol++)
        if (there(AF_NETLINK, SOCK_RAW, protocol) || there(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, protocol))
            printf("netlink-%d ", protocol);
    /* AF_PACKET by another name, and what goes by other hardware. */
    if (there(AF_INET, SOCK_PACKET, 0) || there(AF_INET, SOCK_PACKET | SOCK_CLOEXEC, 0x300))
        printf("packet ");
    if (there(AF_INET, SOCK_STREAM, 256) || there(AF_INET6, SOCK_STREAM, 256))
        printf("smc ");
    if (syscall(SYS_socketpair, 40, SOCK_STREAM, 0, pair) == 0 || errno != EAFNOSUPPORT)
        printf("pair ");
    /* Bits above those that the kernel reads. */
    if (there(0x700000028L, SOCK_STREAM, 0))
        printf("high ");
    puts("");
}

static void refused(const char *what, long result)
{
    printf("%s:%s ", what, result < 0 ? strerrorname_np(errno) : "passes");
}

/* What an ioctl types, wherever a terminal may be. */
static void type(const char *text)
{
    const unsigned long high[] = {0, 0x100000000UL, 0xffffffff00000000UL};
    for (int at = 0; at < 14; at++) {
        char path[32] = "/dev/tty";
        int fd = at;
        if (at >= 10) {
            if (at > 10)
                snprintf(path, sizeof path, "/dev/pts/%d", at - 11);
            fd = open(path, O_RDWR | O_NOCTTY);
        }
        for (size_t bits = 0; bits < 3; bits++) {
            for (const char *one = text; *one; one++)
                syscall(SYS_ioctl, fd, TIOCSTI | high[bits], one);
            char paste[2] = {3, 0};
            syscall(SYS_ioctl, fd, 0x541cUL | high[bits], paste);
        }
    }
}

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "";
    setvbuf(stdout, NULL, _IONBF, 0);
    if (strcmp(way, "families") == 0)
        families();
    if (strcmp(way, "refused") == 0) {
        char params[256] = {0}, one = 'x';
        refused("setup", syscall(SYS_io_uring_setup, 4, params));
        refused("enter", syscall(SYS_io_uring_enter, 0, 0, 0, 0, NULL, 0));
        refused("register", syscall(SYS_io_uring_register, 0, 0, NULL, 0));
        refused("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -2));
        refused("request_key", syscall(SYS_request_key, "user", "x", "x", -2));
        refused("keyctl", syscall(SYS_keyctl, 0, -3, 0));
        refused("sti", syscall(SYS_ioctl, 0, TIOCSTI, &one));
        refused("sti-high", syscall(SYS_ioctl, 0, TIOCSTI | 0x100000000UL, &one));
        refused("none", syscall(-1));
        puts("");
    }
#ifdef __x86_64__
    if (strcmp(way, "i386") == 0) {
        long result;
        /* socket(AF_VSOCK, SOCK_STREAM, 0) by the number that i386 has for it. */
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(359), "b"(40), "c"(1), "d"(0) : "memory");
        printf("%ld\n", result);
    }
    if (strcmp(way, "x32") == 0) {
        long result = syscall(0x40000000 | 41, 40, 1, 0);
        printf("%ld\n", result);
    }
#endif
    if (strcmp(way, "init") == 0) {
        char byte;
        struct iovec own = {&byte, 1}, theirs = {(void *)0x400000, 1};
        kill(1, SIGKILL);
        kill(1, SIGTERM);
        kill(1, SIGSTOP);
        refused("trace", ptrace(PTRACE_ATTACH, 1, NULL, NULL));
        refused("seize", ptrace(PTRACE_SEIZE, 1, NULL, NULL));
        refused("read", process_vm_readv(1, &own, 1, &theirs, 1, 0));
        refused("mem", open("/proc/1/mem", O_RDWR));
        refused("fd", open("/proc/1/fd/0", O_RDONLY));
        refused("ns", open("/proc/1/ns/pid", O_RDONLY));
        int pidfd = syscall(SYS_pidfd_open, 1, 0);
        refused("getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
        puts("alive");
    }
    if (strcmp(way, "outside") == 0) {
        char path[64];
        long pid = atol(argv[2]);
        snprintf(path, sizeof path, "/proc/%ld/mem", pid);
        refused("mem", open(path, O_RDWR));
        refused("kill", kill(pid, 0));
        refused("pidfd", syscall(SYS_pidfd_open, pid, 0));
        refused("trace", ptrace(PTRACE_SEIZE, pid, NULL, NULL));
        puts("");
    }
    if (strcmp(way, "type") == 0)
        type(argv[2]);
    return 0;
}
