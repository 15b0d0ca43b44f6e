#define _GNU_SOURCE
#include "view.h"

#include "enter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* glibc has these calls since 2.36 only.  The numbers are the same on every architecture. */
enum { OPEN_TREE = 428, MOVE_MOUNT = 429, OPENAT2 = 437, MOUNT_SETATTR = 442 };

/* Those that job_container.conf(5) names in its example, and what is private without being named. */
static const char *const DIRECTORIES[VIEW_DIRECTORIES] = {"/tmp", "/var/tmp", "/dev/shm"};

/* Milliseconds until a rank goes on without a cgroup namespace. */
enum { PATIENCE = 5000 };

static const char CGROUPS[] = "/sys/fs/cgroup";
static const char HIERARCHIES[] = "/.hpcwrap/cgroup";

/* ---- the limits ---- */

/* The end of the job's own part of a cgroup's path, or NULL: another cgroup's. */
static const char *end_of_job(const char *path, uint32_t job)
{
    char part[32];
    int length = snprintf(part, sizeof part, "/job_%u", job);
    for (const char *at = path; (at = strstr(at, part)); at += length)
        if (at[length] == '/' || at[length] == '\0')
            return at + length;
    return NULL;
}

/* A line of /proc/PID/cgroup: NUMBER:CONTROLLERS:PATH. */
static void note_line(struct view *view, char *line, uint32_t job)
{
    char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
    if (!path || view->hierarchies == VIEW_HIERARCHIES)
        return;
    *path++ = '\0';
    names++;
    const char *end = end_of_job(path, job);
    if (!end || strlen(names) >= sizeof view->job->names)
        return;
    int length = snprintf(view->job[view->hierarchies].target, VIEW_PATH, "%s/%s%.*s", HIERARCHIES,
                          names, (int)(end - path), path);
    if (length >= VIEW_PATH)
        return;
    strcpy(view->job[view->hierarchies].names, names);
    view->hierarchies++;
}

void view_note_cgroups(struct view *view, uint32_t job)
{
    char text[8192];
    int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[length < 0 ? 0 : length] = '\0';
    for (char *rest = text, *line; (line = strsep(&rest, "\n"));)
        note_line(view, line, job);
}

/* No link of the image's may lead root elsewhere. */
static int open_directory(const char *path)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
    return (int)syscall(OPENAT2, AT_FDCWD, path, &how, sizeof how);
}

/* The links that the prolog made, in a file system that only root writes to; -1: none. */
static int open_links(void)
{
    struct statfs status;
    struct stat owner;
    int fd = open_directory(CGROUPS);
    if (fd >= 0 && fstatfs(fd, &status) == 0 && status.f_type == TMPFS_MAGIC &&
        fstat(fd, &owner) == 0 && owner.st_uid == 0 && !(owner.st_mode & (S_IWGRP | S_IWOTH)))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* Replaced by rename: ranks and steps do the same at the same time. */
static void set_link(int links, const char *name, const char *target)
{
    char now[VIEW_PATH], temporary[96];
    ssize_t length = readlinkat(links, name, now, sizeof now);
    if (length < 0 || ((size_t)length == strlen(target) && memcmp(now, target, (size_t)length) == 0))
        return;
    snprintf(temporary, sizeof temporary, ".%s.%d", name, (int)getpid());
    if (symlinkat(target, links, temporary) == 0 && renameat(links, temporary, links, name) < 0)
        unlinkat(links, temporary, 0);
}

static void show_links(const struct view *view)
{
    int links = view->hierarchies ? open_links() : -1;
    if (links < 0)
        return;
    for (int i = 0; i < view->hierarchies; i++)
        if (view->job[i].names[0])
            set_link(links, view->job[i].names, view->job[i].target);
    close(links);
}

/* A lock of the process's, for ranks share their descriptors. */
static bool be_alone(int lock, short how)
{
    struct flock range = {.l_type = how, .l_whence = SEEK_SET};
    return fcntl(lock, F_SETLKW, &range) == 0;
}

/* Version 2 alone: its one hierarchy is the job's from the job's cgroup on, which a later step may
 * have had made anew.  False when there is nothing to do. */
static bool is_to_mount(const struct view *view, int *source, int *target)
{
    struct stat wanted, now;
    *source = open_directory(view->job[0].target);
    *target = open_directory(CGROUPS);
    return *source >= 0 && *target >= 0 && fstat(*source, &wanted) == 0 &&
           fstat(*target, &now) == 0 && wanted.st_dev == now.st_dev && wanted.st_ino != now.st_ino;
}

static void mount_unified(const struct view *view, int lock)
{
    int source, target;
    if (is_to_mount(view, &source, &target) && be_alone(lock, F_WRLCK)) {
        close(source);
        close(target);
        if (is_to_mount(view, &source, &target)) {
            int tree = (int)syscall(OPEN_TREE, source, "",
                                    OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
            syscall(MOVE_MOUNT, tree, "", target, "",
                    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
            close(tree);
        }
        be_alone(lock, F_UNLCK);
    }
    close(source);
    close(target);
}

bool view_prepare(struct view *view)
{
    return !view_is_unified(view) || pipe2(view->forked, O_CLOEXEC) == 0;
}

void view_begin(struct view *view)
{
    if (view_is_unified(view))
        close(view->forked[1]);
}

/* The rank's own cgroup becomes / in /proc/self/cgroup, and slurmstepd moves it there only now: so it
 * waits, as it would for its parent a moment later (mgr.c, _exec_wait_child_wait_for_parent). */
static void root_cgroup(const struct view *view)
{
    struct pollfd end = {.fd = view->forked[0]};
    close(view->forked[1]);
    if (poll(&end, 1, PATIENCE) > 0)
        unshare(CLONE_NEWCGROUP);
    close(view->forked[0]);
}

bool view_is_unified(const struct view *view)
{
    return view->hierarchies == 1 && view->job[0].names[0] == '\0';
}

/* ---- the directories ---- */

void view_look(struct view *view)
{
    struct stat status;
    for (int i = 0; i < VIEW_DIRECTORIES; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s%s", ENTER_HOST, DIRECTORIES[i]);
        bool found = stat(path, &status) == 0;
        view->directory[i].device = found ? status.st_dev : 0;
        view->directory[i].inode = found ? status.st_ino : 0;
        view->directory[i].tree = -1;
    }
}

/* Is this the host's own directory of that number? */
static bool is_hosts(const struct view *view, int number, const struct stat *status)
{
    return view->directory[number].inode == status->st_ino &&
           view->directory[number].device == status->st_dev;
}

/* A copy of what is mounted on a directory, as it may be inside; -1 with errno set. */
static int copy_mounts(const char *path)
{
    struct mount_attr safe = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    int tree = (int)syscall(OPEN_TREE, AT_FDCWD, path,
                            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (tree >= 0 &&
        syscall(MOUNT_SETATTR, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &safe, sizeof safe) < 0) {
        close(tree);
        return -1;
    }
    return tree;
}

const char *view_take(struct view *view)
{
    struct stat status;
    for (int i = 0; i < VIEW_DIRECTORIES; i++) {
        if (view->directory[i].inode == 0 || stat(DIRECTORIES[i], &status) < 0 ||
            is_hosts(view, i, &status))
            continue;
        view->directory[i].tree = copy_mounts(DIRECTORIES[i]);
        if (view->directory[i].tree < 0)
            return DIRECTORIES[i];
    }
    return NULL;
}

/* Only over the host's directory: another rank may have been here, or the site has mounted something
 * of its own there. */
static bool place(const struct view *view, int number)
{
    struct stat status;
    bool placed = true;
    int target = open(DIRECTORIES[number], O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (target < 0)
        return errno == ENOENT;
    if (fstat(target, &status) == 0 && is_hosts(view, number, &status))
        placed = syscall(MOVE_MOUNT, view->directory[number].tree, "", target, "",
                         MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) == 0;
    close(target);
    return placed;
}

const char *view_show(const struct view *view, int lock)
{
    const char *missed = NULL;
    if (view_is_unified(view))
        mount_unified(view, lock);
    else
        show_links(view);
    for (int i = 0; i < VIEW_DIRECTORIES; i++)
        if (view->directory[i].tree >= 0) {
            if (!be_alone(lock, F_WRLCK) || !place(view, i))
                missed = DIRECTORIES[i];
            be_alone(lock, F_UNLCK);
            close(view->directory[i].tree);
        }
    if (view_is_unified(view))
        root_cgroup(view);
    return missed;
}
