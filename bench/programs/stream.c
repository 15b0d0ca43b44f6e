/* Memory bandwidth of one process: a triad, a[i] = b[i] + s * c[i], over arrays that no cache holds.
 * Prints the best of all rounds in MB/s; 24 bytes are moved for each element, as STREAM counts it. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ELEMENTS = 16 << 20, ROUNDS = 20 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

int main(void)
{
    size_t size = ELEMENTS * sizeof(double);
    double *a = malloc(size), *b = malloc(size), *c = malloc(size), best = 1e9;
    if (!a || !b || !c)
        return EXIT_FAILURE;
    for (size_t i = 0; i < ELEMENTS; i++) {
        a[i] = 0;
        b[i] = (double)i;
        c[i] = 1;
    }
    for (int round = 0; round < ROUNDS; round++) {
        double start = now();
        for (size_t i = 0; i < ELEMENTS; i++)
            a[i] = b[i] + 3.0 * c[i];
        double seconds = now() - start;
        if (seconds < best)
            best = seconds;
    }
    printf("triad %.1f MB/s, check %.0f\n", 3.0 * (double)size / best / 1e6, a[ELEMENTS - 1]);
    return EXIT_SUCCESS;
}
