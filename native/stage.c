#define _GNU_SOURCE
#include "stage.h"
#include "enter.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PLUGIN "/lib/hpcwrap/spank_hpcwrap.so" /* both below the installation's prefix */
#define PROLOG "/share/hpcwrap/prolog/slurm.sh"
enum { FIRST_OTHER = 3, MANY_DESCRIPTORS = 1024 };

static bool find_script(char *path, size_t size)
{
    char plugin[PATH_MAX];
    Dl_info found;
    if (!dladdr(PLUGIN, &found) || !realpath(found.dli_fname, plugin))
        return false;
    size_t length = strlen(plugin), tail = strlen(PLUGIN);
    if (length < tail || strcmp(plugin + length - tail, PLUGIN) != 0)
        return false;
    int prefix = (int)(length - tail);
    int written = snprintf(path, size, "%.*s" PROLOG, prefix, plugin);
    return written > 0 && (size_t)written < size && access(path, X_OK) == 0;
}

/* slurmstepd blocks signals, ignores others, and holds pipes of slurmd's and of its ranks. */
static void become_a_stage(void)
{
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDWR);
    for (int standard = 0; standard < FIRST_OTHER; standard++)
        dup2(null, standard);
    setsid();
#ifdef SYS_close_range
    if (syscall(SYS_close_range, FIRST_OTHER, ~0U, 0) == 0)
        return;
#endif
    for (int other = FIRST_OTHER; other < MANY_DESCRIPTORS; other++)
        close(other);
}

/* By a pidfd: whatever the stage leaves running (a look-up of a tag) is not waited for. */
static enum stage_end wait_for(pid_t child, int seconds)
{
    int status, left;
    struct pollfd end = {.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN};
    while ((left = poll(&end, 1, seconds * 1000)) < 0 && errno == EINTR)
        ;
    if (end.fd >= 0)
        close(end.fd);
    if (left == 0)
        return STAGE_AT_WORK;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return STAGE_FAILED;
    return status == 0 ? STAGE_DONE : STAGE_FAILED;
}

enum stage_end stage_prolog(char *const variables[], int seconds, char *error)
{
    char path[PATH_MAX];
    if (!find_script(path, sizeof path)) {
        snprintf(error, ENTER_ERROR_SIZE, "cannot make a container for this step: the prolog is not "
                 "beside the plugin (plugstack.conf must name the one of the installation)");
        return STAGE_FAILED;
    }
    char *const words[] = {path, NULL};
    pid_t child = fork();
    if (child == 0) {
        become_a_stage();
        execve(path, words, variables);
        _exit(EXIT_FAILURE);
    }
    enum stage_end end = child > 0 ? wait_for(child, seconds) : STAGE_FAILED;
    if (end == STAGE_FAILED)
        snprintf(error, ENTER_ERROR_SIZE, "cannot make a container for this step: the prolog failed "
                 "on this node (the node's syslog tells why)");
    if (end == STAGE_AT_WORK)
        snprintf(error, ENTER_ERROR_SIZE, "cannot wait for this step's container any longer: after "
                 "%d s the node is still at it (start the step again when its image is there; "
                 "`hpcwrap pull` fetches one beforehand)", seconds);
    return end;
}
