/* hpcwrap-launch [OPTION…] [USER@]HOST COMMAND…
 *
 * ssh's place for the launchers of MPI: runs a command on another node of the job, in the container
 * there, by the scheduler's own launcher.  How that is called, and which nodes the job has, is in
 * the file below, which the prolog wrote: NUL-terminated pairs of a verb and its argument.
 *
 *   unset NAME   a variable that the launcher must not see
 *   word TEXT    a word of the launcher's command line: %h in it is the host, a whole %c the command
 *   node NAME    a node of the job; without any, the launcher itself refuses strangers
 *
 * Ends with the command's exit code, or with 255, as ssh does, when it could not be started.
 * docs/decisions/0083-mpirun-by-the-schedulers-launcher.md */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char SETTINGS[] = "/.hpcwrap/launcher";
/* ssh(1), those of OpenSSH 10: what they ask for is the launcher's business. */
static const char FLAGS[] = "1246AaCGgKkMNqsTtVvXxYy";
static const char USAGE[] = "usage: hpcwrap-launch [OPTION...] [USER@]HOST COMMAND...";
static const char WITH_ARGUMENT[] = "BbcDEeFIiJLmOopPQRSWw";
/* From 23.11 on Slurm has Hydra say this to its launcher, whichever it is, as an argument of srun's
 * (HYDRA_LAUNCHER_EXTRA_ARGS). */
static const char OF_SRUN[] = "--external-launcher";
enum { FAILED = 255, LARGEST = 1 << 26, MOST_WORDS = 64 };

struct request {
    const char *host;
    char *command;
    bool no_input;
};

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list arguments;
    fputs("hpcwrap-launch: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(FAILED);
}

static void *need_memory(void *found)
{
    if (!found)
        die("cannot launch: there is no memory left");
    return found;
}

/* ---- ssh's command line ---- */

static void check_user(const char *name)
{
    const char *own = getenv("USER");
    if (!own || strcmp(own, name) != 0)
        die("cannot run as %s on another node: a job's processes all belong to its user", name);
}

/* One word of options, as -qn or -l NAME; returns how many words it took. */
static int take_option(struct request *request, const char *word, const char *next)
{
    for (const char *letter = word + 1; *letter; letter++) {
        const char *value = letter[1] ? letter + 1 : next;
        if (*letter == 'n')
            request->no_input = true;
        else if (*letter == 'l' || strchr(WITH_ARGUMENT, *letter)) {
            if (!value)
                die("cannot read the option -%c: its value is missing", *letter);
            if (*letter == 'l')
                check_user(value);
            return letter[1] ? 1 : 2;
        } else if (!strchr(FLAGS, *letter))
            die("cannot use ssh's option -%c here", *letter);
    }
    return 1;
}

/* ssh joins the words by spaces, and the shell of the other side takes them apart again. */
static char *join(char **words)
{
    size_t size = 1;
    for (char **word = words; *word; word++)
        size += strlen(*word) + 1;
    char *joined = need_memory(calloc(1, size)), *end = joined;
    for (char **word = words; *word; word++)
        end = stpcpy(stpcpy(end, word == words ? "" : " "), *word);
    return joined;
}

static struct request read_request(char **words)
{
    struct request request = {NULL, NULL, false};
    while (*words && **words == '-' && strcmp(*words, "--") != 0)
        words += strcmp(*words, OF_SRUN) == 0 ? 1 : take_option(&request, *words, words[1]);
    if (*words && strcmp(*words, "--") == 0)
        words++;
    if (!*words || !words[1])
        die("%s (as ssh, with a command)", USAGE);
    char *at = strrchr(*words, '@');
    if (at) {
        *at = '\0';
        check_user(*words);
    }
    request.host = at ? at + 1 : *words;
    request.command = join(words + 1);
    return request;
}

/* ---- how the scheduler launches ---- */

static char *read_settings(size_t *size)
{
    struct stat status;
    int fd = open(SETTINGS, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die("cannot launch from here: %s: %s", SETTINGS, strerror(errno));
    if (fstat(fd, &status) < 0 || status.st_size > LARGEST)
        die("cannot read %s", SETTINGS);
    char *text = need_memory(malloc((size_t)status.st_size + 2));
    size_t length = 0;
    for (ssize_t got = 1; got > 0; length += (size_t)got)
        if ((got = read(fd, text + length, (size_t)status.st_size - length)) < 0)
            die("cannot read %s: %s", SETTINGS, strerror(errno));
    close(fd);
    text[length] = text[length + 1] = '\0'; /* the last pair ends, whatever was cut off */
    *size = length;
    return text;
}

/* Schedulers know nodes by their short names or by their long ones, programs by either. */
static bool is_same_node(const char *one, const char *other)
{
    size_t length = strcspn(one, ".");
    if (strcmp(one, other) == 0)
        return true;
    bool both_long = one[length] && other[strcspn(other, ".")];
    return !both_long && length == strcspn(other, ".") && strncmp(one, other, length) == 0;
}

static char *fill_in(const char *word, const struct request *request)
{
    const char *hole = strstr(word, "%h");
    char *filled = NULL;
    if (strcmp(word, "%c") == 0)
        return request->command;
    if (!hole)
        return need_memory(strdup(word));
    if (asprintf(&filled, "%.*s%s%s", (int)(hole - word), word, request->host, hole + 2) < 0)
        filled = NULL;
    return need_memory(filled);
}

/* The scheduler's own name for the host; a job has the nodes that it has, and no others. */
static void find_node(struct request *request, const char *text, size_t size)
{
    bool any = false;
    for (const char *at = text; at < text + size;) {
        const char *value = at + strlen(at) + 1;
        bool node = strcmp(at, "node") == 0;
        if (node && is_same_node(request->host, value)) {
            request->host = value;
            return;
        }
        any |= node;
        at = value + strlen(value) + 1;
    }
    if (any)
        die("cannot launch on %s: it is not a node of this job", request->host);
}

static void make_command(char **command, const char *text, size_t size,
                         const struct request *request)
{
    int count = 0;
    for (const char *at = text; at < text + size;) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, "unset") == 0)
            unsetenv(value);
        if (strcmp(at, "word") == 0 && count < MOST_WORDS)
            command[count++] = fill_in(value, request);
        at = value + strlen(value) + 1;
    }
    command[count] = NULL;
}

int main(int count, char **arguments)
{
    char *command[MOST_WORDS + 1];
    size_t size;
    if (count > 1 && strcmp(arguments[1], "--help") == 0)
        return puts(USAGE) < 0 ? FAILED : 0;
    struct request request = read_request(arguments + (count > 0));
    char *text = read_settings(&size);
    find_node(&request, text, size);
    make_command(command, text, size, &request);
    if (!command[0])
        die("cannot launch from here: %s names no launcher", SETTINGS);
    if (request.no_input) {
        int null = open("/dev/null", O_RDONLY);
        if (null < 0 || dup2(null, STDIN_FILENO) < 0)
            die("cannot open /dev/null: %s", strerror(errno));
    }
    execv(command[0], command);
    die("cannot execute %s: %s", command[0], strerror(errno));
}
