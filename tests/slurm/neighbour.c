/* A SPANK plugin of somebody else's: an option, and variables that say what its hooks saw. */
#include <slurm/spank.h>
#include <stdio.h>
#include <string.h>

#define WORDS_(name) #name
#define WORDS(name) WORDS_(name)
#define VARIABLE(what) "NEIGHBOUR_" WORDS(NAME) "_" what

SPANK_PLUGIN(NAME, 1)

static char said[64] = "nothing";
static char before[128], privileged[8] = "no";

static int take(int number, const char *text, int remote)
{
    (void)number, (void)remote;
    snprintf(said, sizeof said, "%s", text);
    return 0;
}

static struct spank_option option = {"say-" WORDS(NAME), "WORD", "a word for the neighbour", 1, 0,
                                     take};

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
    (void)count, (void)arguments;
    return spank_option_register(spank, &option) == ESPANK_SUCCESS ? 0 : -1;
}

int slurm_spank_task_init_privileged(spank_t spank, int count, char **arguments)
{
    (void)spank, (void)count, (void)arguments;
    strcpy(privileged, "yes");
    return 0;
}

int slurm_spank_task_init(spank_t spank, int count, char **arguments)
{
    (void)count, (void)arguments;
    if (spank_getenv(spank, "HPCWRAP_CONTAINER", before, sizeof before) != ESPANK_SUCCESS)
        strcpy(before, "none");
    spank_setenv(spank, VARIABLE("said"), said, 1);
    spank_setenv(spank, VARIABLE("privileged"), privileged, 1);
    spank_setenv(spank, VARIABLE("container"), before, 1);
    return 0;
}
