/* The prolog of a container that a step has for itself: Slurm has none for steps. */
#ifndef HPCWRAP_STAGE_H
#define HPCWRAP_STAGE_H

#include "enter.h"

#include <slurm/spank.h>
#include <stdint.h>

struct stage {
    spank_t spank; /* in slurmstepd, as root on the host, before the first rank */
    uint32_t job;
    uint32_t number;       /* the step's */
    const char *container; /* as the step asks for it */
    int patience;          /* seconds to wait */
};

/* Run the prolog of the installation that this plugin is part of, for a step with these variables, and
 * wait for its end; one that takes longer goes on by itself.  0, or -1 with one sentence in `error`
 * (ENTER_ERROR_SIZE bytes). */
int stage_prolog(const struct stage *stage, const struct variables *asked, char *error);

#endif
