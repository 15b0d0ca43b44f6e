#define _GNU_SOURCE
#include "entry.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static const char MAGIC[] = "hpcwrap-entry-1";
enum { LARGEST = 1 << 20, NSFS = 0x6e736673 /* linux/magic.h */ };

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

int fail(char *error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, ENTER_ERROR_SIZE, format, arguments);
    va_end(arguments);
    return -1;
}

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

const char *entry_next(const char *at, const char *limit, struct instruction *found)
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
        at = entry_next(at, limit, &found);
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
