/* Join the container that the prolog built for a job on this node.
 *
 * Shared by hpcwrap-enter and the SPANK plugin.  The prolog compiles all that is needed into the
 * file `entry` of the job's directory, described in docs/decisions/0030-entry-and-environment.md;
 * nothing here parses anything else.
 *
 * Fallible functions return 0, or -1 with one sentence in `error` (ENTER_ERROR_SIZE bytes). */
#ifndef HPCWRAP_ENTER_H
#define HPCWRAP_ENTER_H

#include <stdbool.h>
#include <stddef.h>

enum { ENTER_ERROR_SIZE = 1024 };

/* The host's own root, for those who have root's rights. */
#define ENTER_HOST "/proc/1/root"

struct entry {
    char *text;            /* the whole file; the strings below point into it */
    const char *first;     /* its first instruction */
    const char *limit;     /* one past its last byte */
    const char *container; /* NAME@DIGEST, or IMAGE@DIGEST where the image is the user's own */
    const char *workdir;   /* the environment's own working directory, or NULL */
    int user_namespace;    /* descriptors, close-on-exec; -1 = none to join */
    int mount_namespace;
    bool cgroup_namespace; /* to be made at the joiner's own cgroup */
};

/* Where a program keeps the environment of the command that it starts. */
struct variables {
    const char *(*get)(void *where, const char *name); /* valid until the next set or unset */
    bool (*set)(void *where, const char *name, const char *value);
    bool (*unset)(void *where, const char *name);
    void *where;
};

/* Read the record in a job's directory: the error of a failed prolog, or its entry, whose
 * namespaces are opened at once, for their paths may mean nothing in the caller's later ones. */
int enter_open(struct entry *entry, int directory, char *error);

/* Forget an entry that was read, for another. */
void enter_close(struct entry *entry);

/* Set the limits that the entry names, setrlimit(2); all others stay as the scheduler set them.  Only
 * root can raise a hard limit, so whoever becomes the user later calls this before. */
int enter_limits(const struct entry *entry, char *error);

/* Unset the variables, PREFIX and a limit's name in capitals, that would have the scheduler set
 * these limits once more. */
void enter_forget_limits(const struct entry *entry, const struct variables *variables,
                         const char *prefix);

/* Enter the namespaces; afterwards the working directory is the container's root.  Calls nothing
 * that could load a library or a locale out of the image: the caller may still be root. */
int enter_join(const struct entry *entry, char *error);

/* Make the environment of the command from the job's own. */
int enter_environment(const struct entry *entry, const struct variables *variables, char *error);

/* What the prolog found that the user of a step with these variables should know, or NULL. */
const char *enter_note(const struct entry *entry, const struct variables *variables);

/* Is the container what this name asks for: NAME, NAME@DIGEST, or the user's own image? */
bool enter_is_named(const struct entry *entry, const char *name);

#endif
