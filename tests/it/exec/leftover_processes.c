/* Leaves a process behind that goes by the name given, in one of several ways; then stays, or ends. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *stay(void *unused)
{
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv)
{
    int tell[2];
    char word;
    if (argc < 4 || pipe(tell) != 0)
        return 9;
    signal(SIGHUP, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    if (fork() == 0) {
        pthread_t thread;
        prctl(PR_SET_PDEATHSIG, 0);
        prctl(PR_SET_NAME, argv[2]);
        setsid();
        if (strcmp(argv[1], "namespaces") == 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
            return 8;
        if (strcmp(argv[1], "daemon") == 0 && fork() != 0)
            return 0;
        if (strcmp(argv[1], "thread") == 0 && pthread_create(&thread, NULL, stay, NULL) != 0)
            return 7;
        if (write(tell[1], "", 1) != 1)
            return 6;
        if (strcmp(argv[1], "thread") == 0)
            syscall(SYS_exit, 0);
        stay(NULL);
    }
    if (read(tell[0], &word, 1) != 1)
        return 5;
    puts("ready");
    fflush(stdout);
    if (strcmp(argv[3], "stays") == 0) {
        prctl(PR_SET_PDEATHSIG, 0);
        prctl(PR_SET_NAME, argv[2]);
        stay(NULL);
    }
    return 0;
}
