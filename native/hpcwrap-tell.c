/* hpcwrap-tell COMMAND [ARGUMENT...]
 *
 * Runs a command, and when the kernel has meanwhile killed processes of its cgroup for want of
 * memory, says so on stderr.  Ends as the command did, by a signal, too.
 *
 * For a job's first process where the scheduler has nowhere else to tell the user.  It runs as the
 * user with the user's variables, outside the container, and so is static.
 * docs/decisions/0113-pbs-mpi-and-limits.md */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FAILED = 125, LINE = PATH_MAX + 64 };

static const int SIGNALS[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM,
                              SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU};

/* Where the memory of this process is counted, and the names of the files, by version. */
struct place {
    char directory[LINE + 32];
    const char *events, *limit;
};

static bool find_place(struct place *place)
{
    char line[LINE];
    FILE *file = fopen("/proc/self/cgroup", "re");
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        bool first = strncmp(controllers, ":memory:", 8) == 0;
        found = first || (controllers == strstr(line, "::"));
        const char *root = first ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
        snprintf(place->directory, sizeof place->directory, "%s%s", root, path + 1);
        place->events = first ? "memory.oom_control" : "memory.events";
        place->limit = first ? "memory.limit_in_bytes" : "memory.max";
    }
    if (file)
        fclose(file);
    return found;
}

/* The number after `key` of a file of lines KEY NUMBER, or that of a file of one number; 0 for none. */
static unsigned long long read_number(const struct place *place, const char *name, const char *key)
{
    char path[LINE + 96], word[64];
    unsigned long long number = 0;
    snprintf(path, sizeof path, "%s/%s", place->directory, name);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    if (!key) {
        if (fscanf(file, "%llu", &number) != 1)
            number = 0;
    } else {
        unsigned long long each;
        while (fscanf(file, "%63s %llu", word, &each) == 2)
            if (strcmp(word, key) == 0)
                number = each;
    }
    fclose(file);
    return number;
}

static void tell(const struct place *place, unsigned long long killed)
{
    unsigned long long limit = read_number(place, place->limit, NULL);
    fprintf(stderr,
            "hpcwrap: the job reached its memory limit of %llu MiB: the kernel killed %llu of its "
            "processes (ask for more memory, or use fewer ranks)\n",
            limit >> 20, killed);
}

/* Signals are the command's business: they reach it as well, for a scheduler signals all processes. */
static void ignore(int number)
{
    (void)number;
}

static int end_as(int status)
{
    if (!WIFSIGNALED(status))
        return WEXITSTATUS(status);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    signal(WTERMSIG(status), SIG_DFL);
    raise(WTERMSIG(status));
    return 128 + WTERMSIG(status);
}

int main(int count, char **arguments)
{
    struct place place;
    if (count < 2) {
        fprintf(stderr, "usage: hpcwrap-tell COMMAND [ARGUMENT...]\n");
        return FAILED;
    }
    bool known = find_place(&place);
    unsigned long long before = known ? read_number(&place, place.events, "oom_kill") : 0;
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++)
        if (signal(SIGNALS[i], ignore) == SIG_IGN)
            signal(SIGNALS[i], SIG_IGN);
    pid_t child = fork();
    if (child == 0) {
        execv(arguments[1], arguments + 1);
        fprintf(stderr, "hpcwrap-tell: cannot execute %s: %s\n", arguments[1], strerror(errno));
        _exit(FAILED);
    }
    int status = FAILED << 8;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (child < 0)
        fprintf(stderr, "hpcwrap-tell: cannot fork: %s\n", strerror(errno));
    unsigned long long after = known ? read_number(&place, place.events, "oom_kill") : 0;
    if (after > before)
        tell(&place, after - before);
    return end_as(status);
}
