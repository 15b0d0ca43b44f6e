/* hpcwrap-singularity WORD...
 *
 * What HTCondor's SINGULARITY names: becomes hpcwrap/hooks/enter_htcondor.py, run by the Python of
 * the installation that it lies in (PREFIX/libexec/hpcwrap).  It runs on the host as the job's user
 * with the job's variables, which are for programs of the image; so it is static, and hides those
 * of them that say what a program loads.
 *
 * docs/decisions/0106-what-a-jobs-variables-load.md */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILED = 125, LEVELS = 3, OWN_WORDS = 4, PATH_SIZE = 4096 };

static const char CODE[] =
    "from hpcwrap.hook import main; main('hooks.enter_htcondor', 'start')";
static const char PYTHON[] = "/bin/python3";

/* The starter's prefix for what a variable is inside (Apptainer's): there they are found again. */
static const char INSIDE[] = "APPTAINERENV_";

/* How the variables begin that say what the loader, the C library, OpenSSL, Python and shells load:
 * ld.so(8), glibc's list of what it ignores in set-user-id programs, openssl-env(7), bash(1). */
static const char *const LOADING[] = {"LD_",     "GLIBC_TUNABLES=", "GCONV_PATH=", "LOCPATH=",
                                      "MALLOC_", "OPENSSL_",        "PYTHON",      "BASH_ENV=",
                                      "ENV=",    NULL};

__attribute__((noreturn)) static void die(const char *what)
{
    fprintf(stderr, "hpcwrap-singularity: cannot start %s: %s\n", what, strerror(errno));
    exit(FAILED);
}

static bool loads(const char *variable)
{
    for (const char *const *start = LOADING; *start; start++)
        if (strncmp(variable, *start, strlen(*start)) == 0)
            return true;
    return false;
}

/* Whether the variable has a value of its own inside. */
static bool is_given_inside(const char *variable)
{
    size_t prefix = strlen(INSIDE), name = strcspn(variable, "=") + 1;
    for (char **other = environ; *other; other++)
        if (strncmp(*other, INSIDE, prefix) == 0 && strncmp(*other + prefix, variable, name) == 0)
            return true;
    return false;
}

static char *rename_inside(const char *variable)
{
    char *renamed;
    if (asprintf(&renamed, "%s%s", INSIDE, variable) < 0)
        die("a job with so many variables");
    return renamed;
}

static char **hide_loading(void)
{
    size_t count = 0;
    while (environ[count])
        count++;
    char **hidden = calloc(count + 1, sizeof *hidden), **end = hidden;
    if (!hidden)
        die("a job with so many variables");
    for (char **variable = environ; *variable; variable++)
        if (!loads(*variable))
            *end++ = *variable;
        else if (!is_given_inside(*variable))
            *end++ = rename_inside(*variable);
    return hidden;
}

static void find_python(char *path)
{
    ssize_t length = readlink("/proc/self/exe", path, PATH_SIZE - sizeof PYTHON);
    if (length < 0)
        die(PYTHON);
    path[length] = '\0';
    for (int level = 0; level < LEVELS; level++)
        if (strrchr(path, '/'))
            *strrchr(path, '/') = '\0';
    strcat(path, PYTHON);
}

int main(int count, char **arguments)
{
    char python[PATH_SIZE], **words = calloc((size_t)count + OWN_WORDS, sizeof *words);
    if (!words)
        die("a job with so many words");
    find_python(python);
    words[0] = python;
    words[1] = "-I";
    words[2] = "-c";
    words[3] = (char *)CODE;
    for (int word = 1; word < count; word++)
        words[OWN_WORDS - 1 + word] = arguments[word];
    execve(python, words, hide_loading());
    die(python);
}
