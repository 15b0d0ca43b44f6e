/* Every rank says who and where it is; rank 0 checks that they reach each other. */

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    char host[MPI_MAX_PROCESSOR_NAME];
    int rank, size, length, sum;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(host, &length);
    printf("rank %d of %d on %s\n", rank, size, host);
    fflush(stdout);

    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    int right = sum == size * (size - 1) / 2;
    if (rank == 0)
        printf("the ranks of %d processes add up to %d: %s\n", size, sum,
               right ? "right" : "WRONG");
    MPI_Finalize();
    return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
