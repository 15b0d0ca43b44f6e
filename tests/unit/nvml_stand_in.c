/* Stands in for NVIDIA's libnvidia-ml.so.1 in tests: NVML's C interface as its header has it, two
 * GPUs of which the second is divided into two MIG devices, and no hardware. */
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, NOT_LOADED = 9 };

typedef struct device *device;

struct pci {
    char legacy[16];
    unsigned domain, bus, slot, id, subsystem;
    char bus_id[32];
};

struct device {
    unsigned index, minor, instance, compute;
    const char *uuid, *bus;
};

/* NVML counts by the PCI bus; minor numbers are as the driver found them. */
static struct device gpus[] = {
    {0, 1, 0, 0, "GPU-11111111-aaaa-bbbb-cccc-000000000000", "00000000:3B:00.0"},
    {1, 0, 0, 0, "GPU-22222222-aaaa-bbbb-cccc-000000000000", "00000000:AF:00.0"},
};
static struct device migs[] = {
    {0, 0, 1, 0, "MIG-33333333-aaaa-bbbb-cccc-000000000000", ""},
    {2, 0, 5, 0, "MIG-44444444-aaaa-bbbb-cccc-000000000000", ""},
};

int nvmlInitWithFlags(unsigned flags)
{
#ifdef BROKEN
    return NOT_LOADED;
#endif
    return flags == 0 ? SUCCESS : INVALID;
}

int nvmlShutdown(void)
{
    return SUCCESS;
}

const char *nvmlErrorString(int code)
{
    return code == NOT_LOADED ? "Driver Not Loaded" : "some error";
}

int nvmlSystemGetDriverVersion(char *version, unsigned size)
{
    snprintf(version, size, "999.88.77");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = 2;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *found)
{
    if (index >= 2)
        return INVALID;
    *found = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetUUID(device of, char *uuid, unsigned size)
{
    snprintf(uuid, size, "%s", of->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(device of, char *name, unsigned size)
{
    snprintf(name, size, "Stand-in %u", of->index);
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(device of, unsigned *minor)
{
    *minor = of->minor;
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(device of, struct pci *pci)
{
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", of->bus);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(device of, unsigned *now, unsigned *pending)
{
#ifdef WITHOUT_MIG
    return NOT_SUPPORTED;
#endif
    *now = *pending = of->index == 1;
    return of->index == 1 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(device of, unsigned *count)
{
    *count = of->index == 1 ? 7 : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device of, unsigned index, device *found)
{
    (void)of;
    for (unsigned i = 0; i < 2; i++) {
        if (migs[i].index == index) {
            *found = &migs[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(device of, unsigned *id)
{
    *id = of->instance;
    return SUCCESS;
}

int nvmlDeviceGetComputeInstanceId(device of, unsigned *id)
{
    *id = of->compute;
    return SUCCESS;
}
