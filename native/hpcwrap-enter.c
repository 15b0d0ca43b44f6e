/* hpcwrap-enter [--mount-namespace DESCRIPTOR] JOB_DIRECTORY [--] COMMAND [ARGUMENT...]
 *
 * Replaces itself by a command inside the container that the prolog left in a job's directory.  The
 * descriptor is for a mount namespace of the scheduler's, in which that directory has no pin.
 * Ends with the command's code, or as a shell would: 127 not found, 126 not executable, 125 the
 * container could not be joined. */
#define _GNU_SOURCE
#include "enter.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILED = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

static const char NAMESPACE[] = "--mount-namespace";

static const char *get_variable(void *where, const char *name)
{
    (void)where;
    return getenv(name);
}

static bool set_variable(void *where, const char *name, const char *value)
{
    (void)where;
    return setenv(name, value, 1) == 0;
}

static bool unset_variable(void *where, const char *name)
{
    (void)where;
    return unsetenv(name) == 0;
}

/* In place of the pin, or of the empty file below it. */
static void take_namespace(struct entry *entry, const char *number)
{
    char *end;
    int descriptor = (int)strtol(number, &end, 10);
    if (*number == '\0' || *end != '\0')
        descriptor = -1;
    close(entry->mount_namespace);
    entry->mount_namespace = descriptor;
    fcntl(descriptor, F_SETFD, FD_CLOEXEC);
}

static int join(struct entry *entry, const char *path, const char *namespace, char *error)
{
    static const struct variables OURS = {get_variable, set_variable, unset_variable, NULL};
    int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) {
        snprintf(error, ENTER_ERROR_SIZE, "cannot open the job's directory %s: %m", path);
        return -1;
    }
    if (enter_open(entry, directory, error) < 0)
        return -1;
    if (namespace)
        take_namespace(entry, namespace);
    if (enter_limits(entry, error) < 0 || enter_join(entry, error) < 0)
        return -1;
    return enter_environment(entry, &OURS, error);
}

/* The caller's directory by its path, else the environment's own, else the root: the descriptor
 * of the old one is useless, for it leads to the host's file system. */
static void keep_directory(const struct entry *entry, const char *before)
{
    if (before[0] == '/' && chdir(before) == 0)
        return;
    if (entry->workdir && chdir(entry->workdir) == 0)
        return;
    if (chdir("/") < 0)
        perror("hpcwrap-enter: cannot change to the container's root directory");
}

static int explain(const struct entry *entry, const char *command, int reason)
{
    int length = (int)strcspn(entry->container, "@");
    if (reason != ENOENT && reason != ENOTDIR) {
        fprintf(stderr, "hpcwrap-enter: cannot execute %s in the container %.*s: %s\n", command,
                length, entry->container, strerror(reason));
        return NOT_EXECUTABLE;
    }
    if (strchr(command, '/') && access(command, F_OK) == 0) {
        fprintf(stderr,
                "hpcwrap-enter: cannot execute %s in the container %.*s: the interpreter or loader "
                "that it names is not in the image\n",
                command, length, entry->container);
        return NOT_EXECUTABLE;
    }
    fprintf(stderr,
            "hpcwrap-enter: cannot find the command %s in the container %.*s "
            "(it must exist in the image)\n",
            command, length, entry->container);
    return NOT_FOUND;
}

int main(int count, char **arguments)
{
    char error[ENTER_ERROR_SIZE], before[PATH_MAX];
    struct entry entry;
    const char *namespace = NULL;
    if (count > 2 && strcmp(arguments[1], NAMESPACE) == 0) {
        namespace = arguments[2];
        arguments += 2;
        count -= 2;
    }
    char **command = arguments + 2;
    if (count > 2 && strcmp(*command, "--") == 0)
        command++;
    if (count < 3 || !*command) {
        fprintf(stderr, "usage: hpcwrap-enter [%s DESCRIPTOR] JOB_DIRECTORY [--] COMMAND "
                "[ARGUMENT...]\n", NAMESPACE);
        return FAILED;
    }
    if (!getcwd(before, sizeof before))
        before[0] = '\0';
    if (join(&entry, arguments[1], namespace, error) < 0) {
        fprintf(stderr, "hpcwrap-enter: %s\n", error);
        return FAILED;
    }
    keep_directory(&entry, before);
    execvp(*command, command);
    return explain(&entry, *command, errno);
}
