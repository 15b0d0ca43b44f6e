/* srun, sbatch, squeue … and Slurm's TaskProlog inside a container: this program in their place.
 *
 * Runs the host's own command of that name, with the host's libraries, settings and plugins, however
 * little the image has: the host's root is at /.host (container/operations.py), and a process may
 * chroot there once it has a user namespace of its own, in which it stays who it is.  Messages to
 * munge carry the true uid: the kernel translates it.  docs/decisions/0042-commands-inside.md. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HOST "/.host"
#define COMMANDS "/.hpcwrap/commands" /* a link: the directory of the commands on the host */

static int fail(const char *command, const char *what)
{
    fprintf(stderr, "%s: hpcwrap: cannot run the host's command: %s: %s\n", command, what,
            strerror(errno));
    return 125;
}

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, text, strlen(text));
    close(fd);
    return written == (ssize_t)strlen(text) ? 0 : -1;
}

/* Without privilege only the own uid and gid can be mapped, and setgroups must be given up first
 * (user_namespaces(7)); supplementary groups stay in force, though they have no number inside. */
static int keep_identity(uid_t uid, gid_t gid)
{
    char map[64];
    if (write_file("/proc/self/setgroups", "deny") < 0)
        return -1;
    snprintf(map, sizeof map, "%u %u 1\n", (unsigned)uid, (unsigned)uid);
    if (write_file("/proc/self/uid_map", map) < 0)
        return -1;
    snprintf(map, sizeof map, "%u %u 1\n", (unsigned)gid, (unsigned)gid);
    return write_file("/proc/self/gid_map", map);
}

/* A directory of the image only: the command cannot stand in it, but its step can start in it
 * (SLURM_WORKING_DIR is srun's --chdir). */
static void keep_directory(const char *before)
{
    if (before[0] == '/' && chdir(before) == 0)
        return;
    if (before[0] == '/')
        setenv("SLURM_WORKING_DIR", before, 0);
}

int main(int count, char **arguments)
{
    char directory[PATH_MAX], path[PATH_MAX + NAME_MAX], before[PATH_MAX];
    /* Not by basename(3): musl has had no other than that of libgen.h since 1.2.5. */
    const char *called = count > 0 ? arguments[0] : "hpcwrap-host";
    const char *slash = strrchr(called, '/'), *command = slash ? slash + 1 : called;
    uid_t uid = geteuid();
    gid_t gid = getegid();
    ssize_t length = readlink(COMMANDS, directory, sizeof directory - 1);
    if (length < 0)
        return fail(command, "no commands in this container");
    directory[length] = '\0';
    snprintf(path, sizeof path, "%s/%s", directory, command);
    if (!getcwd(before, sizeof before))
        before[0] = '\0';
    if (uid != 0 && unshare(CLONE_NEWUSER) < 0)
        return fail(command, "a user namespace (see /proc/sys/user/max_user_namespaces)");
    if (uid != 0 && keep_identity(uid, gid) < 0)
        return fail(command, "the maps of the user namespace");
    if (chroot(HOST) < 0 || chdir("/") < 0)
        return fail(command, HOST);
    keep_directory(before);
    /* A script of the host's that is called by its path (TaskProlog) lies anywhere on the host; a
     * link in the image leads to a command, and its path means nothing there. */
    if (count > 0 && arguments[0][0] == '/') {
        execv(arguments[0], arguments);
        if (errno != ENOENT)
            return fail(command, arguments[0]);
    }
    execv(path, arguments);
    return fail(command, path);
}
