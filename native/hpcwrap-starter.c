/* hpcwrap-starter COMMAND [ARGUMENT...]
 *
 * Grid Engine's starter_method (queue_conf(5)) for a job with a container: starts in it what the
 * shepherd would have started on the host, and as the shepherd would have.  It runs as the job's
 * user with the job's variables, and so is static: a user's LD_PRELOAD, which may name a library of
 * the image, is none of its business.
 *
 * docs/decisions/0090-grid-engine-by-the-shepherd.md */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILED = 125, PATH_SIZE = 4096, DIGITS = 10, MOST_WORDS = 8 };

static const char JOBS[] = "/run/hpcwrap/jobs/gridengine";
static const char PROGRAM[] = "hpcwrap-enter";
static const char *const LOGIN_SHELLS[] = {"sh", "bash", "dash", "ksh", "zsh", NULL};

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list arguments;
    fputs("hpcwrap-starter: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(FAILED);
}

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

/* A number that names a directory: nothing else may be in it. */
static const char *number(const char *name)
{
    const char *text = variable(name);
    size_t length = strlen(text);
    if (length == 0 || length > DIGITS || strspn(text, "0123456789") != length)
        die("cannot read the job's %s: %.20s", name, *text ? text : "it is not set");
    return text;
}

/* hpcwrap-enter lies beside this program. */
static void find_program(char *path)
{
    ssize_t length = readlink("/proc/self/exe", path, PATH_SIZE - sizeof PROGRAM - 1);
    char *slash = length > 0 ? memrchr(path, '/', (size_t)length) : NULL;
    if (!slash)
        die("cannot find %s: %s", PROGRAM, strerror(errno));
    strcpy(slash + 1, PROGRAM);
}

/* execd leaves the script of a batch job as job_scripts/NUMBER in its spool directory; with -b y
 * there is none, and the command is the user's own. */
static bool is_script(const char *command)
{
    static const char DIRECTORY[] = "/job_scripts/";
    const char *found = strstr(command, DIRECTORY);
    return found && strcmp(found + strlen(DIRECTORY), variable("JOB_ID")) == 0;
}

/* execvp(3) of the shepherd's C library hands a script without #! to the shell; musl's does not. */
static bool has_interpreter(const char *script)
{
    char mark[2] = "";
    int file = open(script, O_RDONLY | O_CLOEXEC);
    bool found = file >= 0 && read(file, mark, 2) == 2 && memcmp(mark, "#!", 2) == 0;
    if (file >= 0)
        close(file);
    return found;
}

static bool knows_login(const char *shell)
{
    const char *slash = strrchr(shell, '/');
    for (const char *const *name = LOGIN_SHELLS; *name; name++)
        if (strcmp(*name, slash ? slash + 1 : shell) == 0)
            return true;
    return false;
}

/* The shell and its options that stand before the script's name; how many words they are. */
static size_t choose_shell(char **words, const char *command)
{
    const char *mode = variable("SGE_STARTER_SHELL_START_MODE");
    char *shell = getenv("SGE_STARTER_SHELL_PATH");
    bool from_stdin = strcasecmp(mode, "script_from_stdin") == 0;
    bool by_shell = strcasecmp(mode, "posix_compliant") == 0 && is_script(command);
    if (!from_stdin && !by_shell) {
        words[0] = "/bin/sh";
        return is_script(command) && !has_interpreter(command) ? 1 : 0;
    }
    words[0] = shell ? shell : "/bin/sh";
    /* A leading - in the shell's own name would say so, too, but hpcwrap-enter passes none. */
    words[1] = "-l";
    bool is_login = strcmp(variable("SGE_STARTER_USE_LOGIN_SHELL"), "true") == 0;
    return is_login && knows_login(words[0]) ? 2 : 1;
}

/* Without a starter qrsh_starter would have the user's shell take the words apart, as rsh(1) does;
 * it passes no shell on, for it has one for batch jobs only. */
static char *join(char **words)
{
    size_t size = 1;
    for (char **word = words; *word; word++)
        size += strlen(*word) + 1;
    char *joined = calloc(1, size), *end = joined;
    if (!joined)
        die("cannot start: there is no memory left");
    for (char **word = words; *word; word++)
        end += sprintf(end, "%s%s", word == words ? "" : " ", *word);
    return joined;
}

/* What is Grid Engine's or the filter's word to us is not the job's. */
static void forget_starter(void)
{
    unsetenv("HPCWRAP_REQUEST");
    unsetenv("SGE_STARTER_SHELL_PATH");
    unsetenv("SGE_STARTER_SHELL_START_MODE");
    unsetenv("SGE_STARTER_USE_LOGIN_SHELL");
}

static bool is_remote(void)
{
    const char *shell = getenv("SGE_STARTER_SHELL_PATH");
    return shell && !*shell;
}

/* gridengine-JOB-TASK, with 0 where the job is no array. */
static void find_directory(char *path, size_t size)
{
    const char *task = variable("SGE_TASK_ID");
    bool is_array = *task && strcmp(task, "undefined") != 0;
    snprintf(path, size, "%s-%s-%s", JOBS, number("JOB_ID"),
             is_array ? number("SGE_TASK_ID") : "0");
}

/* What is to be started inside, behind `words`; NULL-terminated. */
static void add_command(char **words, char **command)
{
    if (is_remote()) {
        *words++ = "/bin/sh";
        *words++ = "-c";
        *words++ = join(command);
    } else {
        words += choose_shell(words, *command);
        while (*command)
            *words++ = *command++;
    }
    *words = NULL;
}

int main(int count, char **arguments)
{
    char program[PATH_SIZE], directory[sizeof JOBS + 2 * DIGITS + 3];
    if (count < 2)
        die("there is no command to start");
    char **words = calloc((size_t)count + MOST_WORDS, sizeof *words);
    if (!words)
        die("cannot start: there is no memory left");
    find_program(program);
    find_directory(directory, sizeof directory);
    words[0] = program;
    words[1] = directory;
    words[2] = "--";
    add_command(words + 3, arguments + 1);
    forget_starter();
    execv(program, words);
    die("cannot start %s: %s", program, strerror(errno));
}
