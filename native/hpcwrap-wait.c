/* hpcwrap-wait DESCRIPTOR COMMAND [ARGUMENT...]
 *
 * Waits until the process behind a descriptor of pidfd_open(2) has ended, and becomes the command.
 * It is what there is of hpcwrap on a node while a job runs whose scheduler tells nobody of its end:
 * one page of memory, asleep.  docs/decisions/0090-grid-engine-by-the-shepherd.md */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILED = 125 };

int main(int count, char **arguments)
{
    if (count < 3) {
        fprintf(stderr, "usage: hpcwrap-wait DESCRIPTOR COMMAND [ARGUMENT...]\n");
        return FAILED;
    }
    struct pollfd process = {.fd = atoi(arguments[1]), .events = POLLIN};
    while (poll(&process, 1, -1) < 0 && errno == EINTR)
        continue;
    close(process.fd);
    execv(arguments[2], arguments + 2);
    fprintf(stderr, "hpcwrap-wait: cannot start %s: %s\n", arguments[2], strerror(errno));
    return FAILED;
}
