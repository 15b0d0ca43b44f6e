/* The prolog of a container that a step has for itself: Slurm has none for steps. */
#ifndef HPCWRAP_STAGE_H
#define HPCWRAP_STAGE_H

enum stage_end { STAGE_DONE, STAGE_FAILED, STAGE_AT_WORK };

/* Run the prolog of the installation that this plugin is part of, with these variables and no others,
 * and wait for its end, so many seconds at most: then it goes on by itself, AT_WORK.  Any other end
 * than DONE leaves one sentence in `error` (ENTER_ERROR_SIZE bytes). */
enum stage_end stage_prolog(char *const variables[], int seconds, char *error);

#endif
