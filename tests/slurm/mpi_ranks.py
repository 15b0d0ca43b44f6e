"""An MPI program without a compiler: `python3 mpi_ranks.py mpich|openmpi`, in the image.

Each rank prints its rank, the sum of all ranks (an MPI_Allreduce), its node and mount namespace.
The handles are those of mpi.h: numbers in MPICH's ABI, addresses of objects in Open MPI's.
"""

import ctypes
import os
import sys

MPICH_WORLD, MPICH_INT, MPICH_SUM = 0x44000000, 0x4C000405, 0x58000003


def handles(family):
    """The library, and its names for the communicator, the type and the operation."""
    if family == "mpich":
        return ctypes.CDLL("libmpich.so.12"), MPICH_WORLD, MPICH_INT, MPICH_SUM
    # Global: Open MPI's modules look for its symbols there.
    library = ctypes.CDLL("libmpi.so.40", ctypes.RTLD_GLOBAL)
    names = ("ompi_mpi_comm_world", "ompi_mpi_int", "ompi_mpi_op_sum")
    objects = [ctypes.byref(ctypes.c_char.in_dll(library, name)) for name in names]
    return (library, *objects)


def main():
    """Take part, and say so."""
    mpi, world, integer, add = handles(sys.argv[1])
    rank, total = ctypes.c_int(), ctypes.c_int()
    mpi.MPI_Init(None, None)
    mpi.MPI_Comm_rank(world, ctypes.byref(rank))
    mpi.MPI_Allreduce(ctypes.byref(rank), ctypes.byref(total), 1, integer, add, world)
    namespace = os.readlink("/proc/self/ns/mnt")
    words = ("rank", rank.value, total.value, os.uname().nodename, namespace)
    os.write(1, (" ".join(map(str, words)) + "\n").encode())
    mpi.MPI_Finalize()


main()
