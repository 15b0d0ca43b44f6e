#define _GNU_SOURCE
#include "enter.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static const char MAGIC[] = "hpcwrap-entry-1";
static const char MARK[] = "HPCWRAP_CONTAINER";
enum { LARGEST = 1 << 20, NSFS = 0x6e736673 /* linux/magic.h */ };

enum verb { CONTAINER, USER_NAMESPACE, MOUNT_NAMESPACE, CGROUP_NAMESPACE, WORKDIR, RLIMIT, DEFAULT,
            PATH, SET, UNSET, PREPEND, APPEND, RENUMBER, NOTE, END };

static const struct {
    const char *word;
    int arguments;
} VERBS[] = {
    [CONTAINER] = {"container", 1},
    [USER_NAMESPACE] = {"user-namespace", 1},
    [MOUNT_NAMESPACE] = {"mount-namespace", 1},
    [CGROUP_NAMESPACE] = {"cgroup-namespace", 0},
    [WORKDIR] = {"workdir", 1},
    [RLIMIT] = {"rlimit", 3},
    [DEFAULT] = {"default", 2},
    [PATH] = {"path", 1},
    [SET] = {"set", 2},
    [UNSET] = {"unset", 1},
    [PREPEND] = {"prepend", 2},
    [APPEND] = {"append", 2},
    [RENUMBER] = {"renumber", 2},
    [NOTE] = {"note", 3},
    [END] = {"end", 0},
};
enum { VERB_COUNT = sizeof VERBS / sizeof *VERBS };

struct instruction {
    enum verb verb;
    const char *name; /* its first argument */
    const char *value;
    const char *hard; /* of a limit, whose value is the soft one; of a note, its text */
};

__attribute__((format(printf, 2, 3))) static int fail(char *error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, ENTER_ERROR_SIZE, format, arguments);
    va_end(arguments);
    return -1;
}

/* ---- reading the record ---- */

/* Read a whole file of the job's directory, NUL-terminated; NULL with errno set. */
static char *read_whole(int directory, const char *name, size_t *size)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return NULL;
    struct stat status;
    char *text = NULL;
    ssize_t length = -1;
    if (fstat(fd, &status) == 0 && status.st_size <= LARGEST) {
        text = malloc((size_t)status.st_size + 1);
        if (text)
            length = read(fd, text, (size_t)status.st_size);
    } else {
        errno = EFBIG;
    }
    int reason = errno;
    close(fd);
    if (length < 0) {
        free(text);
        errno = reason;
        return NULL;
    }
    text[length] = '\0';
    *size = (size_t)length;
    return text;
}

/* Take the instruction at `at`; returns where the next one begins, NULL if this one is broken. */
static const char *next_instruction(const char *at, const char *limit, struct instruction *found)
{
    const char *arguments[3] = {"", "", ""};
    for (int verb = 0; at < limit && verb < VERB_COUNT; verb++) {
        if (strcmp(at, VERBS[verb].word) != 0)
            continue;
        at += strlen(at) + 1;
        for (int i = 0; i < VERBS[verb].arguments; i++) {
            if (at >= limit)
                return NULL;
            arguments[i] = at;
            at += strlen(at) + 1;
        }
        *found = (struct instruction){(enum verb)verb, arguments[0], arguments[1],
                                      arguments[2]};
        return at;
    }
    return NULL;
}

static bool changes_variable(enum verb verb)
{
    return verb == DEFAULT || verb == SET || verb == UNSET || verb == PREPEND || verb == APPEND ||
           verb == RENUMBER;
}

/* A pin of a mount namespace is not copied into others (namespaces(7)): where Slurm has started
 * slurmstepd in one of its own (job_container.conf, EntireStepInNS), an empty file is in its place. */
static int open_pin(const char *path)
{
    char hosts[PATH_MAX];
    struct statfs status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (fstatfs(fd, &status) == 0 && status.f_type == NSFS))
        return fd;
    snprintf(hosts, sizeof hosts, "%s%s", ENTER_HOST, path);
    int pin = open(hosts, O_RDONLY | O_CLOEXEC);
    /* Without root's rights: hpcwrap-enter may have been given the namespace as a descriptor. */
    if (pin < 0)
        return fd;
    close(fd);
    return pin;
}

static int open_namespace(int *fd, const char *path, char *error)
{
    if (*fd >= 0)
        return fail(error, "cannot read the record of the container: it names two namespaces");
    *fd = open_pin(path);
    if (*fd < 0)
        return fail(error, "cannot open the container's namespace %s: %s", path, strerror(errno));
    return 0;
}

static int take(struct entry *entry, const struct instruction *instruction, char *error)
{
    switch (instruction->verb) {
    case CONTAINER:
        entry->container = instruction->name;
        return 0;
    case WORKDIR:
        entry->workdir = instruction->name;
        return 0;
    case USER_NAMESPACE:
        return open_namespace(&entry->user_namespace, instruction->name, error);
    case MOUNT_NAMESPACE:
        return open_namespace(&entry->mount_namespace, instruction->name, error);
    case CGROUP_NAMESPACE:
        entry->cgroup_namespace = true;
        return 0;
    default:
        if (changes_variable(instruction->verb) &&
            (*instruction->name == '\0' || strchr(instruction->name, '=')))
            return fail(error, "cannot use the record of the container: bad variable name");
        return 0;
    }
}

static int parse(struct entry *entry, size_t size, char *error)
{
    const char *limit = entry->limit = entry->text + size;
    struct instruction found = {.verb = CONTAINER};
    if (size == 0 || limit[-1] != '\0' || strcmp(entry->text, MAGIC) != 0)
        return fail(error, "cannot read the record of the container: it is not of this version");
    entry->first = entry->text + sizeof MAGIC;
    for (const char *at = entry->first; found.verb != END;) {
        at = next_instruction(at, limit, &found);
        if (!at || (found.verb == END && at != limit))
            return fail(error, "cannot read the record of the container: it is broken or cut off");
        if (take(entry, &found, error) < 0)
            return -1;
    }
    if (!entry->container || entry->mount_namespace < 0)
        return fail(error, "cannot read the record of the container: it names no container");
    return 0;
}

/* The sentence of a failed prolog, if it left one: its first line. */
static int check_prolog(int directory, char *error)
{
    size_t size;
    char *text = read_whole(directory, "error", &size);
    if (!text && errno == ENOENT)
        return 0;
    if (text)
        text[strcspn(text, "\n")] = '\0';
    fail(error, "%s", text && *text ? text : "the prolog failed on this node without a reason");
    free(text);
    return -1;
}

int enter_open(struct entry *entry, int directory, char *error)
{
    size_t size;
    *entry = (struct entry){.user_namespace = -1, .mount_namespace = -1};
    if (check_prolog(directory, error) < 0)
        return -1;
    entry->text = read_whole(directory, "entry", &size);
    if (!entry->text)
        return fail(error, "cannot read the record of the container: %s", strerror(errno));
    return parse(entry, size, error);
}

void enter_close(struct entry *entry)
{
    free(entry->text);
    if (entry->user_namespace >= 0)
        close(entry->user_namespace);
    if (entry->mount_namespace >= 0)
        close(entry->mount_namespace);
    *entry = (struct entry){.user_namespace = -1, .mount_namespace = -1};
}

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
        at = next_instruction(at, entry->limit, &found);
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
        at = next_instruction(at, entry->limit, &found);
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
        at = next_instruction(at, entry->limit, &instruction);
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
        at = next_instruction(at, entry->limit, &found);
        const char *value = at && found.verb == NOTE
                                ? variables->get(variables->where, found.name) : NULL;
        if (value && strncmp(value, found.value, strlen(found.value)) == 0)
            return found.hard;
    }
    return NULL;
}
