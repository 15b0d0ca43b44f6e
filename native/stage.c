#define _GNU_SOURCE
#include "stage.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PLUGIN "/lib/hpcwrap/spank_hpcwrap.so" /* both below the installation's prefix */
#define PROLOG "/share/hpcwrap/prolog/slurm.sh"
enum { TOLD = 3, MANY_DESCRIPTORS = 1024 };

/* ---- what the prolog reads of a job ---- */

/* The environment of slurmstepd is slurmd's, and so the site's. */
static const char *const BY_SITE[] = {"SLURM_CONF", "SLURMD_NODENAME"};
enum { SITES = sizeof BY_SITE / sizeof *BY_SITE, VARIABLES = 9 + SITES + 1 };

struct list {
    char *words[VARIABLES];
    int length;
    bool complete; /* there was memory for all */
};

static void say(struct list *list, const char *name, const char *value)
{
    if (value && asprintf(&list->words[list->length], "%s=%s", name, value) < 0)
        list->complete = false;
    else if (value)
        list->length++;
}

static void say_number(struct list *list, const char *name, uint32_t value)
{
    char text[16];
    snprintf(text, sizeof text, "%u", value);
    say(list, name, text);
}

/* The environment of the step is the user's, who decides by it what is this step's own affair: where
 * it starts, what it asks for, and which nodes its launchers find. */
static bool describe(const struct stage *stage, const struct variables *asked, struct list *list)
{
    uid_t user;
    gid_t group;
    uint32_t nodes = 1;
    if (spank_get_item(stage->spank, S_JOB_UID, &user) != ESPANK_SUCCESS ||
        spank_get_item(stage->spank, S_JOB_GID, &group) != ESPANK_SUCCESS)
        return false;
    spank_get_item(stage->spank, S_JOB_NNODES, &nodes);
    say_number(list, "SLURM_JOB_ID", stage->job);
    say_number(list, "HPCWRAP_STEP", stage->number);
    say_number(list, "HPCWRAP_STEP_OWNER", (uint32_t)getpid());
    say_number(list, "SLURM_JOB_UID", user);
    say_number(list, "SLURM_JOB_GID", group);
    say_number(list, "SLURM_JOB_NUM_NODES", nodes);
    say(list, "SLURM_JOB_WORK_DIR", asked->get(asked->where, "PWD"));
    say(list, "SLURM_NODELIST", asked->get(asked->where, "SLURM_NODELIST"));
    say(list, "SPANK_HPCWRAP_CONTAINER", stage->container);
    for (int i = 0; i < SITES; i++)
        say(list, BY_SITE[i], getenv(BY_SITE[i]));
    return list->complete;
}

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

/* ---- its processes ---- */

/* With EntireStepInNS, slurmstepd is in a namespace of job_container/tmpfs: what is mounted there
 * is not on the node, and its /tmp is the job's. */
static bool be_on_the_host(void)
{
    struct stat own, hosts;
    int namespace = open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC);
    int root = open(ENTER_HOST, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (namespace < 0 || root < 0 || fstat(namespace, &hosts) < 0 ||
        stat("/proc/self/ns/mnt", &own) < 0)
        return false;
    if (own.st_dev == hosts.st_dev && own.st_ino == hosts.st_ino)
        return chdir("/") == 0;
    return setns(namespace, CLONE_NEWNS) == 0 && fchdir(root) == 0 && chroot(".") == 0;
}

static void close_others(void)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, TOLD + 1, ~0U, 0) == 0)
        return;
#endif
    for (int other = TOLD + 1; other < MANY_DESCRIPTORS; other++)
        close(other);
}

/* slurmstepd blocks signals, ignores others, and holds pipes of slurmd's and of its ranks. */
static bool become_a_stage(int told)
{
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int standard = 0; standard < TOLD; standard++)
        if (dup2(null, standard) < 0)
            return false;
    if (dup2(told, TOLD) < 0 || fcntl(TOLD, F_SETFD, FD_CLOEXEC) < 0)
        return false;
    close_others();
    umask(S_IWGRP | S_IWOTH);
    setsid();
    return be_on_the_host();
}

/* Runs the prolog and tells how it went, to nobody where slurmstepd has lost its patience. */
static void watch(char *const words[], char *const variables[])
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        execve(words[0], words, variables);
        _exit(EXIT_FAILURE);
    }
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            _exit(EXIT_FAILURE);
    char failed = status != 0;
    _exit(write(TOLD, &failed, 1) == 1 ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* Not as a child of slurmstepd's: proctrack/linuxproc ends all of these with the step, and it would
 * be there to be waited for among the ranks. */
static bool start(int told, char *const words[], char *const variables[])
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        pid_t watcher = become_a_stage(told) ? fork() : -1;
        if (watcher == 0)
            watch(words, variables);
        _exit(watcher < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return false;
    return child > 0 && status == 0;
}

/* ---- waiting for it ---- */

enum end { DONE, FAILED, AT_WORK };

static enum end hear(int from, int seconds)
{
    char failed = 1;
    int ready;
    struct pollfd word = {.fd = from, .events = POLLIN};
    while ((ready = poll(&word, 1, seconds * 1000)) < 0 && errno == EINTR)
        ;
    if (ready == 0)
        return AT_WORK;
    return ready > 0 && read(from, &failed, 1) == 1 && !failed ? DONE : FAILED;
}

static enum end run(char *const words[], char *const variables[], int seconds)
{
    int pipe[2];
    if (pipe2(pipe, O_CLOEXEC) < 0)
        return FAILED;
    bool started = start(pipe[1], words, variables);
    close(pipe[1]);
    enum end end = started ? hear(pipe[0], seconds) : FAILED;
    close(pipe[0]);
    return end;
}

int stage_prolog(const struct stage *stage, const struct variables *asked, char *error)
{
    char path[PATH_MAX], *const words[] = {path, NULL};
    struct list list = {.complete = true};
    enum end end = FAILED;
    if (!find_script(path, sizeof path)) {
        snprintf(error, ENTER_ERROR_SIZE, "cannot make a container for this step: the prolog is not "
                 "beside the plugin (plugstack.conf must name the one of the installation)");
        return -1;
    }
    if (describe(stage, asked, &list))
        end = run(words, list.words, stage->patience);
    for (int i = 0; i < list.length; i++)
        free(list.words[i]);
    if (end == FAILED)
        snprintf(error, ENTER_ERROR_SIZE, "cannot make a container for this step: the prolog failed "
                 "on this node (the node's syslog tells why)");
    if (end == AT_WORK)
        snprintf(error, ENTER_ERROR_SIZE, "cannot wait for this step's container any longer: after "
                 "%d s the node is still at it (start the step again when its image is there; "
                 "`hpcwrap pull` fetches one beforehand)", stage->patience);
    return end == DONE ? 0 : -1;
}
