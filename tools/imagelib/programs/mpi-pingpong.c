/* Latency and bandwidth between ranks 0 and 1; further ranks wait.
 *
 * Each size is timed in several rounds and the best one is printed: on a machine that does other
 * things as well, the best round is the one that was disturbed least. */

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALLEST = 8, LARGEST = 4 << 20, ROUNDS = 5, BYTES_A_ROUND = 32 << 20, MOST_TURNS = 2000 };

static int turns_for(int bytes)
{
    int turns = BYTES_A_ROUND / bytes;

    return turns < MOST_TURNS ? turns : MOST_TURNS;
}

/* Seconds for one message one way, over `turns` messages there and back. */
static double time_one_way(char *buffer, int bytes, int rank, int turns)
{
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime();
    for (int turn = 0; turn < turns; turn++) {
        if (rank == 0) {
            MPI_Send(buffer, bytes, MPI_CHAR, 1, 0, MPI_COMM_WORLD);
            MPI_Recv(buffer, bytes, MPI_CHAR, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else if (rank == 1) {
            MPI_Recv(buffer, bytes, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(buffer, bytes, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
        }
    }
    return (MPI_Wtime() - start) / turns / 2;
}

static double best_of_rounds(char *buffer, int bytes, int rank)
{
    double best = time_one_way(buffer, bytes, rank, turns_for(bytes) / 10 + 1);

    for (int round = 0; round < ROUNDS; round++) {
        double seconds = time_one_way(buffer, bytes, rank, turns_for(bytes));
        if (seconds < best)
            best = seconds;
    }
    return best;
}

int main(int argc, char **argv)
{
    int rank, size;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    char *buffer = malloc(LARGEST);
    if (size < 2 || buffer == NULL) {
        fprintf(stderr, "mpi-pingpong: needs two ranks and %d bytes each\n", LARGEST);
        MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
    }
    memset(buffer, rank, LARGEST);
    if (rank == 0)
        printf("%10s %12s %12s\n", "bytes", "us one way", "MB/s");
    for (int bytes = SMALLEST; bytes <= LARGEST; bytes *= 2) {
        double seconds = best_of_rounds(buffer, bytes, rank);
        if (rank == 0)
            printf("%10d %12.2f %12.1f\n", bytes, seconds * 1e6, bytes / seconds / 1e6);
    }
    free(buffer);
    MPI_Finalize();
    return EXIT_SUCCESS;
}
