/* What a rank is to see of its job inside: the limits of the job's cgroup, and the directories that
 * Slurm's job_container/tmpfs has made for the job alone.
 *
 * The scheduler makes both after the prolog has built the container: so whoever joins first brings
 * them in, and everyone looks.  Limits that cannot be shown are left as the prolog made them. */
#ifndef HPCWRAP_VIEW_H
#define HPCWRAP_VIEW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { VIEW_HIERARCHIES = 16, VIEW_DIRECTORIES = 3, VIEW_PATH = 512 };

struct view {
    int hierarchies;
    struct {
        char names[64];         /* controllers, as /proc/PID/cgroup has them; "" = version 2 */
        char target[VIEW_PATH]; /* the job's cgroup as it is seen inside */
    } job[VIEW_HIERARCHIES];
    struct {
        dev_t device;
        ino_t inode; /* of the host's directory; 0 = not there */
        int tree;    /* the job's own mounts on it, -1 = it has none */
    } directory[VIEW_DIRECTORIES];
    int forked[2]; /* a pipe that ends when all ranks are in their cgroups */
};

/* As root: see which directories are the host's. */
void view_look(struct view *view);

/* In the job's cgroup: note where that is. */
void view_note_cgroups(struct view *view, uint32_t job);

/* Whether the host has cgroups of version 2 alone, and the job one of them. */
bool view_is_unified(const struct view *view);

/* In slurmstepd, before it forks the first rank, and when the last is in its cgroup. */
bool view_prepare(struct view *view);
void view_begin(struct view *view);

/* In the namespaces that the scheduler gave to the rank: take the job's own directories along.
 * NULL, or the one that could not be taken. */
const char *view_take(struct view *view);

/* In the container, as root: put it all in its place.  `lock` is open on a file of root's alone.
 * NULL, or the directory that could not be put there. */
const char *view_show(const struct view *view, int lock);

#endif
