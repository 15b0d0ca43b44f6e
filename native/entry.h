/* The record that a prolog leaves for enter, as its instructions (native/enter.h has the record). */
#ifndef HPCWRAP_ENTRY_H
#define HPCWRAP_ENTRY_H

#include "enter.h"

enum verb { CONTAINER, USER_NAMESPACE, MOUNT_NAMESPACE, CGROUP_NAMESPACE, WORKDIR, RLIMIT, DEFAULT,
            PATH, SET, UNSET, PREPEND, APPEND, RENUMBER, NOTE, END };

struct instruction {
    enum verb verb;
    const char *name; /* its first argument */
    const char *value;
    const char *hard; /* of a limit, whose value is the soft one; of a note, its text */
};

/* Take the instruction at `at`; returns where the next one begins, NULL if this one is broken. */
const char *entry_next(const char *at, const char *limit, struct instruction *found);

/* Leave a sentence in `error`; returns -1. */
__attribute__((format(printf, 2, 3))) int fail(char *error, const char *format, ...);

#endif
