/* The SPANK plugin: carries `--container=NAME` to the prolog, and lets each rank join.
 *
 * client (sbatch, salloc, srun)  init_post_opt         the name goes into the job's control
 *                                                      environment, which only the prolog sees, or
 *                                                      into the step's, which only enter sees
 * slurmstepd                     init                  as root, still in the host's namespaces:
 *                                                      read the record, open the namespaces; for a
 *                                                      step that asks for another container than
 *                                                      its job's, run the prolog first
 *                                user_init             as the user: note the working directory
 *                                task_init_privileged  a rank, last thing as root: limits, join
 *                                task_post_fork        root again, beside it: the cgroups are there
 *                                task_init             the rank, as the user: environment
 *
 * Slurm drains the node when a hook before task_init fails (slurmctld proc_req.c, "batch job
 * complete failure"): so failures are only noted there, and raised in task_init, where they end the
 * rank.  Hooks return -1, never an ESPANK number, which up to 24.11 counts as success. */
#define _GNU_SOURCE
#include "enter.h"
#include "stage.h"
#include "view.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <slurm/slurm.h>
#include <slurm/slurm_version.h>
#include <slurm/spank.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CONTROL "HPCWRAP_CONTAINER"             /* the prolog sees it as SPANK_HPCWRAP_CONTAINER */
#define ASKED_BY_JOB "SLURM_SPANK_" CONTROL     /* and the job's steps so */
#define ASKED_BY_STEP "SLURM_HPCWRAP_STEP_CONTAINER" /* SLURM_*: survives --export=NONE */
#define INSIDE CONTROL                          /* in a rank's environment: in which it runs */
#define HETEROGENEOUS "SLURM_HET_SIZE"
#define PROPAGATED "SLURM_RLIMIT_"              /* limits of the submit host, for the ranks */

#pragma GCC visibility push(default)
SPANK_PLUGIN(hpcwrap, 1)
int slurm_spank_init(spank_t spank, int count, char **arguments);
int slurm_spank_init_post_opt(spank_t spank, int count, char **arguments);
int slurm_spank_user_init(spank_t spank, int count, char **arguments);
int slurm_spank_task_init_privileged(spank_t spank, int count, char **arguments);
int slurm_spank_task_post_fork(spank_t spank, int count, char **arguments);
int slurm_spank_task_init(spank_t spank, int count, char **arguments);
#pragma GCC visibility pop

/* `hpcwrap setup slurm` finds this in the file: Slurm loads a plugin of its own release only. */
#define TEXT(number) #number
#define BUILT_FOR(number) "built for Slurm " TEXT(number)
__attribute__((used)) static const char built_for[] = BUILT_FOR(SLURM_VERSION_NUMBER);

static const char *jobs = "/run/hpcwrap/jobs";

/* Seconds for the prolog of a step's own container.  A step that is cancelled meanwhile drains the
 * node after UnkillableStepTimeout, 60 s (slurmstepd step_terminate_monitor.c). */
static int patience = 45;
enum { MOST_PATIENCE = 3600 };

/* ---- the client ---- */

/* Slurm has no SPANK item for its own options, but its clients export the option table and its
 * accessors, which have kept their names from 22.05 to 26.05. */
struct option_table {
    void *options;
    char *(*get)(void *options, const char *name);
    bool (*reset)(void *options, const char *name);
    bool (*is_set)(void *options, const char *name);
};

static bool find_options(struct option_table *table)
{
    table->options = dlsym(RTLD_DEFAULT, "opt");
    *(void **)&table->get = dlsym(RTLD_DEFAULT, "slurm_option_get");
    *(void **)&table->reset = dlsym(RTLD_DEFAULT, "slurm_option_reset");
    *(void **)&table->is_set = dlsym(RTLD_DEFAULT, "slurm_option_isset");
    return table->options && table->get && table->reset && table->is_set;
}

/* A step of a job that exists already: its slurmstepd sees to it (find_own).  For a step over several
 * components of a heterogeneous job, srun calls once for each, and sends the same environment to
 * all. */
static int carry_to_step(const char *name)
{
    static int calls;
    const char *before = getenv(ASKED_BY_STEP);
    if (calls++ > 0 && strcmp(before ? before : "", name ? name : "") != 0) {
        slurm_error("hpcwrap: cannot name a container for each component of a step "
                    "(leave --container out: each runs in the one that its job has there)");
        return -1;
    }
    if (name)
        setenv(ASKED_BY_STEP, name, 1);
    else
        unsetenv(ASKED_BY_STEP);
    return 0;
}

/* A new job.  What a surrounding job left in the environment must not pass for its request. */
static int carry_to_job(spank_t spank, const char *name)
{
    unsetenv(ASKED_BY_JOB);
    unsetenv(ASKED_BY_STEP);
    unsetenv(HETEROGENEOUS);
    if (!name) {
        spank_job_control_unsetenv(spank, CONTROL);
        unsetenv("SLURM_CONTAINER");
        return 0;
    }
    if (spank_job_control_setenv(spank, CONTROL, name, 1) != ESPANK_SUCCESS) {
        slurm_error("hpcwrap: cannot carry the container %s to the job", name);
        return -1;
    }
    setenv("SLURM_CONTAINER", name, 1);
    setenv(ASKED_BY_JOB, name, 1); /* sbatch would do it, salloc would not */
    return 0;
}

/* Without this file Slurm ignores the path of a bundle, and would run the job on the host. */
static bool has_oci_conf(void)
{
    char path[PATH_MAX];
    const char *conf = getenv("SLURM_CONF");
    const char *end = conf ? strrchr(conf, '/') : NULL;
    if (end)
        snprintf(path, sizeof path, "%.*s/oci.conf", (int)(end - conf), conf);
    return access(end ? path : "/etc/slurm/oci.conf", F_OK) == 0;
}

/* The path of an OCI bundle is Slurm's own business, where Slurm has one.  All else is carried and
 * checked by submit/slurm.lua and the prolog: the site may allow users their own images, which are
 * references and paths, too; where Slurm takes bundles, they are those with a word before a colon,
 * as sif:/PATH and docker://NAME. */
static bool is_bundle(const char *name)
{
    const char *slash = strchr(name, '/');
    const char *colon = strchr(name, ':');
    return slash && (!colon || colon > slash) && has_oci_conf();
}

static int carry(spank_t spank, const struct option_table *table)
{
    static const char *before;
    bool srun = spank_context() == S_CTX_LOCAL;
    bool in_job = srun && table->is_set(table->options, "jobid");
    const char *name = table->get(table->options, "container");
    if (name && *name == '\0') {
        slurm_error("hpcwrap: --container is empty (name an environment, as --container=debian-12)");
        return -1;
    }
    if (name && is_bundle(name))
        name = NULL;
    /* From 23.02 on a step with a container and no oci.conf breaks PMIx (pmixp_info.c), and no step
     * of ours has its container from Slurm. */
    if (srun && name)
        table->reset(table->options, "container");
    if (in_job)
        return carry_to_step(name);
    /* Slurm keeps the option for the components that follow, unless it has been reset. */
    before = name = name ? name : before;
    return carry_to_job(spank, name);
}

int slurm_spank_init_post_opt(spank_t spank, int count, char **arguments)
{
    struct option_table table;
    (void)count, (void)arguments;
    if (spank_context() != S_CTX_LOCAL && spank_context() != S_CTX_ALLOCATOR)
        return 0;
    if (find_options(&table))
        return carry(spank, &table);
    if (!getenv("SLURM_CONTAINER")) /* set by the client's own option parser */
        return 0;
    slurm_error("hpcwrap: cannot read --container in this release of Slurm");
    return -1;
}

/* ---- slurmstepd: what its hooks leave for the next ---- */

static struct {
    bool wanted; /* this step runs in a container, or fails */
    bool joined;
    struct entry entry;
    struct view view;
    int timing; /* append-only file, -1 = none */
    int lock;   /* root's alone: a lock on what the user may read could be the user's, fcntl(2) */
    long microseconds;
    char directory[PATH_MAX]; /* the step's, on the host */
    char error[ENTER_ERROR_SIZE];
} step = {.timing = -1, .lock = -1};

static const char *get_variable(void *where, const char *name)
{
    char **variables = NULL;
    size_t length = strlen(name);
    if (spank_get_item(where, S_JOB_ENV, &variables) != ESPANK_SUCCESS)
        return NULL;
    for (; variables && *variables; variables++)
        if (strncmp(*variables, name, length) == 0 && (*variables)[length] == '=')
            return *variables + length + 1;
    return NULL;
}

static bool set_variable(void *where, const char *name, const char *value)
{
    errno = ENOMEM;
    return spank_setenv(where, name, value, 1) == ESPANK_SUCCESS;
}

static bool unset_variable(void *where, const char *name)
{
    errno = EINVAL;
    return spank_unsetenv(where, name) == ESPANK_SUCCESS;
}

/* ---- slurmstepd: init, as root on the host ---- */

/* What the job asked for, as far as this step's environment can tell: that of a heterogeneous job's
 * steps goes to all components, and speaks of one; only the batch script's was made for its own. */
static const char *asked_by_job(spank_t spank, uint32_t number)
{
    if (number != SLURM_BATCH_SCRIPT && get_variable(spank, HETEROGENEOUS))
        return NULL;
    return get_variable(spank, ASKED_BY_JOB);
}

static void note_missing_record(spank_t spank, uint32_t number, int reason)
{
    const char *name = asked_by_job(spank, number);
    if (reason == ENOENT && (!name || strcmp(name, "none") == 0))
        return;
    step.wanted = true;
    if (reason != ENOENT)
        snprintf(step.error, sizeof step.error, "cannot open the job's record in %s: %s", jobs,
                 strerror(reason));
    else
        snprintf(step.error, sizeof step.error,
                 "cannot find the container %s: the prolog left no record on this node "
                 "(the site's Prolog and PrologFlags=Alloc must be set)", name);
}

/* Opened here, for a path of the host's may mean nothing later. */
static void take_record(int directory)
{
    step.wanted = true;
    view_look(&step.view);
    if (enter_open(&step.entry, directory, step.error) == 0) {
        step.timing = openat(directory, "timing", O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
        step.lock = openat(directory, "leases", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    }
    close(directory);
}

static void read_record(spank_t spank, uint32_t job, uint32_t number)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%u", jobs, job);
    int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        note_missing_record(spank, number, errno);
    else
        take_record(directory);
}

/* ---- slurmstepd: init, for a container of the step's own ---- */

/* The name of a container that is not the job's, or NULL: a step without a word of its own has its
 * job's, and what went wrong with that is the step's end, too. */
static const char *find_own(spank_t spank, uint32_t number)
{
    const char *name = get_variable(spank, ASKED_BY_STEP);
    if (number == SLURM_BATCH_SCRIPT || !name || strcmp(name, "none") == 0 || step.error[0])
        return NULL;
    return step.wanted && enter_is_named(&step.entry, name) ? NULL : name;
}

static void leave_jobs_record(void)
{
    if (!step.wanted)
        return;
    enter_close(&step.entry);
    if (step.timing >= 0)
        close(step.timing);
    if (step.lock >= 0)
        close(step.lock);
    step.timing = step.lock = -1;
}

/* Nothing ends it with the step, for whatever slurmstepd waits for, the job's next step waits for: a
 * sweep of the next prolog does, for this process is its owner, or the job's epilog. */
static void make_own(spank_t spank, uint32_t job, uint32_t number, const char *name)
{
    char path[PATH_MAX];
    const struct stage stage = {spank, job, number, name, patience};
    const struct variables asked = {.get = get_variable, .where = spank};
    leave_jobs_record();
    step.wanted = true;
    if (stage_prolog(&stage, &asked, step.error) < 0)
        return;
    snprintf(path, sizeof path, "%s/%u.%u", jobs, job, number);
    int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0)
        take_record(directory);
    else
        snprintf(step.error, sizeof step.error, "cannot open the step's record in %s: %m", jobs);
}

/* ---- plugstack.conf ---- */

static void set_patience(const char *text)
{
    char *end;
    long seconds = strtol(text, &end, 10);
    if (*text && !*end && seconds > 0 && seconds <= MOST_PATIENCE)
        patience = (int)seconds;
    else
        slurm_error("hpcwrap: cannot use patience=%s in plugstack.conf (seconds, %d at most)", text,
                    MOST_PATIENCE);
}

static void read_argument(const char *argument)
{
    if (strncmp(argument, "jobs=", 5) == 0)
        jobs = argument + 5;
    else if (strncmp(argument, "patience=", 9) == 0)
        set_patience(argument + 9);
    else
        slurm_error("hpcwrap: unknown argument %s in plugstack.conf", argument);
}

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
    uint32_t job, number;
    for (int i = 0; i < count; i++)
        read_argument(arguments[i]);
    if (spank_context() != S_CTX_REMOTE ||
        spank_get_item(spank, S_JOB_ID, &job) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_STEPID, &number) != ESPANK_SUCCESS)
        return 0;
    /* The extern step starts no rank and must not keep the container from ending with the job. */
    if (number == SLURM_EXTERN_CONT)
        return 0;
    read_record(spank, job, number);
    const char *own = find_own(spank, number);
    if (own)
        make_own(spank, job, number, own);
    return 0;
}

int slurm_spank_user_init(spank_t spank, int count, char **arguments)
{
    uint32_t job;
    (void)count, (void)arguments;
    if (!step.wanted)
        return 0;
    if (!getcwd(step.directory, sizeof step.directory))
        step.directory[0] = '\0';
    /* task/cgroup has moved slurmstepd into the step's cgroups by now (mgr.c, task_g_pre_setuid). */
    if (spank_get_item(spank, S_JOB_ID, &job) == ESPANK_SUCCESS)
        view_note_cgroups(&step.view, job);
    if (!view_prepare(&step.view))
        snprintf(step.error, sizeof step.error, "cannot make a pipe: %m");
    return 0;
}

/* ---- slurmstepd: in the process of a rank ---- */

/* With what Slurm has made for this job alone: the rank is in its namespaces and cgroups. */
static bool join(void)
{
    const char *missed = view_take(&step.view);
    if (!missed && enter_join(&step.entry, step.error) < 0)
        return false;
    if (!missed)
        missed = view_show(&step.view, step.lock);
    if (missed)
        snprintf(step.error, sizeof step.error, "cannot show the job's own %s in the container: %m",
                 missed);
    return !missed;
}

int slurm_spank_task_init_privileged(spank_t spank, int count, char **arguments)
{
    struct timespec before, after;
    (void)spank, (void)count, (void)arguments;
    if (!step.wanted || step.error[0])
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &before);
    step.joined = enter_limits(&step.entry, step.error) == 0 && join();
    clock_gettime(CLOCK_MONOTONIC, &after);
    step.microseconds = (after.tv_sec - before.tv_sec) * 1000000L +
                        (after.tv_nsec - before.tv_nsec) / 1000;
    return 0;
}

int slurm_spank_task_post_fork(spank_t spank, int count, char **arguments)
{
    static uint32_t forked;
    uint32_t ranks;
    (void)count, (void)arguments;
    if (step.wanted && spank_get_item(spank, S_JOB_LOCAL_TASK_COUNT, &ranks) == ESPANK_SUCCESS &&
        ++forked == ranks)
        view_begin(&step.view);
    return 0;
}

static void check_step_request(spank_t spank)
{
    const char *name = get_variable(spank, ASKED_BY_STEP);
    if (step.error[0] == '\0' && name && strcmp(name, "none") == 0)
        snprintf(step.error, sizeof step.error,
                 "cannot run this step without a container: its job has %s "
                 "(a step may have another one, and not none)", step.entry.container);
    if (step.error[0] == '\0' && !step.joined)
        snprintf(step.error, sizeof step.error, "cannot join the container on this node");
}

static bool is_first_rank(spank_t spank)
{
    uint32_t rank = 0;
    return spank_get_item(spank, S_TASK_GLOBAL_ID, &rank) == ESPANK_SUCCESS && rank == 0;
}

/* Slurm has gone to /tmp, or stayed in the root, when the step's directory is not in the container
 * (slurmstepd mgr.c, _pre_task_child_privileged): then the environment's own is the better place. */
static void keep_directory(spank_t spank)
{
    char inside[PATH_MAX];
    const char *workdir = step.entry.workdir;
    if (!getcwd(inside, sizeof inside) || strcmp(inside, step.directory) == 0 ||
        (strcmp(inside, "/tmp") != 0 && strcmp(inside, "/") != 0))
        return;
    if (workdir && chdir(workdir) < 0)
        slurm_error("hpcwrap: cannot change to the directory %s of the container", workdir);
    else if (is_first_rank(spank))
        slurm_error("hpcwrap: warning: the directory %s is not in the container: started in %s",
                    step.directory, workdir ? workdir : inside);
}

/* One write, for the ranks of a node share the file. */
static void note_timing(spank_t spank)
{
    char line[64];
    uint32_t rank = 0;
    if (step.timing < 0 || spank_get_item(spank, S_TASK_GLOBAL_ID, &rank) != ESPANK_SUCCESS)
        return;
    int length = snprintf(line, sizeof line, "join %u %ld\n", rank, step.microseconds);
    if (write(step.timing, line, (size_t)length) < 0)
        slurm_debug("hpcwrap: cannot note the time of rank %u", rank);
}

/* Once for a step, and only where several ranks are to find each other. */
static void tell_note(spank_t spank, const struct variables *variables)
{
    uint32_t ranks = 0;
    const char *note = enter_note(&step.entry, variables);
    if (note && is_first_rank(spank) &&
        spank_get_item(spank, S_JOB_TOTAL_TASK_COUNT, &ranks) == ESPANK_SUCCESS && ranks > 1)
        slurm_error("hpcwrap: warning: %s", note);
}

int slurm_spank_task_init(spank_t spank, int count, char **arguments)
{
    struct variables job = {get_variable, set_variable, unset_variable, spank};
    (void)count, (void)arguments;
    if (!step.wanted) {
        unset_variable(spank, INSIDE); /* submitted from inside another job's container */
        return 0;
    }
    check_step_request(spank);
    if (step.error[0] || enter_environment(&step.entry, &job, step.error) < 0) {
        slurm_error("hpcwrap: %s", step.error);
        return -1;
    }
    /* slurmstepd sets the soft limits of the submit host after this hook (ulimits.c), over ours. */
    enter_forget_limits(&step.entry, &job, PROPAGATED);
    tell_note(spank, &job);
    keep_directory(spank);
    note_timing(spank);
    return 0;
}
