#define _GNU_SOURCE
#include "enter.h"
#include "entry.h"

#include <ctype.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static const char MARK[] = "HPCWRAP_CONTAINER";

/* ---- limits ---- */

static const struct {
    const char *name;
    int number;
} RESOURCES[] = {
    {"memlock", RLIMIT_MEMLOCK}, {"stack", RLIMIT_STACK}, {"nofile", RLIMIT_NOFILE},
    {"nproc", RLIMIT_NPROC},     {"core", RLIMIT_CORE},   {"data", RLIMIT_DATA},
    {"rss", RLIMIT_RSS},         {"as", RLIMIT_AS},       {"fsize", RLIMIT_FSIZE},
};
enum { RESOURCE_COUNT = sizeof RESOURCES / sizeof *RESOURCES };

static bool read_limit(const char *text, rlim_t *value)
{
    char *end;
    *value = RLIM_INFINITY;
    if (strcmp(text, "unlimited") == 0)
        return true;
    *value = strtoull(text, &end, 10);
    return isdigit((unsigned char)*text) && *end == '\0';
}

static int explain_limit(const struct instruction *limit, const struct rlimit *now, char *error)
{
    if (errno != EPERM)
        return fail(error, "cannot set the limit %s to %s:%s: %m", limit->name, limit->value,
                    limit->hard);
    return fail(error, "cannot raise the limit %s from %llu to %s, as the site's settings say: only "
                "root may raise a hard limit, and nofile only up to /proc/sys/fs/nr_open (the "
                "scheduler's daemon must start with more)", limit->name,
                (unsigned long long)now->rlim_max, limit->hard);
}

static int set_limit(const struct instruction *limit, char *error)
{
    struct rlimit now = {0, 0}, wanted;
    int number = -1;
    for (int i = 0; i < RESOURCE_COUNT; i++)
        if (strcmp(limit->name, RESOURCES[i].name) == 0)
            number = RESOURCES[i].number;
    if (number < 0 || !read_limit(limit->value, &wanted.rlim_cur) ||
        !read_limit(limit->hard, &wanted.rlim_max))
        return fail(error, "cannot use the record of the container: bad limit %s", limit->name);
    if (getrlimit(number, &now) < 0 || setrlimit(number, &wanted) < 0)
        return explain_limit(limit, &now, error);
    return 0;
}

int enter_limits(const struct entry *entry, char *error)
{
    struct instruction found = {.verb = CONTAINER};
    for (const char *at = entry->first; at && found.verb != END;) {
        at = entry_next(at, entry->limit, &found);
        if (at && found.verb == RLIMIT && set_limit(&found, error) < 0)
            return -1;
    }
    return 0;
}

void enter_forget_limits(const struct entry *entry, const struct variables *variables,
                         const char *prefix)
{
    struct instruction found = {.verb = CONTAINER};
    char name[64];
    for (const char *at = entry->first; at && found.verb != END;) {
        at = entry_next(at, entry->limit, &found);
        if (!at || found.verb != RLIMIT)
            continue;
        int length = snprintf(name, sizeof name, "%s%s", prefix, found.name);
        for (int i = 0; i < length && name[i]; i++)
            name[i] = (char)toupper((unsigned char)name[i]);
        if (variables->get(variables->where, name))
            variables->unset(variables->where, name);
    }
}

/* ---- joining ---- */

int enter_join(const struct entry *entry, char *error)
{
    /* The user namespace first: only there has its owner the right to enter the other (setns(2)). */
    if (entry->user_namespace >= 0 && setns(entry->user_namespace, CLONE_NEWUSER) < 0)
        return fail(error, "cannot join the container's user namespace: %m");
    if (setns(entry->mount_namespace, CLONE_NEWNS) < 0)
        return fail(error, "cannot join the container's mount namespace: %m");
    if (entry->cgroup_namespace && unshare(CLONE_NEWCGROUP) < 0)
        return fail(error, "cannot make a cgroup namespace: %m");
    /* A set-user-id program of the host, on a mount that came in later, would load its libraries
     * from the user's image: docs/decisions/0041-nosuid-everywhere.md. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return fail(error, "cannot give up new privileges by prctl");
    return 0;
}

static int name_length(const struct entry *entry)
{
    const char *digest = strrchr(entry->container, '@');
    return digest ? (int)(digest - entry->container) : (int)strlen(entry->container);
}

bool enter_is_named(const struct entry *entry, const char *name)
{
    size_t length = (size_t)name_length(entry);
    if (strcmp(entry->container, name) == 0)
        return true;
    return strlen(name) == length && strncmp(entry->container, name, length) == 0;
}

/* ---- the environment ---- */

/* Is the entry `item` of `length` bytes one of the ':'-separated entries of `list`? */
static bool holds(const char *list, const char *item, size_t length)
{
    for (;; list++) {
        size_t end = strcspn(list, ":");
        if (end == length && memcmp(list, item, length) == 0)
            return true;
        list += end;
        if (*list == '\0')
            return false;
    }
}

static char *put(char *end, const char *text, size_t length)
{
    *end++ = ':';
    memcpy(end, text, length);
    return end + length;
}

/* The image's PATH takes the place of the host's system directories in the job's PATH, whose
 * other entries, the user's own, keep theirs.  Returns an allocated PATH, NULL without memory. */
static char *merge_path(const char *job, const char *image)
{
    static const char SYSTEM[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:"
                                 "/usr/local/games:/usr/games";
    size_t size = strlen(image);
    char *merged = malloc(strlen(job) + size + 4);
    char *end = merged;
    bool placed = false;
    if (!merged)
        return NULL;
    for (const char *item = job;; item++) {
        size_t length = strcspn(item, ":");
        bool system = holds(SYSTEM, item, length);
        if (system && !placed) {
            end = put(end, image, size);
            placed = true;
        }
        if (!system && !holds(image, item, length))
            end = put(end, item, length);
        item += length;
        if (*item == '\0')
            break;
    }
    if (!placed)
        end = put(end, image, size);
    *end = '\0';
    memmove(merged, merged + 1, (size_t)(end - merged));
    return merged;
}

static bool set_path(const struct variables *variables, const char *image)
{
    const char *job = variables->get(variables->where, "PATH");
    if (!job || *job == '\0')
        return variables->set(variables->where, "PATH", image);
    char *merged = merge_path(job, image);
    bool done = merged && variables->set(variables->where, "PATH", merged);
    free(merged);
    return done;
}

/* Put a value at one end of a ':'-separated variable, unless it stands there already. */
static bool extend(const struct variables *variables, const struct instruction *instruction)
{
    const char *value = instruction->value;
    const char *old = variables->get(variables->where, instruction->name);
    if (!old || *old == '\0')
        return variables->set(variables->where, instruction->name, value);
    bool front = instruction->verb == PREPEND;
    size_t length = strlen(old), added = strlen(value);
    const char *there = front ? old : old + length - added;
    if (added <= length && memcmp(there, value, added) == 0 &&
        (added == length || (front ? old[added] : there[-1]) == ':'))
        return true;
    char *joined = NULL;
    if (asprintf(&joined, "%s:%s", front ? value : old, front ? old : value) < 0)
        return false;
    bool done = variables->set(variables->where, instruction->name, joined);
    free(joined);
    return done;
}

/* What an item of a list becomes by a table OLD=NEW,…; `length` is that of the item, then of it. */
static const char *new_number(const char *table, const char *item, size_t *length)
{
    while (*table) {
        size_t old = strcspn(table, "=,");
        const char *number = table + old + (table[old] == '=');
        size_t size = strcspn(number, ",");
        if (old == *length && memcmp(table, item, old) == 0) {
            *length = size;
            return number;
        }
        table = number + size + (number[size] == ',');
    }
    return item;
}

/* Give the numbers in a ','-separated variable others; what the table does not name stays. */
static bool renumber(const struct variables *variables, const struct instruction *instruction)
{
    const char *item = variables->get(variables->where, instruction->name);
    if (!item)
        return true;
    size_t items = strlen(item) + 1;
    char *list = malloc(items + items * (strlen(instruction->value) + 1));
    char *end = list;
    if (!list)
        return false;
    for (;; item++) {
        size_t length = strcspn(item, ","), size = length;
        const char *number = new_number(instruction->value, item, &size);
        memcpy(end, number, size);
        end += size;
        item += length;
        *end = *item;
        if (*item == '\0')
            break;
        end++;
    }
    bool done = variables->set(variables->where, instruction->name, list);
    free(list);
    return done;
}

static bool apply(const struct variables *variables, const struct instruction *instruction)
{
    void *where = variables->where;
    switch (instruction->verb) {
    case DEFAULT:
        if (variables->get(where, instruction->name))
            return true;
        return variables->set(where, instruction->name, instruction->value);
    case PATH:
        return set_path(variables, instruction->name);
    case SET:
        return variables->set(where, instruction->name, instruction->value);
    case UNSET:
        return variables->unset(where, instruction->name);
    case PREPEND:
    case APPEND:
        return extend(variables, instruction);
    case RENUMBER:
        return renumber(variables, instruction);
    default:
        return true;
    }
}

int enter_environment(const struct entry *entry, const struct variables *variables, char *error)
{
    const char *mark = variables->get(variables->where, MARK);
    struct instruction instruction = {.verb = CONTAINER};
    /* Came from inside this very container: what the user changed there since must stay changed,
     * but for numbers that the scheduler has set anew for each step. */
    bool inside = mark && strcmp(mark, entry->container) == 0;
    for (const char *at = entry->first; instruction.verb != END;) {
        at = entry_next(at, entry->limit, &instruction);
        bool wanted = !inside || instruction.verb == RENUMBER;
        if (!at || (wanted && !apply(variables, &instruction)))
            return fail(error, "cannot set the variable %s: %m", instruction.name);
    }
    if (!variables->set(variables->where, MARK, entry->container))
        return fail(error, "cannot set the variable %s: %m", MARK);
    return 0;
}

const char *enter_note(const struct entry *entry, const struct variables *variables)
{
    struct instruction found = {.verb = CONTAINER};
    for (const char *at = entry->first; at && found.verb != END;) {
        at = entry_next(at, entry->limit, &found);
        const char *value = at && found.verb == NOTE
                                ? variables->get(variables->where, found.name) : NULL;
        if (value && strncmp(value, found.value, strlen(found.value)) == 0)
            return found.hard;
    }
    return NULL;
}
